//! `ServerStream`: one byte stream to a server, over TCP, a unix socket or TLS.
//!
//! ```text
//!  TCP ──┬─ plain ────────────────────────────────────────▶ ServerStream
//!        ├─ SSLRequest ─▶ 'S' ─▶ handshake ───────────────▶ ServerStream + certificate's hash
//!        │                'N' ─▶ plain, if that is allowed ▶ ServerStream
//!        └─ direct: handshake at once ────────────────────▶ ServerStream + certificate's hash
//!  unix socket ── plain, whatever sslmode says (as libpq) ─▶ ServerStream
//! ```
//!
//! A server that asks for the password in clear over an open network does not get it: the
//! stream fails before anybody can answer.
//!
//! Receive buffers are left to the kernel: a size of our own would switch off TCP's
//! auto-tuning, and a unix socket is bounded by the sender's buffer.

use super::admission::Admission;
use super::hosts::{Host, HostAddress};
use super::pulse::{Attention, Silence};
use super::tls::{TlsError, handshake};
use super::trust::end_point_hash;
use super::url::{ConnectionUrl, SslNegotiation, TcpSettings};
use super::watched::Watched;
use super::{AuthError, ConnFailure};
use crate::telemetry::CertificateExpiry;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// How one attempt is to be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    /// Not.
    Plain,
    /// If the server can.
    IfOffered,
    /// Or not at all.
    Required,
}

/// A place to connect to: a host has one for each of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(std::path::PathBuf),
}

/// The places a host stands for.
pub(super) async fn resolve(host: &Host) -> Result<Vec<Place>, ConnFailure> {
    match &host.address {
        HostAddress::Unix(directory) => Ok(vec![Place::Unix(
            directory.join(format!(".s.PGSQL.{}", host.port)),
        )]),
        HostAddress::Tcp {
            address: Some(address),
            ..
        } => Ok(vec![Place::Tcp(SocketAddr::new(*address, host.port))]),
        HostAddress::Tcp {
            name,
            address: None,
        } => {
            let found = tokio::net::lookup_host((name.as_str(), host.port)).await;
            let places: Vec<_> = found
                .map_err(|e| ConnFailure::Resolve(e.to_string()))?
                .map(Place::Tcp)
                .collect();
            if places.is_empty() {
                return Err(ConnFailure::Resolve("it has no address".to_owned()));
            }
            Ok(places)
        }
    }
}

/// An open connection, before or after login.
#[derive(Debug)]
pub(crate) struct ServerStream {
    transport: Transport,
    end_point_hash: Option<Vec<u8>>,
    certificate_expiry: CertificateExpiry,
    first: FirstBytes,
    attention: Attention,
    admission: Arc<Admission>,
}

/// The beginning of what the server says, watched while a password could leak.
#[derive(Debug, Default)]
struct FirstBytes {
    watched: bool,
    seen: Vec<u8>,
}

impl FirstBytes {
    /// AuthenticationCleartextPassword; always the first message where it comes at all.
    const CLEARTEXT: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];

    /// Takes note of what was read; an error once the server asks for the password in clear.
    fn watch(&mut self, read: &[u8]) -> io::Result<()> {
        let missing = Self::CLEARTEXT.len().saturating_sub(self.seen.len());
        self.seen
            .extend_from_slice(&read[..read.len().min(missing)]);
        self.watched = self.seen.len() < Self::CLEARTEXT.len();
        if self.seen == Self::CLEARTEXT {
            return Err(io::Error::other(AuthError::CleartextRefused));
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Transport {
    Tcp(Watched<TcpStream>),
    Unix(Watched<UnixStream>),
    Tls(Box<TlsStream<Watched<TcpStream>>>),
}

impl ServerStream {
    /// Connects and, where asked, encrypts.
    pub(super) async fn open(
        url: &ConnectionUrl,
        host: &Host,
        place: &Place,
        encryption: Encryption,
    ) -> Result<Self, ConnFailure> {
        let address = match place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(ConnFailure::Network)?;
                let transport = Transport::Unix(Watched::new(stream));
                return Ok(Self::new(transport, None, false));
            }
            Place::Tcp(address) => *address,
        };
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(ConnFailure::Network)?;
        keep_alive(&stream, &url.tcp).map_err(ConnFailure::Network)?;
        let is_local = address.ip().to_canonical().is_loopback();
        let begins_tls = match (encryption, url.tls.negotiation) {
            (Encryption::Plain, _) => false,
            (_, SslNegotiation::Direct) => true,
            (Encryption::IfOffered, _) => request_tls(&mut stream).await?,
            (Encryption::Required, _) if request_tls(&mut stream).await? => true,
            (Encryption::Required, _) => return Err(ConnFailure::Tls(TlsError::NotOffered)),
        };
        let stream = Watched::new(stream);
        if !begins_tls {
            return Ok(Self::new(Transport::Tcp(stream), None, !is_local));
        }
        let name = match &host.address {
            HostAddress::Tcp { name, .. } => name.as_str(),
            HostAddress::Unix(_) => "",
        };
        let (stream, expiry) = handshake(stream, &url.tls, name).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let end_point_hash = certificates.and_then(<[_]>::first).and_then(end_point_hash);
        let transport = Transport::Tls(Box::new(stream));
        Ok(Self {
            certificate_expiry: expiry,
            ..Self::new(transport, end_point_hash, false)
        })
    }

    /// `on_network`: others could read along.
    fn new(transport: Transport, end_point_hash: Option<Vec<u8>>, on_network: bool) -> Self {
        let first = FirstBytes {
            watched: on_network,
            seen: Vec::new(),
        };
        Self {
            transport,
            end_point_hash,
            certificate_expiry: CertificateExpiry::default(),
            first,
            attention: Attention::default(),
            admission: Arc::default(),
        }
    }

    /// Takes its socket off the reactor until the next read that finds nothing: whoever calls naps
    /// while there may be more, instead of being woken for each send.
    ///
    /// # Errors
    /// The system's; the stream is of no use afterwards.
    pub(crate) fn unwatch(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Tcp(socket) => socket.unwatch(),
            Transport::Unix(socket) => socket.unwatch(),
            Transport::Tls(stream) => stream.get_mut().0.unwatch(),
        }
    }

    /// For how long an answer has been waited for; it outlives the stream's being handed on.
    pub(crate) fn silence(&self) -> Arc<Silence> {
        self.attention.silence()
    }

    /// Bounds what is read until whoever opens the session admits it.
    pub(crate) fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    /// Whether TLS protects the connection.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// When the certificates of both ends expire; nothing without TLS.
    pub(crate) fn certificate_expiry(&self) -> CertificateExpiry {
        self.certificate_expiry
    }

    /// `tls-server-end-point`, for SCRAM's channel binding.
    pub(crate) fn end_point_hash(&self) -> Option<&[u8]> {
        self.end_point_hash.as_deref()
    }
}

/// Asks for TLS. Exactly one byte is read: what an attacker put behind it reaches the handshake
/// and fails there (CVE-2021-23222).
async fn request_tls(stream: &mut TcpStream) -> Result<bool, ConnFailure> {
    let mut request = bytes::BytesMut::with_capacity(8);
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream
        .write_all(&request)
        .await
        .map_err(ConnFailure::Network)?;
    match stream.read_u8().await.map_err(ConnFailure::Network)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An unencrypted error message, which nobody vouches for: not shown (CVE-2024-10977).
        b'E' => Err(ConnFailure::Tls(TlsError::RequestRefused)),
        _ => Err(ConnFailure::Protocol(
            "no answer to the request for TLS".to_owned(),
        )),
    }
}

fn keep_alive(stream: &TcpStream, settings: &TcpSettings) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    if settings.keepalives {
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(settings.idle)
            .with_interval(settings.interval)
            .with_retries(settings.count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    // Keepalives are silent while data is unacknowledged; this bounds that case.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(settings.user_timeout))?;
    Ok(())
}

impl AsyncRead for ServerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = match &mut this.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match outcome {
            Poll::Pending => {
                this.attention.waits();
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                let read = &buf.filled()[before..];
                this.attention.heard(read);
                if this.first.watched {
                    this.first.watch(read)?;
                }
                Poll::Ready(this.admission.heard(read.len()))
            }
            failed => failed,
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        if let Poll::Ready(Ok(written)) = outcome {
            this.attention.said(&buf[..written]);
        }
        outcome
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_peer_is_noticed_as_the_url_says() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (parameters, wanted) in [
            ("", Some([30, 10, 3, 60])),
            (
                "?keepalives_idle=7&keepalives_interval=2&keepalives_count=5&tcp_user_timeout=9000",
                Some([7, 2, 5, 9]),
            ),
            ("?keepalives=0", None),
        ] {
            let url = format!("postgres://a@localhost/b{parameters}");
            let url = ConnectionUrl::parse(&url.into()).unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            keep_alive(&stream, &url.tcp).unwrap();
            let socket = socket2::SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(
                socket.keepalive().unwrap(),
                wanted.is_some(),
                "{parameters}"
            );
            let set = [
                socket.tcp_keepalive_time().unwrap().as_secs(),
                socket.tcp_keepalive_interval().unwrap().as_secs(),
                socket.tcp_keepalive_retries().unwrap().into(),
                socket.tcp_user_timeout().unwrap().unwrap().as_secs(),
            ];
            assert_eq!(set, wanted.unwrap_or(set), "{parameters}");
        }
    }

    #[test]
    fn a_request_for_the_password_in_clear_is_seen_however_it_is_cut() {
        let watch = |parts: &[&[u8]]| {
            let mut first = FirstBytes {
                watched: true,
                seen: Vec::new(),
            };
            parts.iter().try_for_each(|part| first.watch(part)).is_err()
        };
        assert!(watch(&[b"R\0\0\0\x08\0\0\0\x03"]));
        assert!(watch(&[b"R\0\0", b"\0\x08\0\0\0", b"\x03"]));
        assert!(!watch(&[b"R\0\0\0\x0c\0\0\0\x05salt"]));
        assert!(!watch(&[b"R\0\0\0\x08\0\0\0\0", b"R\0\0\0\x08\0\0\0\x03"]));
    }
}
