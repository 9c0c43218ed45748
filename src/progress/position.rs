//! Received, applied, flushed; and the feedback rule. Pure.

use crate::faults::{Bug, planted};
use crate::pg::Lsn;

/// Three positions of one pipeline. Each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// The end of what has arrived from the source.
    pub received: Option<Lsn>,
    /// Everything before it is committed on the replica.
    pub applied: Option<Lsn>,
    /// Everything before it would survive a crash of the replica.
    pub flushed: Option<Lsn>,
}

/// Whether a commit on the replica waited for its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It waited, and so made all before it durable.
    Durable,
    /// It did not: a later one will, or another session sees to it.
    Later,
}

/// What goes back to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// "Written": arrived here.
    pub write: Option<Lsn>,
    /// "Flushed": the slot may forget all before it.
    pub flush: Option<Lsn>,
    /// "Applied": visible on the replica.
    pub apply: Option<Lsn>,
}

impl Positions {
    /// A pipeline that resumes where the replica's progress row says. The row is durable: the
    /// claim of the pipeline was a commit that waited, after whoever wrote the row.
    #[must_use]
    pub fn resumed_at(applied: Lsn) -> Self {
        Self {
            received: Some(applied),
            applied: Some(applied),
            flushed: Some(applied),
        }
    }

    /// What the source may be told: never more than is durable, never more than is applied.
    #[must_use]
    pub fn feedback(&self) -> Feedback {
        let mut flush = self.flushed.min(self.applied);
        if planted(Bug::AcknowledgeOneMore) {
            flush = flush.and_then(|lsn| Lsn::from_wire(lsn.as_u64() + 1));
        }
        Feedback {
            write: self.received.max(self.applied),
            flush,
            apply: self.applied,
        }
    }

    /// Everything before `idle_end` needs nothing: the position that says so, if it is news to the
    /// replica's disk. Never behind what is applied.
    #[must_use]
    pub fn idle(&self, idle_end: Lsn) -> Option<Lsn> {
        let end = self
            .applied
            .map_or(idle_end, |applied| applied.max(idle_end));
        (Some(end) > self.flushed).then_some(end)
    }

    /// Notes an arrival.
    pub fn receive(&mut self, end: Lsn) {
        self.received = self.received.max(Some(end));
    }

    /// Notes a commit on the replica.
    pub fn commit(&mut self, end: Lsn, durability: Durability) {
        self.applied = self.applied.max(Some(end));
        if durability == Durability::Durable || planted(Bug::CommittedIsDurable) {
            self.flushed = self.flushed.max(Some(end));
        }
        self.received = self.received.max(self.applied);
    }

    /// Notes that what was committed up to here is durable by now.
    pub fn flush(&mut self, end: Lsn) {
        self.flushed = self.flushed.max(Some(end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_wire(raw).unwrap()
    }

    #[test]
    fn idleness_takes_nothing_back() {
        let mut positions = Positions::resumed_at(lsn(100));
        assert_eq!(positions.idle(lsn(100)), None);
        assert_eq!(positions.idle(lsn(150)), Some(lsn(150)));
        positions.commit(lsn(200), Durability::Later);
        assert_eq!(positions.idle(lsn(150)), Some(lsn(200)), "not back to 150");
    }

    #[test]
    fn the_slot_never_hears_of_what_is_only_received() {
        let mut positions = Positions::resumed_at(lsn(100));
        positions.receive(lsn(500));
        assert_eq!(positions.feedback().flush, Some(lsn(100)));
        assert_eq!(positions.feedback().write, Some(lsn(500)));
        positions.commit(lsn(250), Durability::Later);
        assert_eq!(positions.feedback().flush, Some(lsn(100)));
        assert_eq!(positions.feedback().apply, Some(lsn(250)));
        positions.commit(lsn(300), Durability::Durable);
        assert_eq!(positions.feedback().flush, Some(lsn(300)));
        positions.commit(lsn(200), Durability::Durable);
        assert_eq!(positions.feedback().apply, Some(lsn(300)));
        positions.commit(lsn(400), Durability::Later);
        positions.flush(lsn(350));
        positions.flush(lsn(320));
        assert_eq!(positions.feedback().flush, Some(lsn(350)));
        assert_eq!(Positions::default().feedback().flush, None);
        let only_applied = Positions {
            applied: Some(lsn(9)),
            ..Positions::default()
        };
        assert_eq!(only_applied.feedback().flush, None);
    }
}
