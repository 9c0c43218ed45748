//! What the endpoints tell of a running pipeline, and that the alerts ask for nothing else.

use super::counter::{ALL, scenario};
use crate::support::{eventually, row, samples};

#[tokio::test]
async fn endpoints_tell_what_is() {
    let s = scenario("endpoints").await;
    let daemon = s.start("").await;
    s.on_source("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) g; UPDATE t SET v = 'y' WHERE id < 4; DELETE FROM t WHERE id = 9")
        .await;
    s.in_step(&daemon, &ALL).await;
    let health = daemon.http_get("/health").await.unwrap();
    assert_eq!(
        (health.status, health.body.as_str()),
        (200, "ok: streaming\n")
    );
    assert_eq!(daemon.until_ready().await.body, "ready\n");
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
    let states = samples(&daemon, "pglockstep_state").await;
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
    // Some tell of comparisons, and of rows that refer to others.
    s.on_both("CREATE TABLE referring (id int PRIMARY KEY, t_id int REFERENCES t)")
        .await;
    let daemon = s.start("[verify]\nevery = \"10s\"").await;
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
