//! The source is promoted, or replaced by one that was behind: only the same history goes on.

use std::path::Path;
use std::process::Command;

use pglockstep::demo::cluster::{Cluster, StopMode};

use crate::support::{Pair, PairOptions, Scenario, eventually};

const NAME: &str = "timelines";
const ALL: [&str; 1] = ["SELECT * FROM t"];

/// As a standby that takes over: another timeline from here on.
async fn promote(source: &mut Cluster) {
    becomes_standby(source).await;
    let promote = "SELECT pg_promote()";
    source.execute("postgres", promote).await.unwrap();
}

async fn becomes_standby(source: &mut Cluster) {
    source.stop(StopMode::Fast).await.unwrap();
    source.write_file("standby.signal", b"").unwrap();
    source.restart().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

#[tokio::test]
async fn the_same_history_goes_on_and_another_does_not() {
    let mut pair = Pair::start_with(PairOptions::default()).await;
    let s = Scenario::on_pair(&pair, NAME).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    s.on_source("INSERT INTO t VALUES (1)").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    drop(s);
    promote(&mut pair.source).await;
    let s = Scenario::again(&pair, NAME).await;
    s.on_source("INSERT INTO t VALUES (2)").await;
    s.replica_eventually("SELECT count(*) FROM t", "2").await;
    s.in_step(&daemon, &ALL).await;
    let timeline = "SELECT timeline FROM pglockstep.pipelines";
    assert_eq!(s.replica_one(timeline).await, "2");
    assert!(daemon.terminate().success());
    drop(s);

    // A standby that does not have what the replica has.
    pair.source.stop(StopMode::Fast).await.unwrap();
    let data = pair.source.data_dir();
    let behind = data.with_file_name("behind");
    copy(&data, &behind);
    pair.source.restart().await.unwrap();
    let s = Scenario::again(&pair, NAME).await;
    s.on_source("INSERT INTO t VALUES (3)").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
    drop(s);
    pair.source.stop(StopMode::Fast).await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&behind, &data).unwrap();
    pair.source.restart().await.unwrap();
    promote(&mut pair.source).await;
    let s = Scenario::again(&pair, NAME).await;
    // Its log is longer than the replica's position by now: that alone would show nothing.
    s.on_source("INSERT INTO t SELECT generate_series(10, 20000)")
        .await;
    let said = s.refused("").await;
    assert!(
        said.contains("has left timeline 2") && said.contains("rebase"),
        "{said}"
    );
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "3");
}

/// A URL that leads to a standby: nothing is made there, and nothing given up.
#[tokio::test]
async fn a_source_that_is_a_standby_is_waited_for() {
    let mut pair = Pair::start_with(PairOptions::default()).await;
    let name = "still_standby";
    let s = Scenario::on_pair(&pair, name).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    s.on_source("INSERT INTO t VALUES (1)").await;
    drop(s);
    becomes_standby(&mut pair.source).await;
    let s = Scenario::again(&pair, name).await;
    let mut daemon = s.launch("");
    eventually(
        "its reason",
        || daemon.stderr(),
        async || {
            let said = daemon.http_get("/healthz").await?.body;
            (said.contains("waiting for the primary") && said.contains("\"starting\""))
                .then_some(())
        },
    )
    .await;
    let made = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(s.one(made).await, "0");
    let books = "SELECT to_regnamespace('pglockstep') IS NULL";
    assert_eq!(s.replica_one(books).await, "t");
    s.on_source("SELECT pg_promote()").await;
    s.until_state(&mut daemon, "streaming").await;
    s.on_source("INSERT INTO t VALUES (2)").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}
