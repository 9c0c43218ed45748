//! Tries, and tries again: the retry policy.
//!
//! A transient error is retried with a growing, jittered delay, the first time at once. A
//! definite one before the pipeline ever ran ends it: the operator is there and reads. A
//! definite one later leaves it `failed`, with its reason in every endpoint, and it is tried
//! again at the longest delay: what was wrong may be put right at any time.

use super::cut::Cuts;
use super::memory::Memory;
use super::slot_watch::watch_slot;
use super::start::start;
use super::trouble::Trouble;
use super::{PipelineConfig, PipelineError, RetrySettings};
use crate::conn::Session;
use crate::pg::{Disposition, Side};
use crate::progress::Store;
use crate::telemetry::{
    Chain, ConnectionState, ErrorCategory, PipelineState, Severity, StreamedOutcome, Telemetry,
};
use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// An attempt that ran this long was a success: the next delay is the shortest again.
const SUCCESS_AFTER: Duration = Duration::from_secs(30);
/// The first new attempt after a success comes this soon.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// How often the books are looked at for an operator's requests while the pipeline waits.
const LOOK_FOR_REQUESTS_EVERY: Duration = Duration::from_secs(1);

/// Runs the pipeline until it is shut down. It is configured anew for each attempt, so that a
/// changed connection string is picked up.
///
/// # Errors
/// A definite error before the pipeline ever ran.
pub async fn supervise(
    configure: impl Fn() -> Result<PipelineConfig, PipelineError>,
    retry: RetrySettings,
    telemetry: &Telemetry,
    shutdown: &CancellationToken,
    mut cuts: Cuts,
) -> Result<(), PipelineError> {
    let memory = Memory::default();
    let mut has_run = false;
    loop {
        let trying = try_again(
            &configure,
            retry,
            telemetry,
            shutdown,
            (&memory, &mut has_run, &mut cuts),
        );
        tokio::select! {
            done = Box::pin(trying) => return done,
            given_up = watch_slot(&configure, telemetry, &memory) => {
                // The attempt is dropped by now, and its sessions with it. It owned the slot: what
                // stops it from now on is no start that is refused.
                has_run = true;
                telemetry.discard_pending();
                telemetry.set_state(PipelineState::Failed, Some(given_up.reason()));
                let Some(why) = given_up.carry_out(&configure).await else {
                    memory.disown();
                    continue;
                };
                let advice = "mend what held the pipeline up, then `pglockstep rebase`";
                tracing::error!(error = why, advice, "the pipeline has failed");
                telemetry.set_last_error(why.clone(), Some(advice.to_owned()));
                telemetry.set_state(PipelineState::Failed, Some(why.clone()));
                telemetry.error(ErrorCategory::System, Severity::Critical);
                memory.give_up(why);
            }
        }
        // The books say what has become of the slot: that is what each attempt finds from now on.
    }
}

async fn try_again(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    retry: RetrySettings,
    telemetry: &Telemetry,
    shutdown: &CancellationToken,
    (memory, has_run, cuts): (&Memory, &mut bool, &mut Cuts),
) -> Result<(), PipelineError> {
    let delays = ExponentialBuilder::default()
        .with_min_delay(retry.delay_min)
        .with_max_delay(retry.delay_max)
        .with_jitter()
        .without_max_times();
    let mut next_delays = delays.build();
    let mut told = String::new();
    let mut trouble = None;
    loop {
        let started = Instant::now();
        let mut has_streamed = false;
        let outcome = match configure() {
            Ok(config) => {
                let before = (trouble, memory);
                let own = (&mut has_streamed, &mut *cuts);
                let attempt = attempt(&config, telemetry, shutdown, before, own);
                // All that it held goes with it, as after any error.
                let ended = AssertUnwindSafe(attempt).catch_unwind().await;
                ended.unwrap_or_else(|_| Err(panicked()))
            }
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return Ok(()) };
        *has_run |= has_streamed;
        telemetry.discard_pending();
        if matches!(error, PipelineError::TakeWhole(_)) {
            memory.take_whole(Instant::now());
            telemetry.streamed(StreamedOutcome::Whole);
        }
        if matches!(error, PipelineError::TakeText(_)) {
            memory.take_text(Instant::now());
        }
        if shutdown.is_cancelled() {
            return Ok(());
        }
        let is_definite = error.disposition() == Disposition::Definite;
        if is_definite && !*has_run {
            return Err(error);
        }
        trouble = Trouble::after(
            &error,
            trouble,
            telemetry.status().applied_lsn,
            has_streamed,
        );
        let is_searched = error.failed_at().is_some() && trouble.is_some_and(|t| !t.is_found());
        let was_success = *has_run && started.elapsed() >= SUCCESS_AFTER;
        if was_success {
            next_delays = delays.build();
            told.clear();
        }
        let is_at_once =
            is_searched || was_success && !is_definite || error.is_only_a_new_beginning();
        let delay = match (is_at_once, is_definite) {
            (true, _) => FIRST_DELAY,
            (false, true) => retry.delay_max,
            (false, false) => next_delays.next().unwrap_or(retry.delay_max),
        };
        if is_searched {
            tracing::warn!(
                error = %Chain(&error),
                "a batch cannot be applied: again, a transaction at a time"
            );
        } else {
            tell(telemetry, &error, delay, &mut told);
        }
        disconnected(telemetry, &error);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = requested(configure, memory) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

async fn attempt(
    config: &PipelineConfig,
    telemetry: &Telemetry,
    shutdown: &CancellationToken,
    (trouble, memory): (Option<Trouble>, &Memory),
    (has_streamed, cuts): (&mut bool, &mut Cuts),
) -> Result<(), PipelineError> {
    // Before the stream there is nothing to finish: a start is dropped where it stands.
    let follower = tokio::select! {
        follower = Box::pin(start(config, telemetry, trouble, memory)) => follower?,
        () = shutdown.cancelled() => return Ok(()),
    };
    *has_streamed = true;
    Box::pin(follower.run(shutdown, cuts)).await
}

/// The log says where. Libraries panic at answers of a server that have another form than was asked
/// for, and there may be mistakes of ours.
fn panicked() -> PipelineError {
    PipelineError::Definite {
        message: "the pipeline has panicked".into(),
        advice:
            "a bug, or a server that answers what it was not asked: the log says where; report it"
                .into(),
    }
}

/// Returns when an operator has left something that the last attempt did not find; while the
/// replica cannot be asked, never.
async fn requested(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    memory: &Memory,
) {
    // Short waits end by themselves.
    tokio::time::sleep(LOOK_FOR_REQUESTS_EVERY).await;
    let Ok(config) = configure() else {
        return std::future::pending().await;
    };
    let Ok(client) = config.replica.connect(Session::ReplicaWrite).await else {
        return std::future::pending().await;
    };
    loop {
        match Store::fetch_requests(&client, &config.name).await {
            Ok(requests) if memory.are_news(requests.as_ref()) => {
                // An attempt that fails before it comes to them is no reason for haste.
                memory.know(requests);
                return;
            }
            Ok(_) => tokio::time::sleep(LOOK_FOR_REQUESTS_EVERY).await,
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Logs an error once, not at every attempt that meets it again.
fn tell(telemetry: &Telemetry, error: &PipelineError, delay: Duration, told: &mut String) {
    if matches!(
        error,
        PipelineError::Requested | PipelineError::TakeWhole(_) | PipelineError::TakeText(_)
    ) {
        tracing::info!("{error}");
        return;
    }
    let message = Chain(error).to_string();
    let is_definite = error.disposition() == Disposition::Definite;
    let state = if is_definite {
        PipelineState::Failed
    } else {
        PipelineState::Starting
    };
    telemetry.set_state(state, Some(message.clone()));
    if message != *told {
        log(error, &message, delay);
        telemetry.set_last_error(message.clone(), error.advice());
        *told = message;
    }
    // Last: whoever sees it counted finds it told.
    let severity = match (is_definite, error) {
        (true, _) => Severity::Critical,
        (false, PipelineError::SetAside { .. } | PipelineError::ResyncFailed { .. }) => {
            Severity::High
        }
        (false, _) => Severity::Medium,
    };
    telemetry.error(error.category(), severity);
    if error.is_write_to_source() {
        telemetry.source_write_attempted();
    }
}

fn log(error: &PipelineError, message: &str, delay: Duration) {
    let advice_text = error.advice().unwrap_or_default();
    let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    if let PipelineError::SetAside { table, .. } = error {
        tracing::error!(
            table,
            error = message,
            advice = advice_text,
            "a table is set aside"
        );
    } else if matches!(error, PipelineError::ResyncFailed { .. }) {
        tracing::error!(error = message, advice = advice_text, "a resync has failed");
    } else if error.disposition() == Disposition::Definite {
        tracing::error!(
            error = message,
            advice = advice_text,
            retry_in_ms,
            "the pipeline has failed"
        );
    } else {
        tracing::warn!(
            error = message,
            advice = advice_text,
            retry_in_ms,
            "trying again"
        );
    }
}

/// All sessions went with the attempt; one that was lost says why.
fn disconnected(telemetry: &Telemetry, error: &PipelineError) {
    for side in [Side::Source, Side::Replica] {
        telemetry.set_connection(side, ConnectionState::Connecting, None);
    }
    if let Some(side) = error.lost_side() {
        let reason = Some(Chain(error).to_string());
        telemetry.set_connection(side, ConnectionState::Unreachable, reason);
    }
}
