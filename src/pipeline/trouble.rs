//! Where applying failed, and how the next attempt goes about it. Pure.
//!
//! ```text
//!  a batch of many fails ─▶ searched: again, a transaction at a time ─▶ one alone fails ─▶ found
//!                              └── all pass: over                          └─ applied after all: over
//! ```
//!
//! So everything before the transaction that cannot be applied is on the replica, and that one
//! is known by its own LSN. Of what cannot even be received it is known that it comes next.

use super::PipelineError;
use crate::pg::{Disposition, Lsn};
use crate::progress::{BookedError, ErrorState};

/// Not over until the replica is beyond its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    at: Lsn,
    is_found: bool,
}

impl Trouble {
    /// What is known after an attempt; `before` it, and how far the replica is. One that
    /// streamed and failed for good will do so again at what comes next.
    pub(super) fn after(
        error: &PipelineError,
        before: Option<Self>,
        applied: Option<Lsn>,
        has_streamed: bool,
    ) -> Option<Self> {
        let before = before.filter(|trouble| !applied.is_some_and(|lsn| trouble.is_over(lsn)));
        let Some((at, is_alone)) = error.failed_at() else {
            let is_definite = has_streamed && error.disposition() == Disposition::Definite;
            let here = applied.filter(|_| is_definite).map(Self::found);
            return before.or(here);
        };
        Some(Self {
            at,
            is_found: is_alone || before.is_some(),
        })
    }

    /// What the books say of a daemon before this one.
    pub(super) fn in_books(open: &[BookedError], applied: Lsn) -> Option<Self> {
        let stopped = open.iter().filter(|e| e.state == ErrorState::Stopped);
        let first = stopped.map(|error| Self::found(error.commit_lsn));
        first
            .filter(|trouble| !trouble.is_over(applied))
            .min_by_key(|trouble| trouble.at)
    }

    fn found(at: Lsn) -> Self {
        Self { at, is_found: true }
    }

    /// Whether the transaction is known that cannot be applied: the pipeline has failed.
    pub(crate) fn is_found(self) -> bool {
        self.is_found
    }

    /// Whether the replica is beyond it. A commit record may begin where the one before ends.
    pub(crate) fn is_over(self, applied: Lsn) -> bool {
        applied > self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::ApplyError;
    use crate::pg::QualifiedName;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_wire(raw).unwrap()
    }

    fn failed(at: u64, is_alone: bool) -> PipelineError {
        PipelineError::Apply {
            at: lsn(at),
            is_alone,
            source: ApplyError::IncompleteRow {
                table: QualifiedName::new("public", "t"),
            },
        }
    }

    #[test]
    fn a_batch_is_searched_before_it_counts_as_failed() {
        let searched = Trouble::after(&failed(100, false), None, Some(lsn(50)), true).unwrap();
        assert!(!searched.is_found());
        let found = Trouble::after(&failed(80, true), Some(searched), Some(lsn(80)), true).unwrap();
        assert!(found.is_found());
        assert!(!found.is_over(lsn(80)), "the one before may end there");
        assert!(found.is_over(lsn(81)));
        // The position alone fails again: no more to search.
        let again =
            Trouble::after(&failed(100, false), Some(searched), Some(lsn(50)), true).unwrap();
        assert!(again.is_found());
    }

    #[test]
    fn trouble_stays_until_the_replica_is_beyond_it() {
        let found = Trouble::after(&failed(100, true), None, None, true);
        let lost = PipelineError::ReceiverGone;
        assert_eq!(Trouble::after(&lost, found, Some(lsn(100)), true), found);
        assert_eq!(Trouble::after(&lost, found, Some(lsn(101)), true), None);
        let next = Trouble::after(&failed(300, false), found, Some(lsn(200)), true).unwrap();
        assert!(!next.is_found(), "another one is searched anew");
    }

    #[test]
    fn what_cannot_be_received_has_failed_until_the_replica_moves() {
        let broken = PipelineError::OutOfOrder("a commit without a beginning");
        let here = Trouble::after(&broken, None, Some(lsn(70)), true).unwrap();
        assert!(here.is_found() && !here.is_over(lsn(70)) && here.is_over(lsn(71)));
        let again = Trouble::after(&broken, Some(here), Some(lsn(70)), true);
        assert_eq!(again, Some(here));
        // A start that is refused says nothing of the stream, nor does a lost connection.
        assert_eq!(Trouble::after(&broken, None, Some(lsn(70)), false), None);
        let lost = PipelineError::ReceiverGone;
        assert_eq!(Trouble::after(&lost, None, Some(lsn(70)), true), None);
    }
}
