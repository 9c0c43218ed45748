//! A slot that the source has given up: said with its reason, never made anew, nothing applied
//! beyond it; `rebase` begins anew.

use pglockstep::demo::cluster::ClusterOptions;

use super::rebase::{ALL, FILL, TABLES, fed_and_ended, goes_on_after_rebase};
use crate::cases::ground::hold_copy;
use crate::support::{Daemon, Pair, PairOptions, Scenario, eventually, run_verb};

/// No segment of the log is kept for a slot, nor for use again.
fn keeps_little(major: u32) -> ClusterOptions {
    ClusterOptions::version(major)
        .with("max_slot_wal_keep_size", "1MB")
        .with("max_wal_size", "32MB")
        .with("min_wal_size", "32MB")
}

async fn pair(source: ClusterOptions) -> Pair {
    let options = PairOptions {
        source,
        ..PairOptions::default()
    };
    Pair::start_with(options).await
}

async fn scenario<'p>(pair: &'p Pair, name: &str) -> Scenario<'p> {
    let s = Scenario::on_pair(pair, name).await;
    s.on_both(TABLES).await;
    s.on_source(FILL).await;
    s.publish_all().await;
    s
}

/// Nothing but the passing of log and of time.
async fn until_lost(s: &Scenario<'_>) {
    eventually(
        "the slot to be lost",
        || s.pair.logs(),
        async || {
            s.on_source("SELECT pg_switch_wal()").await;
            s.on_source("CHECKPOINT").await;
            is_lost(s).await.then_some(())
        },
    )
    .await;
}

/// There is one slot, the one that was lost.
async fn is_lost(s: &Scenario<'_>) -> bool {
    let sql = "SELECT string_agg(slot_name || ' ' || wal_status, ',') FROM pg_replication_slots";
    s.one(sql).await == format!("{} lost", s.slot())
}

/// Rows, and how far the books say that it is.
async fn state_of_replica(s: &Scenario<'_>) -> Vec<String> {
    let mut state = Vec::new();
    for sql in [
        "SELECT string_agg(t::text, ',' ORDER BY id) FROM t",
        "SELECT string_agg(what, ',' ORDER BY what) FROM journal",
        "SELECT applied_lsn::text FROM pglockstep.pipelines",
    ] {
        state.push(s.replica_one(sql).await);
    }
    state
}

/// Lost while nobody streamed: the start is refused.
async fn lost_while_it_was_away(source: ClusterOptions, name: &str, why: &str) {
    let pair = pair(source).await;
    let s = scenario(&pair, name).await;
    fed_and_ended(&s).await;
    s.on_source("UPDATE t SET v = 'unseen' WHERE id = 2; DELETE FROM t WHERE id = 3")
        .await;
    until_lost(&s).await;
    let before = state_of_replica(&s).await;
    let said = s.refused("").await;
    let slot = s.slot();
    for words in [
        &format!("slot {slot} is lost"),
        why,
        "`pglockstep rebase`",
        "nothing was skipped",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(is_lost(&s).await, "it was not made anew");
    assert_eq!(state_of_replica(&s).await, before);
    goes_on_after_rebase(&s, why).await;
}

#[tokio::test]
async fn log_that_was_removed_while_it_was_away() {
    for major in [15, 18] {
        let why = "the source has removed log that it still needed";
        lost_while_it_was_away(keeps_little(major), &format!("removed_{major}"), why).await;
    }
}

#[tokio::test]
async fn a_slot_that_was_idle_for_too_long() {
    let source = ClusterOptions::version(18).with("idle_replication_slot_timeout", "1s");
    let why = "nobody used it for idle_replication_slot_timeout";
    lost_while_it_was_away(source, "idle", why).await;
}

/// The walsender is ended by the checkpoint that gives its slot up.
async fn lost_in_mid_stream(major: u32) {
    let pair = pair(keeps_little(major)).await;
    let s = scenario(&pair, "mid_stream").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    let other = pair.replica.connect(&s.name).await.unwrap();
    other
        .batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE")
        .await
        .unwrap();
    let before = state_of_replica(&s).await;
    s.on_source("UPDATE t SET v = 'held' WHERE id = 1; INSERT INTO journal VALUES ('held')")
        .await;
    let waits =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::pg_catalog.regclass";
    s.replica_eventually(waits, "1").await;
    until_lost(&s).await;
    // Before anything of it can end: the slot is looked at by another session.
    until_red(&daemon, &["lost", "pglockstep rebase"]).await;
    assert_eq!(state_of_replica(&s).await, before);
    // What the source writes now is in no slot.
    s.on_source("INSERT INTO t VALUES (50, 'unseen')").await;
    other.batch_execute("ROLLBACK").await.unwrap();

    let slot = s.slot();
    let lost = format!("slot {slot} is lost: the source has removed log");
    s.until_failed(&mut daemon, &[&lost, "`pglockstep rebase`"])
        .await;
    until_red(&daemon, &[&lost]).await;
    assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 503);
    let status = daemon.metric("pglockstep_slot_wal_status").await;
    assert_eq!(status, Some(3.0));
    let status = run_verb(&s.config(""), &["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains(&lost) && status.contains("rebase"),
        "{status}"
    );
    // It ended what it had in hand, and went on with nothing else.
    let held = "SELECT count(*) FROM journal, t WHERE what = 'held' AND v = 'held'";
    assert_eq!(s.replica_one(held).await, "1");
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "20");
    assert!(is_lost(&s).await, "it was not made anew");
    assert!(daemon.terminate().success());
    goes_on_after_rebase(&s, &lost).await;
}

#[tokio::test]
async fn log_that_is_removed_while_the_replica_is_locked() {
    for major in [15, 18] {
        lost_in_mid_stream(major).await;
    }
}

/// Hours of copying would be in vain.
#[tokio::test]
async fn a_slot_that_is_lost_while_tables_are_copied_ends_the_copy() {
    let pair = pair(keeps_little(18)).await;
    let s = Scenario::on_pair(&pair, "in_copy").await;
    s.on_both(TABLES).await;
    s.on_source(FILL).await;
    let mut daemon = hold_copy(&s).await;
    until_lost(&s).await;
    let status = daemon.wait();
    let said = daemon.stderr();
    let lost = format!("slot {} is lost: the source has removed log", s.slot());
    assert!(!status.success(), "{said}");
    assert!(said.contains(&lost) && said.contains("rebase"), "{said}");
    assert!(is_lost(&s).await, "it was not made anew");
}

/// `/health` says all of these, and is red.
async fn until_red(daemon: &Daemon, words: &[&str]) {
    let evidence = || format!("{words:?} in: {}", daemon.stderr());
    eventually("it to be red", evidence, async || {
        let health = daemon.http_get("/health").await?;
        let says = |word: &&str| health.body.contains(*word);
        (health.status == 503 && words.iter().all(says)).then_some(())
    })
    .await;
}
