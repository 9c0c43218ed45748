//! Why a copy ended, whether to try again, and what an operator can do.

use crate::conn::ConnError;
use crate::faults::Fault;
use crate::pg::{Disposition, QualifiedName, ServerError};
use crate::progress::ProgressError;

/// Copying failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A source table cannot be read.
    #[error("cannot copy out of {table}")]
    CopyOut {
        /// The source table.
        table: QualifiedName,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
    /// Its rows moved after the snapshot was taken, which then finds none of them.
    #[error("{table} was rewritten or truncated while it waited for its copy")]
    Rewritten {
        /// The source table.
        table: QualifiedName,
    },
    /// A statement on a replica table failed.
    #[error("cannot {what} {table}")]
    Table {
        /// The replica table.
        table: QualifiedName,
        /// What was being done.
        what: &'static str,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
    /// The source's snapshot cannot be taken over.
    #[error("cannot use the exported snapshot on the source")]
    Snapshot(#[source] ServerError),
    /// No connection.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// The bookkeeping failed.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// Rows are there, and nothing says what to do with them.
    #[error(
        "the replica tables {} already hold rows: set existing_rows to \"merge\" or \"truncate\" for them, or empty them", tables.join(", ")
    )]
    HasRows {
        /// The replica tables.
        tables: Vec<String>,
    },
    /// A merge without a key to merge by.
    #[error(
        "the replica table {table} already holds rows and has no key to merge by: set existing_rows to \"truncate\", or name a `key`"
    )]
    MergeNeedsKey {
        /// The replica table.
        table: QualifiedName,
    },
    /// What would be dropped could not be made again.
    #[error(
        "copy.indexes is \"after\", and this role could drop but not build again {name} of {table}"
    )]
    MayNotBuild {
        /// The replica table.
        table: QualifiedName,
        /// The index or constraint.
        name: String,
    },
    /// An index or constraint that was dropped for the copy cannot be made again.
    #[error(
        "cannot build {name} of {table} again, which was dropped for the copy; its definition is in the replica's pglockstep.set_aside"
    )]
    NotBuilt {
        /// The replica table.
        table: QualifiedName,
        /// The index or constraint.
        name: String,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
    /// A worker ended by a panic; what that says may be a row's value, so it is left to the log.
    #[error("a copy worker ended unexpectedly")]
    Worker,
    /// No thread for a session that copies.
    #[error("a thread that copies cannot be started")]
    Thread(#[source] std::io::Error),
}

impl From<Fault> for SnapshotError {
    fn from(fault: Fault) -> Self {
        Self::Progress(fault.into())
    }
}

impl SnapshotError {
    pub(crate) fn on<E: Into<ServerError>>(
        table: &QualifiedName,
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        let table = table.clone();
        move |error| Self::Table {
            table,
            what,
            source: error.into(),
        }
    }

    pub(crate) fn copy_out(table: &QualifiedName) -> impl FnOnce(ServerError) -> Self {
        let table = table.clone();
        move |source| Self::CopyOut { table, source }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Table { source, .. } if source.sqlstate() == Some("23503") => Some(
                "a row refers to one that comes later: GRANT SET ON PARAMETER session_replication_role to the daemon's role (15 and newer), or make the foreign key DEFERRABLE INITIALLY DEFERRED",
            ),
            Self::MayNotBuild { .. } => Some(
                "let the daemon's role own the table, GRANT it CREATE on the table's schema and REFERENCES on tables referred to, or set copy.indexes to \"keep\"",
            ),
            Self::NotBuilt { .. } => Some(
                "correct what it complains of, on the source where that has the same rows: the copy then begins anew; only where it is never wanted any more, DELETE its row FROM pglockstep.set_aside",
            ),
            _ => None,
        }
    }

    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Table { source, .. }
            | Self::CopyOut { source, .. }
            | Self::NotBuilt { source, .. } => source.disposition(),
            // The exporting session is gone: the next attempt exports anew.
            Self::Snapshot(_) | Self::Rewritten { .. } | Self::Worker | Self::Thread(_) => {
                Disposition::Transient
            }
            Self::Conn(error) => error.disposition(),
            Self::Progress(error) => error.disposition(),
            Self::HasRows { .. } | Self::MergeNeedsKey { .. } | Self::MayNotBuild { .. } => {
                Disposition::Definite
            }
        }
    }
}
