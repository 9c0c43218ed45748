//! `run`: the daemon, in the foreground.

use super::copy_progress::Terminal;
use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::{self, DaemonError};
use crate::pipeline::PipelineError;
use crate::telemetry::{Chain, Telemetry};
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(super) async fn run(config: Config, terminal: &Terminal) -> anyhow::Result<Outcome> {
    let shutdown = CancellationToken::new();
    cancel_on_signal(shutdown.clone())?;
    let telemetry = Telemetry::new(&config.name);
    let bar = terminal.watch(telemetry.clone());
    let done = daemon::run(&config, telemetry, shutdown).await;
    drop(bar);
    match done {
        Ok(()) => Ok(Outcome::Fine),
        Err(error) => {
            output::complain(&format!("error: {}", Chain(&error)));
            if let Some(advice) = error.advice() {
                output::complain(&format!("advice: {advice}"));
            }
            Ok(match error {
                DaemonError::Bind(_) | DaemonError::Task(_) | DaemonError::Thread(_) => {
                    Outcome::Unable
                }
                DaemonError::Pipeline(PipelineError::Configuration { .. }) => Outcome::Misused,
                DaemonError::Pipeline(_) => Outcome::Found,
            })
        }
    }
}

/// SIGTERM and SIGINT end the work in order; a second one ends it at once.
pub(super) fn cancel_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        for is_second in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_second {
                std::process::exit(Outcome::Unable as i32);
            }
            tracing::info!("finishing the batch in hand; once more to end at once");
            shutdown.cancel();
        }
    });
    Ok(())
}
