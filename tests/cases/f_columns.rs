//! F: columns come, go and change their names, between transactions and within one. The stream
//! describes each shape where it begins; the replica's tables are changed by hand, before or when
//! the pipeline asks for it.

use rustix::process::Signal;

use super::ground::{FILL, Ground, T, at_once, each, fails_until, same};
use super::runner::{Case, case};
use crate::support::row;

pub const CASES: &[Case] = &[
    case!(f1_a_column_the_replica_lacks),
    case!(f2_values_that_no_row_holds, Crossing),
    case!(f4_columns_are_dropped_one_after_the_other),
    case!(f6_a_column_is_renamed),
    case!(f7_two_columns_swap_their_names),
    case!(f19_a_column_that_is_gone_when_it_is_read),
    case!(f20_changes_of_shape_within_a_transaction, Crossing),
    case!(f21_changes_of_shape_that_are_undone, Each),
    case!(f27_other_orders_and_holes),
];

async fn f1_a_column_the_replica_lacks(g: Ground<'_>) {
    let (s, mut daemon) = g.running(T, FILL).await;
    fails_until(
        &s,
        &mut daemon,
        (
            "BEGIN; UPDATE t SET v = 'before' WHERE id = 1; ALTER TABLE t ADD late int;
             UPDATE t SET late = 2 WHERE id = 2; COMMIT",
            &["public.t", "no column late", "add it"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t ADD late int",
    )
    .await;
}

/// A constant default of a new column is in the catalogue, not in the rows.
async fn f2_values_that_no_row_holds(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE f (id int, v text)";
    let (s, mut daemon) = g.running(both, "ALTER TABLE f REPLICA IDENTITY FULL").await;
    let add = "ALTER TABLE t ADD a int DEFAULT 7, ADD b text NOT NULL DEFAULT 'dflt', ADD c timestamptz DEFAULT '2024-01-01';
               ALTER TABLE f ADD a int DEFAULT 7, ADD b text NOT NULL DEFAULT 'dflt', ADD c timestamptz DEFAULT '2024-01-01'";
    each(&s, &daemon, &[FILL, "INSERT INTO f SELECT * FROM t"]).await;
    s.on_replica(add).await;
    let statements = [
        "UPDATE t SET v = 'touched' WHERE id = 1; UPDATE f SET v = 'touched' WHERE id = 1",
        "UPDATE t SET id = 20 WHERE id = 2; UPDATE f SET id = 20 WHERE id = 2",
        "UPDATE t SET a = NULL WHERE id = 3; UPDATE f SET a = NULL WHERE id = 3",
        "DELETE FROM t WHERE id = 4; DELETE FROM f WHERE id = 4",
        "ALTER TABLE t ALTER a SET DEFAULT 8; ALTER TABLE f ALTER a SET DEFAULT 8",
        "INSERT INTO t VALUES (30); INSERT INTO f VALUES (30)",
        "UPDATE t SET v = 'all'; UPDATE f SET v = 'all'",
    ];
    s.on_source(add).await;
    at_once(&s, &mut daemon, &statements[..4]).await;
    each(&s, &daemon, &statements[4..]).await;
}

async fn f4_columns_are_dropped_one_after_the_other(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, a int, b int, v text, c int)";
    let (s, mut daemon) = g
        .running(
            both,
            "INSERT INTO t SELECT g, g, g, 'v', g FROM generate_series(1, 5) g",
        )
        .await;
    daemon.signal(Signal::STOP);
    for sql in [
        "UPDATE t SET a = 10, b = 10, c = 10 WHERE id = 1",
        "ALTER TABLE t DROP a",
        "ALTER TABLE t DROP b",
        "UPDATE t SET v = 'new', c = 11 WHERE id < 3",
        "ALTER TABLE t DROP c",
        "INSERT INTO t VALUES (6, 'later')",
        "DELETE FROM t WHERE id = 5",
    ] {
        s.on_source(sql).await;
    }
    daemon.signal(Signal::CONT);
    // What the source no longer has stays on the replica as it was last.
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    assert_eq!(
        s.replica_rows("SELECT id, a, b, c FROM t WHERE id IN (1, 2, 4, 6)")
            .await,
        [
            row(["1", "10", "10", "11"]),
            row(["2", "2", "2", "11"]),
            row(["4", "4", "4", "4"]),
            row(["6", "NULL", "NULL", "NULL"])
        ]
    );
    s.on_replica("ALTER TABLE t DROP a, DROP b, DROP c").await;
    each(&s, &daemon, &["UPDATE t SET v = 'last'"]).await;
}

async fn f6_a_column_is_renamed(g: Ground<'_>) {
    let (s, mut daemon) = g.running(T, FILL).await;
    let kept = "SELECT id FROM t";
    fails_until(
        &s,
        &mut daemon,
        (
            "ALTER TABLE t RENAME v TO w; INSERT INTO t VALUES (10, 'renamed')",
            &["public.t", "no column w"],
            kept,
        ),
        "ALTER TABLE t RENAME v TO w",
    )
    .await;
    fails_until(
        &s,
        &mut daemon,
        (
            "ALTER TABLE t RENAME id TO key; UPDATE t SET w = 'by its new name' WHERE key < 3",
            &["public.t", "no column key"],
            kept,
        ),
        "ALTER TABLE t RENAME id TO key",
    )
    .await;
}

async fn f7_two_columns_swap_their_names(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, a text, b text)";
    let (s, mut daemon) = g
        .running(
            both,
            "INSERT INTO t SELECT g, 'a', 'b' FROM generate_series(1, 4) g",
        )
        .await;
    let swap = "BEGIN; ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b; COMMIT";
    daemon.signal(Signal::STOP);
    for sql in [
        "UPDATE t SET a = 'a1' WHERE id = 1",
        swap,
        "UPDATE t SET a = 'a2' WHERE id = 2",
        "INSERT INTO t (id, a, b) VALUES (5, 'a5', 'b5')",
    ] {
        s.on_source(sql).await;
    }
    daemon.signal(Signal::CONT);
    s.caught_up(&daemon).await;
    // By name; the rows that nobody touched since are the operator's to swap.
    assert_eq!(
        s.replica_rows("SELECT id, a, b FROM t").await,
        [
            row(["1", "a1", "b"]),
            row(["2", "a2", "a"]),
            row(["3", "a", "b"]),
            row(["4", "a", "b"]),
            row(["5", "a5", "b5"])
        ]
    );
    s.on_source("UPDATE t SET a = a").await;
    same(&s, &daemon).await;
}

/// Read long after it was written, the catalogue of the source knows nothing of it.
async fn f19_a_column_that_is_gone_when_it_is_read(g: Ground<'_>) {
    let (s, mut daemon) = g.running(T, FILL).await;
    s.on_replica("ALTER TABLE t ADD x int, ADD y text").await;
    daemon.signal(Signal::STOP);
    for sql in [
        "ALTER TABLE t ADD x int",
        "UPDATE t SET x = 1, v = 'x' WHERE id = 1",
        "ALTER TABLE t DROP x",
        "ALTER TABLE t ADD y text",
        "ALTER TABLE t ADD unseen text",
        "ALTER TABLE t DROP unseen",
        "UPDATE t SET y = 'y' WHERE id IN (1, 2)",
    ] {
        s.on_source(sql).await;
    }
    daemon.signal(Signal::CONT);
    s.in_step(&daemon, &["SELECT id, v, y FROM t"]).await;
    assert_eq!(
        s.replica_rows("SELECT id, x FROM t WHERE x IS NOT NULL")
            .await,
        [row(["1", "1"])]
    );
}

async fn f20_changes_of_shape_within_a_transaction(g: Ground<'_>) {
    let (s, daemon) = g.running(T, FILL).await;
    s.on_replica(
        "ALTER TABLE t ADD a int, ADD b text DEFAULT 'd'; CREATE TABLE made (id int PRIMARY KEY)",
    )
    .await;
    s.on_source(
        "BEGIN; INSERT INTO t VALUES (10, 'first shape'); ALTER TABLE t ADD a int;
         INSERT INTO t VALUES (11, 'second', 11); UPDATE t SET a = 1 WHERE id = 1;
         ALTER TABLE t DROP v; INSERT INTO t VALUES (12, 12);
         ALTER TABLE t ADD v text DEFAULT 'again', ADD b text DEFAULT 'd';
         UPDATE t SET v = v || '!', a = 2; DELETE FROM t WHERE id = 9; COMMIT",
    )
    .await;
    same(&s, &daemon).await;
    s.on_source("BEGIN; CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1); INSERT INTO t VALUES (13); COMMIT")
        .await;
    s.replica_eventually("SELECT count(*) FROM made", "1").await;
    each(&s, &daemon, &["INSERT INTO made VALUES (2)"]).await;
}

async fn f21_changes_of_shape_that_are_undone(g: Ground<'_>) {
    g.follows(
        T,
        &[
            FILL,
            "BEGIN; SAVEPOINT a; ALTER TABLE t ADD gone int; INSERT INTO t VALUES (10, 'gone', 1); ROLLBACK TO a;
             INSERT INTO t VALUES (10, 'kept'); COMMIT",
            "BEGIN; INSERT INTO t VALUES (11, 'kept'); SAVEPOINT a; ALTER TABLE t DROP v; UPDATE t SET id = 99 WHERE id = 1;
             SAVEPOINT b; ALTER TABLE t ADD v int; INSERT INTO t VALUES (12, 5); ROLLBACK TO a;
             UPDATE t SET v = 'new' WHERE id = 11; COMMIT",
            "BEGIN; ALTER TABLE t RENAME TO gone; INSERT INTO gone VALUES (13, 'gone'); ROLLBACK",
            "BEGIN; SAVEPOINT a; CREATE TABLE made (id int); INSERT INTO made VALUES (1); ROLLBACK TO a;
             DELETE FROM t WHERE id = 1; COMMIT",
        ],
    )
    .await;
}

async fn f27_other_orders_and_holes(g: Ground<'_>) {
    let source = "CREATE TABLE t (gone int, id int PRIMARY KEY, a text, hole int, b int, c text);
         INSERT INTO t SELECT g, g, 'a', g, g, 'c' FROM generate_series(1, 5) g;
         ALTER TABLE t DROP gone, DROP hole; INSERT INTO t VALUES (6, 'a', 6, 'c')";
    let replica = "CREATE TABLE t (c text, x int, b int, y text, a text, id int PRIMARY KEY);
         ALTER TABLE t DROP x, DROP y";
    let (s, mut daemon) = g.running_unlike(source, replica).await;
    let statements = [
        "INSERT INTO t VALUES (7, 'a7', 7, 'c7')",
        "UPDATE t SET a = c, c = a WHERE id < 3",
        "UPDATE t SET id = id + 10, b = NULL WHERE id = 3",
        "DELETE FROM t WHERE id = 7",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET id = 3 WHERE id = 13")
        .await;
    at_once(&s, &mut daemon, &statements).await;
}
