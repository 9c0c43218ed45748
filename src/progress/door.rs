//! The door: an advisory lock of the replica, held by the session that applies.
//!
//! It only keeps others waiting. It may be lost without notice; who owns the pipeline is
//! decided by the epoch (`store.rs`).

use super::{ProgressError, Store};
use std::fmt;
use tokio_postgres::Client;

/// The session that holds the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The server's process.
    pub pid: i32,
    /// The client's address; `None` for a socket, or where this role may not see it.
    pub address: Option<String>,
    /// What it waits for on the server, if for anything but its client.
    pub waits_for: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(address) = &self.address {
            write!(f, " from {address}")?;
        }
        if let Some(what) = &self.waits_for {
            write!(f, ", which waits for {what}")?;
        }
        Ok(())
    }
}

impl Store {
    /// Queues for the pipeline: true when this session now holds its lock.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn try_lock(client: &Client, pipeline: &str) -> Result<bool, ProgressError> {
        let sql = "SELECT pg_catalog.pg_try_advisory_lock(\
                   pg_catalog.hashtextextended('pglockstep/' || $1, 0))";
        let row = client
            .query_one(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("lock"))?;
        Ok(row.get(0))
    }

    /// Who holds the pipeline's lock. (Its number is in two halves: lockfuncs.c.)
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_holder(
        client: &Client,
        pipeline: &str,
    ) -> Result<Option<Holder>, ProgressError> {
        let sql = "SELECT l.pid, pg_catalog.host(a.client_addr), \
                   CASE WHEN a.wait_event_type <> 'Client' \
                   THEN a.wait_event_type || ' ' || a.wait_event END \
                   FROM pg_catalog.pg_locks AS l \
                   JOIN pg_catalog.pg_database AS d ON d.oid = l.database \
                   LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid \
                   WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
                   AND d.datname = pg_catalog.current_database() \
                   AND (l.classid::int8 << 32) | l.objid::int8 \
                   = pg_catalog.hashtextextended('pglockstep/' || $1, 0)";
        let row = client
            .query_opt(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("look who holds the lock"))?;
        Ok(row.map(|row| Holder {
            pid: row.get(0),
            address: row.get(1),
            waits_for: row.get(2),
        }))
    }
}
