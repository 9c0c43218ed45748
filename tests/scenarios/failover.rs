//! The source fails over to a standby that holds a synchronised copy of the slot (17 and later):
//! the daemon follows by itself, and nothing is lost.

use pglockstep::demo::cluster::{Cluster, ClusterOptions, StopMode};

use crate::support::{DATABASE, Daemon, Pair, PairOptions, eventually};

const ALL: [&str; 2] = ["SELECT * FROM t", "SELECT * FROM journal"];
const SLOT: &str = "pglockstep_it";

/// A standby of the source, with its slots.
async fn standby_of(source: &mut Cluster, major: u32) -> Cluster {
    source
        .execute(
            "postgres",
            "SELECT pg_create_physical_replication_slot('standby')",
        )
        .await
        .unwrap();
    // The daemon is sent only what the standby has.
    source
        .alter_system("synchronized_standby_slots", "standby")
        .await
        .unwrap();
    let mut standby = Cluster::start(ClusterOptions::version(major))
        .await
        .unwrap();
    standby.stop(StopMode::Fast).await.unwrap();
    source.stop(StopMode::Fast).await.unwrap();
    let data = standby.data_dir();
    std::fs::remove_dir_all(&data).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([source.data_dir(), data])
        .status();
    assert!(copied.unwrap().success());
    source.restart().await.unwrap();
    let (folder, port) = (source.socket_dir().display(), source.port());
    let settings = format!(
        "primary_conninfo = 'host={folder} port={port} user=postgres dbname={DATABASE}'\n\
         primary_slot_name = 'standby'\nhot_standby_feedback = on\nsync_replication_slots = on\n"
    );
    standby
        .write_file("postgresql.auto.conf", settings.as_bytes())
        .unwrap();
    standby.write_file("standby.signal", b"").unwrap();
    standby.restart().await.unwrap();
    standby
}

async fn same_rows(pair: &Pair, source: &Cluster) {
    let source = source.connect(DATABASE).await.unwrap();
    let replica = pair.replica.connect(DATABASE).await.unwrap();
    for sql in ALL {
        let sum = format!("SELECT count(*), sum(hashtext(t::text)) FROM ({sql}) AS t");
        eventually(
            sql,
            || pair.logs(),
            async || {
                let digest = async |client: &tokio_postgres::Client| {
                    let row = client.query_one(&sum, &[]).await.unwrap();
                    (row.get::<_, i64>(0), row.get::<_, Option<i64>>(1))
                };
                (digest(&source).await == digest(&replica).await).then_some(())
            },
        )
        .await;
    }
}

#[tokio::test]
async fn a_synchronised_slot_is_followed_to_the_new_primary() {
    for major in [17, 18] {
        is_followed(major).await;
    }
}

async fn is_followed(major: u32) {
    let options = PairOptions {
        source: ClusterOptions::version(major),
        replica: ClusterOptions::version(major),
    };
    let mut pair = Pair::start_with(options).await;
    let mut standby = standby_of(&mut pair.source, major).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE journal (what text)")
        .await;
    pair.on_source(
        "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 50) g; \
         CREATE PUBLICATION pglockstep_it FOR ALL TABLES",
    )
    .await;
    let hosts = |of: fn(&Cluster) -> String| format!("{},{}", of(&pair.source), of(&standby));
    let source = format!(
        "host={} port={} user=postgres dbname={DATABASE} target_session_attrs=read-write",
        hosts(|cluster| cluster.socket_dir().display().to_string()),
        hosts(|cluster| cluster.port().to_string()),
    );
    let config = pair
        .config("[retry]\ndelay_max = \"500ms\"")
        .replace(&pair.source.url(DATABASE), &source);
    // Somebody thinks of it later: the slot is there already.
    let mut daemon = Daemon::start(&config);
    same_rows(&pair, &pair.source).await;
    assert!(daemon.terminate().success());
    let config = config.replace(
        "slot = \"pglockstep_it\"",
        "slot = \"pglockstep_it\"\nfailover = true",
    );
    let mut daemon = Daemon::start(&config);
    same_rows(&pair, &pair.source).await;
    let there = standby.connect("postgres").await.unwrap();
    let synced = "SELECT count(*) FROM pg_replication_slots \
                  WHERE slot_name = $1 AND synced AND NOT temporary";
    // A synchronised slot becomes lasting once the source's has moved beyond where the copy began.
    eventually(
        "the slot to be synchronised",
        || daemon.stderr(),
        async || {
            pair.on_source("INSERT INTO journal VALUES ('meanwhile')")
                .await;
            let row = there.query_one(synced, &[&SLOT]).await.unwrap();
            (row.get::<_, i64>(0) == 1).then_some(())
        },
    )
    .await;
    pair.on_source("UPDATE t SET v = 'last' WHERE id < 20; INSERT INTO journal VALUES ('last')")
        .await;
    same_rows(&pair, &pair.source).await;
    pair.source.kill9();
    there.batch_execute("SELECT pg_promote()").await.unwrap();
    // What the old primary had and the replica has, the new one has too.
    same_rows(&pair, &standby).await;
    standby
        .execute(
            DATABASE,
            "INSERT INTO t SELECT g, 'by the new one' FROM generate_series(100, 200) g; \
             INSERT INTO journal VALUES ('by the new one')",
        )
        .await
        .unwrap();
    same_rows(&pair, &standby).await;
    let (timeline, replica) = (
        "SELECT timeline FROM pglockstep.pipelines",
        pair.replica.connect(DATABASE).await.unwrap(),
    );
    let timeline: i64 = replica.query_one(timeline, &[]).await.unwrap().get(0);
    assert_eq!(timeline, 2);
    assert!(daemon.terminate().success());
    standby.stop(StopMode::Fast).await.unwrap();
}
