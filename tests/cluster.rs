//! The harness itself: what it starts works, and nothing of it stays.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pglockstep::demo::cluster::{
    Cluster, ClusterError, ClusterOptions, StopMode, installed_majors,
};

use crate::support::{eventually, fetch_rows};

/// Set for the child process of [`a_killed_owner_leaves_nothing`].
const HOLD: &str = "PGLOCKSTEP_TEST_HOLDS_A_CLUSTER";

fn is_alive(pid: u32) -> bool {
    // A zombie whose parent has not looked yet is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z')
    })
}

#[tokio::test]
async fn every_major_streams_logically() {
    let majors = installed_majors();
    for wanted in [14, 15, 16, 17, 18] {
        assert!(
            majors.contains(&wanted),
            "PostgreSQL {wanted} is missing: run tests/install-postgres.sh"
        );
        let cluster = Cluster::start(ClusterOptions::version(wanted))
            .await
            .unwrap();
        let client = cluster.connect("postgres").await.unwrap();
        let rows = fetch_rows(
            &client,
            "SELECT current_setting('server_version_num')::int / 10000,
                    pg_create_logical_replication_slot('s', 'pgoutput') IS NOT NULL",
        )
        .await;
        assert_eq!(rows, [[Some(wanted.to_string()), Some("t".to_owned())]]);
    }
}

#[tokio::test]
async fn both_addresses_lead_to_it() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    cluster.create_database("a b/c").await.unwrap();
    for url in [cluster.url("a b/c"), cluster.tcp_url("a b/c")] {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        let rows = fetch_rows(&client, "SELECT current_database()").await;
        assert_eq!(rows, [[Some("a b/c".to_owned())]]);
    }
}

#[tokio::test]
async fn rows_and_port_survive_every_way_down() {
    let options = ClusterOptions::default().with("work_mem", "5MB");
    let mut cluster = Cluster::start(options).await.unwrap();
    let port = cluster.port();
    cluster
        .execute("postgres", "CREATE TABLE t (way text)")
        .await
        .unwrap();
    for way in ["fast", "immediate", "kill"] {
        cluster
            .execute("postgres", &format!("INSERT INTO t VALUES ('{way}')"))
            .await
            .unwrap();
        let pid = cluster.pid().unwrap();
        match way {
            "fast" => cluster.stop(StopMode::Fast).await.unwrap(),
            "immediate" => cluster.stop(StopMode::Immediate).await.unwrap(),
            _ => cluster.kill9(),
        }
        assert!(!is_alive(pid) && cluster.pid().is_none());
        assert!(cluster.connect("postgres").await.is_err());
        cluster.restart().await.unwrap();
        assert_eq!(cluster.port(), port);
    }
    cluster.alter_system("work_mem", "6MB").await.unwrap();
    let client = cluster.connect("postgres").await.unwrap();
    assert_eq!(fetch_rows(&client, "SELECT way FROM t").await.len(), 3);
    eventually(
        "the setting is reloaded",
        || cluster.log_tail(20),
        async || {
            let rows = fetch_rows(&client, "SHOW work_mem").await;
            (rows == [[Some("6MB".to_owned())]]).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn two_clusters_are_two_systems() {
    let (one, other) = tokio::join!(
        Cluster::start(ClusterOptions::default()),
        Cluster::start(ClusterOptions::default())
    );
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let (one, other) = (one.unwrap(), other.unwrap());
    let (one, other) = (
        one.connect("postgres").await.unwrap(),
        other.connect("postgres").await.unwrap(),
    );
    assert_ne!(fetch_rows(&one, sql).await, fetch_rows(&other, sql).await);
}

#[tokio::test]
async fn a_bad_setting_is_told_in_the_server_s_words() {
    let options = ClusterOptions::default().with("wal_level", "nonsense");
    let error = Cluster::start(options).await.unwrap_err();
    assert!(matches!(error, ClusterError::Exited { .. }), "{error:?}");
    assert!(error.to_string().contains("wal_level"), "{error}");
}

#[tokio::test]
async fn a_missing_major_is_told_with_its_remedy() {
    let error = Cluster::start(ClusterOptions::version(9))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("tests/install-postgres.sh"),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_cluster_leaves_nothing() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let (pid, folder) = (cluster.pid().unwrap(), cluster.socket_dir().to_owned());
    assert!(is_alive(pid) && folder.exists());
    drop(cluster);
    assert!(!is_alive(pid) && !folder.exists());
}

/// Not a test by itself: see [`a_killed_owner_leaves_nothing`].
#[tokio::test]
async fn hold_a_cluster() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    println!(
        "\nholding {} {}",
        cluster.pid().unwrap(),
        cluster.socket_dir().display()
    );
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_owner_leaves_nothing() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cluster::hold_a_cluster", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (pid, folder): (u32, PathBuf) = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .find_map(|line| {
            let line = line.unwrap();
            let (pid, folder) = line.strip_prefix("holding ")?.split_once(' ')?;
            Some((pid.parse().unwrap(), Path::new(folder).to_owned()))
        })
        .expect("the owner tells what it holds");
    assert!(is_alive(pid) && folder.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("server and folder are gone", String::new, async || {
        (!is_alive(pid) && !folder.exists()).then_some(())
    })
    .await;
}
