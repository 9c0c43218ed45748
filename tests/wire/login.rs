//! Every way to authenticate, and every way to be turned away.

use super::{assert_refused, encryption, source};
use pglockstep::conn::Session;
use pglockstep::demo::cluster::{Cluster, ClusterOptions, StopMode, installed_majors};
use pglockstep::pg::Disposition;
use pglockstep::replication::ReplicationConnection;
use std::os::unix::fs::PermissionsExt;

const SETUP: &str = "CREATE ROLE scram REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE clear REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE nobody REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE reader LOGIN PASSWORD 's3cret';
     CREATE ROLE barred REPLICATION LOGIN PASSWORD 's3cret';
     REVOKE CONNECT ON DATABASE template1 FROM public;
     SET password_encryption = 'md5';
     CREATE ROLE md5 REPLICATION LOGIN PASSWORD 's3cret'";

async fn server(major: Option<u32>) -> Cluster {
    let hba = [
        "host,all,scram,0.0.0.0/0,scram-sha-256",
        "host,all,reader,0.0.0.0/0,scram-sha-256",
        "host,all,md5,0.0.0.0/0,md5",
        "host,all,clear,0.0.0.0/0,password",
        "host,all,barred,0.0.0.0/0,reject",
        "local,all,scram,,scram-sha-256",
        "host,all,postgres,127.0.0.1/32,trust",
        "host,all,all,0.0.0.0/0,ident",
    ];
    let options = ClusterOptions {
        version: major,
        hba: hba.map(|line| line.replace(',', " ")).to_vec(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options.with("listen_addresses", "*"))
        .await
        .unwrap();
    cluster.execute("postgres", SETUP).await.unwrap();
    cluster
}

fn tcp(cluster: &Cluster, login: &str) -> String {
    format!("postgres://{login}@127.0.0.1:{}/postgres", cluster.port())
}

#[tokio::test]
async fn every_method_on_every_major() {
    for major in installed_majors() {
        let cluster = server(Some(major)).await;
        for login in ["postgres", "scram:s3cret", "md5:s3cret", "clear:s3cret"] {
            let url = tcp(&cluster, login);
            assert!(!encryption(&url).await.expect(&url), "{major} {login}");
        }
        let socket = cluster.socket_dir().display().to_string();
        let port = cluster.port();
        for url in [
            format!("host={socket} port={port} user=scram password=s3cret dbname=postgres"),
            format!(
                "postgres://scram:s3cret@{}:{port}/postgres",
                socket.replace('/', "%2F")
            ),
            format!("host={socket} port={port} user=postgres sslmode=verify-full"),
        ] {
            assert!(!encryption(&url).await.expect(&url), "{major} {url}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_with_its_remedy() {
    let mut cluster = server(None).await;
    let port = cluster.port();
    let database = |name: &str| format!("postgres://scram:s3cret@127.0.0.1:{port}/{name}");
    for (url, says, advises) in [
        (
            tcp(&cluster, "scram:wrong-s3cret"),
            "28P01",
            "ALTER ROLE \"scram\" PASSWORD",
        ),
        (tcp(&cluster, "md5:wrong-s3cret"), "28P01", "password"),
        (tcp(&cluster, "clear:wrong-s3cret"), "28P01", "password"),
        (tcp(&cluster, "ghost:s3cret"), "28000", "role exists"),
        (tcp(&cluster, "barred:s3cret"), "28000", "hostssl"),
        (tcp(&cluster, "scram"), "none is given", "[source] url"),
        (database("ghost"), "3D000", "database name"),
        (
            database("template1"),
            "42501",
            "GRANT CONNECT ON DATABASE \"template1\" TO \"scram\"",
        ),
        (
            tcp(&cluster, "scram:s3cret") + "?options=-c%20no_such=1",
            "no_such",
            "options=",
        ),
        (
            tcp(&cluster, "scram:s3cret") + "?target_session_attrs=standby",
            "a primary",
            "target_session_attrs",
        ),
    ] {
        assert_refused(&url, says, advises).await;
    }
    // The last one can be right tomorrow, a wrong password cannot.
    for (url, expected) in [
        (tcp(&cluster, "scram:wrong"), Disposition::Definite),
        (
            tcp(&cluster, "scram:s3cret") + "?target_session_attrs=standby",
            Disposition::Transient,
        ),
        (
            "postgres://u@no-such-host.invalid/d".to_owned(),
            Disposition::Transient,
        ),
        (
            "host=/no/such/folder user=u".to_owned(),
            Disposition::Transient,
        ),
    ] {
        let error = source(&url)
            .connect(Session::SourceRead)
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(error.disposition(), expected, "{error}");
    }
    let url = tcp(&cluster, "scram:s3cret");
    cluster.stop(StopMode::Fast).await.unwrap();
    assert_refused(&url, "connection refused", "listen_addresses").await;
}

#[tokio::test]
async fn a_role_without_replication_reads_and_does_not_replicate() {
    let cluster = server(None).await;
    let endpoint = source(&tcp(&cluster, "reader:s3cret"));
    endpoint.connect(Session::SourceRead).await.unwrap();
    let error = ReplicationConnection::connect(&endpoint).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Definite);
    assert!(
        error.advice().contains("REPLICATION"),
        "{error}: {}",
        error.advice()
    );
}

#[tokio::test]
async fn the_first_server_that_fits_is_taken() {
    let (cluster, frozen) = (server(None).await, server(None).await);
    let mut standby = server(None).await;
    standby.stop(StopMode::Fast).await.unwrap();
    standby.write_file("standby.signal", b"").unwrap();
    standby.restart().await.unwrap();
    frozen
        .alter_system("default_transaction_read_only", "on")
        .await
        .unwrap();
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port_of = |url: &str| {
        let url = url.to_owned();
        async move {
            let client = source(&url).connect(Session::SourceRead).await.unwrap();
            let row = client
                .query_one("SELECT inet_server_port()", &[])
                .await
                .unwrap();
            u16::try_from(row.get::<_, i32>(0)).unwrap()
        }
    };
    let servers = [dead, frozen.port(), cluster.port(), standby.port()];
    let hosts = servers.map(|port| format!("127.0.0.1:{port}")).join(",");
    for (wanted, expected) in [
        ("any", &frozen),
        ("read-only", &frozen),
        ("primary", &frozen),
        ("read-write", &cluster),
        ("standby", &standby),
        ("prefer-standby", &standby),
    ] {
        let url = format!("postgres://scram:s3cret@{hosts}/postgres?target_session_attrs={wanted}");
        assert_eq!(port_of(&url).await, expected.port(), "{wanted}");
    }
    let only = format!(
        "{}?target_session_attrs=prefer-standby",
        tcp(&cluster, "scram:s3cret")
    );
    assert_eq!(port_of(&only).await, cluster.port());
    // A wrong password ends the search, as in libpq; the message still tells of all that was tried.
    let url = format!("postgres://scram:wrong@{hosts}/postgres");
    let error = source(&url)
        .connect(Session::SourceRead)
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("refused; nor at") && !error.contains(&cluster.port().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_password_file_serves_if_nobody_else_can_read_it() {
    let cluster = server(None).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgpass");
    let url = format!("{}?passfile={}", tcp(&cluster, "scram"), path.display());
    assert_refused(&url, "cannot be read", "0600").await;
    std::fs::write(&path, "127.0.0.1:*:*:scram:s3cret\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(&url, "read by others", "0600").await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!encryption(&url).await.unwrap());
}

#[tokio::test]
async fn the_password_is_not_sent_in_clear_over_a_network() {
    let cluster = server(None).await;
    // Any address of this machine's that is not loopback; nothing is sent to find it.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if probe.connect("198.51.100.1:9").is_err() {
        return; // no network at all: the rule itself is tested where it stands
    }
    let address = probe.local_addr().unwrap().ip();
    let url = |login: &str| format!("postgres://{login}@{address}:{}/postgres", cluster.port());
    assert!(!encryption(&url("scram:s3cret")).await.unwrap());
    let clear = url("clear:s3cret");
    assert_refused(&clear, "in clear", "sslmode=require").await;
}
