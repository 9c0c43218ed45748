//! Printing that survives a reader who went away (`pglockstep status | head -1`).

use std::io::Write;

/// Prints text and a line's end to standard output.
///
/// # Errors
/// Standard output is closed or full.
pub(super) fn line(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints to standard error; nobody is left to tell when that fails.
pub(super) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
