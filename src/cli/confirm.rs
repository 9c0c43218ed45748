//! Asking before something that cannot be taken back.

use super::output;
use anyhow::{Context, bail};
use std::io::{BufRead, IsTerminal};

/// Whether somebody types yes.
///
/// # Errors
/// Nobody can be asked.
pub(super) fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed: say --yes where nobody can be asked");
    }
    output::complain("Go on? Type yes:");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    Ok(answer.trim() == "yes")
}
