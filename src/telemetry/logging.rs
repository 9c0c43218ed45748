//! Logs: to standard error, as text or JSON; never a row's value, never a secret.

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// The variable that sets what is logged; `tracing`'s filter syntax.
pub const FILTER_VARIABLE: &str = "PGLOCKSTEP_LOG";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    // Not a source: the parser's error says its own cause already.
    #[error("{FILTER_VARIABLE} is not a log filter ({0}); try `info` or `pglockstep=debug,info`")]
    Filter(tracing_subscriber::filter::ParseError),
    /// Somebody set it up before.
    #[error("logging is set up already")]
    Twice(#[source] Box<dyn Error + Send + Sync>),
}

/// Sends the process' log to `writer`, which leads to standard error. `filter` is usually the value of
/// [`FILTER_VARIABLE`]; without one, `info` and above is logged.
///
/// # Errors
/// The filter does not parse, or logging was set up before.
pub fn init_logging<W>(
    format: LogFormat,
    filter: Option<&str>,
    writer: W,
) -> Result<(), LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter
        .filter(|text| !text.trim().is_empty())
        .unwrap_or("info");
    let filter = EnvFilter::try_new(filter).map_err(LoggingError::Filter)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_span_events(FmtSpan::NONE);
    match format {
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .try_init(),
    }
    .map_err(LoggingError::Twice)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A panic is a bug: where it is, in the log. What it says only where nothing was put into it, for
/// that may be a row's value.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    tracing::error!(
        place = place.unwrap_or_default(),
        says = panic.payload().downcast_ref::<&'static str>(),
        thread = std::thread::current().name(),
        "a bug: a task has panicked; please report it"
    );
}

/// Shows an error and all that caused it, in one line: `what: why: why`.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(
            Chain(&error).to_string(),
            "cannot read the file: disk on fire"
        );
    }

    #[test]
    fn a_wrong_filter_is_an_error() {
        let error =
            init_logging(LogFormat::Text, Some("pglockstep=loud"), std::io::stderr).unwrap_err();
        assert!(error.to_string().contains(FILTER_VARIABLE));
    }
}
