//! Has the replica look at its foreign keys that are NOT VALID, once rows that broke them have gone.
//!
//! It reads the table under a lock that lets others write (ALTER TABLE, "VALIDATE CONSTRAINT"), and takes
//! the table's owner: where that is not the daemon's role, its owner is told what to run.

use super::RepairError;
use crate::conn::{Endpoint, Session};
use crate::pg::{QualifiedName, ServerError, quote_ident};
use crate::pipeline::TablePlan;
use crate::telemetry::Chain;
use serde::{Deserialize, Serialize};

/// Others that read or write the table do not hold it up; another ALTER may.
const SETTINGS: &str = "SET lock_timeout = '3s'";
/// What is NOT ENFORCED (since 18) cannot be valid.
const NOT_VALID: &str = "\
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, k.conname::pg_catalog.text
FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND NOT k.convalidated AND k.conparentid = 0 AND k.conrelid = ANY ($1)
  AND pg_catalog.to_jsonb(k) ->> 'conenforced' IS DISTINCT FROM 'false'
ORDER BY 1, 2, 3";

/// A foreign key that was NOT VALID.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Validated {
    /// The replica table that refers.
    pub replica_table: String,
    /// Its name.
    pub constraint: String,
    /// Why it is NOT VALID yet, and what to do.
    pub error: Option<String>,
}

/// Those of the replica tables that these source tables go to; of all where none is named.
pub(super) async fn validate(
    replica: &Endpoint,
    plan: &TablePlan,
    tables: &[QualifiedName],
) -> Result<Vec<Validated>, RepairError> {
    let replica = replica.connect(Session::ReplicaWrite).await?;
    let failed = |error| RepairError::Validating(ServerError::from(error));
    let wanted = plan.tables.values();
    let wanted = wanted.filter(|t| tables.is_empty() || tables.contains(&t.source.name));
    let oids: Vec<u32> = wanted.map(|t| t.replica.oid).collect();
    replica.batch_execute(SETTINGS).await.map_err(failed)?;
    let mut validated = Vec::new();
    for row in replica.query(NOT_VALID, &[&oids]).await.map_err(failed)? {
        let table = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let constraint: String = row.get(2);
        let sql = format!(
            "ALTER TABLE {} VALIDATE CONSTRAINT {}",
            table.quoted(),
            quote_ident(&constraint)
        );
        let error = match replica.batch_execute(&sql).await.map_err(ServerError::from) {
            Ok(()) => None,
            Err(lost) if lost.is_session_lost() => return Err(RepairError::Validating(lost)),
            Err(refused) => Some(format!("{}; its owner may do it: {sql}", Chain(&refused))),
        };
        validated.push(Validated {
            replica_table: table.to_string(),
            constraint,
            error,
        });
    }
    Ok(validated)
}
