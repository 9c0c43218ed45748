//! Certificates that are renewed, replaced and run out under a running daemon, and their metric.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use rcgen::PKCS_ECDSA_P256_SHA256;

use super::load::{Load, is_fed, prepare};
use super::says;
use crate::support::{Daemon, Pair, PairOptions, Scenario, eventually, samples};
use crate::wire::authority::Authority;

const METRIC: &str = "pglockstep_certificate_expiry_seconds";
/// 1 January 2040 and 2050, in seconds since 1970.
const YEAR_2040: f64 = 2_208_988_800.0;
const YEAR_2050: f64 = 2_524_608_000.0;

fn write((certificate, key): (String, String), cert_path: &Path, key_path: &Path) {
    std::fs::write(cert_path, certificate).unwrap();
    std::fs::write(key_path, key).unwrap();
}

/// One of the two servers, reached by certificates.
struct Certified<'p> {
    s: Scenario<'p>,
    side: &'static str,
}

impl Certified<'_> {
    fn cluster(&self) -> &Cluster {
        match self.side {
            "source" => &self.s.pair.source,
            _ => &self.s.pair.replica,
        }
    }

    async fn on_server(&self, sql: &str) {
        match self.side {
            "source" => self.s.on_source(sql).await,
            _ => self.s.on_replica(sql).await,
        }
    }

    async fn end_sessions(&self) {
        let sql =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'certified'";
        self.on_server(sql).await;
    }

    /// The daemon logs in again, until it shows this.
    async fn until_expiry(&self, daemon: &Daemon, certificate: &str, at: f64) {
        let evidence = || format!("{}\n{}", daemon.stderr(), self.s.pair.logs());
        let what = format!("{certificate} to expire at {at}");
        let side = self.side;
        eventually(&what, evidence, async || {
            self.end_sessions().await;
            let sample = format!("{METRIC}{{side=\"{side}\",certificate=\"{certificate}\"}}");
            let left = daemon.metric(&sample).await?;
            let now = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            ((left + now - at).abs() < 60.0).then_some(())
        })
        .await;
    }

    /// Logs in again until the server's reload has reached it, and says why it cannot.
    async fn until_failed(&self, daemon: &Daemon, words: &str) {
        let evidence = || daemon.stderr();
        eventually("it to fail", evidence, async || {
            self.end_sessions().await;
            let failed = daemon.metric("pglockstep_state{state=\"failed\"}").await?;
            (failed > 0.5).then_some(())
        })
        .await;
        says(daemon, words).await;
    }

    /// Another certificate of the server's, for the sessions to come.
    async fn present(&self, (certificate, key): (String, String)) {
        let cluster = self.cluster();
        cluster.write_file("server.key", key.as_bytes()).unwrap();
        cluster
            .write_file("server.crt", certificate.as_bytes())
            .unwrap();
        cluster.alter_system("ssl", "on").await.unwrap();
    }
}

#[tokio::test]
async fn the_replica_s_are_read_anew_and_their_expiry_is_told() {
    read_anew("replica").await;
}

#[tokio::test]
async fn the_source_s_are_read_anew_and_their_expiry_is_told() {
    read_anew("source").await;
}

async fn read_anew(side: &'static str) {
    let certified = ClusterOptions {
        hba: vec!["hostssl all certified 127.0.0.1/32 cert".to_owned()],
        ..ClusterOptions::default()
    };
    let mut options = PairOptions::default();
    match side {
        "source" => options.source = certified,
        _ => options.replica = certified,
    }
    let pair = Pair::start_with(options).await;
    let s = Scenario::on_pair(&pair, "certificates").await;
    prepare(&s, 100).await;
    let mut c = Certified { s, side };
    c.on_server("CREATE ROLE certified SUPERUSER LOGIN").await;
    let authority = Authority::named("first", &PKCS_ECDSA_P256_SHA256);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let (ca, cert, key) = (file("ca.pem"), file("c.pem"), file("k.pem"));
    std::fs::write(&ca, authority.pem()).unwrap();
    let cluster = c.cluster();
    cluster
        .write_file("ca.pem", authority.pem().as_bytes())
        .unwrap();
    cluster.alter_system("ssl_ca_file", "ca.pem").await.unwrap();
    let server = |by: &Authority, year| by.issue_until(year, &["localhost"], "server");
    c.present(server(&authority, 2040)).await;
    write(authority.issue_until(2050, &[], "certified"), &cert, &key);
    let url = format!(
        "postgresql://certified@localhost:{}/{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        cluster.port(),
        c.s.name,
        ca.display(),
        cert.display(),
        key.display()
    );
    match side {
        "source" => c.s.source_by(url),
        _ => c.s.replica_by(url),
    }
    let mut daemon = c.s.start("").await;
    let load = Load::start(&c.s);
    c.until_expiry(&daemon, "server", YEAR_2040).await;
    c.until_expiry(&daemon, "client", YEAR_2050).await;
    let all = samples(&daemon, METRIC).await;
    assert!(
        all.keys().all(|labels| labels.contains(side)),
        "the other has no TLS: {all:?}"
    );

    // Renewed, ours and the server's.
    write(authority.issue_until(2040, &[], "certified"), &cert, &key);
    c.present(server(&authority, 2050)).await;
    c.until_expiry(&daemon, "client", YEAR_2040).await;
    c.until_expiry(&daemon, "server", YEAR_2050).await;

    // Another authority signs the server's; here one must come to trust it first.
    let second = Authority::named("second", &PKCS_ECDSA_P256_SHA256);
    c.present(server(&second, 2040)).await;
    c.until_failed(&daemon, "no trusted authority signed it")
        .await;
    std::fs::write(&ca, second.pem()).unwrap();
    c.s.until_state(&mut daemon, "streaming").await;
    c.until_expiry(&daemon, "server", YEAR_2040).await;

    c.present(server(&second, 2020)).await;
    c.until_failed(&daemon, "expired").await;
    c.present(server(&second, 2050)).await;
    c.s.until_state(&mut daemon, "streaming").await;

    // One that the server does not trust.
    write(second.issue_until(2040, &[], "certified"), &cert, &key);
    c.until_failed(&daemon, "the server refused the TLS session")
        .await;
    write(authority.issue_until(2040, &[], "certified"), &cert, &key);
    c.s.until_state(&mut daemon, "streaming").await;
    is_fed(&c.s, &daemon).await;
    load.compare(&c.s, &daemon).await;
}
