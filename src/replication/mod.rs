//! The source side: publication, slot, the replication protocol, the stream.
//!
//! ```text
//!  Endpoint ─▶ ReplicationConnection ─ create_slot ─▶ ExportedSnapshot ─▶ (first copy)
//!                    │      ▲
//!                  start   stop
//!                    ▼      │
//!              ReplicationStream ─ receive ─▶ XLogData (pgoutput's bytes), Keepalive
//!                    ▲
//!                    └ send_status ─ StandbyStatusUpdate: what is durable on the replica
//!
//!  protocol: messages inside CopyData, pure      (conn: logs in, frames, bounded)
//!  slot, publication: what the catalogue says of them, over an SQL session
//! ```
//!
//! Invariants: nothing is lost when a future is dropped; a length is checked before memory is
//! taken for it; no bytes of a server make this panic; no value of a row is logged.

mod connection;
mod error;
mod protocol;
mod publication;
mod slot;
mod slot_holder;
mod stream;
#[cfg(test)]
mod wire_fuzz;

pub use connection::{ReplicationConnection, Row, SystemIdentity};
pub use error::{ReplicationError, Request};
pub use protocol::{
    MessageError, PrimaryKeepalive, ReplicationMessage, StandbyStatusUpdate, XLogData, pg_time_us,
};
pub use publication::{Publication, PublishedTable, fetch_publication, fetch_published_tables};
pub use slot::{
    ExportedSnapshot, ReplicationSlot, SlotName, SlotNameError, SlotOptions, SlotUser,
    SlotWalStatus, create_slot, drop_slot, end_dead_user, fetch_slot, keep_on_standbys,
};
pub use slot_holder::{HolderSession, SlotHolder, fetch_slot_holder};
pub use stream::{OriginFilter, ReplicationStream, StreamOptions, Streaming, protocol_version_max};
