//! A table without a key that is written all the time: what comes twice shows in it, what is lost
//! in the other table. For the stories of what ends, goes away and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Family, Scenario, eventually};

/// One pair of clusters for all of these stories.
static FAMILY: Family = Family::const_new();

const TABLES: &str =
    "CREATE TABLE counter (n int, v text); CREATE TABLE t (id int PRIMARY KEY, v text);";

/// Both tables, to be compared.
pub const ALL: [&str; 2] = ["SELECT * FROM counter", "SELECT * FROM t"];

/// The tables on both sides, the row that counts, all published.
pub async fn with_counter(s: &Scenario<'_>) {
    s.on_both(TABLES).await;
    s.on_source(
        "ALTER TABLE counter REPLICA IDENTITY FULL; INSERT INTO counter VALUES (0, 'counter')",
    )
    .await;
    s.publish_all().await;
}

/// As `with_counter`, in databases of this name.
pub async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    with_counter(&s).await;
    s
}

/// Writes until told to stop, over every loss of its connection.
pub struct Load {
    is_done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Load {
    pub fn start(url: String) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_done);
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let Ok((client, connection)) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await
                else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                tokio::spawn(connection);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let sql = format!(
                        "BEGIN; UPDATE counter SET n = n + 1 WHERE v = 'counter'; INSERT INTO counter VALUES ({n}, 'new');
                         INSERT INTO t VALUES ({n}, 'new'); UPDATE t SET v = 'old' WHERE id = {n} - 5;
                         DELETE FROM t WHERE id = {n} - 50; COMMIT"
                    );
                    if client.batch_execute(&sql).await.is_err() {
                        break;
                    }
                    // The counter's row is found among all of its table, on the replica too.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            n
        });
        Self { is_done, task }
    }

    /// How many transactions it tried.
    pub async fn stop(self) -> u32 {
        self.is_done.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// It is fed from now on, and not only found as it was.
pub async fn counter_goes_on(s: &Scenario<'_>, by: i64) {
    let now = "SELECT coalesce(max(n), 0) FROM counter";
    let n: i64 = s.replica_one(now).await.parse().unwrap();
    counter_reaches(s, n + by).await;
}

/// Waits until the replica has counted beyond `n`.
pub async fn counter_reaches(s: &Scenario<'_>, n: i64) {
    let sql = "SELECT n FROM counter WHERE v = 'counter'";
    eventually(
        "the counter to move on",
        || s.pair.logs(),
        async || (s.replica_one(sql).await.parse::<i64>().ok()? > n).then_some(()),
    )
    .await;
}
