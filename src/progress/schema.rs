//! The bookkeeping schema on the replica.

use crate::pg::quote_ident;

/// The schema that holds everything the daemon keeps on the replica.
pub const BOOKKEEPING_SCHEMA: &str = "pglockstep";

/// DDL of the bookkeeping schema; idempotent. Fill factors leave room for updates in place.
pub(super) const BOOKKEEPING: &str = r#"
CREATE TABLE IF NOT EXISTS "pglockstep"."pipelines" (
  name text PRIMARY KEY,
  system_id text NOT NULL,
  database_oid bigint NOT NULL,
  slot text NOT NULL,
  timeline bigint,
  slot_born_at pg_lsn,
  applied_lsn pg_lsn,
  epoch bigint NOT NULL DEFAULT 0,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS "pglockstep"."tables" (
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_schema text NOT NULL,
  source_table text NOT NULL,
  source_oid bigint NOT NULL,
  replica_schema text NOT NULL,
  replica_table text NOT NULL,
  state text NOT NULL,
  copied_lsn pg_lsn,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  publication_oid bigint,
  PRIMARY KEY (pipeline, source_oid)
) WITH (fillfactor = 50);
"#;

/// The SQL that makes the bookkeeping schema; with `owner`, as an administrator for the daemon's role.
#[must_use]
pub fn bookkeeping_sql(owner: Option<&str>) -> String {
    let schema = quote_ident(BOOKKEEPING_SCHEMA);
    let Some(owner) = owner.map(quote_ident) else {
        return format!("CREATE SCHEMA IF NOT EXISTS {schema};{BOOKKEEPING}");
    };
    format!(
        "CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner};{BOOKKEEPING}\
         ALTER TABLE {schema}.\"pipelines\" OWNER TO {owner};\n\
         ALTER TABLE {schema}.\"tables\" OWNER TO {owner};\n"
    )
}
