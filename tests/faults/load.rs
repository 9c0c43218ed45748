//! A few dozen transactions a second on the source, whatever happens to it, and what both sides
//! must then have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Daemon, Scenario, eventually};

/// The journal has no key: what comes twice shows in it, what is lost in both.
const TABLES: &str = "CREATE TABLE journal (n int, v text);
     CREATE TABLE t (id int PRIMARY KEY, v text, filler text)";
const ALL: [&str; 2] = ["SELECT * FROM journal", "SELECT * FROM t"];

/// Tables on both sides, `rows` of them on the source, all published.
pub async fn prepare(s: &Scenario<'_>, rows: u32) {
    s.on_both(TABLES).await;
    s.on_source(&format!(
        "INSERT INTO t SELECT -g, 'old', repeat(md5(g::text), 8) FROM generate_series(1, {rows}) g"
    ))
    .await;
    s.publish_all().await;
}

/// Writes until told to stop, over every loss of its connection.
pub struct Load {
    ends: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    /// By a way of its own to the source.
    pub fn start(s: &Scenario<'_>) -> Self {
        let (ends, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let task = tokio::spawn(write(
            s.pair.source.url(&s.name),
            Arc::clone(&ends),
            Arc::clone(&written),
        ));
        Self {
            ends,
            written,
            task,
        }
    }

    /// Transactions that were committed, as far as the load knows.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until `more` have been written from now on.
    pub async fn writes(&self, more: u64) {
        let wanted = self.written() + more;
        eventually("the load to write", String::new, async || {
            (self.written() >= wanted).then_some(())
        })
        .await;
    }

    /// Ends it, waits until all is applied, and compares both sides row by row.
    pub async fn compare(self, s: &Scenario<'_>, daemon: &Daemon) {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        assert!(
            self.written.load(Ordering::Relaxed) > 0,
            "nothing was written"
        );
        s.in_step(daemon, &ALL).await;
    }
}

async fn write(url: String, ends: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let mut n = 0;
    while !ends.load(Ordering::Relaxed) {
        let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
        let Ok((client, connection)) = connected else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(connection);
        while !ends.load(Ordering::Relaxed) {
            n += 1;
            let sql = format!(
                "BEGIN; INSERT INTO journal VALUES ({n}, 'new'); INSERT INTO t VALUES ({n}, 'new');
                 UPDATE t SET v = v || '.' WHERE id IN ({n} - 5, -{n}); DELETE FROM t WHERE id = {n} - 50; COMMIT"
            );
            if client.batch_execute(&sql).await.is_err() {
                break;
            }
            written.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A daemon that streams what a load writes.
pub async fn under_load(s: &Scenario<'_>) -> (Daemon, Load) {
    let daemon = s.start("").await;
    let load = Load::start(s);
    is_fed(s, &daemon).await;
    (daemon, load)
}

/// It is fed from now on, and not only found as it was.
pub async fn is_fed(s: &Scenario<'_>, daemon: &Daemon) {
    let sql = "SELECT coalesce(max(n), 0) FROM journal";
    let last: i64 = s.one(sql).await.parse().unwrap();
    let evidence = || format!("{}\n{}", daemon.stderr(), s.pair.logs());
    eventually("the replica to be fed", evidence, async || {
        (s.replica_one(sql).await.parse::<i64>().ok()? > last).then_some(())
    })
    .await;
}

/// How often a session with this side was made again.
pub async fn reconnects(daemon: &Daemon, side: &str) -> f64 {
    let sample = format!("pglockstep_reconnects_total{{side=\"{side}\"}}");
    daemon.metric(&sample).await.unwrap()
}

/// Waits until a session with this side was made again, more often than `before`.
pub async fn reconnected(daemon: &Daemon, side: &str, before: f64) {
    let evidence = || format!("{side}: {}", daemon.stderr());
    eventually("a reconnect", evidence, async || {
        (reconnects(daemon, side).await > before).then_some(())
    })
    .await;
}
