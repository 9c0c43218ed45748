//! H: what the publication leaves out, and columns that a side computes by itself.

use super::ground::{Ground, each, fails_until};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(h1_rows_move_into_the_filter_and_out, Crossing, since 15),
    case!(h3_of_two_publications_one_is_read, Ends, since 15),
    case!(h5_a_filter_that_fails, Ends, since 15),
    case!(h6_lists_of_columns, Ends, since 15),
    case!(h8_generated_columns_on_either_side, Each),
    case!(h8_generated_columns_that_are_published, Each, since 18),
    case!(h9_whole_rows_and_a_generated_column, Each),
    case!(h10_identity_columns, Each),
];

/// The first copy goes by the same filter; a NULL is not in it.
async fn h1_rows_move_into_the_filter_and_out(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both("CREATE TABLE t (id int, state text, v text, PRIMARY KEY (id, state)); CREATE TABLE f (id int, state text, n int)")
        .await;
    s.on_source(
        "INSERT INTO t SELECT g, CASE g % 2 WHEN 0 THEN 'in' ELSE 'out' END, 'v' FROM generate_series(1, 20) g;
         ALTER TABLE f REPLICA IDENTITY FULL;
         INSERT INTO f VALUES (1, 'in', 1), (2, NULL, 2), (3, 'out', 3), (3, 'in', 3), (3, 'in', 3)",
    )
    .await;
    s.publish("FOR TABLE t WHERE (state = 'in'), TABLE f WHERE (state = 'in' AND n < 10)")
        .await;
    let daemon = s.start("").await;
    let t = ("SELECT * FROM t WHERE state = 'in'", "SELECT * FROM t");
    let f = (
        "SELECT * FROM f WHERE state = 'in' AND n < 10",
        "SELECT * FROM f",
    );
    s.in_step_mapped(&daemon, &[t, f]).await;
    for sql in [
        "INSERT INTO t VALUES (30, 'in', 'new'), (31, 'out', 'new'); INSERT INTO f VALUES (4, NULL, NULL), (5, 'in', NULL)",
        "UPDATE t SET state = 'in', v = 'came' WHERE id IN (1, 3, 31)",
        "UPDATE t SET state = 'out' WHERE id IN (2, 3)",
        "UPDATE t SET v = 'changed'; UPDATE f SET n = n + 1",
        "UPDATE f SET state = 'in', n = 5 WHERE state IS NULL",
        "UPDATE f SET n = NULL WHERE id = 1; UPDATE f SET n = 10 WHERE id = 3",
        "UPDATE f SET n = 9 WHERE ctid = (SELECT min(ctid) FROM f WHERE id = 3 AND state = 'in')",
        "UPDATE t SET id = id + 100",
        "BEGIN; UPDATE t SET state = 'out' WHERE id = 104; UPDATE t SET v = 'unseen' WHERE id = 104;
         UPDATE t SET state = 'in' WHERE id = 104; DELETE FROM t WHERE id = 106; COMMIT",
        "DELETE FROM t WHERE id > 110; DELETE FROM f WHERE id < 3",
    ] {
        s.on_source(sql).await;
        s.in_step_mapped(&daemon, &[t, f]).await;
    }
}

/// Another publication's filter and columns are none of ours.
async fn h3_of_two_publications_one_is_read(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 9) g")
        .await;
    s.on_source(&format!(
        "CREATE PUBLICATION {} FOR TABLE t (id) WHERE (id > 5)",
        g.name
    ))
    .await;
    s.publish("FOR TABLE t WHERE (id < 7)").await;
    let daemon = s.start("").await;
    let same = ("SELECT * FROM t WHERE id < 7", "SELECT * FROM t");
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "UPDATE t SET v = 'new'",
        "DELETE FROM t WHERE id IN (5, 6, 7)",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}

/// The source evaluates it in its stream, and cannot go on; a filter that has been put right
/// is not seen by what was written before.
async fn h5_a_filter_that_fails(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 9) g")
        .await;
    s.publish("FOR TABLE t WHERE (100 / id > 5)").await;
    let mut daemon = s.start("").await;
    let same = (
        "SELECT * FROM t WHERE 100 / nullif(id, 0) > 5",
        "SELECT * FROM t",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    s.on_source("INSERT INTO t VALUES (10, 'last good one')")
        .await;
    s.in_step_mapped(&daemon, &[same]).await;
    s.on_source("INSERT INTO t VALUES (0, 'the secret one')")
        .await;
    let said = s.until_failed(&mut daemon, &["22012", "row filter"]).await;
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "10");
}

async fn h6_lists_of_columns(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(
        "CREATE TABLE t (\"B c\" text, secret text, id int PRIMARY KEY, a int);
         CREATE TABLE f (a int, secret int, b text);
         INSERT INTO t SELECT 'b', 's', g, g FROM generate_series(1, 9) g; INSERT INTO f VALUES (1, 1, 'x')",
    )
    .await;
    s.on_replica(
        "CREATE TABLE t (id int PRIMARY KEY, a int, \"B c\" text, secret text DEFAULT 'unsent');
         CREATE TABLE f (a int, b text)",
    )
    .await;
    s.publish("FOR TABLE t (a, id, \"B c\"), TABLE f (b, a)")
        .await;
    let daemon = s.start("").await;
    let t = (
        "SELECT id, a, \"B c\", 'unsent' FROM t",
        "SELECT id, a, \"B c\", secret FROM t",
    );
    let statements = [
        "UPDATE t SET secret = 'other'",
        "UPDATE t SET a = 0, secret = 'third', \"B c\" = NULL WHERE id < 4",
        "UPDATE t SET id = id + 10 WHERE id = 5",
        "INSERT INTO t VALUES ('n', 's', 20, 20); DELETE FROM t WHERE id = 1",
    ];
    s.each_mapped(&daemon, &statements, t).await;
    let f = ("SELECT a, b FROM f", "SELECT a, b FROM f");
    s.each_mapped(&daemon, &["INSERT INTO f VALUES (2, 2, 'y')"], f)
        .await;
}

async fn h8_generated_columns_on_either_side(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(
        "CREATE TABLE both_sides (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
         CREATE TABLE on_source (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED, a int);
         CREATE TABLE on_replica (id int PRIMARY KEY, a int, twice int)",
    )
    .await;
    s.on_replica(
        "CREATE TABLE both_sides (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED, a int);
         CREATE TABLE on_source (id int PRIMARY KEY, a int);
         CREATE TABLE on_replica (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED, a int)",
    )
    .await;
    if g.replica >= 18 {
        s.on_replica("ALTER TABLE both_sides ADD thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL")
            .await;
    }
    if g.source >= 18 {
        s.on_source("ALTER TABLE both_sides ADD thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL")
            .await;
    }
    let fill = |first: i32| {
        format!(
            "INSERT INTO both_sides (id, a) VALUES ({first}, 1), ({first} + 1, NULL);
             INSERT INTO on_source (id, a) VALUES ({first}, 1), ({first} + 1, NULL);
             INSERT INTO on_replica VALUES ({first}, 1, 77), ({first} + 1, NULL, 77)"
        )
    };
    s.on_source(&fill(1)).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let same = [
        (
            "SELECT id, a, twice FROM both_sides",
            "SELECT id, a, twice FROM both_sides",
        ),
        ("SELECT id, a FROM on_source", "SELECT id, a FROM on_source"),
        (
            "SELECT id, a, a * 2 FROM on_replica",
            "SELECT id, a, twice FROM on_replica",
        ),
    ];
    let fill = fill(10);
    for sql in [
        fill.as_str(),
        "UPDATE both_sides SET a = a + 1; UPDATE on_source SET a = 5; UPDATE on_replica SET a = 6, twice = 1 WHERE id > 1",
        "UPDATE both_sides SET id = id + 20; DELETE FROM on_source WHERE id = 1; DELETE FROM on_replica WHERE id = 1",
    ] {
        s.on_source(sql).await;
        s.in_step_mapped(&daemon, &same).await;
    }
}

/// Sent like any other; a replica column of the name takes the value, or computes its own.
async fn h8_generated_columns_that_are_published(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
         CREATE TABLE u (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
         INSERT INTO t (id, a) VALUES (1, 1), (2, 2); INSERT INTO u (id, a) VALUES (1, 1)",
    )
    .await;
    s.on_replica(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int);
         CREATE TABLE u (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 3) STORED)",
    )
    .await;
    s.publish("FOR TABLE t, u WITH (publish_generated_columns = stored)")
        .await;
    let daemon = s.start("").await;
    let u = ("SELECT id, a, a * 3 FROM u", "SELECT id, a, twice FROM u");
    for sql in [
        "INSERT INTO t (id, a) VALUES (3, 3); INSERT INTO u (id, a) VALUES (3, 3)",
        "UPDATE t SET a = a + 10; UPDATE u SET a = a + 10",
        "UPDATE t SET id = id + 10 WHERE id = 1; DELETE FROM u WHERE id = 1",
    ] {
        s.on_source(sql).await;
        s.in_step(&daemon, &["SELECT id, a, twice FROM t"]).await;
        s.in_step_mapped(&daemon, &[u]).await;
    }
}

/// The generated column is not in the old row, so it cannot help to find one. 18 refuses the
/// change on the source itself.
async fn h9_whole_rows_and_a_generated_column(g: Ground<'_>) {
    let both = "CREATE TABLE t (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, v text)";
    let (s, daemon) = g.running(both, "ALTER TABLE t REPLICA IDENTITY FULL").await;
    each(
        &s,
        &daemon,
        &["INSERT INTO t (a, v) VALUES (1, 'x'), (1, 'x'), (2, NULL)"],
    )
    .await;
    let update = "UPDATE t SET v = 'new' WHERE ctid = (SELECT min(ctid) FROM t)";
    if g.source >= 18 {
        let refused = s.source.batch_execute(update).await.unwrap_err();
        let refused = refused.as_db_error().unwrap();
        let said = format!("{} {:?}", refused.message(), refused.detail());
        assert!(said.contains("generated column"), "{said}");
        return;
    }
    each(
        &s,
        &daemon,
        &[update, "DELETE FROM t WHERE a = 2", "UPDATE t SET a = 7"],
    )
    .await;
}

/// ALWAYS on the replica: explicit values in INSERT and COPY; a key that changes is refused by
/// PostgreSQL, whoever asks.
async fn h10_identity_columns(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text,
                                n int GENERATED BY DEFAULT AS IDENTITY (START 100))";
    let (s, mut daemon) = g
        .running(both, "INSERT INTO t (v) VALUES ('copied'), ('copied')")
        .await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t (v) VALUES ('streamed')",
            "INSERT INTO t OVERRIDING SYSTEM VALUE VALUES (50, 'given', 5)",
            "UPDATE t SET v = v || '!', n = n + 1",
            "DELETE FROM t WHERE id = 1",
        ],
    )
    .await;
    s.on_source("ALTER TABLE t ALTER id SET GENERATED BY DEFAULT")
        .await;
    // Deleted and inserted; where a row has to be updated, the replica refuses.
    each(&s, &daemon, &["UPDATE t SET id = 60 WHERE id = 50"]).await;
    s.on_source("ALTER TABLE t REPLICA IDENTITY FULL").await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET id = 70 WHERE id = 60",
            &["public.t", "BY DEFAULT"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t ALTER id SET GENERATED BY DEFAULT",
    )
    .await;
}
