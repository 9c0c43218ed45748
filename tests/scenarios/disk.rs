//! Commits on the replica do not wait for its disk; the source is told of what is there.

use pglockstep::demo::cluster::{ClusterOptions, StopMode};

use crate::support::{Daemon, Pair, PairOptions, Scenario, eventually};

const ROWS: &str = "SELECT * FROM t";
/// Whoever waits for a standby that there is not waits for ever.
const NOBODY: (&str, &str) = ("synchronous_standby_names", "nobody");
/// The pid of the session that makes commits durable.
const WITNESS: &str = "SELECT pid FROM pg_stat_activity \
     WHERE query LIKE '%pg_logical_emit_message%' AND datname = current_database() AND pid <> pg_backend_pid()";

/// The server writes its log by itself as seldom as it can.
async fn pair() -> Pair {
    let replica = ClusterOptions::default()
        .with("wal_writer_delay", "10s")
        .with("checkpoint_timeout", "1h");
    let options = PairOptions {
        replica,
        ..PairOptions::default()
    };
    Pair::start_with(options).await
}

async fn with_table<'a>(pair: &'a Pair, name: &str) -> Scenario<'a> {
    let s = Scenario::on_pair(pair, name).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    s
}

/// Inserts a row; where the source's log ends then.
async fn insert(s: &Scenario<'_>, id: u32) -> String {
    s.on_source(&format!("INSERT INTO t VALUES ({id})")).await;
    s.one("SELECT pg_current_wal_flush_lsn()").await
}

async fn is_there(s: &Scenario<'_>, id: u32) {
    let sql = format!("SELECT count(*) FROM t WHERE id = {id}");
    s.replica_eventually(&sql, "1").await;
}

async fn has_confirmed(s: &Scenario<'_>, end: &str) -> bool {
    let slot = s.slot();
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    s.one(&sql).await == "t"
}

async fn until_confirmed(s: &Scenario<'_>, daemon: &Daemon, end: &str) {
    let evidence = || daemon.stderr();
    eventually("the slot to be told", evidence, async || {
        has_confirmed(s, end).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_source_is_told_of_is_in_the_log_of_the_replica() {
    let mut pair = pair().await;
    let s = with_table(&pair, "told").await;
    let mut daemon = s.start("").await;
    for id in 1..=5 {
        let end = insert(&s, id).await;
        is_there(&s, id).await;
        let insert_lsn = s.replica_one("SELECT pg_current_wal_insert_lsn()").await;
        until_confirmed(&s, &daemon, &end).await;
        let is_flushed = format!("SELECT pg_current_wal_flush_lsn() >= '{insert_lsn}'");
        assert_eq!(s.replica_one(&is_flushed).await, "t");
    }
    // As if it had crashed: what it had not written out is gone.
    daemon.kill9();
    drop(s);
    pair.replica.stop(StopMode::Immediate).await.unwrap();
    pair.replica.restart().await.unwrap();
    let s = Scenario::again(&pair, "told").await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "5");
}

#[tokio::test]
async fn commits_do_not_wait_and_the_source_does() {
    let pair = pair().await;
    let s = with_table(&pair, "apart").await;
    let mut daemon = s.start("").await;
    let end = insert(&s, 1).await;
    until_confirmed(&s, &daemon, &end).await;
    pair.replica.alter_system(NOBODY.0, NOBODY.1).await.unwrap();
    s.replica_eventually("SHOW synchronous_standby_names", "nobody")
        .await;
    let mut ends = Vec::new();
    for id in 2..=6 {
        ends.push(insert(&s, id).await);
        is_there(&s, id).await;
    }
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    s.replica_eventually(waits, "1").await;
    assert!(!has_confirmed(&s, &ends[0]).await);
    pair.replica.alter_system(NOBODY.0, "").await.unwrap();
    until_confirmed(&s, &daemon, &ends[4]).await;
    s.in_step(&daemon, &[ROWS]).await;
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
}

#[tokio::test]
async fn where_no_message_may_be_written_commits_wait() {
    let pair = pair().await;
    let mut s = with_table(&pair, "no_message").await;
    s.on_replica(
        "CREATE ROLE quiet LOGIN; GRANT CREATE ON DATABASE no_message TO quiet; GRANT ALL ON t TO quiet;
         DO $$ DECLARE f regprocedure; BEGIN
             FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
                 EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
             END LOOP; END $$",
    )
    .await;
    s.replica_role("quiet");
    let mut daemon = s.start("").await;
    let said = daemon.stderr();
    assert_eq!(
        said.matches("no second session makes commits durable")
            .count(),
        1,
        "{said}"
    );
    assert!(said.contains("42501"), "{said}");
    let end = insert(&s, 1).await;
    until_confirmed(&s, &daemon, &end).await;
    pair.replica.alter_system(NOBODY.0, NOBODY.1).await.unwrap();
    s.replica_eventually("SHOW synchronous_standby_names", "nobody")
        .await;
    // Either the commit waits, or what makes it durable soon after; the follower with it.
    let end = insert(&s, 2).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    s.replica_eventually(waits, "1").await;
    insert(&s, 3).await;
    assert_eq!(
        s.replica_one("SELECT count(*) FROM t WHERE id = 3").await,
        "0"
    );
    assert!(!has_confirmed(&s, &end).await);
    pair.replica.alter_system(NOBODY.0, "").await.unwrap();
    s.in_step(&daemon, &[ROWS]).await;
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
}

#[tokio::test]
async fn with_its_witness_ends_the_stream() {
    let pair = pair().await;
    let s = with_table(&pair, "ended").await;
    let daemon = s.start("").await;
    for id in 1..=3 {
        let end = insert(&s, id).await;
        until_confirmed(&s, &daemon, &end).await;
        let before = s.replica_one(WITNESS).await;
        s.on_replica(&format!("SELECT pg_terminate_backend({before})"))
            .await;
        if id % 2 == 0 {
            // Noticed by a flush, or while nothing is to be flushed.
            insert(&s, 10 + id).await;
        }
        let evidence = || daemon.stderr();
        eventually("the stream to begin anew", evidence, async || {
            let begun = daemon.stderr().matches("asking for the stream").count();
            (begun > id as usize).then_some(())
        })
        .await;
        let evidence = || daemon.stderr();
        eventually("another witness", evidence, async || {
            let now = s.replica_rows(WITNESS).await;
            (now.len() == 1 && now[0][0].as_deref() != Some(&before)).then_some(())
        })
        .await;
        s.in_step(&daemon, &[ROWS]).await;
    }
    let why = "the session with the replica is lost";
    daemon.until_said(why).await;
}

/// One copies, one applies, one makes durable; the books and the catalogue share what is left.
#[tokio::test]
async fn with_the_fewest_sessions_there_is_a_witness_and_one_for_all_else() {
    let pair = pair().await;
    let s = with_table(&pair, "fewest").await;
    let config = s
        .config("[copy]\nworkers = 1")
        .replace("[replica]\n", "[replica]\npool_max = 3\n");
    let mut daemon = Daemon::start(&config);
    s.until_state(&mut daemon, "streaming").await;
    let end = insert(&s, 1).await;
    until_confirmed(&s, &daemon, &end).await;
    assert_eq!(s.replica_rows(WITNESS).await.len(), 1);
    // The catalogue is read anew.
    s.on_both("ALTER TABLE t ADD v text").await;
    s.on_source("INSERT INTO t VALUES (2, 'two')").await;
    s.in_step(&daemon, &[ROWS]).await;
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
}
