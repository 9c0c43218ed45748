//! Waiting for facts, never for time: a slow machine makes a test slow, not red.

use std::time::{Duration, Instant};

/// Far beyond what anything here takes; reached only when the fact never comes.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// Polls until `fact` yields something; panics with `what` and `evidence` otherwise.
pub async fn eventually<T>(
    what: &str,
    evidence: impl Fn() -> String,
    mut fact: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(WAIT_SECONDS_MAX);
    let mut pause = Duration::from_millis(5);
    loop {
        // A fact that hangs is a fact that does not come.
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.max(Duration::from_millis(1)), fact()).await {
            Ok(Some(value)) => return value,
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(pause).await,
            _ => panic!(
                "waited {WAIT_SECONDS_MAX} s in vain: {what}\n{}",
                evidence()
            ),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
