//! The source is only read: every statement that the daemon and its verbs send there is on a list.

use crate::support::{DATABASE, Daemon, Pair, PairOptions, eventually, run_verb};
use pglockstep::demo::cluster::ClusterOptions;
use regex::Regex;
use std::collections::BTreeSet;

/// How a statement that only reads, or speaks to the walsender, begins.
const ALLOWED: [&str; 13] = [
    r"^SELECT ",
    r"^WITH (RECURSIVE )?\w+",
    r"^COPY \(\s*SELECT .* TO STDOUT",
    r"^BEGIN( ISOLATION LEVEL REPEATABLE READ)?( READ ONLY)?$",
    r"^(BEGIN|START TRANSACTION).*READ ONLY",
    r"^(COMMIT|ROLLBACK)$",
    r"^SET ",
    r"^SHOW ",
    r"^IDENTIFY_SYSTEM$",
    r"^TIMELINE_HISTORY \d+$",
    r"^CREATE_REPLICATION_SLOT ",
    r"^DROP_REPLICATION_SLOT ",
    r"^START_REPLICATION ",
];
/// What writes, or has an effect elsewhere, in whatever statement it hides.
const FORBIDDEN: &str = r"(?i)\b(INSERT|UPDATE|DELETE|TRUNCATE|CREATE|ALTER|DROP|GRANT|REVOKE|LOCK|VACUUM|ANALYZE|CLUSTER|REINDEX|REFRESH|CALL|DO|NOTIFY|nextval|setval|lo_create|lo_put|dblink|pg_logical_emit_message|pg_replication_slot_advance|pg_create_\w+|pg_drop_replication_slot|pg_cancel_backend|pg_terminate_backend|pg_advisory\w*|pg_switch_wal|pg_export_snapshot|pg_current_xact_id|txid_current)\b";

/// The one exception: a session that is certainly ours, and dead.
const ENDS_OURS: &str = r"pg_terminate_backend\((a\.pid\) END FROM pg_catalog\.pg_stat_activity|s\.active_pid\) FROM pg_catalog\.pg_replication_slots)";

const TABLES: &str = "CREATE TABLE leads (id int PRIMARY KEY, name text, born date); \
                      CREATE TABLE notes (what text); ALTER TABLE notes REPLICA IDENTITY FULL";

#[tokio::test]
async fn every_statement_on_the_source_is_a_read() {
    let source = ClusterOptions::default()
        .with("log_statement", "all")
        .with("log_replication_commands", "on")
        .with("log_min_duration_statement", "0");
    let pair = Pair::start_with(PairOptions {
        source,
        ..PairOptions::default()
    })
    .await;
    pair.on_both(TABLES).await;
    pair.on_source(
        "INSERT INTO leads SELECT g, 'lead ' || g, now() FROM generate_series(1, 100) g; \
         CREATE PUBLICATION pglockstep_it FOR ALL TABLES",
    )
    .await;
    let rules = "[copy]\nexisting_rows = \"merge\"\n[[tables]]\nsource = \"public.leads\"\n\
                 set = { name = \"upper(name)\" }\nwhere = \"id <> 50\"\n\
                 [[tables]]\nsource = \"public.*\"";
    let config = pair.config(rules);
    let verb = |arguments: &[&str]| {
        let output = run_verb(&config, arguments);
        assert!(output.status.success(), "{arguments:?} {output:?}");
    };
    for arguments in [
        &["check"][..],
        &["setup"],
        &["mapping", "explain", "public.leads"],
    ] {
        verb(arguments);
    }
    let same = (
        "SELECT id, upper(name), born FROM leads WHERE id <> 50",
        "SELECT * FROM leads",
    );
    for round in 0..2 {
        let mut daemon = Daemon::start(&config);
        pair.eventually_same_rows(same.0, same.1).await;
        pair.on_source(
            "UPDATE leads SET name = name || '!' WHERE id < 20; DELETE FROM leads WHERE id = 30; \
             INSERT INTO notes VALUES ('one'), ('two'); UPDATE notes SET what = what || '.'; \
             ALTER TABLE leads ALTER name TYPE varchar(80)",
        )
        .await;
        pair.eventually_same_rows(same.0, same.1).await;
        pair.eventually_same_rows("SELECT * FROM notes", "SELECT * FROM notes")
            .await;
        if round == 0 {
            pair.on_both("CREATE TABLE joined (id int PRIMARY KEY)")
                .await;
            pair.on_source("INSERT INTO joined VALUES (1)").await;
            pair.eventually_same_rows("SELECT * FROM joined", "SELECT * FROM joined")
                .await;
        }
        // A look at the slot, and the like of what happens now and then.
        let retained = "pglockstep_slot_retained_bytes";
        eventually(
            "the slot to be looked at",
            || daemon.stderr(),
            async || daemon.metric(retained).await,
        )
        .await;
        for arguments in [
            &["status"][..],
            &["check"],
            &["errors", "list"],
            &["resync", "public.leads"],
        ] {
            verb(arguments);
        }
        pair.eventually_same_rows(same.0, same.1).await;
        assert_eq!(
            daemon
                .metric("pglockstep_source_write_attempts_total")
                .await,
            Some(0.0)
        );
        // Another one takes over from one that is dead, or this one has ended.
        if round == 0 {
            daemon.kill9();
        } else {
            assert!(daemon.terminate().success());
        }
    }
    verb(&["rebase"]);
    verb(&["rebase", "--apply", "--force", "--yes"]);
    let mut daemon = Daemon::start(&config);
    pair.eventually_same_rows(same.0, same.1).await;
    daemon.until_ready().await;
    assert!(daemon.terminate().success());
    let statements = statements(&pair.source.log());
    assert!(statements.len() > 30, "{statements:#?}");
    let allowed: Vec<Regex> = ALLOWED.iter().map(|it| Regex::new(it).unwrap()).collect();
    let forbidden = Regex::new(FORBIDDEN).unwrap();
    let is_slot_command = Regex::new("^(CREATE|DROP)_REPLICATION_SLOT \"pglockstep_it").unwrap();
    let ends_ours = Regex::new(ENDS_OURS).unwrap();
    let wrong = statements.iter().filter(|text| {
        let is_read = allowed.iter().any(|it| it.is_match(text));
        let is_excused = is_slot_command.is_match(text) || ends_ours.is_match(text);
        !is_read || (forbidden.is_match(text) && !is_excused)
    });
    let wrong: Vec<&String> = wrong.collect();
    assert!(wrong.is_empty(), "not on the list: {wrong:#?}");
    // What is left is what was declared.
    let (source, _) = pair.clients().await;
    let objects = "SELECT (SELECT count(*) FROM pg_replication_slots), \
                   (SELECT count(*) FROM pg_publication), \
                   (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pglockstep%')";
    let row = source.query_one(objects, &[]).await.unwrap();
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts, [1, 1, 0]);
}

/// What sessions of ours sent, each once, in one line.
fn statements(log: &str) -> BTreeSet<String> {
    let entry = Regex::new(&format!(
        r"\[\d+\] \S+@{DATABASE} pglockstep\S*: (?:LOG|STATEMENT):  (.*)"
    ))
    .unwrap();
    let starts = Regex::new(r"^\d{4}-\d\d-\d\d ").unwrap();
    let said = Regex::new(
        r"^(?:duration: \S+ ms +)?(?:statement|execute \S+|parse \S+|bind \S+|received replication command): ?",
    )
    .unwrap();
    let mut found = BTreeSet::new();
    let mut current: Option<String> = None;
    for line in log.lines() {
        if starts.is_match(line) {
            found.extend(current.take());
            let text = entry.captures(line).map(|it| it[1].to_owned());
            current = text.filter(|text| said.is_match(text)).map(|text| {
                let text = said.replace(&text, "").into_owned();
                text.trim().to_owned()
            });
        } else if let Some(text) = &mut current {
            text.push(' ');
            text.push_str(line.trim());
        }
    }
    found.extend(current);
    let parts = found.iter().flat_map(|text| text.split("; "));
    let parts = parts.map(|part| part.trim().trim_end_matches(';').to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn a_log_is_read_by_statement() {
    let log = "2026-11-21 07:02:13.933 GMT [998] u@app pglockstep_it: LOG:  statement: BEGIN; SELECT 1\n\
               2026-11-21 07:02:13.933 GMT [998] u@app pglockstep_it: LOG:  execute s1: SELECT a\n  FROM b\n\
               2026-11-21 07:02:13.933 GMT [998] u@app psql: LOG:  statement: DELETE FROM t\n\
               2026-11-21 07:02:13.933 GMT [998] u@app pglockstep_it: LOG:  received replication command: IDENTIFY_SYSTEM\n\
               2026-11-21 07:02:13.933 GMT [998] u@app pglockstep_it: LOG:  duration: 0.1 ms  parse s2: UPDATE t SET a = 1\n"
        .replace("@app ", &format!("@{DATABASE} "));
    let found: Vec<String> = statements(&log).into_iter().collect();
    assert_eq!(
        found,
        [
            "BEGIN",
            "IDENTIFY_SYSTEM",
            "SELECT 1",
            "SELECT a FROM b",
            "UPDATE t SET a = 1"
        ]
    );
}
