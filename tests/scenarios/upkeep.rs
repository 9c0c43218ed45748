//! What the daemon proves by itself: comparisons whose turn it is, what they found, and that it is
//! known again after a restart.

use crate::support::{Daemon, Family, Scenario, eventually, until_metric, verb};

static FAMILY: Family = Family::const_new();
/// Slots wait for the transactions of all databases.
static ALONE: Family = Family::const_new();

const OFTEN: &str = "[verify]\nevery = \"10s\"\ncounts_every = \"10s\"";
const SELDOM: &str = "[verify]\nevery = \"1h\"\ncounts_every = \"1h\"";
const COUNTS: &str = "[verify]\nevery = \"0s\"\ncounts_every = \"10s\"";

async fn running(family: &'static Family, name: &str, more: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(family, name).await;
    s.on_both(
        "CREATE TABLE leads (id int PRIMARY KEY, v text); CREATE TABLE notes (id int PRIMARY KEY)",
    )
    .await;
    s.on_source("INSERT INTO leads SELECT g, 'v' || g FROM generate_series(1, 500) g")
        .await;
    s.publish_all().await;
    let daemon = s.start(more).await;
    s.caught_up(&daemon).await;
    (s, daemon)
}

fn of(metric: &str, table: &str) -> String {
    format!("pglockstep_{metric}{{table=\"public.{table}\"}}")
}

#[tokio::test]
async fn tables_are_compared_by_themselves_and_drift_is_told() {
    let (s, daemon) = running(&FAMILY, "by_itself", OFTEN).await;
    until_metric(&daemon, &of("in_sync", "leads"), 1.0).await;
    until_metric(&daemon, &of("in_sync", "notes"), 1.0).await;
    let before = daemon.metric(&of("verified_lsn", "leads")).await.unwrap();
    s.on_source("UPDATE leads SET v = 'new' WHERE id = 7").await;
    s.caught_up(&daemon).await;
    s.on_replica("DELETE FROM leads WHERE id = 5; UPDATE leads SET v = 'ours' WHERE id IN (8, 9)")
        .await;
    until_metric(&daemon, &of("in_sync", "leads"), 0.0).await;
    let drift = |kind| format!("pglockstep_drift_rows{{table=\"public.leads\",kind=\"{kind}\"}}");
    until_metric(&daemon, &drift("missing"), 1.0).await;
    until_metric(&daemon, &drift("different"), 2.0).await;
    assert_eq!(daemon.metric(&drift("extra")).await, Some(0.0));
    daemon.until_said("is not what the source has").await;
    assert_eq!(daemon.metric(&of("in_sync", "notes")).await, Some(1.0));
    s.on_replica(
        "INSERT INTO leads VALUES (5, 'v5'); UPDATE leads SET v = 'v' || id WHERE id IN (8, 9)",
    )
    .await;
    until_metric(&daemon, &of("in_sync", "leads"), 1.0).await;
    let after = daemon.metric(&of("verified_lsn", "leads")).await.unwrap();
    assert!(after > before, "{before}, then {after}");
    let cuts = daemon.metric("pglockstep_cut_held_seconds_count").await;
    assert!(cuts >= Some(3.0), "{cuts:?}");
    let history = "SELECT bool_or(in_sync) AND bool_or(NOT in_sync) FROM pglockstep.proofs \
                   WHERE source_table = 'leads' AND NOT counts_only";
    assert_eq!(s.replica_one(history).await, "t");
}

#[tokio::test]
async fn what_was_proven_is_known_after_a_restart() {
    let (s, daemon) = running(&FAMILY, "remembered", OFTEN).await;
    until_metric(&daemon, &of("in_sync", "leads"), 1.0).await;
    let at = daemon.metric(&of("verified_lsn", "leads")).await;
    s.on_replica("DELETE FROM leads WHERE id = 5").await;
    until_metric(&daemon, &of("in_sync", "leads"), 0.0).await;
    s.end(daemon).await;
    let begun = "UPDATE pglockstep.proofs SET compared_at = compared_at - interval '1 hour'";
    s.on_replica(begun).await;
    let daemon = s.start(SELDOM).await;
    // Drift, and when it last was in sync.
    until_metric(&daemon, &of("in_sync", "leads"), 0.0).await;
    assert!(daemon.metric(&of("verified_lsn", "leads")).await >= at);
    let age = daemon.metric(&of("verified_age_seconds", "leads")).await;
    assert!(age.unwrap() >= 3600.0, "{age:?}");
    // Nor is what was found under other rules of the mapping.
    s.end(daemon).await;
    let other = format!("{SELDOM}\n[[tables]]\nsource = \"public.*\"");
    let daemon = s.start(&other).await;
    s.caught_up(&daemon).await;
    let looked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%FROM pglockstep.verifications%' AND datname = current_database()";
    s.replica_eventually(looked, "t").await;
    assert_eq!(daemon.metric(&of("in_sync", "leads")).await, None);
    // A table that is copied anew has not been compared since.
    s.end(daemon).await;
    s.on_replica("UPDATE pglockstep.proofs SET lsn = '0/1' WHERE source_table = 'notes'")
        .await;
    let daemon = s.start(SELDOM).await;
    until_metric(&daemon, &of("in_sync", "leads"), 0.0).await;
    assert_eq!(daemon.metric(&of("in_sync", "notes")).await, None);
}

/// Since when a table is in step is known for longer than its proofs are kept.
#[tokio::test]
async fn old_proofs_go_but_for_the_first_since_the_last_drift() {
    let (s, daemon) = running(&FAMILY, "history", SELDOM).await;
    let verify = || verb(&s, SELDOM, &["verify", "public.leads"]);
    let older = "UPDATE pglockstep.proofs SET compared_at = compared_at - interval '20 days'";
    assert_eq!(verify().0, Some(0));
    s.on_replica("DELETE FROM leads WHERE id = 5").await;
    assert_eq!(verify().0, Some(1));
    s.on_replica("INSERT INTO leads VALUES (5, 'v5')").await;
    for _ in 0..5 {
        assert_eq!(verify().0, Some(0));
        s.on_replica(older).await;
    }
    let kept = "SELECT string_agg(in_sync || ' ' || round(extract(epoch FROM now() - compared_at) / 86400), ', ' ORDER BY id) \
                FROM pglockstep.proofs WHERE NOT counts_only";
    assert_eq!(
        s.replica_one(kept).await,
        "false 100, true 100, true 40, true 20"
    );
    s.end(daemon).await;
}

#[tokio::test]
async fn counts_alone_find_that_rows_are_missing_and_prove_nothing() {
    let (s, daemon) = running(&FAMILY, "counted", COUNTS).await;
    let rows = |side| format!("pglockstep_table_rows{{side=\"{side}\",table=\"public.leads\"}}");
    until_metric(&daemon, &rows("replica"), 500.0).await;
    assert_eq!(daemon.metric(&of("in_sync", "leads")).await, None);
    s.on_replica("DELETE FROM leads WHERE id < 4").await;
    until_metric(&daemon, &of("in_sync", "leads"), 0.0).await;
    until_metric(&daemon, &rows("replica"), 497.0).await;
    assert_eq!(daemon.metric(&rows("source")).await, Some(500.0));
    assert_eq!(daemon.metric(&of("verified_lsn", "leads")).await, None);
    // Of counts that found nothing the last one is kept.
    let kept = "SELECT count(*) || ' ' || (max(id) > 6) FROM pglockstep.proofs WHERE source_table = 'notes' AND counts_only";
    s.replica_eventually(kept, "1 true").await;
}

#[tokio::test]
async fn what_cannot_be_compared_is_said_once_and_tried_again() {
    let (s, daemon) = running(&ALONE, "busy", OFTEN).await;
    until_metric(&daemon, &of("in_sync", "leads"), 1.0).await;
    for _ in 0..64 {
        let one = "SELECT pg_create_physical_replication_slot('taken_' || (SELECT count(*) FROM pg_replication_slots))";
        if s.pair.source.execute(&s.name, one).await.is_err() {
            break;
        }
    }
    daemon.until_said("cannot be compared").await;
    s.on_source("INSERT INTO leads VALUES (1000, 'follows all the same')")
        .await;
    s.caught_up(&daemon).await;
    s.on_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'taken%'")
        .await;
    daemon.until_said("tables are compared again").await;
    let said = daemon.stderr();
    assert_eq!(said.matches("cannot be compared").count(), 1, "{said}");
    let young = async || {
        let age = daemon.metric(&of("verified_age_seconds", "leads")).await?;
        (age < 10.0).then_some(())
    };
    eventually("a comparison since", || daemon.stderr(), young).await;
}

/// The books may have a table by a name that it had before: the others are compared all the same.
#[tokio::test]
async fn a_table_that_has_another_name_now_is_told_and_in_nobodys_way() {
    let (s, daemon) = running(&FAMILY, "renamed", SELDOM).await;
    s.end(daemon).await;
    s.on_replica(
        "UPDATE pglockstep.tables SET source_table = 'former' WHERE source_table = 'notes'",
    )
    .await;
    let daemon = s.start(OFTEN).await;
    until_metric(&daemon, &of("in_sync", "leads"), 1.0).await;
    daemon.until_said("has this name now").await;
}
