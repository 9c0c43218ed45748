//! Bugs that only real servers can show, each planted in the program: what the tests look at
//! changes with the bug, and is as it must be without.

use pglockstep::faults::{Bug, Caught};

use super::Run;
use super::lane::Lane;
use crate::support::{Daemon, Family, Scenario, eventually, fetch_rows, row_differences};

static FAMILY: Family = Family::const_new();

/// What is caught here, and by which test.
const HERE: [(Bug, &str); 6] = [
    (
        Bug::PositionApart,
        "a_position_that_moves_apart_from_its_data_is_noticed",
    ),
    (
        Bug::SkipEpochCheck,
        "whoever_lost_the_pipeline_writes_no_more",
    ),
    (Bug::DropTruncate, LEDGER),
    (Bug::LoseRow, LEDGER),
    (Bug::LosePart, LEDGER),
    (
        Bug::SettingsNotPinned,
        "settings_of_a_database_do_not_reach_the_replica",
    ),
];

const LEDGER: &str = "what_is_lost_on_the_way_is_missing_in_the_ledger";

/// Those of the simulation are caught there: it goes through the same list.
#[test]
fn every_bug_that_needs_servers_is_caught_here() {
    let needs_servers = |bug: &Bug| bug.caught().contains(&Caught::OnServers);
    let wanted: Vec<Bug> = Bug::ALL.iter().copied().filter(needs_servers).collect();
    assert_eq!(HERE.map(|(bug, _)| bug).as_slice(), wanted);
    let text = include_str!("planted.rs");
    for (bug, test) in HERE {
        let (_, body) = text.split_once(&format!("async fn {test}()")).unwrap();
        let body = body.split("\n}").next().unwrap();
        assert!(body.contains(&format!("Bug::{bug:?}")), "{test}");
    }
}

async fn start(s: &Scenario<'_>, bug: Option<Bug>) -> Daemon {
    let bug = bug.map(Bug::name);
    let planted: Vec<_> = bug
        .map(|bug| ("PGLOCKSTEP_PLANTED", bug))
        .into_iter()
        .collect();
    let mut daemon = Daemon::start_with(&s.config(""), &planted);
    s.until_state(&mut daemon, "streaming").await;
    if let Some(bug) = bug {
        daemon.until_said(&format!("planted: {bug}")).await;
    }
    daemon
}

/// Another daemon takes over while this one streams: it writes no more under its old epoch.
async fn writes_under_an_old_epoch(name: &str, bug: Option<Bug>) -> bool {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    let daemon = start(&s, bug).await;
    s.on_replica("UPDATE pglockstep.pipelines SET epoch = 1000")
        .await;
    s.on_source("INSERT INTO t VALUES (1)").await;
    s.replica_eventually("SELECT count(*) FROM t", "1").await;
    let epoch = s
        .replica_one("SELECT epoch FROM pglockstep.pipelines")
        .await;
    let has_noticed = daemon.stderr().contains("another daemon has taken over");
    assert_eq!(has_noticed, epoch != "1000", "{epoch}\n{}", daemon.stderr());
    !has_noticed
}

#[tokio::test]
async fn whoever_lost_the_pipeline_writes_no_more() {
    assert!(!writes_under_an_old_epoch("epoch", None).await);
    assert!(writes_under_an_old_epoch("epoch_bug", Some(Bug::SkipEpochCheck)).await);
}

/// Values that databases render as their settings say.
const VALUES: &str = "INSERT INTO t SELECT i, date '2024-02-03', timestamptz '2024-02-03 04:05:06+00', \
     interval '1 mon -2 days', 0.1::float8 + 0.2, '\\x00ff'::bytea, 'pg_class'::regclass FROM generate_series(1, 3) i";

async fn differs_under_other_settings(name: &str, bug: Option<Bug>) -> bool {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(
        // With a column that makes all values come as text.
        "CREATE TABLE t (id int PRIMARY KEY, d date, t timestamptz, i interval, f float8, b bytea, \
         as_text regclass)",
    )
    .await;
    s.publish_all().await;
    for (setting, value) in [
        ("DateStyle", "'SQL, DMY'"),
        ("IntervalStyle", "sql_standard"),
        ("extra_float_digits", "-5"),
        ("TimeZone", "'Asia/Kathmandu'"),
    ] {
        s.on_source(&format!("ALTER DATABASE {name} SET {setting} = {value}"))
            .await;
    }
    // These were opened before, and show what is stored.
    let mut daemon = start(&s, bug).await;
    s.on_source(VALUES).await;
    s.replica_eventually("SELECT count(*) FROM t", "3").await;
    let (source, replica) = (
        fetch_rows(&s.source, "SELECT * FROM t").await,
        fetch_rows(&s.replica, "SELECT * FROM t").await,
    );
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    row_differences(&source, &replica).is_some()
}

#[tokio::test]
async fn settings_of_a_database_do_not_reach_the_replica() {
    assert!(!differs_under_other_settings("settings", None).await);
    assert!(differs_under_other_settings("settings_bug", Some(Bug::SettingsNotPinned)).await);
}

/// How many changes of a table are accounted for nowhere once its daemon believes to have applied all.
async fn missing_in_the_ledger(name: &str, bug: Option<Bug>) -> f64 {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE late (id int PRIMARY KEY)",
    )
    .await;
    s.publish_all().await;
    // What is large is sent while it runs.
    s.on_source(&format!(
        "ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'"
    ))
    .await;
    let mut daemon = start(&s, bug).await;
    // Merged into few rows, or none; a truncation; and parts of which one rolls back.
    s.on_source(
        "BEGIN; INSERT INTO t SELECT i, 'a' FROM generate_series(1, 5) i; UPDATE t SET v = 'b' WHERE id < 4; \
         DELETE FROM t WHERE id = 1; UPDATE t SET id = 9 WHERE id = 2; COMMIT",
    )
    .await;
    s.on_source("TRUNCATE t").await;
    let parts = "INSERT INTO t SELECT i, repeat('x', 40) FROM generate_series";
    s.on_source(&format!(
        "BEGIN; {parts}(1, 4000) i; SAVEPOINT a; {parts}(4001, 8000) i; ROLLBACK TO a; {parts}(8001, 9000) i; COMMIT"
    ))
    .await;
    s.on_source("INSERT INTO late VALUES (1)").await;
    let table = "pglockstep_changes_applied_total{table=\"public.late\",op=\"insert\"}";
    let late = if bug == Some(Bug::LoseRow) { 0.0 } else { 1.0 };
    let evidence = || format!("{bug:?}\n{}", daemon.stderr());
    let end = s.one("SELECT pg_current_wal_insert_lsn() - '0/0'").await;
    let end: f64 = end.parse().unwrap();
    eventually("all to be passed", evidence, async || {
        (daemon.metric("pglockstep_applied_lsn").await? >= end).then_some(())
    })
    .await;
    eventually("what is counted", evidence, async || {
        (daemon.metric(table).await? == late).then_some(())
    })
    .await;
    let words = "accounted for nowhere";
    if bug.is_some() {
        daemon.until_said(words).await;
    }
    let imbalance = "pglockstep_ledger_imbalance{table=\"public.t\"}";
    let missing = daemon.metric(imbalance).await.unwrap();
    // It looks once more when it ends.
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    assert_eq!(
        daemon.stderr().contains(words),
        bug.is_some(),
        "{}",
        daemon.stderr()
    );
    missing
}

#[tokio::test]
async fn what_is_lost_on_the_way_is_missing_in_the_ledger() {
    for (name, bug, missing) in [
        ("ledger", None, 0.0),
        ("ledger_truncate", Some(Bug::DropTruncate), 1.0),
        ("ledger_part", Some(Bug::LosePart), 5_000.0),
        // The first row of each batch, however many batches there were.
        ("ledger_row", Some(Bug::LoseRow), f64::NAN),
    ] {
        let found = missing_in_the_ledger(name, bug).await;
        assert!(
            found == missing || missing.is_nan() && found > 0.0,
            "{bug:?}: {found}"
        );
    }
}

/// Killed between the two, it has lost transactions.
#[tokio::test]
async fn a_position_that_moves_apart_from_its_data_is_noticed() {
    let bug = Some(Bug::PositionApart.name());
    let here = tokio::task::LocalSet::new();
    let run = here.spawn_local(async move {
        let lane = Lane::new("lane_bug").await;
        lane.run(&Run::named("apply.begun=kill@1"), bug).await;
    });
    here.await;
    let noticed = run.await.unwrap_err().into_panic();
    let noticed = noticed.downcast_ref::<String>().unwrap();
    assert!(noticed.contains("more on the source"), "{noticed}");
}
