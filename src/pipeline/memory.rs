//! What outlives an attempt: whose slot it is, whether it was given up, which requests were known
//! when it began, and whether transactions are to be taken whole, and values as text.

use crate::faults;
use crate::progress::{PipelineIdentity, Store};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// For at least so many seconds transactions are taken whole after one could not be applied while
/// it ran, and values as text after some could not be applied in binary: what stood in the way is
/// likely to be there still.
const WHOLE_SECONDS: u32 = 600;

/// Kept by who tries again, written by each attempt.
#[derive(Default)]
pub(super) struct Memory {
    owned: Mutex<Option<Owned>>,
    requests: Mutex<Option<String>>,
    given_up: Mutex<Option<String>>,
    whole_since: Mutex<Option<Instant>>,
    text_since: Mutex<Option<Instant>>,
}

/// A slot that this process has resumed or made.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) identity: PipelineIdentity,
    pub(super) store: Store,
}

impl Memory {
    pub(super) fn own(&self, identity: PipelineIdentity, store: Store) {
        *lock(&self.owned) = Some(Owned { identity, store });
        *lock(&self.given_up) = None;
    }

    /// The slot was dropped, and why; until there is another.
    pub(super) fn give_up(&self, why: String) {
        *lock(&self.owned) = None;
        *lock(&self.given_up) = Some(why);
    }

    pub(super) fn given_up(&self) -> Option<String> {
        lock(&self.given_up).clone()
    }

    /// The pipeline was claimed anew: should the slot have to go, it is by this claim.
    pub(super) fn claimed(&self, store: &Store) {
        if let Some(owned) = &mut *lock(&self.owned) {
            owned.store = store.clone();
        }
    }

    /// The slot is not this pipeline's any more.
    pub(super) fn disown(&self) {
        *lock(&self.owned) = None;
    }

    pub(super) fn owned(&self) -> Option<Owned> {
        lock(&self.owned).clone()
    }

    /// Requests as an attempt found them.
    pub(super) fn know(&self, requests: Option<String>) {
        *lock(&self.requests) = requests;
    }

    /// A transaction could not be applied while it ran.
    pub(super) fn take_whole(&self, now: Instant) {
        *lock(&self.whole_since) = Some(now);
    }

    /// Whether transactions are to be taken when they have committed.
    pub(super) fn takes_whole(&self, now: Instant) -> bool {
        is_recent(&self.whole_since, now)
    }

    /// Values could not be applied in binary.
    pub(super) fn take_text(&self, now: Instant) {
        *lock(&self.text_since) = Some(now);
    }

    /// Whether values are to be taken as text.
    pub(super) fn takes_text(&self, now: Instant) -> bool {
        is_recent(&self.text_since, now)
    }

    /// Whether there are some, and others than the last attempt found.
    pub(super) fn are_news(&self, requests: Option<&String>) -> bool {
        requests.is_some() && requests != lock(&self.requests).as_ref()
    }
}

fn is_recent(since: &Mutex<Option<Instant>>, now: Instant) -> bool {
    let seconds = faults::limit("stream.whole_s", WHOLE_SECONDS);
    let lasts = Duration::from_secs(seconds.into());
    lock(since).is_some_and(|since| now < since + lasts)
}

/// Held for an assignment only.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_taken_whole_for_a_while() {
        let (memory, now) = (Memory::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(!memory.takes_whole(now));
        memory.take_whole(now);
        assert!(memory.takes_whole(now) && memory.takes_whole(later(599)));
        assert!(!memory.takes_whole(later(600)));
    }

    #[test]
    fn what_an_attempt_has_seen_is_no_news() {
        let memory = Memory::default();
        let some = "1 retry".to_owned();
        assert!(!memory.are_news(None));
        assert!(memory.are_news(Some(&some)));
        memory.know(Some(some.clone()));
        assert!(!memory.are_news(Some(&some)));
        assert!(memory.are_news(Some(&"1 skip".to_owned())));
        assert!(!memory.are_news(None), "carried out");
    }
}
