//! The daemon ends, a server goes away: nothing is lost, and nothing comes twice.

use std::time::{Duration, Instant};

use pglockstep::demo::cluster::StopMode;

use super::counter::{ALL, Load, counter_goes_on, scenario, with_counter};
use crate::support::{Pair, Scenario, eventually};

#[tokio::test]
async fn ended_in_order_or_killed_it_goes_on_where_it_was() {
    let s = scenario("ended").await;
    let load = Load::start(s.pair.source.url(&s.name));
    for round in 0..8 {
        let mut daemon = s.start("").await;
        counter_goes_on(&s, 20).await;
        if round % 2 == 0 {
            let started = Instant::now();
            assert!(daemon.terminate().success(), "{}", daemon.stderr());
            assert!(started.elapsed() < Duration::from_secs(10));
            daemon.until_said("stopped").await;
        } else {
            daemon.kill9();
        }
    }
    let written = load.stop().await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(
        s.replica_one("SELECT count(*) FROM counter").await,
        (written + 1).to_string()
    );
}

#[tokio::test]
async fn ended_within_a_large_transaction_it_begins_it_again() {
    let s = scenario("amid").await;
    let mut daemon = s.start("[apply]\nbatch_changes_max = 500").await;
    for is_kill in [false, true] {
        s.on_source("INSERT INTO counter SELECT g, 'large' FROM generate_series(1, 60000) g")
            .await;
        // Part of it is written, and not yet to be seen.
        s.replica_eventually("SELECT pg_relation_size('counter') > 200000", "t")
            .await;
        if is_kill {
            daemon.kill9();
        } else {
            let started = Instant::now();
            assert!(daemon.terminate().success(), "{}", daemon.stderr());
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        daemon = s.start("[apply]\nbatch_changes_max = 500").await;
        s.in_step(&daemon, &ALL).await;
        s.on_source("TRUNCATE counter").await;
        s.in_step(&daemon, &ALL).await;
    }
}

#[tokio::test]
async fn a_replica_that_hangs_does_not_hold_up_the_end() {
    let s = scenario("hangs").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    s.on_replica("BEGIN; LOCK TABLE counter IN ACCESS EXCLUSIVE MODE")
        .await;
    s.on_source("INSERT INTO counter VALUES (1, 'waits')").await;
    let waits =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'counter'::regclass";
    s.replica_eventually(waits, "1").await;
    let started = Instant::now();
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    s.on_replica("ROLLBACK").await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn servers_restart_under_load() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, "servers").await;
    with_counter(&s).await;
    let mut daemon = s.start("").await;
    drop(s);
    let load = Load::start(pair.source.url("servers"));
    for (is_source, mode) in [
        (true, Some(StopMode::Fast)),
        (false, Some(StopMode::Immediate)),
        (true, Some(StopMode::Immediate)),
        (false, Some(StopMode::Fast)),
        (true, None),
        (false, None),
    ] {
        let cluster = if is_source {
            &mut pair.source
        } else {
            &mut pair.replica
        };
        match mode {
            Some(mode) => cluster.stop(mode).await.unwrap(),
            None => cluster.kill9(),
        }
        // It lives, says that it is not ready, and why.
        eventually(
            "it to notice",
            || daemon.stderr(),
            async || {
                let ready = daemon.http_get("/readyz").await?;
                (ready.status == 503 && ready.body.contains("starting")).then_some(())
            },
        )
        .await;
        assert_eq!(
            daemon.http_get("/health").await.unwrap().status,
            200,
            "it is being retried"
        );
        cluster.restart().await.unwrap();
        let s = Scenario::again(&pair, "servers").await;
        s.until_state(&mut daemon, "streaming").await;
        counter_goes_on(&s, 20).await;
    }
    load.stop().await;
    let s = Scenario::again(&pair, "servers").await;
    s.in_step(&daemon, &ALL).await;
    for side in ["source", "replica"] {
        let sample = format!("pglockstep_reconnects_total{{side=\"{side}\"}}");
        assert!(daemon.metric(&sample).await.unwrap() >= 1.0, "{side}");
    }
}
