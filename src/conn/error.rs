//! Why a database could not be reached, and what the operator can do about it.
//!
//! One [`ConnError`] for one call of connect, with one [`ConnFailure`] for each server
//! that was tried: with several hosts the reason is rarely the last one alone.

use super::tls::TlsError;
use super::url::TargetSessionAttrs;
use crate::pg::{Disposition, Side, may_quote_values, sqlstate_disposition};
use postgres_protocol::message::backend::ErrorFields;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// An error as the server reported it, of a login or of replication.
///
/// Statements on tables have [`pg::ServerError`](crate::pg::ServerError), which shows less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// `ERROR`, `FATAL` or `PANIC`, untranslated where the server says it.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// One line.
    pub message: String,
    /// More about this instance.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl ErrorResponse {
    /// From an ErrorResponse; a mangled one still yields what could be read.
    pub(crate) fn from_wire(mut fields: ErrorFields<'_>) -> Self {
        let mut error = Self {
            severity: String::new(),
            code: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
        };
        while let Ok(Some(field)) = fields.next() {
            // Before the login is done messages come in whatever encoding the server has.
            let value = printable(&String::from_utf8_lossy(field.value_bytes()));
            match field.type_() {
                b'S' if error.severity.is_empty() => error.severity = value,
                b'V' => error.severity = value,
                b'C' => error.code = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                _ => {}
            }
        }
        if error.message.is_empty() {
            error.message = "an error without a text".to_owned();
        }
        error
    }

    /// The same without a password that the server repeats.
    pub(super) fn forget(&mut self, secret: &str) {
        let fields = [
            Some(&mut self.message),
            self.detail.as_mut(),
            self.hint.as_mut(),
        ];
        for text in fields.into_iter().flatten() {
            if !secret.is_empty() && text.contains(secret) {
                *text = text.replace(secret, "…");
            }
        }
    }

    /// The same without what may quote a row.
    pub(crate) fn without_values(mut self) -> Self {
        if may_quote_values(&self.code) {
            self.message = "a value or row was refused".to_owned();
            self.detail = None;
            self.hint = None;
        }
        self
    }

    /// A pooler's, which does not know what only a server needs to know. PgBouncer answers so to
    /// `replication` and to `options`.
    fn is_pooler_s(&self) -> bool {
        self.code == "08P01" && self.message.starts_with("unsupported startup parameter")
    }

    /// Whether the same request may pass later.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        if self.is_pooler_s() {
            return Disposition::Definite;
        }
        sqlstate_disposition(&self.code)
    }
}

impl From<&tokio_postgres::error::DbError> for ErrorResponse {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            severity: printable(error.severity()),
            code: printable(error.code().code()),
            message: printable(error.message()),
            detail: error.detail().map(printable),
            hint: error.hint().map(printable),
        }
    }
}

/// A server's words, as they may stand in a log: in one line, and not endless.
fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 1_000;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(CHARACTERS_MAX).map(plain).collect()
}

impl fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.severity, self.code)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {}", more.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorResponse {}

/// Why one server did not yield a session.
#[derive(Debug, thiserror::Error)]
pub enum ConnFailure {
    /// The name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Resolve(String),
    /// No network connection: refused, unreachable, no such socket, reset, closed.
    #[error("{}", describe_io(.0))]
    Network(io::Error),
    /// The server was too slow.
    #[error("no session within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Encryption failed or a certificate was not accepted.
    #[error("{0}")]
    Tls(TlsError),
    /// The server said no.
    #[error("{0}")]
    Server(ErrorResponse),
    /// We said no while logging in.
    #[error("{0}")]
    Authentication(AuthError),
    /// A server of another kind than the one that is asked for.
    #[error("the server is {found}, and target_session_attrs={wanted} asks for another kind")]
    SessionAttrs {
        /// What is asked for.
        wanted: TargetSessionAttrs,
        /// What the server is.
        found: &'static str,
    },
    /// Not PostgreSQL's protocol.
    #[error("the server does not follow PostgreSQL's protocol: {0}")]
    Protocol(String),
    /// No session from the pool.
    #[error("{0}")]
    Pool(String),
    /// Sessions do not keep their server processes.
    #[error(
        "a session had another server process in its next transaction: this is a pooler in transaction mode"
    )]
    Pooler,
    /// The password file cannot be used.
    #[error("passfile {} {why}", .path.display())]
    Passfile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a login was broken off on our side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The server asks and nothing is configured.
    #[error("the server asks for a password and none is given")]
    PasswordMissing,
    /// A cleartext password, over a network, unencrypted.
    #[error("the server asks for the password in clear over an unencrypted connection")]
    CleartextRefused,
    /// GSSAPI, SSPI, Kerberos, an unknown SASL mechanism.
    #[error("the server asks for {0}, which is not supported")]
    Method(String),
    /// `channel_binding=require`, and the login went without.
    #[error("channel_binding=require, and the server did not use channel binding")]
    ChannelBindingMissing,
    /// The server could not prove that it knows the password, or broke SCRAM.
    #[error("SCRAM authentication failed: {0}")]
    Scram(String),
}

impl ConnFailure {
    /// An error of the stream; one of TLS hides inside when the server refuses our certificate.
    pub(crate) fn from_io(error: io::Error) -> Self {
        if let Some(tls) = TlsError::inside(&error) {
            return Self::Tls(tls);
        }
        match error.downcast::<AuthError>() {
            Ok(refused) => Self::Authentication(refused),
            // The system's errors have other kinds: this is a parser's.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                ) =>
            {
                Self::Protocol(error.to_string())
            }
            Err(error) => Self::Network(error),
        }
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            // A lost server and a wrong socket directory look the same; a wrong path heals too.
            Self::Resolve(_)
            | Self::Network(_)
            | Self::Timeout(_)
            | Self::SessionAttrs { .. }
            | Self::Pool(_) => Disposition::Transient,
            Self::Tls(error) => error.disposition(),
            Self::Server(error) => error.disposition(),
            Self::Authentication(_) | Self::Protocol(_) | Self::Passfile { .. } | Self::Pooler => {
                Disposition::Definite
            }
        }
    }

    fn advice(&self, side: Side, user: &str, database: &str) -> String {
        match self {
            Self::Resolve(_) => format!("check the host in [{side}] url and the resolver"),
            Self::Network(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "check host and port, that the server runs, and its listen_addresses".to_owned()
            }
            Self::Network(error) if error.kind() == io::ErrorKind::NotFound => {
                "no socket there: check the socket directory and the port".to_owned()
            }
            Self::Network(_) => {
                "check the network between here and the server, and its log".to_owned()
            }
            Self::Timeout(_) => {
                "check routes and firewalls, or raise connect_timeout in the URL".to_owned()
            }
            Self::Tls(error) => error.advice().to_owned(),
            Self::Pooler => pooler_advice(side),
            Self::Server(error) if error.is_pooler_s() => pooler_advice(side),
            Self::Server(error) => server_advice(error, side, user, database),
            Self::Authentication(error) => error.advice(side).to_owned(),
            Self::SessionAttrs { .. } => {
                "list all servers in the URL's host, or change target_session_attrs".to_owned()
            }
            Self::Protocol(_) => "check that host and port lead to PostgreSQL itself".to_owned(),
            Self::Pool(_) => "wait for running work, or raise the pool's size".to_owned(),
            Self::Passfile { .. } => {
                "make it a file of host:port:database:user:password lines with mode 0600".to_owned()
            }
        }
    }
}

impl AuthError {
    fn advice(&self, side: Side) -> &'static str {
        match (self, side) {
            (Self::PasswordMissing, Side::Source) => {
                "put the password into [source] url, url_file or a passfile"
            }
            (Self::PasswordMissing, Side::Replica) => {
                "put the password into [replica] url, url_file or a passfile"
            }
            (Self::CleartextRefused, _) => {
                "use sslmode=require or better, or scram-sha-256 in pg_hba.conf"
            }
            (Self::Method(_), _) => "use scram-sha-256 for this role in pg_hba.conf",
            (Self::ChannelBindingMissing, _) => {
                "use sslmode=require or better, scram-sha-256 in pg_hba.conf, and a server certificate that is not Ed25519"
            }
            (Self::Scram(_), _) => {
                "check the password, and that nothing sits between here and the server"
            }
        }
    }
}

fn pooler_advice(side: Side) -> String {
    format!("connect to the server itself, not to a pooler: set host and port in [{side}] url")
}

fn server_advice(error: &ErrorResponse, side: Side, user: &str, database: &str) -> String {
    let role = crate::pg::quote_ident(user);
    match error.code.as_str() {
        "28P01" => format!(
            "check role and password in [{side}] url or url_file, or set it: ALTER ROLE {role} PASSWORD '…'"
        ),
        "28000" => format!(
            "check that the role exists and may log in, and that the server's pg_hba.conf admits it: \
             hostssl \"{database}\" {role} ADDRESS scram-sha-256 (then SELECT pg_reload_conf())"
        ),
        "3D000" => format!("check the database name in [{side}] url"),
        "42501" => format!(
            "grant it: GRANT CONNECT ON DATABASE {} TO {role}",
            crate::pg::quote_ident(database)
        ),
        "53300" => {
            "wait for sessions to end, or raise max_connections (max_wal_senders for replication) \
             or the role's CONNECTION LIMIT"
                .to_owned()
        }
        "57P03" | "57P01" | "57P02" => {
            "the server is starting or stopping: wait, or see its log".to_owned()
        }
        "22023" | "42704" => {
            "check options= in the URL: the server does not know a setting".to_owned()
        }
        _ => "see the server's log".to_owned(),
    }
}

fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the server reset the connection".to_owned(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::NotFound => "no such socket".to_owned(),
        _ => format!("connection failed: {error}"),
    }
}

/// No session with one side: which servers were tried, and why each failed.
#[derive(Debug)]
pub struct ConnError {
    side: Side,
    user: String,
    database: String,
    /// Address and failure, in the order tried; never empty.
    attempts: Vec<(String, ConnFailure)>,
}

impl ConnError {
    pub(crate) fn new(
        side: Side,
        url: &super::ConnectionUrl,
        attempts: Vec<(String, ConnFailure)>,
    ) -> Self {
        Self {
            side,
            user: url.user.clone(),
            database: url.database.clone(),
            attempts,
        }
    }

    /// Which database could not be reached.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// The role that wanted to log in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The failure an operator looks at first: a definite one before one that may pass.
    #[must_use]
    pub fn failure(&self) -> Option<&ConnFailure> {
        let failures = || self.attempts.iter().map(|(_, failure)| failure);
        failures()
            .find(|f| f.disposition() == Disposition::Definite)
            .or_else(|| failures().next())
    }

    /// Whether nobody was there. A server that says no is alive.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        matches!(
            self.failure(),
            Some(ConnFailure::Network(_) | ConnFailure::Timeout(_) | ConnFailure::Resolve(_))
        )
    }

    /// Whether a server is there and takes no session: it stops, or has not started yet.
    #[must_use]
    pub fn is_not_accepting(&self) -> bool {
        let refused = |f: &ConnFailure| matches!(f, ConnFailure::Server(e) if e.code == "57P03");
        self.attempts.iter().any(|(_, failure)| refused(failure))
    }

    /// Whether who we are was the matter.
    #[must_use]
    pub fn is_refused_login(&self) -> bool {
        match self.failure() {
            Some(ConnFailure::Authentication(_) | ConnFailure::Passfile { .. }) => true,
            // 42501: the role may not connect to this database, or not replicate.
            Some(ConnFailure::Server(error)) => {
                error.code.starts_with("28") || error.code == "42501"
            }
            _ => false,
        }
    }

    /// The SQLSTATE, where the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self.failure() {
            Some(ConnFailure::Server(error)) => Some(&error.code),
            _ => None,
        }
    }

    /// Transient if any of the servers may come back.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        let transient = |(_, f): &(String, ConnFailure)| f.disposition() == Disposition::Transient;
        if self.attempts.iter().any(transient) {
            Disposition::Transient
        } else {
            Disposition::Definite
        }
    }

    /// One line for the operator.
    #[must_use]
    pub fn advice(&self) -> String {
        self.failure().map_or_else(String::new, |f| {
            f.advice(self.side, &self.user, &self.database)
        })
    }
}

impl fmt::Display for ConnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to the {}", self.side)?;
        for (position, (address, failure)) in self.attempts.iter().enumerate() {
            let before = if position == 0 { " at" } else { "; nor at" };
            write!(
                f,
                "{before} {address}/{} as {}: {failure}",
                self.database, self.user
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnError {}
