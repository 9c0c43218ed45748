//! SQL sessions: an [`Endpoint`] and what every session on it is pinned to.
//!
//! Values travel as text in both directions, so whatever a database, role or server
//! sets for rendering and parsing must not matter; and what may break off a session
//! behind our back (time-outs set for people) is switched off.

use super::admission::{Admission, TooTalkative};
use super::login::{Login, SERVER_KIND_SQL, ServerKind, connect};
use super::pool::Pool;
use super::pulse::{Pulse, Silence, watch};
use super::socket::ServerStream;
use super::url::{self, ConnectionUrl};
use super::{AuthError, ConnError, ConnFailure};
use crate::faults::{Bug, planted};
use crate::pg::{Side, quote_literal};
use crate::telemetry::Telemetry;
use secrecy::{ExposeSecret, SecretString};
use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage, SimpleQueryRow};
use tracing::Instrument;

/// One database of ours, and how to reach it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Source or replica.
    pub side: Side,
    /// Where and as whom.
    pub url: ConnectionUrl,
    /// What `pg_stat_activity` shows, unless the URL has an `application_name` of its own.
    pub application_name: String,
    /// Pinned `lock_timeout`; 0 waits for ever.
    pub lock_timeout_ms: u32,
    /// Who is told of certificates.
    pub telemetry: Option<Telemetry>,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Reads the source; the server refuses writes.
    SourceRead,
    /// Writes the replica; a commit is durable when it returns.
    ReplicaWrite,
    /// What an operator asked for by hand.
    Admin,
}

impl Endpoint {
    /// An endpoint that waits for locks without limit.
    #[must_use]
    pub fn new(side: Side, url: ConnectionUrl, application_name: impl Into<String>) -> Self {
        Self {
            side,
            url,
            application_name: application_name.into(),
            lock_timeout_ms: 0,
            telemetry: None,
        }
    }

    /// `host:port/database`, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        self.url.describe()
    }

    /// Opens a session. Its connection is driven by a task which ends with the client.
    ///
    /// # Errors
    /// [`ConnError`] with every server that was tried.
    pub async fn connect(&self, session: Session) -> Result<Client, ConnError> {
        self.connect_with_task(session)
            .await
            .map(|(client, _)| client)
    }

    /// A pool of such sessions, opened as they are needed.
    ///
    /// # Errors
    /// [`ConnError`] outside of a runtime.
    pub fn pool(&self, session: Session, max_size: usize) -> Result<Pool, ConnError> {
        Pool::new(self.clone(), session, max_size)
    }

    pub(super) async fn connect_with_task(
        &self,
        session: Session,
    ) -> Result<(Client, JoinHandle<()>), ConnError> {
        let (client, task, pulse) = self.connect_unwatched(session).await?;
        watch(pulse, task.abort_handle());
        Ok((client, task))
    }

    /// The session by which a [`Pulse`] asks is not itself watched.
    pub(super) async fn connect_unwatched(
        &self,
        session: Session,
    ) -> Result<(Client, JoinHandle<()>, Pulse), ConnError> {
        let SqlSession {
            client,
            task,
            silence,
            admission,
        } = connect(self, &SqlLogin { endpoint: self }).await?;
        match self.pin(&client, session).await {
            Ok(pid) => {
                admission.admit();
                Ok((client, task, Pulse::new(self.clone(), pid, silence)))
            }
            Err(failure) => {
                // It may still wait for an answer, and nobody watches it.
                task.abort();
                // The library knows no more than that its connection is gone.
                let is_too_much = admission.is_overdrawn();
                let too_much = || ConnFailure::Protocol(TooTalkative.to_string());
                Err(self.failed(if is_too_much { too_much() } else { failure }))
            }
        }
    }

    /// Yields the process id of the server's end.
    async fn pin(&self, client: &Client, session: Session) -> Result<i32, ConnFailure> {
        let sql = pins_sql(session, self.lock_timeout_ms);
        let limit = self.url.connect_timeout;
        let answer = timeout(limit, client.simple_query(&sql)).await;
        let answer = answer.map_err(|_| ConnFailure::Timeout(limit))?;
        row(&answer.map_err(failure)?)
            .and_then(|row| value(row, 1)?.parse().ok())
            .ok_or_else(no_row)
    }

    pub(super) fn failed(&self, failure: ConnFailure) -> ConnError {
        ConnError::new(self.side, &self.url, vec![(self.url.hosts_text(), failure)])
    }

    /// Whoever logs in by this stream tells when its certificates expire.
    pub(crate) fn tell_certificates(&self, stream: &ServerStream) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.set_certificates(self.side, stream.certificate_expiry());
        }
    }

    /// What the server is to show for our sessions.
    pub(crate) fn effective_application_name(&self) -> &str {
        self.url
            .application_name
            .as_deref()
            .unwrap_or(&self.application_name)
    }
}

/// Settings of every session; those that a server version lacks are passed over.
const PINS: [(&str, &str); 24] = [
    ("search_path", ""),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("client_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    // An index that is made again comes to where it was.
    ("default_tablespace", ""),
    // Rows that a policy hides are an error, not a smaller table.
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("transaction_timeout", "0"),
    // A host of ours that died must not hold locks for as long as TCP allows by itself.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
    // Nor may a session whose daemon is gone, while it waits for a lock or computes.
    (CONNECTION_CHECK, "2000"),
    ("jit", "off"),
    ("default_transaction_deferrable", "off"),
];

/// Refused where the server's system cannot tell (Windows; others before 15).
const CONNECTION_CHECK: &str = "client_connection_check_interval";

/// Those of them that decide how a value is written.
const RENDERING: [&str; 5] = [
    "DateStyle",
    "IntervalStyle",
    "extra_float_digits",
    "TimeZone",
    "bytea_output",
];

/// One statement, one round trip, no error for a setting that the server does not know. Yields
/// their number, and the process id of the server's end.
pub(crate) fn pins_sql(session: Session, lock_timeout_ms: u32) -> String {
    let lock_timeout = lock_timeout_ms.to_string();
    let special: &[(&str, &str)] = match session {
        Session::SourceRead => &[("default_transaction_read_only", "on")],
        Session::ReplicaWrite => &[
            ("default_transaction_read_only", "off"),
            ("synchronous_commit", "on"),
            // One of them holds the pipeline: whoever stands by is to have it within 15 s, and needs
            // some of them for the slot. After 8 s without a word the server gives the session up.
            ("tcp_keepalives_idle", "3"),
            ("tcp_keepalives_interval", "1"),
            ("tcp_keepalives_count", "5"),
            ("tcp_user_timeout", "8000"),
        ],
        Session::Admin => &[("default_transaction_read_only", "off")],
    };
    let renders =
        |pin: &&(&str, &str)| !planted(Bug::SettingsNotPinned) || !RENDERING.contains(&pin.0);
    let is_general = |pin: &&(&str, &str)| !special.iter().any(|(name, _)| *name == pin.0);
    let values: Vec<String> = PINS
        .iter()
        .filter(renders)
        .filter(is_general)
        .chain(special)
        .chain(&[("lock_timeout", lock_timeout.as_str())])
        .map(|(name, value)| format!("({}, {})", quote_literal(name), quote_literal(value)))
        .collect();
    format!(
        "SELECT pg_catalog.count(pg_catalog.set_config(s.name, pin.value, false)), \
         pg_catalog.pg_backend_pid() FROM pg_catalog.pg_settings AS s JOIN (VALUES {}) AS pin (name, value) \
         ON s.name OPERATOR(pg_catalog.=) pin.name \
         WHERE s.name OPERATOR(pg_catalog.<>) '{CONNECTION_CHECK}' \
         OR pg_catalog.version() OPERATOR(pg_catalog.~) 'linux'",
        values.join(", ")
    )
}

/// Logged in, and neither pinned nor watched.
struct SqlSession {
    client: Client,
    task: JoinHandle<()>,
    silence: Arc<Silence>,
    admission: Arc<Admission>,
}

struct SqlLogin<'a> {
    endpoint: &'a Endpoint,
}

impl Login for SqlLogin<'_> {
    type Session = SqlSession;

    async fn log_in(
        &self,
        stream: ServerStream,
        url: &ConnectionUrl,
        password: Option<&SecretString>,
    ) -> Result<Self::Session, ConnFailure> {
        let mut config = tokio_postgres::Config::new();
        config.user(&url.user).dbname(&url.database);
        config.application_name(self.endpoint.effective_application_name());
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        if let Some(options) = &url.options {
            config.options(options);
        }
        config.channel_binding(match url.channel_binding {
            url::ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            url::ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            url::ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        });
        // The stream is encrypted already: "direct" makes the library take it as it is.
        if stream.is_encrypted() {
            config
                .ssl_mode(SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        self.endpoint.tell_certificates(&stream);
        let (silence, admission) = (stream.silence(), stream.admission());
        let connected = config.connect_raw(stream, AlreadyEncrypted).await;
        let (client, connection) = connected.map_err(failure)?;
        let span = tracing::debug_span!("sql session", side = %self.endpoint.side);
        let task = tokio::spawn(drive(connection).instrument(span));
        Ok(SqlSession {
            client,
            task,
            silence,
            admission,
        })
    }

    async fn server_kind(&self, session: &mut Self::Session) -> Result<ServerKind, ConnFailure> {
        let answer = session
            .client
            .simple_query(SERVER_KIND_SQL)
            .await
            .map_err(failure)?;
        row(&answer)
            .and_then(|row| ServerKind::from_row(value(row, 0), value(row, 1)))
            .ok_or_else(no_row)
    }
}

/// The first row of an answer.
fn row(answer: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// A value of it; one that is missing or no text is none, where the library's `get` would panic.
pub(super) fn value(row: &SimpleQueryRow, column: usize) -> Option<&str> {
    row.try_get(column).ok().flatten()
}

fn no_row() -> ConnFailure {
    ConnFailure::Protocol("no row where one was asked for".to_owned())
}

/// Carries bytes between client and server until either ends.
async fn drive(mut connection: Connection<ServerStream, ServerStream>) {
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            // The text may hold values of rows (RAISE NOTICE in a trigger): only the code is logged.
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!(sqlstate = notice.code().code(), "notice from the server");
            }
            Ok(_) => {}
            Err(error) => {
                // Whoever waits for an answer gets "connection closed"; the reason is known only here.
                tracing::warn!(reason = %failure(error), "session lost");
                return;
            }
        }
    }
}

/// What went wrong during login, in our words.
pub(super) fn failure(error: tokio_postgres::Error) -> ConnFailure {
    if let Some(error) = error.as_db_error() {
        return ConnFailure::Server(error.into());
    }
    if error.is_closed() {
        return ConnFailure::Network(io::ErrorKind::UnexpectedEof.into());
    }
    let text = error.to_string();
    match error
        .into_source()
        .map(|source| source.downcast::<io::Error>())
    {
        Some(Ok(io)) if text.starts_with("authentication") => {
            ConnFailure::Authentication(AuthError::Scram(io.to_string()))
        }
        Some(Ok(io)) => ConnFailure::from_io(*io),
        Some(Err(source)) => match source.to_string().as_str() {
            "password missing" => ConnFailure::Authentication(AuthError::PasswordMissing),
            "server did not use channel binding" => {
                ConnFailure::Authentication(AuthError::ChannelBindingMissing)
            }
            "unsupported authentication method" => {
                ConnFailure::Authentication(AuthError::Method("GSSAPI or SSPI".to_owned()))
            }
            "unsupported SASL mechanism" => ConnFailure::Authentication(AuthError::Method(
                "an unknown SASL mechanism".to_owned(),
            )),
            other => ConnFailure::Protocol(format!("{text}: {other}")),
        },
        None => ConnFailure::Protocol(text),
    }
}

/// Hands over a stream on which TLS is already spoken.
struct AlreadyEncrypted;

impl TlsConnect<ServerStream> for AlreadyEncrypted {
    type Stream = ServerStream;
    type Error = Infallible;
    type Future = Ready<Result<ServerStream, Infallible>>;

    fn connect(self, stream: ServerStream) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for ServerStream {
    fn channel_binding(&self) -> ChannelBinding {
        match self.end_point_hash() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}
