//! Secondary indexes and foreign keys that are built after the data, where the operator asks for it.
//!
//! ```text
//!  table emptied, marked ── with `indexes = "after"`: definitions into the books, DROP ──┐ one transaction
//!  rows come in: nothing is kept up to date                                              ┘
//!  last piece ─▶ CREATE INDEX …, ADD CONSTRAINT …, books cleared, ANALYZE, table marked ── one transaction
//! ```
//!
//! An interrupted copy leaves them in the books. The next start empties what was half copied, which
//! is copied anew, and makes those again that say something of the rows, for what is planned rests on
//! them; the others wait for the end of the copy, unless there is none or the operator wants them kept now. Nothing is marked as copied, and
//! nothing streams, while something is missing.
//!
//! Keys too: workers that copy parts of a table meet in its key's leaves, split them in the middle,
//! and take half as long again as heap and sort together.
//!
//! What stays: keys that foreign keys refer to; whatever carries more than a definition says
//! (a comment, a tablespace, a constraint's fill factor, CLUSTER, the table's replica identity) or has something that depends on
//! it. Partitioned tables and their parts stay as they are. Foreign keys cost nothing where triggers
//! keep still, and stay then.

use super::copy::while_it_works;
use super::existing::empty_rows;
use super::{CopyTable, SnapshotError};
use crate::pg::ServerError;
use crate::progress::{SetAside, Store, TableRecord, TableState};
use tokio_postgres::Client;

/// What can be dropped and made again by its definition: of the tables `$1`; foreign keys too if
/// `$2`. The last column: whether this role can make it again.
const DROPPABLE: &str = "
WITH tables AS (
  SELECT t.at, c.oid, n.oid AS nsp, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
         pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_owner,
         pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create, n.nspname
  FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (name, at)
  JOIN pg_catalog.pg_class AS c ON c.oid = t.name::pg_catalog.regclass
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND NOT c.relispartition),
indexes AS (
  SELECT t.*, i.oid AS index_oid, i.relname AS index_name, k.oid AS constraint_oid, k.conname
  FROM tables AS t
  JOIN pg_catalog.pg_index AS x ON x.indrelid = t.oid
  JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
  LEFT JOIN pg_catalog.pg_constraint AS k ON k.conindid = i.oid AND k.conrelid = t.oid
        AND k.contype IN ('p', 'u', 'x')
  WHERE x.indisvalid AND x.indisready AND NOT x.indisreplident AND NOT x.indisclustered
    AND i.reltablespace = 0 AND (k.oid IS NULL OR i.reloptions IS NULL)
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint AS f
      WHERE f.conindid = i.oid AND f.contype = 'f')
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute AS a
      WHERE a.attrelid = i.oid AND COALESCE(a.attstattarget, -1) >= 0)
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend AS d
      WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = i.oid
        OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.oid AND d.deptype IN ('e', 'x')
        OR d.refclassid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.refobjid = k.oid
           AND d.deptype <> 'i')
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_description AS d
      WHERE d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objoid = i.oid
        OR d.classoid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objoid = k.oid))
SELECT at, false, index_name::text, pg_catalog.pg_get_indexdef(index_oid),
       pg_catalog.format('DROP INDEX %I.%I', nspname, index_name), is_owner AND may_create
FROM indexes WHERE constraint_oid IS NULL
UNION ALL
SELECT at, false, conname::text, pg_catalog.format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', name, conname,
         pg_catalog.pg_get_constraintdef(constraint_oid)),
       pg_catalog.format('ALTER TABLE ONLY %s DROP CONSTRAINT %I', name, conname), is_owner AND may_create
FROM indexes WHERE constraint_oid IS NOT NULL
UNION ALL
SELECT t.at, true, k.conname::text, pg_catalog.format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', t.name, k.conname,
         pg_catalog.pg_get_constraintdef(k.oid)),
       pg_catalog.format('ALTER TABLE ONLY %s DROP CONSTRAINT %I', t.name, k.conname),
       t.is_owner AND pg_catalog.has_table_privilege(k.confrelid, 'REFERENCES')
FROM tables AS t
JOIN pg_catalog.pg_constraint AS k ON k.conrelid = t.oid AND k.contype = 'f' AND k.conparentid = 0
WHERE $2 AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_description AS d
  WHERE d.classoid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objoid = k.oid)
ORDER BY 1, 2 DESC, 3";

/// Whether what is to be made is there: somebody may have been quicker. `$1` the table, `$2` its
/// name, `$3` its definition.
const IS_THERE: &str = "
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_index AS x WHERE x.indrelid = $1::text::pg_catalog.regclass
         AND pg_catalog.pg_get_indexdef(x.indexrelid) OPERATOR(pg_catalog.=) $3::text AND x.indisvalid)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = $1::text::pg_catalog.regclass
         AND k.conname::text OPERATOR(pg_catalog.=) $2::text
         AND pg_catalog.right($3::text, pg_catalog.length(pg_catalog.pg_get_constraintdef(k.oid)))
             OPERATOR(pg_catalog.=) pg_catalog.pg_get_constraintdef(k.oid))";

/// Drops what will be made after the data; part of the transaction that empties the tables.
pub(super) async fn set_aside(
    client: &Client,
    store: &Store,
    tables: &[&CopyTable],
    with_foreign_keys: bool,
) -> Result<(), SnapshotError> {
    let Some(first) = tables.first() else {
        return Ok(());
    };
    let look = SnapshotError::on(&first.mapping.replica, "look for the indexes of");
    let names: Vec<String> = tables.iter().map(|t| t.mapping.replica.quoted()).collect();
    let found = client
        .query(DROPPABLE, &[&names, &with_foreign_keys])
        .await
        .map_err(look)?;
    let mut dropped = Vec::new();
    let mut drops: Vec<(&CopyTable, String)> = Vec::new();
    for row in &found {
        let at = usize::try_from(row.get::<_, i64>(0)).unwrap_or_default();
        let Some(table) = at.checked_sub(1).and_then(|at| tables.get(at)) else {
            continue;
        };
        let one = SetAside {
            table: table.mapping.replica.clone(),
            is_foreign_key: row.get(1),
            name: row.get(2),
            definition: row.get(3),
        };
        if !row.get::<_, bool>(5) {
            return Err(SnapshotError::MayNotBuild {
                table: one.table,
                name: one.name,
            });
        }
        dropped.push(one);
        drops.push((table, row.get(4)));
    }
    store.set_aside(client, &dropped).await?;
    for (table, sql) in drops {
        let done = client.batch_execute(&sql).await;
        done.map_err(SnapshotError::on(
            &table.mapping.replica,
            "drop an index of",
        ))?;
    }
    Ok(())
}

/// Makes again what these tables lack; part of the transaction that marks them as copied.
pub(super) async fn make_again(
    client: &Client,
    pipeline: &str,
    tables: &[&CopyTable],
) -> Result<(), SnapshotError> {
    let lacking = Store::fetch_set_aside(client, pipeline).await?;
    for table in tables {
        let name = &table.mapping.replica;
        let mut is_changed = false;
        for one in lacking.iter().filter(|one| one.table == *name) {
            while_it_works(table, make(client, pipeline, one)).await?;
            is_changed = true;
        }
        if is_changed {
            let sql = format!("ANALYZE {}", name.quoted());
            let analyzed = while_it_works(table, client.batch_execute(&sql)).await;
            analyzed.map_err(SnapshotError::on(name, "analyze"))?;
        }
    }
    Ok(())
}

/// Makes again the constraints and unique indexes that an interrupted copy has left in the books:
/// what is planned rests on them, such as how rows are found. For the pipeline's owner alone:
/// tables that were half copied are emptied first.
///
/// # Errors
/// [`SnapshotError::NotBuilt`] with the first that cannot be made.
pub async fn make_constraints_again(
    client: &Client,
    pipeline: &str,
    is_replica_role: bool,
) -> Result<(), SnapshotError> {
    let mut lacking = Store::fetch_set_aside(client, pipeline).await?;
    lacking.retain(|one| !one.definition.starts_with("CREATE INDEX"));
    if lacking.is_empty() {
        return Ok(());
    }
    empty_half_copied(client, pipeline, is_replica_role).await?;
    make_each(client, pipeline, &lacking).await
}

/// Tables that are there, as FROM items: rows of a partitioned one are its partitions'.
const AS_ROWS: &str = "
SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS t (schema, name)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.name
WHERE c.relkind IN ('r', 'p') ORDER BY 1";

/// A copy that begins empties them anyway; rows of theirs may break what is to be made.
async fn empty_half_copied(
    client: &Client,
    pipeline: &str,
    is_replica_role: bool,
) -> Result<(), SnapshotError> {
    let records = Store::fetch_tables(client, pipeline).await?;
    let half = records.iter().filter(|r| r.state == TableState::Copying);
    let half: Vec<&TableRecord> = half.collect();
    let Some(first) = half.first() else {
        return Ok(());
    };
    let doing = || SnapshotError::on(&first.replica, "empty");
    let of = |part: fn(&TableRecord) -> &str| half.iter().map(|r| part(r)).collect::<Vec<&str>>();
    let (schemas, names) = (of(|r| &r.replica.schema), of(|r| &r.replica.name));
    let rows = client.query(AS_ROWS, &[&schemas, &names]).await;
    let rows: Vec<String> = rows
        .map_err(doing())?
        .iter()
        .map(|row| row.get(0))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let role = if is_replica_role {
        "; SET LOCAL session_replication_role = replica"
    } else {
        ""
    };
    let begun = client.batch_execute(&format!("BEGIN{role}")).await;
    begun.map_err(doing())?;
    empty_rows(client, &first.replica, &rows).await?;
    let committed = client.batch_execute("COMMIT").await;
    committed.map_err(doing())
}

/// Makes again all that an interrupted copy has left in the books and that no copy will see to:
/// each in a transaction of its own. `but_for` are the tables that are about to be copied.
///
/// # Errors
/// [`SnapshotError::NotBuilt`] with the first that cannot be made.
pub async fn make_left_overs(
    client: &Client,
    pipeline: &str,
    but_for: &[CopyTable],
) -> Result<(), SnapshotError> {
    let mut lacking = Store::fetch_set_aside(client, pipeline).await?;
    lacking.retain(|one| !but_for.iter().any(|t| t.mapping.replica == one.table));
    make_each(client, pipeline, &lacking).await
}

async fn make_each(
    client: &Client,
    pipeline: &str,
    lacking: &[SetAside],
) -> Result<(), SnapshotError> {
    for one in lacking {
        tracing::warn!(table = %one.table, name = one.name, "making again what an interrupted copy has dropped");
        let failed = |source: tokio_postgres::Error| not_built(one, source.into());
        client.batch_execute("BEGIN").await.map_err(failed)?;
        let made = make(client, pipeline, one).await;
        let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = client.batch_execute(end).await;
        made?;
        ended.map_err(failed)?;
    }
    Ok(())
}

async fn make(client: &Client, pipeline: &str, one: &SetAside) -> Result<(), SnapshotError> {
    let failed = |source: tokio_postgres::Error| not_built(one, source.into());
    let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
        &[&one.table.quoted(), &one.name, &one.definition];
    let there = client.query_one(IS_THERE, parameters).await;
    if !there.map_err(failed)?.get::<_, bool>(0) {
        client
            .batch_execute(&one.definition)
            .await
            .map_err(failed)?;
    }
    Ok(Store::forget_set_aside(client, pipeline, one).await?)
}

fn not_built(one: &SetAside, source: ServerError) -> SnapshotError {
    SnapshotError::NotBuilt {
        table: one.table.clone(),
        name: one.name.clone(),
        source,
    }
}
