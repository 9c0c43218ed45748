//! G: partitions, inheritance, and what is no ordinary table.

use super::ground::{Ground, each};
use super::runner::{Case, case};
use crate::support::{Scenario, row, run_verb};

pub const CASES: &[Case] = &[
    case!(g1_rows_move_between_partitions, Crossing),
    case!(g3_partitions_come_and_go, Each),
    case!(g6_several_levels_under_one_root),
    case!(g7_several_ancestors_are_published),
    case!(g8_a_partition_with_an_identity_of_its_own),
    case!(g9_another_layout_on_the_replica),
    case!(g11_what_is_no_ordinary_table),
];

const P: &str =
    "CREATE TABLE p (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
     CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (10);
     CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (10) TO (100);";

/// By their leaves and by their root; a row that moves is deleted here and inserted there.
async fn g1_rows_move_between_partitions(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(P).await;
    s.on_both(&P.replace("TABLE p", "TABLE q").replace("OF p", "OF q"))
        .await;
    s.on_source("INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 40) g; INSERT INTO q SELECT * FROM p")
        .await;
    s.publish("FOR TABLE p, q WITH (publish_via_partition_root)")
        .await;
    let mut daemon = s.start("").await;
    let statements = [
        "UPDATE p SET day = day + 10, v = 'up' WHERE day < 5; UPDATE q SET day = day + 10, v = 'up' WHERE day < 5",
        "UPDATE p SET v = 'new' WHERE id % 2 = 0; DELETE FROM q WHERE id % 7 = 0",
        "BEGIN; UPDATE p SET day = 1 WHERE id = 30; UPDATE p SET day = 50, v = 'back' WHERE id = 30; COMMIT",
        "INSERT INTO p SELECT g, g % 20, 'more' FROM generate_series(101, 120) g ON CONFLICT (id, day) DO UPDATE SET v = 'upsert'",
    ];
    each(&s, &daemon, &statements).await;
    assert!(daemon.terminate().success());
    s.on_source(&format!(
        "TRUNCATE p, q; INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 40) g; INSERT INTO q SELECT * FROM p;
         ALTER PUBLICATION {} SET (publish_via_partition_root = false)",
        s.slot()
    ))
    .await;
    let daemon = s.start("[copy]\nexisting_rows = \"truncate\"").await;
    each(&s, &daemon, &statements).await;
}

/// A new leaf is followed; the rows of one that is attached were never in the stream.
async fn g3_partitions_come_and_go(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(P).await;
    s.on_replica("CREATE TABLE p (id int, day int, v text, PRIMARY KEY (id, day))")
        .await;
    s.publish("FOR TABLE p WITH (publish_via_partition_root)")
        .await;
    let daemon = s.start("").await;
    let same = ("SELECT * FROM p", "SELECT * FROM p");
    let statements = [
        "INSERT INTO p VALUES (1, 1, 'v'), (2, 20, 'v')",
        "CREATE TABLE p_new PARTITION OF p FOR VALUES FROM (100) TO (200); INSERT INTO p VALUES (3, 150, 'new leaf')",
        "UPDATE p SET day = 160 WHERE id = 1",
        "BEGIN; CREATE TABLE p_other (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION p_other FOR VALUES FROM (200) TO (300);
         INSERT INTO p VALUES (4, 250, 'attached empty'); UPDATE p SET v = 'changed' WHERE id IN (3, 4); COMMIT",
        "DELETE FROM p WHERE id = 3",
    ];
    s.each_mapped(&daemon, &statements, same).await;
    // Detached, its rows stay on the replica; its changes are no longer ours. 14 goes on to send
    // them under the root's name for as long as the stream lasts.
    if g.source < 15 {
        return;
    }
    s.on_source("ALTER TABLE p DETACH PARTITION p_high").await;
    s.on_source("UPDATE p_high SET v = 'gone its way'").await;
    s.on_source("INSERT INTO p VALUES (5, 5, 'after')").await;
    s.in_step_mapped(
        &daemon,
        &[(
            "SELECT id, day, v FROM p UNION ALL SELECT 2, 20, 'v'",
            "SELECT * FROM p",
        )],
    )
    .await;
}

async fn g6_several_levels_under_one_root(g: Ground<'_>) {
    let both = "CREATE TABLE p (id int, day int, v text) PARTITION BY RANGE (day);
         CREATE TABLE low PARTITION OF p FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id);
         CREATE TABLE low_odd (v text, day int, id int);
         ALTER TABLE low ATTACH PARTITION low_odd FOR VALUES IN (1, 3, 5);
         CREATE TABLE low_rest PARTITION OF low DEFAULT;
         CREATE TABLE high (gone int, id int, v text, day int);
         ALTER TABLE high DROP gone;
         ALTER TABLE p ATTACH PARTITION high DEFAULT";
    let full = "ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE low REPLICA IDENTITY FULL;
         ALTER TABLE low_odd REPLICA IDENTITY FULL; ALTER TABLE low_rest REPLICA IDENTITY FULL;
         ALTER TABLE high REPLICA IDENTITY FULL";
    for (name, how) in [("root", "true"), ("leaves", "false")] {
        let s = if name == "root" {
            let s = g.scenario().await;
            s.on_both(both).await;
            s.on_source(full).await;
            s
        } else {
            Scenario::again(g.pair, g.name).await
        };
        s.on_source(&format!(
            "DROP PUBLICATION IF EXISTS {0}; CREATE PUBLICATION {0} FOR TABLE p WITH (publish_via_partition_root = {how})",
            s.slot()
        ))
        .await;
        let mut daemon = s.start("").await;
        each(
            &s,
            &daemon,
            &[
                "INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 30) g",
                "UPDATE p SET v = 'new' WHERE id IN (1, 2, 15)",
                "UPDATE p SET day = 19 - day WHERE id < 8",
                "UPDATE p SET id = id + 1 WHERE day < 10",
                "DELETE FROM p WHERE id % 5 = 0",
                "TRUNCATE p",
            ],
        )
        .await;
        assert!(daemon.terminate().success());
        let config = s.config("");
        let torn_down = run_verb(&config, &["teardown", "--yes"]);
        assert!(torn_down.status.success(), "{torn_down:?}");
    }
}

/// The topmost one that is published is what the stream speaks of.
async fn g7_several_ancestors_are_published(g: Ground<'_>) {
    let both = "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE mid PARTITION OF p FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
         CREATE TABLE leaf PARTITION OF mid FOR VALUES FROM (0) TO (50);
         CREATE TABLE beside PARTITION OF p DEFAULT";
    let s = g.scenario().await;
    s.on_both(both).await;
    s.publish("FOR TABLE leaf, mid, p WITH (publish_via_partition_root)")
        .await;
    let daemon = s.start("").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO p VALUES (1, 'leaf'), (200, 'beside')",
            "INSERT INTO mid VALUES (2, 'by mid'); INSERT INTO leaf VALUES (3, 'by leaf')",
            "UPDATE leaf SET v = v || '!'; UPDATE mid SET id = id + 10 WHERE id = 2",
            "UPDATE p SET id = 300 WHERE id = 1",
            "DELETE FROM mid",
        ],
    )
    .await;
}

async fn g8_a_partition_with_an_identity_of_its_own(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(P).await;
    s.on_source("ALTER TABLE p_low REPLICA IDENTITY FULL").await;
    s.publish("FOR TABLE p").await;
    let daemon = s.start("").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 30) g",
            "UPDATE p SET v = 'new' WHERE id < 15",
            "UPDATE p SET day = 19 - day WHERE id > 20",
            "UPDATE p SET id = id + 100 WHERE id % 3 = 0",
            "DELETE FROM p WHERE id % 5 = 0",
        ],
    )
    .await;
}

/// Other bounds, other partition key, a BRIN index; a row may change its partition only there.
async fn g9_another_layout_on_the_replica(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(P).await;
    s.on_replica(
        "CREATE TABLE p (v text, id int, day int, PRIMARY KEY (id, day)) PARTITION BY LIST (id);
         CREATE TABLE p_few PARTITION OF p FOR VALUES IN (1, 2, 3, 101);
         CREATE TABLE p_rest PARTITION OF p DEFAULT; CREATE INDEX ON p USING brin (day)",
    )
    .await;
    s.on_source("INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 30) g")
        .await;
    s.publish("FOR TABLE p WITH (publish_via_partition_root)")
        .await;
    let daemon = s.start("").await;
    let statements = [
        "UPDATE p SET v = 'new'",
        "UPDATE p SET id = id + 100 WHERE id < 5",
        "UPDATE p SET id = 3 WHERE id = 103",
        "DELETE FROM p WHERE day = 7",
        "TRUNCATE p",
        "INSERT INTO p VALUES (1, 1, 'again'), (9, 9, 'again')",
    ];
    s.each_mapped(
        &daemon,
        &statements,
        ("SELECT v, id, day FROM p", "SELECT * FROM p"),
    )
    .await;
}

async fn g11_what_is_no_ordinary_table(g: Ground<'_>) {
    let (s, daemon) = g
        .running(
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); CREATE SEQUENCE seq;
             CREATE VIEW view AS SELECT * FROM t; CREATE MATERIALIZED VIEW mat AS SELECT * FROM t;
             CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE FOREIGN TABLE far (id int) SERVER files OPTIONS (filename '/dev/null')",
        )
        .await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES (1, 'x'); INSERT INTO unlogged VALUES (1); SELECT nextval('seq')",
            "CREATE TEMP TABLE temp (id int); INSERT INTO temp VALUES (1); INSERT INTO t SELECT id + 1, 'y' FROM temp",
            "INSERT INTO view VALUES (3, 'through a view'); TRUNCATE unlogged, temp; REFRESH MATERIALIZED VIEW mat",
            "UPDATE t SET v = 'z'; DELETE FROM unlogged",
        ],
    )
    .await;
    let tables = "SELECT string_agg(source_table, ',') FROM pglockstep.tables";
    assert_eq!(s.replica_rows(tables).await, [row(["t"])]);
}
