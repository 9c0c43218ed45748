//! TLS as each `sslmode` means it, by rustls.
//!
//! ```text
//!  sslmode       who is believed                                the name
//!  allow,prefer  anybody                                        –
//!  require       anybody; with sslrootcert as verify-ca         –
//!  verify-ca     certificates that lead to a trusted one        –
//!  verify-full   certificates that lead to a trusted one        must match host
//! ```
//!
//! Certificates and keys are read at every connect, so that they can be renewed
//! under a running daemon. The provider is named, never the process' default.

use super::ConnFailure;
use super::trust::{ServerTrust, expires_at};
use super::url::{RootCertificates, SslMode, SslNegotiation, TlsSettings};
use super::watched::Watched;
use crate::pg::Disposition;
use crate::telemetry::CertificateExpiry;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The protocol name that PostgreSQL 17 and later expect (RFC 7301 registry).
const ALPN: &[u8] = b"postgresql";

/// Why there is no encrypted connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server has no TLS and `sslmode` insists on it.
    #[error("the server does not offer TLS, which sslmode asks for")]
    NotOffered,
    /// The server answered the request for TLS with something else.
    #[error("the server answered the request for TLS with an error")]
    RequestRefused,
    /// A certificate or key file.
    #[error("{what} {} {why}", .path.display())]
    File {
        /// Which parameter names it.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system's store is empty.
    #[error("the operating system has no trusted certificates")]
    NoSystemRoots,
    /// The server's certificate was not accepted.
    #[error("the server's certificate is not accepted: {}", describe_certificate(.0))]
    Certificate(CertificateError),
    /// The server ended the handshake: most often it wants another client certificate.
    #[error("the server refused the TLS session: {0}")]
    Refused(rustls::Error),
    /// No common version, broken records and the like.
    #[error("TLS failed: {0}")]
    Protocol(rustls::Error),
    /// Not a name a certificate can hold.
    #[error("the host name cannot be verified by a certificate")]
    HostName,
    /// `sslnegotiation=direct`, and the other end does not say that it is PostgreSQL.
    #[error("the server did not agree on the protocol \"postgresql\" over direct TLS")]
    Alpn,
}

impl TlsError {
    /// The TLS error which an I/O error of a TLS stream carries.
    pub(crate) fn inside(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(match error {
            rustls::Error::InvalidCertificate(why) => Self::Certificate(why.clone()),
            rustls::Error::AlertReceived(_) => Self::Refused(error.clone()),
            other => Self::Protocol(other.clone()),
        })
    }

    /// Whether trying again can help: hardly ever, somebody has to change a file or a setting.
    pub(crate) fn disposition(&self) -> Disposition {
        match self {
            Self::RequestRefused => Disposition::Transient,
            _ => Disposition::Definite,
        }
    }

    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::NotOffered => {
                "set ssl = on with a certificate on the server, or sslmode=prefer here"
            }
            Self::RequestRefused => "see the server's log",
            Self::File { .. } => "make it a PEM file that the daemon's user can read",
            Self::NoSystemRoots => {
                "install ca-certificates, or set sslrootcert to the authority's file"
            }
            Self::Certificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                "set sslrootcert to the certificate of the authority that signed the server's"
            }
            Self::Certificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => {
                "use the host name the certificate is for (with hostaddr for the address), or sslmode=verify-ca"
            }
            Self::Certificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => "renew the server's certificate, and check the clocks",
            Self::Certificate(_) => "check the server's certificate",
            Self::Refused(_) => {
                "set sslcert and sslkey to a certificate which the server's ssl_ca_file trusts"
            }
            Self::Protocol(_) => {
                "the server must speak TLS 1.2 or 1.3: check ssl_min_protocol_version and ssl_ciphers"
            }
            Self::HostName => "write the host name as the certificate has it, or sslmode=verify-ca",
            Self::Alpn => {
                "sslnegotiation=direct needs PostgreSQL 17 or later and nothing in between: remove it"
            }
        }
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "no trusted authority signed it".to_owned(),
        CertificateError::BadSignature => {
            "its signature is not that of the trusted authority".to_owned()
        }
        CertificateError::NotValidForName => "it is for another host name".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "it has no host name in subjectAltName (a common name alone does not count)".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            // rustls writes them as DnsName("db.example").
            let bare = |name: &String| {
                name.replace(['"', ')'], "")
                    .rsplit('(')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            };
            let names: Vec<_> = presented.iter().map(bare).collect();
            format!("it is for {}", names.join(", "))
        }
        other => other.to_string(),
    }
}

/// Shakes hands over a connection on which the server is ready for TLS.
pub(super) async fn handshake(
    stream: Watched<TcpStream>,
    settings: &TlsSettings,
    host: &str,
) -> Result<(TlsStream<Watched<TcpStream>>, CertificateExpiry), ConnFailure> {
    use super::ConnFailure::Tls;
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if settings.mode == SslMode::VerifyFull => return Err(Tls(TlsError::HostName)),
        // Nobody verifies or needs it; rustls wants one.
        Err(_) => ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
    };
    let identity = client_identity(settings).await.map_err(Tls)?;
    let own = identity.as_ref().and_then(|(chain, _)| chain.first());
    let client = own.and_then(expires_at);
    let config = client_config(settings, identity).await.map_err(Tls)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(ConnFailure::from_io)?;
    let session = stream.get_ref().1;
    let presented = session.peer_certificates().and_then(<[_]>::first);
    let expiry = CertificateExpiry {
        server: presented.and_then(expires_at),
        client,
    };
    let agreed = session.alpn_protocol();
    if settings.negotiation == SslNegotiation::Direct && agreed != Some(ALPN) {
        return Err(Tls(TlsError::Alpn));
    }
    Ok((stream, expiry))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our own certificate with its key, as the files hold them now.
async fn client_identity(settings: &TlsSettings) -> Result<Option<Identity>, TlsError> {
    let Some((cert, key)) = &settings.client_identity else {
        return Ok(None);
    };
    let chain = read_certificates("sslcert", cert).await?;
    let pem = read_file("sslkey", key).await?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::File {
        what: "sslkey",
        path: key.clone(),
        why: "holds no unencrypted private key in PEM form".to_owned(),
    })?;
    Ok(Some((chain, secret)))
}

async fn client_config(
    settings: &TlsSettings,
    identity: Option<Identity>,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = match &settings.roots {
        Some(roots) if settings.mode >= SslMode::Require => Some(load_roots(roots).await?),
        _ => None,
    };
    let trust = ServerTrust::new(
        settings.mode,
        roots,
        provider.signature_verification_algorithms,
    );
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Protocol)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let does_not_fit = |error| {
                let files = settings.client_identity.as_ref();
                TlsError::File {
                    what: "sslkey",
                    path: files.map_or_else(PathBuf::new, |(_, key)| key.clone()),
                    why: format!("does not fit the certificate in sslcert: {error}"),
                }
            };
            let with_identity = builder.with_client_auth_cert(chain, key);
            with_identity.map_err(does_not_fit)?
        }
    };
    config.enable_sni = settings.send_server_name;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Trusted certificates: as anchors, and as they are.
pub(super) struct Roots {
    pub(super) anchors: RootCertStore,
    /// A self-signed server certificate may be its own authority; rustls refuses those as anchors.
    pub(super) exact: Vec<CertificateDer<'static>>,
}

async fn load_roots(source: &RootCertificates) -> Result<Roots, TlsError> {
    let mut anchors = RootCertStore::empty();
    match source {
        RootCertificates::System => {
            // Reads some hundred files.
            let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
                .await
                .map_err(|_| TlsError::NoSystemRoots)?;
            let (added, _) = anchors.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(TlsError::NoSystemRoots);
            }
            Ok(Roots {
                anchors,
                exact: Vec::new(),
            })
        }
        RootCertificates::File(path) => {
            let exact = read_certificates("sslrootcert", path).await?;
            anchors.add_parsable_certificates(exact.iter().cloned());
            Ok(Roots { anchors, exact })
        }
    }
}

async fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_file(what, path).await?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::File {
            what,
            path: path.to_owned(),
            why: "holds no certificate in PEM form".to_owned(),
        }),
    }
}

async fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    tokio::fs::read(path).await.map_err(|error| TlsError::File {
        what,
        path: path.to_owned(),
        why: format!("cannot be read: {error}"),
    })
}
