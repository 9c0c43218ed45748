//! What happens to networks, servers and accounts: nothing is lost, nothing comes twice, and
//! what is the matter can be seen while it lasts.
//!
//! ```text
//!  load ─▶ source ◀─ proxy ─ daemon ─ proxy ─▶ replica
//!                      └── faults, seeded ──┘
//! ```

mod accounts;
mod certificates;
mod disks;
mod load;
mod many_tables;
mod network;
mod poolers;
mod probe;
pub mod proxy;
mod refusals;
mod servers;
mod shutdown;

use crate::support::{Daemon, eventually, samples};

/// Errors of a category, of any severity.
async fn errors(daemon: &Daemon, category: &str) -> f64 {
    let of = format!("category=\"{category}\"");
    let all = samples(daemon, "pglockstep_errors_total").await;
    all.iter()
        .filter(|(labels, _)| labels.contains(&of))
        .map(|(_, count)| count)
        .sum()
}

/// It is tried again as a matter of course, and nobody has to come.
async fn assert_not_failed(daemon: &Daemon) {
    let failed = daemon.metric("pglockstep_state{state=\"failed\"}").await;
    assert_eq!(failed, Some(0.0), "{}", daemon.stderr());
    assert_eq!(daemon.http_get("/health").await.unwrap().status, 200);
    assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 503);
}

/// The last error as every endpoint shows it.
async fn last_error(daemon: &Daemon) -> String {
    let body = daemon
        .http_get("/healthz")
        .await
        .map(|healthz| healthz.body);
    body.unwrap_or_default()
}

/// Waits until the daemon shows these words on `/healthz`.
async fn says(daemon: &Daemon, words: &str) {
    let evidence = || format!("{words:?} in: {}", daemon.stderr());
    eventually("its words", evidence, async || {
        last_error(daemon).await.contains(words).then_some(())
    })
    .await;
}
