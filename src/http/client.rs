//! Asks a running daemon for its status, for the `status` verb.

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

const FETCH_DURATION_MAX: Duration = Duration::from_secs(5);
/// Room for tens of thousands of tables.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The daemon's status cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchStatusError {
    /// Nobody listens.
    #[error("no daemon listens on {listen}")]
    Stopped {
        /// Where it was sought.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody listens and does not answer.
    #[error(
        "{listen} gives no answer within 5 s: the daemon hangs, or something else listens there"
    )]
    TimedOut {
        /// Where it was sought.
        listen: SocketAddr,
    },
    /// The answer breaks off or is too long.
    #[error("the answer of {listen} cannot be read")]
    Broken {
        /// Where it was sought.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not a status.
    #[error("what listens on {listen} is not pglockstep; see http.listen")]
    Stranger {
        /// Where it was sought.
        listen: SocketAddr,
    },
}

/// What `/healthz` of the daemon at `listen` says, whether or not it is healthy.
///
/// # Errors
/// Nobody listens there, or what answers is not a daemon of ours.
pub async fn fetch_status(listen: SocketAddr) -> Result<serde_json::Value, FetchStatusError> {
    tokio::time::timeout(FETCH_DURATION_MAX, fetch(listen))
        .await
        .unwrap_or(Err(FetchStatusError::TimedOut { listen }))
}

async fn fetch(listen: SocketAddr) -> Result<serde_json::Value, FetchStatusError> {
    let broken = |source| FetchStatusError::Broken { listen, source };
    let stream = TcpStream::connect(reachable(listen))
        .await
        .map_err(|source| FetchStatusError::Stopped { listen, source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.into()))?;
    let request = Request::get("/healthz")
        .header(hyper::header::HOST, listen.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(error.into()))?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(error.into()))?;
        Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(broken)
    };
    // The connection moves only while it is polled; its own error shows in the answer.
    let (_, answer) = tokio::join!(connection, answer);
    let status: serde_json::Value = serde_json::from_slice(&answer?.to_bytes())
        .map_err(|_| FetchStatusError::Stranger { listen })?;
    if status
        .get("state")
        .is_some_and(serde_json::Value::is_string)
    {
        Ok(status)
    } else {
        Err(FetchStatusError::Stranger { listen })
    }
}

/// Who listens on every address is reached by the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
