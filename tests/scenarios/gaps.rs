//! Whatever a table missed is copied anew or said; nothing is passed by in silence.

use crate::support::{Family, Pair, PairOptions, Scenario, eventually, row, samples};

static FAMILY: Family = Family::const_new();

pub const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
pub const MERGE: &str = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"";
pub const ALL: [&str; 1] = ["SELECT * FROM t"];

/// Twenty rows on the source, and no publication yet.
pub async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(T).await;
    s.on_source("INSERT INTO t SELECT g, 'first' FROM generate_series(1, 20) g")
        .await;
    s
}

#[tokio::test]
async fn a_renamed_table_is_followed_by_its_new_name() {
    let s = scenario("renamed").await;
    s.publish_all().await;
    let mut daemon = s.start("[[tables]]\nsource = \"public.t\"").await;
    s.on_source("ALTER TABLE t RENAME TO t_new").await;
    s.on_source("UPDATE t_new SET v = 'renamed' WHERE id = 1")
        .await;
    s.until_failed(&mut daemon, &["public.t_new", "no rule speaks of"])
        .await;
    let rules = "[[tables]]\nsource = \"public.t_new\"\nreplica = \"public.t\"";
    let same = [("SELECT * FROM t_new", "SELECT * FROM t")];
    for _ in 0..2 {
        assert!(daemon.terminate().success());
        daemon = s.start(rules).await;
        s.on_source("INSERT INTO t_new SELECT max(id) + 1, 'renamed' FROM t_new")
            .await;
        s.in_step_mapped(&daemon, &same).await;
    }
}

#[tokio::test]
async fn a_table_that_was_copied_elsewhere_in_between_has_missed_changes() {
    let s = scenario("elsewhere").await;
    s.on_replica("CREATE TABLE u (id int PRIMARY KEY, v text)")
        .await;
    s.publish_all().await;
    let mut daemon = s.start(MERGE).await;
    s.in_step(&daemon, &ALL).await;
    for (from, to) in [("t", "u"), ("u", "t")] {
        s.on_source(&format!("ALTER TABLE {from} RENAME TO {to}"))
            .await;
        s.on_source(&format!("UPDATE {to} SET v = v || '+{to}' WHERE id < 5"))
            .await;
        let sql = format!("SELECT * FROM {to}");
        let copied = format!("SELECT count(*) FROM {to} WHERE v LIKE '%+{to}'");
        s.replica_eventually(&copied, "4").await;
        s.in_step(&daemon, &[&sql]).await;
    }
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_table_that_left_and_came_back_is_not_believed() {
    let s = scenario("came_back").await;
    s.publish("FOR TABLE t").await;
    let mut daemon = s.start("").await;
    assert!(daemon.terminate().success());
    let publication = s.slot();
    s.on_source(&format!("ALTER PUBLICATION {publication} DROP TABLE t"))
        .await;
    s.on_source("UPDATE t SET v = 'missed' WHERE id = 3").await;
    s.on_source(&format!("ALTER PUBLICATION {publication} ADD TABLE t"))
        .await;
    let said = s.refused("").await;
    assert!(
        said.contains("already hold rows") && said.contains("public.t"),
        "{said}"
    );
    let daemon = s.start(MERGE).await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn a_wider_filter_brings_the_rows_it_kept_out() {
    let s = scenario("wider").await;
    if !s.pair.has(15) {
        return;
    }
    s.publish("FOR TABLE t WHERE (id > 10)").await;
    let daemon = s.start(MERGE).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "10");
    s.on_source(&format!(
        "ALTER PUBLICATION {} SET TABLE t WHERE (id > 5)",
        s.slot()
    ))
    .await;
    s.replica_eventually("SELECT count(*) FROM t", "15").await;
    s.on_source("UPDATE t SET v = 'later' WHERE id IN (6, 20)")
        .await;
    s.in_step_mapped(&daemon, &[("SELECT * FROM t WHERE id > 5", ALL[0])])
        .await;
}

#[tokio::test]
async fn a_table_made_anew_under_its_name_is_another() {
    let s = scenario("anew").await;
    s.publish_all().await;
    let mut daemon = s.start(MERGE).await;
    assert!(daemon.terminate().success());
    s.on_source("INSERT INTO t VALUES (100, 'of the old one')")
        .await;
    s.on_source(&format!("DROP TABLE t; {T}")).await;
    s.on_source("INSERT INTO t VALUES (1, 'of the new one')")
        .await;
    let daemon = s.start(MERGE).await;
    s.in_step(&daemon, &ALL).await;
    // All of it in one transaction, while it runs.
    s.on_source(&format!(
        "BEGIN; INSERT INTO t VALUES (2, 'x'); DROP TABLE t; {T}; INSERT INTO t VALUES (3, 'y'); COMMIT"
    ))
    .await;
    s.on_source("INSERT INTO t VALUES (4, 'z')").await;
    s.replica_eventually("SELECT count(*) FROM t", "2").await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn old_forms_of_a_table_that_joins_are_none_of_the_replica_s() {
    let s = scenario("old_forms").await;
    s.publish("FOR TABLE t").await;
    let mut daemon = s.start("").await;
    assert!(daemon.terminate().success());
    // Published from its first row on, and then renamed, widened and narrowed.
    s.on_source("CREATE TABLE draft (id int PRIMARY KEY, old text)")
        .await;
    s.on_source(&format!("ALTER PUBLICATION {} ADD TABLE draft", s.slot()))
        .await;
    s.on_source("INSERT INTO draft VALUES (1, 'x')").await;
    s.on_source(
        "ALTER TABLE draft DROP old, ADD a int, ADD b text; INSERT INTO draft VALUES (2, 2, 'y')",
    )
    .await;
    s.on_source("ALTER TABLE draft RENAME TO final; INSERT INTO final VALUES (3, 3, 'z')")
        .await;
    s.on_replica("CREATE TABLE final (id int PRIMARY KEY, a int, b text)")
        .await;
    let daemon = s.start("").await;
    let both = ["SELECT * FROM t", "SELECT * FROM final"];
    s.in_step(&daemon, &both).await;
    s.on_source("UPDATE final SET b = 'new' WHERE id < 3; INSERT INTO final VALUES (4, 4, NULL)")
        .await;
    s.in_step(&daemon, &both).await;
}

#[tokio::test]
async fn a_form_that_changes_while_the_slot_is_made_is_read_again() {
    let s = scenario("forms").await;
    s.on_replica("ALTER TABLE t ADD late text").await;
    s.publish_all().await;
    let other = s.pair.source.connect(&s.name).await.unwrap();
    other
        .batch_execute("CREATE TABLE held (id int); BEGIN; INSERT INTO held VALUES (1)")
        .await
        .unwrap();
    s.on_replica("CREATE TABLE held (id int)").await;
    let daemon = s.launch("");
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event = 'transactionid'";
    eventually(
        "the slot to wait",
        || daemon.stderr(),
        async || (s.one(waits).await == "t").then_some(()),
    )
    .await;
    s.on_source("ALTER TABLE t ADD late text").await;
    s.on_source("UPDATE t SET late = 'filled'").await;
    other.batch_execute("COMMIT").await.unwrap();
    s.replica_eventually("SELECT count(*) FROM t WHERE late = 'filled'", "20")
        .await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn what_a_broken_copy_left_is_not_merged() {
    let s = scenario("left").await;
    s.publish_all().await;
    let keep = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"keep\"\n[apply]\non_conflict = \"replica_wins\"";
    let mut daemon = s.start(keep).await;
    assert!(daemon.terminate().success());
    // As a kill in the middle of a copy leaves it, and the source goes on.
    s.on_replica("UPDATE pglockstep.tables SET state = 'copying', copied_lsn = NULL; DELETE FROM t WHERE id > 10")
        .await;
    s.on_source("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'new' WHERE id = 2")
        .await;
    let daemon = s.start(keep).await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn rows_that_cannot_be_found_stop_it() {
    let s = scenario("unfound").await;
    s.on_both("CREATE TABLE loose (code text, v text)").await;
    s.on_source("ALTER TABLE loose REPLICA IDENTITY FULL").await;
    s.on_both(
        "CREATE TABLE parts (id int, at int NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE UNIQUE INDEX parts_1_other ON parts_1 (at)",
    )
    .await;
    s.on_source("ALTER TABLE parts_1 REPLICA IDENTITY USING INDEX parts_1_other; INSERT INTO parts VALUES (1, 1, 'x')")
        .await;
    s.publish("FOR ALL TABLES WITH (publish_via_partition_root)")
        .await;
    let said = s
        .refused("[[tables]]\nsource = \"public.loose\"\nkey = [\"code\"]")
        .await;
    assert!(said.contains("SET NOT NULL"), "{said}");
    let mut daemon = s.start("").await;
    s.on_source("DELETE FROM parts").await;
    s.until_state(&mut daemon, "failed").await;
    let health = daemon.http_get("/health").await.unwrap().body;
    assert!(
        health.contains("public.parts") && health.contains("cannot be found"),
        "{health}"
    );
}

#[tokio::test]
async fn rows_that_the_filter_keeps_out_need_no_key() {
    let s = Scenario::new(&FAMILY, "keyless").await;
    s.on_source("CREATE TABLE t (code text, v text)").await;
    s.on_source(
        "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (NULL, 'out'), ('a', 'in')",
    )
    .await;
    s.on_replica("CREATE TABLE t (code text PRIMARY KEY, v text)")
        .await;
    s.publish_all().await;
    let daemon = s
        .start("[[tables]]\nsource = \"public.t\"\nwhere = \"code IS NOT NULL\"")
        .await;
    for sql in [
        "UPDATE t SET v = 'still out' WHERE code IS NULL",
        "INSERT INTO t VALUES (NULL, 'comes in')",
        "UPDATE t SET code = 'b' WHERE v = 'comes in'",
        "DELETE FROM t WHERE code IS NULL",
        "UPDATE t SET code = NULL WHERE code = 'a'",
    ] {
        s.on_source(sql).await;
    }
    s.in_step_mapped(
        &daemon,
        &[("SELECT * FROM t WHERE code IS NOT NULL", ALL[0])],
    )
    .await;
}

#[tokio::test]
async fn a_whole_row_is_found_byte_by_byte() {
    let s = Scenario::new(&FAMILY, "bytes").await;
    s.on_source("CREATE TABLE t (v text)").await;
    s.on_source(
        "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES ('A'), ('a'), ('B'), ('b')",
    )
    .await;
    s.on_replica(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE t (v text COLLATE nocase)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.on_source("DELETE FROM t WHERE v = 'a'; UPDATE t SET v = 'c' WHERE v = 'b'")
        .await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn privileges_are_missed_before_anything_is_changed() {
    let mut s = scenario("privileges").await;
    s.on_replica("INSERT INTO t VALUES (99, 'the operator s')")
        .await;
    s.on_replica(
        "CREATE ROLE poor LOGIN; GRANT CREATE ON DATABASE privileges TO poor; GRANT SELECT ON t TO poor",
    )
    .await;
    s.publish_all().await;
    s.replica_role("poor");
    let said = s.refused("[copy]\nexisting_rows = \"truncate\"").await;
    for word in [
        "lacks INSERT, UPDATE, DELETE on public.t",
        "GRANT INSERT, UPDATE, DELETE ON TABLE",
    ] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(s.replica_rows("SELECT id FROM t").await, [row(["99"])]);
    let made = "SELECT to_regnamespace('pglockstep') IS NULL";
    assert_eq!(s.replica_one(made).await, "t");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = 'privileges'";
    assert_eq!(s.one(slots).await, "0");

    // Nor does it own the sequence that the source starts again.
    s.on_both("CREATE TABLE counted (id serial PRIMARY KEY)")
        .await;
    s.on_source("INSERT INTO counted DEFAULT VALUES").await;
    s.on_replica("DELETE FROM t; GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
        .await;
    let daemon = s.start("").await;
    s.on_source("TRUNCATE counted RESTART IDENTITY; INSERT INTO counted VALUES (7)")
        .await;
    s.in_step(&daemon, &["SELECT * FROM counted"]).await;
}

#[tokio::test]
async fn a_write_to_the_source_is_refused_and_counted() {
    let s = scenario("writes").await;
    s.publish("FOR TABLE t").await;
    s.on_both(
        "CREATE TABLE late (id int PRIMARY KEY); CREATE TABLE log (id int);
         CREATE FUNCTION note(int) RETURNS bool LANGUAGE sql AS 'INSERT INTO public.log VALUES ($1) RETURNING true'",
    )
    .await;
    s.on_source("INSERT INTO late VALUES (1)").await;
    let rules = "[[tables]]\nsource = \"public.t\"\n[[tables]]\nsource = \"public.lat*\"\nwhere = \"public.note(id)\"";
    let mut daemon = s.start(rules).await;
    let attempts = "pglockstep_source_write_attempts_total";
    assert_eq!(daemon.metric(attempts).await, Some(0.0));
    s.on_source(&format!("ALTER PUBLICATION {} ADD TABLE late", s.slot()))
        .await;
    s.on_source("INSERT INTO late VALUES (2)").await;
    s.until_state(&mut daemon, "failed").await;
    assert!(daemon.metric(attempts).await.unwrap() >= 1.0);
    assert_eq!(s.one("SELECT count(*) FROM log").await, "0");
}

#[tokio::test]
async fn the_slot_is_looked_at_while_the_replica_is_away() {
    let mut pair = Pair::start_with(PairOptions::default()).await;
    let s = Scenario::on_pair(&pair, "watched").await;
    s.on_both(T).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let source = pair.source.connect("watched").await.unwrap();
    source
        .batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '512MB'")
        .await
        .unwrap();
    source
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    drop(s);
    pair.replica.kill9();
    let retained = "pglockstep_slot_retained_bytes";
    eventually(
        "a look",
        || daemon.stderr(),
        async || daemon.metric(retained).await,
    )
    .await;
    let before = daemon.metric(retained).await.unwrap();
    source
        .batch_execute("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g")
        .await
        .unwrap();
    eventually(
        "the slot to grow",
        || daemon.stderr(),
        async || (daemon.metric(retained).await? > before + 1_000_000.0).then_some(()),
    )
    .await;
    let alive = samples(&daemon, "pglockstep_connection_state").await;
    let _ = alive;
    let forecast = "pglockstep_slot_exhaustion_seconds";
    let seconds = eventually(
        "a forecast",
        || daemon.stderr(),
        async || daemon.metric(forecast).await,
    )
    .await;
    assert!(seconds > 0.0, "{seconds}");
}

#[tokio::test]
async fn what_has_failed_stays_so_until_it_is_applied() {
    let s = scenario("stays").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.on_replica("ALTER TABLE t ADD CONSTRAINT narrow CHECK (id < 100)")
        .await;
    s.on_source("INSERT INTO t VALUES (100, 'x')").await;
    s.until_failed(&mut daemon, &["narrow"]).await;
    let errors = "pglockstep_errors_total{category=\"database\",severity=\"critical\"}";
    let first = daemon.metric(errors).await.unwrap();
    eventually(
        "three more attempts",
        || daemon.stderr(),
        async || {
            let health = daemon.http_get("/health").await?;
            assert_eq!(health.status, 503, "green while it is wrong: {health:?}");
            (daemon.metric(errors).await? >= first + 3.0).then_some(())
        },
    )
    .await;
    let errored = "pglockstep_table_state{table=\"public.t\",state=\"errored\"}";
    assert_eq!(daemon.metric(errored).await, Some(1.0));
    s.on_replica("ALTER TABLE t DROP CONSTRAINT narrow").await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(daemon.metric(errored).await, Some(0.0));
}
