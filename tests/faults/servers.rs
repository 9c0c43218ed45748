//! Servers that restart, freeze, are full, or end our sessions one by one.

use pglockstep::conn::{ConnectionUrl, Endpoint};
use pglockstep::demo::cluster::{ClusterOptions, StopMode};
use pglockstep::pg::Side;
use pglockstep::replication::ReplicationConnection;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::load::{Load, is_fed, prepare, reconnected, reconnects, under_load};
use super::{assert_not_failed, errors, last_error, says};
use crate::support::{Family, Pair, PairOptions, Scenario, eventually};

static FAMILY: Family = OnceCell::const_new();

async fn pair() -> &'static Pair {
    let options = || {
        ClusterOptions::default()
            .with("max_connections", "200")
            .with("max_wal_senders", "50")
            .with("max_replication_slots", "50")
    };
    let options = PairOptions {
        source: options(),
        // Time for the other party of a deadlock to join in.
        replica: options().with("deadlock_timeout", "4s"),
    };
    FAMILY.get_or_init(|| Pair::start_with(options)).await
}

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::on_pair(pair().await, name).await;
    prepare(&s, 100).await;
    s
}

#[tokio::test]
async fn restarts_are_seen_said_and_counted() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, "restarts").await;
    prepare(&s, 100).await;
    let (mut daemon, load) = under_load(&s).await;
    drop(s);
    for mode in [Some(StopMode::Fast), Some(StopMode::Immediate), None] {
        for side in ["source", "replica"] {
            let before = (
                reconnects(&daemon, side).await,
                errors(&daemon, "network").await,
            );
            let cluster = match side {
                "source" => &mut pair.source,
                _ => &mut pair.replica,
            };
            match mode {
                // A source that is told to stop waits until its walsenders have been answered.
                Some(mode) => cluster.stop(mode).await.unwrap(),
                None => cluster.kill9(),
            }
            says(&daemon, &format!("cannot connect to the {side}")).await;
            assert!(
                errors(&daemon, "network").await > before.1,
                "{side} {mode:?}"
            );
            cluster.restart().await.unwrap();
            reconnected(&daemon, side, before.0).await;
            let s = Scenario::again(&pair, "restarts").await;
            s.until_state(&mut daemon, "streaming").await;
            is_fed(&s, &daemon).await;
        }
    }
    let s = Scenario::again(&pair, "restarts").await;
    load.compare(&s, &daemon).await;
}

/// A setting of every session of the daemon on this side.
fn with_setting(url: &str, name: &str, value: &str) -> String {
    format!("{url}&options=-c%20{name}%3D{value}")
}

const WALSENDER: &str = "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE database = current_database()";

#[tokio::test]
async fn a_very_short_wal_sender_timeout_does_not_end_a_stream_that_waits_for_the_replica() {
    for (name, timeout) in [("timeout_1s", "1s"), ("timeout_off", "0")] {
        let mut s = Scenario::on_pair(pair().await, name).await;
        prepare(&s, 100).await;
        s.source_by(with_setting(
            &s.pair.source.url(name),
            "wal_sender_timeout",
            timeout,
        ));
        let daemon = s.start("").await;
        let walsender = s.one(WALSENDER).await;
        s.on_replica("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            .await;
        s.on_source("INSERT INTO t VALUES (1, 'waits')").await;
        // Three time-outs later it still answers.
        let now = s.one("SELECT clock_timestamp()::text").await;
        let later = format!(
            "SELECT coalesce(bool_or(reply_time > '{now}'::timestamptz + interval '3s'), false)
             FROM pg_stat_replication WHERE pid = {walsender}"
        );
        eventually(
            "answers",
            || s.pair.logs(),
            async || (s.one(&later).await == "t").then_some(()),
        )
        .await;
        s.on_replica("COMMIT").await;
        s.in_step(&daemon, &["SELECT * FROM t"]).await;
        assert_eq!(s.one(WALSENDER).await, walsender, "{}", daemon.stderr());
        assert_eq!(
            reconnects(&daemon, "source").await,
            0.0,
            "{}",
            daemon.stderr()
        );
    }
}

#[tokio::test]
async fn a_frozen_walsender_is_given_up_and_its_slot_waited_for() {
    let mut s = Scenario::on_pair(pair().await, "frozen").await;
    prepare(&s, 100).await;
    s.source_by(with_setting(
        &s.pair.source.url("frozen"),
        "wal_sender_timeout",
        "4s",
    ));
    let (mut daemon, load) = under_load(&s).await;
    let walsender: i32 = s.one(WALSENDER).await.parse().unwrap();
    let walsender = Pid::from_raw(walsender).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    says(&daemon, "the source has said nothing for").await;
    // The next one finds the slot in use, and says so.
    says(&daemon, "55006").await;
    kill_process(walsender, Signal::CONT).unwrap();
    s.until_state(&mut daemon, "streaming").await;
    assert!(reconnects(&daemon, "source").await >= 1.0);
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}

/// What an administrator has set for people's sessions does not end ours.
#[tokio::test]
async fn time_outs_of_the_role_do_not_count() {
    let mut s = scenario("time_outs").await;
    for client in [&s.source, &s.replica] {
        client
            .batch_execute(
                "CREATE ROLE hurried SUPERUSER LOGIN; ALTER ROLE hurried SET lock_timeout = '50ms';
                 ALTER ROLE hurried SET statement_timeout = '100ms';
                 ALTER ROLE hurried SET idle_in_transaction_session_timeout = '50ms';
                 ALTER ROLE hurried SET default_transaction_read_only = on;
                 ALTER ROLE hurried SET default_transaction_isolation = 'repeatable read'",
            )
            .await
            .unwrap();
    }
    let url = s
        .pair
        .replica
        .url(&s.name)
        .replace("//postgres@", "//hurried@");
    s.replica_by(url);
    let url = s
        .pair
        .source
        .url(&s.name)
        .replace("//postgres@", "//hurried@");
    s.source_by(url);
    let daemon = s.start("").await;
    s.on_replica("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await;
    s.on_source("INSERT INTO t VALUES (1, 'waits')").await;
    // A second is ten of its statement time-outs.
    let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE NOT granted AND relation = 't'::regclass AND query_start < clock_timestamp() - interval '1s'";
    s.replica_eventually(waits, "1").await;
    s.on_replica("COMMIT").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    assert_eq!(
        reconnects(&daemon, "replica").await,
        0.0,
        "{}",
        daemon.stderr()
    );

    // Read committed or not, a row that somebody else changed meanwhile is written in the end.
    s.on_replica("BEGIN; UPDATE t SET v = 'theirs' WHERE id = 1")
        .await;
    s.on_source("UPDATE t SET v = 'ours' WHERE id = 1").await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')";
    s.replica_eventually(waits, "1").await;
    s.on_replica("COMMIT").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
}

#[tokio::test]
async fn a_deadlock_that_we_lose_is_tried_again() {
    let s = scenario("deadlock").await;
    s.on_source("INSERT INTO t VALUES (1, 'x')").await;
    // Written change by change, a transaction takes its locks one by one.
    let mut daemon = s.start("[apply]\nbatch_changes_max = 1").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    let other = s.pair.replica.connect(&s.name).await.unwrap();
    // It waits for longer than we do, so it is we who find out.
    other
        .batch_execute(
            "SET deadlock_timeout = '60s'; BEGIN; UPDATE t SET v = 'theirs' WHERE id = 1",
        )
        .await
        .unwrap();
    s.on_source("BEGIN; UPDATE t SET v = 'ours' WHERE id = -1; UPDATE t SET v = 'ours' WHERE id = 1; COMMIT").await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
    s.replica_eventually(waits, "1").await;
    let theirs = tokio::spawn(async move {
        other
            .batch_execute("UPDATE t SET v = 'theirs' WHERE id = -1; ROLLBACK")
            .await
            .unwrap();
    });
    says(&daemon, "40P01").await;
    let failed = daemon.metric("pglockstep_state{state=\"failed\"}").await;
    assert_eq!(failed, Some(0.0), "{}", daemon.stderr());
    theirs.await.unwrap();
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
}

#[tokio::test]
async fn every_session_may_be_ended_by_an_administrator() {
    let s = scenario("ended_one_by_one").await;
    let mut daemon = s.start("").await;
    let load = Load::start(&s);
    let ours = "SELECT coalesce(string_agg(pid::text, ','), '') FROM pg_stat_activity
         WHERE application_name LIKE 'pglockstep%' AND datname = current_database()";
    for (side, client) in [("source", &s.source), ("replica", &s.replica)] {
        is_fed(&s, &daemon).await;
        let before = reconnects(&daemon, side).await;
        let row = client.query_one(ours, &[]).await.unwrap();
        let pids: String = row.get(0);
        assert!(!pids.is_empty(), "{side}");
        for pid in pids.split(',') {
            // It may have ended with one before.
            let end = format!("SELECT pg_terminate_backend({pid})");
            client.batch_execute(&end).await.unwrap();
            is_fed(&s, &daemon).await;
        }
        reconnected(&daemon, side, before).await;
        s.until_state(&mut daemon, "streaming").await;
    }
    load.compare(&s, &daemon).await;
}

/// Takes places until there is none left.
async fn take_all(pair: &Pair) -> Vec<Client> {
    let mut taken = Vec::new();
    while let Ok(client) = pair.replica.connect("postgres").await {
        taken.push(client);
    }
    assert!(!taken.is_empty());
    taken
}

#[tokio::test]
async fn no_place_left_on_a_server() {
    let source = ClusterOptions::default().with("max_wal_senders", "2");
    let replica = ClusterOptions::default().with("max_connections", "12");
    let pair = Pair::start_with(PairOptions { source, replica }).await;
    let s = Scenario::on_pair(&pair, "full_house").await;
    prepare(&s, 100).await;
    let taken = take_all(&pair).await;
    let mut daemon = s.launch("");
    says(&daemon, "53300").await;
    assert_not_failed(&daemon).await;
    assert!(
        last_error(&daemon)
            .await
            .contains("cannot connect to the replica")
    );
    drop(taken);
    s.until_state(&mut daemon, "streaming").await;

    let url = ConnectionUrl::parse(&pair.source.url("full_house").into()).unwrap();
    let endpoint = Endpoint::new(Side::Source, url, "somebody else");
    let mut taken = vec![ReplicationConnection::connect(&endpoint).await.unwrap()];
    let load = Load::start(&s);
    is_fed(&s, &daemon).await;
    s.on_source("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        .await;
    // Whoever is first; ours comes back in a moment.
    let evidence = || daemon.stderr();
    eventually("the daemon to find no place", evidence, async || {
        if let Ok(connection) = ReplicationConnection::connect(&endpoint).await {
            taken.push(connection);
        } else if daemon.stderr().contains("max_wal_senders") {
            return Some(());
        } else {
            s.on_source(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
            )
            .await;
        }
        None
    })
    .await;
    drop(taken);
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}

#[tokio::test]
async fn a_replica_that_is_a_standby_for_a_while() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, "standby_for_a_while").await;
    prepare(&s, 100).await;
    let (mut daemon, load) = under_load(&s).await;
    drop(s);
    pair.replica.stop(StopMode::Fast).await.unwrap();
    pair.replica.write_file("standby.signal", b"").unwrap();
    pair.replica.restart().await.unwrap();
    says(&daemon, "the replica is a standby and cannot be written").await;
    pair.replica
        .execute("postgres", "SELECT pg_promote()")
        .await
        .unwrap();
    let s = Scenario::again(&pair, "standby_for_a_while").await;
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}
