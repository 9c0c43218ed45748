//! Which answers a server still owes; pure.
//!
//! Everything that is to be answered ends in ReadyForQuery, once for each simple query and for
//! each Sync, however many are on their way at once (manual, 55.2 "Message Flow"):
//!
//! ```text
//!  sent    start-up   Q   P B E S   P B E S            B E S   d d c S
//!  heard        R … Z   … Z   … Z   … Z               G            … Z
//!                                                      └ a Sync that finds the server within a
//!                                                        COPY from us is passed by (copyfromparse.c)
//! ```

use std::collections::VecDeque;

/// Messages, of which only the types and lengths matter; cut anywhere.
#[derive(Debug)]
struct Frames {
    header: [u8; Self::HEADER_BYTES],
    known: usize,
    /// Of the body.
    missing: usize,
}

impl Frames {
    const HEADER_BYTES: usize = 5;

    /// What begins with a message.
    fn new() -> Self {
        Self {
            header: [0; Self::HEADER_BYTES],
            known: 0,
            missing: 0,
        }
    }

    /// What begins with the one message that has no type.
    fn of_client() -> Self {
        Self {
            known: 1,
            ..Self::new()
        }
    }

    /// Calls `begun` with the type of each message that begins; 0 for the start-up's.
    fn pass(&mut self, mut bytes: &[u8], mut begun: impl FnMut(u8)) {
        while !bytes.is_empty() {
            let skipped = self.missing.min(bytes.len());
            self.missing -= skipped;
            bytes = &bytes[skipped..];
            let wanted = Self::HEADER_BYTES - self.known;
            let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
            if self.missing > 0 || head.is_empty() {
                continue;
            }
            self.header[self.known..self.known + head.len()].copy_from_slice(head);
            self.known += head.len();
            bytes = rest;
            if self.known == Self::HEADER_BYTES {
                let [kind, length @ ..] = self.header;
                // The length counts itself.
                let body = u32::from_be_bytes(length).saturating_sub(4);
                self.missing = usize::try_from(body).unwrap_or(usize::MAX);
                self.known = 0;
                begun(kind);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    ToSync,
    ToOther,
}

/// What passes in both directions from the start-up message on.
#[derive(Debug)]
pub(super) struct Answers {
    sent: Frames,
    heard: Frames,
    due: VecDeque<Due>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            sent: Frames::of_client(),
            heard: Frames::new(),
            due: VecDeque::new(),
        }
    }
}

impl Answers {
    /// Takes note of what was sent.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        let due = &mut self.due;
        self.sent.pass(bytes, |kind| match kind {
            b'S' => due.push_back(Due::ToSync),
            // The start-up, a query, a function call.
            0 | b'Q' | b'F' => due.push_back(Due::ToOther),
            _ => {}
        });
    }

    /// Takes note of what was heard.
    pub(super) fn heard(&mut self, bytes: &[u8]) {
        let due = &mut self.due;
        self.heard.pass(bytes, |kind| match kind {
            b'Z' => {
                due.pop_front();
            }
            b'G' if due.front() == Some(&Due::ToSync) => {
                due.pop_front();
            }
            _ => {}
        });
    }

    /// Whether one is still to come.
    pub(super) fn are_due(&self) -> bool {
        !self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTUP: &[u8] = b"\0\0\0\x08\0\x03\0\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";
    const SYNC: &[u8] = b"S\0\0\0\x04";
    const QUERY: &[u8] = b"Q\0\0\0\x0eSELECT 1\0\0";
    const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

    fn ready() -> Answers {
        let mut answers = Answers::default();
        answers.sent(STARTUP);
        assert!(answers.are_due());
        answers.heard(b"R\0\0\0\x08\0\0\0\0");
        assert!(answers.are_due());
        answers.heard(READY);
        assert!(!answers.are_due());
        answers
    }

    #[test]
    fn each_of_several_on_their_way_is_due() {
        let mut answers = ready();
        answers.sent(&[EXECUTE, SYNC, EXECUTE, SYNC, QUERY].concat());
        for _ in 0..3 {
            assert!(answers.are_due());
            answers.heard(b"C\0\0\0\x0dSELECT 1\0");
            assert!(answers.are_due());
            answers.heard(READY);
        }
        assert!(!answers.are_due());
    }

    #[test]
    fn a_sync_within_a_copy_is_not_answered() {
        let mut answers = ready();
        answers.sent(&[EXECUTE, SYNC].concat());
        answers.heard(b"2\0\0\0\x04G\0\0\0\x07\0\0\0");
        answers.sent(b"d\0\0\0\x08SZSZ");
        answers.sent(&[b"c\0\0\0\x04", SYNC].concat());
        assert!(answers.are_due());
        answers.heard(b"C\0\0\0\x0bCOPY 1\0");
        answers.heard(READY);
        assert!(!answers.are_due());
        // By a simple query it is the query's answer that is awaited.
        answers.sent(QUERY);
        answers.heard(b"G\0\0\0\x07\0\0\0");
        assert!(answers.are_due());
        answers.sent(b"c\0\0\0\x04");
        answers.heard(READY);
        assert!(!answers.are_due());
    }

    #[test]
    fn wherever_it_is_cut_it_says_the_same() {
        let sent = [STARTUP, QUERY, EXECUTE, SYNC].concat();
        let heard = [READY, b"D\0\0\0\x0a\0\x01row\0", READY, READY].concat();
        for step in 1..sent.len() {
            let mut answers = Answers::default();
            sent.chunks(step).for_each(|bytes| answers.sent(bytes));
            assert_eq!(answers.due.len(), 3, "{step}");
            for (at, byte) in heard.iter().enumerate() {
                assert!(answers.are_due(), "{step} {at}");
                answers.heard(std::slice::from_ref(byte));
                if at + 2 == heard.len() {
                    break;
                }
            }
            assert!(!answers.are_due(), "{step}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_passed_over() {
        let mut answers = ready();
        answers.heard(b"Z\0\0\0\0Z\xff\xff\xff\xffmore");
        answers.heard(READY);
        assert!(!answers.are_due());
    }
}
