//! `ConnectionUrl`: what an operator says about reaching a database, checked.
//!
//! libpq's parameters with libpq's meaning (manual, "Parameter Key Words"), except
//! that nothing is taken from the process' environment or home directory:
//! a daemon connects as its configuration says and not otherwise.
//!
//! ```text
//!  text ─▶ conninfo: name, value ─▶ here: meaning, defaults, impossible combinations
//! ```

use super::conninfo::parse_parameters;
use super::hosts::Host;
use super::parameters::{ATTRS, Raw};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why a connection string cannot be used. Names parameters, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Neither spelling of a connection string.
    #[error("the connection string cannot be read: {0}")]
    Syntax(&'static str),
    /// No such parameter.
    #[error("unknown connection parameter \"{0}\"")]
    UnknownParameter(String),
    /// A parameter of libpq's that is not honoured here.
    #[error("connection parameter \"{name}\" is not supported: {remedy}")]
    Unsupported {
        /// The parameter.
        name: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A value outside of what the parameter can be.
    #[error("connection parameter \"{name}\" must be {expected}")]
    InvalidValue {
        /// The parameter.
        name: &'static str,
        /// What it can be.
        expected: String,
    },
    /// Parameters that contradict each other, or one that is missing.
    #[error("{0}")]
    Impossible(&'static str),
}

/// `sslmode`: how much encryption and verification is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain, and TLS where the server refuses that.
    Allow,
    /// TLS, and plain where the server does not have it.
    Prefer,
    /// TLS; the certificate is verified only when `sslrootcert` is given, as with verify-ca.
    Require,
    /// TLS with a certificate of a trusted authority, for whatever host.
    VerifyCa,
    /// TLS with a certificate of a trusted authority for this host.
    VerifyFull,
}

/// `sslnegotiation`: how TLS begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslNegotiation {
    /// Ask first; every server understands it.
    Postgres,
    /// At once, saving a round trip; PostgreSQL 17 and later.
    Direct,
}

/// `channel_binding`: whether SCRAM must prove that it runs inside this very TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Do not use it.
    Disable,
    /// Use it where the server can.
    Prefer,
    /// Fail without it.
    Require,
}

/// `target_session_attrs`: which kind of server will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Every server.
    Any,
    /// One that takes writes.
    ReadWrite,
    /// One that takes none.
    ReadOnly,
    /// A primary.
    Primary,
    /// A standby.
    Standby,
    /// A standby, or any server where no host is one.
    PreferStandby,
}

impl fmt::Display for TargetSessionAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ATTRS
            .iter()
            .find(|(_, attrs)| attrs == self)
            .map_or("any", |(name, _)| name);
        f.write_str(name)
    }
}

/// Whose signature makes a server certificate trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    /// The operating system's store.
    System,
    /// A PEM file, read anew at every connect.
    File(PathBuf),
}

/// Everything that concerns TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    pub(crate) negotiation: SslNegotiation,
    pub(crate) roots: Option<RootCertificates>,
    /// Certificate and key files.
    pub(crate) client_identity: Option<(PathBuf, PathBuf)>,
    pub(crate) send_server_name: bool,
}

/// When a silent TCP peer counts as lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpSettings {
    pub(crate) keepalives: bool,
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
    pub(crate) user_timeout: Duration,
}

/// A checked connection string. Neither `Debug` nor `Display` shows the password.
///
/// Differences from libpq: `host` defaults to `/var/run/postgresql`; `user` must be given;
/// `connect_timeout` defaults to 10 s, TCP keepalives to 30 s, 10 s and 3, `tcp_user_timeout` to 60 s;
/// `verify-ca` and `verify-full` without `sslrootcert` trust the operating system's store;
/// environment variables, `~/.pgpass` and `~/.postgresql` are not read.
#[derive(Clone)]
pub struct ConnectionUrl {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<SecretString>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) options: Option<String>,
    pub(crate) application_name: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) tcp: TcpSettings,
    pub(crate) tls: TlsSettings,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) target_session_attrs: TargetSessionAttrs,
}

impl ConnectionUrl {
    /// Reads a libpq URI or `key=value` string.
    ///
    /// # Errors
    /// [`UrlError`], which names the parameter at fault and never a value.
    pub fn parse(text: &SecretString) -> Result<Self, UrlError> {
        let mut raw = Raw::default();
        for (name, value) in parse_parameters(text.expose_secret())? {
            raw.set(&name, value)?;
        }
        raw.check()
    }

    /// `host:port/database`, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}/{}", self.hosts_text(), self.database)
    }

    pub(super) fn hosts_text(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(Host::to_string).collect();
        hosts.join(",")
    }

    /// The role that logs in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `options` stays out too: it may carry anything.
        f.debug_struct("ConnectionUrl")
            .field("at", &self.describe())
            .field("user", &self.user)
            .field("sslmode", &self.tls.mode)
            .field("target_session_attrs", &self.target_session_attrs)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConnectionUrl, UrlError> {
        ConnectionUrl::parse(&text.to_owned().into())
    }

    #[test]
    fn where_and_who() {
        for (text, expected) in [
            ("postgres://u@h/d", "h:5432/d"),
            ("postgres://u@h", "h:5432/u"),
            ("postgres://u@a:1,b/d", "a:1,b:5432/d"),
            ("host=a,b port=7 user=u", "a:7,b:7/u"),
            ("user=u hostaddr=::1 dbname=d", "[::1]:5432/d"),
            (
                "user=u host=db.example hostaddr=10.0.0.1",
                "db.example:5432/u",
            ),
            ("postgres://u@%2Ftmp%2Fsock:5433/d", "/tmp/sock:5433/d"),
            ("postgres:///d?user=u", "/var/run/postgresql:5432/d"),
        ] {
            assert_eq!(parse(text).unwrap().describe(), expected, "{text}");
        }
    }

    #[test]
    fn tls_as_libpq_means_it() {
        use RootCertificates::{File, System};
        for (text, mode, roots) in [
            ("", SslMode::Prefer, None),
            (
                "sslmode=require sslrootcert=/ca",
                SslMode::Require,
                Some(File("/ca".into())),
            ),
            ("sslmode=verify-ca", SslMode::VerifyCa, Some(System)),
            ("sslrootcert=system", SslMode::VerifyFull, Some(System)),
            (
                "sslmode=verify-full sslnegotiation=direct",
                SslMode::VerifyFull,
                Some(System),
            ),
        ] {
            let url = parse(&format!("user=u host=h {text}")).unwrap();
            assert_eq!((url.tls.mode, url.tls.roots), (mode, roots), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_shown() {
        for (text, part) in [
            ("sslmode=s3cret", "sslmode"),
            ("port=s3cret", "port"),
            ("port=0", "port"),
            ("host=a,b,c port=1,2", "port"),
            ("hostaddr=s3cret", "hostaddr"),
            ("connect_timeout=s3cret", "connect_timeout"),
            ("colour=s3cret", "colour"),
            ("service=s3cret", "service"),
            ("gssencmode=require", "gssencmode"),
            ("target_session_attrs=s3cret", "prefer-standby"),
            ("sslcert=s3cret", "sslkey"),
            ("sslrootcert=system sslmode=require", "verify-full"),
            ("sslnegotiation=direct", "sslmode"),
            ("channel_binding=require sslmode=disable", "sslmode=disable"),
        ] {
            let message = parse(&format!("user=u host=h {text}"))
                .unwrap_err()
                .to_string();
            assert!(
                message.contains(part) && !message.contains("s3cret"),
                "{text}: {message}"
            );
        }
        assert!(parse("host=h").unwrap_err().to_string().contains("user="));
    }

    #[test]
    fn the_password_stays_inside() {
        let url = parse("postgres://u:s3cret@h/d?options=-c%20x%3Ds3cret").unwrap();
        assert!(!format!("{url:?} {url} {}", url.describe()).contains("s3cret"));
        assert_eq!(url.password.unwrap().expose_secret(), "s3cret");
    }
}
