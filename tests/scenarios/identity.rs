//! How rows are found: each replica identity, keys that move, values that were not sent.

use rustix::process::Signal;

use crate::support::{Daemon, Family, Scenario, fetch_rows, row};

static FAMILY: Family = Family::const_new();

const ALL: &str = "SELECT * FROM t";

/// The same table on both sides, `identity` on the source, a running pipeline.
async fn with(name: &str, table: &str, identity: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(table).await;
    s.on_source(identity).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    (s, daemon)
}

/// Each statement alone, then the comparison.
async fn each(s: &Scenario<'_>, daemon: &Daemon, statements: &[&str]) {
    for sql in statements {
        s.on_source(sql).await;
        s.in_step(daemon, &[ALL]).await;
    }
}

/// All of them while the daemon stands still: it gets them in one batch.
async fn at_once(s: &Scenario<'_>, daemon: &mut Daemon, statements: &[impl AsRef<str>]) {
    daemon.signal(Signal::STOP);
    for sql in statements {
        s.on_source(sql.as_ref()).await;
    }
    daemon.signal(Signal::CONT);
    s.in_step(daemon, &[ALL]).await;
}

const CHANGES: [&str; 9] = [
    "INSERT INTO t SELECT g, g % 4, 'v' || g, repeat('toast', 2000) FROM generate_series(1, 40) g",
    "UPDATE t SET v = 'new' WHERE a < 10",
    "UPDATE t SET big = repeat('other', 2000) WHERE a = 11",
    "UPDATE t SET a = a + 100 WHERE a BETWEEN 20 AND 25",
    "UPDATE t SET a = a + 1000, b = 9, v = NULL WHERE a = 26",
    "UPDATE t SET big = NULL WHERE a = 12",
    "UPDATE t SET v = 'again' WHERE a IN (11, 12, 120)",
    "DELETE FROM t WHERE a IN (1, 11, 121)",
    "BEGIN; UPDATE t SET v = '1' WHERE a = 13; UPDATE t SET big = 'small' WHERE a = 13;
     UPDATE t SET v = '2' WHERE a = 13; UPDATE t SET a = 2013 WHERE a = 13;
     UPDATE t SET v = '3' WHERE a = 2013; COMMIT",
];

#[tokio::test]
async fn every_identity_with_every_change() {
    let table = "CREATE TABLE t (a int NOT NULL, b int NOT NULL, v text, big text);
                 ALTER TABLE t ALTER big SET STORAGE EXTERNAL;";
    for (name, key, identity) in [
        ("default", "ALTER TABLE t ADD PRIMARY KEY (a)", ""),
        ("two_columns", "ALTER TABLE t ADD PRIMARY KEY (b, a)", ""),
        (
            "by_index",
            "ALTER TABLE t ADD PRIMARY KEY (b, a); CREATE UNIQUE INDEX other ON t (a)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX other",
        ),
        (
            "index_only",
            "CREATE UNIQUE INDEX other ON t (a)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX other",
        ),
        (
            "full_with_key",
            "ALTER TABLE t ADD PRIMARY KEY (a)",
            "ALTER TABLE t REPLICA IDENTITY FULL",
        ),
        ("full_keyless", "", "ALTER TABLE t REPLICA IDENTITY FULL"),
    ] {
        let (s, daemon) = with(name, &format!("{table}{key}"), identity).await;
        each(&s, &daemon, &CHANGES).await;
        assert_eq!(
            s.replica_one("SELECT count(*) FROM t").await,
            "37",
            "{name}"
        );
    }
}

#[tokio::test]
async fn toasted_keys_are_found() {
    let table = "CREATE TABLE t (k text PRIMARY KEY, n int, big text);
                 ALTER TABLE t ALTER k SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL";
    for (name, identity) in [
        ("toast_key", ""),
        ("toast_key_full", "ALTER TABLE t REPLICA IDENTITY FULL"),
    ] {
        let (s, daemon) = with(name, table, identity).await;
        // As long as an index allows, and together long enough to be put out of line.
        each(&s, &daemon, &[
            "INSERT INTO t SELECT g || repeat('k', 2500), g, repeat('b', 5000) FROM generate_series(1, 9) g",
            "UPDATE t SET n = n + 1",
            "UPDATE t SET k = 'x' || k WHERE n = 3",
            "UPDATE t SET k = 'short', n = 0 WHERE n = 4",
            "UPDATE t SET big = 'short' WHERE n = 5",
            "DELETE FROM t WHERE n = 6",
        ])
        .await;
    }
}

#[tokio::test]
async fn without_an_identity_only_inserts_come() {
    let (s, daemon) = with("nothing", "CREATE TABLE t (a int, v text)", "").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
            "INSERT INTO t SELECT * FROM t",
            "TRUNCATE t",
            "INSERT INTO t VALUES (2, 'y')",
        ],
    )
    .await;
    // The source itself refuses what could not be followed.
    let refused = s
        .source
        .batch_execute("UPDATE t SET v = 'z'")
        .await
        .unwrap_err();
    assert!(
        refused
            .as_db_error()
            .unwrap()
            .message()
            .contains("replica identity")
    );
    // With a key on the replica alone, inserts come all the same.
    let (s, daemon) = with(
        "nothing_keyed",
        "CREATE TABLE t (a int PRIMARY KEY, v text)",
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
    )
    .await;
    each(&s, &daemon, &["INSERT INTO t VALUES (1, 'x'), (2, 'y')"]).await;
}

#[tokio::test]
async fn of_equal_rows_exactly_one_changes() {
    // Types without an equality, and equalities that are not identity.
    let table =
        "CREATE TABLE t (n numeric, j json, p point, b box, f float8, x xml, c char(4), v text)";
    let (s, mut daemon) = with("duplicates", table, "ALTER TABLE t REPLICA IDENTITY FULL").await;
    let one = "UPDATE t SET v = v || '+' WHERE ctid = (SELECT min(ctid) FROM t WHERE ";
    let statements = [
        "INSERT INTO t SELECT 1.0, '{\"a\":1}', '(1,2)', '(1,1),(0,0)', 'NaN', '<a/>', 'c', 'v' FROM generate_series(1, 5)".to_owned(),
        "INSERT INTO t SELECT 1.00, '{\"a\": 1}', '(1,2)', '(2,0.5),(0,0)', '-0', '<a></a>', 'c ', 'v' FROM generate_series(1, 5)".to_owned(),
        "INSERT INTO t SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM generate_series(1, 4)".to_owned(),
        format!("{one} n::text = '1.0')"),
        format!("{one} n::text = '1.00')"),
        "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t WHERE n::text = '1.00')".to_owned(),
        "DELETE FROM t WHERE ctid = (SELECT max(ctid) FROM t WHERE n IS NULL)".to_owned(),
        "UPDATE t SET n = 5 WHERE ctid = (SELECT max(ctid) FROM t WHERE n IS NULL)".to_owned(),
        "UPDATE t SET n = n + 1".to_owned(),
        "UPDATE t SET v = v".to_owned(),
    ];
    for sql in &statements {
        s.on_source(sql).await;
        s.in_step(&daemon, &[ALL]).await;
    }
    at_once(&s, &mut daemon, &statements).await;
}

#[tokio::test]
async fn keys_are_swapped() {
    // A deferrable key cannot identify rows on the source: its whole rows are logged.
    let table = "CREATE TABLE t (id int, v text, PRIMARY KEY (id) DEFERRABLE)";
    let (s, daemon) = with("swap_keys", table, "ALTER TABLE t REPLICA IDENTITY FULL").await;
    each(&s, &daemon, &[
        "INSERT INTO t SELECT g, g FROM generate_series(1, 20) g",
        "UPDATE t SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2)",
        "UPDATE t SET id = CASE id WHEN 3 THEN 4 WHEN 4 THEN 5 ELSE 3 END, v = v || '!' WHERE id IN (3, 4, 5)",
        "UPDATE t SET id = id + 1",
        "UPDATE t SET id = id - 1",
        "UPDATE t SET id = 21 - id",
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE t SET id = 7 WHERE id = 8; UPDATE t SET v = 'both' WHERE id = 7;
         DELETE FROM t WHERE id = 7 AND ctid = (SELECT max(ctid) FROM t WHERE id = 7); COMMIT",
    ])
    .await;
    // With a key that identifies, the source must go by a third value, and so do we.
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let (s, mut daemon) = with("rotate_keys", table, "").await;
    let rotate = "BEGIN; UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2;
                  UPDATE t SET id = 2 WHERE id = -1; COMMIT";
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t SELECT g, g FROM generate_series(1, 9) g",
            rotate,
        ],
    )
    .await;
    each(
        &s,
        &daemon,
        &[
            "UPDATE t SET id = id + 1 WHERE id = 9",
            "UPDATE t SET id = -id",
        ],
    )
    .await;
    daemon.signal(Signal::STOP);
    s.on_source("UPDATE t SET id = -id").await;
    for _ in 0..5 {
        s.on_source(rotate).await;
        s.on_source("DELETE FROM t WHERE id = 5; UPDATE t SET id = 5 WHERE id = 6; INSERT INTO t VALUES (6, 'new')")
            .await;
    }
    daemon.signal(Signal::CONT);
    s.in_step(&daemon, &[ALL]).await;
}

#[tokio::test]
async fn unique_values_move_between_rows() {
    let table =
        "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE, w int UNIQUE, v text)";
    let (s, mut daemon) = with("unique", table, "").await;
    let statements = [
        "INSERT INTO t SELECT g, g, g, 'v' FROM generate_series(1, 20) g",
        "UPDATE t SET u = 21 - u",
        "UPDATE t SET u = u + 1",
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE t SET u = 3 WHERE id = 5; UPDATE t SET u = -5 WHERE u = 3 AND id <> 5; COMMIT",
        "BEGIN; DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (70, 700, 7, 'took 7'); COMMIT",
        "BEGIN; UPDATE t SET w = NULL WHERE id = 8; UPDATE t SET w = 8 WHERE id = 9; UPDATE t SET w = 9 WHERE id = 8; COMMIT",
        "BEGIN; UPDATE t SET w = -10 WHERE id = 10; INSERT INTO t VALUES (71, 710, 10, 'took 10'); COMMIT",
        "BEGIN; DELETE FROM t WHERE id = 11; UPDATE t SET w = 11 WHERE id = 12; INSERT INTO t VALUES (11, 110, 12, 'back'); COMMIT",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("TRUNCATE t").await;
    at_once(&s, &mut daemon, &statements).await;
    let conflicts = crate::support::samples(&daemon, "pglockstep_conflicts_total").await;
    assert_eq!(conflicts.values().sum::<f64>(), 0.0, "{conflicts:?}");
}

#[tokio::test]
async fn values_that_were_not_sent_are_kept() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, n int, big text, more text);
                 ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL";
    for (name, identity) in [
        ("unsent", ""),
        ("unsent_full", "ALTER TABLE t REPLICA IDENTITY FULL"),
    ] {
        let (s, mut daemon) = with(name, table, identity).await;
        let statements = [
            "INSERT INTO t SELECT g, 0, g || repeat('b', 9000), g || repeat('m', 9000) FROM generate_series(1, 12) g",
            "UPDATE t SET n = 1 WHERE id < 4",
            "UPDATE t SET big = 'short' WHERE id = 2",
            "UPDATE t SET more = NULL, n = 2 WHERE id IN (2, 3)",
            "UPDATE t SET id = id + 100 WHERE id IN (4, 5)",
            "UPDATE t SET id = id + 100, big = repeat('n', 9000) WHERE id IN (6, 7)",
            // Merged: the first is the only one to say what `big` is.
            "BEGIN; UPDATE t SET big = repeat('1', 9000) WHERE id = 8; UPDATE t SET n = 8 WHERE id = 8;
             UPDATE t SET more = repeat('2', 9000) WHERE id = 8; UPDATE t SET n = 9 WHERE id = 8; COMMIT",
            "BEGIN; INSERT INTO t VALUES (20, 0, repeat('x', 9000), repeat('y', 9000)); UPDATE t SET n = 1 WHERE id = 20;
             UPDATE t SET more = 'z' WHERE id = 20; COMMIT",
            "BEGIN; DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (9, 0, repeat('q', 9000), NULL);
             UPDATE t SET n = 5 WHERE id = 9; COMMIT",
            "BEGIN; UPDATE t SET big = repeat('3', 9000) WHERE id = 10; UPDATE t SET id = 110 WHERE id = 10;
             UPDATE t SET n = 7 WHERE id = 110; UPDATE t SET id = 10 WHERE id = 110; COMMIT",
        ];
        each(&s, &daemon, &statements).await;
        s.on_source("TRUNCATE t").await;
        at_once(&s, &mut daemon, &statements).await;
    }
}

#[tokio::test]
async fn an_identity_changes_under_way() {
    let table = "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, v text); CREATE UNIQUE INDEX by_b ON t (b)";
    let (s, mut daemon) = with(
        "switched",
        table,
        "INSERT INTO t SELECT g, -g, 'x' FROM generate_series(1, 20) g",
    )
    .await;
    s.in_step(&daemon, &[ALL]).await;
    let statements = [
        "UPDATE t SET v = 'default', a = a + 100 WHERE a = 1",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "UPDATE t SET v = 'full', a = a + 100 WHERE a = 2; DELETE FROM t WHERE a = 3",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX by_b",
        "UPDATE t SET v = 'index', a = a + 100, b = b - 100 WHERE a = 4; DELETE FROM t WHERE a = 5",
        "ALTER TABLE t REPLICA IDENTITY NOTHING",
        "INSERT INTO t VALUES (60, 60, 'nothing')",
        "BEGIN; INSERT INTO t VALUES (61, 61, 'nothing'); ALTER TABLE t REPLICA IDENTITY DEFAULT;
         UPDATE t SET v = 'in one' WHERE a IN (60, 61, 102); DELETE FROM t WHERE a = 7; COMMIT",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("DELETE FROM t WHERE a IN (60, 61)").await;
    daemon.signal(Signal::STOP);
    for (n, sql) in statements.iter().enumerate() {
        s.on_source(&format!("INSERT INTO t VALUES ({n} + 500, {n} + 500, 'x')"))
            .await;
        s.on_source(sql).await;
    }
    daemon.signal(Signal::CONT);
    s.in_step(&daemon, &[ALL]).await;
}

#[tokio::test]
async fn a_whole_row_is_found_as_the_replica_keeps_it() {
    let s = Scenario::new(&FAMILY, "kept").await;
    s.on_source("CREATE TABLE t (n numeric, c text, at timestamptz, d numeric)")
        .await;
    s.on_source("ALTER TABLE t REPLICA IDENTITY FULL").await;
    s.on_replica(
        "CREATE DOMAIN price AS numeric(8, 1);
         CREATE TABLE t (n numeric(10, 2), c char(5), at timestamptz(0), d price)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    for sql in [
        "INSERT INTO t SELECT g + 0.006, 'c' || g, '2026-01-01 00:00:00.7+00', g / 7.0 FROM generate_series(1, 4) g",
        "UPDATE t SET c = 'new' WHERE n < 2",
        "UPDATE t SET n = NULL WHERE c = 'c2'",
        "DELETE FROM t WHERE c IN ('c2', 'c3')",
    ] {
        s.on_source(sql).await;
    }
    s.caught_up(&daemon).await;
    assert_eq!(
        s.replica_rows("SELECT n, c::text, d FROM t").await,
        [row(["1.01", "new", "0.1"]), row(["4.01", "c4", "0.6"])]
    );
}

#[tokio::test]
async fn columns_are_added_and_dropped_under_way() {
    let (s, mut daemon) = with("columns", "CREATE TABLE t (id int PRIMARY KEY, v text)", "").await;
    each(&s, &daemon, &["INSERT INTO t VALUES (1, 'x')"]).await;
    // Replica first: nothing stops.
    s.on_replica("ALTER TABLE t ADD added int DEFAULT 5").await;
    s.on_source("INSERT INTO t VALUES (2, 'y')").await;
    s.on_source("ALTER TABLE t ADD added int DEFAULT 5").await;
    each(&s, &daemon, &[
        "INSERT INTO t VALUES (3, 'z', 33)",
        "BEGIN; UPDATE t SET added = 11 WHERE id = 1; UPDATE t SET v = 'w' WHERE id = 2; COMMIT",
    ])
    .await;
    // Of a type that no table had when it started, and that the stream gives no name.
    s.on_both("ALTER TABLE t ADD mac macaddr").await;
    each(
        &s,
        &daemon,
        &["UPDATE t SET mac = '08:00:2b:01:02:03' WHERE id = 2"],
    )
    .await;
    s.on_both("ALTER TABLE t DROP mac").await;
    // Gone from the source: the replica's stays as it is.
    s.on_source("ALTER TABLE t DROP added").await;
    s.on_source("UPDATE t SET v = 'dropped' WHERE id = 3").await;
    s.caught_up(&daemon).await;
    assert_eq!(
        s.replica_rows("SELECT id, v, added FROM t").await,
        [
            row(["1", "x", "11"]),
            row(["2", "w", "5"]),
            row(["3", "dropped", "33"])
        ]
    );
    s.on_replica("ALTER TABLE t DROP added").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES (4, 'after')",
            "UPDATE t SET v = v || '!'",
        ],
    )
    .await;

    // Only on the source: it stops, says which column, and goes on where it stopped.
    s.on_source(
        "BEGIN; INSERT INTO t VALUES (5, 'before'); ALTER TABLE t ADD late text DEFAULT 'd';
         INSERT INTO t VALUES (6, 'with', 'late'); COMMIT",
    )
    .await;
    s.on_source("INSERT INTO t VALUES (7, 'later', 'late')")
        .await;
    s.until_failed(&mut daemon, &["late", "public.t"]).await;
    let unhealthy = daemon.http_get("/health").await.unwrap();
    assert!(
        unhealthy.status == 503 && unhealthy.body.contains("late"),
        "{unhealthy:?}"
    );
    assert_eq!(
        fetch_rows(&s.replica, "SELECT 1 FROM t WHERE id > 4")
            .await
            .len(),
        0
    );
    s.on_replica("ALTER TABLE t ADD late text DEFAULT 'd'")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &[ALL]).await;
}
