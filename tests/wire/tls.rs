//! Every `sslmode` against servers with and without TLS, right and wrong certificates.

use super::authority::Authority;
use super::{assert_refused, encryption};
use crate::support::eventually;
use pglockstep::demo::cluster::{Cluster, ClusterOptions, installed_majors};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, PKCS_RSA_SHA384, PKCS_RSA_SHA512,
};
use std::path::PathBuf;

const SETUP: &str = "CREATE ROLE scram REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE tls_only REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE plain_only REPLICATION LOGIN PASSWORD 's3cret';
     CREATE ROLE certified REPLICATION LOGIN";

struct Server {
    cluster: Cluster,
    ca: PathBuf,
}

impl Server {
    /// A server whose certificate is for localhost.
    async fn start(major: Option<u32>, authority: &Authority) -> Self {
        let hba = [
            "host all postgres 127.0.0.1/32 trust",
            "hostssl all scram,tls_only 127.0.0.1/32 scram-sha-256",
            "hostnossl all scram,plain_only 127.0.0.1/32 scram-sha-256",
            "hostssl all certified 127.0.0.1/32 cert",
            "host all all 127.0.0.1/32 reject",
        ];
        let options = ClusterOptions {
            version: major,
            hba: hba.map(str::to_owned).to_vec(),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(options).await.unwrap();
        cluster.execute("postgres", SETUP).await.unwrap();
        let ca = cluster
            .write_file("ca.pem", authority.pem().as_bytes())
            .unwrap();
        let server = Self { cluster, ca };
        server
            .present(&authority.issue(&["localhost"], "server"))
            .await;
        server
            .cluster
            .alter_system("ssl_ca_file", "ca.pem")
            .await
            .unwrap();
        server.turn_tls("on").await;
        server
    }

    /// Another certificate, from now on.
    async fn present(&self, (certificate, key): &(String, String)) {
        self.cluster
            .write_file("server.key", key.as_bytes())
            .unwrap();
        self.cluster
            .write_file("server.crt", certificate.as_bytes())
            .unwrap();
        self.reload().await;
    }

    async fn turn_tls(&self, state: &str) {
        self.cluster.alter_system("ssl", state).await.unwrap();
        self.reload().await;
    }

    /// Reloads, and waits until the postmaster has done so: new sessions are its children.
    async fn reload(&self) {
        let client = self.cluster.connect("postgres").await.unwrap();
        let now = "SELECT clock_timestamp()::text, pg_reload_conf()";
        let before: String = client.query_one(now, &[]).await.unwrap().get(0);
        let loaded = format!("SELECT pg_conf_load_time() > '{before}'");
        eventually(
            "the reload",
            || self.cluster.log_tail(5),
            || async {
                let client = self.cluster.connect("postgres").await.unwrap();
                let row = client.query_one(&loaded, &[]).await.unwrap();
                row.get::<_, bool>(0).then_some(())
            },
        )
        .await;
    }

    fn url(&self, role: &str, parameters: &str) -> String {
        let password = if role == "certified" { "" } else { ":s3cret" };
        let port = self.cluster.port();
        // hostaddr: localhost may mean ::1 first, where nobody listens.
        format!(
            "postgres://{role}{password}@localhost:{port}/postgres?hostaddr=127.0.0.1&{parameters}"
        )
    }

    fn verified(&self, mode: &str) -> String {
        format!("sslmode={mode}&sslrootcert={}", self.ca.display())
    }
}

#[tokio::test]
async fn every_sslmode_with_and_without_tls() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let server = Server::start(None, &authority).await;
    let stranger = Authority::named("stranger", &PKCS_ECDSA_P256_SHA256).pem();
    let namesake = Authority::new(&PKCS_ECDSA_P256_SHA256).pem();
    let other_ca = server
        .cluster
        .write_file("other.pem", stranger.as_bytes())
        .unwrap();

    for (parameters, encrypted) in [
        ("sslmode=disable".to_owned(), false),
        ("sslmode=allow".to_owned(), false),
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        (server.verified("require"), true),
        (server.verified("verify-ca"), true),
        (server.verified("verify-full"), true),
    ] {
        let url = server.url("scram", &parameters);
        assert_eq!(encryption(&url).await.unwrap(), encrypted, "{parameters}");
    }
    // The server decides where sslmode leaves it open.
    assert!(
        encryption(&server.url("tls_only", "sslmode=allow"))
            .await
            .unwrap()
    );
    assert!(
        !encryption(&server.url("plain_only", "sslmode=prefer"))
            .await
            .unwrap()
    );
    for (role, parameters) in [
        ("tls_only", "sslmode=disable"),
        ("plain_only", "sslmode=require"),
    ] {
        let url = server.url(role, parameters);
        assert_refused(&url, "pg_hba.conf", "pg_hba.conf").await;
    }
    // A wrong authority counts only for the modes that verify; a wrong host only for verify-full.
    let path = server
        .cluster
        .write_file("namesake.pem", namesake.as_bytes())
        .unwrap();
    let url = server.url(
        "scram",
        &format!("sslmode=verify-ca&sslrootcert={}", path.display()),
    );
    assert_refused(&url, "not that of the trusted authority", "sslrootcert").await;
    let wrong_ca = |mode| format!("sslmode={mode}&sslrootcert={}", other_ca.display());
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = server.url("scram", &wrong_ca(mode));
        assert_refused(&url, "no trusted authority", "sslrootcert").await;
    }
    assert!(
        encryption(&server.url("scram", &wrong_ca("prefer")))
            .await
            .unwrap()
    );
    let url = server.url("scram", "sslmode=verify-full");
    assert_refused(&url, "no trusted authority", "sslrootcert").await;
    server
        .present(&authority.issue(&["db.example"], "localhost"))
        .await;
    assert!(
        encryption(&server.url("scram", &server.verified("verify-ca")))
            .await
            .unwrap()
    );
    let url = server.url("scram", &server.verified("verify-full"));
    assert_refused(&url, "it is for db.example", "verify-ca").await;
    let url = server.url("scram", "sslmode=verify-ca&sslrootcert=/nowhere/ca.pem");
    assert_refused(&url, "/nowhere/ca.pem", "PEM").await;

    server.turn_tls("off").await;
    for mode in ["disable", "allow", "prefer"] {
        assert!(
            !encryption(&server.url("scram", &format!("sslmode={mode}")))
                .await
                .unwrap()
        );
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = server.url("scram", &server.verified(mode));
        assert_refused(&url, "does not offer TLS", "ssl = on").await;
    }
}

#[tokio::test]
async fn a_certificate_logs_in_and_files_are_read_anew() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let server = Server::start(None, &authority).await;
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let write = |(certificate, secret): (String, String)| {
        std::fs::write(&cert, certificate).unwrap();
        std::fs::write(&key, secret).unwrap();
    };
    let identity = format!(
        "sslmode=require&sslcert={}&sslkey={}",
        cert.display(),
        key.display()
    );
    let url = server.url("certified", &identity);

    assert_refused(&url, "c.pem cannot be read", "PEM").await;
    write(authority.issue(&[], "somebody else"));
    assert_refused(&url, "certificate authentication failed", "pg_hba.conf").await;
    write(Authority::new(&PKCS_ECDSA_P256_SHA256).issue(&[], "certified"));
    assert_refused(&url, "refused the TLS session", "ssl_ca_file").await;
    write(authority.issue(&[], "certified"));
    assert!(encryption(&url).await.unwrap());
    let (_, other_key) = authority.issue(&[], "certified");
    std::fs::write(&key, other_key).unwrap();
    assert_refused(&url, "does not fit", "PEM").await;
    let url = server.url("certified", "sslmode=require");
    assert_refused(&url, "valid client certificate", "pg_hba.conf").await;
}

#[tokio::test]
async fn channel_binding_with_every_signature() {
    let server = Server::start(None, &Authority::new(&PKCS_ECDSA_P256_SHA256)).await;
    let required = server.url("scram", "sslmode=require&channel_binding=require");
    for algorithm in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ECDSA_P521_SHA512,
        &PKCS_RSA_SHA256,
        &PKCS_RSA_SHA384,
        &PKCS_RSA_SHA512,
    ] {
        server
            .present(&Authority::new(algorithm).issue(&["localhost"], "server"))
            .await;
        let said = format!("{algorithm:?}");
        assert!(encryption(&required).await.expect(&said), "{said}");
    }
    for parameters in ["sslmode=require&channel_binding=disable", "sslmode=require"] {
        assert!(
            encryption(&server.url("scram", parameters)).await.unwrap(),
            "{parameters}"
        );
    }
    // Neither a login without TLS, nor one without a password, nor a certificate without a digest binds.
    server
        .present(&Authority::new(&PKCS_ED25519).issue(&["localhost"], "server"))
        .await;
    assert!(
        encryption(&server.url("scram", "sslmode=require"))
            .await
            .unwrap()
    );
    for url in [
        required,
        server.url("scram", "sslmode=allow&channel_binding=require"),
        server.url("postgres", "sslmode=require&channel_binding=require"),
    ] {
        assert_refused(&url, "channel binding", "sslmode=require").await;
    }
}

#[tokio::test]
async fn a_self_signed_server_is_its_own_authority() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    let server = Server::start(None, &authority).await;
    // As `openssl req -x509` makes them: an authority that serves.
    let (certificate, key) = Authority::self_signed("localhost");
    let path = server
        .cluster
        .write_file("self.pem", certificate.as_bytes())
        .unwrap();
    server.present(&(certificate, key)).await;
    let trusting = format!("sslmode=verify-full&sslrootcert={}", path.display());
    assert!(encryption(&server.url("scram", &trusting)).await.unwrap());
    let url = server.url("scram", &server.verified("verify-ca"));
    assert_refused(&url, "certificate is not accepted", "").await;
}

#[tokio::test]
async fn direct_negotiation_where_servers_have_it() {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256);
    for major in installed_majors() {
        let server = Server::start(Some(major), &authority).await;
        let direct = format!("{}&sslnegotiation=direct", server.verified("verify-full"));
        let required = format!("{}&channel_binding=require", server.verified("verify-full"));
        assert!(
            encryption(&server.url("scram", &required)).await.unwrap(),
            "{major}"
        );
        let url = server.url("scram", &direct);
        let outcome = encryption(&url).await;
        if major >= 17 {
            assert!(outcome.unwrap(), "{major}");
        } else {
            assert!(outcome.is_err(), "{major}");
        }
    }
}
