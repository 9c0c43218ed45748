//! Which servers are tried in which order, with which encryption, until one is right.
//!
//! ```text
//!  for each host ─▶ for each of its addresses ─▶ open, log in ─▶ target_session_attrs fit? ─▶ session
//!                                                  │ allow: refused in plain ─▶ once more with TLS
//!                                                  │ prefer: TLS fails, or is refused ─▶ once more in plain
//!  a definite answer (wrong password, wrong certificate) ends the search, as in libpq
//! ```
//!
//! The same walk serves SQL sessions and replication: they differ in [`Login`] only.

use super::hosts::Host;
use super::passfile::password_for;
use super::socket::{Encryption, Place, ServerStream, resolve};
use super::url::{ConnectionUrl, SslMode, TargetSessionAttrs};
use super::{ConnError, ConnFailure, Endpoint};
use crate::pg::Disposition;
use secrecy::{ExposeSecret, SecretString};
use std::future::Future;
use tokio::time::timeout;

/// What turns an open stream into a session.
pub(crate) trait Login: Sync {
    /// The session.
    type Session: Send;

    /// Start-up and authentication.
    fn log_in(
        &self,
        stream: ServerStream,
        url: &ConnectionUrl,
        password: Option<&SecretString>,
    ) -> impl Future<Output = Result<Self::Session, ConnFailure>> + Send;

    /// Asks a fresh session what kind of server this is.
    fn server_kind(
        &self,
        session: &mut Self::Session,
    ) -> impl Future<Output = Result<ServerKind, ConnFailure>> + Send;
}

/// Asks for the two columns of [`ServerKind`].
pub(crate) const SERVER_KIND_SQL: &str = "SELECT pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
     pg_catalog.current_setting('transaction_read_only')";

/// What `target_session_attrs` distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerKind {
    pub(crate) is_standby: bool,
    pub(crate) is_read_only: bool,
}

impl ServerKind {
    /// From the row that [`SERVER_KIND_SQL`] yields.
    pub(crate) fn from_row(in_recovery: Option<&str>, read_only: Option<&str>) -> Option<Self> {
        let is_standby = matches!(in_recovery?, "true" | "t");
        Some(Self {
            is_standby,
            is_read_only: is_standby || read_only? == "on",
        })
    }

    fn check(self, wanted: TargetSessionAttrs) -> Result<(), ConnFailure> {
        let fits = match wanted {
            TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => true,
            TargetSessionAttrs::ReadWrite => !self.is_read_only,
            TargetSessionAttrs::ReadOnly => self.is_read_only,
            TargetSessionAttrs::Primary => !self.is_standby,
            TargetSessionAttrs::Standby => self.is_standby,
        };
        let found = match self {
            Self {
                is_standby: true, ..
            } => "a standby",
            Self {
                is_read_only: true, ..
            } => "a read-only primary",
            _ => "a primary",
        };
        if fits {
            Ok(())
        } else {
            Err(ConnFailure::SessionAttrs { wanted, found })
        }
    }
}

/// The first session with a server of the wanted kind.
pub(crate) async fn connect<L: Login>(
    endpoint: &Endpoint,
    login: &L,
) -> Result<L::Session, ConnError> {
    let url = &endpoint.url;
    let mut attempts = Vec::new();
    let rounds: &[TargetSessionAttrs] = match url.target_session_attrs {
        TargetSessionAttrs::PreferStandby => {
            &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any]
        }
        _ => std::slice::from_ref(&url.target_session_attrs),
    };
    for wanted in rounds {
        attempts.clear();
        for host in &url.hosts {
            if let Some(session) = try_host(url, host, *wanted, login, &mut attempts).await {
                return Ok(session);
            }
            let definite =
                |(_, f): &(String, ConnFailure)| f.disposition() == Disposition::Definite;
            if attempts.last().is_some_and(definite) {
                break;
            }
        }
    }
    Err(ConnError::new(endpoint.side, url, attempts))
}

async fn try_host<L: Login>(
    url: &ConnectionUrl,
    host: &Host,
    wanted: TargetSessionAttrs,
    login: &L,
    attempts: &mut Vec<(String, ConnFailure)>,
) -> Option<L::Session> {
    let limit = url.connect_timeout;
    let places = match timeout(limit, resolve(host)).await {
        Ok(Ok(places)) => places,
        Ok(Err(failure)) => {
            attempts.push((host.to_string(), failure));
            return None;
        }
        Err(_) => {
            attempts.push((host.to_string(), ConnFailure::Timeout(limit)));
            return None;
        }
    };
    for place in &places {
        let address = match place {
            Place::Tcp(address) if places.len() > 1 => format!("{host} ({})", address.ip()),
            _ => host.to_string(),
        };
        match try_place(url, host, place, login).await {
            Ok(mut session) => match fits(&mut session, wanted, login, limit).await {
                Ok(()) => return Some(session),
                Err(failure) => attempts.push((address, failure)),
            },
            Err(failure) => {
                let ends = failure.disposition() == Disposition::Definite;
                attempts.push((address, failure));
                if ends {
                    return None;
                }
            }
        }
    }
    None
}

async fn fits<L: Login>(
    session: &mut L::Session,
    wanted: TargetSessionAttrs,
    login: &L,
    limit: std::time::Duration,
) -> Result<(), ConnFailure> {
    if wanted == TargetSessionAttrs::Any {
        return Ok(());
    }
    let kind = timeout(limit, login.server_kind(session)).await;
    kind.map_err(|_| ConnFailure::Timeout(limit))??
        .check(wanted)
}

/// One address, with a second try where `sslmode` leaves the encryption open.
async fn try_place<L: Login>(
    url: &ConnectionUrl,
    host: &Host,
    place: &Place,
    login: &L,
) -> Result<L::Session, ConnFailure> {
    let first = match (place, url.tls.mode) {
        (Place::Unix(_), _) | (_, SslMode::Disable | SslMode::Allow) => Encryption::Plain,
        (_, SslMode::Prefer) => Encryption::IfOffered,
        _ => Encryption::Required,
    };
    let (failure, encrypted) = match attempt(url, host, place, first, login).await {
        Ok(session) => return Ok(session),
        Err(failed) => failed,
    };
    let second = match (place, url.tls.mode, &failure) {
        (Place::Tcp(_), SslMode::Allow, ConnFailure::Server(error))
            if error.code.starts_with("28") =>
        {
            Encryption::Required
        }
        // Unlike libpq not after a wrong password: it would only be shown to the network.
        (Place::Tcp(_), SslMode::Prefer, ConnFailure::Server(error))
            if encrypted && error.code == "28000" =>
        {
            Encryption::Plain
        }
        (Place::Tcp(_), SslMode::Prefer, ConnFailure::Tls(_)) => Encryption::Plain,
        _ => return Err(failure),
    };
    attempt(url, host, place, second, login)
        .await
        .map_err(|(failure, _)| failure)
}

/// One connection and login; a failure comes with whether TLS was in place.
async fn attempt<L: Login>(
    url: &ConnectionUrl,
    host: &Host,
    place: &Place,
    encryption: Encryption,
    login: &L,
) -> Result<L::Session, (ConnFailure, bool)> {
    let (mut encrypted, mut secret) = (false, None);
    let work = async {
        let password = password_for(url, host).await?;
        secret.clone_from(&password);
        let stream = ServerStream::open(url, host, place, encryption).await?;
        encrypted = stream.is_encrypted();
        login.log_in(stream, url, password.as_ref()).await
    };
    // On the heap: TLS and SCRAM states are large, and callers embed this future.
    match timeout(url.connect_timeout, Box::pin(work)).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(mut failure)) => {
            if let (ConnFailure::Server(error), Some(secret)) = (&mut failure, secret) {
                error.forget(secret.expose_secret());
            }
            Err((failure, encrypted))
        }
        Err(_) => Err((ConnFailure::Timeout(url.connect_timeout), encrypted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_servers_fit() {
        use TargetSessionAttrs::{Any, Primary, ReadOnly, ReadWrite, Standby};
        let primary = ServerKind::from_row(Some("false"), Some("off")).unwrap();
        let frozen = ServerKind::from_row(Some("false"), Some("on")).unwrap();
        let standby = ServerKind::from_row(Some("true"), Some("on")).unwrap();
        for (kind, fitting) in [
            (primary, &[Any, ReadWrite, Primary][..]),
            (frozen, &[Any, ReadOnly, Primary]),
            (standby, &[Any, ReadOnly, Standby]),
        ] {
            for wanted in [Any, ReadWrite, ReadOnly, Primary, Standby] {
                assert_eq!(
                    kind.check(wanted).is_ok(),
                    fitting.contains(&wanted),
                    "{kind:?} {wanted}"
                );
            }
        }
        assert_eq!(ServerKind::from_row(None, Some("on")), None);
    }
}
