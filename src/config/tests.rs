//! Files as people write them, right and wrong; every problem with its place.

use super::*;
use crate::apply::OnError;
use crate::mapping::{ConflictPolicy, ExistingRows, ExtraRows};
use crate::snapshot::Indexes;
use crate::verify::SliceSize;
use std::net::SocketAddr;
use std::time::Duration;

mod bad_input;

const LEAST: &str = r#"
name = "crm"
[source]
url = "postgres://pglockstep:hunter2@a/app"
[replica]
url = "postgres://pglockstep:hunter3@b/crm"
"#;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    Config::parse(text, HashMap::new())
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<Problem>> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Config::parse(text, variables.iter().map(owned).collect())
}

/// The problems as they are printed. No message may ever show a secret.
fn problems(result: Result<Config, Vec<Problem>>) -> Vec<String> {
    let problems: Vec<String> = result
        .err()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        !problems.iter().any(|line| line.contains("hunter")),
        "{problems:?}"
    );
    problems
}

#[test]
fn the_least_takes_defaults() {
    let config = parse(LEAST).unwrap();
    assert_eq!(config.source.slot, "pglockstep_crm");
    assert_eq!(config.source.publication, "pglockstep_crm");
    assert_eq!(config.application_name(), "pglockstep_crm");
    assert_eq!(config.apply, apply::Settings::default());
    assert_eq!(config.http, http::Settings::default());
    assert_eq!(config.retry, pipeline::RetrySettings::default());
    assert_eq!(config.upkeep, upkeep::Settings::default());
    assert_eq!(config.mapping, mapping::Settings::default());
    assert_eq!((config.snapshot.workers, config.replica.pool_max), (4, 9));
    assert!(!config.source.failover);
    assert!(!format!("{config:?}").contains("hunter"));
}

#[test]
fn the_file_that_is_shipped_loads() {
    let config = parse(include_str!("../../config/pglockstep.toml")).unwrap();
    assert_eq!(config.name, "crm");
    let unset = apply::Settings::default();
    assert_eq!(config.apply, unset, "what it shows is what holds without");
    let rule = &config.mapping.rules[0];
    assert_eq!(rule.source.to_string(), "public.leads");
    assert_eq!(rule.columns["current_project_id"], "project_id");
}

const EVERY_KEY: &str = r#"
name = "crm"
[source]
url = "postgres://u@a/app"
environment = "production"
publication = "Everything"
slot = "s1"
failover = true
[replica]
url = "postgres://u@b/crm"
environment = "staging"
accept_environments = ["production"]
pool_max = 12
[copy]
workers = 2
split_from = "2GiB"
indexes = "after"
existing_rows = "merge"
extra_rows = "delete"
[apply]
batch_changes_max = 5
batch_bytes_max = "1MiB"
memory_max = 2097152
on_conflict = "replica_wins"
on_error = "quarantine"
schema_changes = "pause"
[http]
listen = "[::1]:0"
ready_lag_seconds_max = 5
ready_lag_bytes_max = "1GiB"
[retry]
delay_min = "50ms"
delay_max = "2m"
[slot]
warn_beyond = "1GiB"
critical_beyond = "2GiB"
drop_beyond = "3GiB"
holdback = "30s"
[verify]
every = "1d"
counts_every = "0s"
budget = "5m"
slice = "1GiB"
repair = true
[[tables]]
source = "public.*"
replica = "crm.*"
[[tables]]
source = "public.leads"
columns = { a = "b" }
exclude = ["c"]
set = { d = "lower(e)" }
where = "f > 1"
key = ["id"]
existing_rows = "truncate"
extra_rows = "keep"
on_conflict = "newest_wins(g)"
priority = -3
"#;

#[test]
fn every_key_is_taken() {
    let config = parse(EVERY_KEY).unwrap();
    assert_eq!(
        (
            config.source.slot.as_str(),
            config.source.publication.as_str()
        ),
        ("s1", "Everything")
    );
    assert!(config.source.failover);
    assert_eq!((config.snapshot.workers, config.replica.pool_max), (2, 12));
    assert_eq!(config.snapshot.split_from, 2 << 30);
    assert_eq!(config.snapshot.indexes, Indexes::After);
    assert_eq!(config.apply.batch_bytes_max, 1 << 20);
    assert_eq!(config.apply.memory_max, 2 << 20);
    let proving = upkeep::Settings {
        every: Duration::from_secs(24 * 3600),
        counts_every: Duration::ZERO,
        repair: true,
        budget: Duration::from_secs(300),
        slice: SliceSize(1 << 30),
    };
    assert_eq!(config.upkeep, proving);
    let budget = pipeline::SlotBudget {
        warning_bytes: 1 << 30,
        critical_bytes: 2 << 30,
        drop_bytes: Some(3 << 30),
    };
    assert_eq!(config.slot_budget, budget);
    assert_eq!(config.holdback, Duration::from_secs(30));
    assert_eq!(config.apply.on_error, OnError::Quarantine);
    assert_eq!(config.http.listen, "[::1]:0".parse::<SocketAddr>().unwrap());
    assert_eq!(config.http.ready.lag_seconds_max, Some(5.0));
    assert_eq!(config.http.ready.lag_bytes_max, Some(1 << 30));
    assert_eq!(config.retry.delay_max, Duration::from_secs(120));
    let [pattern, leads] = config.mapping.rules.as_slice() else {
        panic!("two rules")
    };
    assert_eq!(pattern.existing_rows, ExistingRows::Merge, "from [copy]");
    assert_eq!(pattern.extra_rows, ExtraRows::Delete, "from [copy]");
    assert_eq!(
        pattern.on_conflict,
        ConflictPolicy::ReplicaWins,
        "from [apply]"
    );
    assert_eq!(leads.existing_rows, ExistingRows::Truncate);
    assert_eq!(
        leads.on_conflict,
        ConflictPolicy::NewestWins { column: "g".into() }
    );
    assert_eq!(
        (leads.priority, leads.filter.as_deref()),
        (-3, Some("f > 1"))
    );
}

#[test]
fn the_environment_stands_over_the_file() {
    let config = parse_with(
        LEAST,
        &[
            ("PGLOCKSTEP__SOURCE__URL", "postgres://u@other/app"),
            ("PGLOCKSTEP__COPY__WORKERS", "7"),
            ("PGLOCKSTEP__SOURCE__FAILOVER", "true"),
            ("PGLOCKSTEP__SOURCE__SLOT", "5"),
            ("PGLOCKSTEP__REPLICA__ACCEPT_ENVIRONMENTS", "a, b"),
            ("PGLOCKSTEP__SOURCE__ENVIRONMENT", "b"),
            ("PGLOCKSTEP__REPLICA__ENVIRONMENT", ""),
            ("PGLOCKSTEP_CONFIG", "/etc/x"),
            ("PGLOCKSTEP_LOG", "debug"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(
        config.source.url.read().unwrap().describe(),
        "other:5432/app"
    );
    assert_eq!(config.snapshot.workers, 7);
    assert!(config.source.failover);
    assert_eq!(config.source.slot, "5", "text stays text");
    assert_eq!(
        config.replica.environment, None,
        "an empty variable is none"
    );

    let wrong = parse_with(
        LEAST,
        &[
            ("PGLOCKSTEP__COPY__WORKERS", "many"),
            ("PGLOCKSTEP__SOURCE__URI", "x"),
            ("PGLOCKSTEP__SUORCE__URL", "x"),
        ],
    );
    assert_eq!(
        problems(wrong),
        [
            "environment variable PGLOCKSTEP__COPY__WORKERS: expected a whole number, found other text",
            "environment variable PGLOCKSTEP__SOURCE__URI: unknown key; did you mean url?",
            "environment variable PGLOCKSTEP__SUORCE__URL: unknown key; did you mean source?",
        ]
    );
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = "nmae = \"crm\"\n[source]\nurl = 5\nslot = \"A\"\n[replica]\nurl = \"postgres://u@b/c\"\n\
                [copy]\nworkers = true\n[apply]\non_conflict = \"x\"\n";
    let keys: Vec<String> = parse(text)
        .unwrap_err()
        .into_iter()
        .map(|problem| problem.key)
        .collect();
    assert_eq!(
        keys,
        [
            "nmae",
            "source.url",
            "copy.workers",
            "apply.on_conflict",
            "name"
        ]
    );
}

#[test]
fn syntax_errors_have_lines_and_show_no_secrets() {
    let text = LEAST.replace("hunter2@a/app\"", "hunter2@a/app");
    let found = problems(parse(&text));
    assert!(found[0].starts_with("line 4: not TOML: "), "{found:?}");
    let twice = problems(parse("name = \"a\"\nname = \"b\"\n"));
    assert!(twice[0].starts_with("line 2: not TOML: "), "{twice:?}");
}

#[test]
fn production_is_fed_from_production() {
    for (source, replica, accept, accepted) in [
        ("production", "production", None, true),
        ("production", "staging", None, true),
        ("staging", "production", None, false),
        ("staging", "Production", None, false),
        ("staging", "production", Some("[\"staging\"]"), true),
        ("staging", "production", Some("[\"other\"]"), false),
        ("production", "production", Some("[\"other\"]"), true),
        ("production", "staging", Some("[\"staging\"]"), false),
    ] {
        let accept = accept
            .map(|list| format!("accept_environments = {list}\n"))
            .unwrap_or_default();
        let text = LEAST.replace(
            "[replica]\n",
            &format!(
                "environment = \"{source}\"\n[replica]\nenvironment = \"{replica}\"\n{accept}"
            ),
        );
        assert_eq!(parse(&text).is_ok(), accepted, "{text}");
    }
}

#[test]
fn the_error_lists_its_problems() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "name = 1\n[source]\nurl = \"postgres://u@a/b\"\n").unwrap();
    let message = Config::load(&path).unwrap_err().to_string();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(
        lines[0],
        format!("2 problems in the configuration {}", path.display())
    );
    assert_eq!(
        lines[1],
        "  line 1, name: expected text in quotes, found a whole number"
    );
    assert_eq!(lines.len(), 3);
    let missing = Config::load(&folder.path().join("none")).unwrap_err();
    assert!(matches!(missing, ConfigError::Unreadable { .. }));
}
