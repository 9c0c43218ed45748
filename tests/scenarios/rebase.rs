//! Where a history is over, nothing is skipped and nothing thrown away: the operator is shown
//! both sides, and every table is merged under a new slot.

use crate::support::{Daemon, Family, Pair, PairOptions, Scenario, eventually, run_verb};
use pglockstep::demo::cluster::StopMode;
use serde_json::Value;
use tokio_postgres::Client;

static FAMILY: Family = Family::const_new();

pub(super) const TABLES: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE journal (what text)";
pub(super) const FILL: &str = "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 20) g; \
                    INSERT INTO journal VALUES ('first')";
pub(super) const ALL: [&str; 2] = ["SELECT * FROM t", "SELECT * FROM journal"];

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(TABLES).await;
    s.on_source(FILL).await;
    s.publish_all().await;
    s
}

/// A daemon ran until both sides were the same, and was ended.
pub(super) async fn fed_and_ended(s: &Scenario<'_>) {
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

/// Holds up `t` on the replica until this client rolls back, with so many rows of about 1 KB on
/// their way to it.
async fn stuck(s: &Scenario<'_>, rows: u32) -> Client {
    let client = s.pair.replica.connect(&s.name).await.unwrap();
    let lock = "BEGIN; LOCK TABLE t IN SHARE MODE";
    client.batch_execute(lock).await.unwrap();
    s.on_source(&format!(
        "INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(2000, 2000 + {rows}) g"
    ))
    .await;
    client
}

/// How many slots of the pipeline's name there are.
async fn slots(s: &Scenario<'_>) -> String {
    s.one(&format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'",
        s.slot()
    ))
    .await
}

fn rebase(s: &Scenario<'_>, more: &[&str]) -> (Option<i32>, Value, String) {
    let arguments: Vec<&str> = ["rebase", "--json"].iter().chain(more).copied().collect();
    let output = run_verb(&s.config(""), &arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report, said)
}

/// Shows what is over, changes nothing, then begins anew.
pub(super) async fn goes_on_after_rebase(s: &Scenario<'_>, why: &str) {
    let said = s.refused("").await;
    assert!(said.contains(why) && said.contains("rebase"), "{said}");
    let books = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM pglockstep.tables t";
    let before = s.replica_one(books).await;
    let (code, report, said) = rebase(s, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(report["over"].as_str().unwrap().contains(why), "{report}");
    assert_eq!(report["tables"][0]["table"], "public.journal");
    assert_eq!(report["tables"][0]["same"], true, "{report}");
    assert_eq!(report["tables"][1]["same"], false, "{report}");
    let (code, _, said) = rebase(s, &["--apply"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(s.replica_one(books).await, before, "nothing was changed");
    let (code, report, said) = rebase(s, &["--apply", "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["done"], true);
    let mut daemon = s.start("").await;
    s.on_source("INSERT INTO t VALUES (1000, 'after')").await;
    s.in_step(&daemon, &ALL).await;
    let (code, report, said) = rebase(s, &[]);
    assert_eq!(code, Some(0), "nothing to rebase: {said}");
    assert_eq!(report["over"], Value::Null);
    let (code, _, said) = rebase(s, &["--force", "--apply", "--yes"]);
    assert!(code == Some(2) && said.contains("a daemon holds"), "{said}");
    s.on_source("INSERT INTO t VALUES (1001, 'and on')").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_slot_that_was_dropped() {
    let s = scenario("rebase_dropped").await;
    fed_and_ended(&s).await;
    s.on_source(&format!("SELECT pg_drop_replication_slot('{}')", s.slot()))
        .await;
    s.on_source("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'unseen' WHERE id = 2")
        .await;
    s.on_replica("INSERT INTO t VALUES (99, 'stray')").await;
    goes_on_after_rebase(&s, "is gone").await;
}

#[tokio::test]
async fn a_slot_that_somebody_moved_on() {
    let s = scenario("rebase_moved").await;
    fed_and_ended(&s).await;
    s.on_source("UPDATE t SET v = 'unseen' WHERE id = 2").await;
    let slot = s.slot();
    s.on_source(&format!(
        "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
    ))
    .await;
    goes_on_after_rebase(&s, "beyond what this replica has applied").await;
}

#[tokio::test]
async fn a_source_that_was_restored_into_another_database() {
    let s = scenario("rebase_restored").await;
    fed_and_ended(&s).await;
    let (pair, name) = (s.pair, s.name.clone());
    s.on_source(&format!("SELECT pg_drop_replication_slot('{}')", s.slot()))
        .await;
    drop(s);
    let rename = format!("ALTER DATABASE {name} RENAME TO {name}_old");
    eventually(
        "the old database to be left",
        || pair.logs(),
        async || pair.source.execute("postgres", &rename).await.ok(),
    )
    .await;
    pair.source.create_database(&name).await.unwrap();
    let s = Scenario::again(pair, &name).await;
    // Other object ids, and one row less.
    s.on_source("CREATE TABLE before_it (id int); DROP TABLE before_it")
        .await;
    s.on_source(TABLES).await;
    s.on_source(FILL).await;
    s.on_source("DELETE FROM t WHERE id = 7").await;
    s.publish_all().await;
    goes_on_after_rebase(&s, "was fed from").await;
}

#[tokio::test]
async fn a_slot_over_its_budget_is_dropped_where_that_is_wanted() {
    let s = scenario("budget_drop").await;
    let budget = "[slot]\nwarn_beyond = \"16MiB\"\ndrop_beyond = \"32MiB\"";
    let mut daemon = s.start(budget).await;
    s.in_step(&daemon, &ALL).await;
    let stuck = stuck(&s, 40_000).await;
    s.until_failed(&mut daemon, &["drop_beyond", "dropped to save the source"])
        .await;
    assert_eq!(slots(&s).await, "0");
    stuck.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "20");
    // It says so at each attempt, and goes on by itself once somebody has decided.
    s.until_failed(&mut daemon, &["rebase"]).await;
    let begun = run_verb(&s.config(budget), &["rebase", "--apply", "--yes"]);
    assert!(begun.status.success(), "{begun:?}");
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

/// That it would be dropped was noted, and then it was not: the daemon died in between.
#[tokio::test]
async fn a_slot_that_was_given_up_and_is_still_there_goes_on() {
    let s = scenario("given_up").await;
    fed_and_ended(&s).await;
    s.on_replica("UPDATE pglockstep.pipelines SET given_up = 'it was dropped to save the source'")
        .await;
    s.on_source("UPDATE t SET v = 'later' WHERE id = 5").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    let noted = "SELECT given_up FROM pglockstep.pipelines";
    assert_eq!(s.replica_one(noted).await, "NULL");
    assert!(daemon.terminate().success());
}

/// Another slot in the configuration: somebody else's, or the one that was forgotten.
#[tokio::test]
async fn a_slot_that_is_not_ours_is_never_dropped() {
    let s = scenario("foreign_slot").await;
    fed_and_ended(&s).await;
    s.on_source("SELECT pg_create_logical_replication_slot('somebody_elses', 'pgoutput')")
        .await;
    let config = s
        .config("[slot]\nwarn_beyond = \"1MiB\"\ndrop_beyond = \"1MiB\"")
        .replace(
            &format!("slot = \"{}\"", s.slot()),
            "slot = \"somebody_elses\"",
        );
    let begun = run_verb(&config, &["rebase", "--apply", "--yes"]);
    let said = String::from_utf8(begun.stderr).unwrap();
    assert!(
        begun.status.code() == Some(2) && said.contains("somebody_elses"),
        "{said}"
    );
    // A daemon that cannot begin looks at the slot all the same.
    s.on_source("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(5000, 9000) g")
        .await;
    let nowhere = config.replace(
        &s.pair.replica.url(&s.name),
        "postgres://postgres@127.0.0.1:1/none?sslmode=disable",
    );
    let daemon = Daemon::start(&nowhere);
    eventually(
        "the slot to be looked at",
        || daemon.stderr(),
        async || {
            let beyond = daemon.stderr().contains("drop_beyond");
            let retained = daemon.metric("pglockstep_slot_retained_bytes").await?;
            (beyond && retained > 1_048_576.0).then_some(())
        },
    )
    .await;
    drop(daemon);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = 'foreign_slot'";
    assert_eq!(s.one(slots).await, "2", "both are there");
}

#[tokio::test]
async fn a_rebase_that_is_overtaken_begins_again_and_spares_what_it_does_not_know() {
    let s = scenario("rebase_twice").await;
    fed_and_ended(&s).await;
    let drop_slot = format!("SELECT pg_drop_replication_slot('{}')", s.slot());
    s.on_source(&drop_slot).await;
    assert_eq!(rebase(&s, &["--apply", "--yes"]).0, Some(0));
    // A table joins whose rows on the replica are somebody's own.
    s.on_both("CREATE TABLE own (id int PRIMARY KEY)").await;
    s.on_replica("INSERT INTO own SELECT generate_series(1, 3)")
        .await;
    let said = s.refused("").await;
    assert!(
        said.contains("public.own") && said.contains("already hold"),
        "{said}"
    );
    assert_eq!(s.replica_one("SELECT count(*) FROM own").await, "3");
    s.on_both("DROP TABLE own").await;
    // The new slot goes while the tables are being merged.
    s.on_replica("BEGIN; ALTER TABLE t ADD CHECK (id <> 4) NOT VALID; COMMIT")
        .await;
    s.on_replica("DELETE FROM t WHERE id = 4").await;
    s.refused("").await;
    assert_eq!(slots(&s).await, "1");
    s.on_source(&drop_slot).await;
    s.on_replica("ALTER TABLE t DROP CONSTRAINT t_id_check")
        .await;
    let said = s.refused("").await;
    assert!(said.contains("is gone"), "{said}");
    let (code, report, said) = rebase(&s, &["--apply", "--yes"]);
    assert!(code == Some(0) && report["done"] == true, "{said}");
    fed_and_ended(&s).await;
}

#[tokio::test]
async fn a_slot_over_its_budget_is_held_where_nothing_else_is_said() {
    let s = scenario("budget_hold").await;
    let budget = "[slot]\nwarn_beyond = \"1MiB\"\ncritical_beyond = \"2MiB\"";
    let mut daemon = s.start(budget).await;
    let stuck = stuck(&s, 5_000).await;
    let critical = "pglockstep_slot_budget_bytes{budget=\"critical\"}";
    eventually(
        "the budget to be spent",
        || daemon.stderr(),
        async || {
            let kept = daemon.metric("pglockstep_slot_retained_bytes").await?;
            let is_told = daemon.stderr().contains("critical_beyond");
            (is_told && kept > daemon.metric(critical).await?).then_some(())
        },
    )
    .await;
    stuck.batch_execute("ROLLBACK").await.unwrap();
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

/// A replica that goes back, as to a standby that lacked the last transactions.
#[tokio::test]
async fn a_held_back_slot_still_has_what_a_replica_lost_in_a_failover() {
    let mut pair = Pair::start_with(PairOptions::default()).await;
    pair.on_both(TABLES).await;
    pair.on_source(FILL).await;
    pair.on_source("CREATE PUBLICATION pglockstep_it FOR ALL TABLES")
        .await;
    for (holdback, goes_on) in [("10m", true), ("0s", false)] {
        let more = format!(
            "[retry]\ndelay_max = \"500ms\"\n[slot]\nholdback = \"{holdback}\"\n\
             [copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\""
        );
        let daemon = Daemon::start(&pair.config(&more));
        same_rows(&pair).await;
        pair.replica.stop(StopMode::Fast).await.unwrap();
        let data = pair.replica.data_dir();
        let standby = data.with_extension(format!("standby_{holdback}"));
        run(
            "cp",
            &["-a", data.to_str().unwrap(), standby.to_str().unwrap()],
        );
        pair.replica.restart().await.unwrap();
        pair.on_source(
            "INSERT INTO t SELECT max(id) + 1, 'lost' FROM t; INSERT INTO journal VALUES ('lost')",
        )
        .await;
        let (source, _) = pair.clients().await;
        let one = async |sql: &str| {
            source
                .query_one(sql, &[])
                .await
                .unwrap()
                .get::<_, String>(0)
        };
        let end = one("SELECT pg_current_wal_lsn()::text").await;
        let end_number = one(&format!("SELECT ('{end}' - '0/0'::pg_lsn)::text")).await;
        let end_number: f64 = end_number.parse().unwrap();
        same_rows(&pair).await;
        eventually(
            "all to be durable",
            || daemon.stderr(),
            async || (daemon.metric("pglockstep_flushed_lsn").await? >= end_number).then_some(()),
        )
        .await;
        // The source is told every second; what it was told then, the slot has by the next time.
        let mark = one("SELECT clock_timestamp()::text").await;
        let told = format!(
            "SELECT coalesce(bool_or(replay_lsn >= '{end}' AND reply_time > '{mark}'::timestamptz
             + interval '2s'), false)::text FROM pg_stat_replication"
        );
        eventually(
            "the source to be told",
            || format!("{}\n{}", daemon.stderr(), pair.logs()),
            async || (one(&told).await == "true").then_some(()),
        )
        .await;
        let moved = format!(
            "SELECT bool_and(confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots"
        );
        assert_eq!(one(&moved).await, (!goes_on).to_string(), "{holdback}");
        pair.replica.kill9();
        run("rm", &["-rf", data.to_str().unwrap()]);
        run("mv", &[standby.to_str().unwrap(), data.to_str().unwrap()]);
        pair.replica.restart().await.unwrap();
        if goes_on {
            same_rows(&pair).await;
            drop(daemon);
            let (source, replica) = pair.clients().await;
            let slot = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
            eventually(
                "the slot to be free",
                || pair.logs(),
                async || source.batch_execute(slot).await.ok(),
            )
            .await;
            let books = "DROP SCHEMA pglockstep CASCADE; TRUNCATE journal";
            replica.batch_execute(books).await.unwrap();
        } else {
            daemon
                .until_said("beyond what this replica has applied")
                .await;
        }
    }
}

async fn same_rows(pair: &Pair) {
    for sql in ALL {
        pair.eventually_same_rows(sql, sql).await;
    }
}

fn run(program: &str, arguments: &[&str]) {
    let done = std::process::Command::new(program).args(arguments).status();
    assert!(done.unwrap().success(), "{program} {arguments:?}");
}
