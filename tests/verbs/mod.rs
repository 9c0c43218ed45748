//! The verbs as an operator types them: what they say, their exit codes, what they leave.

mod check;
mod check_servers;
mod explain;
mod setup;
mod teardown;

use crate::support::{DATABASE, Pair, fetch_rows, run_verb};
use serde_json::Value;
use std::process::Output;

/// A source with two tables, published; a replica with another shape of them.
pub const SOURCE: &str = "
CREATE TABLE public.leads (id int PRIMARY KEY, email text, secret text);
CREATE TABLE public.notes (id int PRIMARY KEY, body text);
INSERT INTO public.leads VALUES (1, 'A@B', 'x'), (2, 'C@D', 'y');
INSERT INTO public.notes VALUES (1, 'hello');
CREATE PUBLICATION pglockstep_it FOR TABLE public.leads, public.notes;";

pub const REPLICA: &str = "
CREATE SCHEMA crm;
CREATE TABLE crm.leads (id int PRIMARY KEY, email text, local text DEFAULT 'mine');
CREATE TABLE crm.notes (id int PRIMARY KEY, body text);";

pub const TABLES: &str = r#"
[[tables]]
source = "public.leads"
replica = "crm.leads"
exclude = ["secret"]
set = { email = "lower(email)" }

[[tables]]
source = "public.*"
replica = "crm.*"
"#;

/// Two clusters with those tables.
pub async fn pair() -> Pair {
    let pair = Pair::start().await;
    pair.on_source(SOURCE).await;
    pair.on_replica(REPLICA).await;
    pair
}

/// What a verb printed and came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub async fn verb(config: &str, arguments: &[&str]) -> Said {
    let (config, owned) = (
        config.to_owned(),
        arguments
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
    );
    // The child is waited for in a thread: the test's own connections go on meanwhile.
    let output: Output = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = owned.iter().map(String::as_str).collect();
        run_verb(&config, &arguments)
    })
    .await
    .unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The findings of `check --json`, and its exit code.
pub async fn check(config: &str) -> (i32, Vec<Value>) {
    let said = verb(config, &["check", "--json"]).await;
    let findings = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("no list: {said:?}"));
    (said.code, findings)
}

/// The one finding of a check about an object; panics with all of them when it is not there.
pub fn finding<'a>(findings: &'a [Value], check: &str, object: &str) -> &'a Value {
    findings
        .iter()
        .find(|f| f["check"] == check && f["object"].as_str().unwrap().contains(object))
        .unwrap_or_else(|| panic!("no {check} about {object} in {findings:#?}"))
}

/// Asserts severity, and that message and remedy hold these parts.
pub fn assert_finding(finding: &Value, severity: &str, message: &str, remedy: &str) {
    assert_eq!(finding["severity"], severity, "{finding:#}");
    for (key, part) in [("message", message), ("remedy", remedy)] {
        let text = finding[key].as_str().unwrap();
        assert!(text.contains(part), "{key} lacks {part:?}: {finding:#}");
    }
}

/// Neither a slot on the source nor a schema on the replica.
pub async fn assert_untouched(pair: &Pair) {
    let (source, replica) = pair.clients().await;
    let slots = fetch_rows(&source, "SELECT slot_name FROM pg_replication_slots").await;
    assert!(slots.is_empty(), "a slot was made: {slots:?}");
    let books = "SELECT 1 FROM pg_namespace WHERE nspname = 'pglockstep'";
    assert!(
        fetch_rows(&replica, books).await.is_empty(),
        "a schema was made"
    );
}

/// The same configuration for other roles, and by TCP.
pub fn as_roles(pair: &Pair, config: &str, source: &str, replica: &str) -> String {
    let url = |cluster: &pglockstep::demo::cluster::Cluster, role: &str| {
        cluster
            .tcp_url(DATABASE)
            .replace("postgres@", &format!("{role}@"))
    };
    config
        .replace(&pair.source.url(DATABASE), &url(&pair.source, source))
        .replace(&pair.replica.url(DATABASE), &url(&pair.replica, replica))
}
