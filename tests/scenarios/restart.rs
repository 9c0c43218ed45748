//! The daemon ends, a server goes away, the slot is not what it was: nothing is lost,
//! nothing comes twice, and what cannot go on says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pglockstep::demo::cluster::StopMode;
use pglockstep::replication::end_dead_user;
use rustix::process::Signal;

use crate::support::{Daemon, Family, Pair, Scenario, eventually, row};

static FAMILY: Family = Family::const_new();

/// A table without a key shows what comes twice; the other one what is lost.
const TABLES: &str =
    "CREATE TABLE counter (n int, v text); CREATE TABLE t (id int PRIMARY KEY, v text);";
const ALL: [&str; 2] = ["SELECT * FROM counter", "SELECT * FROM t"];

async fn with_counter(s: &Scenario<'_>) {
    s.on_both(TABLES).await;
    s.on_source(
        "ALTER TABLE counter REPLICA IDENTITY FULL; INSERT INTO counter VALUES (0, 'counter')",
    )
    .await;
    s.publish_all().await;
}

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    with_counter(&s).await;
    s
}

/// Writes until told to stop, over every loss of its connection.
struct Load {
    is_done: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Load {
    fn start(url: String) -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_done);
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let Ok((client, connection)) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await
                else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                tokio::spawn(connection);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let sql = format!(
                        "BEGIN; UPDATE counter SET n = n + 1 WHERE v = 'counter'; INSERT INTO counter VALUES ({n}, 'new');
                         INSERT INTO t VALUES ({n}, 'new'); UPDATE t SET v = 'old' WHERE id = {n} - 5;
                         DELETE FROM t WHERE id = {n} - 50; COMMIT"
                    );
                    if client.batch_execute(&sql).await.is_err() {
                        break;
                    }
                    // The counter's row is found among all of its table, on the replica too.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            n
        });
        Self { is_done, task }
    }

    async fn stop(self) -> u32 {
        self.is_done.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// It is fed from now on, and not only found as it was.
async fn counter_goes_on(s: &Scenario<'_>, by: i64) {
    let now = "SELECT coalesce(max(n), 0) FROM counter";
    let n: i64 = s.replica_one(now).await.parse().unwrap();
    counter_reaches(s, n + by).await;
}

async fn counter_reaches(s: &Scenario<'_>, n: i64) {
    let sql = "SELECT n FROM counter WHERE v = 'counter'";
    eventually(
        "the counter to move on",
        || s.pair.logs(),
        async || (s.replica_one(sql).await.parse::<i64>().ok()? > n).then_some(()),
    )
    .await;
}

#[tokio::test]
async fn ended_in_order_or_killed_it_goes_on_where_it_was() {
    let s = scenario("ended").await;
    let load = Load::start(s.pair.source.url(&s.name));
    for round in 0..8 {
        let mut daemon = s.start("").await;
        counter_goes_on(&s, 20).await;
        if round % 2 == 0 {
            let started = Instant::now();
            assert!(daemon.terminate().success(), "{}", daemon.stderr());
            assert!(started.elapsed() < Duration::from_secs(10));
            assert!(daemon.stderr().contains("stopped"), "{}", daemon.stderr());
        } else {
            daemon.kill9();
        }
    }
    let written = load.stop().await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(
        s.replica_one("SELECT count(*) FROM counter").await,
        (written + 1).to_string()
    );
}

#[tokio::test]
async fn ended_within_a_large_transaction_it_begins_it_again() {
    let s = scenario("amid").await;
    let mut daemon = s.start("[apply]\nbatch_changes_max = 500").await;
    for is_kill in [false, true] {
        s.on_source("INSERT INTO counter SELECT g, 'large' FROM generate_series(1, 60000) g")
            .await;
        // Part of it is written, and not yet to be seen.
        s.replica_eventually("SELECT pg_relation_size('counter') > 200000", "t")
            .await;
        if is_kill {
            daemon.kill9();
        } else {
            let started = Instant::now();
            assert!(daemon.terminate().success(), "{}", daemon.stderr());
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        daemon = s.start("[apply]\nbatch_changes_max = 500").await;
        s.in_step(&daemon, &ALL).await;
        s.on_source("TRUNCATE counter").await;
        s.in_step(&daemon, &ALL).await;
    }
}

#[tokio::test]
async fn a_replica_that_hangs_does_not_hold_up_the_end() {
    let s = scenario("hangs").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    s.on_replica("BEGIN; LOCK TABLE counter IN ACCESS EXCLUSIVE MODE")
        .await;
    s.on_source("INSERT INTO counter VALUES (1, 'waits')").await;
    let waits =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'counter'::regclass";
    s.replica_eventually(waits, "1").await;
    let started = Instant::now();
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    s.on_replica("ROLLBACK").await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn servers_restart_under_load() {
    let mut pair = Pair::start().await;
    let s = Scenario::on_pair(&pair, "servers").await;
    with_counter(&s).await;
    let mut daemon = s.start("").await;
    drop(s);
    let load = Load::start(pair.source.url("servers"));
    for (is_source, mode) in [
        (true, Some(StopMode::Fast)),
        (false, Some(StopMode::Immediate)),
        (true, Some(StopMode::Immediate)),
        (false, Some(StopMode::Fast)),
        (true, None),
        (false, None),
    ] {
        let cluster = if is_source {
            &mut pair.source
        } else {
            &mut pair.replica
        };
        match mode {
            Some(mode) => cluster.stop(mode).await.unwrap(),
            None => cluster.kill9(),
        }
        // It lives, says that it is not ready, and why.
        eventually(
            "it to notice",
            || daemon.stderr(),
            async || {
                let ready = daemon.http_get("/readyz").await?;
                (ready.status == 503 && ready.body.contains("starting")).then_some(())
            },
        )
        .await;
        assert_eq!(
            daemon.http_get("/health").await.unwrap().status,
            200,
            "it is being retried"
        );
        cluster.restart().await.unwrap();
        let s = Scenario::again(&pair, "servers").await;
        s.until_state(&mut daemon, "streaming").await;
        counter_goes_on(&s, 20).await;
    }
    load.stop().await;
    let s = Scenario::again(&pair, "servers").await;
    s.in_step(&daemon, &ALL).await;
    for side in ["source", "replica"] {
        let sample = format!("pglockstep_reconnects_total{{side=\"{side}\"}}");
        assert!(daemon.metric(&sample).await.unwrap() >= 1.0, "{side}");
    }
}

#[tokio::test]
async fn a_slot_that_is_gone_or_ahead_is_refused_and_nothing_is_skipped() {
    let s = scenario("slots").await;
    let slot = s.slot();
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
    let before = s.replica_rows("SELECT * FROM counter").await;
    s.on_source("INSERT INTO counter VALUES (1, 'must not be skipped')")
        .await;
    s.on_source(&format!(
        "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
    ))
    .await;
    let said = s.refused("").await;
    assert!(
        said.contains("beyond what this replica has applied"),
        "{said}"
    );
    assert!(
        said.contains("nothing was skipped") && said.contains("rebase"),
        "{said}"
    );
    s.on_source(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    let said = s.refused("").await;
    assert!(said.contains(&slot) && said.contains("is gone"), "{said}");
    // Made anew by hand, it still has a gap.
    s.on_source(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))
    .await;
    let said = s.refused("").await;
    assert!(said.contains("made anew by somebody else"), "{said}");
    assert_eq!(s.replica_rows("SELECT * FROM counter").await, before);
}

#[tokio::test]
async fn a_slot_that_goes_while_it_runs_makes_it_fail_for_all_to_see() {
    let s = scenario("slot_goes").await;
    let slot = s.slot();
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    daemon.signal(Signal::STOP);
    s.on_source(&format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"))
        .await;
    eventually(
        "the slot to be free",
        || s.pair.logs(),
        async || {
            let dropped = s
                .source
                .batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
                .await;
            dropped.ok()
        },
    )
    .await;
    s.on_source("INSERT INTO counter VALUES (1, 'lost')").await;
    daemon.signal(Signal::CONT);
    s.until_state(&mut daemon, "failed").await;
    let health = daemon.http_get("/health").await.unwrap();
    assert!(
        health.status == 503 && health.body.contains("is gone"),
        "{health:?}"
    );
    assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 503);
    let errors = "pglockstep_errors_total{category=\"validation\",severity=\"critical\"}";
    assert!(daemon.metric(errors).await.unwrap() >= 1.0);
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn somebody_else_s_slot_is_left_alone() {
    let s = scenario("foreign").await;
    s.on_source(&format!(
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        s.slot()
    ))
    .await;
    let said = s.refused("").await;
    assert!(said.contains("knows nothing of"), "{said}");
    assert_eq!(s.replica_one("SELECT count(*) FROM counter").await, "0");
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'foreign'")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_second_daemon_stands_by_and_takes_over() {
    let s = scenario("standby").await;
    let load = Load::start(s.pair.source.url(&s.name));
    let mut first = s.start("").await;
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    let ready = second.http_get("/readyz").await.unwrap();
    assert!(
        ready.status == 503 && ready.body.contains("standby"),
        "{ready:?}"
    );
    assert_eq!(second.http_get("/health").await.unwrap().status, 200);
    first.kill9();
    s.until_state(&mut second, "streaming").await;
    counter_reaches(&s, 50).await;

    // Frozen, it loses its lock and does not know it; awake, it finds another in its place.
    let mut third = s.launch_beside("");
    s.until_state(&mut third, "standby").await;
    // A walsender that waits for room in the socket of a frozen client does not end when told to.
    load.stop().await;
    s.caught_up(&second).await;
    second.signal(Signal::STOP);
    s.on_source("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = 'standby'").await;
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = 'standby')",
    )
    .await;
    s.until_state(&mut third, "streaming").await;
    let load = Load::start(s.pair.source.url(&s.name));
    second.signal(Signal::CONT);
    s.until_state(&mut second, "standby").await;
    counter_goes_on(&s, 50).await;
    load.stop().await;
    s.in_step(&third, &ALL).await;
}

/// As when its host is gone: nothing ends its walsender, and nothing answers for it.
#[tokio::test]
async fn the_slot_of_a_dead_leader_is_freed_and_that_of_a_living_one_is_not() {
    let s = scenario("dead_leader").await;
    s.on_source("ALTER DATABASE dead_leader SET wal_sender_timeout = '1h'")
        .await;
    let mut leader = s.start("").await;
    s.in_step(&leader, &ALL).await;
    let slot = s.slot().parse().unwrap();
    let ended = end_dead_user(&s.source, &slot, "pglockstep_dead_leader").await;
    assert!(!ended.unwrap(), "it lives");
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    leader.signal(Signal::STOP);
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = 'dead_leader')",
    )
    .await;
    s.until_state(&mut second, "streaming").await;
    assert!(
        second.stderr().contains("held the slot"),
        "{}",
        second.stderr()
    );
    s.on_source("INSERT INTO t VALUES (500, 'by the second')")
        .await;
    s.in_step(&second, &ALL).await;
    leader.signal(Signal::CONT);
    s.until_state(&mut leader, "standby").await;
}

#[tokio::test]
async fn endpoints_tell_what_is() {
    let s = scenario("endpoints").await;
    let daemon: Daemon = s.start("").await;
    s.on_source("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) g; UPDATE t SET v = 'y' WHERE id < 4; DELETE FROM t WHERE id = 9")
        .await;
    s.in_step(&daemon, &ALL).await;
    let health = daemon.http_get("/health").await.unwrap();
    assert_eq!(
        (health.status, health.body.as_str()),
        (200, "ok: streaming\n")
    );
    let ready = eventually(
        "readiness",
        || daemon.stderr(),
        async || {
            daemon
                .http_get("/readyz")
                .await
                .filter(|ready| ready.status == 200)
        },
    )
    .await;
    assert_eq!(ready.body, "ready\n");
    let healthz = daemon.http_get("/healthz").await.unwrap().body;
    let healthz: serde_json::Value = serde_json::from_str(&healthz).unwrap();
    assert_eq!(
        (&healthz["healthy"], &healthz["ready"]),
        (&true.into(), &true.into())
    );
    for field in [
        "state",
        "lag_bytes",
        "lag_seconds",
        "received_lsn",
        "applied_lsn",
        "flushed_lsn",
        "tables",
    ] {
        assert!(!healthz[field].is_null(), "{field} is missing in {healthz}");
    }
    for part in ["process", "source", "replica", "stream", "slot"] {
        let evidence = || format!("{part}: {}", daemon.stderr());
        eventually("a part to be well", evidence, async || {
            let body = daemon.http_get("/healthz").await?.body;
            let healthz: serde_json::Value = serde_json::from_str(&body).unwrap();
            let parts = healthz["parts"].as_array().unwrap();
            let found = parts.iter().find(|p| p["part"] == part).unwrap();
            (found["state"] == "ok").then_some(())
        })
        .await;
    }
    let states = crate::support::samples(&daemon, "pglockstep_state").await;
    assert_eq!(states.values().sum::<f64>(), 1.0, "{states:?}");
    let applied =
        |op: &str| format!("pglockstep_changes_applied_total{{table=\"public.t\",op=\"{op}\"}}");
    for (op, count) in [
        ("insert", 10.0),
        ("update", 3.0),
        ("delete", 1.0),
        ("truncate", 0.0),
    ] {
        assert_eq!(
            daemon.metric(&applied(op)).await.unwrap_or(0.0),
            count,
            "{op}"
        );
    }
    assert_eq!(
        daemon
            .metric("pglockstep_changes_received_total{table=\"public.t\"}")
            .await,
        Some(14.0)
    );
    assert_eq!(
        daemon
            .metric("pglockstep_source_write_attempts_total")
            .await,
        Some(0.0)
    );
    for (path, status) in [("/", 200), ("/admin/tables", 200), ("/nothing", 404)] {
        assert_eq!(
            daemon.http_get(path).await.unwrap().status,
            status,
            "{path}"
        );
    }
    assert_eq!(s.replica_rows("SELECT count(*) FROM t").await, [row(["9"])]);
}

/// Metrics that are there only in a state of affairs that this test does not bring about.
const ABSENT: [&str; 3] = [
    "pglockstep_certificate_expiry_seconds",
    "pglockstep_slot_safe_bytes",
    "pglockstep_slot_exhaustion_seconds",
];

#[tokio::test]
async fn alerts_speak_of_metrics_that_are_there() {
    let s = scenario("alerts").await;
    let daemon = s.start("").await;
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/alerts.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = rules.split(|c: char| !is_name(c));
    let names: Vec<&str> = words
        .filter(|word| word.starts_with("pglockstep_") && !ABSENT.contains(word))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    eventually(
        "all metrics",
        || daemon.stderr(),
        async || {
            let metrics = daemon.http_get("/metrics").await?.body;
            let is_there = |name: &&str| metrics.contains(&format!("# TYPE {name} "));
            let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
            missing.is_empty().then_some(())
        },
    )
    .await;
}
