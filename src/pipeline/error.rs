//! Why a pipeline stopped, whether to try again, and what an operator can do.

use crate::apply::ApplyError;
use crate::catalog::CatalogError;
use crate::conn::ConnError;
use crate::pg::{Disposition, Lsn};
use crate::pgoutput::DecodeError;
use crate::progress::ProgressError;
use crate::replication::{ReplicationError, SlotNameError};
use crate::snapshot::SnapshotError;
use crate::telemetry::ErrorCategory;

/// A pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A connection failed.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// The source's replication protocol failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The slot's name is none.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// The stream cannot be read.
    #[error("the source's stream cannot be decoded")]
    Decode(#[from] DecodeError),
    /// The stream said something that makes no sense where it was said.
    #[error("the source's stream is out of order: {0}")]
    OutOfOrder(&'static str),
    /// A catalogue could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The bookkeeping failed.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// The first copy failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Changes could not be applied.
    #[error("cannot apply the changes up to {at}")]
    Apply {
        /// The end of the batch.
        at: Lsn,
        /// Why.
        #[source]
        source: ApplyError,
    },
    /// The apply session could not be set up, or a mapping's SQL does not pass.
    #[error(transparent)]
    Prepare(ApplyError),
    /// Tables and rules do not go together.
    #[error("the mapping does not fit: {}", problems.join("\n  - "))]
    Mapping {
        /// One sentence each.
        problems: Vec<String>,
    },
    /// An expression or filter that the source refuses.
    #[error("the source cannot evaluate the mapping of {table}")]
    Select {
        /// The source table.
        table: String,
        /// The server's refusal.
        #[source]
        source: crate::pg::ServerError,
    },
    /// Something about source, slot or replica that has to be put right by a person.
    #[error("{message}")]
    Definite {
        /// What is the matter.
        message: String,
        /// What to do.
        advice: String,
    },
    /// A state of affairs that is likely to pass.
    #[error("{0}")]
    Waiting(String),
    /// Tables joined the publication: the pipeline starts again and copies them.
    #[error("{0} has joined the publication: starting again to copy it")]
    TableJoined(String),
    /// A table left the publication: what it misses is not in the stream.
    #[error(
        "{0} has left the publication: starting again without it; when it comes back it is copied anew"
    )]
    TableLeft(String),
    /// The task that receives ended without a word.
    #[error("the receiver ended unexpectedly")]
    ReceiverGone,
}

impl PipelineError {
    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Conn(error) => error.disposition(),
            Self::Replication(error) => error.disposition(),
            Self::Catalog(error) => error.disposition(),
            Self::Progress(error) => error.disposition(),
            Self::Snapshot(error) => error.disposition(),
            Self::Apply { source, .. } | Self::Prepare(source) => source.disposition(),
            Self::Select { source, .. } => source.disposition(),
            Self::Waiting(_) | Self::TableJoined(_) | Self::TableLeft(_) | Self::ReceiverGone => {
                Disposition::Transient
            }
            Self::Decode(_)
            | Self::OutOfOrder(_)
            | Self::SlotName(_)
            | Self::Mapping { .. }
            | Self::Definite { .. } => Disposition::Definite,
        }
    }

    /// The commit of the source that cannot be applied until somebody does something.
    pub(crate) fn stuck_at(&self) -> Option<Lsn> {
        match self {
            Self::Apply { at, source } if source.disposition() == Disposition::Definite => {
                Some(*at)
            }
            _ => None,
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Conn(error) => Some(error.advice()),
            Self::Replication(error) => Some(error.advice()),
            Self::Apply { source, .. } | Self::Prepare(source) => {
                source.advice().map(str::to_owned)
            }
            Self::Definite { advice, .. } => Some(advice.clone()),
            Self::Select { .. } => {
                Some("mend the `set` and `where` expressions of the table's rule".to_owned())
            }
            Self::Decode(_) | Self::OutOfOrder(_) => Some(
                "report this with both server versions; nothing was applied from the message on"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Where it is counted.
    #[must_use]
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Conn(_) | Self::Replication(_) | Self::Waiting(_) => ErrorCategory::Network,
            Self::Mapping { .. } | Self::Select { .. } => ErrorCategory::Mapping,
            Self::Definite { .. } | Self::SlotName(_) => ErrorCategory::Validation,
            Self::Decode(_)
            | Self::OutOfOrder(_)
            | Self::TableJoined(_)
            | Self::TableLeft(_)
            | Self::ReceiverGone => ErrorCategory::System,
            Self::Catalog(_)
            | Self::Progress(_)
            | Self::Snapshot(_)
            | Self::Apply { .. }
            | Self::Prepare(_) => ErrorCategory::Database,
        }
    }
}
