//! The verbs, thin: arguments in, a room's work, an exit code out.
//!
//! A new verb is a file with `Args` and `run(config, args) -> anyhow::Result<Outcome>`, a
//! variant of `Verb` and its line in `Verb::run`.

mod asking;
mod check;
mod cleanup;
mod confirm;
mod copy_progress;
mod demo;
mod diagnose;
mod errors;
mod human;
mod mapping;
mod output;
mod rebase;
mod repair;
mod resync;
mod run;
mod settings;
mod setup;
mod status;
mod teardown;
mod verify;
mod work_bar;

use crate::config::{Config, ConfigError};
use crate::telemetry::{FILTER_VARIABLE, LogFormat, LoggingError, init_logging};
use anyhow::{Context, anyhow};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use copy_progress::Terminal;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What a verb came to. The numbers are an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Fine = 0,
    /// It ran and found something: a failed check, a difference, an unhealthy pipeline.
    Found = 1,
    /// It could not do its work.
    Unable = 2,
    /// The command line or the configuration is wrong.
    Misused = 64,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// Keeps a replica PostgreSQL database in lockstep with a master one, and proves it.
#[derive(Debug, Parser)]
#[command(name = "pglockstep", version, arg_required_else_help = true)]
struct Cli {
    /// The configuration.
    #[arg(
        long,
        global = true,
        env = "PGLOCKSTEP_CONFIG",
        value_name = "FILE",
        default_value = "/etc/pglockstep/pglockstep.toml"
    )]
    config: PathBuf,
    /// How log lines on standard error look; PGLOCKSTEP_LOG sets which there are.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = LogFormatArg::Text)]
    log_format: LogFormatArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the daemon, in the foreground.
    Run,
    /// Shows the main job on two throw-away clusters, with a live workload.
    Demo(demo::Args),
    /// Looks at everything that a start needs and changes nothing: findings, each with its remedy.
    Check(check::Args),
    /// Prints the SQL that a DBA runs once on each side; with --apply runs it.
    Setup(setup::Args),
    /// Shows positions, lag, tables, slot and the last error of the running daemon.
    Status(status::Args),
    /// Compares source and replica at one position, while the daemon runs or without it.
    Verify(verify::Args),
    /// Shows how what is not the same would be mended; with --apply does it.
    Repair(repair::Args),
    /// Shows rows that refer to nothing or share a key, and the source has not; with --apply takes them away.
    Cleanup(cleanup::Args),
    /// The replica's own integrity: orphans, duplicates, what it lacks, who else may write.
    Diagnose(diagnose::Args),
    /// What becomes of the source's tables.
    Mapping(mapping::Args),
    /// Changes that could not be applied, and what becomes of them.
    Errors(errors::Args),
    /// Copies tables again and merges; the replica stays readable.
    Resync(resync::Args),
    /// Looks whether the pipeline can go on; where it cannot, begins anew and merges every table.
    Rebase(rebase::Args),
    /// Drops the replication slot and the bookkeeping schema, after asking.
    Teardown(teardown::Args),
}

/// The operator's words are at fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

impl Verb {
    async fn run(self, config: PathBuf, terminal: Terminal) -> anyhow::Result<Outcome> {
        // The demo brings a configuration of its own.
        let load = || Config::load(&config);
        match self {
            Self::Demo(args) => demo::run(&args).await,
            Self::Run => run::run(load()?, &terminal).await,
            Self::Check(args) => check::run(load()?, args).await,
            Self::Setup(args) => setup::run(load()?, args).await,
            Self::Status(args) => status::run(load()?, args).await,
            Self::Verify(args) => Box::pin(verify::run(load()?, args)).await,
            Self::Repair(args) => Box::pin(repair::run(load()?, args)).await,
            Self::Cleanup(args) => Box::pin(cleanup::run(load()?, args)).await,
            Self::Diagnose(args) => diagnose::run(load()?, args).await,
            Self::Mapping(args) => mapping::run(load()?, args).await,
            Self::Errors(args) => errors::run(load()?, args).await,
            Self::Resync(args) => resync::run(load()?, args).await,
            Self::Rebase(args) => rebase::run(load()?, args).await,
            Self::Teardown(args) => teardown::run(load()?, args).await,
        }
    }
}

/// Does what the command line says. Results go to standard output, all else to standard error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // When not even this can be printed, the exit code still tells.
            let _ = error.print();
            return parse_outcome(error.kind()).into();
        }
    };
    run(cli)
        .unwrap_or_else(|error| {
            output::complain(&format!("error: {error:#}"));
            error_outcome(&error)
        })
        .into()
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let format = match cli.log_format {
        LogFormatArg::Text => LogFormat::Text,
        LogFormatArg::Json => LogFormat::Json,
    };
    let terminal = Terminal::new(format == LogFormat::Text);
    let filter = std::env::var(FILTER_VARIABLE).ok();
    init_logging(format, filter.as_deref(), terminal.clone())?;
    // What must not wait for the rest has a thread of its own: `reactor`.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let work = || runtime.block_on(cli.verb.run(cli.config, terminal));
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(anyhow!("a bug: the log above says where; please report it")));
    // A look-up of a host name cannot be broken off, and must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Help and version are answers, not errors.
fn parse_outcome(kind: ErrorKind) -> Outcome {
    match kind {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Outcome::Fine,
        _ => Outcome::Misused,
    }
}

/// Where the operator's words are at fault, another attempt needs other words.
fn error_outcome(error: &anyhow::Error) -> Outcome {
    if error.is::<ConfigError>() || error.is::<LoggingError>() || error.is::<Misuse>() {
        Outcome::Misused
    } else {
        Outcome::Unable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    fn outcome(args: &[&str]) -> Option<Outcome> {
        let all = ["pglockstep"].iter().chain(args);
        Cli::try_parse_from(all)
            .err()
            .map(|error| parse_outcome(error.kind()))
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_words_are_misuse_and_help_is_not() {
        for (args, expected) in [
            (&["status"][..], None),
            (&["status", "--json", "--watch"], None),
            (&["status", "--config", "/x", "--log-format", "json"], None),
            (&["check", "--json"], None),
            (&["setup", "--apply", "--source-admin-url", "x"], None),
            (&["mapping", "explain", "public.leads"], None),
            (&["verify", "public.leads", "--counts", "--json"], None),
            (&["mapping"], Some(Outcome::Misused)),
            (&["cleanup", "orphans", "public.leads", "--apply"], None),
            (&["cleanup", "duplicates", "--json"], None),
            (&["cleanup"], Some(Outcome::Misused)),
            (&["cleanup", "leads"], Some(Outcome::Misused)),
            (&["errors", "skip", "3", "--reason", "a test row"], None),
            (&["errors", "skip", "3"], Some(Outcome::Misused)),
            (&["resync", "public.leads", "public.clients"], None),
            (&["resync"], Some(Outcome::Misused)),
            (&["rebase", "--apply", "--yes", "--json"], None),
            (&["teardown", "--yes"], None),
            (&["--help"], Some(Outcome::Fine)),
            (&["--version"], Some(Outcome::Fine)),
            (&[], Some(Outcome::Misused)),
            (&["stauts"], Some(Outcome::Misused)),
            (&["status", "--jsno"], Some(Outcome::Misused)),
            (&["--log-format", "xml", "status"], Some(Outcome::Misused)),
        ] {
            assert_eq!(outcome(args), expected, "{args:?}");
        }
    }

    #[test]
    fn a_bad_configuration_is_misuse_whatever_was_said_around_it() {
        let bad = Config::load(Path::new("/does/not/exist")).unwrap_err();
        let error = anyhow::Error::from(bad);
        assert_eq!(error_outcome(&error), Outcome::Misused);
        assert_eq!(error_outcome(&error.context("starting")), Outcome::Misused);
        assert_eq!(
            error_outcome(&anyhow::anyhow!("disk full")),
            Outcome::Unable
        );
        assert_eq!(Outcome::Misused as u8, 64);
    }
}
