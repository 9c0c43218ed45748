//! Publications: what they let through, and which tables they hold.

use super::error::{ReplicationError, catalog_error};
use crate::pg::{QualifiedName, RelationId};
use std::collections::HashMap;
use tokio_postgres::{Client, Row};

/// A publication as `pg_publication` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[allow(clippy::struct_excessive_bools)] // the catalogue's columns
pub struct Publication {
    /// Its name.
    pub name: String,
    /// Inserts are published.
    pub insert: bool,
    /// Updates are published.
    pub update: bool,
    /// Deletes are published.
    pub delete: bool,
    /// Truncates are published.
    pub truncate: bool,
    /// Partitions are published as their topmost table.
    pub via_root: bool,
    /// All tables of the database, present and future.
    pub all_tables: bool,
}

impl Publication {
    /// Changes that it does not let through.
    #[must_use]
    pub fn left_out(&self) -> Vec<&'static str> {
        let all = [
            ("INSERT", self.insert),
            ("UPDATE", self.update),
            ("DELETE", self.delete),
            ("TRUNCATE", self.truncate),
        ];
        let left_out = all.iter().filter(|(_, is_published)| !is_published);
        left_out.map(|(what, _)| *what).collect()
    }
}

/// A table of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its object id, as the stream names it.
    pub oid: RelationId,
    /// Its name.
    pub name: QualifiedName,
    /// The published columns; none before PostgreSQL 15, where all are.
    pub columns: Option<Vec<String>>,
    /// The condition that published rows meet.
    pub row_filter: Option<String>,
    /// The object id of what put it there: its own entry, or its schema's; none where all tables
    /// are, or where it is a partition of one that is. A table that leaves and comes back, or whose
    /// columns or filter are changed, gets another (`AlterPublicationTables`).
    pub published_by: Option<u32>,
}

const FETCH_PUBLICATION: &str = "\
SELECT pubname::text, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables
  FROM pg_catalog.pg_publication
 WHERE pubname = $1::text";

// Generated columns are sent from PostgreSQL 18 on; before, they are listed all the same.
// attnames and rowfilter are there from PostgreSQL 15 on: looked up in the row's JSON form.
// A table without columns has none, and not an empty list of them.
const FETCH_PUBLISHED_TABLES: &str = "\
SELECT c.oid, t.schemaname::text, t.tablename::text,
       CASE WHEN pg_catalog.jsonb_typeof(t.fields -> 'attnames') = 'array'
            THEN ARRAY(SELECT x.name FROM pg_catalog.jsonb_array_elements_text(t.fields -> 'attnames') AS x(name)
                       WHERE g.are_sent OR NOT EXISTS (
                         SELECT 1 FROM pg_catalog.pg_attribute AS a
                         WHERE a.attrelid = c.oid AND a.attname = x.name AND a.attgenerated <> '')) END,
       t.fields ->> 'rowfilter',
       (SELECT r.oid FROM pg_catalog.pg_publication_rel AS r
          JOIN pg_catalog.pg_publication AS b ON b.oid = r.prpubid
         WHERE b.pubname = $1::text AND r.prrelid = c.oid)
  FROM (SELECT p.schemaname, p.tablename, pg_catalog.to_jsonb(p) AS fields
          FROM pg_catalog.pg_publication_tables AS p
         WHERE p.pubname = $1::text) AS t
  CROSS JOIN (SELECT EXISTS (
               SELECT 1 FROM pg_catalog.pg_attribute AS a
               WHERE a.attrelid = 'pg_catalog.pg_publication'::pg_catalog.regclass
                 AND a.attname = 'pubgencols') AS are_sent) AS g
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schemaname
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.tablename
 ORDER BY t.schemaname, t.tablename";

// Schemas are published from PostgreSQL 15 on; before, there is no such catalogue to ask.
const HAS_SCHEMAS: &str =
    "SELECT pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
const FETCH_PUBLISHED_SCHEMAS: &str = "\
SELECT n.nspname::text, s.oid
  FROM pg_catalog.pg_publication_namespace AS s
  JOIN pg_catalog.pg_publication AS b ON b.oid = s.pnpubid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.pnnspid
 WHERE b.pubname = $1::text";

/// Looks a publication up.
///
/// # Errors
/// [`ReplicationError`] when the query fails.
pub async fn fetch_publication(
    client: &Client,
    name: &str,
) -> Result<Option<Publication>, ReplicationError> {
    let row = client.query_opt(FETCH_PUBLICATION, &[&name]).await;
    row.and_then(|row| row.as_ref().map(publication).transpose())
        .map_err(|error| catalog_error(&error))
}

fn publication(row: &Row) -> Result<Publication, tokio_postgres::Error> {
    Ok(Publication {
        name: row.try_get(0)?,
        insert: row.try_get(1)?,
        update: row.try_get(2)?,
        delete: row.try_get(3)?,
        truncate: row.try_get(4)?,
        via_root: row.try_get(5)?,
        all_tables: row.try_get(6)?,
    })
}

/// The tables of a publication, in order of their names; works on PostgreSQL 14 to 18.
///
/// # Errors
/// [`ReplicationError`] when the query fails.
pub async fn fetch_published_tables(
    client: &Client,
    name: &str,
) -> Result<Vec<PublishedTable>, ReplicationError> {
    let fetched = async {
        let (rows, schemas) = tokio::try_join!(
            async { client.query(FETCH_PUBLISHED_TABLES, &[&name]).await },
            fetch_published_schemas(client, name),
        )?;
        let tables = rows.iter().map(|row| published_table(row, &schemas));
        tables.collect::<Result<Vec<_>, _>>()
    };
    fetched.await.map_err(|error| catalog_error(&error))
}

async fn fetch_published_schemas(
    client: &Client,
    name: &str,
) -> Result<HashMap<String, u32>, tokio_postgres::Error> {
    if !client.query_one(HAS_SCHEMAS, &[]).await?.try_get(0)? {
        return Ok(HashMap::new());
    }
    let rows = client.query(FETCH_PUBLISHED_SCHEMAS, &[&name]).await?;
    let entry = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(entry).collect()
}

fn published_table(
    row: &Row,
    schemas: &HashMap<String, u32>,
) -> Result<PublishedTable, tokio_postgres::Error> {
    let name = QualifiedName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?);
    let own_entry: Option<u32> = row.try_get(5)?;
    Ok(PublishedTable {
        oid: row.try_get(0)?,
        published_by: own_entry.or_else(|| schemas.get(&name.schema).copied()),
        name,
        columns: row.try_get(3)?,
        row_filter: row.try_get(4)?,
    })
}
