//! How far work of minutes or hours is, on standard error: a bar on a terminal, and lines elsewhere.

use super::output;
use crate::verify::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Tells of it until dropped.
pub(super) struct WorkBar {
    bar: ProgressBar,
    /// What was told last: of which part of the work, and how many tenths of it.
    last: Option<(String, u64)>,
}

impl WorkBar {
    /// Nothing is shown before there is something to tell.
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("[{bar:30}] {elapsed}  {msg}");
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::new(100);
        // The template is a constant; a wrong one would only lose the looks.
        let bar = style
            .map(|style| bar.clone().with_style(style))
            .unwrap_or(bar);
        Self { bar, last: None }
    }

    /// What is done now.
    pub(super) fn tell(&mut self, text: &str) {
        let percent = Progress::percent_told(text);
        if !self.bar.is_hidden() {
            self.bar.set_position(percent.unwrap_or_default());
            self.bar.set_message(text.to_owned());
            return;
        }
        let news = news(text, percent);
        if self.last.as_ref() != Some(&news) {
            output::complain(text);
            self.last = Some(news);
        }
    }
}

impl Drop for WorkBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Not each slice of a table is worth a line, but each tenth.
fn news(text: &str, percent: Option<u64>) -> (String, u64) {
    let what = match percent {
        Some(_) => text.rsplit_once(", ").map_or(text, |(what, _)| what),
        None => text,
    };
    (what.to_owned(), percent.unwrap_or_default() / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;

    #[test]
    fn a_line_is_told_of_each_table_and_each_tenth() {
        let table = QualifiedName::new("public", "a, 9 %");
        let text = |number, share| {
            let progress = Progress {
                table: &table,
                number,
                of: 3,
                share,
            };
            format!("comparing {progress}")
        };
        assert_eq!(text(0, 0.126), "comparing public.a, 9 %, 1 of 3, 13 %");
        let news = |text: String| news(&text, Progress::percent_told(&text));
        assert_eq!(
            news(text(0, 0.126)),
            ("comparing public.a, 9 %, 1 of 3".to_owned(), 1)
        );
        assert_eq!(news(text(0, 0.11)), news(text(0, 0.19)));
        assert_ne!(news(text(0, 0.19)), news(text(0, 0.21)));
        assert_ne!(news(text(0, 0.19)), news(text(1, 0.19)));
        assert_eq!(
            news("mending public.b".to_owned()),
            ("mending public.b".to_owned(), 0)
        );
    }
}
