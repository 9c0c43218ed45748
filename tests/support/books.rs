//! What an operator does about errors, and what the books on the replica say of them.

use serde_json::Value;

use super::{Daemon, Family, Scenario, eventually, run_verb};

/// Errors that wait for somebody.
pub const OPEN_ERRORS: &str = "pglockstep_open_errors";

/// What cannot be applied sets its table aside.
pub const QUARANTINE: &str = "[apply]\non_error = \"quarantine\"";

/// Two tables and these rows, published; the replica takes no name of `leads` beyond ten letters.
pub async fn with_short_names(
    family: &'static Family,
    name: &str,
    rows: &str,
) -> Scenario<'static> {
    let s = Scenario::new(family, name).await;
    s.on_both(
        "CREATE TABLE leads (id int PRIMARY KEY, name varchar(40)); \
         CREATE TABLE notes (id int PRIMARY KEY, text text)",
    )
    .await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(10)")
        .await;
    s.on_source(rows).await;
    s.publish_all().await;
    s
}

/// Has an error tried again, which nothing stands in the way of any more: the table is taken back.
pub async fn retry(s: &Scenario<'_>, more: &str, daemon: &mut Daemon, id: &str, table: &str) {
    assert_eq!(verb(s, more, &["errors", "retry", id]).0, Some(0));
    let set_aside = format!("pglockstep_table_state{{table=\"{table}\",state=\"quarantined\"}}");
    until_metric(daemon, &set_aside, 0.0).await;
    until_metric(daemon, OPEN_ERRORS, 0.0).await;
    s.until_state(daemon, "streaming").await;
}

/// Runs a verb: its exit code, and all that it printed.
pub fn verb(s: &Scenario<'_>, more: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run_verb(&s.config(more), arguments);
    let said =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

/// Runs a verb with `--json` while the rest of the test goes on: its exit code and its report, or
/// what it complains of where there is none.
pub async fn reported(s: &Scenario<'_>, more: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let config = s.config(more);
    let mut all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    all.push("--json".to_owned());
    let output = tokio::task::spawn_blocking(move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run_verb(&config, &all)
    })
    .await
    .unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let said = || Value::from(String::from_utf8_lossy(&output.stderr).into_owned());
    (output.status.code(), report.unwrap_or_else(|_| said()))
}

/// Missing, extra and different rows of a table, as a report has them.
pub fn drift_of(report: &Value, table: &str) -> [u64; 3] {
    let tables = report["tables"].as_array().unwrap();
    let found = tables.iter().find(|t| t["table"] == table);
    let found = found.unwrap_or_else(|| panic!("{table}: {report}"));
    ["missing", "extra", "different"].map(|kind| found[kind].as_u64().unwrap())
}

/// The errors in the books; all, or those that wait for somebody.
pub fn errors(s: &Scenario<'_>, more: &str, all: bool) -> Vec<Value> {
    let mut arguments = vec!["errors", "list", "--json"];
    arguments.extend(all.then_some("--all"));
    let output = run_verb(&s.config(more), &arguments);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Leaves an operator's word that a transaction be passed by.
pub fn skip(s: &Scenario<'_>, more: &str, id: &str, reason: &str) {
    let (code, said) = verb(s, more, &["errors", "skip", id, "--reason", reason]);
    assert_eq!(code, Some(0), "{said}");
}

/// Has an error tried again, and waits until it was: it is there still.
pub async fn retry_in_vain(s: &Scenario<'_>, more: &str, daemon: &Daemon, id: &str) -> Value {
    let find = || {
        let mut found = errors(s, more, false);
        found.retain(|error| error["id"].as_i64() == id.parse().ok());
        found.pop()
    };
    let tried = find().unwrap()["attempts"].as_i64().unwrap();
    assert_eq!(verb(s, more, &["errors", "retry", id]).0, Some(0));
    eventually(
        "another attempt",
        || daemon.stderr(),
        async || find().filter(|error| error["attempts"].as_i64() > Some(tried)),
    )
    .await
}

/// Waits for a sample's value.
pub async fn until_metric(daemon: &Daemon, sample: &str, value: f64) {
    eventually(
        &format!("{sample} {value}"),
        || daemon.stderr(),
        async || (daemon.metric(sample).await? == value).then_some(()),
    )
    .await;
}
