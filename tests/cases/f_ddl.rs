//! F: the source's tables change their shape. The stream describes each shape where it begins;
//! the replica's tables are changed by hand, before or when the pipeline asks for it.

use rustix::process::Signal;

use super::ground::{Ground, at_once, each, fails_until, same};
use super::runner::{Case, case};
use crate::support::{Scenario, row, run_verb};

pub const CASES: &[Case] = &[
    case!(f1_a_column_the_replica_lacks),
    case!(f2_values_that_no_row_holds, Crossing),
    case!(f3_tables_are_rewritten),
    case!(f4_columns_are_dropped_one_after_the_other),
    case!(f6_a_column_is_renamed),
    case!(f7_two_columns_swap_their_names),
    case!(f9_a_schema_is_renamed_in_a_transaction, Each),
    case!(f11_a_table_is_dropped),
    case!(f13_types_change),
    case!(f14_an_enum_gets_a_value),
    case!(f15_null_becomes_allowed),
    case!(f16_the_primary_key_moves),
    case!(f18_the_list_of_columns_grows, Ends, since 15),
    case!(f19_a_column_that_is_gone_when_it_is_read),
    case!(f20_changes_of_shape_within_a_transaction, Crossing),
    case!(f21_changes_of_shape_that_are_undone, Each),
    case!(f22_published_while_a_transaction_is_open),
    case!(f24_the_publication_goes_and_comes_back, Each),
    case!(f25_vacuum_full_and_cluster, Each),
    case!(f26_materialized_views_are_refreshed),
    case!(f27_other_orders_and_holes),
];

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const FILL: &str = "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 9) g";

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

async fn f13_types_change(g: Ground<'_>) {
    let both = "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE t (id int PRIMARY KEY, n int, s varchar(2), d numeric(4, 1), m text)";
    let fill = "INSERT INTO t SELECT g, g, 's', 1.5, 'sad' FROM generate_series(1, 5) g";
    let (s, mut daemon) = g.running(both, fill).await;
    for (change, words, remedy) in [
        (
            "ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 5000000000 WHERE id = 1",
            &["public.t", "out of range", "widen"],
            "ALTER TABLE t ALTER n TYPE bigint",
        ),
        (
            "ALTER TABLE t ALTER s TYPE varchar(20); UPDATE t SET s = 'longer' WHERE id = 2",
            &["public.t", "too long", "widen"],
            "ALTER TABLE t ALTER s TYPE varchar(20)",
        ),
        (
            "ALTER TABLE t ALTER d TYPE numeric(9, 3); INSERT INTO t VALUES (6, 6, 's', 12345.678, 'ok')",
            &["public.t", "out of range", "widen"],
            "ALTER TABLE t ALTER d TYPE numeric(9, 3)",
        ),
    ] {
        fails_until(&s, &mut daemon, (change, words, "SELECT * FROM t"), remedy).await;
        let said = daemon.stderr();
        for secret in ["5000000000", "longer", "12345.678"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
    // The replica's text takes what the enum says; then it is one, too.
    each(
        &s,
        &daemon,
        &["ALTER TABLE t ALTER m TYPE mood USING m::mood; UPDATE t SET m = 'ok' WHERE id < 3"],
    )
    .await;
    s.on_replica("ALTER TABLE t ALTER m TYPE mood USING m::mood")
        .await;
    each(&s, &daemon, &["UPDATE t SET m = 'sad' WHERE id = 1"]).await;
}

async fn f14_an_enum_gets_a_value(g: Ground<'_>) {
    let both =
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (m mood PRIMARY KEY, ms mood[])";
    let (s, mut daemon) = g
        .running(both, "INSERT INTO t VALUES ('sad', '{ok}')")
        .await;
    s.on_both("ALTER TYPE mood ADD VALUE 'between' BEFORE 'ok'")
        .await;
    each(
        &s,
        &daemon,
        &["INSERT INTO t VALUES ('between', '{between,sad}')"],
    )
    .await;
    s.on_source("ALTER TYPE mood ADD VALUE 'unheard of'").await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET m = 'unheard of' WHERE m = 'between'",
            &["public.t", "does not have the form its type needs"],
            "SELECT * FROM t",
        ),
        "ALTER TYPE mood ADD VALUE 'unheard of'",
    )
    .await;
    assert!(!daemon.stderr().contains("unheard"), "{}", daemon.stderr());
}

async fn f15_null_becomes_allowed(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)";
    let (s, mut daemon) = g.running(both, FILL).await;
    fails_until(
        &s,
        &mut daemon,
        (
            "ALTER TABLE t ALTER v DROP NOT NULL; INSERT INTO t VALUES (10, NULL)",
            &["public.t", "NULL", "column v", "stricter"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t ALTER v DROP NOT NULL",
    )
    .await;
    each(
        &s,
        &daemon,
        &[
            "UPDATE t SET v = '' WHERE v IS NULL; ALTER TABLE t ALTER v SET NOT NULL, ALTER v SET DEFAULT 'd'",
            "INSERT INTO t VALUES (11)",
            "ALTER TABLE t ALTER v DROP DEFAULT; DELETE FROM t WHERE v = 'd'",
        ],
    )
    .await;
}

async fn f16_the_primary_key_moves(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL, v text)";
    let (s, mut daemon) = g
        .running(
            both,
            "INSERT INTO t SELECT g, -g, 'v' FROM generate_series(1, 9) g",
        )
        .await;
    let statements = [
        "UPDATE t SET id = id + 100, v = 'by id' WHERE id = 1",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "INSERT INTO t VALUES (10, -10, 'no key')",
        "ALTER TABLE t ADD PRIMARY KEY (other)",
        "UPDATE t SET other = other - 100, v = 'by other' WHERE id = 2; DELETE FROM t WHERE id = 3",
        "UPDATE t SET id = id + 1000 WHERE other = -10",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, other)",
        "UPDATE t SET other = 7 WHERE id = 4; DELETE FROM t WHERE id = 5",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("TRUNCATE t; ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)")
        .await;
    s.on_source("INSERT INTO t SELECT g, -g, 'v' FROM generate_series(1, 9) g")
        .await;
    at_once(&s, &mut daemon, &statements).await;
}

async fn f18_the_list_of_columns_grows(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source("CREATE TABLE t (id int PRIMARY KEY, a int, b int)")
        .await;
    s.on_source("INSERT INTO t SELECT g, g, g FROM generate_series(1, 9) g")
        .await;
    s.on_replica("CREATE TABLE t (id int PRIMARY KEY, a int)")
        .await;
    s.publish("FOR TABLE t (id, a)").await;
    let merge = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"";
    let daemon = s.start(merge).await;
    let narrow = ("SELECT id, a FROM t", "SELECT id, a FROM t");
    s.each_mapped(&daemon, &["UPDATE t SET a = 0, b = 0 WHERE id < 3"], narrow)
        .await;
    s.on_replica("ALTER TABLE t ADD b int").await;
    s.on_source(&format!(
        "ALTER PUBLICATION {} SET TABLE t (id, a, b)",
        s.slot()
    ))
    .await;
    s.on_source("UPDATE t SET b = 5 WHERE id = 9").await;
    // The values from before come by a copy.
    s.replica_eventually("SELECT count(b) FROM t", "9").await;
    each(&s, &daemon, &["UPDATE t SET b = b + 1 WHERE id > 4"]).await;
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

/// Its rows are neither in the copy nor known to be published when they are written.
async fn f22_published_while_a_transaction_is_open(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY, v text)",
    )
    .await;
    s.publish("FOR TABLE t").await;
    let daemon = s.start("").await;
    let other = g.pair.source.connect(g.name).await.unwrap();
    let open = "BEGIN; INSERT INTO late VALUES (1, 'open'); INSERT INTO t VALUES (1)";
    other.batch_execute(open).await.unwrap();
    s.on_source(&format!("ALTER PUBLICATION {} ADD TABLE late", s.slot()))
        .await;
    s.on_source("INSERT INTO late VALUES (2, 'beside')").await;
    let close =
        "INSERT INTO late VALUES (3, 'open'); UPDATE late SET v = 'updated' WHERE id = 1; COMMIT";
    other.batch_execute(close).await.unwrap();
    s.on_source("INSERT INTO late VALUES (4, 'after')").await;
    s.replica_eventually("SELECT count(*) FROM late", "4").await;
    each(
        &s,
        &daemon,
        &["DELETE FROM late WHERE id = 1", "INSERT INTO t VALUES (2)"],
    )
    .await;
}

/// What was written meanwhile was never published: 14 to 17 end the stream, 18 passes it by.
async fn f24_the_publication_goes_and_comes_back(g: Ground<'_>) {
    for (what, away, back) in [
        (
            "FOR TABLE t",
            "ALTER PUBLICATION {} RENAME TO away",
            "ALTER PUBLICATION away RENAME TO {}",
        ),
        (
            "FOR ALL TABLES",
            "DROP PUBLICATION {}",
            "CREATE PUBLICATION {} FOR ALL TABLES",
        ),
    ] {
        let s = if what == "FOR TABLE t" {
            let s = g.scenario().await;
            s.on_both(T).await;
            s.on_source(FILL).await;
            s
        } else {
            Scenario::again(g.pair, g.name).await
        };
        let publication = s.slot();
        s.publish(what).await;
        let merge = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"";
        let mut daemon = s.start(merge).await;
        same(&s, &daemon).await;
        let before = s.replica_rows("SELECT * FROM t").await;
        s.on_source(&away.replace("{}", &publication)).await;
        s.on_source("UPDATE t SET v = v || '+' WHERE id < 4; DELETE FROM t WHERE id = (SELECT max(id) FROM t)")
            .await;
        s.on_source(&back.replace("{}", &publication)).await;
        s.on_source("INSERT INTO t SELECT max(id) + 10, 'after' FROM t")
            .await;
        s.until_failed(
            &mut daemon,
            &["publication was not there", "rebase --force"],
        )
        .await;
        assert_eq!(s.replica_rows("SELECT * FROM t").await, before);
        assert!(daemon.terminate().success());
        let begun = run_verb(&s.config(""), &["rebase", "--force", "--apply", "--yes"]);
        assert!(begun.status.success(), "{begun:?}");
        let mut daemon = s.start("").await;
        each(&s, &daemon, &["UPDATE t SET v = 'last' WHERE id = 1"]).await;
        assert!(daemon.terminate().success());
        let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
        assert!(torn_down.status.success(), "{torn_down:?}");
        s.on_source(&format!("DROP PUBLICATION {publication}"))
            .await;
    }
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

async fn f27_other_orders_and_holes(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source(
        "CREATE TABLE t (gone int, id int PRIMARY KEY, a text, hole int, b int, c text);
         INSERT INTO t SELECT g, g, 'a', g, g, 'c' FROM generate_series(1, 5) g;
         ALTER TABLE t DROP gone, DROP hole; INSERT INTO t VALUES (6, 'a', 6, 'c')",
    )
    .await;
    s.on_replica(
        "CREATE TABLE t (c text, x int, b int, y text, a text, id int PRIMARY KEY);
         ALTER TABLE t DROP x, DROP y",
    )
    .await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
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
