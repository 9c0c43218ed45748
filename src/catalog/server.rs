//! Which server and which database is this?

use super::CatalogError;
use crate::pg::Lsn;
use tokio_postgres::Client;

/// What identifies a database, and what it is able to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`, such as 150018.
    pub version_num: u32,
    /// `pg_control_system().system_identifier`, as text; empty where the role may not read it.
    pub system_id: String,
    /// The database's object id.
    pub database_oid: u32,
    /// The database's name.
    pub database: String,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// The role of this session.
    pub role: String,
    /// Whether that role may start replication (superuser, REPLICATION, or a provider's role).
    pub may_replicate: bool,
    /// Whether that role sees what other sessions do: a walsender's client among them.
    pub sees_statistics: bool,
}

impl Server {
    /// The major version: 15 for 15.18.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// Whether both are one and the same database.
    #[must_use]
    pub fn is_same_database(&self, other: &Self) -> bool {
        !self.system_id.is_empty()
            && self.system_id == other.system_id
            && self.database_oid == other.database_oid
    }
}

const SERVER: &str = "
SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
       CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
            THEN (SELECT s.system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system() s)
            ELSE '' END,
       d.oid, d.datname::pg_catalog.text, pg_catalog.current_setting('wal_level'),
       pg_catalog.pg_is_in_recovery(), r.rolname::pg_catalog.text,
       r.rolsuper OR r.rolreplication OR EXISTS (
         SELECT 1 FROM pg_catalog.pg_roles p
         WHERE p.rolname IN ('rds_replication', 'rds_superuser', 'azure_pg_admin', 'cloudsqlsuperuser')
           AND pg_catalog.pg_has_role(r.oid, p.oid, 'USAGE')),
       pg_catalog.pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE')
FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
WHERE d.datname = pg_catalog.current_database() AND r.rolname = CURRENT_USER";

/// Asks a session who its server is.
///
/// # Errors
/// When the query fails.
pub async fn fetch_server(client: &Client) -> Result<Server, CatalogError> {
    let row = client
        .query_one(SERVER, &[])
        .await
        .map_err(CatalogError::reading("server"))?;
    Ok(Server {
        version_num: row.get::<_, i32>(0).unsigned_abs(),
        system_id: row.get(1),
        database_oid: row.get(2),
        database: row.get(3),
        wal_level: row.get(4),
        in_recovery: row.get(5),
        role: row.get(6),
        may_replicate: row.get(7),
        sees_statistics: row.get(8),
    })
}

/// Where a primary's log ends now.
///
/// # Errors
/// When the query fails.
pub async fn fetch_log_end(client: &Client) -> Result<Lsn, CatalogError> {
    let row = client
        .query_one("SELECT pg_catalog.pg_current_wal_insert_lsn()", &[])
        .await
        .map_err(CatalogError::reading("end of the log"))?;
    Ok(row.get(0))
}

/// Whether a transaction still holds the lock on its own number, which it lets go of after its
/// changes can be seen.
///
/// # Errors
/// When the query fails.
pub async fn is_under_way(client: &Client, xid: u32) -> Result<bool, CatalogError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'transactionid' \
               AND transactionid::pg_catalog.text = $1)";
    let row = client.query_one(sql, &[&xid.to_string()]).await;
    Ok(row.map_err(CatalogError::reading("transactions"))?.get(0))
}
