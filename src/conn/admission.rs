//! How much a server may say before its session is ours.
//!
//! Up to then nobody has asked for anything large: a start-up is some hundred bytes, and so is
//! the answer to the pins. Who sends more is no server of ours, and libraries would gather what
//! it sends (notices, parameters, one message of two gigabytes) for as long as it goes on.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for the notices of a trigger at login.
const BYTES_MAX: usize = 1024 * 1024;

/// The server went on and on. Rides in an [`io::Error`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("more than {BYTES_MAX} bytes before the session was open")]
pub(super) struct TooTalkative;

/// What a stream may still read; shared with who opens the session.
#[derive(Debug)]
pub(crate) struct Admission {
    /// `usize::MAX` once admitted.
    left: AtomicUsize,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            left: AtomicUsize::new(BYTES_MAX),
        }
    }
}

impl Admission {
    /// The session is open: from here on answers are as large as the questions ask for.
    pub(crate) fn admit(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
    }

    /// Whether the server said too much.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// So many bytes came.
    pub(super) fn heard(&self, bytes: usize) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == usize::MAX {
            return Ok(());
        }
        let left = left.saturating_sub(bytes);
        // Admitted meanwhile, by another thread: then it stays so.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                (now != usize::MAX).then_some(left)
            });
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, TooTalkative));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_say_so_much_until_it_is_admitted() {
        let admission = Admission::default();
        assert!(admission.heard(BYTES_MAX - 1).is_ok());
        assert!(!admission.is_overdrawn());
        assert!(admission.heard(1).is_err() && admission.is_overdrawn());
        let admission = Admission::default();
        admission.admit();
        assert!(admission.heard(2 * BYTES_MAX).is_ok() && !admission.is_overdrawn());
    }
}
