//! The one owner of a running pipeline.
//!
//! ```text
//!  starting ─▶ (standby) ─▶ copying ─▶ catching_up ─▶ streaming
//!     ▲                        │            │             │
//!     └──── delay, jittered ◀──┴── failed, or waiting ◀───┘   any error: everything is
//!                                                             dropped and begun again
//! ```
//!
//! An attempt owns all its connections; when it ends, for whatever reason, they go, and the
//! next one learns from the replica's books where to go on. So there is one way to recover,
//! and it is the way every start takes.

mod batch_size;
mod copy_watch;
mod copying;
mod cut;
mod delivery;
mod door;
mod durability;
mod error;
mod errors_watch;
mod exhaustion;
mod follow;
#[cfg(test)]
mod fuzz;
mod in_hand;
mod lacks;
mod lag;
mod look;
mod mapped_table;
mod memory;
mod pace;
mod publication_watch;
mod quarantine;
mod receipts;
mod receive;
mod relations;
mod resume;
mod rhythm;
mod settings;
mod shutdown_watch;
#[cfg(test)]
mod simulation;
mod slot_making;
mod slot_watch;
mod source_connection;
mod source_history;
mod start;
mod streamed;
mod supervise;
mod tables;
mod trouble;
mod watch;

pub use cut::{Cut, CutAsker, CutError, Cuts, HeldCut, cuts};
pub use error::PipelineError;
pub use lacks::{Lack, replica_lacks, source_lacks};
pub use look::partial_publication;
pub use resume::{SourceHistory, resume_position};
pub use settings::{RetrySettings, SlotBudget, Spending};
pub use source_history::ask_history;
pub use supervise::supervise;
pub use tables::{PlanProblem, PlannedTable, TablePlan, fetch_plan, survey_tables};

use crate::conn::Endpoint;
use crate::{apply, mapping, snapshot};
use std::time::Duration;

/// What a pipeline is made of.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// Its name; the books on the replica are kept under it.
    pub name: String,
    /// The database that is read.
    pub source: Endpoint,
    /// The database that is kept in step.
    pub replica: Endpoint,
    /// The publication that is followed.
    pub publication: String,
    /// The replication slot.
    pub slot: String,
    /// Whether the slot is to survive a failover of the source.
    pub failover: bool,
    /// Sessions with the replica at most.
    pub replica_pool_max: usize,
    /// How long making a slot may wait for an open transaction of the source; 0: for ever.
    pub slot_lock_timeout_ms: u32,
    /// What becomes of each table.
    pub mapping: mapping::Settings,
    /// `[copy]`.
    pub copy: snapshot::Settings,
    /// `[apply]`.
    pub apply: apply::Settings,
    /// `[retry]`.
    pub retry: RetrySettings,
    /// `[slot]`.
    pub slot_budget: SlotBudget,
    /// How long the slot stays behind the replica.
    pub holdback: Duration,
}

impl PipelineConfig {
    /// Bytes that may wait between source and replica: what memory allows beside the batch in
    /// hand, its parameters and the message being sent.
    fn queue_bytes_max(&self) -> usize {
        let batch = 2 * self.apply.batch_bytes_max;
        self.apply
            .memory_max
            .saturating_sub(batch)
            .clamp(1 << 20, 8 << 20)
    }
}
