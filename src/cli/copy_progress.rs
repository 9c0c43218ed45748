//! The first copy's progress bar on a terminal, and log lines that do not run into it.
//!
//! Log lines go through the same [`Terminal`]: a bar that is shown steps aside for each.

use crate::telemetry::{PipelineState, Status, TableStateLabel, Telemetry};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Steps of a table's share of the bar.
const STEPS: u64 = 1_000;

/// Standard error, shared by log lines and a bar.
#[derive(Clone)]
pub(super) struct Terminal {
    bars: MultiProgress,
    is_for_people: bool,
}

impl Terminal {
    /// `is_for_people`: false where lines are read by programs, which a bar would disturb.
    pub(super) fn new(is_for_people: bool) -> Self {
        // Hidden by itself where standard error is no terminal.
        Self {
            bars: MultiProgress::new(),
            is_for_people,
        }
    }

    /// Shows the first copy's progress while there is one; until dropped.
    pub(super) fn watch(&self, telemetry: Telemetry) -> Option<Watch> {
        if !self.is_for_people || self.bars.is_hidden() {
            return None;
        }
        let bars = self.bars.clone();
        let task = tokio::spawn(async move {
            let mut shown: Option<ProgressBar> = None;
            let mut looks = tokio::time::interval(LOOK_EVERY);
            loop {
                looks.tick().await;
                let status = telemetry.status();
                if status.state == PipelineState::Copying {
                    let bar = shown.get_or_insert_with(|| bars.add(new_bar()));
                    draw(bar, &status);
                } else if let Some(bar) = shown.take() {
                    bar.finish_and_clear();
                    bars.remove(&bar);
                }
            }
        });
        Some(Watch {
            task,
            bars: self.bars.clone(),
        })
    }
}

/// Takes the bar away when dropped.
pub(super) struct Watch {
    task: tokio::task::JoinHandle<()>,
    bars: MultiProgress,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
        // What is left on the screen of a terminal that is gone matters to nobody.
        let _ = self.bars.clear();
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("copying [{bar:30}] {percent:>3} %  {elapsed}  {msg}");
    let bar = ProgressBar::no_length();
    // The template is a constant; a wrong one would only lose the looks.
    style
        .map(|style| bar.clone().with_style(style))
        .unwrap_or(bar)
}

fn draw(bar: &ProgressBar, status: &Status) {
    let progress = Progress::of(status);
    bar.set_message(progress.message);
    bar.set_length(progress.length);
    bar.set_position(progress.position);
}

#[derive(Debug, PartialEq, Eq)]
struct Progress {
    length: u64,
    position: u64,
    message: String,
}

impl Progress {
    fn of(status: &Status) -> Self {
        let tables = &status.tables;
        let ratio = |table: &crate::telemetry::TableStatus| match table.state {
            TableStateLabel::Init | TableStateLabel::Copying => {
                table.copy_progress.unwrap_or(0.0).clamp(0.0, 1.0)
            }
            _ => 1.0,
        };
        // A ratio of 0 to 1 times 1000 fits.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let steps = |table| (ratio(table) * STEPS as f64) as u64;
        let done = tables.iter().filter(|table| ratio(table) >= 1.0).count();
        let rows: u64 = tables.iter().map(|table| table.copied_rows).sum();
        let current = tables
            .iter()
            .find(|t| t.state == TableStateLabel::Copying && ratio(t) < 1.0);
        let current = current.map_or(String::new(), |t| format!(", {}", t.table));
        Self {
            length: STEPS * tables.len() as u64,
            position: tables.iter().map(steps).sum(),
            message: format!("{done} of {} tables, {rows} rows{current}", tables.len()),
        }
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Aside;

    fn make_writer(&'a self) -> Aside {
        Aside(self.bars.clone())
    }
}

/// Writes to standard error while no bar is in the way.
pub(super) struct Aside(MultiProgress);

impl Write for Aside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The whole line at once: the subscriber hands over one line a call.
        self.0
            .suspend(|| io::stderr().lock().write_all(bytes))
            .map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;

    #[test]
    fn a_bar_counts_tables_and_rows() {
        let telemetry = Telemetry::new("p");
        let table = |name: &str| {
            let name = QualifiedName::new("s", name);
            telemetry.table(&name, &name)
        };
        let (done, half, _waiting) = (table("a"), table("b"), table("c"));
        done.set_state(TableStateLabel::CatchingUp);
        done.copied_rows(10);
        half.set_state(TableStateLabel::Copying);
        half.set_copy_progress(0.5);
        half.copied_rows(5);
        let expected = Progress {
            length: 3_000,
            position: 1_500,
            message: "1 of 3 tables, 15 rows, s.b".into(),
        };
        assert_eq!(Progress::of(&telemetry.status()), expected);
    }
}
