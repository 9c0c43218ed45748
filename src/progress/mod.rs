//! How far the replica is, where that is kept, and what the source may be told of it.
//!
//! ```text
//!            received ≥ applied ≥ flushed ≥ what the slot confirms
//!
//!  table:    init ──▶ copying ──▶ copied at LSN ──▶ ready
//!                        │         ▲   (applied < LSN: catching up)
//!                        └──▶ init │   after an interruption
//!                                  ├──▶ quarantined   a change could not be applied: it and
//!                                  │                  all after it are kept
//!                                  └──▶ resync        wanted by an operator: merged again
//! ```
//!
//! The position lives in the replica, in the transaction of the data it speaks of. It is
//! keyed by what identifies the slot's history: the source's system, its database, the
//! slot and the LSN at which the slot was born. `copied` is durable together with the
//! snapshot's LSN; transactions that committed before it are already in the copy, and
//! the apply passes them by for that table. `ready` is no state of its own: it is
//! `copied` once the applied position is beyond.

mod advance;
mod door;
mod errors;
mod holdback;
mod kept;
mod position;
mod parts;
mod proofs;
mod rebase;
mod resync;
mod schema;
mod set_aside;
mod store;
mod table_state;
mod verifications;

pub use door::Holder;
pub use errors::{BookedError, ErrorState, Failure, Request};
pub use holdback::Holdback;
pub use kept::{KeptChange, KeptRow};
pub use parts::Part;
pub use position::{Durability, Feedback, Positions};
pub use proofs::{KeptProof, Proof, TableHistory};
pub use schema::{BOOKKEEPING_SCHEMA, BOOKKEEPING_TABLES, LAST_ADDITION, bookkeeping_sql};
pub use set_aside::SetAside;
pub use store::{PipelineIdentity, PipelineRecord, ProgressError, Store};
pub use table_state::{TableRecord, TableState};
pub use verifications::{Verification, VerificationRequest};
