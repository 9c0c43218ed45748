//! Whether the source is asked to send large transactions while they run. Pure; decided at each
//! start.
//!
//! Of a transaction that is sent so, the position is known when it ends. So everything that a
//! position decides has to be decided already: every table past its copy, none set aside, no
//! transaction to be passed by or searched for.

use crate::pgoutput::Streaming;

/// Transactions applied at once while they run, beside those that have committed.
const AT_ONCE_MAX: usize = 4;
/// Sessions with the replica that the pool keeps, for the books and the catalogue.
const POOL_MIN: usize = 3;
/// PostgreSQL 14: protocol 2.
const SINCE: u32 = 140_000;

/// What a start knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) server_version_num: u32,
    /// Of every table that takes part; so none is set aside.
    pub(super) are_past_copies: bool,
    /// Something waits for somebody, or was met and is not over.
    pub(super) has_errors: bool,
    /// This process has met what can only be applied when it has committed.
    pub(super) keeps_whole: bool,
    /// Sessions with the replica beside the one that applies.
    pub(super) sessions: usize,
}

impl Standing {
    /// How the source is to send, and how many transactions in progress are applied at once.
    pub(super) fn delivery(&self) -> (Streaming, usize) {
        let at_once = self.sessions.saturating_sub(POOL_MIN).min(AT_ONCE_MAX);
        let is_streamed = self.server_version_num >= SINCE
            && self.are_past_copies
            && !self.has_errors
            && !self.keeps_whole
            && at_once > 0;
        if is_streamed {
            (Streaming::On, at_once)
        } else {
            (Streaming::Off, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_no_position_decides_anything() {
        let well = Standing {
            server_version_num: 140_000,
            are_past_copies: true,
            has_errors: false,
            keeps_whole: false,
            sessions: 7,
        };
        let off = (Streaming::Off, 0);
        for (standing, delivery) in [
            (well, (Streaming::On, 4)),
            (
                Standing {
                    sessions: 90,
                    ..well
                },
                (Streaming::On, 4),
            ),
            (
                Standing {
                    sessions: 4,
                    ..well
                },
                (Streaming::On, 1),
            ),
            (
                Standing {
                    sessions: 3,
                    ..well
                },
                off,
            ),
            (
                Standing {
                    sessions: 0,
                    ..well
                },
                off,
            ),
            (
                Standing {
                    server_version_num: 139_999,
                    ..well
                },
                off,
            ),
            (
                Standing {
                    are_past_copies: false,
                    ..well
                },
                off,
            ),
            (
                Standing {
                    has_errors: true,
                    ..well
                },
                off,
            ),
            (
                Standing {
                    keeps_whole: true,
                    ..well
                },
                off,
            ),
        ] {
            assert_eq!(standing.delivery(), delivery, "{standing:?}");
        }
    }
}
