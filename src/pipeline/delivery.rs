//! How the source is asked to send: large transactions while they run or not, values in binary or
//! as text. Pure; decided at each start.
//!
//! Of a transaction that is sent so, the position is known when it ends. So everything that a
//! position decides has to be decided already: every table past its copy, none set aside, no
//! transaction to be passed by or searched for.
//!
//! Values come in binary where every table takes them so. Text is what is kept in the books, what
//! errors are searched with, and what everything can be read from: whatever fails in binary is
//! tried again as text.

use crate::pg::ValueFormat;
use crate::pgoutput::{Decoder, Streaming};
use crate::replication::{self, StreamOptions};

/// Transactions applied at once while they run, beside those that have committed.
const AT_ONCE_MAX: usize = 4;
/// What the source may hold of transactions in progress before it sends a segment: no more than we
/// take in at once. While we write one it reads on in its log; a larger one would have it wait for
/// us, and then us for it.
pub(super) const SEGMENT_BYTES: u32 = 8 << 20;
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
    /// Every table takes its values in binary.
    pub(super) takes_binary: bool,
    /// This process has met what can only be applied as text, if at all.
    pub(super) keeps_text: bool,
    /// Sessions with the replica beside the one that applies and its witness.
    pub(super) sessions: usize,
}

/// How the source is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) streaming: Streaming,
    /// How many transactions in progress are applied at once.
    pub(super) in_progress_max: usize,
    pub(super) format: ValueFormat,
}

impl Delivery {
    /// What the source is asked for, and who reads its answer. Version 1 has all that a
    /// transaction needs which has committed; version 2 has segments, too.
    pub(super) fn asked(
        &self,
        server_version_num: u32,
        publication: &str,
    ) -> (StreamOptions, Decoder) {
        let (version, segments) = match self.streaming {
            Streaming::Off => (1, replication::Streaming::Off),
            Streaming::On | Streaming::Parallel => (2, replication::Streaming::On),
        };
        let options = StreamOptions {
            protocol_version: version.into(),
            streaming: segments,
            binary: self.format == ValueFormat::Binary,
            ..StreamOptions::new(server_version_num, vec![publication.to_owned()])
        };
        (options, Decoder::new(version, self.streaming))
    }
}

impl Standing {
    /// What the source is asked for.
    pub(super) fn delivery(&self) -> Delivery {
        let (streaming, in_progress_max) = self.streaming();
        let is_binary = self.takes_binary && !self.has_errors && !self.keeps_text;
        let format = match is_binary {
            true => ValueFormat::Binary,
            false => ValueFormat::Text,
        };
        Delivery {
            streaming,
            in_progress_max,
            format,
        }
    }

    fn streaming(&self) -> (Streaming, usize) {
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
            takes_binary: true,
            keeps_text: false,
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
            assert_eq!(standing.streaming(), delivery, "{standing:?}");
        }
    }
    #[test]
    fn binary_only_where_all_is_well() {
        let well = Standing {
            server_version_num: 140_000,
            are_past_copies: false,
            has_errors: false,
            keeps_whole: true,
            takes_binary: true,
            keeps_text: false,
            sessions: 0,
        };
        assert_eq!(well.delivery().format, ValueFormat::Binary);
        for ill in [
            Standing {
                has_errors: true,
                ..well
            },
            Standing {
                takes_binary: false,
                ..well
            },
            Standing {
                keeps_text: true,
                ..well
            },
        ] {
            assert_eq!(ill.delivery().format, ValueFormat::Text, "{ill:?}");
        }
    }
}
