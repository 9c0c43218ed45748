//! What there is to see when a fact does not come: what the daemon says, what it is doing, and
//! what every session does on both servers.

use std::time::Duration;

use pglockstep::demo::cluster::Cluster;
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;

use super::{DATABASE, Daemon, Pair, eventually};

/// A frozen server is evidence too.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

const QUESTIONS: [(&str, &str); 3] = [
    (
        "sessions: pid, name, kind, state, waits for, since, blocked by, query",
        "SELECT pid, application_name, backend_type, state, wait_event_type || '/' || wait_event, \
         clock_timestamp() - query_start, nullif(pg_blocking_pids(pid), '{}'), left(query, 100) \
         FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid() ORDER BY pid",
    ),
    (
        "locks that are waited for, and advisory ones: pid, kind, mode, granted, table, key",
        "SELECT pid, locktype, mode, granted, relation::regclass, classid, objid FROM pg_locks \
         WHERE NOT granted OR locktype = 'advisory' ORDER BY pid",
    ),
    (
        "slots: name, active, pid, restart, confirmed",
        "SELECT slot_name, active, active_pid, restart_lsn, confirmed_flush_lsn \
         FROM pg_replication_slots ORDER BY 1",
    ),
];

/// All of it, as it is now.
pub fn evidence(pair: &Pair, daemon: &Daemon) -> String {
    // Asked for in the middle of a test, whose own runtime cannot be entered again.
    let seen = std::thread::scope(|scope| {
        let look = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(look(pair, daemon))
        };
        scope.spawn(look).join().unwrap()
    });
    format!("{}\n{seen}\n{}", daemon.stderr(), pair.logs())
}

async fn look(pair: &Pair, daemon: &Daemon) -> String {
    let process = std::fs::read_to_string(format!("/proc/{}/status", daemon.id()));
    let process = process.unwrap_or_default();
    let state = process.lines().find(|line| line.starts_with("State:"));
    let health = timeout(ANSWERS_WITHIN, daemon.http_get("/healthz")).await;
    let mut seen = format!("--- daemon ---\n{state:?}\n{health:?}\n");
    for (side, cluster) in [("source", &pair.source), ("replica", &pair.replica)] {
        for (what, sql) in QUESTIONS {
            let answer = timeout(ANSWERS_WITHIN, ask(cluster, sql)).await;
            let answer = answer.unwrap_or_else(|_| "no answer\n".to_owned());
            seen += &format!("--- {side}, {what} ---\n{answer}");
        }
    }
    seen
}

/// A line for each row, or why there is none.
async fn ask(cluster: &Cluster, sql: &str) -> String {
    let client = match cluster.connect(DATABASE).await {
        Ok(client) => client,
        Err(error) => return format!("{error:?}\n"),
    };
    let answer = match client.simple_query(sql).await {
        Ok(answer) => answer,
        Err(error) => return format!("{error:?}\n"),
    };
    let mut lines = String::new();
    for message in answer {
        if let SimpleQueryMessage::Row(row) = message {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("-"));
            lines += &(values.collect::<Vec<_>>().join(" | ") + "\n");
        }
    }
    lines
}

#[tokio::test]
async fn who_waits_and_for_whom_is_evidence() {
    let pair = Pair::start().await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    pair.on_source("CREATE PUBLICATION pglockstep_it FOR ALL TABLES")
        .await;
    let daemon = Daemon::start(&pair.config(""));
    daemon.until_ready().await;
    let (_, replica) = pair.clients().await;
    replica.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    pair.on_source("INSERT INTO t VALUES (1)").await;
    let seen = eventually("somebody to wait", String::new, async || {
        let seen = evidence(&pair, &daemon);
        seen.contains("Lock/relation").then_some(seen)
    })
    .await;
    for part in [
        "State:",
        r#"\"state\":\"streaming\""#,
        "| idle in transaction |",
        "| advisory | ExclusiveLock | t |",
        "| RowExclusiveLock | f | t |",
        "pglockstep_it | t |",
    ] {
        assert!(seen.contains(part), "{part}\n{seen}");
    }
}
