//! The follower's part of a cut: takes late what may be beyond it, commits what is before it, has the
//! replica exported.
//!
//! ```text
//!  request ─▶ sought ─ at L ─▶ a transaction from L on, or all before L applied ─▶ exported
//!               │ └ one from L on is taken already, or nobody asks any more ─▶ gone    │
//!               └ what is committed beyond the floor is taken late                     │
//!                                              waits while somebody writes there ◀─────┘
//! ```

use super::{Follower, ReplicaWriter};
use crate::pg::{Lsn, ServerError};
use crate::pgoutput::Message;
use crate::pipeline::PipelineError;
use crate::pipeline::cut::{CutRequest, Exported, LATE_BY, WAIT_MAX};
use crate::pipeline::receive::Event;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Client;

/// One statement that looks at nothing.
const EXPORTED_WITHIN: Duration = Duration::from_secs(1);

/// A cut that is to be made, and is not yet.
pub(super) struct PendingCut {
    place: Place,
    /// Where it is.
    said: oneshot::Receiver<Lsn>,
    replica: Arc<Client>,
    done: oneshot::Sender<Result<Exported, ServerError>>,
    hold: Option<oneshot::Receiver<()>>,
    /// The longest that a transaction was kept for it until now.
    held: Duration,
}

/// What is known of where a cut is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Sought {
        /// It is beyond this.
        floor: Lsn,
        /// The last commit that was taken since.
        taken: Option<Lsn>,
    },
    At(Lsn),
    /// What is beyond it was taken before it was known.
    Passed,
}

impl Place {
    fn is_sought(self) -> bool {
        matches!(self, Self::Sought { .. })
    }

    /// Whether a transaction that commits there may be beyond the cut, for all that is known.
    fn may_be_before(self, commit_lsn: Lsn) -> bool {
        matches!(self, Self::Sought { floor, .. } if commit_lsn >= floor)
    }

    /// Whether it is beyond the cut.
    fn is_before(self, commit_lsn: Lsn) -> bool {
        matches!(self, Self::At(at) if commit_lsn >= at)
    }

    /// A transaction that commits there is on its way to the replica.
    fn took(&mut self, commit_lsn: Lsn) {
        if let Self::Sought { taken, .. } = self {
            *taken = (*taken).max(Some(commit_lsn));
        }
    }

    fn said(&mut self, at: Lsn) {
        if let Self::Sought { taken, .. } = *self {
            *self = match taken.is_some_and(|taken| taken >= at) {
                true => Self::Passed,
                false => Self::At(at),
            };
        }
    }
}

/// Where the transaction commits of which this event is the first, or the commit.
fn commit_of(event: &Event) -> Option<Lsn> {
    match event {
        Event::Message(Message::Begin { final_lsn, .. }) => Some(*final_lsn),
        Event::Message(Message::StreamCommit { commit_lsn, .. }) => Some(*commit_lsn),
        _ => None,
    }
}

/// Ends when a cut that is sought has its place, or has gone; cancelled, nothing is lost.
pub(super) async fn placed(cut: &mut Option<PendingCut>) {
    let Some(sought) = cut.as_mut().filter(|cut| cut.place.is_sought()) else {
        return pending().await;
    };
    let said = tokio::select! {
        biased;
        said = &mut sought.said => said.ok(),
        () = sought.done.closed() => None,
    };
    match said {
        Some(at) => sought.place.said(at),
        None => sought.place = Place::Passed,
    }
}

impl<W: ReplicaWriter> Follower<'_, W> {
    /// Whether nobody waits for a cut.
    pub(super) fn may_cut(&self) -> bool {
        self.cut.as_ref().is_none_or(|cut| cut.done.is_closed())
    }

    /// From here on what may be beyond the cut is taken late.
    pub(super) fn seek_cut(&mut self, request: CutRequest) {
        // Whoever asked may have given up.
        if request.is_sought.send(()).is_ok() {
            self.cut = Some(PendingCut {
                place: Place::Sought {
                    floor: request.floor,
                    taken: None,
                },
                said: request.at,
                replica: request.replica,
                done: request.done,
                hold: request.hold,
                held: Duration::ZERO,
            });
        }
    }

    /// Before an event is taken that came at `arrived`: it waits where it may be beyond a cut whose place is
    /// not known yet, and the first one beyond the cut makes it.
    pub(super) async fn cut_before(
        &mut self,
        event: &Event,
        arrived: Instant,
    ) -> Result<(), PipelineError> {
        let Some(commit_lsn) = commit_of(event) else {
            return Ok(());
        };
        let place = |cut: &Option<PendingCut>| cut.as_ref().map(|cut| cut.place);
        if place(&self.cut).is_some_and(|place| place.may_be_before(commit_lsn)) {
            let until = arrived + LATE_BY;
            let waits = Instant::now() < until;
            if waits {
                // What came before does not wait.
                self.commit_whole().await?;
            }
            // Looks at what is said once even where it is late already.
            let _ = timeout_at(until, placed(&mut self.cut)).await;
            if let Some(cut) = self.cut.as_mut().filter(|_| waits) {
                cut.held = cut.held.max(arrived.elapsed());
            }
        }
        if let Some(cut) = &mut self.cut {
            cut.place.took(commit_lsn);
        }
        if place(&self.cut).is_some_and(|place| place.is_before(commit_lsn)) {
            self.commit_whole().await?;
            self.export().await?;
        }
        Ok(())
    }

    /// A cut that has been passed is none. Where nothing comes from beyond it, it is made when nothing
    /// before it is left.
    pub(super) async fn cut_where_all_is_applied(&mut self) -> Result<(), PipelineError> {
        let applied = self.state.positions.applied;
        match self.cut.as_ref().map(|cut| cut.place) {
            Some(Place::At(at)) if applied >= Some(at) => self.export().await,
            Some(Place::Passed) => {
                let passed = self.cut.take();
                passed.inspect(|cut| self.telemetry.observe_cut(cut.held));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn export(&mut self) -> Result<(), PipelineError> {
        let Some(cut) = self.cut.take() else {
            return Ok(());
        };
        let Place::At(at) = cut.place else {
            return Ok(());
        };
        let since = Instant::now();
        let held_before = cut.held;
        let done = self.export_for(cut, at).await;
        self.telemetry.observe_cut(held_before + since.elapsed());
        done
    }

    async fn export_for(&mut self, cut: PendingCut, at: Lsn) -> Result<(), PipelineError> {
        // What these have written is seen by nobody: whoever writes here might undo it.
        if cut.hold.is_some() && self.segments.is_one_open() {
            return Ok(());
        }
        let export = cut
            .replica
            .query_one("SELECT pg_catalog.pg_export_snapshot()", &[]);
        // A session that does not answer is not waited for: `done` goes unsaid.
        let Ok(exported) = timeout(EXPORTED_WITHIN, export).await else {
            return Ok(());
        };
        let owner = self.books.as_ref().map(|books| books.store.clone());
        let exported = exported.map(|row| Exported {
            snapshot: row.get(0),
            owner,
        });
        // Whoever asked may have given up.
        let is_taken = cut.done.send(exported.map_err(ServerError::from)).is_ok();
        if let Some(hold) = cut.hold.filter(|_| is_taken) {
            // Over at the latest now, and closed: from here on nobody begins to write. Who has begun
            // holds the position, and is waited for.
            let _ = timeout(WAIT_MAX, hold).await;
            let free = self.applier.await_position().await;
            free.map_err(|source| self.failed(at, false, source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(at: u64) -> Lsn {
        Lsn::from_wire(at).unwrap()
    }

    fn sought() -> Place {
        Place::Sought {
            floor: lsn(100),
            taken: None,
        }
    }

    #[test]
    fn only_what_may_be_beyond_a_cut_waits_for_its_place() {
        let mut place = sought();
        for (commit_lsn, waits) in [(99, false), (100, true), (101, true)] {
            assert_eq!(place.may_be_before(lsn(commit_lsn)), waits, "{commit_lsn}");
            assert!(!place.is_before(lsn(commit_lsn)));
        }
        place.said(lsn(120));
        for (commit_lsn, is_beyond) in [(119, false), (120, true), (121, true)] {
            assert!(!place.may_be_before(lsn(commit_lsn)));
            assert_eq!(place.is_before(lsn(commit_lsn)), is_beyond, "{commit_lsn}");
        }
    }

    #[test]
    fn a_cut_is_none_once_what_is_beyond_it_was_taken() {
        for (taken, becomes) in [
            (&[][..], Place::At(lsn(120))),
            (&[101, 119], Place::At(lsn(120))),
            (&[120], Place::Passed),
            (&[121, 110], Place::Passed),
        ] {
            let mut place = sought();
            taken
                .iter()
                .for_each(|commit_lsn| place.took(lsn(*commit_lsn)));
            place.said(lsn(120));
            assert_eq!(place, becomes, "{taken:?}");
            // Said once is said.
            place.said(lsn(500));
            assert_eq!(place, becomes);
        }
    }
}
