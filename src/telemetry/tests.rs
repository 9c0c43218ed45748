//! The handle as its users see it: what was told comes out as metrics and status.

use super::*;
use crate::pg::ConflictKind;

fn lsn(raw: u64) -> Lsn {
    Lsn::from_wire(raw).unwrap()
}

/// The value of a series, written as it is scraped.
fn series(text: &str, name: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn nothing_is_told_before_it_is_measured() {
    let telemetry = Telemetry::new("crm");
    let text = telemetry.render();
    for absent in [
        "replication_lag",
        "received_lsn",
        "slot_",
        "pool_",
        "copy_progress",
        "certificate_expiry",
    ] {
        assert!(
            !text.contains(&format!("\npglockstep_{absent}")),
            "{absent}\n{text}"
        );
    }
    assert_eq!(
        series(&text, "pglockstep_state{state=\"starting\"}"),
        Some(1.0)
    );
    assert_eq!(
        series(&text, "pglockstep_state{state=\"streaming\"}"),
        Some(0.0)
    );
    assert_eq!(
        series(&text, "pglockstep_source_write_attempts_total"),
        Some(0.0)
    );
    assert_eq!(
        series(&text, "pglockstep_reconnects_total{side=\"replica\"}"),
        Some(0.0)
    );
    let error = "pglockstep_errors_total{category=\"network\",severity=\"medium\"}";
    assert_eq!(series(&text, error), Some(0.0));
    assert!(text.contains("pglockstep_build_info{"));
    assert!(text.contains("process_resident_memory_bytes"));
    assert_eq!(telemetry.status().lag_seconds, None);
}

#[test]
fn certificates_count_down_below_zero() {
    let telemetry = Telemetry::new("crm");
    let expired = CertificateExpiry {
        server: Some(1_000_000_000),
        client: None,
    };
    telemetry.set_certificates(Side::Source, expired);
    let text = telemetry.render();
    let left = |certificate: &str| {
        let labels = format!("{{side=\"source\",certificate=\"{certificate}\"}}");
        let name = format!("pglockstep_certificate_expiry_seconds{labels}");
        series(&text, &name)
    };
    let is_long_ago = |seconds| seconds < -700_000_000.0;
    assert!(left("server").is_some_and(is_long_ago), "{text}");
    assert_eq!(left("client"), None);
}

#[test]
fn what_was_told_is_scraped() {
    let telemetry = Telemetry::new("crm");
    telemetry.set_state(PipelineState::Streaming, None);
    telemetry.set_received(lsn(300));
    telemetry.set_applied(lsn(200));
    telemetry.set_flushed(lsn(100));
    telemetry.set_lag(Some(0), Some(0.5));
    telemetry.transaction_applied(3);
    telemetry.error(ErrorCategory::Network, Severity::Medium);
    for state in [
        ConnectionState::Unreachable,
        ConnectionState::Connected,
        ConnectionState::Connecting,
        ConnectionState::Connected,
        ConnectionState::Unreachable,
        ConnectionState::Unreachable,
        ConnectionState::Connected,
    ] {
        telemetry.set_connection(Side::Source, state, None);
    }
    telemetry.set_pool(PoolHealth {
        in_use: 1,
        idle: 2,
        waiting: 0,
    });
    telemetry.observe_end_to_end(-0.2);
    telemetry.set_slot(Some(SlotHealth {
        retained_bytes: 4096,
        safe_bytes: Some(-1),
        wal_status: Some("extended".into()),
        exhaustion_seconds: None,
    }));
    let text = telemetry.render();
    for (name, value) in [
        ("state{state=\"streaming\"}", 1.0),
        ("state{state=\"starting\"}", 0.0),
        ("received_lsn", 300.0),
        ("applied_lsn", 200.0),
        ("flushed_lsn", 100.0),
        ("replication_lag_bytes", 0.0),
        ("replication_lag_seconds", 0.5),
        ("transactions_applied_total", 3.0),
        (
            "errors_total{category=\"network\",severity=\"medium\"}",
            1.0,
        ),
        ("reconnects_total{side=\"source\"}", 1.0),
        ("pool_connections{state=\"idle\"}", 2.0),
        ("slot_retained_bytes", 4096.0),
        ("slot_safe_bytes", -1.0),
        ("slot_wal_status", 1.0),
        ("end_to_end_seconds_sum", 0.0),
    ] {
        assert_eq!(
            series(&text, &format!("pglockstep_{name}")),
            Some(value),
            "{name}\n{text}"
        );
    }
    assert!(!text.contains("\npglockstep_slot_exhaustion_seconds "));
    telemetry.set_lag(None, None);
    assert!(
        !telemetry
            .render()
            .contains("\npglockstep_replication_lag_bytes ")
    );
}

#[test]
fn the_ledger_balances_for_each_table() {
    let telemetry = Telemetry::new("crm");
    let (source, replica) = (
        QualifiedName::new("public", "le\"ads"),
        QualifiedName::new("c", "l"),
    );
    let table = telemetry.table(&source, &replica);
    table.received(10);
    table.applied(Op::Insert, 5);
    table.applied(Op::Truncate, 1);
    telemetry.table(&source, &replica).filtered(2);
    table.conflict(ConflictKind::UpdateMissing, 4);
    table.set_state(TableStateLabel::CatchingUp);
    let label = "table=\"public.le\\\"ads\"";
    let read = |name: &str, more: &str| {
        series(
            &telemetry.render(),
            &format!("pglockstep_{name}{{{label}{more}}}"),
        )
    };
    assert_eq!(read("ledger_imbalance", ""), Some(2.0));
    table.quarantined(2);
    assert_eq!(read("ledger_imbalance", ""), Some(0.0));
    table.received(7);
    // Two of them are nowhere; three go with their connection.
    assert_eq!(table.reconcile(7), None);
    table.applied(Op::Delete, 2);
    assert_eq!(table.reconcile(3), Some(2));
    assert_eq!(table.reconcile(3), None);
    assert_eq!(read("ledger_imbalance", ""), Some(5.0));
    assert_eq!(read("ledger_unaccounted", ""), Some(2.0));
    table.discard_pending();
    assert_eq!(read("changes_discarded_total", ""), Some(3.0));
    assert_eq!(read("changes_received_total", ""), Some(17.0));
    assert_eq!(read("ledger_imbalance", ""), Some(2.0));
    // Settled twice.
    table.applied(Op::Insert, 1);
    assert_eq!(table.reconcile(0), Some(-1));
    assert_eq!(read("ledger_unaccounted", ""), Some(3.0));
    table.discard_pending();
    assert_eq!(read("ledger_imbalance", ""), Some(1.0));
    assert_eq!(read("changes_applied_total", ",op=\"truncate\""), Some(1.0));
    assert_eq!(read("changes_applied_total", ",op=\"update\""), Some(0.0));
    assert_eq!(
        read("conflicts_total", ",kind=\"update_missing\""),
        Some(4.0)
    );
    assert_eq!(read("table_state", ",state=\"catching_up\""), Some(1.0));
    assert_eq!(read("table_state", ",state=\"init\""), Some(0.0));
    assert_eq!(read("copy_progress_ratio", ""), None);
    table.set_copy_progress(1.5);
    assert_eq!(read("copy_progress_ratio", ""), Some(1.0));
}

#[test]
fn the_status_as_json() {
    let telemetry = Telemetry::new("crm");
    let endpoint = |database: &str| Endpoint {
        host: "db:5432".into(),
        database: database.into(),
        environment: Some("staging".into()),
    };
    telemetry.set_endpoints(endpoint("app"), endpoint("crm"));
    telemetry.set_applied(lsn(0x1_0000_00AB));
    telemetry.set_last_error("slot is gone", Some("create it again".into()));
    let name = QualifiedName::new("public", "leads");
    telemetry
        .table(&name, &QualifiedName::new("crm", "leads"))
        .copied_rows(7);
    let json = serde_json::to_value(telemetry.status()).unwrap();
    assert_eq!(json["state"], "starting");
    assert_eq!(json["applied_lsn"], "1/AB");
    assert!(json["lag_bytes"].is_null() && json.get("lag_bytes").is_some());
    assert_eq!(json["tables"][0]["table"], "public.leads");
    assert_eq!(json["tables"][0]["replica_table"], "crm.leads");
    assert_eq!(json["tables"][0]["state"], "init");
    assert_eq!(json["tables"][0]["copied_rows"], 7);
    assert_eq!(json["source"]["database"], "app");
    assert_eq!(json["replica"]["connection"], "connecting");
    assert_eq!(json["last_error"]["advice"], "create it again");
}

#[test]
fn staying_in_a_state_keeps_its_beginning() {
    let telemetry = Telemetry::new("crm");
    let since = |telemetry: &Telemetry| telemetry.0.facts.slow().state.since;
    let began = since(&telemetry);
    telemetry.set_state(
        PipelineState::Starting,
        Some("connecting to the source".into()),
    );
    assert_eq!(since(&telemetry), began);
    assert_eq!(
        telemetry.status().reason.as_deref(),
        Some("connecting to the source")
    );
    telemetry.set_state(PipelineState::Copying, None);
    assert!(since(&telemetry) > began);
    assert_eq!(telemetry.status().reason, None);
}

#[test]
fn two_pipelines_share_nothing() {
    let (first, second) = (Telemetry::new("a"), Telemetry::new("b"));
    first.transaction_applied(1);
    assert_eq!(
        series(&second.render(), "pglockstep_transactions_applied_total"),
        Some(0.0)
    );
}
