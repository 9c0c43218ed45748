//! Many small transactions.

use super::{Step, Workload, thousands, transactions};
use crate::arguments::Size;

const ROWS_OF_A_TRANSACTION: u32 = 25;

pub fn insert25(size: Size) -> Workload {
    let count = size.of(1_500_000 / ROWS_OF_A_TRANSACTION);
    let rows = u64::from(count * ROWS_OF_A_TRANSACTION);
    let title = format!("25-row insert transactions, {} rows", thousands(rows));
    Workload::new("insert25", title)
        .at_least(1.4)
        .tables(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, \
             amount numeric(12, 2) NOT NULL, note text, doc jsonb, made timestamptz NOT NULL)",
        )
        .backlog(transactions(
            count,
            "INSERT INTO orders SELECT i, i % 5000, (i % 99991) / 7.0, 'order number ' || i, \
             jsonb_build_object('n', i, 'tags', ARRAY['a', 'b'], 'ok', true), \
             '2024-01-01 00:00+00'::timestamptz + i * interval '1 second' \
             FROM generate_series((t - 1) * 25 + 1, t * 25) AS i;",
        ))
}

pub fn insert1(size: Size) -> Workload {
    let count = size.of(600_000);
    let title = format!("1-row insert transactions, {}", thousands(count.into()));
    Workload::new("insert1", title)
        .at_least(1.6)
        .tables(
            "CREATE TABLE event (id bigint PRIMARY KEY, kind int NOT NULL, note text NOT NULL, \
             made timestamptz NOT NULL)",
        )
        .backlog(transactions(
            count,
            "INSERT INTO event VALUES (t, t % 100, 'event number ' || t, clock_timestamp());",
        ))
}

/// As `pgbench -i` makes them, so that pgbench's own script runs on them.
pub fn tpcb(size: Size) -> Workload {
    const CLIENTS: u32 = 4;
    let scale = size.of(20);
    let transactions = size.of(50_000);
    let total = u64::from(CLIENTS * transactions);
    let title = format!(
        "TPC-B by pgbench, scale {scale}, {} transactions",
        thousands(total)
    );
    let mut workload = Workload::new("tpcb", title)
        .at_least(2.5)
        .tables(
            "CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88)); \
             CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84)); \
             CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84)); \
             CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, \
             filler char(22))",
        )
        .seed(format!(
            "INSERT INTO pgbench_branches SELECT i, 0 FROM generate_series(1, {scale}) AS i; \
             INSERT INTO pgbench_tellers SELECT i, (i - 1) / 10 + 1, 0 \
             FROM generate_series(1, {scale} * 10) AS i; \
             INSERT INTO pgbench_accounts SELECT i, (i - 1) / 100000 + 1, 0, '' \
             FROM generate_series(1, {scale} * 100000) AS i"
        ));
    workload.backlog.push(Step::Pgbench {
        clients: CLIENTS,
        transactions,
    });
    workload
}
