//! The demo's data set: a CRM on the source, the same CRM in a schema of its own on the replica.
//!
//! ```text
//!  source.sql ──▶ public.* ──── mapping.toml ────▶ crm.* ◀── replica.sql
//!                    ▲                               │
//!  Workload ─────────┘           verify() ◀──────────┘   row by row, as text
//! ```
//!
//! The SQL and the mapping are files, so that `deploy/compose.yaml` and README use the very same.

mod edits;
mod random;
mod steps;
mod verify;
mod workload;

pub use verify::{TableVerdict, VerifyError, verify};
pub use workload::{Counts, Workload, WorkloadError};

/// Types, tables, indexes and rows of the source database.
pub const SOURCE_SQL: &str = include_str!("source.sql");

/// Types, tables and indexes of the replica; no rows.
pub const REPLICA_SQL: &str = include_str!("replica.sql");

/// The `[[tables]]` of the configuration that maps one to the other.
pub const MAPPING_TOML: &str = include_str!("mapping.toml");

/// The source's tables, all in the schema `public`, parents before children.
pub const TABLES: [&str; 7] = [
    "clients",
    "projects",
    "leads",
    "conversations",
    "whatsapp_messages",
    "agent_interaction_logs",
    "lead_status_history",
];

#[cfg(test)]
mod tests;
