//! `demo`: the main job on two throw-away clusters.

use super::Outcome;
use super::run::cancel_on_signal;
use crate::demo::{self, Options};
use std::num::NonZeroU32;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ends by itself after so many seconds; otherwise Ctrl-C ends it.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Transactions a second on the source.
    #[arg(long, value_name = "N", default_value = "400")]
    rate: NonZeroU32,
    /// What the workload is drawn from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Outcome> {
    let interrupted = CancellationToken::new();
    cancel_on_signal(interrupted.clone())?;
    let options = Options {
        lasts: args.seconds.map(Duration::from_secs),
        rate_per_second: args.rate,
        seed: args.seed,
    };
    let in_sync = Box::pin(demo::run(options, interrupted)).await?;
    Ok(if in_sync {
        Outcome::Fine
    } else {
        Outcome::Found
    })
}
