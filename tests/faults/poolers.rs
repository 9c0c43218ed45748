//! `PgBouncer` between us and a server: where it cannot work it is refused, with a remedy.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use pglockstep::demo::cluster::Cluster;

use super::load::{prepare, under_load};
use crate::support::{Family, Scenario, eventually, free_port, run_verb};

static FAMILY: Family = Family::const_new();

const REMEDY: &str = "connect to the server itself, not to a pooler";

/// A running `PgBouncer`. Dropped, it is gone.
struct Pooler {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    async fn start(server: &Cluster, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), everybody).unwrap();
        let (port, to) = (free_port(), server.port());
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={to} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\n{settings}\n"
        );
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, config).unwrap();
        let path_with_sbin = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("/usr/bin/env");
        command
            .env("PATH", path_with_sbin)
            .args(["pgbouncer", "-q"]);
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "postgres"]);
        }
        command
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let pooler = Self {
            process,
            port,
            _folder: folder,
        };
        let evidence = || "run tests/install-postgres.sh, which brings pgbouncer".to_owned();
        eventually("PgBouncer to listen", evidence, async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok()
        })
        .await;
        pooler
    }

    fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It is a child of ours, and waited for: its number is nobody else's.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    prepare(&s, 100).await;
    s
}

#[tokio::test]
async fn transactions_that_change_their_process_are_refused() {
    let mut s = scenario("pooled").await;
    for server_round_robin in [0, 1] {
        let settings =
            format!("pool_mode = transaction\nserver_round_robin = {server_round_robin}");
        let of_replica = Pooler::start(&s.pair.replica, &settings).await;
        let of_source = Pooler::start(&s.pair.source, &settings).await;
        for side in ["source", "replica"] {
            s.source_by(s.pair.source.url(&s.name));
            s.replica_by(s.pair.replica.url(&s.name));
            match side {
                "source" => s.source_by(of_source.url(&s.name)),
                _ => s.replica_by(of_replica.url(&s.name)),
            }
            let said = s.refused("").await;
            assert!(
                said.contains("pooler in transaction mode"),
                "{side}: {said}"
            );
            assert!(
                said.contains(REMEDY) && said.contains(&format!("[{side}] url")),
                "{side}: {said}"
            );
            let found = run_verb(&s.config(""), &["check", "--json"]);
            let found = String::from_utf8(found.stdout).unwrap();
            assert!(found.contains(REMEDY), "{side}: {found}");
        }
    }
    // Nothing of ours is left behind in its sessions.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(s.replica_one(locks).await, "0");
}

#[tokio::test]
async fn whole_sessions_will_do_for_the_replica_and_replication_is_refused() {
    let mut s = scenario("whole").await;
    let of_replica = Pooler::start(&s.pair.replica, "pool_mode = session").await;
    let of_source = Pooler::start(&s.pair.source, "pool_mode = session").await;
    s.replica_by(of_replica.url(&s.name));
    let (daemon, load) = under_load(&s).await;
    load.compare(&s, &daemon).await;
    drop(daemon);
    s.source_by(of_source.url(&s.name));
    let said = s.refused("").await;
    assert!(said.contains("unsupported startup parameter"), "{said}");
    assert!(
        said.contains(REMEDY) && said.contains("[source] url"),
        "{said}"
    );
}
