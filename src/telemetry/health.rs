//! Whether all is well, and what is not: pure rules over what is known.
//!
//! Health follows the stream, not the process. It is red when the pipeline failed, when
//! the slot is lost, and when nothing moved for [`STALL`] though something should: an
//! idle stream moves too, by its keepalives. A lost connection is not red by itself; it
//! is retried, and the stall makes it red when that does not help.

use super::facts::SlotHealth;
use super::labels::{ConnectionState, PipelineState};
use std::time::Duration;

/// How long a stream may stand still. A walsender's keepalives come every 30 s at the latest
/// with the default `wal_sender_timeout`.
pub const STALL: Duration = Duration::from_secs(60);

/// How a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// It works.
    Ok,
    /// It is not there yet, and that is being worked on.
    Waiting,
    /// It does not work.
    Failed,
}

/// One part of the daemon.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Part {
    /// process, source, replica, stream, slot or tables.
    pub part: &'static str,
    /// How it does.
    pub state: PartState,
    /// Since when, in wall-clock milliseconds since 1970.
    pub since_unix_ms: u64,
    /// For how long, in seconds.
    pub since_seconds: f64,
    /// Why, where there is something to say.
    pub why: Option<String>,
}

/// The verdict.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Health {
    /// Whether the process works and the stream moves.
    pub healthy: bool,
    /// Each part.
    pub parts: Vec<Part>,
    #[serde(skip)]
    vitals: Vitals,
}

/// A state, its age and the reason given for it.
#[derive(Clone, Debug)]
pub(super) struct Aged<S> {
    pub(super) state: S,
    pub(super) since_seconds: f64,
    pub(super) reason: Option<String>,
}

/// What the rules look at.
#[derive(Clone, Debug)]
pub(super) struct Vitals {
    pub(super) now_unix_ms: u64,
    pub(super) process_since_seconds: f64,
    pub(super) state: Aged<PipelineState>,
    pub(super) source: Aged<ConnectionState>,
    pub(super) replica: Aged<ConnectionState>,
    pub(super) slot: Option<Aged<SlotHealth>>,
    /// Tables that are set aside.
    pub(super) quarantined: Vec<String>,
    pub(super) progress_age: Duration,
    pub(super) lag_bytes: Option<u64>,
    pub(super) lag_seconds: Option<f64>,
}

/// How far behind a replica may be and still count as ready.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadyBounds {
    /// In seconds; none: any.
    pub lag_seconds_max: Option<f64>,
    /// In bytes of log; none: any.
    pub lag_bytes_max: Option<u64>,
}

impl Health {
    pub(super) fn judge(vitals: Vitals) -> Self {
        let finding = |state, since_seconds, why| Finding {
            state,
            since_seconds,
            why,
        };
        let process = finding(PartState::Ok, vitals.process_since_seconds, None);
        let part = |part, found: Finding| Part {
            part,
            state: found.state,
            since_unix_ms: vitals
                .now_unix_ms
                .saturating_sub((found.since_seconds * 1e3) as u64),
            since_seconds: found.since_seconds,
            why: found.why,
        };
        let parts = vec![
            part("process", process),
            part("source", judge_connection(&vitals.source)),
            part("replica", judge_connection(&vitals.replica)),
            part("stream", judge_stream(&vitals)),
            part("slot", judge_slot(vitals.slot.as_ref())),
            part("tables", judge_tables(&vitals)),
        ];
        // A new process would not mend a table that is set aside: the replica is not ready, that is all.
        // A connection that fails is being retried: the stream's stall tells when that is too long.
        let vital = |part: &&Part| matches!(part.part, "stream" | "slot");
        let healthy = parts
            .iter()
            .filter(vital)
            .all(|part| part.state != PartState::Failed);
        Self {
            healthy,
            parts,
            vitals,
        }
    }

    /// One line for `/health`.
    #[must_use]
    pub fn line(&self) -> String {
        let failed = self
            .parts
            .iter()
            .find(|part| part.state == PartState::Failed);
        match failed.filter(|_| !self.healthy) {
            Some(part) => {
                format!(
                    "unhealthy: {}: {}",
                    part.part,
                    part.why.as_deref().unwrap_or("failed")
                )
            }
            None => format!("ok: {}", self.vitals.state.state),
        }
    }

    /// Whether the replica may be read as a copy that is up to date.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ready(&self, bounds: ReadyBounds) -> Result<(), String> {
        if !self.healthy {
            return Err(self.line());
        }
        let state = &self.vitals.state;
        if state.state != PipelineState::Streaming {
            let why = state
                .reason
                .as_deref()
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            return Err(format!("not streaming: {}{why}", state.state));
        }
        if !self.vitals.quarantined.is_empty() {
            return Err(set_aside(&self.vitals.quarantined));
        }
        within("s", self.vitals.lag_seconds, bounds.lag_seconds_max)?;
        let as_float = |bytes: u64| bytes as f64;
        within(
            " bytes",
            self.vitals.lag_bytes.map(as_float),
            bounds.lag_bytes_max.map(as_float),
        )
    }
}

fn within(unit: &str, lag: Option<f64>, lag_max: Option<f64>) -> Result<(), String> {
    match (lag, lag_max) {
        (_, None) => Ok(()),
        (None, Some(_)) => Err("lag not measured yet".to_owned()),
        (Some(lag), Some(max)) if lag > max => Err(format!(
            "lag of {lag:.0}{unit} is above the bound of {max:.0}{unit}"
        )),
        _ => Ok(()),
    }
}

/// How a part does, before it has its name.
struct Finding {
    state: PartState,
    since_seconds: f64,
    why: Option<String>,
}

fn judge_connection(connection: &Aged<ConnectionState>) -> Finding {
    let state = match connection.state {
        ConnectionState::Connected => PartState::Ok,
        ConnectionState::Connecting => PartState::Waiting,
        ConnectionState::Unreachable => PartState::Failed,
    };
    let why = connection
        .reason
        .clone()
        .or_else(|| (state != PartState::Ok).then(|| connection.state.as_str().to_owned()));
    Finding {
        state,
        since_seconds: connection.since_seconds,
        why,
    }
}

fn judge_stream(vitals: &Vitals) -> Finding {
    let current = &vitals.state;
    let waits = matches!(
        current.state,
        PipelineState::Standby | PipelineState::Paused
    );
    let stalled = !waits && vitals.progress_age > STALL;
    let (state, why) = if current.state == PipelineState::Failed {
        let why = current
            .reason
            .clone()
            .unwrap_or_else(|| "the pipeline stopped".to_owned());
        (PartState::Failed, Some(why))
    } else if stalled {
        let why = current
            .reason
            .as_deref()
            .map(|why| format!(" ({why})"))
            .unwrap_or_default();
        let age = vitals.progress_age.as_secs();
        (
            PartState::Failed,
            Some(format!(
                "no progress for {age} s while {}{why}",
                current.state
            )),
        )
    } else if current.state == PipelineState::Streaming {
        (PartState::Ok, current.reason.clone())
    } else {
        let why = current
            .reason
            .clone()
            .unwrap_or_else(|| current.state.as_str().to_owned());
        (PartState::Waiting, Some(why))
    };
    let since_seconds = if stalled {
        vitals.progress_age.as_secs_f64()
    } else {
        current.since_seconds
    };
    Finding {
        state,
        since_seconds,
        why,
    }
}

fn set_aside(tables: &[String]) -> String {
    format!(
        "set aside, and not in step: {}; see `pglockstep errors list`",
        tables.join(", ")
    )
}

fn judge_tables(vitals: &Vitals) -> Finding {
    let is_any = !vitals.quarantined.is_empty();
    Finding {
        state: if is_any {
            PartState::Failed
        } else {
            PartState::Ok
        },
        since_seconds: vitals.process_since_seconds,
        why: is_any.then(|| set_aside(&vitals.quarantined)),
    }
}

fn judge_slot(slot: Option<&Aged<SlotHealth>>) -> Finding {
    let Some(slot) = slot else {
        let why = Some("not looked at yet".to_owned());
        return Finding {
            state: PartState::Waiting,
            since_seconds: 0.0,
            why,
        };
    };
    let (state, why) = if slot.state.is_lost() {
        let why = "lost: the source no longer keeps what the replica needs; mend the cause, \
                   which the pipeline's last error names, then `pglockstep rebase`";
        (PartState::Failed, Some(why.to_owned()))
    } else {
        let status = slot.state.wal_status.as_deref();
        let risky = status.filter(|status| *status == "unreserved");
        (
            PartState::Ok,
            risky.map(|_| "unreserved: may be lost at the next checkpoint".to_owned()),
        )
    };
    Finding {
        state,
        since_seconds: slot.since_seconds,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged<S>(state: S) -> Aged<S> {
        Aged {
            state,
            since_seconds: 5.0,
            reason: None,
        }
    }

    fn vitals(state: PipelineState, progress_age_seconds: u64) -> Vitals {
        Vitals {
            now_unix_ms: 1_000_000,
            process_since_seconds: 100.0,
            state: aged(state),
            source: aged(ConnectionState::Connected),
            replica: aged(ConnectionState::Connected),
            slot: None,
            quarantined: Vec::new(),
            progress_age: Duration::from_secs(progress_age_seconds),
            lag_bytes: Some(1000),
            lag_seconds: Some(2.0),
        }
    }

    #[test]
    fn health_follows_the_stream() {
        use PipelineState::{CatchingUp, Copying, Failed, Paused, Standby, Starting, Streaming};
        for (state, progress_age_seconds, healthy) in [
            (Streaming, 0, true),
            (Streaming, 60, true),
            (Streaming, 61, false),
            (Starting, 10, true),
            (Starting, 61, false),
            (Copying, 61, false),
            (CatchingUp, 61, false),
            (Paused, 10_000, true),
            (Standby, 10_000, true),
            (Failed, 0, false),
        ] {
            let health = Health::judge(vitals(state, progress_age_seconds));
            assert_eq!(health.healthy, healthy, "{state} {progress_age_seconds}");
            assert_eq!(
                health.line().starts_with("ok"),
                healthy,
                "{}",
                health.line()
            );
        }
    }

    #[test]
    fn a_lost_slot_is_red_and_a_lost_connection_is_not_yet() {
        let mut lost = vitals(PipelineState::Streaming, 0);
        lost.slot = Some(aged(SlotHealth {
            wal_status: Some("lost".into()),
            ..SlotHealth::default()
        }));
        let lost = Health::judge(lost);
        assert!(!lost.healthy);
        assert!(lost.line().contains("rebase"), "{}", lost.line());
        let mut unreachable = vitals(PipelineState::Starting, 0);
        unreachable.source = aged(ConnectionState::Unreachable);
        let health = Health::judge(unreachable);
        assert!(health.healthy);
        assert_eq!(health.parts[1].state, PartState::Failed);
        assert_eq!(health.line(), "ok: starting");
    }

    #[test]
    fn readiness_needs_streaming_and_bounded_lag() {
        let bounds = |lag_seconds_max, lag_bytes_max| ReadyBounds {
            lag_seconds_max,
            lag_bytes_max,
        };
        let streaming = Health::judge(vitals(PipelineState::Streaming, 0));
        assert_eq!(streaming.ready(bounds(None, None)), Ok(()));
        assert_eq!(streaming.ready(bounds(Some(2.0), Some(1000))), Ok(()));
        let seconds = streaming.ready(bounds(Some(1.0), None)).unwrap_err();
        assert_eq!(seconds, "lag of 2s is above the bound of 1s");
        assert!(streaming.ready(bounds(None, Some(999))).is_err());

        let mut unmeasured = vitals(PipelineState::Streaming, 0);
        unmeasured.lag_seconds = None;
        assert!(
            Health::judge(unmeasured)
                .ready(bounds(Some(1.0), None))
                .is_err()
        );
        let copying = Health::judge(vitals(PipelineState::Copying, 0));
        assert_eq!(
            copying.ready(bounds(None, None)).unwrap_err(),
            "not streaming: copying"
        );
        let mut set_aside = vitals(PipelineState::Streaming, 0);
        set_aside.quarantined = vec!["public.leads".into()];
        let set_aside = Health::judge(set_aside);
        assert!(set_aside.healthy, "a new process would not mend it");
        assert!(
            set_aside
                .ready(bounds(None, None))
                .unwrap_err()
                .contains("public.leads")
        );
        let stalled = Health::judge(vitals(PipelineState::Streaming, 61));
        assert!(
            stalled
                .ready(bounds(None, None))
                .unwrap_err()
                .contains("no progress for 61 s")
        );
    }
}
