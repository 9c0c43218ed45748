//! The list of reads: what the daemon and its verbs may send to the source, and nothing else.

use std::collections::BTreeSet;

use regex::Regex;

use super::DATABASE;

/// How a statement that only reads, or speaks to the walsender, begins.
const ALLOWED: [&str; 14] = [
    r"^SELECT ",
    r"^WITH (RECURSIVE )?\w+",
    r"^COPY \(\s*SELECT .* TO STDOUT",
    r"^BEGIN( ISOLATION LEVEL REPEATABLE READ)?( READ ONLY)?$",
    r"^(BEGIN|START TRANSACTION).*READ ONLY",
    r"^(COMMIT|ROLLBACK)$",
    r"^(SAVEPOINT|ROLLBACK TO|RELEASE) before_table$",
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

/// Reads the source's log and panics where one of our sessions did more than read; how many
/// different statements there were.
pub fn expect_reads(log: &str) -> usize {
    let statements = statements(log);
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
    statements.len()
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

#[test]
fn what_is_no_read_is_noticed() {
    let fails = |statement: &str| {
        let log = format!(
            "2026-11-21 07:02:13.933 GMT [998] u@{DATABASE} pglockstep_it: LOG:  statement: {statement}\n"
        );
        std::panic::catch_unwind(|| expect_reads(&log)).is_err()
    };
    assert!(!fails("SELECT 1"));
    for statement in [
        "UPDATE t SET a = 1",
        "SELECT nextval('s')",
        "WITH gone AS (DELETE FROM t) SELECT 1",
    ] {
        assert!(fails(statement), "{statement}");
    }
}
