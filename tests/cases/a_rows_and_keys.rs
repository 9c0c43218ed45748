//! A: rows, and the keys that find them.

use super::ground::{Ground, T, at_once, each, fails_until, same};
use super::runner::{Case, case};
use crate::support::samples;

pub const CASES: &[Case] = &[
    case!(a1_merge, Each, since 15),
    case!(a2_one_key_again_and_again, Crossing),
    case!(a4_keys_shift_by_one),
    case!(a4_keys_swap_against_a_plain_key),
    case!(a5_unique_values_swap_against_a_plain_constraint),
    case!(a9_the_identity_s_index_is_dropped, Each),
    case!(a11_equal_keys_that_are_not_the_same),
    case!(a14_updates_that_change_nothing),
    case!(a15_no_columns_and_1600),
    case!(a15_keys_of_8_kilobytes),
    case!(a16_keys_without_overlaps, Each, since 18),
    case!(a16_keys_that_include_columns),
];

async fn a1_merge(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let merge = "MERGE INTO t USING (SELECT g AS id FROM generate_series(5, 15) g) s ON t.id = s.id
         WHEN MATCHED AND s.id % 3 = 0 THEN DELETE
         WHEN MATCHED AND s.id % 3 = 1 THEN UPDATE SET v = t.v || '+'
         WHEN MATCHED THEN DO NOTHING
         WHEN NOT MATCHED AND s.id < 14 THEN INSERT VALUES (s.id, 'merged')";
    let fill = "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g";
    g.follows_twice(both, &[fill, merge, merge]).await;
}

async fn a2_one_key_again_and_again(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text)";
    let rounds = [
        "INSERT INTO t VALUES (1, 1, 'a')",
        "BEGIN; UPDATE t SET v = 'b'; DELETE FROM t; INSERT INTO t VALUES (1, 1, 'c'); COMMIT",
        "BEGIN; DELETE FROM t; INSERT INTO t VALUES (1, 1, 'd'); DELETE FROM t;
         INSERT INTO t VALUES (2, 1, 'e'); UPDATE t SET id = 1; COMMIT",
        "BEGIN; INSERT INTO t VALUES (3, 3, 'gone'); UPDATE t SET u = 4 WHERE id = 3;
         DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 5, 'kept'); COMMIT",
        "BEGIN; UPDATE t SET id = 7 WHERE id = 3; INSERT INTO t VALUES (3, 3, 'new');
         DELETE FROM t WHERE id = 7; UPDATE t SET u = 5 WHERE id = 3; COMMIT",
    ];
    let (s, daemon) = g.follows_twice(both, &rounds).await;
    let conflicts = samples(&daemon, "pglockstep_conflicts_total").await;
    assert_eq!(conflicts.values().sum::<f64>(), 0.0, "{conflicts:?}");
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "2");
}

async fn a4_keys_shift_by_one(g: Ground<'_>) {
    // A deferrable key identifies nothing: the source logs whole rows.
    let both = "CREATE TABLE t (id int, v text, PRIMARY KEY (id) DEFERRABLE)";
    let (s, daemon) = g.running(both, "ALTER TABLE t REPLICA IDENTITY FULL").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 500) g",
            "UPDATE t SET id = id + 1",
            "UPDATE t SET id = 502 - id",
        ],
    )
    .await;
}

/// Row by row the plain key objects, whichever goes first.
async fn a4_keys_swap_against_a_plain_key(g: Ground<'_>) {
    let source = "CREATE TABLE t (id int, v text, PRIMARY KEY (id) DEFERRABLE);
         ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 9) g";
    let (s, mut daemon) = g.running_unlike(source, T).await;
    same(&s, &daemon).await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2)",
            &["public.t", "DEFERRABLE"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
    )
    .await;
    each(&s, &daemon, &["UPDATE t SET id = 10 - id"]).await;
}

async fn a5_unique_values_swap_against_a_plain_constraint(g: Ground<'_>) {
    let source = "CREATE TABLE t (id int PRIMARY KEY, u int, CONSTRAINT t_u UNIQUE (u) DEFERRABLE);
         INSERT INTO t SELECT g, g FROM generate_series(1, 9) g";
    let replica = "CREATE TABLE t (id int PRIMARY KEY, u int, CONSTRAINT t_u UNIQUE (u))";
    let (s, daemon) = g.running_unlike(source, replica).await;
    each(
        &s,
        &daemon,
        &["UPDATE t SET u = 10 - u", "UPDATE t SET u = u + 1"],
    )
    .await;
}

async fn a9_the_identity_s_index_is_dropped(g: Ground<'_>) {
    let both = "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, v text);
                CREATE UNIQUE INDEX by_b ON t (b)";
    let (s, daemon) = g
        .running(both, "ALTER TABLE t REPLICA IDENTITY USING INDEX by_b")
        .await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t SELECT g, -g, 'v' FROM generate_series(1, 9) g",
            "UPDATE t SET b = b - 100, v = 'by index' WHERE a = 1",
            "DROP INDEX by_b",
            "INSERT INTO t VALUES (20, -20, 'no identity')",
        ],
    )
    .await;
    let update = "UPDATE t SET v = 'x' WHERE a = 2";
    let refused = s.source.batch_execute(update).await.unwrap_err();
    let refused = refused.as_db_error().unwrap().message().to_owned();
    assert!(refused.contains("replica identity"), "{refused}");
    each(
        &s,
        &daemon,
        &[
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            update,
            "DELETE FROM t WHERE a = 20",
        ],
    )
    .await;
}

/// A collation that ignores case and accents, in a key and in whole rows; equal numerics.
async fn a11_equal_keys_that_are_not_the_same(g: Ground<'_>) {
    let has_icu = "SELECT count(*) > 0 FROM pg_collation WHERE collprovider = 'i'";
    let s = g.scenario().await;
    let is_icu = s.one(has_icu).await == "t" && s.replica_one(has_icu).await == "t";
    if is_icu {
        s.on_both(
            "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
             CREATE TABLE loose (k text COLLATE loose PRIMARY KEY, n int);
             CREATE TABLE loose_full (k text COLLATE loose, n int)",
        )
        .await;
        s.on_source("ALTER TABLE loose_full REPLICA IDENTITY FULL")
            .await;
    }
    s.on_both("CREATE TABLE scale (k numeric PRIMARY KEY, n int); CREATE TABLE zero (k float8 PRIMARY KEY, n int)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO scale VALUES (1.0, 1), (2.00, 2), ('NaN', 3); INSERT INTO zero VALUES (0, 1), ('NaN', 2)",
            "UPDATE scale SET k = 1.000 WHERE k = 1",
            "UPDATE scale SET n = n + 1; UPDATE zero SET k = '-0' WHERE k = 0",
            "DELETE FROM scale WHERE k = 2; INSERT INTO scale VALUES (2, 9); UPDATE zero SET n = 5",
            "DELETE FROM zero; DELETE FROM scale WHERE k = 'NaN'",
        ],
    )
    .await;
    if !is_icu {
        return;
    }
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO loose VALUES ('ecole', 1), ('b', 2); INSERT INTO loose_full SELECT * FROM loose",
            "UPDATE loose SET k = 'École' WHERE n = 1; UPDATE loose_full SET k = 'École' WHERE n = 1",
            "UPDATE loose SET n = 7 WHERE k = 'ECOLE'; INSERT INTO loose_full VALUES ('ecole', 7), ('ECOLE', 1)",
            "UPDATE loose_full SET n = 8 WHERE k COLLATE \"C\" = 'École'",
            "DELETE FROM loose_full WHERE k COLLATE \"C\" = 'ECOLE'",
            "BEGIN; DELETE FROM loose WHERE n = 7; INSERT INTO loose VALUES ('ÉCOLE', 9); COMMIT",
            "DELETE FROM loose",
        ],
    )
    .await;
}

async fn a14_updates_that_change_nothing(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text, big text);
                ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
                CREATE TABLE only_key (id int PRIMARY KEY)";
    g.follows_twice(
        both,
        &[
            "INSERT INTO t SELECT g, NULL, repeat('b', 5000) FROM generate_series(1, 5) g",
            "INSERT INTO only_key SELECT max(id) FROM t UNION SELECT 0 ON CONFLICT DO NOTHING",
            "UPDATE t SET v = v",
            "UPDATE t SET id = id, v = v, big = big",
            "UPDATE only_key SET id = id",
            "UPDATE only_key SET id = id + 100",
        ],
    )
    .await;
}

async fn a15_no_columns_and_1600(g: Ground<'_>) {
    let columns: Vec<String> = (1..1600).map(|n| format!("c{n} int")).collect();
    let both = format!(
        "CREATE TABLE nothing (); CREATE TABLE wide (id int PRIMARY KEY, {})",
        columns.join(", ")
    );
    let (s, daemon) = g
        .follows(
            &both,
            &[
                "INSERT INTO nothing DEFAULT VALUES; INSERT INTO wide (id, c1, c1599) VALUES (1, 1, 1), (2, NULL, 2)",
                "UPDATE wide SET c800 = 800",
                "UPDATE wide SET id = id + 10, c2 = 2",
                "BEGIN; INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES; COMMIT",
                "DELETE FROM wide WHERE id = 11",
            ],
        )
        .await;
    s.on_source("ALTER TABLE wide REPLICA IDENTITY FULL").await;
    each(
        &s,
        &daemon,
        &[
            "UPDATE wide SET c3 = 3",
            "UPDATE wide SET id = 1",
            "DELETE FROM wide",
        ],
    )
    .await;
}

async fn a15_keys_of_8_kilobytes(g: Ground<'_>) {
    let both = "CREATE TABLE t (k text, l bytea, n int, PRIMARY KEY (l, k))";
    g.follows_twice(
        both,
        &[
            "INSERT INTO t SELECT repeat('k', 8000) || g, convert_to(repeat('l', 8000), 'UTF8'), g FROM generate_series(1, 5) g",
            "UPDATE t SET n = n + 1",
            "UPDATE t SET k = k || 'x', l = l || l WHERE n < 4",
            "DELETE FROM t WHERE n = 3",
        ],
    )
    .await;
}

async fn a16_keys_without_overlaps(g: Ground<'_>) {
    let columns = "(id int4range, during daterange, v text";
    let both = format!(
        "CREATE TABLE t {columns}, PRIMARY KEY (id, during WITHOUT OVERLAPS));
         CREATE TABLE full_row {columns}, PRIMARY KEY (id, during WITHOUT OVERLAPS));"
    );
    let (s, mut daemon) = g
        .running(&both, "ALTER TABLE full_row REPLICA IDENTITY FULL")
        .await;
    let statements: Vec<String> = ["t", "full_row"]
        .into_iter()
        .flat_map(|table| {
            [
                format!("INSERT INTO {table} SELECT int4range(g, g + 1), '[2024-01-01,2024-06-01)', 'v' FROM generate_series(1, 5) g"),
                format!("INSERT INTO {table} SELECT id, '[2024-06-01,)', 'later' FROM {table} WHERE v = 'v'"),
                format!("UPDATE {table} SET v = 'new' WHERE id @> 1 AND during @> DATE '2024-07-01'"),
                format!("UPDATE {table} SET during = '[2023-01-01,2024-06-01)' WHERE id @> 2 AND v = 'v'"),
                format!("BEGIN; UPDATE {table} SET during = '[2025-01-01,)' WHERE id @> 3 AND v = 'later';
                         INSERT INTO {table} VALUES ('[3,4)', '[2024-06-01,2025-01-01)', 'between'); COMMIT"),
                format!("DELETE FROM {table} WHERE id @> 4"),
            ]
        })
        .collect();
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    each(&s, &daemon, &statements).await;
    s.on_source("TRUNCATE t, full_row").await;
    at_once(&s, &mut daemon, &statements).await;
}

async fn a16_keys_that_include_columns(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int, extra text, v text, PRIMARY KEY (id) INCLUDE (extra))";
    g.follows_twice(
        both,
        &[
            "INSERT INTO t SELECT g, 'e', 'v' FROM generate_series(1, 6) g",
            "UPDATE t SET extra = NULL WHERE id = 1",
            "UPDATE t SET id = id + 10, extra = 'moved' WHERE id IN (2, 3)",
            "DELETE FROM t WHERE id IN (1, 12)",
        ],
    )
    .await;
}
