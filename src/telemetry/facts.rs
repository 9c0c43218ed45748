//! What is known of the pipeline now. Metrics and status are both made from it.

use super::family::Family;
use super::labels::{ConnectionState, PipelineState};
use crate::pg::{Lsn, Side};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A state, since when, and why.
#[derive(Clone, Debug)]
pub(super) struct Phase<S> {
    pub(super) state: S,
    pub(super) since: Instant,
    pub(super) since_unix_ms: u64,
    pub(super) reason: Option<String>,
}

impl<S: PartialEq> Phase<S> {
    pub(super) fn new(state: S) -> Self {
        Self {
            state,
            since: Instant::now(),
            since_unix_ms: unix_ms(),
            reason: None,
        }
    }

    /// Enters a state; staying in it keeps `since`.
    pub(super) fn enter(&mut self, state: S, reason: Option<String>) {
        if self.state == state {
            self.reason = reason;
        } else {
            *self = Self {
                reason,
                ..Self::new(state)
            };
        }
    }
}

/// Wall-clock milliseconds, for people; nothing is decided by them.
pub(super) fn unix_ms() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The slot as `pg_replication_slots` shows it, and the forecast.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct SlotHealth {
    /// Bytes of log the source keeps for the slot.
    pub retained_bytes: u64,
    /// `safe_wal_size`: bytes until the slot is in danger; none when unlimited.
    pub safe_bytes: Option<i64>,
    /// `wal_status`: reserved, extended, unreserved, lost.
    pub wal_status: Option<String>,
    /// Seconds until the slot is lost at the present rate; none when it will not be.
    pub exhaustion_seconds: Option<f64>,
}

impl SlotHealth {
    /// The source no longer keeps what the slot needs: the pipeline cannot continue from it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }

    fn wal_status_number(&self) -> Option<f64> {
        match self.wal_status.as_deref()? {
            "reserved" => Some(0.0),
            "extended" => Some(1.0),
            "unreserved" => Some(2.0),
            "lost" => Some(3.0),
            _ => None,
        }
    }
}

/// `[slot]`: how much log the source may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotBounds {
    /// Beyond this somebody should look.
    pub warning_bytes: u64,
    /// Beyond this somebody must act.
    pub critical_bytes: u64,
    /// Beyond this the slot is dropped; none: never.
    pub drop_bytes: Option<u64>,
}

/// Sessions of the replica's pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolHealth {
    /// Lent out.
    pub in_use: usize,
    /// Open and free.
    pub idle: usize,
    /// Callers that wait for one.
    pub waiting: usize,
}

/// Which database one end is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Endpoint {
    /// Host and port, or the socket's folder.
    pub host: String,
    /// The database's name.
    pub database: String,
    /// The label from the configuration.
    pub environment: Option<String>,
}

/// When the certificates of a connection expire, in seconds since 1970; none without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The server's.
    pub server: Option<u64>,
    /// Ours, where we show one.
    pub client: Option<u64>,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LastError {
    /// When, in wall-clock milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What and where.
    pub message: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// A change that could not be applied, and waits for somebody.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ErrorStatus {
    /// Its number, for `errors show`.
    pub id: i64,
    /// stopped: the pipeline stands before it; quarantined: its table is set aside.
    pub state: &'static str,
    /// Its transaction: the commit record on the source.
    pub commit_lsn: Lsn,
    /// The table on the source, where it is about one.
    pub table: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
    /// Changes that are kept until it is decided.
    pub kept_changes: i64,
    /// When it first happened, in wall-clock milliseconds since 1970.
    pub first_unix_ms: i64,
}

/// The part of the facts that changes rarely.
pub(super) struct Slow {
    pub(super) state: Phase<PipelineState>,
    pub(super) source: Phase<ConnectionState>,
    pub(super) replica: Phase<ConnectionState>,
    /// Sides that there was a session with, ever.
    were_connected: Vec<Side>,
    /// The health, and since when its `wal_status` is what it is.
    pub(super) slot: Option<Phase<SlotHealth>>,
    pub(super) slot_bounds: Option<SlotBounds>,
    pub(super) pool: Option<PoolHealth>,
    pub(super) lag_bytes: Option<u64>,
    lag_seconds: Option<(f64, Instant)>,
    source_certificates: CertificateExpiry,
    replica_certificates: CertificateExpiry,
    pub(super) endpoints: Option<(Endpoint, Endpoint)>,
    pub(super) last_error: Option<LastError>,
    pub(super) open_errors: Vec<ErrorStatus>,
    /// By foreign key.
    pub(super) orphans: BTreeMap<String, u64>,
    /// By check and severity.
    pub(super) findings: BTreeMap<(String, String), u64>,
}

/// A lag older than this is no measurement any more: it has grown by its own age.
const LAG_FRESH_FOR: Duration = Duration::from_secs(2);

impl Slow {
    pub(super) fn set_lag_seconds(&mut self, seconds: Option<f64>) {
        self.lag_seconds = seconds.map(|seconds| (seconds, Instant::now()));
    }

    /// What was measured; while nothing measures (the source is out of reach, say), what it
    /// may have become since: nothing proves that the source was idle.
    pub(super) fn lag_seconds(&self) -> Option<f64> {
        let (seconds, at) = self.lag_seconds?;
        let age = at.elapsed();
        Some(if age < LAG_FRESH_FOR {
            seconds
        } else {
            seconds + age.as_secs_f64()
        })
    }

    /// True when this is a session made again after the side was out of reach.
    pub(super) fn connection(
        &mut self,
        side: Side,
        state: ConnectionState,
        reason: Option<String>,
    ) -> bool {
        let phase = match side {
            Side::Source => &mut self.source,
            Side::Replica => &mut self.replica,
        };
        let was_lost = phase.state == ConnectionState::Unreachable;
        phase.enter(state, reason);
        if state != ConnectionState::Connected {
            return false;
        }
        let was_there = self.were_connected.contains(&side);
        if !was_there {
            self.were_connected.push(side);
        }
        was_there && was_lost
    }

    pub(super) fn set_certificates(&mut self, side: Side, expiry: CertificateExpiry) {
        match side {
            Side::Source => self.source_certificates = expiry,
            Side::Replica => self.replica_certificates = expiry,
        }
    }

    /// Seconds that are left to each certificate, below zero once it has expired.
    fn certificates_left(&self) -> Vec<(Vec<&'static str>, f64)> {
        let now = unix_ms() as f64 / 1000.0;
        let (source, replica) = (self.source_certificates, self.replica_certificates);
        [
            (["source", "server"], source.server),
            (["source", "client"], source.client),
            (["replica", "server"], replica.server),
            (["replica", "client"], replica.client),
        ]
        .into_iter()
        .filter_map(|(labels, at)| Some((labels.to_vec(), at? as f64 - now)))
        .collect()
    }

    pub(super) fn set_slot(&mut self, health: Option<SlotHealth>) {
        match (&mut self.slot, health) {
            (Some(phase), Some(health)) if phase.state.wal_status == health.wal_status => {
                phase.state = health;
            }
            (slot, health) => *slot = health.map(Phase::new),
        }
    }
}

/// A position that several tasks read and one moves, without a lock. Never zero once set.
#[derive(Default)]
pub(super) struct Position(AtomicU64);

impl Position {
    pub(super) fn set(&self, lsn: Lsn) {
        self.0.store(lsn.as_u64(), Relaxed);
    }

    pub(super) fn get(&self) -> Option<Lsn> {
        Lsn::from_wire(self.0.load(Relaxed))
    }
}

/// All of it.
pub(super) struct Facts {
    pub(super) received: Position,
    pub(super) applied: Position,
    pub(super) flushed: Position,
    slow: Mutex<Slow>,
}

impl Facts {
    pub(super) fn new() -> Self {
        let slow = Slow {
            state: Phase::new(PipelineState::Starting),
            source: Phase::new(ConnectionState::Connecting),
            replica: Phase::new(ConnectionState::Connecting),
            were_connected: Vec::new(),
            slot: None,
            slot_bounds: None,
            pool: None,
            lag_bytes: None,
            lag_seconds: None,
            source_certificates: CertificateExpiry::default(),
            replica_certificates: CertificateExpiry::default(),
            endpoints: None,
            last_error: None,
            open_errors: Vec::new(),
            orphans: BTreeMap::new(),
            findings: BTreeMap::new(),
        };
        Self {
            received: Position::default(),
            applied: Position::default(),
            flushed: Position::default(),
            slow: Mutex::new(slow),
        }
    }

    /// Held for a few assignments only. A panic elsewhere must not silence the telemetry.
    pub(super) fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const STATE: Family = Family::gauge(
    "pglockstep_state",
    &["state"],
    "1 for the state the pipeline is in, 0 for the others.",
);
const LAG_BYTES: Family = Family::gauge(
    "pglockstep_replication_lag_bytes",
    &[],
    "Log of the source that is not yet replayed; absent until measured.",
);
const LAG_SECONDS: Family = Family::gauge(
    "pglockstep_replication_lag_seconds",
    &[],
    "Age of the oldest change not yet applied, 0 when proven idle; absent until measured.",
);
const RECEIVED_LSN: Family = Family::gauge(
    "pglockstep_received_lsn",
    &[],
    "Position up to which the stream arrived, as a number.",
);
const APPLIED_LSN: Family = Family::gauge(
    "pglockstep_applied_lsn",
    &[],
    "Position up to which the replica shows everything, as a number.",
);
const FLUSHED_LSN: Family = Family::gauge(
    "pglockstep_flushed_lsn",
    &[],
    "Position up to which the replica is durable, and which the source was told, as a number.",
);
const SLOT_RETAINED: Family = Family::gauge(
    "pglockstep_slot_retained_bytes",
    &[],
    "Log the source keeps for the slot.",
);
const SLOT_SAFE: Family = Family::gauge(
    "pglockstep_slot_safe_bytes",
    &[],
    "Log that can still be written before the slot is in danger; absent when unlimited.",
);
const SLOT_STATUS: Family = Family::gauge(
    "pglockstep_slot_wal_status",
    &[],
    "wal_status of the slot: 0 reserved, 1 extended, 2 unreserved, 3 lost.",
);
const SLOT_EXHAUSTION: Family = Family::gauge(
    "pglockstep_slot_exhaustion_seconds",
    &[],
    "Time until the slot is lost at the present rate; absent when it will not be.",
);
const POOL: Family = Family::gauge(
    "pglockstep_pool_connections",
    &["state"],
    "Sessions of the replica's pool: in_use, idle; and callers that wait: waiting.",
);
const CERTIFICATES: Family = Family::gauge(
    "pglockstep_certificate_expiry_seconds",
    &["side", "certificate"],
    "Time until the certificate of the last connection expires: the server's, and ours; absent without TLS.",
);
const OPEN_ERRORS: Family = Family::gauge(
    "pglockstep_open_errors",
    &[],
    "Changes that could not be applied and wait for somebody.",
);
const ORPHANS: Family = Family::gauge(
    "pglockstep_foreign_key_orphans",
    &["constraint"],
    "Rows of the replica that refer to rows which are not there, when they were last counted.",
);
const FINDINGS: Family = Family::gauge(
    "pglockstep_findings",
    &["check", "severity"],
    "What diagnose told of the replica when it was last looked at, by check and severity.",
);
const SLOT_BUDGET: Family = Family::gauge(
    "pglockstep_slot_budget_bytes",
    &["budget"],
    "Log that the source may keep for the slot: warning, critical; and beyond which it is dropped: drop.",
);
const FAMILIES: [&Family; 16] = [
    &FINDINGS,
    &ORPHANS,
    &SLOT_BUDGET,
    &OPEN_ERRORS,
    &STATE,
    &LAG_BYTES,
    &LAG_SECONDS,
    &RECEIVED_LSN,
    &APPLIED_LSN,
    &FLUSHED_LSN,
    &SLOT_RETAINED,
    &SLOT_SAFE,
    &SLOT_STATUS,
    &SLOT_EXHAUSTION,
    &POOL,
    &CERTIFICATES,
];

/// Makes the pipeline's gauges at a scrape.
pub(super) struct FactsCollector {
    facts: Arc<Facts>,
    descs: Vec<Desc>,
}

impl FactsCollector {
    pub(super) fn new(facts: Arc<Facts>) -> prometheus::Result<Self> {
        let descs = FAMILIES
            .iter()
            .map(|family| family.desc())
            .collect::<Result<_, _>>()?;
        Ok(Self { facts, descs })
    }
}

impl Collector for FactsCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let position = |at: &Position| at.get().map(|lsn| lsn.as_u64() as f64);
        let slow = self.facts.slow();
        let slot = slow.slot.as_ref().map(|phase| &phase.state);
        let states = PipelineState::ALL.iter().map(|state| state.as_str());
        let pool = slow.pool.iter().flat_map(|pool| {
            [
                ("in_use", pool.in_use),
                ("idle", pool.idle),
                ("waiting", pool.waiting),
            ]
        });
        let bounds = slow.slot_bounds.iter().flat_map(|bounds| {
            [
                ("warning", Some(bounds.warning_bytes)),
                ("critical", Some(bounds.critical_bytes)),
                ("drop", bounds.drop_bytes),
            ]
        });
        let bounds = bounds.filter_map(|(name, bytes)| Some((vec![name], bytes? as f64)));
        let findings = slow.findings.iter();
        let findings = findings
            .map(|((check, severity), count)| (vec![check.as_str(), severity], *count as f64));
        let orphans = slow.orphans.iter();
        let orphans = orphans.map(|(constraint, rows)| (vec![constraint.as_str()], *rows as f64));
        vec![
            ORPHANS.samples(orphans),
            FINDINGS.samples(findings),
            SLOT_BUDGET.samples(bounds),
            OPEN_ERRORS.single(Some(slow.open_errors.len() as f64)),
            STATE.samples(Family::one_hot(&[], states, slow.state.state.as_str())),
            LAG_BYTES.single(slow.lag_bytes.map(|bytes| bytes as f64)),
            LAG_SECONDS.single(slow.lag_seconds()),
            RECEIVED_LSN.single(position(&self.facts.received)),
            APPLIED_LSN.single(position(&self.facts.applied)),
            FLUSHED_LSN.single(position(&self.facts.flushed)),
            SLOT_RETAINED.single(slot.map(|slot| slot.retained_bytes as f64)),
            SLOT_SAFE.single(
                slot.and_then(|slot| slot.safe_bytes)
                    .map(|bytes| bytes as f64),
            ),
            SLOT_STATUS.single(slot.and_then(SlotHealth::wal_status_number)),
            SLOT_EXHAUSTION.single(slot.and_then(|slot| slot.exhaustion_seconds)),
            POOL.samples(pool.map(|(state, count)| (vec![state], count as f64))),
            CERTIFICATES.samples(slow.certificates_left()),
        ]
    }
}
