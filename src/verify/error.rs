//! Why nothing could be compared.

use crate::conn::ConnError;
use crate::pg::{QualifiedName, ServerError};
use crate::pipeline::{CutError, PipelineError};
use crate::progress::ProgressError;
use crate::snapshot::SnapshotError;

/// Nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No cut.
    #[error("source and replica cannot be held at one position")]
    Cut(#[from] CutError),
    /// No session.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// What takes part could not be learned.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The books could not be read.
    #[error(transparent)]
    Books(#[from] ProgressError),
    /// A snapshot could not be entered.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A server did not answer.
    #[error("a table cannot be read")]
    Reading(#[source] ServerError),
    /// No such table takes part.
    #[error("{0} is no table of the publication that a rule maps")]
    UnknownTable(QualifiedName),
}

impl VerifyError {
    pub(super) fn reading(error: tokio_postgres::Error) -> Self {
        Self::Reading(error.into())
    }
}
