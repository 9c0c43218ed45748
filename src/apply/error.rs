//! Why a batch could not be applied.

use super::array::ElementError;
use super::statement::ShapeError;
use crate::faults::Fault;
use crate::mapping::TableMapping;
use crate::pg::{Disposition, QualifiedName, ServerError};
use crate::progress::ProgressError;

/// Applying failed; the replica's transaction is rolled back.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A statement on a replica table failed.
    #[error("cannot {what} rows of the replica table {table}")]
    Statement {
        /// The replica table.
        table: QualifiedName,
        /// What was being done.
        what: &'static str,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
    /// BEGIN, COMMIT, ROLLBACK or a setting failed.
    #[error("cannot {what} on the replica")]
    Transaction {
        /// What was being done.
        what: &'static str,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
    /// No statement can be written for the change.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The position could not be moved, or belongs to another daemon now.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// A conflict, and `on_conflict = stop`.
    #[error("conflict {kind} on the replica table {table}, and its on_conflict is stop")]
    Conflict {
        /// The replica table.
        table: QualifiedName,
        /// PostgreSQL's name of the conflict.
        kind: &'static str,
    },
    /// The row an update belongs to is missing, and the stream does not hold all of it.
    #[error(
        "the replica table {table} lacks a row that the source updated, and the source did not send its unchanged TOASTed columns: set REPLICA IDENTITY FULL on the source table, so that it sends them from then on, and copy the table again"
    )]
    IncompleteRow {
        /// The replica table.
        table: QualifiedName,
    },
    /// A row was neither there nor written, or found more than once.
    #[error(
        "{what} on the replica table {table} touched {touched} rows instead of one: look for duplicate keys, and for triggers, rules or row security that hide or swallow rows"
    )]
    RowCount {
        /// The replica table.
        table: QualifiedName,
        /// What was being done.
        what: &'static str,
        /// Rows that were touched.
        touched: u64,
    },
    /// A value that cannot be handed to the replica.
    #[error("a value for the replica table {table} cannot be written: {why}")]
    Value {
        /// The replica table.
        table: QualifiedName,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Tables cannot be emptied.
    #[error("cannot truncate {tables} on the replica")]
    Truncate {
        /// The replica tables.
        tables: String,
        /// One of them.
        first: Option<QualifiedName>,
        /// The server's refusal, or the lost connection.
        #[source]
        source: ServerError,
    },
}

impl From<Fault> for ApplyError {
    fn from(fault: Fault) -> Self {
        Self::Transaction {
            what: "go on",
            source: fault.into(),
        }
    }
}

impl ApplyError {
    pub(crate) fn statement(
        mapping: &TableMapping,
        what: &'static str,
        error: tokio_postgres::Error,
    ) -> Self {
        Self::Statement {
            table: mapping.replica.clone(),
            what,
            source: error.into(),
        }
    }

    pub(crate) fn transaction(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self::Transaction {
            what,
            source: error.into(),
        }
    }

    pub(crate) fn value(mapping: &TableMapping, error: &ElementError) -> Self {
        let why = match error {
            ElementError::Unsent => {
                "the source did not send it (a TOASTed key, or unchanged TOAST)"
            }
            ElementError::OtherFormat => {
                "the source sent it in another format, text or binary, than was asked for"
            }
            ElementError::NoArray => "its type is an array on the replica and none on the source",
            ElementError::TooLarge => "it is larger than a parameter can be",
        };
        Self::Value {
            table: mapping.replica.clone(),
            why,
        }
    }

    /// Whether the session with the replica is gone.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        match self {
            Self::Statement { source, .. }
            | Self::Transaction { source, .. }
            | Self::Truncate { source, .. } => source.is_session_lost(),
            Self::Progress(error) => error.is_session_lost(),
            _ => false,
        }
    }

    /// The replica table that it is about.
    #[must_use]
    pub fn table(&self) -> Option<&QualifiedName> {
        match self {
            Self::Statement { table, .. }
            | Self::Conflict { table, .. }
            | Self::IncompleteRow { table }
            | Self::RowCount { table, .. }
            | Self::Value { table, .. } => Some(table),
            Self::Truncate { first, .. } => first.as_ref(),
            // The server may name another table than the one that was written.
            _ => None,
        }
    }

    /// The replica's code, where it refused.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Statement { source, .. }
            | Self::Transaction { source, .. }
            | Self::Truncate { source, .. } => source.sqlstate(),
            _ => None,
        }
    }

    /// Whether it is about one row, which going through them one by one finds.
    pub(crate) fn is_about_a_row(&self) -> bool {
        self.disposition() == Disposition::Definite
            && matches!(self, Self::Statement { .. } | Self::Value { .. })
    }

    /// Whether another form of the values may pass, or a row is to be told by its values; a
    /// privilege that is missing is no matter of values, nor is what passes by itself.
    #[must_use]
    pub fn may_be_about_values(&self) -> bool {
        match self.sqlstate() {
            // What receive functions say to bytes that they cannot read.
            Some("08P01" | "XX000") => true,
            Some("42501") => false,
            _ => self.disposition() == Disposition::Definite,
        }
    }

    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Statement { source, .. }
            | Self::Transaction { source, .. }
            | Self::Truncate { source, .. } => source.disposition(),
            Self::Progress(error) => error.disposition(),
            Self::Shape(_)
            | Self::Conflict { .. }
            | Self::IncompleteRow { .. }
            | Self::RowCount { .. }
            | Self::Value { .. } => Disposition::Definite,
        }
    }

    /// Whether the replica objected to the way, and not to us: source order may pass.
    pub(crate) fn may_pass_in_source_order(&self) -> bool {
        match self {
            Self::Statement { source, .. } => {
                // Integrity constraints only: anything else fails in any order.
                source.sqlstate().is_some_and(|code| code.starts_with("23"))
            }
            Self::RowCount { .. } => true,
            _ => false,
        }
    }

    /// The table of which an update was refused by a unique or an exclusion constraint.
    pub(crate) fn update_refused_by_index(&self) -> Option<&QualifiedName> {
        match self {
            Self::Statement {
                table,
                what: "update",
                source,
            } => matches!(source.sqlstate(), Some("23505" | "23P01")).then_some(table),
            _ => None,
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self.sqlstate()? {
            "42501" => {
                "grant the daemon's role the missing privilege; `pglockstep setup` prints the SQL"
            }
            "42P01" | "42703" | "42883" => {
                "the replica's schema has changed: bring it back in line with the mapping; or a function there (of a CHECK, a trigger, an index) looks for it without its schema, and our search_path is empty: ALTER FUNCTION … SET search_path"
            }
            "23505" => {
                "another row of the replica holds the value: remove or change it, or copy the table again; where the source swaps values within a statement, make the replica's constraint DEFERRABLE"
            }
            "23503" => {
                "allow the role to SET session_replication_role, or make the foreign key DEFERRABLE"
            }
            "23502" | "23514" | "23P01" => {
                "the replica's constraint is stricter than the source's: relax it"
            }
            "22001" | "22003" => "widen the replica's column to what the source's holds",
            "428C9" => "make the identity column GENERATED BY DEFAULT on the replica",
            "0A000" => {
                "another table refers to one of these by a foreign key, and is outside the mapping or set aside: map it too, mend it, or drop the foreign key"
            }
            _ => return None,
        })
    }
}
