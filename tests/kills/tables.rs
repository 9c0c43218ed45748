//! The tables under load, and how both sides are compared.

use tokio_postgres::Client;

use crate::support::{digest, fetch_rows, row_differences};

pub const ACCOUNTS: u32 = 200;
/// What all balances always come to.
pub const TOTAL: i64 = 1_000 * ACCOUNTS as i64;
pub const WRITERS: u32 = 4;
pub const TICKETS: u32 = 50;
/// What a large transaction adds to `bulk`: so many rows, all of them `at` its counter.
pub const BULK_ROWS: i64 = 5_000;

/// `counters.n` of a writer is the number of its rows in `journal`, which has no key: a
/// transaction that came twice, half or not at all shows.
pub const CREATE: &str = "
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE journal (writer int, counter bigint);
CREATE TABLE counters (writer int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE moving (id bigint PRIMARY KEY, note text);
CREATE TABLE tickets (id int PRIMARY KEY, code text NOT NULL UNIQUE, seen int NOT NULL);
CREATE TABLE scratch (id bigserial PRIMARY KEY, note text);
CREATE TABLE bulk (writer int, at bigint, i int, filler text, PRIMARY KEY (writer, at, i));
CREATE TABLE ballast (id int PRIMARY KEY, filler text);
CREATE TABLE mark (id int PRIMARY KEY, n int NOT NULL);
";

/// The ballast makes the first copy last long enough to be killed.
pub const FILL: &str = "
INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, 200) i;
INSERT INTO counters SELECT i, 0 FROM generate_series(0, 3) i;
INSERT INTO tickets SELECT i, 'code ' || i, 0 FROM generate_series(1, 4 * 50) i;
INSERT INTO ballast SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 100000) i;
INSERT INTO mark VALUES (1, 0);
CREATE PUBLICATION pglockstep_it FOR ALL TABLES;
";

/// They may have been without their keys, and only what goes with the schema knew these.
pub const GONE: &str = "
DROP TABLE IF EXISTS accounts, journal, counters, moving, tickets, scratch, bulk, ballast, mark;
DROP SCHEMA IF EXISTS pglockstep CASCADE;
";

/// On the source. What only grows begins anew: readers count it, and in time would hardly look any more.
pub const FORGET: &str = "TRUNCATE journal, bulk; UPDATE counters SET n = 0";

pub const COMPARED: [&str; 9] = [
    "mark", "accounts", "journal", "counters", "moving", "tickets", "scratch", "bulk", "ballast",
];

/// Row by row, as multisets. The ballast, which only the copy has touched, by its hash.
pub async fn differences(source: &Client, replica: &Client, table: &str) -> Option<String> {
    let sql = format!("SELECT * FROM {table}");
    if table == "ballast" {
        let (from, to) = (digest(source, &sql).await, digest(replica, &sql).await);
        return (from != to).then(|| format!("{from:?} on the source, {to:?} on the replica"));
    }
    row_differences(
        &fetch_rows(source, &sql).await,
        &fetch_rows(replica, &sql).await,
    )
}
