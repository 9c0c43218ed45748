//! What the demo shows: where to look, a live line, the verdict.

use super::crm::{Counts, TableVerdict};
use crate::config::Config;
use crate::telemetry::{Status, TableStateLabel, TableStatus};
use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;

/// Standard output; a live line is redrawn in place on a terminal, and printed elsewhere.
pub(super) struct Screen {
    is_terminal: bool,
    transactions_before: Cell<u64>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self {
            is_terminal,
            transactions_before: Cell::new(0),
        }
    }

    pub(super) fn say(&self, text: &str) {
        self.print(text, "\n");
    }

    /// A reader who went away is no reason to stop.
    fn print(&self, text: &str, end: &str) {
        let mut out = std::io::stdout().lock();
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        let _ = write!(out, "{clear}{text}{end}").and_then(|()| out.flush());
    }

    pub(super) fn where_to_look(
        &self,
        config: &Config,
        config_path: &Path,
        source_url: &str,
        replica_url: &str,
    ) {
        let listen = config.http.listen;
        self.say(&format!(
            "\n  status page  http://{listen}/\n  metrics      http://{listen}/metrics\n  \
             status       pglockstep --config {} status --watch\n  \
             source       psql '{source_url}'\n  replica      psql '{replica_url}'\n",
            config_path.display()
        ));
    }

    pub(super) fn live(&self, status: &Status) {
        let applied = status.transactions_applied;
        let rate = applied.saturating_sub(self.transactions_before.replace(applied));
        // What is on its way just now is the lag's to tell.
        let in_step = |table: &&TableStatus| table.state == TableStateLabel::Ready;
        let mut line = format!(
            "{:<11} {rate:>6} transactions/s  {applied:>8} in all  tables in step {}/{}",
            status.state.as_str(),
            status.tables.iter().filter(in_step).count(),
            status.tables.len()
        );
        if let (Some(seconds), Some(bytes)) = (status.lag_seconds, status.lag_bytes) {
            // Writing to a String cannot fail.
            let _ = write!(line, "  lag {:.0} ms, {bytes} bytes", seconds * 1_000.0);
        }
        self.print(&line, if self.is_terminal { "" } else { "\n" });
    }

    pub(super) fn workload_done(&self, counts: &Counts) {
        self.say(&format!(
            "workload done: {} transactions on the source; catching up and comparing every row …",
            counts.committed
        ));
    }

    /// Prints the comparison; true when every table is in lockstep.
    pub(super) fn verdict(&self, tables: &[TableVerdict]) -> bool {
        let mut text = format!(
            "\n  {:<32} {:>9} {:>9} {:>8} {:>6} {:>10}\n",
            "table", "source", "replica", "missing", "extra", "different"
        );
        for table in tables {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "  {:<32} {:>9} {:>9} {:>8} {:>6} {:>10}",
                table.source.to_string(),
                table.source_rows,
                table.replica_rows,
                table.missing,
                table.extra,
                table.different
            );
        }
        let in_sync = !tables.is_empty() && tables.iter().all(TableVerdict::in_sync);
        text.push_str(if in_sync {
            "\nverdict: all tables in lockstep"
        } else {
            "\nverdict: NOT in lockstep"
        });
        self.say(&text);
        in_sync
    }
}
