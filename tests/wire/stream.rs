//! Slots, streams and feedback on every major.

use super::source;
use crate::support::eventually;
use pglockstep::conn::{Endpoint, Session};
use pglockstep::demo::cluster::{Cluster, ClusterOptions, StopMode, installed_majors};
use pglockstep::pg::{Disposition, Lsn, QualifiedName};
use pglockstep::replication::{
    ReplicationConnection, ReplicationError, ReplicationMessage, ReplicationStream, SlotName,
    SlotOptions, SlotWalStatus, StandbyStatusUpdate, StreamOptions, create_slot, drop_slot,
    fetch_publication, fetch_published_tables, fetch_slot,
};
use std::time::Duration;

pub const SETUP: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, secret text);
     CREATE TABLE \"Odd \"\"name\" (id int PRIMARY KEY);
     CREATE PUBLICATION p FOR TABLE t, \"Odd \"\"name\" WITH (publish = 'insert,delete');";

pub fn slot_name() -> SlotName {
    "wire".parse().unwrap()
}

pub async fn start(cluster: &Cluster) -> (Endpoint, ReplicationConnection) {
    let endpoint = source(&cluster.tcp_url("postgres"));
    let connection = ReplicationConnection::connect(&endpoint).await.unwrap();
    (endpoint, connection)
}

/// A server with the tables and a slot, and the slot's stream; it can be had from its start again.
pub struct Begun {
    pub cluster: Cluster,
    pub stream: ReplicationStream,
    from: Lsn,
    options: StreamOptions,
}

impl Begun {
    pub async fn new() -> Self {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        cluster.execute("postgres", SETUP).await.unwrap();
        let (_, mut connection) = start(&cluster).await;
        let name = slot_name();
        let snapshot = create_slot(&mut connection, &name, SlotOptions::default())
            .await
            .unwrap();
        let from = snapshot.consistent_point;
        let options = StreamOptions::new(connection.server_version_num(), vec!["p".to_owned()]);
        Self {
            stream: connection.start(&name, from, &options).await.unwrap(),
            cluster,
            from,
            options,
        }
    }

    /// By another connection, after the stream was lost.
    pub async fn again(&mut self) {
        let (_, connection) = start(&self.cluster).await;
        let name = slot_name();
        let stream = connection.start(&name, self.from, &self.options).await;
        self.stream = stream.unwrap();
    }
}

/// Receives until a commit ('C' of pgoutput); the first letters, and the commit's place.
pub async fn transaction(stream: &mut ReplicationStream) -> (String, Lsn) {
    let mut letters = String::new();
    loop {
        match stream.receive().await.unwrap() {
            ReplicationMessage::XLogData(data) => {
                letters.push(data.payload[0].into());
                if data.payload[0] == b'C' {
                    return (letters, data.wal_end.unwrap());
                }
            }
            ReplicationMessage::Keepalive(_) => {}
        }
    }
}

#[tokio::test]
async fn from_slot_to_feedback_on_every_major() {
    for major in installed_majors() {
        let cluster = Cluster::start(ClusterOptions::version(major))
            .await
            .unwrap();
        cluster.execute("postgres", SETUP).await.unwrap();
        cluster
            .execute("postgres", "INSERT INTO t VALUES (1, 'before')")
            .await
            .unwrap();
        let (endpoint, mut connection) = start(&cluster).await;
        let client = endpoint.connect(Session::SourceRead).await.unwrap();

        let identity = connection.identify_system().await.unwrap();
        assert_eq!(
            (identity.timeline, identity.database.as_str()),
            (1, "postgres")
        );
        let id = "SELECT system_identifier::text FROM pg_control_system()";
        assert_eq!(
            connection.simple_query(id).await.unwrap(),
            [[Some(identity.system_id)]]
        );
        assert_eq!(connection.server_version_num() / 10_000, major);
        assert!(
            connection
                .parameter("server_version")
                .unwrap()
                .starts_with(&major.to_string())
        );
        assert_eq!(
            connection.wal_sender_timeout(),
            Some(Duration::from_secs(60))
        );

        let name = slot_name();
        assert_eq!(fetch_slot(&client, &name).await.unwrap(), None);
        let options = SlotOptions {
            failover: major >= 17,
            ..SlotOptions::default()
        };
        let snapshot = create_slot(&mut connection, &name, options).await.unwrap();
        cluster
            .execute("postgres", "INSERT INTO t VALUES (2, 'after')")
            .await
            .unwrap();
        let adopt = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'",
            snapshot.name
        );
        client.batch_execute(&adopt).await.unwrap();
        let row = client
            .query_one("SELECT count(*) FROM public.t", &[])
            .await
            .unwrap();
        assert_eq!(
            row.get::<_, i64>(0),
            1,
            "{major}: the snapshot is that of the slot"
        );
        client.batch_execute("COMMIT").await.unwrap();
        let slot = fetch_slot(&client, &name).await.unwrap().unwrap();
        assert_eq!(slot.confirmed_flush_lsn, Some(snapshot.consistent_point));
        assert_eq!(
            (slot.plugin.as_deref(), slot.database.as_deref()),
            (Some("pgoutput"), Some("postgres"))
        );
        assert_eq!(
            (slot.active_pid, slot.temporary, slot.failover),
            (None, false, major >= 17)
        );
        assert_eq!(slot.wal_status, Some(SlotWalStatus::Reserved));
        assert!(slot.restart_lsn.is_some() && slot.retained_bytes.is_some());
        assert_eq!(slot.invalidation_reason, None);

        let options = StreamOptions::new(connection.server_version_num(), vec!["p".to_owned()]);
        let mut stream = connection
            .start(&name, snapshot.consistent_point, &options)
            .await
            .unwrap();
        let (letters, end) = transaction(&mut stream).await;
        assert_eq!(letters, "BRIC", "{major}");
        assert!(
            fetch_slot(&client, &name)
                .await
                .unwrap()
                .unwrap()
                .active_pid
                .is_some()
        );

        let update = StandbyStatusUpdate {
            write: Some(end),
            flush: Some(end),
            ..Default::default()
        };
        stream.send_status(update).await.unwrap();
        eventually(
            "confirmed_flush_lsn",
            || cluster.log_tail(10),
            || async {
                let slot = fetch_slot(&client, &name).await.unwrap().unwrap();
                (slot.confirmed_flush_lsn == Some(end)).then_some(())
            },
        )
        .await;
        stream
            .send_status(StandbyStatusUpdate {
                reply_requested: true,
                ..update
            })
            .await
            .unwrap();
        assert!(matches!(
            stream.receive().await.unwrap(),
            ReplicationMessage::Keepalive(_)
        ));

        cluster
            .execute(
                "postgres",
                "INSERT INTO t SELECT g FROM generate_series(10, 5000) g",
            )
            .await
            .unwrap();
        let mut connection = stream.stop().await.unwrap();
        assert_eq!(
            connection.simple_query("SELECT 1").await.unwrap(),
            [[Some("1".to_owned())]]
        );
        drop_slot(&mut connection, &name).await.unwrap();
        assert_eq!(fetch_slot(&client, &name).await.unwrap(), None);
        let error = drop_slot(&mut connection, &name).await.unwrap_err();
        assert_eq!(error.code(), Some("42704"));
    }
}

#[tokio::test]
async fn publications_on_every_major() {
    for major in installed_majors() {
        let cluster = Cluster::start(ClusterOptions::version(major))
            .await
            .unwrap();
        cluster.execute("postgres", SETUP).await.unwrap();
        if major >= 15 {
            let narrow = "CREATE PUBLICATION narrow FOR TABLE t (id, v) WHERE (id > 5)";
            cluster.execute("postgres", narrow).await.unwrap();
        }
        let client = source(&cluster.url("postgres"))
            .connect(Session::SourceRead)
            .await
            .unwrap();
        assert_eq!(fetch_publication(&client, "ghost").await.unwrap(), None);
        let publication = fetch_publication(&client, "p").await.unwrap().unwrap();
        assert!(publication.insert && publication.delete && !publication.all_tables);
        assert!(!publication.update && !publication.truncate && !publication.via_root);
        let tables = fetch_published_tables(&client, "p").await.unwrap();
        let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
        assert_eq!(
            names,
            [
                QualifiedName::new("public", "Odd \"name"),
                QualifiedName::new("public", "t")
            ]
        );
        let row = client
            .query_one("SELECT 'public.t'::regclass::oid", &[])
            .await
            .unwrap();
        assert_eq!(tables[1].oid, row.get::<_, u32>(0));
        assert_eq!(tables[1].row_filter, None);
        if major >= 15 {
            assert_eq!(
                tables[1].columns.as_deref(),
                Some(&["id", "v", "secret"].map(String::from)[..])
            );
            let narrow = fetch_published_tables(&client, "narrow").await.unwrap();
            assert_eq!(
                narrow[0].columns.as_deref(),
                Some(&["id", "v"].map(String::from)[..])
            );
            assert_eq!(narrow[0].row_filter.as_deref(), Some("(id > 5)"));
        } else {
            assert_eq!(tables[1].columns, None);
        }
    }
}

#[tokio::test]
async fn a_cancelled_reader_loses_nothing_and_a_stopping_source_says_so() {
    let Begun {
        mut cluster,
        mut stream,
        ..
    } = Begun::new().await;
    let rows = 50_000;
    let insert =
        format!("INSERT INTO t SELECT g, repeat('x', g % 3000) FROM generate_series(1, {rows}) g");
    cluster.execute("postgres", &insert).await.unwrap();

    let (mut inserts, mut cancelled) = (0, 0);
    'all: loop {
        let first = tokio::select! {
            biased;
            message = stream.receive() => Some(message.unwrap()),
            () = tokio::time::sleep(Duration::from_micros(50)) => None,
        };
        cancelled += u32::from(first.is_none());
        let mut next = first;
        while let Some(message) = next {
            if let ReplicationMessage::XLogData(data) = message {
                match data.payload[0] {
                    b'I' => inserts += 1,
                    b'C' => break 'all,
                    _ => {}
                }
            }
            next = stream.try_receive().unwrap();
        }
    }
    assert_eq!(inserts, rows);
    assert!(cancelled > 0, "nothing was cancelled, so nothing was shown");

    let reader = tokio::spawn(async move {
        loop {
            match stream.receive().await {
                Ok(ReplicationMessage::Keepalive(keepalive)) => {
                    let flush = keepalive.wal_end;
                    let update = StandbyStatusUpdate {
                        write: flush,
                        flush,
                        ..Default::default()
                    };
                    if let Err(error) = stream.send_status(update).await {
                        return error;
                    }
                }
                Ok(ReplicationMessage::XLogData(_)) => {}
                Err(error) => return error,
            }
        }
    });
    cluster.stop(StopMode::Fast).await.unwrap();
    let error = reader.await.unwrap();
    assert_eq!(error.disposition(), Disposition::Transient, "{error}");
    assert!(
        matches!(
            error,
            ReplicationError::Ended | ReplicationError::Server { .. }
        ),
        "{error}"
    );
}
