//! `check` and `run` where a server, a login or the file is wrong.

use super::{TABLES, as_roles, assert_finding, assert_untouched, check, finding, pair, verb};
use crate::support::{DATABASE, Pair, PairOptions};
use pglockstep::demo::cluster::ClusterOptions;

#[tokio::test]
async fn wal_level_and_room() {
    let options = PairOptions {
        source: ClusterOptions::default()
            .with("wal_level", "replica")
            .with("max_replication_slots", "1")
            .with("max_slot_wal_keep_size", "1GB"),
        replica: ClusterOptions::default(),
    };
    let pair = Pair::start_with(options).await;
    pair.on_source(super::SOURCE).await;
    pair.on_replica(super::REPLICA).await;
    pair.on_source("SELECT pg_create_physical_replication_slot('other')")
        .await;
    let config = pair.config(TABLES);
    let (code, findings) = check(&config).await;
    assert_eq!(code, 1);
    let found = finding(&findings, "source.wal_level", "");
    assert_finding(
        found,
        "error",
        "wal_level is replica",
        "ALTER SYSTEM SET wal_level = 'logical'",
    );
    let found = finding(
        &findings,
        "source.max_replication_slots",
        "max_replication_slots",
    );
    assert_finding(
        found,
        "error",
        "1 of 1 slots",
        "SET max_replication_slots = 4",
    );
    assert!(
        !findings
            .iter()
            .any(|f| f["check"] == "source.max_slot_wal_keep_size")
    );
    // The daemon says the same, and leaves as little behind.
    let said = verb(&config, &["run"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("wal_level is replica"), "{said:?}");
    pair.on_source("SELECT pg_drop_replication_slot('other')")
        .await;
    assert_untouched(&pair).await;
}

#[tokio::test]
async fn a_replica_that_is_its_own_source() {
    let pair = pair().await;
    let config = pair.config(TABLES);
    // The very same string is the file's fault.
    let same = config.replace(&pair.replica.url(DATABASE), &pair.source.url(DATABASE));
    let said = verb(&same, &["check"]).await;
    assert_eq!(said.code, 64, "{said:?}");
    // By another address only the servers can tell.
    let same = config.replace(&pair.replica.url(DATABASE), &pair.source.tcp_url(DATABASE));
    let (code, findings) = check(&same).await;
    assert_eq!(code, 1);
    let found = finding(&findings, "replica.is_source", "");
    assert_finding(
        found,
        "error",
        "one and the same database (app",
        "[replica] url",
    );
    let said = verb(&same, &["run"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("one and the same database"), "{said:?}");
    assert_untouched(&pair).await;
}

#[tokio::test]
async fn logins_that_fail() {
    let scram = |role: &str| format!("host all {role} 127.0.0.1/32 scram-sha-256");
    let mut source = ClusterOptions::default();
    source.hba.push(scram("reader"));
    let pair = Pair::start_with(PairOptions {
        source,
        replica: ClusterOptions::default(),
    })
    .await;
    pair.on_source(super::SOURCE).await;
    pair.on_replica(super::REPLICA).await;
    pair.on_source("CREATE ROLE reader LOGIN REPLICATION PASSWORD 'right'")
        .await;
    let config = pair.config(TABLES);
    let with = |source: &str| as_roles(&pair, &config, source, "postgres");
    let nobody = format!("127.0.0.1:{}", crate::support::free_port());
    let source_address = format!("127.0.0.1:{}", pair.source.port());
    for (config, message, remedy) in [
        (
            with("reader:wr0ng"),
            "password authentication failed for user \"reader\"",
            "ALTER ROLE \"reader\" PASSWORD",
        ),
        (with("reader"), "asks for a password", "[source] url"),
        (
            with("noone"),
            "role \"noone\" does not exist",
            "check that the role exists",
        ),
        (
            with("postgres").replacen("/app", "/nodb", 1),
            "database \"nodb\" does not exist",
            "check the database name in [source] url",
        ),
        (
            with("postgres").replacen(&source_address, &nobody, 1),
            "connection refused",
            "check host and port",
        ),
    ] {
        let (code, findings) = check(&config).await;
        assert_eq!(code, 1, "{findings:#?}");
        let found = finding(&findings, "source.reachable", "");
        assert_finding(found, "error", message, remedy);
        // What can be said of the other side is said; of the tables, nothing can.
        assert!(
            !findings.iter().any(|f| f["check"] == "mapping"),
            "{findings:#?}"
        );
        assert!(!format!("{findings:?}").contains("wr0ng"));
    }
    assert_untouched(&pair).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_is_refused_with_its_line() {
    let config = "name = \"it\"\n[source]\nurl = \"postgres://a:s3cret@h/d\"\ncolour = 1\n\
                  [replica]\nurl = \"postgres://a@h2/d\"\n";
    for arguments in [&["check"][..], &["run"], &["setup"], &["teardown", "--yes"]] {
        let said = verb(config, arguments).await;
        assert_eq!(said.code, 64, "{said:?}");
        assert!(
            said.err.contains("line 4, source.colour: unknown key"),
            "{said:?}"
        );
        assert!(!said.err.contains("s3cret"), "{said:?}");
    }
}
