//! When which table is compared and counted; pure: it is told the time.
//!
//! ```text
//!  known ─▶ first look: one table after the other, within `every`
//!  looked at ─▶ again after `every`
//!  a turn: tables that are due, some seconds' worth ─▶ nothing for 19 times as long as it took
//! ```
//!
//! So comparing takes a twentieth of the time of one process on each side at most, however many and
//! large the tables are: where that is not enough they are compared less often than `every`, and their
//! age tells so.

use super::settings::Settings;
use crate::pg::QualifiedName;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// Before the first look, and at most between two tables that are looked at for the first time.
const FIRST_AFTER: Duration = Duration::from_secs(60);
const SPREAD_MAX: Duration = Duration::from_secs(60);
/// A turn is followed by so many times as long without one.
const REST: u32 = 19;
/// Tables are taken into a turn until they take so long, by what they took before.
const TURN: Duration = Duration::from_secs(5);
/// What a table is taken for that was not looked at yet.
const UNKNOWN: Duration = Duration::from_millis(200);
/// Where it could not be done.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Comparing rows, or counting them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Rows,
    Counts,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) kind: Kind,
    /// Source tables.
    pub(super) tables: Vec<QualifiedName>,
}

/// When one kind of look at a table is due, and how long it took.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    took: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    rows: Look,
    counts: Look,
}

/// When each table's turn is.
#[derive(Debug)]
pub(super) struct Schedule {
    settings: Settings,
    turns: BTreeMap<QualifiedName, Turn>,
    /// Nothing before.
    rests_until: Option<Instant>,
    last: Kind,
}

impl Schedule {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            turns: BTreeMap::new(),
            rests_until: None,
            last: Kind::Counts,
        }
    }

    /// The tables that take part from now on; those that are new wait for their first turn.
    pub(super) fn know(&mut self, tables: &[QualifiedName], now: Instant) {
        let known: HashSet<&QualifiedName> = tables.iter().collect();
        self.turns.retain(|name, _| known.contains(name));
        let count = u32::try_from(tables.len()).unwrap_or(u32::MAX).max(1);
        let spread = (self.settings.every / count).min(SPREAD_MAX);
        let first = now + FIRST_AFTER.min(self.settings.every);
        let counts = now + FIRST_AFTER.min(self.settings.counts_every);
        let new = tables.iter().filter(|name| !self.turns.contains_key(*name));
        let new: Vec<QualifiedName> = new.cloned().collect();
        for (place, name) in (0..).zip(new) {
            let look = |at| Look { at, took: UNKNOWN };
            let turn = Turn {
                rows: look(first + spread * place),
                counts: look(counts),
            };
            self.turns.insert(name, turn);
        }
    }

    /// What an earlier life of the daemon has done.
    pub(super) fn remember(
        &mut self,
        table: &QualifiedName,
        kind: Kind,
        (age, took): (Duration, Duration),
        now: Instant,
    ) {
        let every = self.every(kind);
        if let Some(turn) = self.turns.get_mut(table) {
            let next = now + every.saturating_sub(age);
            let look = turn.of(kind);
            look.at = next.max(look.at);
            look.took = took;
        }
    }

    /// What is due: some tables of one kind, those that have waited longest; the kinds take turns.
    pub(super) fn due(&self, now: Instant) -> Option<Due> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let kinds = match self.last {
            Kind::Counts => [Kind::Rows, Kind::Counts],
            Kind::Rows => [Kind::Counts, Kind::Rows],
        };
        kinds.into_iter().find_map(|kind| self.due_of(kind, now))
    }

    fn due_of(&self, kind: Kind, now: Instant) -> Option<Due> {
        if self.every(kind).is_zero() {
            return None;
        }
        let looks = self
            .turns
            .iter()
            .map(|(name, turn)| (turn.look(kind), name));
        let mut due: Vec<(Look, &QualifiedName)> =
            looks.filter(|(look, _)| now >= look.at).collect();
        due.sort_by_key(|(look, name)| (look.at, *name));
        let mut long = Duration::ZERO;
        let tables = due.into_iter().take_while(|(look, _)| {
            let fits = long < TURN;
            long += look.took;
            fits
        });
        let tables: Vec<QualifiedName> = tables.map(|(_, name)| name.clone()).collect();
        (!tables.is_empty()).then_some(Due { kind, tables })
    }

    /// A table was looked at. Whoever compares rows has counted them.
    pub(super) fn done(&mut self, table: &QualifiedName, kind: Kind, took: Duration, now: Instant) {
        let (rows, counts) = (now + self.settings.every, now + self.settings.counts_every);
        if let Some(turn) = self.turns.get_mut(table) {
            match kind {
                Kind::Rows => {
                    turn.rows = Look { at: rows, took };
                    turn.counts.at = turn.counts.at.max(counts);
                }
                Kind::Counts => turn.counts = Look { at: counts, took },
            }
        }
    }

    /// A part of a table was compared: the rest is due, after those that wait, and no other with it.
    pub(super) fn go_on(&mut self, table: &QualifiedName, now: Instant) {
        if let Some(turn) = self.turns.get_mut(table) {
            turn.rows = Look {
                at: now,
                took: TURN,
            };
        }
    }

    /// A turn is over, whatever came of it.
    pub(super) fn rest(&mut self, kind: Kind, took: Duration, now: Instant) {
        self.last = kind;
        self.rests_until = Some(now + took.saturating_mul(REST));
    }

    /// Until it is known what became of them, tables of a turn are not due again.
    pub(super) fn put_off(&mut self, due: &Due, now: Instant) {
        let again = now + AGAIN_AFTER.min(self.every(due.kind));
        for table in &due.tables {
            if let Some(turn) = self.turns.get_mut(table) {
                turn.of(due.kind).at = again;
            }
        }
    }

    fn every(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Rows => self.settings.every,
            Kind::Counts => self.settings.counts_every,
        }
    }
}

impl Turn {
    fn look(&self, kind: Kind) -> Look {
        match kind {
            Kind::Rows => self.rows,
            Kind::Counts => self.counts,
        }
    }

    fn of(&mut self, kind: Kind) -> &mut Look {
        match kind {
            Kind::Rows => &mut self.rows,
            Kind::Counts => &mut self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn names(count: usize) -> Vec<QualifiedName> {
        let name = |n| QualifiedName::new("public", format!("t{n:05}"));
        (0..count).map(name).collect()
    }

    fn schedule_of(tables: usize, every: u64, counts_every: u64) -> (Schedule, Instant) {
        let now = Instant::now();
        let mut schedule = Schedule::new(Settings {
            every: seconds(every),
            counts_every: seconds(counts_every),
            ..Settings::default()
        });
        schedule.know(&names(tables), now);
        (schedule, now)
    }

    fn due(schedule: &Schedule, at: Instant) -> Option<(Kind, usize)> {
        schedule.due(at).map(|due| (due.kind, due.tables.len()))
    }

    #[test]
    fn tables_are_looked_at_one_after_the_other_and_counted_together() {
        let (mut schedule, begun) = schedule_of(3, 3600, 60);
        assert_eq!(due(&schedule, begun), None);
        assert_eq!(due(&schedule, begun + seconds(60)), Some((Kind::Rows, 1)));
        let all = names(3);
        schedule.done(&all[0], Kind::Rows, seconds(1), begun + seconds(60));
        schedule.rest(Kind::Rows, Duration::ZERO, begun + seconds(60));
        assert_eq!(due(&schedule, begun + seconds(60)), Some((Kind::Counts, 2)));
        for table in &all[1..] {
            schedule.done(table, Kind::Counts, seconds(1), begun + seconds(60));
        }
        schedule.rest(Kind::Counts, Duration::ZERO, begun + seconds(60));
        assert_eq!(due(&schedule, begun + seconds(119)), None);
        assert_eq!(due(&schedule, begun + seconds(120)), Some((Kind::Rows, 1)));
    }

    #[test]
    fn a_turn_takes_some_seconds_and_those_first_that_have_waited_longest() {
        let (schedule, begun) = schedule_of(10_000, 3600, 0);
        assert_eq!(due(&schedule, begun + seconds(65)), Some((Kind::Rows, 14)));
        assert_eq!(
            due(&schedule, begun + seconds(3660)),
            Some((Kind::Rows, 25))
        );
        let (mut schedule, begun) = schedule_of(3, 3600, 0);
        let all = names(3);
        for (table, took) in all.iter().zip([4, 1, 9]) {
            schedule.done(table, Kind::Rows, seconds(took), begun);
        }
        schedule.done(&all[0], Kind::Rows, seconds(4), begun + seconds(5));
        let tables = schedule.due(begun + seconds(3605)).unwrap().tables;
        assert_eq!(tables, [all[1].clone(), all[2].clone()]);
    }

    #[test]
    fn what_takes_long_is_rested_from_and_the_kinds_take_turns() {
        let (mut schedule, begun) = schedule_of(1, 3600, 60);
        let table = &names(1)[0];
        let now = begun + seconds(60);
        schedule.done(table, Kind::Rows, seconds(1000), now);
        schedule.rest(Kind::Rows, seconds(1000), now);
        assert_eq!(due(&schedule, now + seconds(18_999)), None);
        assert_eq!(
            due(&schedule, now + seconds(19_000)),
            Some((Kind::Counts, 1))
        );
        schedule.rest(Kind::Counts, Duration::ZERO, now);
        assert_eq!(due(&schedule, now + seconds(19_000)), Some((Kind::Rows, 1)));
    }

    #[test]
    fn a_part_of_a_huge_table_is_followed_by_the_next_and_by_those_that_wait() {
        let (mut schedule, begun) = schedule_of(2, 3600, 0);
        let all = names(2);
        let now = begun + seconds(60);
        let first = schedule.due(now).unwrap();
        assert_eq!(first.tables, [all[0].clone()]);
        schedule.put_off(&first, now);
        schedule.go_on(&all[0], now + seconds(61));
        schedule.rest(Kind::Rows, seconds(60), now + seconds(60));
        assert_eq!(schedule.due(now + seconds(1199)), None);
        // The other's turn came before.
        let next = schedule.due(now + seconds(1200)).unwrap();
        assert_eq!(next.tables, [all[1].clone(), all[0].clone()]);
        schedule.done(&all[1], Kind::Rows, UNKNOWN, now + seconds(1200));
        let next = schedule.due(now + seconds(1200)).unwrap();
        assert_eq!(next.tables, [all[0].clone()]);
    }

    #[test]
    fn a_restart_forgets_nothing_and_a_failure_is_tried_again() {
        let (mut schedule, begun) = schedule_of(2, 3600, 0);
        let all = names(2);
        schedule.remember(&all[0], Kind::Rows, (seconds(600), UNKNOWN), begun);
        schedule.remember(&all[1], Kind::Rows, (seconds(9000), UNKNOWN), begun);
        // Overdue: at its turn, not at once with all others.
        let at = begun + seconds(120);
        assert_eq!(schedule.due(at).unwrap().tables, [all[1].clone()]);
        schedule.put_off(&schedule.due(at).unwrap(), at);
        assert_eq!(due(&schedule, at + seconds(59)), None);
        assert_eq!(due(&schedule, at + seconds(60)), Some((Kind::Rows, 1)));
        assert_eq!(schedule.due(begun + seconds(3000)).unwrap().tables.len(), 2);
    }

    #[test]
    fn tables_come_and_go_and_nothing_is_done_where_nothing_is_wanted() {
        let (mut schedule, begun) = schedule_of(2, 3600, 60);
        schedule.done(&names(1)[0], Kind::Rows, seconds(1), begun);
        schedule.know(&names(1), begun + seconds(100));
        assert_eq!(
            due(&schedule, begun + seconds(3599)),
            Some((Kind::Counts, 1))
        );
        let (schedule, begun) = schedule_of(2, 0, 0);
        assert_eq!(due(&schedule, begun + seconds(1_000_000)), None);
    }
}
