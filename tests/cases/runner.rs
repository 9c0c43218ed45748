//! Which cases run where, a few at a time; and what is told of those that fail.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use pglockstep::demo::cluster::ClusterOptions;

use super::ground::Ground;
use crate::support::{Pair, PairOptions, eventually, is_soak};

/// Each has a daemon and a few sessions.
const AT_ONCE: usize = 6;

/// Far beyond what any takes; a case that waits for itself is to fail, not to hang.
const CASE_SECONDS_MAX: Duration = Duration::from_secs(120);

/// One case of the catalogue.
#[derive(Debug)]
pub struct Case {
    /// The function's name, which begins with the id.
    pub name: &'static str,
    /// The first major version that has what it needs, on both sides.
    pub since: u32,
    pub on: Majors,
    pub run: for<'a> fn(Ground<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

/// Where a case runs unless all are to run everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Majors {
    /// On 15 and on the newest.
    Ends,
    /// On each: it speaks of the stream, or of what a version has.
    Each,
    /// On each, and from the oldest to the newest and back.
    Crossing,
}

/// `case!(a1_name)`, `case!(a1_name, Each)`, `case!(a1_name, Each, since 18)`.
macro_rules! case {
    ($name:ident) => {
        case!($name, Ends, since 14)
    };
    ($name:ident, $on:ident) => {
        case!($name, $on, since 14)
    };
    ($name:ident, $on:ident, since $since:literal) => {
        $crate::cases::runner::Case {
            name: stringify!($name),
            since: $since,
            on: $crate::cases::runner::Majors::$on,
            run: |ground| Box::pin($name(ground)),
        }
    };
}
pub(super) use case;

impl Case {
    /// `A4` of `a4_keys_swap`.
    pub fn id(&self) -> String {
        let (id, _) = self.name.split_once('_').unwrap();
        id.to_uppercase()
    }

    /// A pipeline's name has at most 40 characters.
    pub fn database(&self) -> &'static str {
        &self.name[..self.name.len().min(40)]
    }

    fn runs(&self, source: u32, replica: u32, is_soak: bool) -> bool {
        if source.min(replica) < self.since {
            return false;
        }
        let is_crossing = source != replica;
        is_soak
            || match self.on {
                Majors::Ends => !is_crossing && matches!(source, 15 | 18),
                Majors::Each => !is_crossing,
                Majors::Crossing => true,
            }
    }
}

/// Whether the environment asks for this case.
fn is_asked_for(case: &Case) -> bool {
    let Ok(asked) = std::env::var("PGLOCKSTEP_CASES") else {
        return true;
    };
    asked.split(',').any(|start| case.name.starts_with(start))
}

/// Runs what belongs on these versions; panics with all that failed.
pub async fn run(source: u32, replica: u32) {
    let is_soak = is_soak();
    let mut cases = super::all();
    cases.retain(|case| case.runs(source, replica, is_soak) && is_asked_for(case));
    if cases.is_empty() {
        return;
    }
    let pair = &pair(source, replica).await;
    let mut failed: Vec<String> = stream::iter(&cases)
        .map(|case| async move {
            let ground = Ground {
                pair,
                name: case.database(),
                source,
                replica,
            };
            let limited = tokio::time::timeout(CASE_SECONDS_MAX, (case.run)(ground));
            let run = AssertUnwindSafe(async { limited.await.expect("it hangs") });
            let run = run.catch_unwind().await;
            drop_slots(pair, case.database()).await;
            let panic = run.err()?;
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Some(format!(
                "{} from {source} to {replica}: {}\n{}",
                case.id(),
                case.name,
                text.unwrap_or("it panicked")
            ))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |failure| failure)
        .collect()
        .await;
    failed.sort();
    assert!(
        failed.is_empty(),
        "{} of {} cases failed:\n\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n\n")
    );
}

pub async fn pair(source: u32, replica: u32) -> Pair {
    let options = |major| {
        ClusterOptions::version(major)
            .with("max_connections", "200")
            .with("max_replication_slots", "120")
            .with("max_wal_senders", "20")
            .with("max_prepared_transactions", "20")
            // Transactions are spilled to disk, or streamed where that is asked for.
            .with("logical_decoding_work_mem", "64kB")
    };
    Pair::start_with(PairOptions {
        source: options(source),
        replica: options(replica),
    })
    .await
}

/// What a case leaves behind would keep the log of all the later ones.
async fn drop_slots(pair: &Pair, database: &str) {
    let gone = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                WHERE database = current_database()";
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                WHERE database = current_database()";
    let source = &pair.source;
    let evidence = || source.log_tail(10);
    eventually("its slots to go", evidence, async || {
        // A case that failed early has made no database.
        let Ok(client) = source.connect(database).await else {
            return Some(());
        };
        let _ = client.batch_execute(gone).await;
        client.batch_execute(drop).await.ok()
    })
    .await;
}
