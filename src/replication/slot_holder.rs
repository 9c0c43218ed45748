//! Who holds up a slot: it waits for every transaction that was open before it.

use super::error::{ReplicationError, catalog_error};
use super::slot::SlotName;
use std::fmt;
use std::time::Duration;
use tokio_postgres::{Client, Row};

/// A transaction that a slot waits for before it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHolder {
    /// Whose it is.
    pub session: HolderSession,
    /// How long it has been open; who is neither superuser nor `pg_read_all_stats` sees that of
    /// own sessions only.
    pub open_for: Option<Duration>,
}

/// Where a transaction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderSession {
    /// In a session.
    Backend {
        /// Its process, for `pg_terminate_backend`.
        pid: i32,
        /// Its role.
        role: Option<String>,
        /// Its database: any of the server's.
        database: Option<String>,
    },
    /// In none: prepared for a commit in two phases.
    Prepared {
        /// Its identifier, for `ROLLBACK PREPARED`.
        gid: String,
    },
}

/// Without its age, so that the same holder has the same words.
impl fmt::Display for SlotHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.session {
            HolderSession::Prepared { gid } => write!(f, "the prepared transaction {gid:?}"),
            HolderSession::Backend {
                pid,
                role,
                database,
            } => {
                write!(f, "the transaction of pid {pid}")?;
                match (role, database) {
                    (Some(role), Some(database)) => write!(f, " ({role} in {database})"),
                    (Some(one), None) | (None, Some(one)) => write!(f, " ({one})"),
                    (None, None) => Ok(()),
                }
            }
        }
    }
}

// A slot that is being made is there already, and in use by the walsender that makes it. Process 0
// stands for a prepared transaction, which is known by the number that is waited for.
const FETCH_HOLDER: &str = "\
SELECT b.pid, a.usename::text, a.datname::text, p.gid::text,
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - COALESCE(a.xact_start, p.prepared))
  FROM pg_catalog.pg_replication_slots AS s
 CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(s.active_pid)) AS b(pid)
  LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = b.pid
  LEFT JOIN pg_catalog.pg_locks AS w
         ON b.pid = 0 AND w.pid = s.active_pid AND w.locktype = 'transactionid' AND NOT w.granted
  LEFT JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = w.transactionid
 WHERE s.slot_name = $1::text AND (b.pid <> 0 OR p.gid IS NOT NULL)
 ORDER BY 5 DESC NULLS LAST
 LIMIT 1";

/// Which transaction holds up a slot that is being made: of several, the one that is open longest.
///
/// # Errors
/// [`ReplicationError`] when the query fails.
pub async fn fetch_slot_holder(
    client: &Client,
    name: &SlotName,
) -> Result<Option<SlotHolder>, ReplicationError> {
    let row = client.query_opt(FETCH_HOLDER, &[&name.as_str()]).await;
    row.and_then(|row| row.as_ref().map(holder).transpose())
        .map_err(|error| catalog_error(&error))
}

fn holder(row: &Row) -> Result<SlotHolder, tokio_postgres::Error> {
    let gid: Option<String> = row.try_get(3)?;
    let seconds: Option<f64> = row.try_get(4)?;
    Ok(SlotHolder {
        session: match gid {
            Some(gid) => HolderSession::Prepared { gid },
            None => HolderSession::Backend {
                pid: row.try_get(0)?,
                role: row.try_get(1)?,
                database: row.try_get(2)?,
            },
        },
        // The servers' clocks may jump.
        open_for: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_named_by_what_ends_it() {
        let of = |role: Option<&str>, database: Option<&str>| {
            let session = HolderSession::Backend {
                pid: 42,
                role: role.map(str::to_owned),
                database: database.map(str::to_owned),
            };
            SlotHolder {
                session,
                open_for: Some(Duration::from_secs(9)),
            }
            .to_string()
        };
        let whole = of(Some("app"), Some("shop"));
        assert_eq!(whole, "the transaction of pid 42 (app in shop)");
        assert_eq!(of(Some("app"), None), "the transaction of pid 42 (app)");
        assert_eq!(of(None, None), "the transaction of pid 42");
    }
}
