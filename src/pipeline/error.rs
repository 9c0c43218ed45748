//! Why a pipeline stopped, whether to try again, and what an operator can do.

use crate::apply::ApplyError;
use crate::catalog::CatalogError;
use crate::conn::ConnError;
use crate::faults::Fault;
use crate::pg::{Disposition, Lsn, Side};
use crate::pgoutput::DecodeError;
use crate::progress::ProgressError;
use crate::replication::{HolderSession, ReplicationError, SlotHolder, SlotNameError};
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
    #[error("cannot apply the {} {at}", if *is_alone { "transaction committed at" } else { "transactions up to the one committed at" })]
    Apply {
        /// The commit record of the last transaction of the batch.
        at: Lsn,
        /// There is no other in the batch.
        is_alone: bool,
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
    /// A role lacks privileges, or rows are hidden from it.
    #[error("{}", messages.join("; "))]
    Lacking {
        /// One sentence each.
        messages: Vec<String>,
        /// The SQL that helps.
        advice: String,
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
    /// The configuration names something that cannot be used, such as a file with a connection string.
    #[error("{message}")]
    Configuration {
        /// What is the matter.
        message: String,
        /// What to do.
        advice: String,
    },
    /// A state of affairs that is likely to pass.
    #[error("{0}")]
    Waiting(String),
    /// A transaction of the source has held up the making of a slot for too long.
    #[error("the slot is not made before {holder} has ended")]
    SlotHeld {
        /// Whose it is.
        holder: Box<SlotHolder>,
        /// The server's word.
        #[source]
        source: ReplicationError,
    },
    /// A table was set aside; the others go on.
    #[error("{table} is set aside, the others go on")]
    SetAside {
        /// The source table.
        table: String,
        /// Why.
        #[source]
        source: Box<PipelineError>,
    },
    /// Tables could not be copied again.
    #[error("{tables} could not be copied again, and are as they were")]
    ResyncFailed {
        /// The source tables.
        tables: String,
        /// Why.
        #[source]
        source: Box<PipelineError>,
    },
    /// An operator has left something to do.
    #[error("starting again, as an operator wants something done")]
    Requested,
    /// A transaction in progress cannot be applied as it runs, and why.
    #[error(
        "a transaction cannot be applied while it runs ({0}): starting again, each is taken when it has committed"
    )]
    TakeWhole(String),
    /// Values cannot be applied in binary, and why.
    #[error("values cannot be applied in binary ({0}): starting again, they are read as text")]
    TakeText(String),
    /// The source does not answer on the stream.
    #[error(
        "the source has said nothing for {} s though it was asked: the connection is taken for dead", .0.as_secs()
    )]
    SourceSilent(std::time::Duration),
    /// While nothing was to be written.
    #[error("the session with the replica is lost")]
    ReplicaLost,
    /// The source waits for us to end, and in vain.
    #[error(
        "the source shuts down, and what it has sent does not become durable here: it is let go"
    )]
    SourceShutsDown,
    /// The publication leaves kinds of changes out: they are in no stream.
    #[error("{message}")]
    Narrowed {
        /// What it leaves out.
        message: String,
        /// What to do.
        advice: String,
    },
    /// Tables joined the publication: the pipeline starts again and copies them.
    #[error("{0} has joined the publication: starting again to copy it")]
    TableJoined(String),
    /// A table left the publication: what it misses is not in the stream.
    #[error(
        "{0} has left the publication, or is published otherwise: starting again; what is published then is copied anew"
    )]
    TableLeft(String),
    /// The task that receives ended without a word.
    #[error("the receiver ended unexpectedly")]
    ReceiverGone,
}

impl From<Fault> for PipelineError {
    fn from(fault: Fault) -> Self {
        Self::Waiting(fault.to_string())
    }
}

impl PipelineError {
    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        if self.is_write_to_source() {
            return Disposition::Definite;
        }
        match self {
            Self::Conn(error) => error.disposition(),
            Self::Replication(error) => error.disposition(),
            Self::Catalog(error) => error.disposition(),
            Self::Progress(error) => error.disposition(),
            Self::Snapshot(error) => error.disposition(),
            Self::Apply { source, .. } | Self::Prepare(source) => source.disposition(),
            Self::Select { source, .. } => source.disposition(),
            Self::Waiting(_)
            | Self::SlotHeld { .. }
            | Self::TableJoined(_)
            | Self::TableLeft(_)
            | Self::SetAside { .. }
            | Self::ResyncFailed { .. }
            | Self::Requested
            | Self::TakeWhole(_)
            | Self::TakeText(_)
            | Self::SourceSilent(_)
            | Self::SourceShutsDown
            | Self::ReplicaLost
            | Self::ReceiverGone => Disposition::Transient,
            Self::Decode(_)
            | Self::OutOfOrder(_)
            | Self::SlotName(_)
            | Self::Mapping { .. }
            | Self::Lacking { .. }
            | Self::Configuration { .. }
            | Self::Narrowed { .. }
            | Self::Definite { .. } => Disposition::Definite,
        }
    }

    /// The side whose session is gone, or could not be had.
    pub(crate) fn lost_side(&self) -> Option<Side> {
        let on_replica = |is_lost: bool| is_lost.then_some(Side::Replica);
        match self {
            Self::Conn(error)
            | Self::Snapshot(SnapshotError::Conn(error))
            | Self::Replication(ReplicationError::Connect(error)) => Some(error.side()),
            Self::SourceSilent(_) | Self::SourceShutsDown => Some(Side::Source),
            Self::ReplicaLost => Some(Side::Replica),
            Self::Replication(error) if error.is_session_lost() => Some(Side::Source),
            Self::Snapshot(
                SnapshotError::CopyOut { source, .. } | SnapshotError::Snapshot(source),
            ) if source.is_session_lost() => Some(Side::Source),
            Self::Snapshot(SnapshotError::Progress(error)) => on_replica(error.is_session_lost()),
            Self::Snapshot(
                SnapshotError::Table { source, .. } | SnapshotError::NotBuilt { source, .. },
            ) => on_replica(source.is_session_lost()),
            Self::Apply { source, .. } | Self::Prepare(source) => {
                on_replica(source.is_session_lost())
            }
            Self::Progress(error) => on_replica(error.is_session_lost()),
            _ => None,
        }
    }

    /// An expression or filter of ours made the source refuse a write.
    pub(crate) fn is_write_to_source(&self) -> bool {
        let source = match self {
            Self::Select { source, .. } | Self::Snapshot(SnapshotError::CopyOut { source, .. }) => {
                source
            }
            _ => return false,
        };
        source.sqlstate() == Some("25006")
    }

    /// Nothing is wrong with either side: the next attempt may come at once.
    pub(crate) fn is_only_a_new_beginning(&self) -> bool {
        matches!(
            self,
            Self::SetAside { .. }
                | Self::ResyncFailed { .. }
                | Self::Requested
                | Self::TakeWhole(_)
                | Self::TakeText(_)
        )
    }

    /// The commit record up to which applying failed for good, and whether its transaction was
    /// alone in the batch.
    pub(crate) fn failed_at(&self) -> Option<(Lsn, bool)> {
        match self {
            Self::Apply {
                at,
                is_alone,
                source,
            } if source.disposition() == Disposition::Definite => Some((*at, *is_alone)),
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
            Self::ResyncFailed { source, .. } => source.advice(),
            Self::SlotHeld { holder, .. } => Some(match &holder.session {
                HolderSession::Backend { pid, .. } => format!(
                    "end it, or wait: it is tried again; on the source: SELECT pg_terminate_backend({pid})"
                ),
                HolderSession::Prepared { .. } => {
                    "end it with COMMIT PREPARED or ROLLBACK PREPARED, in its database".to_owned()
                }
            }),
            Self::SetAside { source, .. } => {
                let advice = source.advice().map(|advice| advice + "; ").unwrap_or_default();
                Some(format!("{advice}then `pglockstep errors retry`, or `pglockstep resync` the table"))
            }
            _ if self.is_write_to_source() => Some(
                "a `set` or `where` expression calls a function that writes, and the source is only read: take it out"
                    .to_owned(),
            ),
            Self::Snapshot(error) => error.advice().map(str::to_owned),
            Self::Definite { advice, .. } | Self::Narrowed { advice, .. } | Self::Configuration { advice, .. } | Self::Lacking { advice, .. } => Some(advice.clone()),
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
            Self::Conn(error)
            | Self::Snapshot(SnapshotError::Conn(error))
            | Self::Replication(ReplicationError::Connect(error))
                if error.is_refused_login() =>
            {
                ErrorCategory::Authentication
            }
            Self::Lacking { .. } => ErrorCategory::Authentication,
            Self::Conn(_)
            | Self::Waiting(_)
            | Self::SourceSilent(_)
            | Self::SourceShutsDown
            | Self::ReplicaLost => ErrorCategory::Network,
            _ if self.lost_side().is_some() => ErrorCategory::Network,
            Self::Mapping { .. } | Self::Select { .. } => ErrorCategory::Mapping,
            Self::Definite { .. }
            | Self::Narrowed { .. }
            | Self::Configuration { .. }
            | Self::SlotName(_) => ErrorCategory::Validation,
            Self::Decode(_)
            | Self::OutOfOrder(_)
            | Self::TableJoined(_)
            | Self::TableLeft(_)
            | Self::Requested
            | Self::TakeWhole(_)
            | Self::TakeText(_)
            | Self::ReceiverGone => ErrorCategory::System,
            Self::Replication(error) if error.code().is_none() => ErrorCategory::Network,
            Self::Replication(_)
            | Self::Catalog(_)
            | Self::Progress(_)
            | Self::Snapshot(_)
            | Self::SlotHeld { .. }
            | Self::SetAside { .. }
            | Self::ResyncFailed { .. }
            | Self::Apply { .. }
            | Self::Prepare(_) => ErrorCategory::Database,
        }
    }
}
