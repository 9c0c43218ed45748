//! What is hard for somebody who gathers changes: many tables, keys that change hands, no keys.

use super::{Workload, thousands, transactions};
use crate::arguments::Size;
use crate::contender::Contender;

/// Tables whose number is part of the name; a few hundred to a transaction.
fn numbered_tables(count: u32) -> String {
    format!(
        "DO $do$ BEGIN FOR n IN 1..{count} LOOP \
         EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, n int NOT NULL, note text)', n); \
         IF n % 500 = 0 THEN COMMIT; END IF; END LOOP; END $do$"
    )
}

/// Each transaction changes one to five rows, each of another table.
pub fn tables(size: Size) -> Workload {
    let tables = size.at_least(1_000, 20);
    let count = size.of(180_000);
    let title = format!(
        "{} tables, {} transactions of 1 to 5 rows",
        thousands(tables.into()),
        thousands(count.into())
    );
    Workload::new("tables", title)
        .at_least(1.0)
        .tables(numbered_tables(tables))
        .seed(format!(
            "DO $do$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('INSERT INTO t%s \
             SELECT i, i, ''row '' || i FROM generate_series(1, 20) AS i', n); END LOOP; END $do$"
        ))
        .backlog(transactions(
            count,
            &format!(
                "FOR k IN 0..t % 5 LOOP IF (t + k) % 2 = 0 THEN \
                 EXECUTE format('INSERT INTO t%s VALUES (%s, %s, ''new row'')', \
                 (t * 7 + k * 131) % {tables} + 1, 1000 + t * 5 + k, k); ELSE \
                 EXECUTE format('UPDATE t%s SET n = n + 1 WHERE id = %s', \
                 (t * 7 + k * 131) % {tables} + 1, t % 20 + 1); END IF; END LOOP;"
            ),
        ))
}

/// Unique keys that swap, keys that change, tables that are emptied, work that is taken back.
pub fn adversarial(size: Size) -> Workload {
    let count = size.at_least(90_000, 400);
    let title = format!(
        "adversarial mix: swaps, key changes, truncates, savepoints, {} transactions",
        thousands(count.into())
    );
    Workload::new("adversarial", title)
        .at_least(1.0)
        .tables(
            "CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE, note text); \
             CREATE TABLE moving (id int PRIMARY KEY, note text NOT NULL); \
             CREATE TABLE scratch (id int PRIMARY KEY, n int NOT NULL)",
        )
        .seed(
            "INSERT INTO seat SELECT i, i, 'seat ' || i FROM generate_series(1, 1000) AS i; \
             INSERT INTO moving SELECT i, 'row ' || i FROM generate_series(1, 1000) AS i",
        )
        .backlog(transactions(
            count,
            "CASE t % 5 \
             WHEN 0, 4 THEN \
               DECLARE p int; q int; BEGIN \
                 SELECT place INTO p FROM seat WHERE id = t % 999 + 1; \
                 SELECT place INTO q FROM seat WHERE id = t % 999 + 2; \
                 UPDATE seat SET place = -1 WHERE id = t % 999 + 1; \
                 UPDATE seat SET place = p WHERE id = t % 999 + 2; \
                 UPDATE seat SET place = q, note = 'swapped by ' || t WHERE id = t % 999 + 1; \
               END; \
               IF t % 200 = 199 THEN TRUNCATE scratch; END IF; \
             WHEN 1 THEN \
               UPDATE moving SET id = -id WHERE id BETWEEN t % 997 + 1 AND t % 997 + 3; \
               UPDATE moving SET id = -id, note = 'moved by ' || t WHERE id < 0; \
               UPDATE moving SET id = 100000 + t WHERE id = (SELECT min(id) FROM moving); \
             WHEN 2 THEN \
               INSERT INTO scratch SELECT t * 10 + i, i FROM generate_series(1, 5) AS i; \
               BEGIN \
                 INSERT INTO scratch SELECT t * 10 + i, i FROM generate_series(6, 9) AS i; \
                 RAISE division_by_zero; \
               EXCEPTION WHEN division_by_zero THEN NULL; END; \
             ELSE \
               DELETE FROM moving WHERE id = t % 1000 + 1; \
               INSERT INTO moving VALUES (t % 1000 + 1, 'again by ' || t); \
             END CASE;",
        ))
}

/// Rows that are found by all their columns.
pub fn full_identity(size: Size) -> Workload {
    let rows = size.at_least(100_000, 2_000);
    let count = size.at_least(500, 20);
    let title = format!(
        "REPLICA IDENTITY FULL without a key, {} rows, {} updates and deletes in 10-row transactions",
        thousands(rows.into()),
        thousands(u64::from(count) * 10)
    );
    Workload::new("full-identity", title)
        .at_least(20.0)
        .tables(
            "CREATE TABLE log (at timestamptz NOT NULL, kind int NOT NULL, who text, what text NOT NULL); \
             ALTER TABLE log REPLICA IDENTITY FULL",
        )
        .seed(format!(
            "INSERT INTO log SELECT '2024-01-01 00:00+00'::timestamptz + i * interval '1 second', i % 100, \
             'person ' || i % 1000, 'what was done by number ' || i FROM generate_series(1, {rows}) AS i"
        ))
        .backlog(transactions(
            count,
            &format!(
                "UPDATE log SET kind = kind + 1 WHERE what = ANY (ARRAY(SELECT 'what was done by number ' || \
                 ((t * 10 + i)::bigint * 7919 % {rows} + 1) FROM generate_series(1, 7) AS i)); \
                 DELETE FROM log WHERE what = ANY (ARRAY(SELECT 'what was done by number ' || \
                 ((t * 10 + i)::bigint * 7919 % {rows} + 1) FROM generate_series(8, 10) AS i));"
            ),
        ))
}

/// A start with nothing to do but to look at very many tables.
pub fn startup(size: Size) -> Workload {
    let tables = size.at_least(10_000, 50);
    let title = format!("start with {} tables, one change", thousands(tables.into()));
    let workload = Workload::new("startup", title).tables(numbered_tables(tables));
    Workload {
        contenders: vec![Contender::Native, Contender::Ours],
        ..workload
    }
}
