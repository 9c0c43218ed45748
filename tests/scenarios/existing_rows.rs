//! Replica rows that are there before the first copy; a copy that is interrupted.

use crate::support::{Daemon, Family, Scenario, eventually, row};

static FAMILY: Family = Family::const_new();

async fn scenario(name: &str) -> Scenario<'static> {
    Scenario::new(&FAMILY, name).await
}

fn rule(table: &str, keys: &str) -> String {
    format!("[[tables]]\nsource = \"public.{table}\"\n{keys}\n")
}

#[tokio::test]
async fn refuse_merge_and_truncate() {
    let s = scenario("existing").await;
    let tables = [
        "refused", "emptied", "merged", "replaced", "kept", "newest", "filtered",
    ];
    for table in tables {
        s.on_source(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text, at int, j json)"
        ))
        .await;
        s.on_replica(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text, at int, j json, note text DEFAULT 'fresh')"
        ))
        .await;
        s.on_source(&format!(
            "INSERT INTO {table} SELECT g, 'source', 10, '{{}}' FROM generate_series(1, 6) g"
        ))
        .await;
        // Missing, the same, different, newer, with NULLs, and one that only the replica has.
        s.on_replica(&format!(
            "INSERT INTO {table} VALUES (2, 'source', 10, '{{}}', 'mine'), (3, 'other', 5, '{{}}', 'mine'),
             (4, 'other', 20, '{{}}', 'mine'), (5, NULL, NULL, NULL, 'mine'), (99, 'extra', 1, NULL, 'mine')"
        ))
        .await;
    }
    s.publish_all().await;
    let before = "SELECT * FROM refused UNION ALL SELECT * FROM emptied";
    let unchanged = s.replica_rows(&before.replace("*", "id, v, note")).await;

    let rules = [
        rule("emptied", "existing_rows = \"truncate\""),
        rule("merged", "existing_rows = \"merge\""),
        rule(
            "replaced",
            "existing_rows = \"merge\"\nextra_rows = \"delete\"",
        ),
        rule(
            "kept",
            "existing_rows = \"merge\"\non_conflict = \"replica_wins\"",
        ),
        rule(
            "newest",
            "existing_rows = \"merge\"\non_conflict = \"newest_wins(at)\"\nextra_rows = \"delete\"",
        ),
        rule(
            "filtered",
            "existing_rows = \"merge\"\nextra_rows = \"delete\"\nwhere = \"id < 4\"",
        ),
    ]
    .concat();
    let said = s.refused(&(rules.clone() + &rule("refused", ""))).await;
    assert!(
        said.contains("public.refused") && said.contains("existing_rows"),
        "{said}"
    );
    assert!(!said.contains("public.emptied"), "{said}");
    assert_eq!(
        s.replica_rows(&before.replace("*", "id, v, note")).await,
        unchanged
    );
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'existing'")
            .await,
        "0"
    );

    let daemon = s.start(&rules).await;
    s.caught_up(&daemon).await;
    let is = async |table: &str, rows: &[[&str; 3]]| {
        let found = s
            .replica_rows(&format!("SELECT id, v, note FROM {table}"))
            .await;
        let rows: Vec<_> = rows.iter().map(|values| row(*values)).collect();
        assert_eq!(found, rows, "{table}");
    };
    let fresh = |id| [id, "source", "fresh"];
    let mine = |id| [id, "source", "mine"];
    is("emptied", &["1", "2", "3", "4", "5", "6"].map(fresh)).await;
    let merged = [
        fresh("1"),
        mine("2"),
        mine("3"),
        mine("4"),
        mine("5"),
        fresh("6"),
    ];
    is("replaced", &merged).await;
    is(
        "merged",
        &[&merged[..], &[["99", "extra", "mine"]]].concat(),
    )
    .await;
    is(
        "kept",
        &[
            fresh("1"),
            mine("2"),
            ["3", "other", "mine"],
            ["4", "other", "mine"],
            ["5", "NULL", "mine"],
            fresh("6"),
            ["99", "extra", "mine"],
        ],
    )
    .await;
    is(
        "newest",
        &[
            fresh("1"),
            mine("2"),
            mine("3"),
            ["4", "other", "mine"],
            mine("5"),
            fresh("6"),
        ],
    )
    .await;
    is("filtered", &[fresh("1"), mine("2"), mine("3")]).await;
    // Rows that were the same were not written again.
    assert_eq!(
        s.replica_one(
            "SELECT xmin = (SELECT xmin FROM merged WHERE id = 99) FROM merged WHERE id = 2"
        )
        .await,
        "t"
    );
    let staging = "SELECT count(*) FROM pg_class WHERE relname LIKE 'staging%'";
    assert_eq!(s.replica_one(staging).await, "0");
    s.on_source("UPDATE merged SET v = 'followed'; DELETE FROM merged WHERE id = 5")
        .await;
    s.in_step_mapped(
        &daemon,
        &[(
            "SELECT id, v FROM merged",
            "SELECT id, v FROM merged WHERE id <> 99",
        )],
    )
    .await;
}

#[tokio::test]
async fn a_merge_moves_unique_values_and_needs_a_key() {
    let s = scenario("merging").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE DEFERRABLE); CREATE TABLE keyless (v text)")
        .await;
    s.on_source("INSERT INTO t VALUES (1, 'b'), (2, 'c'), (3, 'd'), (4, 'a'), (5, 'e'); INSERT INTO keyless VALUES ('x')")
        .await;
    s.on_replica("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (9, 'e'); INSERT INTO keyless VALUES ('y')").await;
    s.publish_all().await;
    let said = s.refused("[copy]\nexisting_rows = \"merge\"").await;
    assert!(
        said.contains("public.keyless") && said.contains("no key"),
        "{said}"
    );
    let rules = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"\n".to_owned()
        + &rule("keyless", "existing_rows = \"truncate\"")
        + &rule("*", "");
    let daemon = s.start(&rules).await;
    s.in_step(&daemon, &["SELECT * FROM t", "SELECT * FROM keyless"])
        .await;
}

/// A function that lets the copy pass only while nobody holds lock 42.
const GATE: &str = "CREATE FUNCTION gate(id int, v text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
       IF id = 100000 THEN PERFORM pg_advisory_lock_shared(42), pg_advisory_unlock_shared(42); END IF;
       RETURN v; END $$;";

#[tokio::test]
async fn an_interrupted_copy_keeps_whole_tables_and_begins_partial_ones_again() {
    let s = scenario("interrupted").await;
    s.on_both(
        "CREATE TABLE small (id int PRIMARY KEY, v text); CREATE TABLE big (id int, v text);
               ALTER TABLE big ALTER v SET STORAGE PLAIN",
    )
    .await;
    s.on_source(GATE).await;
    s.on_replica("CREATE FUNCTION gate(id int, v text) RETURNS text LANGUAGE sql AS 'SELECT v'")
        .await;
    s.on_source(
        "ALTER TABLE big REPLICA IDENTITY FULL;
                 INSERT INTO small SELECT g, 'copied' FROM generate_series(1, 100) g;
                 INSERT INTO big SELECT g, repeat('x', 700) FROM generate_series(1, 110000) g",
    )
    .await;
    s.publish_all().await;
    let rules = "[copy]\nworkers = 1\nsplit_from = \"64MiB\"\n".to_owned()
        + &rule("small", "priority = 9")
        + &rule("big", "set = { v = \"public.gate(id, v)\" }");

    s.on_source("SELECT pg_advisory_lock(42)").await;
    for kind in ["kill", "term"] {
        let mut daemon = s.launch(&rules);
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually(
            "the copy to reach the gate",
            || daemon.stderr(),
            async || (s.one(waits).await == "1").then_some(()),
        )
        .await;
        let progress = "SELECT (SELECT count(*) FROM big) BETWEEN 10000 AND 99999,
                        (SELECT string_agg(state, ' ' ORDER BY source_table) FROM pglockstep.tables)";
        assert_eq!(
            s.replica_rows(progress).await,
            [row(["t", "copying copied"])],
            "a piece is in"
        );
        if kind == "kill" {
            daemon.kill9();
        } else {
            assert!(daemon.terminate().success(), "{}", daemon.stderr());
        }
        assert_eq!(
            s.one(
                "SELECT confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots
                          WHERE database = 'interrupted'"
            )
            .await,
            "t"
        );
    }
    // While it is down: rows that were copied change, and the whole table gets a mark.
    s.on_source("DELETE FROM big WHERE id % 10 = 0; UPDATE big SET v = 'u' WHERE id < 50; INSERT INTO big VALUES (0, 'new')")
        .await;
    s.on_source("UPDATE small SET v = 'changed' WHERE id <= 10; DELETE FROM small WHERE id = 100")
        .await;
    s.on_replica("INSERT INTO small VALUES (-1, 'not copied again')")
        .await;
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    let daemon = s.start(&rules).await;
    s.in_step_mapped(
        &daemon,
        &[
            ("SELECT * FROM small", "SELECT * FROM small WHERE id <> -1"),
            (
                "SELECT * FROM big WHERE id % 50 < 5",
                "SELECT * FROM big WHERE id % 50 < 5",
            ),
            ("SELECT count(*) FROM big", "SELECT count(*) FROM big"),
        ],
    )
    .await;
    assert_eq!(
        s.replica_one("SELECT count(*) FROM small WHERE id = -1")
            .await,
        "1"
    );
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'interrupted'")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_slot_whose_birth_was_not_noted_is_made_anew() {
    let s = scenario("unborn").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.on_source("INSERT INTO t VALUES (1)").await;
    s.publish_all().await;
    // It stops right after the slot was made, before it could write that down.
    s.on_replica(&pglockstep::progress::bookkeeping_sql(None))
        .await;
    s.on_replica(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.slot_born_at IS NOT NULL THEN PERFORM pg_advisory_xact_lock(43); END IF; RETURN NEW; END $$;
         CREATE TRIGGER wait BEFORE UPDATE ON pglockstep.pipelines FOR EACH ROW EXECUTE FUNCTION wait();
         ALTER TABLE pglockstep.pipelines ENABLE ALWAYS TRIGGER wait;",
    )
    .await;
    s.on_replica("SELECT pg_advisory_lock(43)").await;
    let mut daemon: Daemon = s.launch("");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = 'unborn' AND confirmed_flush_lsn IS NOT NULL";
    let waits =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 43
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    s.replica_eventually(waits, "1").await;
    assert_eq!(s.one(slots).await, "1");
    daemon.kill9();
    s.on_source("INSERT INTO t VALUES (2)").await;
    // Its session does not know yet that nobody waits for it.
    s.on_replica("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").await;
    s.replica_eventually(waits, "0").await;
    s.on_replica("SELECT pg_advisory_unlock(43); DROP TRIGGER wait ON pglockstep.pipelines")
        .await;
    let daemon = s.start("").await;
    daemon.until_said("interrupted first start").await;
    s.on_source("INSERT INTO t VALUES (3)").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    assert_eq!(s.one(slots).await, "1");
}
