//! F: whole tables are renamed, dropped, rewritten; views are refreshed. None of it is a change of
//! rows.

use super::ground::{FILL, Ground, T, each};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(f3_tables_are_rewritten),
    case!(f9_a_schema_is_renamed_in_a_transaction, Each),
    case!(f11_a_table_is_dropped),
    case!(f25_vacuum_full_and_cluster, Each),
    case!(f26_materialized_views_are_refreshed),
];

/// A rewrite is no change of rows: nothing of it is sent, under whatever name it is done.
async fn f3_tables_are_rewritten(g: Ground<'_>) {
    let (s, daemon) = g.running(T, FILL).await;
    s.on_both("ALTER TABLE t ADD at timestamptz DEFAULT clock_timestamp()")
        .await;
    s.on_source("INSERT INTO t (id, v) VALUES (10, 'new')")
        .await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    // Each side has filled its old rows by itself; what is updated since is the source's.
    s.on_source("UPDATE t SET at = at").await;
    each(
        &s,
        &daemon,
        &[
            "ALTER TABLE t ALTER v TYPE varchar(100); UPDATE t SET v = v || '!' WHERE id < 4",
            "BEGIN; INSERT INTO t VALUES (11, 'x', now()); ALTER TABLE t ALTER id TYPE bigint;
             INSERT INTO t VALUES (12, 'y', now()); COMMIT",
            "DELETE FROM t WHERE id = 12",
        ],
    )
    .await;
}

/// The table goes by its new name from the first change on, in the same transaction.
async fn f9_a_schema_is_renamed_in_a_transaction(g: Ground<'_>) {
    let both = "CREATE SCHEMA one; CREATE TABLE one.t (id int PRIMARY KEY, v text)";
    let s = g.scenario().await;
    s.on_both(both).await;
    s.on_replica("CREATE SCHEMA two; CREATE TABLE two.t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO one.t VALUES (1, 'one')").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.on_source(
        "BEGIN; INSERT INTO one.t VALUES (2, 'one'); ALTER SCHEMA one RENAME TO two;
         INSERT INTO two.t VALUES (3, 'two'); COMMIT",
    )
    .await;
    s.on_source("UPDATE two.t SET v = v || '!' WHERE id < 3")
        .await;
    if g.source < 16 {
        // Until 15 the stream goes on under the old name; a new one is asked who is who.
        let old_name = ("SELECT * FROM two.t", "SELECT * FROM one.t");
        s.in_step_mapped(&daemon, &[old_name]).await;
        assert!(daemon.terminate().success());
        daemon = s.start("").await;
    }
    s.replica_eventually("SELECT count(*) FROM two.t", "3")
        .await;
    each(&s, &daemon, &["DELETE FROM two.t WHERE id = 1"]).await;
    // Another schema for the table alone.
    s.on_both("CREATE SCHEMA three").await;
    s.on_replica("CREATE TABLE three.t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("ALTER TABLE two.t SET SCHEMA three; INSERT INTO three.t VALUES (4, 'three')")
        .await;
    s.replica_eventually("SELECT count(*) FROM three.t", "3")
        .await;
    each(&s, &daemon, &["UPDATE three.t SET v = 'last'"]).await;
}

async fn f11_a_table_is_dropped(g: Ground<'_>) {
    let both =
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY, v text)";
    let (s, mut daemon) = g.running(both, "INSERT INTO t VALUES (1)").await;
    let other = ["SELECT * FROM other"];
    s.on_source(
        "BEGIN; INSERT INTO t VALUES (2); INSERT INTO other VALUES (1, 'x'); DROP TABLE t; COMMIT",
    )
    .await;
    s.in_step(&daemon, &other).await;
    s.on_source("INSERT INTO other VALUES (2, 'y')").await;
    s.in_step(&daemon, &other).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "2");
    assert!(daemon.terminate().success());
    let daemon = s.start("").await;
    s.on_source("UPDATE other SET v = 'z'").await;
    s.in_step(&daemon, &other).await;
}

async fn f25_vacuum_full_and_cluster(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE f (id int, v text)";
    let (s, daemon) = g.running(both, "ALTER TABLE f REPLICA IDENTITY FULL").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t SELECT g, repeat('x', 3000) || g FROM generate_series(1, 50) g; INSERT INTO f SELECT * FROM t",
            "DELETE FROM t WHERE id % 3 = 0; DELETE FROM f WHERE id % 3 = 0",
            "VACUUM FULL t",
            "VACUUM FULL f",
            "UPDATE t SET v = 'new' WHERE id % 2 = 0; UPDATE f SET v = 'new' WHERE id % 2 = 0",
            "CLUSTER t USING t_pkey",
            "REINDEX TABLE t",
            "UPDATE t SET id = id + 100 WHERE id < 10; DELETE FROM f WHERE id < 10",
        ],
    )
    .await;
}

async fn f26_materialized_views_are_refreshed(g: Ground<'_>) {
    let (s, daemon) = g.running(T, FILL).await;
    each(
        &s,
        &daemon,
        &[
            "CREATE MATERIALIZED VIEW mv AS SELECT id, v FROM t; CREATE UNIQUE INDEX ON mv (id)",
            "INSERT INTO t VALUES (10, 'x')",
            "REFRESH MATERIALIZED VIEW mv",
            "UPDATE t SET v = 'y' WHERE id = 10; DELETE FROM t WHERE id = 1",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY mv",
            "BEGIN; INSERT INTO t VALUES (11, 'z'); REFRESH MATERIALIZED VIEW mv; INSERT INTO t VALUES (12, 'z'); COMMIT",
            "DROP MATERIALIZED VIEW mv; DELETE FROM t WHERE id = 12",
        ],
    )
    .await;
}
