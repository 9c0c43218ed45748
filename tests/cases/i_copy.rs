//! I: the first copy, and where it meets the stream.

use super::ground::{Ground, each, hold_copy, release, until_held};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(i1_every_change_between_snapshot_and_copy, Crossing),
    case!(i3_the_exported_snapshot_dies),
    case!(i5_empty_dead_and_single_rows),
    case!(i7_ddl_while_a_table_is_copied),
];

/// The snapshot does not see them, and the stream brings each of them once.
async fn i1_every_change_between_snapshot_and_copy(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text); CREATE TABLE keyless (n int);
         CREATE TABLE f (a int, b text)",
    )
    .await;
    s.on_source(
        "ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE f REPLICA IDENTITY FULL;
         INSERT INTO t SELECT g, 'v', repeat('b', 3000) FROM generate_series(1, 50) g;
         INSERT INTO keyless VALUES (1), (1); INSERT INTO f SELECT g % 3, 'x' FROM generate_series(1, 9) g",
    )
    .await;
    let open = g.pair.source.connect(g.name).await.unwrap();
    let mut daemon = hold_copy(&s).await;
    // Begun while it copies, committed after.
    let begin = "BEGIN; INSERT INTO t VALUES (900, 'open', 'x'); DELETE FROM t WHERE id = 50";
    open.batch_execute(begin).await.unwrap();
    for sql in [
        "INSERT INTO t VALUES (100, 'new', NULL); INSERT INTO keyless VALUES (1), (2)",
        "UPDATE t SET v = 'changed' WHERE id < 5; UPDATE f SET b = 'y' WHERE a = 1",
        "UPDATE t SET id = id + 1000 WHERE id BETWEEN 10 AND 12",
        "DELETE FROM t WHERE id = 20; INSERT INTO t VALUES (20, 'again', repeat('c', 3000))",
        "DELETE FROM t WHERE id IN (21, 100); DELETE FROM f WHERE ctid = (SELECT min(ctid) FROM f)",
        "BEGIN; INSERT INTO t VALUES (300, 'gone', NULL); UPDATE t SET v = 'gone' WHERE id < 40; ROLLBACK",
        "UPDATE gated SET n = n + 1",
    ] {
        s.on_source(sql).await;
    }
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    s.until_state(&mut daemon, "streaming").await;
    open.batch_execute("UPDATE t SET v = 'open' WHERE id = 1; COMMIT")
        .await
        .unwrap();
    each(&s, &daemon, &["UPDATE t SET v = v || '!'"]).await;
}

/// Every session is cut: what was copied by the lost snapshot must not meet another's stream.
async fn i3_the_exported_snapshot_dies(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g")
        .await;
    let mut daemon = hold_copy(&s).await;
    for round in 0..2 {
        s.on_source("UPDATE t SET v = v || '+'; INSERT INTO t SELECT max(id) + 1, 'more' FROM t")
            .await;
        s.on_source(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        s.on_source(&format!("DELETE FROM t WHERE id = {round} + 1"))
            .await;
        until_held(&s, &daemon).await;
    }
    release(&s, &mut daemon).await;
    each(&s, &daemon, &["UPDATE t SET v = 'streamed' WHERE id > 40"]).await;
}

async fn i5_empty_dead_and_single_rows(g: Ground<'_>) {
    let both = "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE single (id int PRIMARY KEY, v text);
         CREATE TABLE dead (id int PRIMARY KEY, v text); CREATE TABLE sparse (id int PRIMARY KEY, v text)";
    let (s, daemon) = g
        .running(
            both,
            "INSERT INTO single VALUES (1, NULL);
             INSERT INTO dead SELECT g, repeat('x', 500) FROM generate_series(1, 500) g; DELETE FROM dead;
             INSERT INTO sparse SELECT g, repeat('x', 500) FROM generate_series(1, 500) g;
             DELETE FROM sparse WHERE id NOT IN (1, 250, 500); UPDATE sparse SET v = NULL WHERE id = 250",
        )
        .await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO empty VALUES (1); INSERT INTO dead VALUES (1, 'alive')",
            "DELETE FROM single; UPDATE sparse SET id = -id",
        ],
    )
    .await;
}

/// Its lock lets nobody change the table that is being copied; others may change before their turn.
async fn i7_ddl_while_a_table_is_copied(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE rewritten (id int PRIMARY KEY)",
    )
    .await;
    s.on_source("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g; INSERT INTO rewritten SELECT id FROM t")
        .await;
    let mut daemon = hold_copy(&s).await;
    let alter = "SET lock_timeout = '50ms'; ALTER TABLE gated ADD late int";
    let refused = s.source.batch_execute(alter).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "55P03", "{refused:?}");
    // Rewritten, the table looks empty to the snapshot.
    s.on_both("ALTER TABLE rewritten ALTER id TYPE bigint")
        .await;
    s.on_replica("ALTER TABLE t ADD late int DEFAULT 5").await;
    s.on_source("RESET lock_timeout; ALTER TABLE t ADD late int DEFAULT 5; UPDATE t SET late = id WHERE id < 9")
        .await;
    release(&s, &mut daemon).await;
    s.on_both("ALTER TABLE gated ADD late int").await;
    each(
        &s,
        &daemon,
        &["UPDATE gated SET late = 1", "INSERT INTO t VALUES (99)"],
    )
    .await;
}
