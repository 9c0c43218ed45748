//! The slot is not what it was, or not ours: nothing is skipped, and what cannot go on says so.

use rustix::process::Signal;

use super::counter::{ALL, scenario};
use crate::support::eventually;

#[tokio::test]
async fn a_slot_that_is_gone_or_ahead_is_refused_and_nothing_is_skipped() {
    let s = scenario("slots").await;
    let slot = s.slot();
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
    let before = s.replica_rows("SELECT * FROM counter").await;
    s.on_source("INSERT INTO counter VALUES (1, 'must not be skipped')")
        .await;
    s.on_source(&format!(
        "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
    ))
    .await;
    let said = s.refused("").await;
    assert!(
        said.contains("beyond what this replica has applied"),
        "{said}"
    );
    assert!(
        said.contains("nothing was skipped") && said.contains("rebase"),
        "{said}"
    );
    s.on_source(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    let said = s.refused("").await;
    assert!(said.contains(&slot) && said.contains("is gone"), "{said}");
    // Made anew by hand, it still has a gap.
    s.on_source(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
    .await;
    let said = s.refused("").await;
    assert!(said.contains("made anew by somebody else"), "{said}");
    assert_eq!(s.replica_rows("SELECT * FROM counter").await, before);
}

#[tokio::test]
async fn a_slot_that_goes_while_it_runs_makes_it_fail_for_all_to_see() {
    let s = scenario("slot_goes").await;
    let slot = s.slot();
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    daemon.signal(Signal::STOP);
    s.on_source(&format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"))
        .await;
    eventually(
        "the slot to be free",
        || s.pair.logs(),
        async || {
            let dropped = s
                .source
                .batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
                .await;
            dropped.ok()
        },
    )
    .await;
    s.on_source("INSERT INTO counter VALUES (1, 'lost')").await;
    daemon.signal(Signal::CONT);
    s.until_state(&mut daemon, "failed").await;
    let health = daemon.http_get("/health").await.unwrap();
    assert!(
        health.status == 503 && health.body.contains("is gone"),
        "{health:?}"
    );
    assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 503);
    let errors = "pglockstep_errors_total{category=\"validation\",severity=\"critical\"}";
    assert!(daemon.metric(errors).await.unwrap() >= 1.0);
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn somebody_else_s_slot_is_left_alone() {
    let s = scenario("foreign").await;
    s.on_source(&format!(
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        s.slot()
    ))
    .await;
    let said = s.refused("").await;
    assert!(said.contains("knows nothing of"), "{said}");
    assert_eq!(s.replica_one("SELECT count(*) FROM counter").await, "0");
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'foreign'")
            .await,
        "1"
    );
}
