//! Single transactions, each far larger than memory is allowed to be.

use super::{Workload, thousands};
use crate::arguments::Size;
use crate::contender::Contender;

/// Nine mixed columns.
const TABLE: &str = "CREATE TABLE wide (id bigint PRIMARY KEY, kind int NOT NULL, amount numeric(12, 2), \
     name text, made timestamptz, is_open boolean, token uuid, doc jsonb, ratio float8)";

fn fill(rows: u32) -> String {
    format!(
        "INSERT INTO wide SELECT i, i % 1000, (i % 99991) / 7.0, 'row number ' || i, \
         '2024-01-01 00:00+00'::timestamptz + i * interval '1 second', i % 3 = 0, \
         md5(i::text)::uuid, jsonb_build_object('n', i, 'tags', ARRAY['a', 'b'], 'ok', true), i / 3.0 \
         FROM generate_series(1, {rows}) AS i"
    )
}

pub fn insert(size: Size) -> Workload {
    let rows = size.of(1_000_000);
    let title = format!("one transaction, {} inserts", thousands(rows.into()));
    Workload::new("insert-large", title)
        .at_least(1.4)
        .tables(TABLE)
        .backlog(fill(rows))
}

pub fn update(size: Size) -> Workload {
    let rows = size.of(500_000);
    let title = format!("one transaction, {} updates by key", thousands(rows.into()));
    Workload::new("update-large", title)
        .at_least(2.0)
        .tables(TABLE)
        .seed(fill(rows))
        .backlog("UPDATE wide SET amount = amount + 1, name = name || '.', is_open = NOT is_open")
}

pub fn delete(size: Size) -> Workload {
    let rows = size.of(500_000);
    let title = format!("one transaction, {} deletes by key", thousands(rows.into()));
    Workload::new("delete-large", title)
        .at_least(2.0)
        .tables(TABLE)
        .seed(fill(rows))
        .backlog("DELETE FROM wide")
}

/// The daemon alone: how much memory it takes.
pub fn memory(size: Size) -> Workload {
    let rows = size.of(10_000_000);
    let title = format!(
        "one transaction, {} inserts, for memory",
        thousands(rows.into())
    );
    let workload = Workload::new("memory", title)
        .tables("CREATE TABLE many (id bigint PRIMARY KEY, kind int NOT NULL, name text)")
        .backlog(format!(
            "INSERT INTO many SELECT i, i % 1000, 'row number ' || i FROM generate_series(1, {rows}) AS i"
        ));
    Workload {
        contenders: vec![Contender::Ours],
        is_once: true,
        ..workload
    }
}
