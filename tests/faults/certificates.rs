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

/// Another certificate of the server's, for the sessions to come.
async fn present(cluster: &Cluster, (certificate, key): (String, String)) {
    cluster.write_file("server.key", key.as_bytes()).unwrap();
    cluster
        .write_file("server.crt", certificate.as_bytes())
        .unwrap();
    cluster.alter_system("ssl", "on").await.unwrap();
}

/// The daemon logs in again, until it shows this.
async fn until_expiry(s: &Scenario<'_>, daemon: &Daemon, certificate: &str, at: f64) {
    let evidence = || format!("{}\n{}", daemon.stderr(), s.pair.logs());
    eventually(
        &format!("{certificate} to expire at {at}"),
        evidence,
        async || {
            end_sessions(s).await;
            let sample = format!("{METRIC}{{side=\"replica\",certificate=\"{certificate}\"}}");
            let left = daemon.metric(&sample).await?;
            let now = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            ((left + now - at).abs() < 60.0).then_some(())
        },
    )
    .await;
}

async fn end_sessions(s: &Scenario<'_>) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'certified'";
    s.on_replica(sql).await;
}

#[tokio::test]
async fn they_are_read_anew_and_their_expiry_is_told() {
    let options = ClusterOptions {
        hba: vec!["hostssl all certified 127.0.0.1/32 cert".to_owned()],
        ..ClusterOptions::default()
    };
    let pair = Pair::start_with(PairOptions {
        replica: options,
        ..PairOptions::default()
    })
    .await;
    let mut s = Scenario::on_pair(&pair, "certificates").await;
    prepare(&s, 100).await;
    s.on_replica("CREATE ROLE certified SUPERUSER LOGIN").await;
    let authority = Authority::named("first", &PKCS_ECDSA_P256_SHA256);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let (ca, cert, key) = (file("ca.pem"), file("c.pem"), file("k.pem"));
    std::fs::write(&ca, authority.pem()).unwrap();
    pair.replica
        .write_file("ca.pem", authority.pem().as_bytes())
        .unwrap();
    pair.replica
        .alter_system("ssl_ca_file", "ca.pem")
        .await
        .unwrap();
    present(
        &pair.replica,
        authority.issue_until(2040, &["localhost"], "server"),
    )
    .await;
    write(authority.issue_until(2050, &[], "certified"), &cert, &key);
    s.replica_by(format!(
        "postgresql://certified@localhost:{}/{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        pair.replica.port(), s.name, ca.display(), cert.display(), key.display()
    ));
    let mut daemon = s.start("").await;
    let load = Load::start(&s);
    until_expiry(&s, &daemon, "server", YEAR_2040).await;
    until_expiry(&s, &daemon, "client", YEAR_2050).await;
    let all = samples(&daemon, METRIC).await;
    assert!(
        all.keys().all(|labels| labels.contains("replica")),
        "the source has no TLS: {all:?}"
    );

    // Renewed, ours and the server's.
    write(authority.issue_until(2040, &[], "certified"), &cert, &key);
    present(
        &pair.replica,
        authority.issue_until(2050, &["localhost"], "server"),
    )
    .await;
    until_expiry(&s, &daemon, "client", YEAR_2040).await;
    until_expiry(&s, &daemon, "server", YEAR_2050).await;

    // Another authority signs the server's; here one must come to trust it first.
    let second = Authority::named("second", &PKCS_ECDSA_P256_SHA256);
    present(
        &pair.replica,
        second.issue_until(2040, &["localhost"], "server"),
    )
    .await;
    until_failed(&s, &mut daemon, "no trusted authority signed it").await;
    std::fs::write(&ca, second.pem()).unwrap();
    s.until_state(&mut daemon, "streaming").await;
    until_expiry(&s, &daemon, "server", YEAR_2040).await;

    present(
        &pair.replica,
        second.issue_until(2020, &["localhost"], "server"),
    )
    .await;
    until_failed(&s, &mut daemon, "expired").await;
    present(
        &pair.replica,
        second.issue_until(2050, &["localhost"], "server"),
    )
    .await;
    s.until_state(&mut daemon, "streaming").await;

    // One that the server does not trust.
    write(second.issue_until(2040, &[], "certified"), &cert, &key);
    until_failed(&s, &mut daemon, "the server refused the TLS session").await;
    write(authority.issue_until(2040, &[], "certified"), &cert, &key);
    s.until_state(&mut daemon, "streaming").await;
    is_fed(&s, &daemon).await;
    load.compare(&s, &daemon).await;
}

/// Logs in again until the servers's reload has reached it, and says why it cannot.
async fn until_failed(s: &Scenario<'_>, daemon: &mut Daemon, words: &str) {
    eventually(
        "it to fail",
        || daemon.stderr(),
        async || {
            end_sessions(s).await;
            let failed = daemon.metric("pglockstep_state{state=\"failed\"}").await?;
            (failed > 0.5).then_some(())
        },
    )
    .await;
    says(daemon, words).await;
}
