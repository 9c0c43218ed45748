//! What a logical replication stream says, one message at a time.
//!
//! ```text
//!  Begin … Commit                                     a transaction, sent once it committed
//!  (StreamStart … StreamStop)… StreamCommit | Abort   one sent while it runs, in segments
//!  BeginPrepare … Prepare, then CommitPrepared | RollbackPrepared
//!  (StreamStart … StreamStop)… StreamPrepare, then the same
//! ```
//!
//! Inside a segment each message names the (sub)transaction it belongs to: there
//! `xid` is set, elsewhere it is `None`. Times are microseconds since 2000-01-01 UTC.

use bytes::Bytes;
use std::fmt;

use crate::pg::{Change, Lsn, Relation, TypeName};

/// Content of a logical message. It is the user's: `Debug` shows its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "payload[{}]", self.0.len())
    }
}

/// One message of pgoutput, protocol 1 to 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// When it committed.
        commit_time_us: i64,
        /// Its id.
        xid: u32,
    },
    /// The transaction begun last is complete.
    Commit {
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// Where its commit record ends: the position that counts as applied.
        end_lsn: Lsn,
        /// When it committed.
        commit_time_us: i64,
    },
    /// The transaction came to the source by replication from elsewhere.
    Origin {
        /// Its commit on that server, where the source knows it.
        commit_lsn: Option<Lsn>,
        /// The origin's name on the source.
        name: String,
    },
    /// What rows of a table look like from here on.
    Relation {
        /// Set inside a stream segment.
        xid: Option<u32>,
        /// The table.
        relation: Relation,
    },
    /// The name of a type that is not built in.
    Type {
        /// Set inside a stream segment.
        xid: Option<u32>,
        /// Its object id on the source.
        oid: u32,
        /// Its name on the source.
        name: TypeName,
    },
    /// A change of rows.
    Change {
        /// Set inside a stream segment.
        xid: Option<u32>,
        /// The change.
        change: Change,
    },
    /// A message of `pg_logical_emit_message`.
    Logical {
        /// Set inside a stream segment.
        xid: Option<u32>,
        /// Part of a transaction, or sent at once.
        transactional: bool,
        /// Where it lies.
        lsn: Lsn,
        /// Whom it is for.
        prefix: String,
        /// What it says.
        content: Payload,
    },
    /// A segment of a running transaction begins.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// Nothing of this transaction was sent before on this connection.
        first_segment: bool,
    },
    /// The segment is over.
    StreamStop,
    /// A transaction sent in segments committed.
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// Where its commit record ends.
        end_lsn: Lsn,
        /// When it committed.
        commit_time_us: i64,
    },
    /// A transaction sent in segments, or a part of it, rolled back.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// What rolled back: a subtransaction, or `xid` for all of it.
        subxid: u32,
        /// Where; only under protocol 4 with parallel streaming, and not after a crash.
        abort_lsn: Option<Lsn>,
        /// When; only under protocol 4 with parallel streaming.
        abort_time_us: Option<i64>,
    },
    /// A prepared transaction begins.
    BeginPrepare {
        /// Where its prepare record begins.
        prepare_lsn: Lsn,
        /// Where its prepare record ends.
        end_lsn: Lsn,
        /// When it was prepared.
        prepare_time_us: i64,
        /// Its id.
        xid: u32,
        /// The name the user gave it.
        gid: String,
    },
    /// The transaction begun last is complete, and prepared.
    Prepare {
        /// Where its prepare record begins.
        prepare_lsn: Lsn,
        /// Where its prepare record ends.
        end_lsn: Lsn,
        /// When it was prepared.
        prepare_time_us: i64,
        /// Its id.
        xid: u32,
        /// The name the user gave it.
        gid: String,
    },
    /// A prepared transaction committed.
    CommitPrepared {
        /// Where the record of COMMIT PREPARED begins.
        commit_lsn: Lsn,
        /// Where it ends.
        end_lsn: Lsn,
        /// When it committed.
        commit_time_us: i64,
        /// Its id.
        xid: u32,
        /// The name the user gave it.
        gid: String,
    },
    /// A prepared transaction rolled back.
    RollbackPrepared {
        /// Where its prepare record ends.
        prepare_end_lsn: Lsn,
        /// Where the record of ROLLBACK PREPARED ends.
        rollback_end_lsn: Lsn,
        /// When it was prepared.
        prepare_time_us: i64,
        /// When it rolled back.
        rollback_time_us: i64,
        /// Its id.
        xid: u32,
        /// The name the user gave it.
        gid: String,
    },
    /// A transaction sent in segments is complete, and prepared.
    StreamPrepare {
        /// Where its prepare record begins.
        prepare_lsn: Lsn,
        /// Where its prepare record ends.
        end_lsn: Lsn,
        /// When it was prepared.
        prepare_time_us: i64,
        /// Its id.
        xid: u32,
        /// The name the user gave it.
        gid: String,
    },
}
