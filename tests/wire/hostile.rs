//! Servers that lie: each is an error in bounded time and memory, none is a panic.

use super::source;
use pglockstep::conn::Session;
use pglockstep::replication::ReplicationConnection;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers every connection with `script`, one part for each message it waits for, then hangs up.
async fn liar(script: Vec<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            for part in &script {
                // Some parts ask for an answer, others do not.
                let wait = Duration::from_millis(20);
                let _ = tokio::time::timeout(wait, stream.read(&mut buffer)).await;
                let _ = stream.write_all(part).await;
            }
        }
    });
    port
}

/// What both kinds of session say of such a server.
async fn outcome(script: Vec<Vec<u8>>, parameters: &str) -> String {
    let port = liar(script).await;
    let url = format!("postgres://u:s3cret@127.0.0.1:{port}/d?connect_timeout=2&{parameters}");
    let endpoint = source(&url);
    let sql = endpoint
        .connect(Session::SourceRead)
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    let replication = ReplicationConnection::connect(&endpoint)
        .await
        .unwrap_err()
        .to_string();
    let said = format!("{sql} | {replication}");
    assert!(!said.contains("s3cret"), "{said}");
    said
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn authentication(kind: u8, body: &[u8]) -> Vec<u8> {
    message(b'R', &[&[0, 0, 0, kind], body].concat())
}

#[tokio::test]
async fn lies_are_named() {
    let sasl = authentication(10, b"SCRAM-SHA-256\0\0");
    let fatal = message(b'E', b"SFATAL\0C28000\0Mkein Eintrag f\xfcr \xff\0\0");
    for (script, says) in [
        (vec![], "connection"),
        (
            vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()],
            "cannot connect",
        ),
        (vec![b"R\0\0\0\x03".to_vec()], "protocol"),
        (vec![authentication(99, b"")], "authentication tag"),
        (vec![authentication(7, b"")], "GSSAPI"),
        (
            vec![authentication(10, b"OAUTHBEARER\0\0")],
            "unknown SASL mechanism",
        ),
        (vec![authentication(10, b"SCRAM-SHA-256")], ""),
        (vec![fatal], "kein Eintrag"),
        (vec![message(b'Z', b"I")], "protocol"),
        // A nonce that is not ours; more iterations than anybody could wait for.
        (
            vec![sasl.clone(), authentication(11, b"r=x,s=AAAA,i=4096")],
            "SCRAM",
        ),
        (
            vec![sasl.clone(), authentication(11, b"r=x,s=AAAA,i=4294967295")],
            "SCRAM",
        ),
        // "You are in": without having shown that it knows the password.
        (vec![sasl.clone(), authentication(0, b"")], "protocol"),
        (
            vec![
                sasl,
                [authentication(12, b"v=AAAA"), authentication(0, b"")].concat(),
            ],
            "protocol",
        ),
    ] {
        let said = outcome(script.clone(), "sslmode=disable").await;
        assert!(
            said.split(" | ").all(|one| one.contains(says)),
            "{script:?}: {said}"
        );
    }
}

#[tokio::test]
async fn lies_about_tls_are_named() {
    for (answer, says) in [
        (&b"E"[..], "answered the request for TLS with an error"),
        (b"?", "no answer to the request for TLS"),
        (b"N", "does not offer TLS"),
        // Plain text smuggled in behind the answer must not be taken for what came through TLS.
        (b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", "TLS failed"),
    ] {
        let said = outcome(vec![answer.to_vec()], "sslmode=require").await;
        assert_eq!(said.matches(says).count(), 2, "{said}");
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for parameters in ["sslmode=disable", "sslmode=require"] {
        let url = format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1&{parameters}");
        let error = source(&url)
            .connect(Session::SourceRead)
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            error.to_string().contains("no session within 1 s"),
            "{error}"
        );
    }
}

#[test]
fn any_script_is_survived() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bytes = proptest::collection::vec(any::<u8>(), 0..60);
    let framed = (any::<prop::sample::Index>(), bytes.clone())
        .prop_map(|(tag, body)| message(b"RREEKSZNTDCdWv"[tag.index(14)], &body));
    let auth = (0_u8..13, bytes.clone()).prop_map(|(kind, body)| authentication(kind, &body));
    let part = prop_oneof![bytes, framed, auth];
    let scripts = proptest::collection::vec(part, 0..4);
    let mut runner = TestRunner::new(Config {
        cases: 200,
        ..Config::default()
    });
    runner
        .run(&scripts, |script| {
            runtime.block_on(outcome(script, "sslmode=disable"));
            Ok(())
        })
        .unwrap();
}
