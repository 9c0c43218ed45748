//! What every SQL session is pinned to, and the pool.

use super::source;
use pglockstep::conn::{ConnectionUrl, Endpoint, Session};
use pglockstep::demo::cluster::{Cluster, ClusterOptions, installed_majors};
use pglockstep::pg::{Disposition, Side};
use pglockstep::replication::ReplicationConnection;

/// A database that sets everything otherwise.
const HOSTILE: &[(&str, &str)] = &[
    ("DateStyle", "SQL, DMY"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "Asia/Kathmandu"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "0"),
    ("search_path", "public"),
    ("statement_timeout", "60000"),
    ("lock_timeout", "7"),
    ("idle_in_transaction_session_timeout", "50000"),
    ("idle_session_timeout", "50000"),
    ("standard_conforming_strings", "off"),
    ("quote_all_identifiers", "on"),
    ("default_transaction_read_only", "on"),
    ("synchronous_commit", "off"),
    ("xmloption", "document"),
];

const PINNED: &[(&str, &str)] = &[
    ("DateStyle", "ISO, DMY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    ("row_security", "off"),
    ("client_encoding", "UTF8"),
    ("application_name", "wire_test"),
    ("xmloption", "content"),
];

#[tokio::test]
async fn nothing_a_database_sets_matters() {
    for major in installed_majors() {
        let cluster = Cluster::start(ClusterOptions::version(major))
            .await
            .unwrap();
        cluster.create_database("app").await.unwrap();
        for (name, value) in HOSTILE {
            let value = if *name == "DateStyle" {
                value.to_string()
            } else {
                format!("'{value}'")
            };
            let sql = format!("ALTER DATABASE app SET {name} = {value}");
            cluster.execute("postgres", &sql).await.unwrap();
        }
        let mut endpoint = source(&cluster.tcp_url("app"));
        endpoint.lock_timeout_ms = 1234;
        for (session, special) in [
            (
                Session::SourceRead,
                [
                    ("default_transaction_read_only", "on"),
                    ("lock_timeout", "1234ms"),
                ],
            ),
            (
                Session::ReplicaWrite,
                [
                    ("default_transaction_read_only", "off"),
                    ("synchronous_commit", "on"),
                ],
            ),
        ] {
            let client = endpoint.connect(session).await.unwrap();
            for (name, value) in PINNED.iter().chain(&special) {
                let row = client
                    .query_one("SELECT current_setting($1)", &[name])
                    .await
                    .unwrap();
                assert_eq!(row.get::<_, &str>(0), *value, "{major} {session:?} {name}");
            }
        }
        let mut walsender = ReplicationConnection::connect(&endpoint).await.unwrap();
        for (name, value) in PINNED {
            let rows = walsender
                .simple_query(&format!("SELECT current_setting('{name}')"))
                .await;
            assert_eq!(
                rows.unwrap(),
                [[Some((*value).to_owned())]],
                "{major} walsender {name}"
            );
        }
        // Writing to the source fails on the server, whatever the role may do.
        let client = endpoint.connect(Session::SourceRead).await.unwrap();
        for sql in ["CREATE TABLE public.t ()", "DROP PUBLICATION IF EXISTS p"] {
            let error = client.batch_execute(sql).await.unwrap_err();
            assert_eq!(error.code().unwrap().code(), "25006", "{major} {sql}");
            assert_eq!(
                walsender.simple_query(sql).await.unwrap_err().code(),
                Some("25006")
            );
        }
    }
}

#[tokio::test]
async fn a_session_ends_with_its_client_and_is_noticed_when_it_dies() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let admin = cluster.connect("postgres").await.unwrap();
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wire_test'";
    let sessions = async || admin.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
    let endpoint = source(&cluster.url("postgres"));
    let first = endpoint.connect(Session::Admin).await.unwrap();
    let second = endpoint.connect(Session::Admin).await.unwrap();
    assert_eq!(sessions().await, 2);
    drop(first);
    crate::support::eventually("one session left", String::new, || async {
        (sessions().await == 1).then_some(())
    })
    .await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wire_test'";
    admin.batch_execute(kill).await.unwrap();
    crate::support::eventually("the client to see it", String::new, || async {
        second.is_closed().then_some(())
    })
    .await;
}

#[tokio::test]
async fn pools_recycle_and_pass_our_errors_on() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let url = ConnectionUrl::parse(&cluster.url("postgres").into()).unwrap();
    let endpoint = Endpoint::new(Side::Replica, url.clone(), "wire_test");
    let pool = endpoint.pool(Session::ReplicaWrite, 2).unwrap();
    let pid = "SELECT pg_backend_pid()";
    let first: i32 = {
        let session = pool.get().await.unwrap();
        let row = session
            .query_one("SELECT current_setting('TimeZone')", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "UTC");
        session.query_one(pid, &[]).await.unwrap().get(0)
    };
    let again: i32 = pool
        .get()
        .await
        .unwrap()
        .query_one(pid, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(first, again);
    assert_eq!(pool.status().size, 1);

    let ghost = ConnectionUrl::parse(&cluster.url("ghost").into()).unwrap();
    let wrong = Endpoint::new(Side::Replica, ghost, "wire_test");
    let error = wrong
        .pool(Session::ReplicaWrite, 2)
        .unwrap()
        .get()
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(
        (error.code(), error.disposition()),
        (Some("3D000"), Disposition::Definite)
    );
    assert!(
        error.advice().contains("[replica] url"),
        "{}",
        error.advice()
    );
}
