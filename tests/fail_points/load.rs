//! A small load: a table whose rows would show what is lost, one that would show what comes
//! twice, and every now and then a transaction that is applied in parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// `counter.n` is the number of rows in `journal`, which has no key.
pub const CREATE: &str = "
CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE journal (n int, note text);
CREATE TABLE items (id int PRIMARY KEY, code text UNIQUE, note text);
";
pub const EMPTY: &str = "TRUNCATE counter, journal, items";
pub const FILL: &str = "
TRUNCATE counter, journal, items;
INSERT INTO counter VALUES (1, 0);
INSERT INTO items SELECT -i, 'code ' || -i, repeat('x', 50) FROM generate_series(1, 2000) i;
";
pub const COMPARED: [&str; 3] = [
    "SELECT * FROM counter",
    "SELECT * FROM journal",
    "SELECT * FROM items",
];
/// Every so many transactions one is large.
const LARGE_EVERY: u32 = 15;

/// Writes until told to stop.
pub struct Load {
    is_done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Load {
    pub fn start(client: tokio_postgres::Client) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_done);
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                client.batch_execute(&transaction(n)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            n
        });
        Self { is_done, task }
    }

    /// How many transactions there were.
    pub async fn stop(self) -> u32 {
        self.is_done.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn transaction(n: u32) -> String {
    let large = if n.is_multiple_of(LARGE_EVERY) {
        format!(
            "INSERT INTO items SELECT {n} * 1000 + i, NULL, 'large' FROM generate_series(1, 1500) i;"
        )
    } else {
        String::new()
    };
    format!(
        "BEGIN; UPDATE counter SET n = n + 1; INSERT INTO journal VALUES ({n}, 'note');
         INSERT INTO items VALUES ({n}, 'code ' || {n}, 'new');
         UPDATE items SET note = 'old' WHERE id = {n} - 3;
         UPDATE items SET id = -100000 - {n} WHERE id = {n} - 10;
         DELETE FROM items WHERE id = -100000 - {n} + 20; {large} COMMIT"
    )
}
