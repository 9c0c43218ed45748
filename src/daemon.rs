//! Builds the rooms, spawns the tasks, owns the order of shutdown.
//!
//! ```text
//!  start:     endpoints ─▶ pipeline ─▶ READY to the service manager ─▶ watchdog
//!  shutdown:  pipeline (the batch in hand is finished, the source told) ─▶ endpoints
//! ```

use crate::config::Config;
use crate::conn::Endpoint;
use crate::faults;
use crate::http::{self, BindError};
use crate::pg::Side;
use crate::pipeline::{PipelineConfig, PipelineError, cuts, supervise};
use crate::reactor::Reactor;
use crate::telemetry::{self, PipelineState, Telemetry};
use crate::upkeep;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the batch in hand may take to finish at shutdown; what is left of the 10 s that
/// are promised goes to saying good-bye.
const FINISH_WITHIN: Duration = Duration::from_secs(8);
/// Without progress for this long the watchdog is no longer fed. Longer than any statement
/// of a healthy batch, since a restart would only begin the same batch again.
const STUCK_AFTER: Duration = Duration::from_secs(300);
/// Making a slot waits for the source's open transactions; after this long it says so.
const SLOT_LOCK_TIMEOUT_MS: u32 = 60_000;

/// The daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The endpoints cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The endpoints have no thread.
    #[error("the thread of the endpoints cannot be started")]
    Thread(#[source] std::io::Error),
    /// The pipeline ended before it ever ran.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A part of the daemon ended without being told to.
    #[error("the task of {0} ended unexpectedly")]
    Task(&'static str),
}

impl DaemonError {
    /// What an operator can do about it.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Bind(_) => Some("choose another [http] listen, or end what holds it".to_owned()),
            Self::Thread(_) => {
                Some("raise the limit on processes: LimitNPROC, or pids.max".to_owned())
            }
            Self::Pipeline(error) => error.advice(),
            Self::Task(_) => Some("report it; the log says where it panicked".to_owned()),
        }
    }
}

/// Runs until `shutdown`.
///
/// # Errors
/// [`DaemonError`]; once the pipeline has run, only shutdown ends it.
pub async fn run(
    config: &Config,
    telemetry: Telemetry,
    shutdown: CancellationToken,
) -> Result<(), DaemonError> {
    let endpoints = Reactor::start("endpoints").map_err(DaemonError::Thread)?;
    let settings = config.http;
    let bound = endpoints.spawn(async move { http::bind(&settings).await });
    let listener = bound
        .await
        .map_err(|_| DaemonError::Task("the endpoints"))??;
    tracing::info!(
        pipeline = config.name,
        version = env!("CARGO_PKG_VERSION"),
        listen = %config.http.listen,
        "started"
    );
    if cfg!(feature = "faults") {
        tracing::warn!(
            "a build for tests: its environment can make it fail and misbehave; never run it on data that matters"
        );
    }
    let http_shutdown = CancellationToken::new();
    let mut http = endpoints.spawn(http::serve(
        listener,
        telemetry.clone(),
        config.http,
        http_shutdown.clone(),
    ));
    notify(&[NotifyState::Ready]);
    let mut service_manager = endpoints.spawn(feed_watchdog(telemetry.clone()));

    // Neither of the others ends before it is told to, but by a panic: then nobody would see how
    // the pipeline is, and what runs blind is better begun again.
    let done = tokio::select! {
        done = run_pipeline(config, &telemetry, &shutdown) => done.map_err(DaemonError::from),
        _ = &mut http => Err(DaemonError::Task("the endpoints")),
        _ = &mut service_manager => Err(DaemonError::Task("the service manager")),
    };

    notify(&[NotifyState::Stopping]);
    service_manager.abort();
    http_shutdown.cancel();
    if !http.is_finished() {
        // Requests under way get their second; nothing of theirs can fail the daemon.
        let _ = http.await;
    }
    tracing::info!("stopped");
    done
}

async fn run_pipeline(
    config: &Config,
    telemetry: &Telemetry,
    shutdown: &CancellationToken,
) -> Result<(), PipelineError> {
    let configure = || {
        let mut pipeline = pipeline_config(config)?;
        for endpoint in [&mut pipeline.source, &mut pipeline.replica] {
            endpoint.telemetry = Some(telemetry.clone());
        }
        tell_endpoints(config, &pipeline, telemetry);
        Ok(pipeline)
    };
    let (asker, cuts) = cuts();
    let pipeline = supervise(configure, config.retry, telemetry, shutdown, cuts);
    let comparing = Reactor::start("verify").map_err(|error| {
        PipelineError::Waiting(format!(
            "the thread that compares cannot be started: {error}"
        ))
    })?;
    let of_verify = config.clone();
    let verifying = comparing.spawn(upkeep::serve(
        move || pipeline_config(&of_verify).ok(),
        config.upkeep,
        asker,
        telemetry.clone(),
    ));
    let verifying = async {
        // It ends by a panic only, and the pipeline does not end with it.
        if let Err(error) = verifying.await {
            tracing::error!(%error, "nothing is compared any more: a bug, the log says where; report it");
        }
        std::future::pending::<()>().await;
    };
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    tokio::select! {
        done = pipeline => done,
        () = verifying => Ok(()),
        () = overdue => {
            tracing::warn!(
                waited_seconds = FINISH_WITHIN.as_secs(),
                "the batch in hand did not finish in time: given up, it will be applied again"
            );
            Ok(())
        }
    }
}

/// The pipeline's configuration as it is now; connection strings in files are read again.
///
/// # Errors
/// A connection string cannot be read or makes no sense.
pub fn pipeline_config(config: &Config) -> Result<PipelineConfig, PipelineError> {
    Ok(PipelineConfig {
        name: config.name.clone(),
        source: endpoint(config, Side::Source)?,
        replica: endpoint(config, Side::Replica)?,
        publication: config.source.publication.clone(),
        slot: config.source.slot.clone(),
        failover: config.source.failover,
        replica_pool_max: config.replica.pool_max,
        slot_lock_timeout_ms: faults::limit("slot.lock_timeout_ms", SLOT_LOCK_TIMEOUT_MS),
        mapping: config.mapping.clone(),
        copy: config.snapshot,
        apply: config.apply,
        retry: config.retry,
        slot_budget: config.slot_budget,
        holdback: config.holdback,
    })
}

/// Tells which databases the two ends are.
fn tell_endpoints(config: &Config, pipeline: &PipelineConfig, telemetry: &Telemetry) {
    let told = |endpoint: &Endpoint, environment: &Option<String>| telemetry::Endpoint {
        host: endpoint.describe(),
        database: endpoint.url.database().to_owned(),
        environment: environment.clone(),
    };
    telemetry.set_endpoints(
        told(&pipeline.source, &config.source.environment),
        told(&pipeline.replica, &config.replica.environment),
    );
}

/// One side's endpoint, from its connection string as it is now.
///
/// # Errors
/// The string cannot be read or makes no sense.
pub fn endpoint(config: &Config, side: Side) -> Result<Endpoint, PipelineError> {
    let from = match side {
        Side::Source => &config.source.url,
        Side::Replica => &config.replica.url,
    };
    let unusable = |message: String| PipelineError::Configuration {
        message: format!("[{side}] url cannot be used: {message}"),
        advice: format!("mend [{side}] url or url_file"),
    };
    let url = from
        .read()
        .map_err(|error| unusable(telemetry::Chain(&error).to_string()))?;
    Ok(Endpoint::new(side, url, config.application_name()))
}

/// Tells the service manager, where there is one.
fn notify(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// Feeds the service manager's watchdog as long as the stream makes progress, or is known to
/// wait: for a server, for another daemon, for an operator.
async fn feed_watchdog(telemetry: Telemetry) {
    let period = sd_notify::watchdog_enabled().map_or(Duration::from_secs(5), |limit| limit / 3);
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        let status = telemetry.status();
        let waits = matches!(
            status.state,
            PipelineState::Starting
                | PipelineState::Failed
                | PipelineState::Paused
                | PipelineState::Standby
        );
        let text = match &status.reason {
            Some(reason) => format!("{}: {reason}", status.state.as_str()),
            None => status.state.as_str().to_owned(),
        };
        notify(&[NotifyState::Status(&text)]);
        if waits || telemetry.last_progress().elapsed() < STUCK_AFTER {
            notify(&[NotifyState::Watchdog]);
        }
    }
}
