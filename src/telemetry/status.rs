//! The status: all that is known of the pipeline at one moment, for people and scripts.
//!
//! Field names are an interface (`status --json`, `/healthz`, `/admin/tables`).

use super::facts::{Endpoint, ErrorStatus, Facts, LastError, Phase, SlotHealth};
use super::health::{Health, Vitals};
use super::labels::{ConnectionState, PipelineState, TableStateLabel};
use super::progress_clock::ProgressClock;
use super::table::Tables;
use crate::pg::Lsn;

/// A snapshot; taken when asked for.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// The pipeline's name.
    pub pipeline: String,
    /// The version that runs.
    pub version: &'static str,
    /// What the pipeline is doing.
    pub state: PipelineState,
    /// Since when, in wall-clock milliseconds since 1970.
    pub state_since_unix_ms: u64,
    /// For how long, in seconds.
    pub state_since_seconds: f64,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// Log of the source not yet replayed; absent until measured.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest change not yet applied; absent until measured.
    pub lag_seconds: Option<f64>,
    /// Up to where the stream arrived.
    pub received_lsn: Option<Lsn>,
    /// Up to where the replica is durable.
    pub applied_lsn: Option<Lsn>,
    /// What was confirmed to the source.
    pub flushed_lsn: Option<Lsn>,
    /// Seconds since the stream last moved.
    pub progress_age_seconds: f64,
    /// Transactions that are durable on the replica, since the start of the process.
    pub transactions_applied: u64,
    /// The tables, by name.
    pub tables: Vec<TableStatus>,
    /// The source database.
    pub source: EndpointStatus,
    /// The replica database.
    pub replica: EndpointStatus,
    /// The slot, once looked at.
    pub slot: Option<SlotHealth>,
    /// The last thing that went wrong; stays after it was mended.
    pub last_error: Option<LastError>,
    /// Changes that could not be applied and wait for somebody.
    pub errors: Vec<ErrorStatus>,
    /// For how long the process runs.
    pub uptime_seconds: f64,
}

/// One table in the status.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TableStatus {
    /// Its name on the source.
    pub table: String,
    /// Its name on the replica.
    pub replica_table: Option<String>,
    /// Where it stands.
    pub state: TableStateLabel,
    /// Rows the first copy wrote, since the start of the process.
    pub copied_rows: u64,
    /// How far the first copy is, 0 to 1; absent until it began.
    pub copy_progress: Option<f64>,
    /// Changes that arrived.
    pub received: u64,
    /// Changes that are durable on the replica.
    pub applied: u64,
    /// Changes that arrived and are neither applied nor set aside nor kept out by a filter, nor gone
    /// with their connection: they are on their way.
    pub pending: i64,
    /// Changes that are accounted for nowhere.
    pub unaccounted: u64,
}

/// One end in the status.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EndpointStatus {
    /// Which database it is.
    #[serde(flatten)]
    pub endpoint: Option<Endpoint>,
    /// Whether there is a session with it.
    pub connection: ConnectionState,
}

/// What a status is made from.
pub(super) struct Sources<'a> {
    pub(super) pipeline: &'a str,
    pub(super) facts: &'a Facts,
    pub(super) tables: &'a Tables,
    pub(super) clock: &'a ProgressClock,
    pub(super) transactions_applied: u64,
}

impl Sources<'_> {
    pub(super) fn status(&self) -> Status {
        let tables = self.table_statuses();
        let slow = self.facts.slow();
        let (source, replica) = match slow.endpoints.clone() {
            Some((source, replica)) => (Some(source), Some(replica)),
            None => (None, None),
        };
        Status {
            pipeline: self.pipeline.to_owned(),
            version: super::VERSION,
            state: slow.state.state,
            state_since_unix_ms: slow.state.since_unix_ms,
            state_since_seconds: slow.state.since.elapsed().as_secs_f64(),
            reason: slow.state.reason.clone(),
            lag_bytes: slow.lag_bytes,
            lag_seconds: slow.lag_seconds(),
            received_lsn: self.facts.received.get(),
            applied_lsn: self.facts.applied.get(),
            flushed_lsn: self.facts.flushed.get(),
            progress_age_seconds: self.clock.last().elapsed().as_secs_f64(),
            transactions_applied: self.transactions_applied,
            tables,
            source: EndpointStatus {
                endpoint: source,
                connection: slow.source.state,
            },
            replica: EndpointStatus {
                endpoint: replica,
                connection: slow.replica.state,
            },
            slot: slow.slot.as_ref().map(|phase| phase.state.clone()),
            last_error: slow.last_error.clone(),
            errors: slow.open_errors.clone(),
            uptime_seconds: self.clock.started().elapsed().as_secs_f64(),
        }
    }

    pub(super) fn health(&self) -> Health {
        let quarantined = self.quarantined();
        let slow = self.facts.slow();
        let vitals = Vitals {
            now_unix_ms: super::facts::unix_ms(),
            process_since_seconds: self.clock.started().elapsed().as_secs_f64(),
            state: with_age(&slow.state),
            source: with_age(&slow.source),
            replica: with_age(&slow.replica),
            slot: slow.slot.as_ref().map(with_age),
            quarantined,
            progress_age: self.clock.last().elapsed(),
            lag_bytes: slow.lag_bytes,
            lag_seconds: slow.lag_seconds(),
        };
        drop(slow);
        Health::judge(vitals)
    }

    /// Tables that are set aside, by name.
    fn quarantined(&self) -> Vec<String> {
        let tables = self.tables.snapshot();
        let set_aside = tables
            .iter()
            .filter(|(_, facts)| facts.state() == TableStateLabel::Quarantined);
        set_aside.map(|(name, _)| name.to_string()).collect()
    }

    fn table_statuses(&self) -> Vec<TableStatus> {
        let table = |(name, facts): (crate::pg::QualifiedName, std::sync::Arc<_>)| {
            let facts: &super::table::TableFacts = &facts;
            TableStatus {
                table: name.to_string(),
                replica_table: facts.replica().map(|name| name.to_string()),
                state: facts.state(),
                copied_rows: facts.copied(),
                copy_progress: facts.copy_progress(),
                received: facts.received(),
                applied: facts.applied(),
                pending: facts.pending(),
                unaccounted: facts.unaccounted(),
            }
        };
        self.tables.snapshot().into_iter().map(table).collect()
    }
}

/// A phase as health looks at it: its age instead of its moment.
fn with_age<S: Clone>(phase: &Phase<S>) -> super::health::Aged<S> {
    super::health::Aged {
        state: phase.state.clone(),
        since_seconds: phase.since.elapsed().as_secs_f64(),
        reason: phase.reason.clone(),
    }
}
