//! What was kept of a table set aside, and constraints of the replica that wait for COMMIT: they
//! are looked at after each transaction of the source, so that the right one is named.
//!
//! PostgreSQL looks at them by triggers, a unique key's too: a role that may switch triggers off
//! is not stopped by them.

use crate::support::{
    Daemon, Family, OPEN_ERRORS, QUARANTINE, Scenario, errors, retry, retry_in_vain, until_metric,
};
use serde_json::Value;

static FAMILY: Family = Family::const_new();

const SET_ASIDE: &str = "pglockstep_table_state{table=\"public.leads\",state=\"quarantined\"}";
const KEPT: &str = "SELECT count(*) FROM pglockstep.kept_changes";
const UNIQUE: &str = "UNIQUE (number)";
const LEADS: &str = "SELECT * FROM leads";
const NOTES: &str = "SELECT * FROM notes";

/// `leads` is set aside by a name that is too long for the replica, which is mended at once.
async fn set_aside(
    name: &str,
    constraint: &str,
    role: Option<&str>,
    more: &str,
) -> (Scenario<'static>, Daemon) {
    let mut s = Scenario::new(&FAMILY, name).await;
    s.on_both(
        "CREATE TABLE notes (id int PRIMARY KEY, text text); \
         CREATE TABLE leads (id int PRIMARY KEY, name varchar(40), number int)",
    )
    .await;
    s.on_replica(&format!(
        "ALTER TABLE leads ALTER name TYPE varchar(10); \
         ALTER TABLE leads ADD CONSTRAINT waits {constraint} DEFERRABLE INITIALLY DEFERRED"
    ))
    .await;
    s.on_source(
        "INSERT INTO notes VALUES (1, 'first'), (2, 'second'), (3, 'third'); \
         INSERT INTO leads VALUES (1, 'first', 1)",
    )
    .await;
    s.publish_all().await;
    if let Some(role) = role {
        s.on_replica(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
        s.replica_role(role);
    }
    let daemon = s.start(more).await;
    s.on_source("INSERT INTO leads VALUES (2, 'far too long a name', 2)")
        .await;
    until_metric(&daemon, SET_ASIDE, 1.0).await;
    until_metric(&daemon, OPEN_ERRORS, 1.0).await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
        .await;
    (s, daemon)
}

fn open_error(s: &Scenario<'_>) -> Value {
    let open = errors(s, QUARANTINE, false);
    let [error] = open.as_slice() else {
        panic!("{open:?}")
    };
    error.clone()
}

/// Runs a transaction on the source; where its commit record is: from the first, before the second.
async fn between(s: &Scenario<'_>, sql: &str) -> (String, String) {
    let end = "SELECT pg_current_wal_insert_lsn()";
    let from = s.one(end).await;
    s.on_source(sql).await;
    (from, s.one(end).await)
}

/// Retried in vain: nothing of what is kept is applied, and the error is about this transaction.
async fn stays(s: &Scenario<'_>, daemon: &Daemon, sqlstate: &str, bad: &(String, String)) {
    let id = open_error(s)["id"].to_string();
    let kept = s.replica_one(KEPT).await;
    let error = retry_in_vain(s, QUARANTINE, daemon, &id).await;
    assert_eq!(error["state"], "quarantined", "{error}");
    assert_eq!(error["table"], "public.leads", "{error}");
    assert_eq!(error["sqlstate"], sqlstate, "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("check the constraints"), "{message}");
    let (from, to, at) = (&bad.0, &bad.1, error["commit_lsn"].as_str().unwrap());
    let is_it = format!("SELECT '{at}'::pg_lsn >= '{from}' AND '{at}'::pg_lsn < '{to}'");
    assert_eq!(s.one(&is_it).await, "t", "{from} {at} {to}");
    let leads = "SELECT string_agg(name, ' ' ORDER BY id) FROM leads";
    assert_eq!(s.replica_one(leads).await, "first");
    assert_eq!(s.replica_one(KEPT).await, kept);
    let state = "SELECT state FROM pglockstep.tables WHERE source_table = 'leads'";
    assert_eq!(s.replica_one(state).await, "quarantined");
    until_metric(daemon, SET_ASIDE, 1.0).await;
}

/// Retried, the table is taken back, and goes on like the others.
async fn is_taken_back(s: &Scenario<'_>, mut daemon: Daemon, more: &str) {
    let id = open_error(s)["id"].to_string();
    retry(s, more, &mut daemon, &id, "public.leads").await;
    s.in_step(&daemon, &[LEADS, NOTES]).await;
    let all = errors(s, more, true);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["state"], "applied");
    assert_eq!(s.replica_one(KEPT).await, "0");
    s.on_source("INSERT INTO leads VALUES (100, 'on as before', 100)")
        .await;
    s.in_step(&daemon, &[LEADS]).await;
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_unique_key_that_waits_names_the_transaction_that_breaks_it() {
    let (s, daemon) = set_aside("deferred_unique", UNIQUE, Some("plain_unique"), QUARANTINE).await;
    s.on_source("INSERT INTO leads VALUES (3, 'short', 3)")
        .await;
    let bad = between(
        &s,
        "BEGIN; INSERT INTO leads VALUES (4, 'same', 3); INSERT INTO leads VALUES (5, 'new', 5); COMMIT",
    )
    .await;
    s.on_source("INSERT INTO leads VALUES (6, 'later', 6)")
        .await;
    s.on_source("INSERT INTO notes VALUES (4, 'goes on')").await;
    s.in_step(&daemon, &[NOTES]).await;
    stays(&s, &daemon, "23505", &bad).await;
    stays(&s, &daemon, "23505", &bad).await;
    s.on_replica("ALTER TABLE leads DROP CONSTRAINT waits")
        .await;
    is_taken_back(&s, daemon, QUARANTINE).await;
}

#[tokio::test]
async fn a_foreign_key_that_waits_is_mended_by_what_comes_for_another_table() {
    let constraint = "FOREIGN KEY (number) REFERENCES notes";
    let role = Some("plain_deferred");
    let (s, daemon) = set_aside("deferred_foreign", constraint, role, QUARANTINE).await;
    s.on_source("INSERT INTO leads VALUES (3, 'short', 3)")
        .await;
    let bad = between(&s, "INSERT INTO leads VALUES (4, 'orphan', 100)").await;
    s.on_source("INSERT INTO leads VALUES (5, 'later', 1)")
        .await;
    s.in_step(&daemon, &[NOTES]).await;
    stays(&s, &daemon, "23503", &bad).await;
    s.on_source("INSERT INTO notes VALUES (100, 'its parent')")
        .await;
    s.in_step(&daemon, &[NOTES]).await;
    is_taken_back(&s, daemon, QUARANTINE).await;
}

#[tokio::test]
async fn what_is_right_at_its_end_only_may_be_larger_than_a_batch() {
    let more = format!("{QUARANTINE}\nbatch_changes_max = 1");
    let (s, daemon) = set_aside("deferred_large", UNIQUE, Some("plain_large"), &more).await;
    s.on_source(
        "BEGIN; UPDATE leads SET number = 2 WHERE id = 1; UPDATE leads SET number = 1 WHERE id = 2; \
         INSERT INTO leads VALUES (3, 'short', 1); UPDATE leads SET number = 3 WHERE id = 2; COMMIT",
    )
    .await;
    s.in_step(&daemon, &[NOTES]).await;
    is_taken_back(&s, daemon, &more).await;
}

#[tokio::test]
async fn a_role_that_switches_triggers_off_is_not_stopped() {
    let (s, daemon) = set_aside("deferred_off", UNIQUE, None, QUARANTINE).await;
    s.on_source("INSERT INTO leads VALUES (3, 'short', 3), (4, 'same', 3)")
        .await;
    s.in_step(&daemon, &[NOTES]).await;
    is_taken_back(&s, daemon, QUARANTINE).await;
}
