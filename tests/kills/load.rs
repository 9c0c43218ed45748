//! Four writers on the source. When it goes away they wait until it is back.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::tables::{ACCOUNTS, BULK_ROWS, TICKETS, WRITERS};
use crate::support::Random;

pub struct Load {
    writers: Vec<JoinHandle<()>>,
    ends: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Load {
    pub fn start(source_url: &str, random: &mut Random) -> Self {
        let (ends, written) = (Arc::default(), Arc::default());
        let writers = (0..WRITERS).map(|writer| {
            let writer = Writer {
                writer,
                url: source_url.to_owned(),
                random: Random::new(random.next()),
                ends: Arc::clone(&ends),
                written: Arc::clone(&written),
            };
            tokio::spawn(writer.run())
        });
        Self {
            writers: writers.collect(),
            ends: Arc::clone(&ends),
            written: Arc::clone(&written),
        }
    }

    /// Lets every writer finish its transaction; returns how many were committed.
    pub async fn stop(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        self.written.load(Ordering::Relaxed)
    }
}

struct Writer {
    writer: u32,
    url: String,
    random: Random,
    ends: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self) {
        while !self.ends.load(Ordering::Relaxed) {
            if let Some(client) = connect(&self.url).await {
                self.write_until_lost(&client).await;
            }
        }
    }

    async fn write_until_lost(&mut self, client: &Client) {
        while !self.ends.load(Ordering::Relaxed) {
            let sql = self.transaction();
            match client.batch_execute(&sql).await {
                Ok(()) => {
                    self.written.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_lost(&error) => return,
                Err(error) => panic!("{error:?}\n{sql}"),
            }
            tokio::time::sleep(Duration::from_millis(self.random.below(5).into())).await;
        }
    }

    /// Each counts itself; what else it does is drawn.
    fn transaction(&mut self) -> String {
        let writer = self.writer;
        let mut sql = format!(
            "BEGIN; UPDATE counters SET n = n + 1 WHERE writer = {writer}; \
             INSERT INTO journal SELECT writer, n FROM counters WHERE writer = {writer};"
        );
        match self.random.below(400) {
            0 => self.many_rows(&mut sql),
            1..4 => self.empty_scratch(&mut sql),
            4..40 => self.swap_tickets(&mut sql),
            40..160 => self.move_rows(&mut sql),
            _ => self.transfer(&mut sql),
        }
        sql + " COMMIT"
    }

    fn transfer(&mut self, sql: &mut String) {
        let amount = self.random.below(100);
        let (a, b) = (self.account(), self.account());
        if a != b {
            // In the order of their ids, so that no two writers wait for each other.
            let (low, high) = (a.min(b), a.max(b));
            let _ = write!(
                sql,
                "UPDATE accounts SET balance = balance - {amount} WHERE id = {low}; \
                 UPDATE accounts SET balance = balance + {amount} WHERE id = {high};"
            );
        }
    }

    /// New keys, changed keys, deletes; each writer within its own rows.
    fn move_rows(&mut self, sql: &mut String) {
        let (id, to) = (self.own_id(), self.own_id());
        let _ = write!(
            sql,
            "INSERT INTO moving VALUES ({id}, 'new') ON CONFLICT (id) DO UPDATE SET note = 'again'; \
             DELETE FROM moving WHERE id = {to} AND id <> {id}; \
             UPDATE moving SET id = {to}, note = note || '.' WHERE id = {id}; \
             DELETE FROM moving WHERE length(note) > 20 AND id % {WRITERS} = {};",
            self.writer
        );
    }

    /// Two rows exchange a unique value; set by set, that cannot be done.
    fn swap_tickets(&mut self, sql: &mut String) {
        let writer = self.writer;
        let (a, b) = (self.ticket(), self.ticket());
        if a != b {
            let _ = write!(
                sql,
                "UPDATE tickets SET code = 'swapped {writer} ' || code WHERE id IN ({a}, {b}); \
                 UPDATE tickets t SET code = 'kept ' || o.code, seen = t.seen + 1 FROM tickets o \
                 WHERE t.id IN ({a}, {b}) AND o.id IN ({a}, {b}) AND o.id <> t.id; \
                 UPDATE tickets SET code = right(code, 8) WHERE id IN ({a}, {b});"
            );
        }
    }

    fn empty_scratch(&mut self, sql: &mut String) {
        sql.push_str(
            "LOCK TABLE scratch; INSERT INTO scratch (note) SELECT 'before' FROM generate_series(1, 5); \
             TRUNCATE scratch; INSERT INTO scratch (note) SELECT 'after' FROM generate_series(1, 7);",
        );
    }

    fn many_rows(&mut self, sql: &mut String) {
        let writer = self.writer;
        let _ = write!(
            sql,
            "DELETE FROM bulk WHERE writer = {writer} AND at % 2 = 0; \
             INSERT INTO bulk SELECT {writer}, c.n, i, 'row ' || i FROM counters c, \
             generate_series(1, {BULK_ROWS}) i WHERE c.writer = {writer};"
        );
    }

    fn account(&mut self) -> u32 {
        1 + self.random.below(ACCOUNTS)
    }

    fn own_id(&mut self) -> u32 {
        self.random.below(300) * WRITERS + self.writer
    }

    fn ticket(&mut self) -> u32 {
        1 + self.writer * TICKETS + self.random.below(TICKETS)
    }
}

/// `None` while the server does not answer; then a moment has passed.
pub async fn connect(url: &str) -> Option<Client> {
    match tokio_postgres::connect(url, NoTls).await {
        Ok((client, connection)) => {
            // Its end is seen by whoever uses the client.
            tokio::spawn(async move { drop(connection.await) });
            Some(client)
        }
        Err(_) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// The server has gone, is going or is coming; anything else is the test's own mistake.
pub fn is_lost(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        return true;
    };
    [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
    ]
    .contains(code)
}
