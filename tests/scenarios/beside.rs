//! What happens beside the stream, or while there is none: a publication that narrows or widens,
//! a slot that is moved while tables are copied, a replica that goes while nothing is written.

use super::gaps::{ALL, scenario};
use crate::cases::ground::{HELD, hold_copy};
use crate::support::{Scenario, eventually, run_verb};

const ALL_KINDS: &str = "insert, update, delete, truncate";

async fn publish(s: &Scenario<'_>, what: &str) {
    let slot = s.slot();
    s.on_source(&format!(
        "ALTER PUBLICATION {slot} SET (publish = '{what}')"
    ))
    .await;
}

/// What is left out while tables are copied is neither in the copy nor in the stream.
#[tokio::test]
async fn a_publication_that_leaves_changes_out_during_the_copy_is_not_believed() {
    let s = scenario("narrowed_in_copy").await;
    let mut daemon = hold_copy(&s).await;
    publish(&s, "insert").await;
    s.on_source("UPDATE t SET v = 'missed' WHERE id = 3").await;
    let status = daemon.wait();
    let said = daemon.stderr();
    assert!(!status.success(), "{said}");
    assert!(said.contains("leaves out UPDATE, DELETE"), "{said}");
    publish(&s, ALL_KINDS).await;
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    let daemon = s.start(HELD).await;
    s.in_step(&daemon, &ALL).await;
}

/// What is to be copied again anyway may be called off again: then it would be believed.
#[tokio::test]
async fn what_is_wanted_again_already_is_not_believed_either() {
    let s = scenario("narrowed_resync").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
    let asked = run_verb(&s.config(""), &["resync", "--keep-extra", "public.t"]);
    assert!(asked.status.success(), "{asked:?}");
    let books = "SELECT state || ' ' || (copied_lsn IS NULL) FROM pglockstep.tables";
    assert_eq!(s.replica_one(books).await, "resync_keep_extra false");
    publish(&s, "insert").await;
    s.on_source("UPDATE t SET v = 'missed' WHERE id = 3").await;
    s.refused("").await;
    assert_eq!(s.replica_one(books).await, "resync_keep_extra true");
    publish(&s, ALL_KINDS).await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn a_publication_that_leaves_changes_out_for_a_while_is_not_believed() {
    for is_running in [true, false] {
        let s = scenario(&format!("narrowed_{is_running}")).await;
        s.publish_all().await;
        let mut daemon = s.start("").await;
        s.in_step(&daemon, &ALL).await;
        if !is_running {
            assert!(daemon.terminate().success());
        }
        publish(&s, "insert").await;
        s.on_source("UPDATE t SET v = 'missed' WHERE id = 3; DELETE FROM t WHERE id = 4")
            .await;
        if is_running {
            let words = ["leaves out UPDATE, DELETE", "merged anew"];
            s.until_failed(&mut daemon, &words).await;
        } else {
            let said = s.refused("").await;
            assert!(said.contains("leaves out UPDATE, DELETE"), "{said}");
        }
        publish(&s, ALL_KINDS).await;
        if !is_running {
            daemon = s.start("").await;
        }
        s.replica_eventually("SELECT v FROM t WHERE id = 3", "missed")
            .await;
        s.until_state(&mut daemon, "streaming").await;
        s.in_step(&daemon, &ALL).await;
    }
}

#[tokio::test]
async fn a_table_that_is_in_no_log_for_a_while_is_copied_anew() {
    let s = scenario("unlogged").await;
    s.on_both("CREATE TABLE other (id int PRIMARY KEY)").await;
    s.publish_all().await;
    // By the table's own rule, what the replica holds would be refused.
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    s.on_source("ALTER TABLE t SET UNLOGGED").await;
    s.on_source("UPDATE t SET v = 'unheard' WHERE id = 3; DELETE FROM t WHERE id = 4")
        .await;
    daemon.until_said("has left the publication").await;
    s.on_source("ALTER TABLE t SET LOGGED").await;
    s.replica_eventually("SELECT v FROM t WHERE id = 3", "unheard")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn a_publication_that_is_renamed_for_a_while_costs_no_copy() {
    let s = scenario("renamed_publication").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    let name = s.slot();
    s.on_source(&format!("ALTER PUBLICATION {name} RENAME TO elsewhere"))
        .await;
    daemon.until_said("has no publication").await;
    s.on_source(&format!("ALTER PUBLICATION elsewhere RENAME TO {name}"))
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.on_source("INSERT INTO t VALUES (21, 'after')").await;
    s.in_step(&daemon, &ALL).await;
    let said = daemon.stderr();
    assert_eq!(said.matches("table copied").count(), 1, "{said}");
}

#[tokio::test]
async fn a_table_that_joins_is_copied_though_nobody_writes_to_it() {
    let s = scenario("joins_quietly").await;
    s.on_both("CREATE TABLE quiet (id int PRIMARY KEY)").await;
    s.on_source("INSERT INTO quiet SELECT generate_series(1, 9)")
        .await;
    s.publish("FOR TABLE t").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    let add = format!("ALTER PUBLICATION {} ADD TABLE quiet", s.slot());
    s.on_source(&add).await;
    s.replica_eventually("SELECT count(*) FROM quiet", "9")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &["SELECT * FROM quiet", ALL[0]]).await;
}

#[tokio::test]
async fn a_slot_that_is_moved_while_tables_are_copied_is_refused() {
    let s = scenario("moved_in_copy").await;
    let mut daemon = hold_copy(&s).await;
    s.on_source("INSERT INTO t VALUES (99, 'would be lost')")
        .await;
    let slot = s.slot();
    s.on_source(&format!(
        "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
    ))
    .await;
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    let status = daemon.wait();
    let said = daemon.stderr();
    assert!(!status.success(), "{said}");
    assert!(
        said.contains("beyond what this replica has applied") && said.contains("rebase"),
        "{said}"
    );
}

#[tokio::test]
async fn a_replica_that_goes_while_nothing_is_written_is_noticed() {
    let s = scenario("idle_loss").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    let ended = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name LIKE 'pglockstep%'";
    assert_eq!(s.replica_one(ended).await, "t");
    let reconnects = "pglockstep_reconnects_total{side=\"replica\"}";
    eventually(
        "the loss to be noticed",
        || daemon.stderr(),
        async || (daemon.metric(reconnects).await? > 0.0).then_some(()),
    )
    .await;
    assert!(
        daemon
            .stderr()
            .contains("the session with the replica is lost")
    );
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
}
