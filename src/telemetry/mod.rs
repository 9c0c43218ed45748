//! What the daemon tells of itself: one `Telemetry` handle for each pipeline.
//!
//! ```text
//!  rooms ──▶ Telemetry ──▶ facts ──┬──▶ metrics   /metrics
//!            (typed calls)         ├──▶ Status    status, /healthz, /admin/tables
//!                                  └──▶ Health    /health, /readyz, systemd's watchdog
//! ```
//!
//! Nothing is kept twice: metrics, status and health are made from the same facts when
//! somebody asks, so they cannot disagree. Labels hold names of tables, never values,
//! and never a connection string.

mod facts;
mod family;
mod health;
mod labels;
mod logging;
mod metrics;
mod progress_clock;
mod proof;
mod status;
mod table;

pub use facts::{
    CertificateExpiry, Endpoint, ErrorStatus, LastError, PoolHealth, SlotBounds, SlotHealth,
};
pub use health::{Health, Part, PartState, ReadyBounds, STALL};
pub use labels::{
    ConnectionState, ErrorCategory, Op, PipelineState, Severity, StreamedOutcome, TableStateLabel,
};
pub use logging::{Chain, FILTER_VARIABLE, LogFormat, LoggingError, init_logging};
pub use proof::Verified;
pub use status::{EndpointStatus, Status, TableStatus};
pub use table::TableTelemetry;

use crate::pg::{Lsn, QualifiedName, Side};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The version that runs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, when the build said so (`PGLOCKSTEP_REVISION`).
pub const REVISION: &str = match option_env!("PGLOCKSTEP_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The handle: cheap to clone, safe to share, one for each pipeline.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    pipeline: String,
    facts: Arc<facts::Facts>,
    tables: table::Tables,
    clock: Arc<progress_clock::ProgressClock>,
    metrics: metrics::Metrics,
}

impl Telemetry {
    /// A handle with a registry of its own; the state is `starting`.
    ///
    /// # Panics
    /// Never in a build that passed its tests: only a malformed metric name could.
    #[must_use]
    pub fn new(pipeline_name: &str) -> Self {
        let facts = Arc::new(facts::Facts::new());
        let tables = table::Tables::default();
        let metrics = metrics::Metrics::register(Arc::clone(&facts), tables.clone())
            .expect("the names of all metrics are constants and differ");
        let clock = Arc::new(progress_clock::ProgressClock::new());
        Self(Arc::new(Inner {
            pipeline: pipeline_name.to_owned(),
            facts,
            tables,
            clock,
            metrics,
        }))
    }

    /// Enters a state. Staying in it keeps since when, and takes the new reason.
    pub fn set_state(&self, state: PipelineState, reason: Option<String>) {
        self.0.facts.slow().state.enter(state, reason);
    }

    /// Which databases the two ends are.
    pub fn set_endpoints(&self, source: Endpoint, replica: Endpoint) {
        self.0.facts.slow().endpoints = Some((source, replica));
    }

    /// Whether there is a session with a side, and why not. One that is made again after the
    /// side was out of reach counts as a reconnect.
    pub fn set_connection(&self, side: Side, state: ConnectionState, reason: Option<String>) {
        let is_back = self.0.facts.slow().connection(side, state, reason);
        if is_back {
            self.0.metrics.reconnect_counter(side).inc();
        }
    }

    /// When the certificates of the last connection with a side expire.
    pub fn set_certificates(&self, side: Side, expiry: CertificateExpiry) {
        self.0.facts.slow().set_certificates(side, expiry);
    }

    /// The stream arrived up to here.
    pub fn set_received(&self, lsn: Lsn) {
        self.0.facts.received.set(lsn);
    }

    /// The replica shows all up to here.
    pub fn set_applied(&self, lsn: Lsn) {
        self.0.facts.applied.set(lsn);
    }

    /// The replica is durable up to here, and the source told so.
    pub fn set_flushed(&self, lsn: Lsn) {
        self.0.facts.flushed.set(lsn);
    }

    /// How far behind; `None` where it is not known.
    pub fn set_lag(&self, bytes: Option<u64>, seconds: Option<f64>) {
        let mut slow = self.0.facts.slow();
        slow.lag_bytes = bytes;
        slow.set_lag_seconds(seconds);
    }

    /// The slot, as last looked at; `None` when there is none.
    pub fn set_slot(&self, health: Option<SlotHealth>) {
        self.0.facts.slow().set_slot(health);
    }

    /// How much log the source may keep for the slot.
    pub fn set_slot_bounds(&self, bounds: SlotBounds) {
        self.0.facts.slow().slot_bounds = Some(bounds);
    }

    /// The replica's pool, as last looked at.
    pub fn set_pool(&self, pool: PoolHealth) {
        self.0.facts.slow().pool = Some(pool);
    }

    /// A table's counters; the same ones each time for the same source table.
    #[must_use]
    pub fn table(&self, source: &QualifiedName, replica: &QualifiedName) -> TableTelemetry {
        self.0
            .tables
            .open(source, replica, Arc::clone(&self.0.clock))
    }

    /// An attempt ended, in whatever way: what it received and did not settle will arrive again.
    pub fn discard_pending(&self) {
        for (_, facts) in self.0.tables.snapshot() {
            facts.discard_pending();
        }
    }

    /// Tables of which changes are accounted for nowhere, with how many.
    #[cfg(test)]
    pub(crate) fn unaccounted(&self) -> Vec<(QualifiedName, u64)> {
        let tables = self.0.tables.snapshot().into_iter();
        let left = tables.map(|(name, facts)| (name, facts.unaccounted()));
        left.filter(|(_, left)| *left != 0).collect()
    }

    /// Transactions became durable on the replica.
    pub fn transaction_applied(&self, transactions: u64) {
        self.0.metrics.transactions_applied.inc_by(transactions);
    }

    /// What became of a transaction that was written while it ran.
    pub fn streamed(&self, outcome: StreamedOutcome) {
        self.0.metrics.streamed_counter(outcome).inc();
    }

    /// A batch took this long, from its first statement to its commit.
    pub fn observe_batch(&self, seconds: f64) {
        self.0.metrics.apply_batch_seconds.observe(seconds.max(0.0));
    }

    /// No transaction was kept longer for a cut.
    pub fn observe_cut(&self, held: Duration) {
        self.0.metrics.cut_held_seconds.observe(held.as_secs_f64());
    }

    /// A commit took this long from the source to the replica. Clocks may differ: never negative.
    pub fn observe_end_to_end(&self, seconds: f64) {
        self.0.metrics.end_to_end_seconds.observe(seconds.max(0.0));
    }

    /// Something went wrong; retried errors count too.
    pub fn error(&self, category: ErrorCategory, severity: Severity) {
        self.0.metrics.error_counter(category, severity).inc();
    }

    /// What went wrong, for people. It stays until the next.
    pub fn set_last_error(&self, message: impl Into<String>, advice: Option<String>) {
        let error = LastError {
            at_unix_ms: facts::unix_ms(),
            message: message.into(),
            advice,
        };
        self.0.facts.slow().last_error = Some(error);
    }

    /// Rows that refer to nothing, by foreign key: of all that could be looked at.
    pub fn set_orphans(&self, orphans: BTreeMap<String, u64>) {
        self.0.facts.slow().orphans = orphans;
    }

    /// What there is to tell of the replica, by check and severity.
    pub fn set_findings(&self, findings: BTreeMap<(String, String), u64>) {
        self.0.facts.slow().findings = findings;
    }

    /// All changes that could not be applied and wait for somebody.
    pub fn set_open_errors(&self, errors: Vec<ErrorStatus>) {
        self.0.facts.slow().open_errors = errors;
    }

    /// A statement tried to write to the source and was refused.
    pub fn source_write_attempted(&self) {
        self.0.metrics.source_write_attempts.inc();
    }

    /// The stream moved: something was applied, or a keepalive came while nothing waited.
    /// Not for bytes that only arrived: an apply that hangs must show as a stall.
    pub fn progressed(&self) {
        self.0.clock.mark();
    }

    /// When the stream last moved; the creation of this handle if never.
    #[must_use]
    pub fn last_progress(&self) -> Instant {
        self.0.clock.last()
    }

    /// All that is known now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.sources().status()
    }

    /// Whether all is well now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.sources().health()
    }

    /// All metrics in the Prometheus text format 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.metrics.render().unwrap_or_else(|error| {
            // Only a fault of ours can bring this about; the scrape must show it, not hide it.
            tracing::error!(error = %Chain(&error), "metrics could not be rendered");
            String::from("# metrics could not be rendered, see the log\n")
        })
    }

    fn sources(&self) -> status::Sources<'_> {
        status::Sources {
            pipeline: &self.0.pipeline,
            facts: &self.0.facts,
            tables: &self.0.tables,
            clock: &self.0.clock,
            transactions_applied: self.0.metrics.transactions_applied.get(),
        }
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("pipeline", &self.0.pipeline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
