//! Replication slots: made with an exported snapshot, looked at, dropped.
//!
//! A snapshot lives until the next command on the connection that exported it: a copy lets
//! go of that connection when it is done.

use super::connection::ReplicationConnection;
use super::error::{ReplicationError, Request, catalog_error};
use crate::pg::Lsn;
use std::fmt;
use std::time::Duration;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

/// The name of a slot: 1 to 63 of `a-z`, `0-9` and `_`, so that it needs no quoting anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct SlotName(String);

/// Not the name of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a slot's name is 1 to 63 characters of a-z, 0-9 and _")]
pub struct SlotNameError;

impl std::str::FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(name: &str) -> Result<Self, SlotNameError> {
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if (1..=63).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name.to_owned()))
        } else {
            Err(SlotNameError)
        }
    }
}

impl SlotName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a slot is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotOptions {
    /// Ends with the connection.
    pub temporary: bool,
    /// Is synchronised to standbys; PostgreSQL 17 and later.
    pub failover: bool,
    /// How long to wait for each transaction that is already open; 0 for ever.
    pub lock_timeout_ms: u32,
}

/// The state of the database at the slot's beginning, open to other sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedSnapshot {
    /// For `SET TRANSACTION SNAPSHOT`.
    pub name: String,
    /// Transactions that commit from here on are in the stream and not in the snapshot.
    pub consistent_point: Lsn,
}

/// Creates a pgoutput slot and exports its snapshot.
///
/// # Errors
/// [`ReplicationError`]; a lock time-out is transient (55P03).
pub async fn create_slot(
    connection: &mut ReplicationConnection,
    name: &SlotName,
    options: SlotOptions,
) -> Result<ExportedSnapshot, ReplicationError> {
    let sql = create_slot_sql(connection.server_version_num(), name, options)?;
    // The slot waits for every open transaction; without a bound one forgotten session is enough.
    let bound = format!("SET lock_timeout = '{}ms'", options.lock_timeout_ms);
    connection.run(Request::CreateSlot, &bound).await?;
    let rows = connection.run(Request::CreateSlot, &sql).await?;
    let snapshot = || {
        let mut values = rows.into_iter().next()?.into_iter();
        let consistent_point = values.nth(1)??.parse().ok()?;
        Some(ExportedSnapshot {
            name: values.next()??,
            consistent_point,
        })
    };
    snapshot().ok_or_else(|| ReplicationError::Protocol("a slot without a snapshot".to_owned()))
}

fn create_slot_sql(
    server_version_num: u32,
    name: &SlotName,
    options: SlotOptions,
) -> Result<String, ReplicationError> {
    let temporary = if options.temporary { " TEMPORARY" } else { "" };
    let how = match (server_version_num, options.failover) {
        (..170_000, true) => {
            let what = "a failover slot";
            return Err(ReplicationError::Unsupported {
                what,
                since: 17,
                server_version_num,
            });
        }
        (_, true) => " (SNAPSHOT 'export', FAILOVER true)",
        (150_000.., false) => " (SNAPSHOT 'export')",
        (_, false) => " EXPORT_SNAPSHOT",
    };
    Ok(format!(
        "CREATE_REPLICATION_SLOT \"{name}\"{temporary} LOGICAL pgoutput{how}"
    ))
}

/// Has a slot that nobody uses synchronised to standbys; PostgreSQL 17 and later.
///
/// # Errors
/// [`ReplicationError`]: 42704 if there is none, 55006 if it is in use.
pub async fn keep_on_standbys(
    connection: &mut ReplicationConnection,
    name: &SlotName,
) -> Result<(), ReplicationError> {
    let sql = format!("ALTER_REPLICATION_SLOT \"{name}\" (FAILOVER true)");
    connection.run(Request::AlterSlot, &sql).await.map(drop)
}

/// Drops a slot that nobody uses.
///
/// # Errors
/// [`ReplicationError`]: 42704 if there is none, 55006 if it is in use.
pub async fn drop_slot(
    connection: &mut ReplicationConnection,
    name: &SlotName,
) -> Result<(), ReplicationError> {
    let sql = format!("DROP_REPLICATION_SLOT \"{name}\"");
    connection.run(Request::DropSlot, &sql).await.map(drop)
}

/// `wal_status`: whether the log that a slot needs is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotWalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, kept for the slot.
    Extended,
    /// About to go at the next checkpoint.
    Unreserved,
    /// Gone: the slot is of no use any more.
    Lost,
}

impl SlotWalStatus {
    fn from_catalog(text: &str) -> Option<Self> {
        match text {
            "reserved" => Some(Self::Reserved),
            "extended" => Some(Self::Extended),
            "unreserved" => Some(Self::Unreserved),
            "lost" => Some(Self::Lost),
            _ => None,
        }
    }
}

/// A slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ReplicationSlot {
    /// Its name.
    pub name: String,
    /// The output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// The database it decodes; none for a physical slot.
    pub database: Option<String>,
    /// The walsender that uses it.
    pub active_pid: Option<i32>,
    /// Where the log that it holds back begins.
    pub restart_lsn: Option<Lsn>,
    /// Up to here we said that everything is durable.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Whether its log is still there.
    pub wal_status: Option<SlotWalStatus>,
    /// Bytes of log that may be written before the slot is in danger; none without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of log that the slot holds back.
    pub retained_bytes: Option<u64>,
    /// Why it is of no use any more (PostgreSQL 16 and later).
    pub invalidation_reason: Option<String>,
    /// Whether it ends with its connection.
    pub temporary: bool,
    /// Whether it is synchronised to standbys (PostgreSQL 17 and later).
    pub failover: bool,
}

// Columns that some versions lack are looked up by name in the row's JSON form.
// PostgreSQL 16 tells that a slot is invalid ("conflicting") and not why.
const FETCH_SLOT: &str = "\
SELECT s.slot_name::text, s.plugin::text, s.database::text, s.active_pid, s.restart_lsn,
       s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size,
       pg_catalog.pg_wal_lsn_diff(
           CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn()
                ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::bigint,
       COALESCE(pg_catalog.to_jsonb(s) ->> 'invalidation_reason',
                CASE WHEN pg_catalog.to_jsonb(s) ->> 'conflicting' = 'true'
                     THEN 'invalidated' END),
       s.temporary,
       COALESCE((pg_catalog.to_jsonb(s) ->> 'failover')::boolean, false)
  FROM pg_catalog.pg_replication_slots AS s
 WHERE s.slot_name = $1::text";

/// Looks a slot up; works on PostgreSQL 14 to 18.
///
/// # Errors
/// [`ReplicationError`] when the query fails.
pub async fn fetch_slot(
    client: &Client,
    name: &SlotName,
) -> Result<Option<ReplicationSlot>, ReplicationError> {
    let row = client.query_opt(FETCH_SLOT, &[&name.as_str()]).await;
    let Some(row) = row.map_err(|error| catalog_error(&error))? else {
        return Ok(None);
    };
    let slot = || {
        let lsn = |position| -> Result<Option<Lsn>, tokio_postgres::Error> {
            let raw: Option<PgLsn> = row.try_get(position)?;
            Ok(raw.and_then(|raw| Lsn::from_wire(raw.into())))
        };
        let wal_status: Option<&str> = row.try_get(6)?;
        let retained: Option<i64> = row.try_get(8)?;
        Ok(ReplicationSlot {
            name: row.try_get(0)?,
            plugin: row.try_get(1)?,
            database: row.try_get(2)?,
            active_pid: row.try_get(3)?,
            restart_lsn: lsn(4)?,
            confirmed_flush_lsn: lsn(5)?,
            wal_status: wal_status.and_then(SlotWalStatus::from_catalog),
            safe_wal_bytes: row.try_get(7)?,
            retained_bytes: retained.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            invalidation_reason: row.try_get(9)?,
            temporary: row.try_get(10)?,
            failover: row.try_get(11)?,
        })
    };
    slot().map(Some).map_err(|error| catalog_error(&error))
}

/// A client that lives says so every second.
const LISTEN_FOR: Duration = Duration::from_secs(3);
/// How often a dead client's walsender is told to end, and how soon after another.
const WORDS_MAX: u32 = 20;
const BETWEEN_WORDS: Duration = Duration::from_millis(100);

/// Who holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotUser {
    /// Nobody of our role and name.
    None,
    /// One whose client said something while we listened.
    Alive,
    /// One of whose client this role may see nothing.
    Hidden,
    /// One whose client said nothing: its walsender was ended.
    Ended,
}

/// Listens for a moment, then ends the walsender that holds a slot if it is one of ours of this
/// name whose client has said nothing meanwhile. Without `pg_read_all_stats` nothing is heard,
/// and nothing ended.
///
/// # Errors
/// [`ReplicationError`] when a query fails.
pub async fn end_dead_user(
    client: &Client,
    name: &SlotName,
    application_name: &str,
) -> Result<SlotUser, ReplicationError> {
    // The time of the last word is by the client's own clock: only whether it moves counts.
    let last_word = "SELECT r.pid, r.reply_time::pg_catalog.text, r.state IS NULL \
                     FROM pg_catalog.pg_replication_slots AS s \
                     JOIN pg_catalog.pg_stat_replication AS r ON r.pid = s.active_pid \
                     WHERE s.slot_name = $1::text AND r.usename = current_user \
                     AND r.application_name = $2::text";
    let look = async || {
        let row = client
            .query_opt(last_word, &[&name.as_str(), &application_name])
            .await
            .map_err(|error| catalog_error(&error))?;
        let word = |row: Row| {
            let word: Option<String> = row.get(1);
            (row.get::<_, i32>(0), word, row.get::<_, bool>(2))
        };
        Ok::<_, ReplicationError>(row.map(word))
    };
    let before = look().await?;
    let Some((pid, _, is_hidden)) = &before else {
        return Ok(SlotUser::None);
    };
    if *is_hidden {
        return Ok(SlotUser::Hidden);
    }
    tokio::time::sleep(LISTEN_FOR).await;
    if look().await? != before {
        return Ok(SlotUser::Alive);
    }
    // One that waits for room in its socket waits again to say good-bye, and goes at the second word.
    let end = "SELECT pg_catalog.pg_terminate_backend(s.active_pid) \
               FROM pg_catalog.pg_replication_slots AS s \
               WHERE s.slot_name = $1::text AND s.active_pid = $2";
    for _ in 0..WORDS_MAX {
        let told = client.query_opt(end, &[&name.as_str(), pid]).await;
        if told.map_err(|error| catalog_error(&error))?.is_none() {
            break;
        }
        tokio::time::sleep(BETWEEN_WORDS).await;
    }
    Ok(SlotUser::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(63);
        for name in ["a", "pglockstep_crm", "0_", long.as_str()] {
            assert_eq!(name.parse::<SlotName>().unwrap().as_str(), name);
        }
        for name in ["", "A", "a-b", "a\"b", "ä", &"a".repeat(64)] {
            assert!(name.parse::<SlotName>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_command_follows_the_version() {
        let name = "s".parse().unwrap();
        let sql = |version, temporary, failover| {
            create_slot_sql(
                version,
                &name,
                SlotOptions {
                    temporary,
                    failover,
                    ..Default::default()
                },
            )
        };
        let start = "CREATE_REPLICATION_SLOT \"s\"";
        assert_eq!(
            sql(140_023, false, false).unwrap(),
            format!("{start} LOGICAL pgoutput EXPORT_SNAPSHOT")
        );
        assert_eq!(
            sql(150_000, true, false).unwrap(),
            format!("{start} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')")
        );
        assert_eq!(
            sql(180_004, false, true).unwrap(),
            format!("{start} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)")
        );
        assert!(matches!(
            sql(160_000, false, true),
            Err(ReplicationError::Unsupported { since: 17, .. })
        ));
    }
}
