//! The endpoints over a real socket.

use super::*;
use crate::pg::{Lsn, QualifiedName};
use crate::telemetry::{PipelineState, ReadyBounds, Telemetry};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

struct Server {
    telemetry: Telemetry,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: AbortOnDropHandle<()>,
}

async fn start() -> Server {
    start_on("127.0.0.1:0").await
}

async fn start_on(listen: &str) -> Server {
    let ready = ReadyBounds {
        lag_seconds_max: Some(10.0),
        lag_bytes_max: None,
    };
    let settings = Settings {
        listen: listen.parse().unwrap(),
        ready,
    };
    let listener = bind(&settings).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (telemetry, shutdown) = (Telemetry::new("crm"), CancellationToken::new());
    let task = tokio::spawn(serve(
        listener,
        telemetry.clone(),
        settings,
        shutdown.clone(),
    ));
    Server {
        telemetry,
        address,
        shutdown,
        task: AbortOnDropHandle::new(task),
    }
}

/// Sends raw bytes and reads to the end: status line, headers, body.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is the server's right when it did not read all that was sent.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(server: &Server, path: &str) -> String {
    exchange(
        server.address,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
    )
    .await
}

fn body(answer: &str) -> &str {
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body)
        .unwrap_or_default()
}

#[tokio::test]
async fn health_and_readiness_follow_the_telemetry() {
    let server = start().await;
    assert!(get(&server, "/health").await.starts_with("HTTP/1.1 200"));
    let answer = get(&server, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(body(&answer), "not streaming: starting\n");

    server.telemetry.set_state(PipelineState::Streaming, None);
    assert_eq!(
        body(&get(&server, "/readyz").await),
        "lag not measured yet\n"
    );
    server.telemetry.set_lag(Some(0), Some(11.0));
    let answer = get(&server, "/readyz").await;
    assert_eq!(body(&answer), "lag of 11s is above the bound of 10s\n");
    server.telemetry.set_lag(Some(0), Some(0.0));
    let answer = get(&server, "/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && body(&answer) == "ready\n",
        "{answer}"
    );

    server
        .telemetry
        .set_state(PipelineState::Failed, Some("the slot is gone".into()));
    for path in ["/health", "/healthz", "/readyz"] {
        let answer = get(&server, path).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{path}: {answer}");
        assert!(
            body(&answer).contains("the slot is gone"),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn metrics_page_and_tables() {
    let server = start().await;
    let name = QualifiedName::new("public", "leads");
    server
        .telemetry
        .table(&name, &QualifiedName::new("crm", "leads"))
        .received(3);
    let answer = get(&server, "/metrics").await;
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4"),
        "{answer}"
    );
    assert!(answer.contains("\npglockstep_changes_received_total{table=\"public.leads\"} 3\n"));
    let answer = get(&server, "/admin/tables").await;
    let tables: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!(tables[0]["replica_table"], "crm.leads");
    let answer = get(&server, "/").await;
    assert!(answer.contains("content-type: text/html") && answer.contains("/healthz"));
    assert!(get(&server, "/nothing").await.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert!(
        exchange(server.address, post)
            .await
            .starts_with("HTTP/1.1 405")
    );
}

#[tokio::test]
async fn the_client_reads_what_the_server_says() {
    let server = start().await;
    server.telemetry.set_applied(Lsn::from_wire(0xAB).unwrap());
    server
        .telemetry
        .set_state(PipelineState::Failed, Some("why".into()));
    let status = fetch_status(server.address).await.unwrap();
    assert_eq!(status["state"], "failed");
    assert_eq!(status["applied_lsn"], "0/AB");
    assert_eq!(status["healthy"], false);
    assert_eq!(status["ready_reason"], "unhealthy: stream: why");
    assert_eq!(status["parts"][3]["part"], "stream");
    assert_eq!(status["parts"][3]["state"], "failed");
    assert!(status["parts"][3]["since_unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
}

#[tokio::test]
async fn the_client_names_what_is_wrong() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stranger = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"a\": 1}")
            .await
            .unwrap();
    });
    let error = fetch_status(address).await.unwrap_err();
    assert!(
        matches!(error, FetchStatusError::Stranger { .. }),
        "{error:?}"
    );
    stranger.await.unwrap();
    // Taken, so that nobody else has it, and not listened to.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = nobody.local_addr().unwrap();
    let error = fetch_status(address).await.unwrap_err();
    assert!(
        matches!(error, FetchStatusError::Stopped { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let server = start().await;
    let ready = ReadyBounds {
        lag_seconds_max: None,
        lag_bytes_max: None,
    };
    let error = bind(&Settings {
        listen: server.address,
        ready,
    })
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains(&server.address.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn large_requests_are_refused() {
    let server = start().await;
    let header = format!("X: {}\r\n", "a".repeat(32 << 10));
    let answer = exchange(
        server.address,
        &format!("GET /health HTTP/1.1\r\n{header}\r\n"),
    )
    .await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    let headers = "X: a\r\n".repeat(65);
    let answer = exchange(
        server.address,
        &format!("GET /health HTTP/1.1\r\n{headers}\r\n"),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// Sixty-four who say nothing hold every place; they are thrown out and the next is served.
#[tokio::test]
async fn silent_peers_are_thrown_out() {
    let server = start().await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let answer = get(&server, "/health").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "the cap was not reached"
    );
}

#[tokio::test]
async fn shutdown_ends_the_server() {
    // Where no other test may be given the port that it leaves.
    let server = start_on("127.0.0.77:0").await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
