//! Accepts connections: few at a time, each for one short request.
//!
//! One request a connection and one deadline over it all. That bounds slow senders, slow
//! readers and idle connections alike, and costs a scraper one handshake in 15 seconds.

use super::{Settings, routes};
use crate::telemetry::{Chain, Telemetry};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From accept to the last byte of the answer.
const REQUEST_DURATION_MAX: Duration = Duration::from_secs(5);
/// At once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Request line and headers.
const REQUEST_BYTES_MAX: usize = 16 << 10;
const REQUEST_HEADERS_MAX: usize = 64;
/// For requests under way at shutdown.
const DRAIN_DURATION_MAX: Duration = Duration::from_secs(1);
/// Before trying again when no connection can be accepted: out of file descriptors, mostly.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} for the endpoints; set http.listen to a free address and port")]
pub struct BindError {
    listen: SocketAddr,
    source: std::io::Error,
}

/// Opens the port, before anything else is started that would have to be stopped again.
///
/// # Errors
/// The address is taken, or not one of this machine.
pub async fn bind(settings: &Settings) -> Result<TcpListener, BindError> {
    let listen = settings.listen;
    TcpListener::bind(listen)
        .await
        .map_err(|source| BindError { listen, source })
}

/// Serves until `shutdown`, then gives requests under way a second to end.
pub async fn serve(
    listener: TcpListener,
    telemetry: Telemetry,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let router = routes::router(telemetry, settings.ready);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                connections.spawn(serve_connection(stream, router.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(DRAIN_DURATION_MAX, connections.wait())
        .await
        .is_err()
    {
        tracing::debug!(
            open = connections.len(),
            "requests still open at shutdown are cut off"
        );
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve_connection(stream: TcpStream, router: axum::Router, permit: OwnedSemaphorePermit) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_headers(REQUEST_HEADERS_MAX)
        .max_buf_size(REQUEST_BYTES_MAX)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(REQUEST_DURATION_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "a request broke off"),
        Err(_elapsed) => tracing::debug!("a request took too long and was cut off"),
    }
    drop(permit);
}
