//! Passwords that change, and rights that are taken away and given back, under a running daemon.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::load::{Load, is_fed, prepare};
use super::{errors, says};
use crate::support::{Daemon, Family, Pair, PairOptions, Scenario};

static FAMILY: Family = OnceCell::const_new();

async fn pair() -> &'static Pair {
    let options = || ClusterOptions {
        hba: vec!["host all keeper 127.0.0.1/32 scram-sha-256".to_owned()],
        ..ClusterOptions::default().with("max_connections", "200")
    };
    let options = PairOptions {
        source: options(),
        replica: options(),
    };
    FAMILY.get_or_init(|| Pair::start_with(options)).await
}

fn write_secret(path: &Path, text: &str) {
    // Whoever reads it meanwhile sees the old one or the new one, never half of it.
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::set_permissions(&draft, Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(draft, path).unwrap();
}

fn tcp_url(cluster: &Cluster, who: &str, database: &str) -> String {
    format!("postgresql://{who}@127.0.0.1:{}/{database}", cluster.port())
}

/// The daemon's sessions of this role; the next ones log in anew.
async fn end_sessions(client: &Client, role: &str) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE usename = '{role}' AND datname = current_database() AND pid <> pg_backend_pid()"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// It has failed, says so, counts it as a matter of accounts, and heals by itself.
async fn is_refused(s: &Scenario<'_>, daemon: &mut Daemon, words: &str) {
    s.until_state(daemon, "failed").await;
    says(daemon, words).await;
    assert!(
        errors(daemon, "authentication").await >= 1.0,
        "{}",
        daemon.stderr()
    );
    let health = daemon.http_get("/health").await.unwrap();
    assert_eq!(health.status, 503, "{health:?}");
}

#[tokio::test]
async fn passwords_change_on_the_server_and_in_the_files() {
    let mut s = Scenario::on_pair(pair().await, "passwords").await;
    prepare(&s, 100).await;
    let create = "CREATE ROLE keeper SUPERUSER LOGIN PASSWORD 'one-s3cret'";
    s.on_both(create).await;
    let folder = tempfile::tempdir().unwrap();
    let (url_file, passfile) = (folder.path().join("url"), folder.path().join("pass"));
    let pair = s.pair;
    let url = |password: &str| tcp_url(&pair.replica, &format!("keeper:{password}"), "passwords");
    let line = |password: &str| format!("*:*:*:keeper:{password}\n");
    write_secret(&url_file, &url("one-s3cret"));
    write_secret(&passfile, &line("one-s3cret"));
    let source = tcp_url(&s.pair.source, "keeper", &s.name);
    s.source_by(format!("{source}?passfile={}", passfile.display()));
    s.replica_by("in a file".to_owned());
    let by_file = format!("url_file = \"{}\"", url_file.display());
    let config = s.config("").replace("url = \"in a file\"", &by_file);
    let mut daemon = Daemon::start(&config);
    s.until_state(&mut daemon, "streaming").await;
    let load = Load::start(&s);
    let change = "ALTER ROLE keeper PASSWORD 'two-s3cret'";
    for (side, client) in [("replica", &s.replica), ("source", &s.source)] {
        client.batch_execute(change).await.unwrap();
        // Who is in stays in.
        is_fed(&s, &daemon).await;
        end_sessions(client, "keeper").await;
        is_refused(&s, &mut daemon, "28P01").await;
        match side {
            "replica" => write_secret(&url_file, &url("two-s3cret")),
            _ => write_secret(&passfile, &line("two-s3cret")),
        }
        s.until_state(&mut daemon, "streaming").await;
        is_fed(&s, &daemon).await;
    }
    load.compare(&s, &daemon).await;
    assert!(!daemon.stderr().contains("s3cret"), "{}", daemon.stderr());
}

/// A daemon whose roles have just what they need.
async fn with_roles(name: &str) -> (Scenario<'static>, Daemon) {
    let mut s = Scenario::on_pair(pair().await, name).await;
    prepare(&s, 100).await;
    s.on_source(&format!(
        "CREATE ROLE {name}_reads LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}_reads"
    ))
    .await;
    s.on_replica(&format!(
        "CREATE ROLE {name}_writes LOGIN; GRANT CREATE ON DATABASE {name} TO {name}_writes;
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {name}_writes;
         GRANT SET ON PARAMETER session_replication_role TO {name}_writes"
    ))
    .await;
    s.source_by(tcp_url(&s.pair.source, &format!("{name}_reads"), name));
    s.replica_by(tcp_url(&s.pair.replica, &format!("{name}_writes"), name));
    let daemon = s.start("").await;
    (s, daemon)
}

#[tokio::test]
async fn rights_on_the_source_are_taken_and_given_back() {
    let (s, mut daemon) = with_roles("taken").await;
    let load = Load::start(&s);
    for (take, give, words) in [
        (
            "ALTER ROLE taken_reads NOREPLICATION",
            "ALTER ROLE taken_reads REPLICATION",
            "may not replicate",
        ),
        (
            "REVOKE CONNECT ON DATABASE taken FROM PUBLIC",
            "GRANT CONNECT ON DATABASE taken TO PUBLIC",
            "permission denied for database",
        ),
        (
            "REVOKE SELECT ON t FROM taken_reads",
            "GRANT SELECT ON t TO taken_reads",
            "public.t",
        ),
    ] {
        s.on_source(take).await;
        end_sessions(&s.source, "taken_reads").await;
        is_refused(&s, &mut daemon, words).await;
        s.on_source(give).await;
        s.until_state(&mut daemon, "streaming").await;
        is_fed(&s, &daemon).await;
    }
    load.compare(&s, &daemon).await;
}

#[tokio::test]
async fn rights_on_the_replica_are_taken_and_given_back() {
    let (s, mut daemon) = with_roles("withdrawn").await;
    let load = Load::start(&s);
    s.on_replica("REVOKE CONNECT ON DATABASE withdrawn FROM PUBLIC")
        .await;
    end_sessions(&s.replica, "withdrawn_writes").await;
    is_refused(&s, &mut daemon, "permission denied for database").await;
    s.on_replica("GRANT CONNECT ON DATABASE withdrawn TO PUBLIC")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    // This one is felt at once, in the middle of the stream.
    s.on_replica("REVOKE UPDATE ON t FROM withdrawn_writes")
        .await;
    s.until_state(&mut daemon, "failed").await;
    says(&daemon, "42501").await;
    s.on_replica("GRANT UPDATE ON t TO withdrawn_writes").await;
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}
