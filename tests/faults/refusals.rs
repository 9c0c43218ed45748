//! What a replica refuses now and grants later: it is tried again by itself, counted, and nothing
//! is lost or comes twice.

use tokio::sync::OnceCell;

use super::errors;
use super::load::{Load, is_fed, prepare, reconnected, reconnects, under_load};
use crate::support::{Daemon, Family, Scenario, eventually, samples};

static FAMILY: Family = OnceCell::const_new();

/// Attempts that are refused in a row.
const REFUSALS: u32 = 3;

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    prepare(&s, 100).await;
    s
}

/// From now on the replica does this to the first attempts to write the journal. They are counted
/// by a sequence, which a rollback does not set back.
async fn refuse(s: &Scenario<'_>, how: &str) {
    s.on_replica(&format!(
        "CREATE SEQUENCE refusals;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
         BEGIN
             IF nextval('refusals') <= {REFUSALS} THEN {how}; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION refuse();
         ALTER TABLE journal ENABLE ALWAYS TRIGGER refuse"
    ))
    .await;
}

/// It was never more than trouble that passes.
async fn assert_never_failed(daemon: &Daemon) {
    let all = samples(daemon, "pglockstep_errors_total").await;
    let severe = |labels: &str| labels.contains("critical") || labels.contains("high");
    assert!(
        all.iter()
            .all(|(labels, count)| *count == 0.0 || !severe(labels)),
        "{all:?}\n{}",
        daemon.stderr()
    );
    let failed = daemon.metric("pglockstep_state{state=\"failed\"}").await;
    assert_eq!(failed, Some(0.0), "{}", daemon.stderr());
}

/// Under a load, until it is fed again.
async fn refused_and_over(s: &Scenario<'_>, how: &str, code: &str) {
    let (mut daemon, load) = under_load(s).await;
    let before = errors(&daemon, "database").await;
    refuse(s, how).await;
    let evidence = || format!("{code}: {}", daemon.stderr());
    eventually("every refusal to be met", evidence, async || {
        let counted = errors(&daemon, "database").await - before;
        (counted >= f64::from(REFUSALS)).then_some(())
    })
    .await;
    daemon.until_said(code).await;
    s.until_state(&mut daemon, "streaming").await;
    ends_in_step(s, &daemon, load).await;
    let met: u32 = s
        .replica_one("SELECT last_value FROM refusals")
        .await
        .parse()
        .unwrap();
    assert!(met > REFUSALS, "{met}");
}

async fn ends_in_step(s: &Scenario<'_>, daemon: &Daemon, load: Load) {
    is_fed(s, daemon).await;
    load.compare(s, daemon).await;
    assert_never_failed(daemon).await;
}

#[tokio::test]
async fn a_serialization_failure_is_tried_again() {
    let s = scenario("serialization").await;
    let how = "RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'";
    refused_and_over(&s, how, "40001").await;
}

/// The server's own refusal: somebody else has the lock, and the trigger does not wait.
#[tokio::test]
async fn a_lock_that_is_not_available_is_tried_again() {
    let s = scenario("not_available").await;
    s.on_replica("CREATE TABLE theirs ()").await;
    let other = s.pair.replica.connect(&s.name).await.unwrap();
    other
        .batch_execute("BEGIN; LOCK TABLE theirs")
        .await
        .unwrap();
    refused_and_over(&s, "LOCK TABLE theirs NOWAIT", "55P03").await;
}

/// The server's own refusal: the transaction turns read-only under what still writes.
#[tokio::test]
async fn a_replica_that_turns_read_only_is_tried_again() {
    let s = scenario("turns_read_only").await;
    let how = "PERFORM set_config('transaction_read_only', 'on', true)";
    refused_and_over(&s, how, "25006").await;
}

/// What is set for people's sessions, as by a provider whose disk fills, does not reach ours.
#[tokio::test]
async fn a_database_that_is_read_only_by_default_is_written() {
    let s = scenario("read_only_by_default").await;
    let (mut daemon, load) = under_load(&s).await;
    s.on_replica("ALTER DATABASE read_only_by_default SET default_transaction_read_only = on")
        .await;
    let others = s.pair.replica.connect(&s.name).await.unwrap();
    let refused = others.batch_execute("CREATE TABLE other ()").await;
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.code().map(|code| code.code()),
        Some("25006"),
        "{refused}"
    );
    let before = reconnects(&daemon, "replica").await;
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name LIKE 'pglockstep%' AND datname = current_database()",
    )
    .await;
    reconnected(&daemon, "replica", before).await;
    s.until_state(&mut daemon, "streaming").await;
    assert!(!daemon.stderr().contains("25006"), "{}", daemon.stderr());
    ends_in_step(&s, &daemon, load).await;
}

/// The process that waits for a lock on the journal, or 0.
const WAITS: &str = "SELECT coalesce(max(pid), 0) FROM pg_locks
     WHERE NOT granted AND relation = 'journal'::regclass";

#[tokio::test]
async fn a_statement_that_is_cancelled_while_it_waits_is_tried_again() {
    let s = scenario("cancelled").await;
    let (mut daemon, load) = under_load(&s).await;
    let other = s.pair.replica.connect(&s.name).await.unwrap();
    other
        .batch_execute("BEGIN; LOCK TABLE journal IN SHARE MODE")
        .await
        .unwrap();
    let held = s.replica_one("SELECT count(*) FROM journal").await;
    let evidence = || format!("{}\n{}", daemon.stderr(), s.pair.logs());
    for _ in 0..REFUSALS {
        let before = errors(&daemon, "database").await;
        let pid = eventually("it to wait for the lock", evidence, async || {
            let pid = s.replica_one(WAITS).await;
            (pid != "0").then_some(pid)
        })
        .await;
        s.on_replica(&format!("SELECT pg_cancel_backend({pid})"))
            .await;
        eventually("the error to be counted", evidence, async || {
            (errors(&daemon, "database").await > before).then_some(())
        })
        .await;
        daemon.until_said("57014").await;
    }
    assert_eq!(s.replica_one("SELECT count(*) FROM journal").await, held);
    other.batch_execute("ROLLBACK").await.unwrap();
    s.until_state(&mut daemon, "streaming").await;
    ends_in_step(&s, &daemon, load).await;
}
