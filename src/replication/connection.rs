//! `ReplicationConnection`: a walsender of the source that also answers SQL.
//!
//! ```text
//!  connect ─▶ ReplicationConnection ─ start ─▶ ReplicationStream
//!                ▲   IDENTIFY_SYSTEM, slots, SQL      │
//!                └───────────── stop ─────────────────┘
//! ```
//!
//! No published client speaks CopyBoth, so this one does: on postgres-protocol's
//! messages, over the same sockets, TLS and login walk as SQL sessions.

use super::error::{ReplicationError, Request};
use crate::conn::{
    self, Backend, ConnFailure, ConnectionUrl, Endpoint, ErrorResponse, Incoming, Login, Pulse,
    SERVER_KIND_SQL, ServerKind, ServerParameters, ServerStream, Session, Silence, Wire, log_in,
};
use crate::pg::Lsn;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use secrecy::SecretString;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// Values of one row, as text.
pub type Row = Vec<Option<String>>;

/// A session with a walsender, bound to one database, pinned and read-only as SQL sessions are.
pub struct ReplicationConnection {
    pub(super) wire: Wire,
    silence: Arc<Silence>,
    /// None until pinned: the login has a limit of its own.
    pulse: Option<Pulse>,
    parameters: ServerParameters,
    server_version_num: u32,
    wal_sender_timeout: Option<Duration>,
}

/// Which history a position belongs to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SystemIdentity {
    /// Given to a cluster by `initdb`; the same on its standbys.
    pub system_id: String,
    /// Moves on with every promotion.
    pub timeline: u32,
    /// How far the log is flushed.
    pub wal_position: Lsn,
    /// The database this connection is bound to.
    pub database: String,
}

impl ReplicationConnection {
    /// Opens a session for logical replication.
    ///
    /// # Errors
    /// [`ReplicationError::Connect`] with every server that was tried, or what the source
    /// answered when the session was pinned.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, ReplicationError> {
        let mut connection = conn::connect(endpoint, &ReplicationLogin { endpoint })
            .await
            .map_err(ReplicationError::Connect)?;
        let limit = endpoint.url.connect_timeout;
        let pinned = timeout(limit, connection.pin(endpoint)).await;
        pinned.map_err(|_| ReplicationError::Timeout {
            request: Request::Query,
            after: limit,
        })??;
        Ok(connection)
    }

    /// What the server reported at login: `server_version`, `in_hot_standby`, …
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// As `server_version_num`: 150018 for 15.18.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// After how long a silent client is cut off; `None` for never.
    #[must_use]
    pub fn wal_sender_timeout(&self) -> Option<Duration> {
        self.wal_sender_timeout
    }

    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// [`ReplicationError`], also when the answer is not one.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.run(Request::IdentifySystem, "IDENTIFY_SYSTEM").await?;
        let identity = || {
            let [system_id, timeline, position, database] =
                <[_; 4]>::try_from(rows.into_iter().next()?).ok()?;
            Some(SystemIdentity {
                system_id: system_id?,
                timeline: timeline?.parse().ok()?,
                wal_position: position?.parse().ok()?,
                database: database?,
            })
        };
        identity().ok_or_else(|| {
            ReplicationError::Protocol("IDENTIFY_SYSTEM was not answered by one system".to_owned())
        })
    }

    /// How far the source's log can be read: what commits from here on lies beyond it.
    ///
    /// # Errors
    /// [`ReplicationError`], also when the answer is none.
    pub async fn readable_end(&mut self) -> Result<Lsn, ReplicationError> {
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() \
             THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END";
        let rows = self.simple_query(sql).await?;
        let end = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        let end = end.flatten().and_then(|end| end.parse().ok());
        end.ok_or_else(|| ReplicationError::Protocol("a source that has no log".to_owned()))
    }

    /// Where `timeline` was left for another, by the history of the timeline `now`; `None` where
    /// that history does not know it. (Protocol: `TIMELINE_HISTORY`; the file's form: timeline.c.)
    ///
    /// # Errors
    /// [`ReplicationError`], also when the source has lost the history file.
    pub async fn timeline_left_at(
        &mut self,
        timeline: u32,
        now: u32,
    ) -> Result<Option<Lsn>, ReplicationError> {
        let command = format!("TIMELINE_HISTORY {now}");
        let rows = self.run(Request::TimelineHistory, &command).await?;
        let content = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1));
        Ok(left_at(&content.flatten().unwrap_or_default(), timeline))
    }

    /// Runs SQL, or a command of the replication protocol; rows of all statements in order.
    ///
    /// # Errors
    /// [`ReplicationError::Server`] when the source refuses it: the connection is usable
    /// afterwards. After any other error it is not.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        self.run(Request::Query, sql).await
    }

    /// From here on transactions in progress are sent in segments for which the source holds at
    /// most so many bytes; unless an operator has set another limit, for the server or the role.
    ///
    /// # Errors
    /// As of [`simple_query`](Self::simple_query).
    pub async fn limit_segments(&mut self, bytes: u32) -> Result<(), ReplicationError> {
        let sql = format!(
            "SELECT pg_catalog.set_config(name, '{}kB', false) FROM pg_catalog.pg_settings \
             WHERE name OPERATOR(pg_catalog.=) 'logical_decoding_work_mem' \
             AND source OPERATOR(pg_catalog.=) 'default'",
            bytes / 1024
        );
        self.simple_query(&sql).await.map(drop)
    }

    /// Takes leave of the server, which would otherwise find out by itself.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.wire.write);
        // A server that is gone need not be told.
        let _ = timeout(Duration::from_secs(1), self.wire.send()).await;
    }

    pub(super) async fn run(
        &mut self,
        request: Request,
        sql: &str,
    ) -> Result<Vec<Row>, ReplicationError> {
        let unsendable = |error: io::Error| ReplicationError::Protocol(error.to_string());
        frontend::query(sql, &mut self.wire.write).map_err(unsendable)?;
        self.wire.send().await?;
        let mut rows = Vec::new();
        let mut refused = None;
        self.wire.begin_answer();
        loop {
            match self.next().await? {
                Incoming::Message(Message::DataRow(body)) => rows.push(row(&body)?),
                Incoming::Message(Message::ErrorResponse(body)) => {
                    let error = ErrorResponse::from_wire(body.fields()).without_values();
                    // FATAL: no ReadyForQuery will follow.
                    if error.severity != "ERROR" {
                        return Err(ReplicationError::server(request, error));
                    }
                    refused.get_or_insert(error);
                }
                Incoming::Message(Message::ReadyForQuery(_)) => break,
                Incoming::Message(message) => self.note(message)?,
                Incoming::CopyBoth | Incoming::CopyData(_) => {
                    return Err(ReplicationError::Protocol(
                        "a stream in place of an answer".to_owned(),
                    ));
                }
            }
        }
        match refused {
            Some(error) => Err(ReplicationError::server(request, error)),
            None => Ok(rows),
        }
    }

    /// The next message of an answer. An answer may take long, a dead connection is noticed.
    pub(super) async fn next(&mut self) -> Result<Incoming, ReplicationError> {
        let Some(pulse) = &self.pulse else {
            return Ok(self.wire.next().await?);
        };
        tokio::select! {
            biased;
            incoming = self.wire.next() => Ok(incoming?),
            why = pulse.lost() => Err(ReplicationError::Lost(io::Error::new(io::ErrorKind::TimedOut, why))),
        }
    }

    /// Messages that may come between any others.
    pub(super) fn note(&mut self, message: Message) -> Result<(), ReplicationError> {
        match message {
            Message::ParameterStatus(body) => {
                if let (Ok(name), Ok(value)) = (body.name(), body.value())
                    && let Some(known) = self.parameters.get_mut(name)
                {
                    value.clone_into(known);
                }
                Ok(())
            }
            Message::NoticeResponse(body) => {
                let notice = ErrorResponse::from_wire(body.fields());
                tracing::debug!(sqlstate = notice.code, "notice from the source");
                Ok(())
            }
            Message::RowDescription(_)
            | Message::CommandComplete(_)
            | Message::EmptyQueryResponse
            | Message::NotificationResponse(_) => Ok(()),
            _ => Err(ReplicationError::Protocol(
                "a message out of place".to_owned(),
            )),
        }
    }

    /// Settings as for every SQL session, and what the version decides later.
    async fn pin(&mut self, endpoint: &Endpoint) -> Result<(), ReplicationError> {
        let sql = format!(
            "{}; SET client_min_messages = warning; \
             SELECT pg_catalog.current_setting('server_version_num'), (SELECT setting \
             FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) 'wal_sender_timeout')",
            conn::pins_sql(Session::SourceRead, endpoint.lock_timeout_ms)
        );
        let rows = self.simple_query(&sql).await?;
        let facts = rows.get(1).map(Vec::as_slice);
        let Some([Some(version), Some(timeout_ms)]) = facts else {
            return Err(ReplicationError::Protocol(
                "no server_version_num".to_owned(),
            ));
        };
        let wrong = |_| ReplicationError::Protocol("server_version_num is not a number".to_owned());
        self.server_version_num = version.parse().map_err(wrong)?;
        let timeout_ms = timeout_ms.parse().map_err(wrong)?;
        let pid = rows
            .first()
            .and_then(|row| row.get(1)?.as_ref()?.parse().ok());
        self.wire.stream().admission().admit();
        self.pulse = pid.map(|pid| Pulse::new(endpoint.clone(), pid, Arc::clone(&self.silence)));
        self.wal_sender_timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
        Ok(())
    }
}

impl std::fmt::Debug for ReplicationConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationConnection")
            .field("server_version_num", &self.server_version_num)
            .finish_non_exhaustive()
    }
}

fn row(body: &DataRowBody) -> Result<Row, ReplicationError> {
    let value = |range: Option<std::ops::Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
    };
    body.ranges()
        .map(value)
        .collect()
        .map_err(|error: io::Error| {
            ReplicationError::Protocol(format!("a row that is none: {error}"))
        })
}

struct ReplicationLogin<'a> {
    endpoint: &'a Endpoint,
}

impl Login for ReplicationLogin<'_> {
    type Session = ReplicationConnection;

    async fn log_in(
        &self,
        stream: ServerStream,
        url: &ConnectionUrl,
        password: Option<&SecretString>,
    ) -> Result<ReplicationConnection, ConnFailure> {
        self.endpoint.tell_certificates(&stream);
        let silence = stream.silence();
        let application_name = self.endpoint.effective_application_name();
        let mut wire = Wire::new(stream);
        let backend = Backend::Walsender;
        let parameters = log_in(&mut wire, url, password, application_name, backend).await?;
        Ok(ReplicationConnection {
            wire,
            silence,
            pulse: None,
            parameters,
            server_version_num: 0,
            wal_sender_timeout: None,
        })
    }

    async fn server_kind(
        &self,
        session: &mut ReplicationConnection,
    ) -> Result<ServerKind, ConnFailure> {
        let answer = session
            .simple_query(SERVER_KIND_SQL)
            .await
            .map_err(|error| match error {
                ReplicationError::Server { error, .. } => ConnFailure::Server(*error),
                ReplicationError::Lost(error) => ConnFailure::from_io(error),
                other => ConnFailure::Protocol(other.to_string()),
            })?;
        let kind = match answer.first().map(Vec::as_slice) {
            Some([recovery, read_only]) => {
                ServerKind::from_row(recovery.as_deref(), read_only.as_deref())
            }
            _ => None,
        };
        kind.ok_or_else(|| ConnFailure::Protocol("no row where one was asked for".to_owned()))
    }
}

/// A line for each timeline that was left: its number, where, why.
fn left_at(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        let at = words.next()?.parse().ok()?;
        (number == timeline).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::left_at;

    #[test]
    fn a_history_file() {
        let history =
            "# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t1/5000\tbefore 2026\n";
        assert_eq!(left_at(history, 1), "0/3000148".parse().ok());
        assert_eq!(left_at(history, 2), "1/5000".parse().ok());
        assert_eq!(left_at(history, 3), None);
        assert_eq!(left_at("", 1), None);
    }
}
