//! pglockstep keeps a replica PostgreSQL database in lockstep with a master one.
//!
//! ```text
//!  source                                                                      replica
//!  walsender ─▶ replication ─▶ pgoutput ─▶ pipeline ─▶ mapping ─▶ apply ─▶ DELETE, UPDATE, COPY … COMMIT
//!                CopyBoth       Message     Batch       shapes     net effect       │
//!                   ▲                                                               ▼
//!                   └───────────── feedback ◀── progress ◀── position (same transaction)
//!
//!  in progress: segments ─▶ a session of its own, an open transaction ─▶ position, COMMIT when the source's does
//!
//!  exported snapshot ─▶ snapshot ─▶ mapping (in the SELECT list) ─▶ COPY out ─▶ COPY in ─▶ table at its LSN
//! ```
//!
//! The modules below are the rooms, in the order in which data flows. A room looks
//! up this list only, never down, and never in a circle; `tests/architecture.rs`
//! holds the imports against that rule.
//!
//! What is always true:
//!
//! 1. Progress lives in the replica, in the same transaction as the data, and moves
//!    only at commit boundaries. A transaction is applied if its end is beyond it.
//! 2. The slot never runs ahead of what is durable on the replica; on connect a slot
//!    that is ahead is a gap, and stops the pipeline.
//! 3. A keepalive is acknowledged only when nothing received is unapplied.
//! 4. Each apply transaction proves its ownership: it updates the progress row under
//!    its epoch and must touch exactly one row.
//! 5. Readers of the replica see a prefix of the source's commit order.
//! 6. Values are bytes: passed through, never parsed, never logged.
//! 7. Nothing is dropped silently: unknown messages, row counts that differ, values that
//!    cannot be written are events with a policy.
//! 8. Unchanged TOAST cannot become NULL: no function turns one into the other.
//! 9. The source is only read.
//! 10. Every queue has a bound in bytes.
//! 11. What was received is applied, kept out, set aside, discarded, or in hand: counted by each of those
//!     apart, and held against each other every second.

/// Places where the tests make the work fail, and mistakes they plant; nothing in a release.
pub mod faults;
/// The nouns: `Lsn`, `Relation`, `Tuple`, `Change`, names and their quoting. No I/O.
pub mod pg;
/// What the daemon tells of itself: the `Status`, every metric's name, logging.
pub mod telemetry;
/// Threads with a reactor of their own.
pub mod reactor;
/// Opens SQL sessions, and raw ones for bytes that are only passed on: URL, TLS, pinned settings,
/// pools, the read-only guard on the source;
/// notices those that fall silent, refuses poolers.
pub mod conn;
/// Reads a database's catalogue into nouns.
pub mod catalog;
/// The source side: publication, slot, the replication protocol, the stream.
pub mod replication;
/// Bytes of the stream to messages; pure.
pub mod pgoutput;
/// From a source table to its replica table: names, columns, expressions, filter; pure.
pub mod mapping;
/// The books on the replica: positions, table states, errors, changes that are kept, proofs.
pub mod progress;
/// The first copy at one consistent point.
pub mod snapshot;
/// The replica side: batch, net effect, statement shapes, the transaction, conflicts, what became of each change.
pub mod apply;
/// The one owner of a running pipeline: receives, batches, applies, retries.
pub mod pipeline;
/// Compares source and replica at a cut, table by table.
pub mod verify;
/// Checks that yield findings with remedies.
pub mod preflight;
/// The replica's own integrity: orphans, duplicates, what it lacks, who else may write.
pub mod diagnose;
/// Mends what a comparison or a diagnosis found, at a cut: the plan, its bounds, what was before.
pub mod repair;
/// The daemon's proving and mending: what is asked for, and what is due.
pub mod upkeep;
/// What a person reads once a day: counts side by side, drift, relationships, since when in step.
pub mod sync_report;
/// Endpoints: they read, and hold no logic.
pub mod http;
/// The file's shape, then the validated configuration; secrets.
pub mod config;
/// Builds the rooms, spawns the tasks, owns the order of shutdown.
pub mod daemon;
/// Two throw-away clusters with a live workload: the main job, to look at.
pub mod demo;
/// The verbs, thin.
pub mod cli;

#[cfg(all(feature = "faults", not(debug_assertions)))]
compile_error!("the feature `faults` is for tests, and no release can be built with it");
