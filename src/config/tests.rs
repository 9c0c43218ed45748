//! Files as people write them, right and wrong; every problem with its place.

use super::*;
use crate::mapping::{ConflictPolicy, ExistingRows, ExtraRows};
use secrecy::ExposeSecret;
use std::net::SocketAddr;
use std::time::Duration;

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
    assert_eq!(config.mapping, mapping::Settings::default());
    assert_eq!((config.snapshot.workers, config.replica.pool_max), (4, 8));
    assert!(!config.source.failover && !config.source.binary);
    assert!(!format!("{config:?}").contains("hunter"));
}

#[test]
fn the_file_that_is_shipped_loads() {
    let config = parse(include_str!("../../config/pglockstep.toml")).unwrap();
    assert_eq!(config.name, "crm");
    let rule = &config.mapping.rules[0];
    assert_eq!(rule.source.to_string(), "public.leads");
    assert_eq!(rule.columns["current_project_id"], "project_id");
}

const EVERY_KEY: &str = r#"
name = "crm"
[source]
url = "postgres://a/app"
environment = "production"
publication = "Everything"
slot = "s1"
failover = true
binary = true
[replica]
url = "postgres://b/crm"
environment = "staging"
accept_environments = ["production"]
pool_max = 12
[copy]
workers = 2
existing_rows = "merge"
extra_rows = "delete"
[apply]
batch_changes_max = 5
batch_bytes_max = "1MiB"
memory_max = 2097152
on_conflict = "replica_wins"
on_error = "stop"
schema_changes = "pause"
[http]
listen = "[::1]:0"
ready_lag_seconds_max = 5
ready_lag_bytes_max = "1GiB"
[retry]
delay_min = "50ms"
delay_max = "2m"
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
    assert!(config.source.failover && config.source.binary);
    assert_eq!((config.snapshot.workers, config.replica.pool_max), (2, 12));
    assert_eq!(config.apply.batch_bytes_max, 1 << 20);
    assert_eq!(config.apply.memory_max, 2 << 20);
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
            ("PGLOCKSTEP__SOURCE__URL", "postgres://other/app"),
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
        config.source.url.read().unwrap().expose_secret(),
        "postgres://other/app"
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

/// Lines that follow `LEAST`, from line 7 on, and what comes of them.
const BAD_ADDITIONS: &[(&str, &str)] = &[
    (
        "[copy]\nworker = 3",
        "line 8, copy.worker: unknown key; did you mean workers?",
    ),
    ("[cpoy]", "line 7, cpoy: unknown key; did you mean copy?"),
    (
        "[copy]\nworkers = \"3\"",
        "line 8, copy.workers: expected a whole number, found other text",
    ),
    (
        "[copy]\nworkers = 1.9",
        "line 8, copy.workers: expected a whole number, found a number with a fraction",
    ),
    (
        "[copy]\nworkers = 0",
        "line 8, copy.workers: 0 is not between 1 and 64",
    ),
    (
        "[copy]\nexisting_rows = \"mrege\"",
        "line 8, copy.existing_rows: \"mrege\" is not one of refuse, merge, truncate",
    ),
    (
        "[copy]\nextra_rows = \"delete\"",
        "line 8, copy.extra_rows: delete has no effect unless existing_rows is merge",
    ),
    (
        "[apply]\nbatch_bytes_max = \"16 M\"",
        "line 8, apply.batch_bytes_max: expected a size such as 65536, \"500kB\" or \"16MiB\", found other text",
    ),
    (
        "[apply]\nbatch_bytes_max = \"1KiB\"",
        "line 8, apply.batch_bytes_max: expected at least 64KiB",
    ),
    (
        "[apply]\nmemory_max = \"1MiB\"",
        "line 8, apply.memory_max: memory_max (1048576 bytes) must hold at least one batch of batch_bytes_max (16777216 bytes)",
    ),
    (
        "[apply]\non_conflict = \"newest\"",
        "line 8, apply.on_conflict: expected source_wins, replica_wins, newest_wins(COLUMN) or stop",
    ),
    (
        "[apply]\non_error = \"quarantine\"",
        "line 8, apply.on_error: quarantine is not supported yet by this version; use stop",
    ),
    (
        "[apply]\nschema_changes = \"ignore\"",
        "line 8, apply.schema_changes: only pause is supported yet by this version: a change of a table's shape that does not fit stops the pipeline",
    ),
    (
        "[verify]\nevery = \"1h\"",
        "line 7, verify: not supported yet by this version; remove it",
    ),
    (
        "[tenants]\ncolumn = \"t\"",
        "line 7, tenants: not supported yet by this version; remove it",
    ),
    (
        "[http]\nadmin_token_file = \"/x\"",
        "line 8, http.admin_token_file: not supported yet by this version; remove it",
    ),
    (
        "[http]\nlisten = \"localhost:9808\"",
        "line 8, http.listen: expected ADDRESS:PORT in numbers, as in 127.0.0.1:9808",
    ),
    (
        "[http]\nready_lag_seconds_max = -1",
        "line 8, http.ready_lag_seconds_max: must not be below 0",
    ),
    (
        "[http]\nready_lag_seconds_max = nan",
        "line 8, http.ready_lag_seconds_max: expected a number, found a number with a fraction",
    ),
    (
        "[retry]\ndelay_min = \"soon\"",
        "line 8, retry.delay_min: expected a time such as \"200ms\", \"30s\" or \"1h\", found other text",
    ),
    (
        "[retry]\ndelay_min = \"0s\"",
        "line 8, retry.delay_min: must be above 0: servers would be hammered",
    ),
    (
        "[retry]\ndelay_max = \"1ms\"",
        "line 8, retry.delay_max: delay_max must not be below delay_min",
    ),
    (
        "tables = 3",
        "line 7, replica.tables: unknown key; known here: url, url_file, environment, accept_environments, pool_max",
    ),
    (
        "pool_max = 5",
        "line 7, replica.pool_max: 5 is not between 6 and 1000",
    ),
    (
        "url_file = \"/x\"",
        "line 6, replica.url: give url or url_file, not both",
    ),
    (
        "environment = \"production\"",
        "line 7, replica.environment: a replica of environment \"production\" is not fed from a source with no label; if that is meant, label the source with source.environment and list it in replica.accept_environments",
    ),
    (
        "accept_environments = \"all\"",
        "line 7, replica.accept_environments: expected a list of texts, as in [\"a\", \"b\"], found other text",
    ),
    (
        "[[tables]]\nreplica = \"a.b\"",
        "line 7, tables[0].source: missing; expected schema.table or a pattern such as public.*",
    ),
    (
        "[[tables]]\nsource = \"leads\"",
        "line 8, tables[0].source: expected schema.table, where * stands for any characters and \"double quotes\" keep dots",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nreplica = \"a.*\"",
        "line 9, tables[0].replica: * in the table stands for nothing: the source has none there",
    ),
    (
        "[[tables]]\nsource = \"a.*\"\nreplica = \"a.b\"",
        "line 9, tables[0].replica: every table that a.* matches would become a.b; keep the *",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\n[[tables]]\nsource = \"a.b\"",
        "line 10, tables[1].source: a.b has a rule already, further up",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = 1 }",
        "line 9, tables[0].columns: expected names and texts, as in { a = \"b\" }, found a section",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\", y = \"z\" }",
        "line 9, tables[0].columns: two columns would become z",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\" }\nset = { z = \"1\" }",
        "line 10, tables[0].set: z is filled by columns already",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\" }\nexclude = [\"x\"]",
        "line 10, tables[0].exclude: x is renamed by columns and excluded",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nexclude = [\"id\"]\nkey = [\"id\"]",
        "line 10, tables[0].key: id is excluded and so cannot identify a row",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nkey = []",
        "line 9, tables[0].key: empty; leave it out to use the primary key",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nwhere = \" \"",
        "line 9, tables[0].where: empty; leave it out to replicate every row",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nset = { z = \"\" }",
        "line 9, tables[0].set: z has an empty expression",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nextra_rows = \"delete\"",
        "line 9, tables[0].extra_rows: delete has no effect unless existing_rows is merge",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\npriority = 9999999999",
        "line 9, tables[0].priority: too large a number",
    ),
];

#[test]
fn each_bad_input_has_its_message() {
    for (addition, expected) in BAD_ADDITIONS {
        let text = format!("{}{addition}\n", &LEAST);
        assert_eq!(problems(parse(&text)), [*expected], "{addition}");
    }
}

#[test]
fn what_is_missing_or_wrong_at_the_root() {
    for (text, expected) in [
        (
            LEAST.replace("name = \"crm\"", ""),
            "name: missing; the slot and the publication are named after it",
        ),
        (
            LEAST.replace("\"crm\"", "\"CRM!\""),
            "line 2, name: expected 1 to 40 of the letters a to z, digits and underscores",
        ),
        (
            LEAST.replace("\"crm\"", "7"),
            "line 2, name: expected text in quotes, found a whole number",
        ),
        (
            LEAST.replace("hunter3@b/crm", "hunter2@a/app"),
            "line 6, replica.url: the same database as the source: it would be copied onto itself",
        ),
        (
            LEAST.replace("postgres://pglockstep:hunter3", "enc:v1:hunter3"),
            "line 6, replica.url: encrypted connection strings (enc:v1:) are not supported yet by this version",
        ),
        (
            LEAST.replace("\"postgres://pglockstep:hunter3@b/crm\"", "\"\""),
            "line 6, replica.url: empty; expected postgres://user@host:port/database",
        ),
        (
            LEAST.replace("[replica]\nurl", "#"),
            "replica.url: missing; expected postgres://user@host:port/database, here or in the file named by url_file",
        ),
        (
            LEAST.replace("[replica]", "slot = \"Slot\"\n[replica]"),
            "line 5, source.slot: expected 1 to 63 of the letters a to z, digits and underscores",
        ),
        (
            LEAST.replace("[replica]", "publication = \"\"\n[replica]"),
            "line 5, source.publication: expected a name of 1 to 63 bytes",
        ),
        (
            LEAST.replace(
                "[replica]\nurl",
                "[replica]\nurl_file = \"/does/not/exist\"\n#",
            ),
            "line 6, replica.url_file: cannot read /does/not/exist: No such file or directory (os error 2)",
        ),
    ] {
        assert_eq!(problems(parse(&text)), [expected], "{text}");
    }
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = "nmae = \"crm\"\n[source]\nurl = 5\nslot = \"A\"\n[replica]\nurl = \"postgres://b/c\"\n\
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
    std::fs::write(&path, "name = 1\n[source]\nurl = \"a\"\n").unwrap();
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
