//! A pipeline that ran before: is the slot still the one whose history the replica holds? Pure.
//!
//! The server would start at the slot's position whatever is asked of it, so a slot that is
//! ahead, gone or another one is found here or never.

use super::PipelineError;
use crate::faults::{Bug, planted};
use crate::pg::Lsn;
use crate::progress::{PipelineIdentity, PipelineRecord};
use crate::replication::{ReplicationSlot, SlotWalStatus};

/// What the source says of its own past.
#[derive(Clone, Copy, Debug)]
pub struct SourceHistory {
    /// Where its log ends.
    pub end: Lsn,
    /// Moves on with every promotion.
    pub timeline: u32,
    /// Where the timeline that the replica was fed from was left; `None` where it is the same
    /// one, or none of this source's.
    pub left_at: Option<Lsn>,
}

/// Where to go on. `history` is the source's, where it was asked.
///
/// # Errors
/// When changes may be missing, with what happened.
pub fn resume_position(
    record: &PipelineRecord,
    identity: &PipelineIdentity,
    slot: Option<&ReplicationSlot>,
    history: Option<SourceHistory>,
) -> Result<Lsn, PipelineError> {
    let stop = |message: String| Err(stopped(message));
    if record.identity != *identity {
        return stop(format!(
            "the replica was fed from system {} (database {}, slot {}), and this source is system {} (database {}, slot {})",
            record.identity.system_id,
            record.identity.database_oid,
            record.identity.slot,
            identity.system_id,
            identity.database_oid,
            identity.slot
        ));
    }
    let Some(applied) = record.applied else {
        return stop("the replica's progress row holds no position".to_owned());
    };
    if let Some(problem) = history.and_then(|history| gap(record.timeline, history, applied)) {
        return stop(problem);
    }
    // That it would be dropped was noted first: where it is there all the same, it goes on.
    if let (None, Some(why)) = (slot, &record.given_up) {
        return stop(why.clone());
    }
    let slot = expect_whole(slot, &identity.slot)?;
    match slot.confirmed_flush_lsn {
        Some(confirmed) if planted(Bug::ResumeFromSlot) => Ok(confirmed),
        _ => expect_not_beyond(slot, applied).map(|()| applied),
    }
}

/// The slot, which still has all the log that it needs.
///
/// # Errors
/// It is gone or lost.
pub(super) fn expect_whole<'s>(
    slot: Option<&'s ReplicationSlot>,
    name: &str,
) -> Result<&'s ReplicationSlot, PipelineError> {
    let slot = slot.ok_or_else(|| stopped(format!("the source's slot {name} is gone")))?;
    if slot.wal_status == Some(SlotWalStatus::Lost) || slot.invalidation_reason.is_some() {
        return Err(stopped(lost(slot)));
    }
    Ok(slot)
}

/// The slot, once nobody else can move it any more: still not beyond what is applied?
///
/// # Errors
/// It is: changes may be missing.
pub(super) fn expect_not_beyond(slot: &ReplicationSlot, applied: Lsn) -> Result<(), PipelineError> {
    match slot.confirmed_flush_lsn {
        Some(confirmed) if confirmed > applied && !planted(Bug::IgnoreGap) => {
            Err(stopped(format!(
                "the source's slot {} is at {confirmed}, beyond what this replica has applied ({applied}): it was used or made anew by somebody else, or the replica was restored from a backup",
                slot.name
            )))
        }
        _ => Ok(()),
    }
}

fn stopped(message: String) -> PipelineError {
    PipelineError::Definite {
        message,
        advice: "changes may be missing, and nothing was skipped: `pglockstep rebase` compares both sides and, with --apply, has every table merged under a new slot".into(),
    }
}

/// Why the source gave the slot up (`pg_replication_slots.invalidation_reason`, 16 and later).
fn lost(slot: &ReplicationSlot) -> String {
    let why = match slot.invalidation_reason.as_deref() {
        Some("rows_removed") => "rows of the catalogue that it needed were vacuumed away",
        Some("wal_level_insufficient") => "wal_level of its primary was set below logical",
        Some("idle_timeout") => "nobody used it for idle_replication_slot_timeout",
        // wal_removed; or the version does not say.
        _ => {
            "the source has removed log that it still needed (raise max_slot_wal_keep_size, or find out why the slot did not move)"
        }
    };
    format!("the source's slot {} is lost: {why}", slot.name)
}

/// What the replica has and this source never had, or may not have had.
fn gap(fed_from: Option<u32>, history: SourceHistory, applied: Lsn) -> Option<String> {
    let SourceHistory {
        end,
        timeline,
        left_at,
    } = history;
    if end < applied {
        return Some(format!(
            "the source's log ends at {end}, before what this replica has applied ({applied}): the source was restored from a backup, or a standby that was behind took over"
        ));
    }
    let fed_from = fed_from.filter(|fed_from| *fed_from != timeline)?;
    match left_at {
        Some(left_at) if applied <= left_at => None,
        Some(left_at) => Some(format!(
            "the source has left timeline {fed_from} at {left_at}, before what this replica has applied ({applied}): a standby that was behind took over"
        )),
        None => Some(format!(
            "the source is on timeline {timeline}, which does not come from timeline {fed_from} that this replica was fed from: it is an old primary, or was restored from a backup"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_wire(raw).unwrap()
    }

    fn identity(system_id: &str) -> PipelineIdentity {
        PipelineIdentity {
            system_id: system_id.into(),
            database_oid: 5,
            slot: "s".into(),
        }
    }

    fn slot(confirmed: u64, wal_status: SlotWalStatus) -> ReplicationSlot {
        ReplicationSlot {
            name: "s".into(),
            plugin: None,
            database: None,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: Some(lsn(confirmed)),
            wal_status: Some(wal_status),
            safe_wal_bytes: None,
            retained_bytes: None,
            invalidation_reason: None,
            temporary: false,
            failover: false,
        }
    }

    fn history(end: u64, timeline: u32, left_at: Option<u64>) -> SourceHistory {
        SourceHistory {
            end: lsn(end),
            timeline,
            left_at: left_at.map(lsn),
        }
    }

    #[test]
    fn a_timeline_goes_on_where_it_holds_the_position() {
        let said = |history| gap(Some(3), history, lsn(100));
        assert_eq!(said(history(500, 3, None)), None);
        assert_eq!(said(history(500, 5, Some(100))), None);
        assert!(
            said(history(500, 5, Some(99)))
                .unwrap()
                .contains("took over")
        );
        assert!(
            said(history(500, 5, None))
                .unwrap()
                .contains("does not come from")
        );
        assert!(said(history(500, 2, None)).unwrap().contains("old primary"));
        assert_eq!(
            gap(None, history(500, 2, None), lsn(100)),
            None,
            "not known"
        );
    }

    #[test]
    fn each_reason_for_a_lost_slot_is_told() {
        for (reason, words) in [
            (Some("wal_removed"), "max_slot_wal_keep_size"),
            (Some("rows_removed"), "vacuumed"),
            (Some("wal_level_insufficient"), "wal_level"),
            (Some("idle_timeout"), "idle_replication_slot_timeout"),
            (None, "removed log"),
        ] {
            let mut slot = slot(100, SlotWalStatus::Lost);
            slot.invalidation_reason = reason.map(str::to_owned);
            assert!(lost(&slot).contains(words), "{reason:?}");
        }
    }

    #[test]
    fn only_the_same_history_goes_on() {
        use SlotWalStatus::{Lost, Reserved};
        let record = PipelineRecord {
            identity: identity("1"),
            timeline: Some(3),
            slot_born_at: Some(lsn(10)),
            applied: Some(lsn(100)),
            given_up: None,
        };
        let behind = resume_position(
            &record,
            &identity("1"),
            Some(&slot(100, Reserved)),
            Some(history(99, 3, None)),
        );
        assert!(
            behind
                .unwrap_err()
                .to_string()
                .contains("before what this replica")
        );
        for (system, slot, refusal) in [
            ("1", Some(slot(100, Reserved)), None),
            ("1", Some(slot(10, Reserved)), None),
            ("1", Some(slot(101, Reserved)), Some("beyond")),
            ("1", Some(slot(10, Lost)), Some("lost")),
            ("1", None, Some("gone")),
            ("2", Some(slot(10, Reserved)), Some("system 2")),
        ] {
            let found = resume_position(
                &record,
                &identity(system),
                slot.as_ref(),
                Some(history(1_000, 3, None)),
            );
            match (refusal, found) {
                (None, Ok(at)) => assert_eq!(at, lsn(100)),
                (Some(part), Err(error)) => assert!(error.to_string().contains(part), "{error}"),
                (expected, found) => panic!("{expected:?}, but {found:?}"),
            }
        }
    }
}
