//! What must hold at every moment: readers of the replica see a prefix of the source's
//! commits, and the slot never confirms more than the replica has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pglockstep::pg::Lsn;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::load::{connect, is_lost};
use super::oracle::{Look, at_writer};
use super::tables::{BULK_ROWS, TOTAL, WRITERS};

type Lost = tokio_postgres::Error;

/// A task that looks again and again until it is told to stop, and counts its looks.
struct Looks<T> {
    task: JoinHandle<T>,
    ends: Arc<AtomicBool>,
}

impl<T> Looks<T> {
    async fn stop(self) -> T {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Two sessions that read the replica at REPEATABLE READ.
pub struct Readers(Vec<Looks<Vec<Vec<Look>>>>);

impl Readers {
    pub fn start(replica_url: &str) -> Self {
        let reader = || {
            let ends: Arc<AtomicBool> = Arc::default();
            let task = tokio::spawn(read(replica_url.to_owned(), Arc::clone(&ends)));
            Looks { task, ends }
        };
        Self(vec![reader(), reader()])
    }

    /// What each session saw, in its order. A replica that crashes forgets commits that its disk
    /// did not have yet, and gets them again: the next session may begin earlier.
    pub async fn stop(self) -> Vec<Vec<Look>> {
        let mut seen = Vec::new();
        for reader in self.0 {
            seen.extend(reader.stop().await);
        }
        seen
    }
}

async fn read(url: String, ends: Arc<AtomicBool>) -> Vec<Vec<Look>> {
    let mut sessions = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let Some(client) = connect(&url).await else {
            continue;
        };
        let mut seen = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            match read_once(&client, seen.last().copied().unwrap_or_default()).await {
                Ok(look) => seen.extend(look),
                Err(error) if is_lost(&error) => break,
                Err(error) => panic!("{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sessions.push(seen);
    }
    sessions
}

/// The newest large transaction of each writer. Its rows are counted when it is seen first; later
/// only another one takes any of them away, and that one the counters tell.
const NEWEST_BULK: &str = "\
    SELECT c.writer, newest.at, CASE WHEN newest.at IS DISTINCT FROM ($1::int8[])[c.writer + 1] THEN \
    (SELECT count(*) FROM bulk b WHERE b.writer = c.writer AND b.at = newest.at) END \
    FROM counters c, LATERAL (SELECT b.at FROM bulk b WHERE b.writer = c.writer ORDER BY b.at DESC LIMIT 1) newest";

/// Checks one snapshot; `None` while the first copy is not over, when nothing is promised yet.
async fn read_once(client: &Client, before: Look) -> Result<Option<Look>, Lost> {
    let exists = "SELECT to_regclass('pglockstep.tables') IS NOT NULL";
    if !client.query_one(exists, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let in_step = "SELECT count(*) > 0 AND bool_and(t.state = 'copied' AND p.applied_lsn >= t.copied_lsn) \
         FROM pglockstep.tables t JOIN pglockstep.pipelines p ON p.name = t.pipeline";
    let is_in_step = client
        .query_one(in_step, &[])
        .await?
        .get::<_, Option<bool>>(0)
        == Some(true);
    let mut look = None;
    if is_in_step {
        let balances = client
            .query_one("SELECT sum(balance)::int8 FROM accounts", &[])
            .await?;
        assert_eq!(
            balances.get::<_, Option<i64>>(0),
            Some(TOTAL),
            "not a prefix"
        );
        let journal = client
            .query(
                "SELECT c.writer, c.n, count(j), count(DISTINCT j.counter), coalesce(max(j.counter), 0) \
                 FROM counters c LEFT JOIN journal j USING (writer) GROUP BY 1, 2",
                &[],
            )
            .await?;
        assert_eq!(journal.len(), WRITERS as usize);
        let seen = look.insert(Look::default());
        for row in journal {
            let writer = at_writer(&row);
            let figures: [i64; 4] = [row.get(1), row.get(2), row.get(3), row.get(4)];
            let [n, rows, distinct, last] = figures;
            seen.counters[writer] = n;
            assert!(
                rows == n && distinct == n && last == n,
                "writer {writer}: {n} transactions, {rows} rows, {distinct} different, the last {last}"
            );
        }
        for row in client
            .query(NEWEST_BULK, &[&before.bulk.as_slice()])
            .await?
        {
            let writer = at_writer(&row);
            let (at, counted): (i64, Option<i64>) = (row.get(1), row.get(2));
            seen.bulk[writer] = at;
            assert!(
                counted.is_none_or(|rows| rows == BULK_ROWS),
                "writer {writer}: {counted:?} of {BULK_ROWS} rows of its transaction {at}"
            );
        }
    }
    client.batch_execute("COMMIT").await?;
    Ok(look)
}

/// Compares what the slot has confirmed with what the replica has, 20 times a second.
pub struct Watcher(Looks<u64>);

impl Watcher {
    pub fn start(source_url: &str, replica_url: &str) -> Self {
        let ends: Arc<AtomicBool> = Arc::default();
        let (source, replica) = (source_url.to_owned(), replica_url.to_owned());
        let task = tokio::spawn(watch(source, replica, Arc::clone(&ends)));
        Self(Looks { task, ends })
    }

    /// Whether it has seen what must not be.
    pub fn has_ended(&self) -> bool {
        self.0.task.is_finished()
    }

    /// How many pairs were compared.
    pub async fn stop(self) -> u64 {
        self.0.stop().await
    }
}

async fn watch(source_url: String, replica_url: String, ends: Arc<AtomicBool>) -> u64 {
    let mut compared = 0;
    // The most that was ever confirmed: the source may forget it in a crash, the replica must not.
    let mut confirmed_max = None;
    while !ends.load(Ordering::Relaxed) {
        let (Some(source), Some(replica)) =
            (connect(&source_url).await, connect(&replica_url).await)
        else {
            continue;
        };
        while !ends.load(Ordering::Relaxed) {
            match compare(&source, &replica, &mut confirmed_max).await {
                Ok(was_compared) => compared += u64::from(was_compared),
                Err(error) if is_lost(&error) => break,
                Err(error) => panic!("{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    compared
}

async fn compare(
    source: &Client,
    replica: &Client,
    confirmed_max: &mut Option<Lsn>,
) -> Result<bool, Lost> {
    // The source first: what is confirmed now must be applied by the time the replica is asked.
    let sql =
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'pglockstep_it'";
    let confirmed = source.query_opt(sql, &[]).await?;
    *confirmed_max = confirmed
        .and_then(|row| row.get::<_, Option<Lsn>>(0))
        .max(*confirmed_max);
    let exists = "SELECT to_regclass('pglockstep.pipelines') IS NOT NULL";
    if !replica.query_one(exists, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let applied = replica
        .query_opt("SELECT applied_lsn FROM pglockstep.pipelines", &[])
        .await?
        .and_then(|row| row.get::<_, Option<Lsn>>(0));
    // No position is stored before the slot is made.
    if applied.is_none() || confirmed_max.is_none() {
        return Ok(false);
    }
    assert!(
        *confirmed_max <= applied,
        "the slot has confirmed {confirmed_max:?}, and the replica has {applied:?}"
    );
    Ok(true)
}
