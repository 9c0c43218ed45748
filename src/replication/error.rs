//! What can go wrong between us and a walsender, and what the operator can do about it.

use crate::conn::{ConnError, ErrorResponse, TOO_MUCH, WireError};
use crate::faults::Fault;
use crate::pg::Disposition;
use std::fmt;
use std::io;
use std::time::Duration;

/// What was being asked of the source when it said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `IDENTIFY_SYSTEM`.
    IdentifySystem,
    /// `TIMELINE_HISTORY`.
    TimelineHistory,
    /// `CREATE_REPLICATION_SLOT`.
    CreateSlot,
    /// `ALTER_REPLICATION_SLOT`.
    AlterSlot,
    /// `DROP_REPLICATION_SLOT`.
    DropSlot,
    /// `START_REPLICATION`.
    StartReplication,
    /// The stream, once it runs.
    Stream,
    /// SQL over the replication connection.
    Query,
    /// Slots and publications, over an SQL session.
    Catalog,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IdentifySystem => "identifying the system",
            Self::TimelineHistory => "reading the history of timelines",
            Self::CreateSlot => "creating the replication slot",
            Self::AlterSlot => "altering the replication slot",
            Self::DropSlot => "dropping the replication slot",
            Self::StartReplication => "starting replication",
            Self::Stream => "streaming changes",
            Self::Query => "running a query on the replication connection",
            Self::Catalog => "reading slots and publications",
        })
    }
}

/// Replication cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// No connection.
    #[error("{0}")]
    Connect(ConnError),
    /// The connection broke.
    #[error("lost the connection to the source: {0}")]
    Lost(io::Error),
    /// The source ended the stream in good order, as it does when it shuts down.
    #[error("the source ended the replication stream")]
    Ended,
    /// The source said no.
    #[error("{request} failed on the source: {error}")]
    Server {
        /// What was asked.
        request: Request,
        /// What it answered.
        error: Box<ErrorResponse>,
    },
    /// The source left changes out because their publication was not there when they were written.
    #[error("streaming changes left some out on the source: {0}")]
    PublicationSkipped(String),
    /// The source sent what the protocol does not have at this place.
    #[error("the source does not follow the replication protocol: {0}")]
    Protocol(String),
    /// A message beyond any that PostgreSQL sends.
    #[error(
        "the source announces a message of kind 0x{tag:02X} with {bytes} bytes, the limit is {limit}"
    )]
    TooLarge {
        /// The message's first byte.
        tag: u8,
        /// Its announced length.
        bytes: usize,
        /// What is accepted at this stage.
        limit: usize,
    },
    /// The source did not answer.
    #[error("{request} took longer than {} s", .after.as_secs())]
    Timeout {
        /// What was asked.
        request: Request,
        /// How long we waited.
        after: Duration,
    },
    /// Asked of a server that is too old for it.
    #[error("{what} needs PostgreSQL {since} or later on the source, which has {}", .server_version_num / 10_000)]
    Unsupported {
        /// The option.
        what: &'static str,
        /// The first major version that has it.
        since: u32,
        /// The source's version.
        server_version_num: u32,
    },
}

impl From<Fault> for ReplicationError {
    fn from(fault: Fault) -> Self {
        Self::Lost(io::Error::other(fault))
    }
}

impl ReplicationError {
    /// The source's answer to a request.
    pub(super) fn server(request: Request, error: ErrorResponse) -> Self {
        Self::Server {
            request,
            error: Box::new(error),
        }
    }

    /// Whether the same work may pass later.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect(error) => error.disposition(),
            Self::Lost(_) | Self::Ended | Self::Timeout { .. } => Disposition::Transient,
            Self::Server { error, .. } => match error.code.as_str() {
                // No free slot, and WAL that is gone: classes 53 and 58, but waiting does not help.
                "53400" | "58P01" => Disposition::Definite,
                _ => error.disposition(),
            },
            Self::PublicationSkipped(_)
            | Self::Protocol(_)
            | Self::TooLarge { .. }
            | Self::Unsupported { .. } => Disposition::Definite,
        }
    }

    /// Whether the session is gone: cut off, ended by an administrator or with its server.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        match self {
            Self::Lost(_) | Self::Ended | Self::Timeout { .. } => true,
            Self::Server { error, .. } => error.code.starts_with("57P0"),
            _ => false,
        }
    }

    /// The SQLSTATE, where the source gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { error, .. } => Some(&error.code),
            Self::Connect(error) => error.code(),
            _ => None,
        }
    }

    /// One line for the operator.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Connect(error) if error.code() == Some("42501") => {
                let role = crate::pg::quote_ident(error.user());
                format!(
                    "the role may not replicate: ALTER ROLE {role} REPLICATION (on RDS: GRANT \
                     rds_replication TO {role}); or it may not connect: {}",
                    error.advice()
                )
            }
            Self::Connect(error) => error.advice(),
            Self::Lost(_) | Self::Ended => {
                "it is tried again; see the source's log if it persists".into()
            }
            Self::Server { request, error } => server_advice(*request, error),
            Self::PublicationSkipped(_) => PUBLICATION_MISSING.into(),
            Self::Protocol(_) | Self::TooLarge { .. } => {
                "check that [source] url leads to PostgreSQL itself and not to a pooler".into()
            }
            Self::Timeout {
                request: Request::CreateSlot,
                ..
            } => "a slot waits for transactions that were open before it: end them, or wait".into(),
            Self::Timeout { .. } => "see the source's log".into(),
            Self::Unsupported { .. } => "upgrade the source, or do without the option".into(),
        }
    }
}

/// Changes are read by the catalogue as it was when they were written.
const PUBLICATION_MISSING: &str = "the publication was not there under its name when changes were \
     written: CREATE PUBLICATION … FOR TABLE …, as `pglockstep setup` prints, if it is still missing; \
     the slot cannot go beyond these changes: `pglockstep rebase --force --apply` has every table merged \
     under a new one";

fn server_advice(request: Request, error: &ErrorResponse) -> String {
    use Request::{CreateSlot, StartReplication, Stream};
    match (error.code.as_str(), request) {
        ("55006", _) => "another session uses the slot: stop the other daemon, or wait until \
             wal_sender_timeout ends a session that is gone (SELECT pg_terminate_backend(active_pid) \
             FROM pg_replication_slots)",
        ("55000", CreateSlot) => {
            "logical decoding is off: ALTER SYSTEM SET wal_level = logical, then restart the source"
        }
        ("55000" | "58P01", _) => {
            "the slot can no longer be read (its WAL is gone, it was invalidated, or it belongs to \
             another database): `pglockstep rebase`, and raise max_slot_wal_keep_size"
        }
        ("42704", StartReplication) => {
            "the slot is missing: it was dropped, or lost in a failover: `pglockstep rebase`"
        }
        ("42704", Stream) => PUBLICATION_MISSING,
        ("22021" | "22P05", Stream) => {
            "a value of the source has no form in UTF8, in which it is sent (a database of encoding \
             SQL_ASCII takes any bytes): correct it there; the slot cannot go beyond it: `pglockstep \
             rebase --force --apply` has every table merged under a new one"
        }
        // Nothing else in the stream computes with values.
        (code, Stream) if code.starts_with("22") => {
            "a row filter of the publication fails for a row: ALTER PUBLICATION … SET TABLE … WHERE a \
             condition that cannot fail; the slot reads what was written by the old one: `pglockstep \
             rebase --force --apply` has every table merged under a new slot"
        }
        ("42710", CreateSlot) => "a slot of this name exists: choose another name, or drop it",
        ("42501" | "28000", _) => {
            "the role may not replicate: ALTER ROLE … REPLICATION (on RDS: GRANT rds_replication)"
        }
        ("53400", _) => "all slots are taken: drop unused ones, or raise max_replication_slots and restart",
        ("53300", _) => "all walsenders are busy: raise max_wal_senders and restart, or wait",
        ("55P03", CreateSlot) => {
            "the slot waits for transactions that were open before it: end them, and it is tried again"
        }
        ("0A000", _) => "the source does not support what is asked; see its message",
        ("XX000", Stream) => {
            "the source cannot decode its own log from here; its server log says why. If that does not \
             pass by itself: `pglockstep rebase --force --apply` has every table merged under a new slot"
        }
        ("57P01" | "57P02" | "57P03", _) => "the source is stopping or starting; it is tried again",
        _ => "see the source's log",
    }
    .to_owned()
}

impl From<WireError> for ReplicationError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(error) => Self::Lost(error),
            WireError::TooLarge { tag, bytes, limit } => Self::TooLarge { tag, bytes, limit },
            WireError::TooMuch => Self::Protocol(TOO_MUCH.to_owned()),
            WireError::Malformed(why) => Self::Protocol(why),
        }
    }
}

/// An error of a query on an SQL session.
pub(super) fn catalog_error(error: &tokio_postgres::Error) -> ReplicationError {
    match error.as_db_error() {
        Some(db) => ReplicationError::server(Request::Catalog, db.into()),
        None => ReplicationError::Lost(io::Error::other(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(request: Request, code: &str) -> ReplicationError {
        let error = ErrorResponse {
            severity: "ERROR".into(),
            code: code.into(),
            message: "m".into(),
            detail: None,
            hint: None,
        };
        ReplicationError::server(request, error)
    }

    #[test]
    fn what_may_be_tried_again() {
        use Disposition::{Definite, Transient};
        for (request, code, expected, advice) in [
            (
                Request::StartReplication,
                "55006",
                Transient,
                "another session",
            ),
            (
                Request::StartReplication,
                "42704",
                Definite,
                "slot is missing",
            ),
            (Request::Stream, "42704", Definite, "CREATE PUBLICATION"),
            (Request::Stream, "22012", Definite, "row filter"),
            (Request::Stream, "22021", Definite, "UTF8"),
            (
                Request::CreateSlot,
                "55000",
                Definite,
                "wal_level = logical",
            ),
            (Request::StartReplication, "55000", Definite, "rebase"),
            (Request::Stream, "58P01", Definite, "rebase"),
            (Request::Stream, "XX000", Definite, "rebase --force"),
            (
                Request::CreateSlot,
                "53400",
                Definite,
                "max_replication_slots",
            ),
            (Request::CreateSlot, "55P03", Transient, "tried again"),
            (Request::CreateSlot, "42501", Definite, "REPLICATION"),
            (Request::Stream, "57P01", Transient, "tried again"),
        ] {
            let error = server(request, code);
            assert_eq!(error.disposition(), expected, "{code}");
            assert!(
                error.advice().contains(advice),
                "{code}: {}",
                error.advice()
            );
        }
    }
}
