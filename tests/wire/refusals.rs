//! What a source refuses, and how a stream ends: each with its disposition and remedy.

use super::stream::{Begun, SETUP, slot_name, start, transaction};
use pglockstep::conn::Session;
use pglockstep::demo::cluster::{Cluster, ClusterOptions, installed_majors};
use pglockstep::pg::Disposition;
use pglockstep::replication::{
    ReplicationError, ReplicationStream, SlotOptions, SlotWalStatus, StreamOptions, create_slot,
    fetch_slot,
};

#[tokio::test]
async fn refusals_have_a_remedy() {
    let cluster = Cluster::start(ClusterOptions::default().with("max_replication_slots", "2"))
        .await
        .unwrap();
    cluster.execute("postgres", SETUP).await.unwrap();
    let (_, mut connection) = start(&cluster).await;
    let name = slot_name();
    let snapshot = create_slot(&mut connection, &name, SlotOptions::default())
        .await
        .unwrap();
    let at = snapshot.consistent_point;
    let refused = |error: ReplicationError, code: &str, disposition, advice: &str| {
        assert_eq!(error.code(), Some(code), "{error}");
        assert_eq!(error.disposition(), disposition, "{error}");
        assert!(
            error.advice().contains(advice),
            "{error}: {}",
            error.advice()
        );
    };
    use Disposition::{Definite, Transient};

    let again = create_slot(&mut connection, &name, SlotOptions::default())
        .await
        .unwrap_err();
    refused(again, "42710", Definite, "drop it");
    // A transaction that stays open holds a new slot up, but not for ever.
    let holder = cluster.connect("postgres").await.unwrap();
    holder
        .batch_execute("BEGIN; SELECT pg_current_xact_id()")
        .await
        .unwrap();
    let options = SlotOptions {
        lock_timeout_ms: 100,
        ..SlotOptions::default()
    };
    let waits = create_slot(&mut connection, &"late".parse().unwrap(), options)
        .await
        .unwrap_err();
    refused(waits, "55P03", Transient, "end them");
    holder.batch_execute("ROLLBACK").await.unwrap();
    let options = SlotOptions {
        temporary: true,
        ..SlotOptions::default()
    };
    create_slot(&mut connection, &"two".parse().unwrap(), options)
        .await
        .unwrap();
    let full = create_slot(&mut connection, &"three".parse().unwrap(), options)
        .await
        .unwrap_err();
    refused(full, "53400", Definite, "max_replication_slots");

    let stream_options = |name: &str| StreamOptions::new(150_000, vec![name.to_owned()]);
    let (_, other) = start(&cluster).await;
    let missing = other
        .start(&"ghost".parse().unwrap(), at, &stream_options("p"))
        .await
        .unwrap_err();
    refused(missing, "42704", Definite, "slot is missing");
    let stream = connection
        .start(&name, at, &stream_options("p"))
        .await
        .unwrap();
    let (_, other) = start(&cluster).await;
    let busy = other
        .start(&name, at, &stream_options("p"))
        .await
        .unwrap_err();
    refused(busy, "55006", Transient, "another session");
    stream.stop().await.unwrap().close().await;

    let (_, other) = start(&cluster).await;
    let mut stream = other
        .start(&name, at, &stream_options("ghost"))
        .await
        .unwrap();
    cluster
        .execute("postgres", "INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let missing = loop {
        if let Err(error) = stream.receive().await {
            break error;
        }
    };
    refused(missing, "42704", Definite, "CREATE PUBLICATION");

    let plain = Cluster::start(ClusterOptions::default().with("wal_level", "replica"))
        .await
        .unwrap();
    let (_, mut connection) = start(&plain).await;
    let level = create_slot(&mut connection, &name, SlotOptions::default())
        .await
        .unwrap_err();
    refused(
        level,
        "55000",
        Definite,
        "ALTER SYSTEM SET wal_level = logical",
    );
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_lost_for_good() {
    for major in installed_majors() {
        let options = ClusterOptions::version(major)
            .with("max_slot_wal_keep_size", "1MB")
            .with("max_wal_size", "32MB")
            .with("min_wal_size", "32MB");
        let cluster = Cluster::start(options).await.unwrap();
        cluster.execute("postgres", SETUP).await.unwrap();
        let (endpoint, mut connection) = start(&cluster).await;
        let client = endpoint.connect(Session::SourceRead).await.unwrap();
        let name = slot_name();
        let options = SlotOptions::default();
        let snapshot = create_slot(&mut connection, &name, options).await.unwrap();
        assert!(
            fetch_slot(&client, &name)
                .await
                .unwrap()
                .unwrap()
                .safe_wal_bytes
                .is_some()
        );
        for _ in 0..5 {
            let sql =
                "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t; SELECT pg_switch_wal()";
            cluster.execute("postgres", sql).await.unwrap();
            cluster.execute("postgres", "CHECKPOINT").await.unwrap();
        }
        let slot = fetch_slot(&client, &name).await.unwrap().unwrap();
        assert_eq!(
            slot.wal_status,
            Some(SlotWalStatus::Lost),
            "{major}: {slot:?}"
        );
        let reason = match major {
            ..16 => None,
            16 => Some("invalidated"),
            _ => Some("wal_removed"),
        };
        assert_eq!(slot.invalidation_reason.as_deref(), reason, "{major}");
        let options = StreamOptions::new(connection.server_version_num(), vec!["p".to_owned()]);
        let error = connection
            .start(&name, snapshot.consistent_point, &options)
            .await
            .unwrap_err();
        assert_eq!(
            error.disposition(),
            Disposition::Definite,
            "{major}: {error}"
        );
        assert!(
            error.advice().contains("rebase"),
            "{major}: {error}: {}",
            error.advice()
        );
    }
}

/// Receives until that fails.
async fn until_lost(stream: &mut ReplicationStream) -> ReplicationError {
    loop {
        if let Err(error) = stream.receive().await {
            return error;
        }
    }
}

#[tokio::test]
async fn a_source_that_dies_is_lost_and_comes_back() {
    let mut begun = Begun::new().await;
    let terminate = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
    begun.cluster.execute("postgres", terminate).await.unwrap();
    let error = until_lost(&mut begun.stream).await;
    assert_eq!(
        (error.code(), error.disposition()),
        (Some("57P01"), Disposition::Transient),
        "{error}"
    );

    begun.again().await;
    begun.cluster.kill9();
    let error = until_lost(&mut begun.stream).await;
    assert!(matches!(error, ReplicationError::Lost(_)), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Transient);
    begun.cluster.restart().await.unwrap();
    begun.again().await;
    begun
        .cluster
        .execute("postgres", "INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    assert_eq!(transaction(&mut begun.stream).await.0, "BRIC");
}
