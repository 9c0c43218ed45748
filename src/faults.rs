//! Fail points and planted bugs: for the tests only, and nothing at all in a release.
//!
//! ```text
//!  PGLOCKSTEP_FAULTS="apply.commit=kill@3;receive.read=delay(1s)"    point = what [@ at which passage]
//!  PGLOCKSTEP_PLANTED="skip_epoch_check"                            a bug, by its name
//!  PGLOCKSTEP_LIMITS="slot.lock_timeout_ms=8000"                    limit = number [; …]
//! ```
//!
//! A fail point stands between two steps of the work: `error` ends the work there by a transient
//! error of the fitting type, `kill` the process by SIGKILL, `panic` the task, `delay(…)` waits. What was done is said
//! on stderr. A planted bug is a mistake that the tests must notice; see `pipeline/simulation`. A limit
//! is a number of ours that a test cannot wait for.

#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
pub(crate) mod random;

use std::fmt;

/// The work ended at a fail point. Without the feature there is no such value.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    point: &'static str,
    #[cfg(not(feature = "faults"))]
    _never: std::convert::Infallible,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fail point {} was told to fail", self.point)
    }
}

impl std::error::Error for Fault {}

/// Which tests must catch a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// `pipeline/simulation/bugs.rs`, in histories without sockets or clock.
    InSimulation,
    /// `tests/fail_points/planted.rs`, between real servers.
    OnServers,
}

/// Every bug once, with its name in `PGLOCKSTEP_PLANTED` and who must catch it.
macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal, $($caught:ident)+;)+) => {
        /// A mistake that can be made on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $bug,)+
        }

        impl Bug {
            /// Every bug.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// Its name in `PGLOCKSTEP_PLANTED`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$bug => $name,)+ }
            }

            /// Which tests must catch it.
            #[must_use]
            pub const fn caught(self) -> &'static [Caught] {
                match self { $(Self::$bug => &[$(Caught::$caught,)+],)+ }
            }
        }
    };
}

bugs! {
    /// The source is told of one byte more than is flushed.
    AcknowledgeOneMore = "acknowledge_one_more", InSimulation;
    /// A keepalive counts in the middle of a transaction.
    AcknowledgeWithinTransaction = "acknowledge_within_transaction", InSimulation;
    /// What is committed is told as durable.
    CommittedIsDurable = "committed_is_durable", InSimulation;
    /// What was committed after a flush was asked for counts as flushed, too.
    VouchForLater = "vouch_for_later", InSimulation;
    /// The position moves in a transaction of its own, before the data's.
    PositionApart = "position_apart", InSimulation OnServers;
    /// The stream resumes from the slot's position.
    ResumeFromSlot = "resume_from_slot", InSimulation;
    /// A slot that is ahead of the replica is followed all the same.
    IgnoreGap = "ignore_gap", InSimulation;
    /// Whoever lost the pipeline goes on writing.
    SkipEpochCheck = "skip_epoch_check", InSimulation OnServers;
    /// TRUNCATE is passed by.
    DropTruncate = "drop_truncate", InSimulation OnServers;
    /// What follows the last commit in a batch is forgotten.
    ForgetTail = "forget_tail", InSimulation;
    /// A commit at the copy's own position counts as copied.
    WantsOneLater = "wants_one_later", InSimulation;
    /// Of several updates of a row the first one stands.
    KeepFirstUpdate = "keep_first_update", InSimulation;
    /// Unchanged TOAST becomes NULL.
    NullForToast = "null_for_toast", InSimulation;
    /// A statement may touch any number of rows.
    IgnoreRowCount = "ignore_row_count", InSimulation;
    /// Rows of a subtransaction that rolled back stay.
    KeepAborted = "keep_aborted", InSimulation;
    /// A segment of a transaction in progress is written before what committed ahead of it.
    SegmentBeforeCommits = "segment_before_commits", InSimulation;
    /// A row of the net effect is not written.
    LoseRow = "lose_row", InSimulation OnServers;
    /// A part of a transaction in progress is not written.
    LosePart = "lose_part", InSimulation OnServers;
    /// Sessions render values as the databases' settings say.
    SettingsNotPinned = "settings_not_pinned", OnServers;
}

/// A step of the work: `room.step`.
///
/// # Errors
/// When it was told to fail here.
#[cfg(not(feature = "faults"))]
#[inline]
pub async fn at(_point: &'static str) -> Result<(), Fault> {
    Ok(())
}

/// A limit of ours: as it is.
#[cfg(not(feature = "faults"))]
#[inline]
#[must_use]
pub const fn limit(_name: &'static str, usual: u32) -> u32 {
    usual
}

/// Whether the bug is planted: never.
#[cfg(not(any(test, feature = "faults")))]
#[inline]
#[must_use]
pub const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "faults")]
pub use orders::{at, limit};
#[cfg(any(test, feature = "faults"))]
pub use plot::planted;
#[cfg(test)]
pub(crate) use plot::with_planted;

#[cfg(feature = "faults")]
mod orders {
    //! What the environment orders, read once.

    use super::Fault;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Act {
        Error,
        Kill,
        Panic,
        Delay(Duration),
    }

    #[derive(Debug)]
    struct Order {
        point: String,
        act: Act,
        /// Passages left; it is carried out when none is.
        left: AtomicU32,
    }

    /// A step of the work: `room.step`.
    ///
    /// # Errors
    /// When it was told to fail here.
    pub async fn at(point: &'static str) -> Result<(), Fault> {
        static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();
        let orders = ORDERS.get_or_init(|| {
            let text = std::env::var("PGLOCKSTEP_FAULTS").unwrap_or_default();
            read(&text)
        });
        for order in orders.iter().filter(|order| order.point == point) {
            // At 1 it is this passage's turn; below, it has been.
            let is_turn = order
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                == Ok(1);
            if !is_turn {
                continue;
            }
            eprintln!("fail point {point}: {:?}", order.act);
            match order.act {
                Act::Error => return Err(Fault { point }),
                Act::Kill => kill(),
                Act::Panic => panic_with(point),
                Act::Delay(time) => tokio::time::sleep(time).await,
            }
        }
        Ok(())
    }

    /// A limit of ours, unless the environment has another: `limit=number`.
    #[must_use]
    pub fn limit(name: &'static str, usual: u32) -> u32 {
        let text = std::env::var("PGLOCKSTEP_LIMITS").unwrap_or_default();
        number(&text, name).unwrap_or(usual)
    }

    fn number(text: &str, name: &str) -> Option<u32> {
        let mut limits = text.split(';').filter_map(|limit| limit.split_once('='));
        let (_, number) = limits.find(|(known, _)| known.trim() == name)?;
        number.trim().parse().ok()
    }

    /// With a text that stands for a row's value, which no log may hold.
    #[expect(clippy::panic, reason = "that it is seen is what is tested")]
    fn panic_with(point: &str) -> ! {
        panic!("a value at {point}")
    }

    fn kill() -> ! {
        let me = rustix::process::getpid();
        // A signal that cannot be sent leaves the next line.
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        std::process::abort()
    }

    fn read(text: &str) -> Vec<Order> {
        let orders = text.split(';').filter(|order| !order.is_empty());
        orders
            .filter_map(|text| {
                let order = order(text);
                if order.is_none() {
                    eprintln!("PGLOCKSTEP_FAULTS: {text:?} is no order");
                }
                order
            })
            .collect()
    }

    fn order(text: &str) -> Option<Order> {
        let (point, what) = text.trim().split_once('=')?;
        let (act, passage) = match what.split_once('@') {
            Some((act, passage)) => (act, passage.parse().ok()?),
            None => (what, 1),
        };
        let act = match act {
            "error" => Act::Error,
            "kill" => Act::Kill,
            "panic" => Act::Panic,
            act => {
                let time = act.strip_prefix("delay(")?.strip_suffix(')')?;
                Act::Delay(humantime::parse_duration(time).ok()?)
            }
        };
        Some(Order {
            point: point.to_owned(),
            act,
            left: AtomicU32::new(passage),
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn limits_are_read() {
            let text = "a.b=7; c=x;a = 8";
            let of = |name| number(text, name);
            assert_eq!((of("a.b"), of("a"), of("c")), (Some(7), Some(8), None));
            assert_eq!(number("", "a"), None);
        }

        #[test]
        fn orders_are_read() {
            let orders = read("a.b=kill@3;c=delay(2s);d=error");
            let acts: Vec<(&str, Act, u32)> = orders
                .iter()
                .map(|o| (o.point.as_str(), o.act, o.left.load(Ordering::Relaxed)))
                .collect();
            let delay = Act::Delay(Duration::from_secs(2));
            assert_eq!(
                acts,
                [("a.b", Act::Kill, 3), ("c", delay, 1), ("d", Act::Error, 1)]
            );
            for wrong in ["a", "a=", "a=die", "a=error@x", "a=delay(2)"] {
                assert!(order(wrong).is_none(), "{wrong}");
            }
        }
    }
}

#[cfg(any(test, feature = "faults"))]
mod plot {
    //! Which bug is planted: in the program by its environment, in a test by the test.

    use super::Bug;
    #[cfg(test)]
    use std::cell::Cell;

    #[cfg(test)]
    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether the bug is planted.
    #[cfg(test)]
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug in this thread while `work` lasts.
    #[cfg(test)]
    pub(crate) fn with_planted<T>(bug: Option<Bug>, work: impl FnOnce() -> T) -> T {
        PLANTED.set(bug);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        PLANTED.set(None);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Whether the bug is planted.
    #[cfg(not(test))]
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        use std::sync::OnceLock;
        static PLANTED: OnceLock<Option<Bug>> = OnceLock::new();
        let named = || {
            let name = std::env::var("PGLOCKSTEP_PLANTED").ok()?;
            if name.is_empty() {
                return None;
            }
            let known = Bug::ALL.iter().find(|bug| bug.name() == name);
            match known {
                Some(_) => eprintln!("planted: {name}"),
                None => eprintln!("PGLOCKSTEP_PLANTED: {name:?} is no bug"),
            }
            known.copied()
        };
        *PLANTED.get_or_init(named) == Some(bug)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_planted_for_as_long_as_the_work() {
        let is_there = || planted(Bug::DropTruncate);
        assert!(with_planted(Some(Bug::DropTruncate), is_there));
        assert!(!with_planted(Some(Bug::ForgetTail), is_there));
        assert!(!is_there());
    }

    #[test]
    fn every_bug_has_somebody_who_must_catch_it_and_a_name_of_its_own() {
        for bug in Bug::ALL {
            assert!(!bug.caught().is_empty(), "{bug:?}");
            let namesakes = Bug::ALL.iter().filter(|other| other.name() == bug.name());
            assert_eq!(namesakes.count(), 1, "{bug:?}");
        }
    }
}
