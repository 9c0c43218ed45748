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
  given_up text,
  rebasing boolean NOT NULL DEFAULT false,
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
CREATE TABLE IF NOT EXISTS "pglockstep"."errors" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  commit_lsn pg_lsn NOT NULL,
  source_oid bigint,
  source_schema text,
  source_table text,
  replica_schema text,
  replica_table text,
  sqlstate text,
  message text NOT NULL,
  advice text,
  key_hash text,
  state text NOT NULL,
  request text,
  reason text,
  attempts bigint NOT NULL DEFAULT 1,
  first_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  last_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  ended_at timestamptz
);
CREATE TABLE IF NOT EXISTS "pglockstep"."kept_changes" (
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_oid bigint NOT NULL,
  id bigint GENERATED ALWAYS AS IDENTITY,
  commit_lsn pg_lsn NOT NULL,
  form bytea,
  change bytea NOT NULL,
  skipped_by bigint REFERENCES "pglockstep"."errors" ON DELETE CASCADE,
  PRIMARY KEY (pipeline, source_oid, id)
);
CREATE INDEX IF NOT EXISTS "kept_changes_skipped" ON "pglockstep"."kept_changes" (skipped_by)
  WHERE skipped_by IS NOT NULL;
CREATE TABLE IF NOT EXISTS "pglockstep"."set_aside" (
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  replica_schema text NOT NULL,
  replica_table text NOT NULL,
  is_foreign_key boolean NOT NULL,
  name text NOT NULL,
  definition text NOT NULL,
  PRIMARY KEY (pipeline, replica_schema, replica_table, is_foreign_key, name)
);
CREATE TABLE IF NOT EXISTS "pglockstep"."verifications" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_schemas text[] NOT NULL,
  source_tables text[] NOT NULL,
  counts_only boolean NOT NULL,
  wish text,
  state text NOT NULL DEFAULT 'requested',
  progress text,
  report text,
  error text,
  requested_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  ended_at timestamptz
);
CREATE TABLE IF NOT EXISTS "pglockstep"."proofs" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_schema text NOT NULL,
  source_table text NOT NULL,
  replica_schema text NOT NULL,
  replica_table text NOT NULL,
  counts_only boolean NOT NULL,
  lsn pg_lsn NOT NULL,
  source_rows bigint NOT NULL,
  replica_rows bigint NOT NULL,
  missing bigint NOT NULL,
  extra bigint NOT NULL,
  different bigint NOT NULL,
  in_sync boolean NOT NULL,
  seconds float8 NOT NULL,
  rules text NOT NULL,
  rechecked boolean NOT NULL DEFAULT false,
  compared_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX IF NOT EXISTS "proofs_of_table" ON "pglockstep"."proofs"
  (pipeline, source_schema, source_table, counts_only, id);
CREATE TABLE IF NOT EXISTS "pglockstep"."proof_parts" (
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_schema text NOT NULL,
  source_table text NOT NULL,
  replica_schema text NOT NULL,
  replica_table text NOT NULL,
  rules text NOT NULL,
  form text NOT NULL,
  upto text[] NOT NULL,
  share float8 NOT NULL,
  lsn pg_lsn NOT NULL,
  source_rows bigint NOT NULL,
  replica_rows bigint NOT NULL,
  missing bigint NOT NULL,
  extra bigint NOT NULL,
  different bigint NOT NULL,
  in_sync boolean NOT NULL,
  rechecked boolean NOT NULL,
  seconds float8 NOT NULL,
  compared_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  PRIMARY KEY (pipeline, source_schema, source_table)
);
CREATE TABLE IF NOT EXISTS "pglockstep"."repairs" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline text NOT NULL REFERENCES "pglockstep"."pipelines" ON DELETE CASCADE,
  source_schema text NOT NULL,
  source_table text NOT NULL,
  replica_schema text NOT NULL,
  replica_table text NOT NULL,
  lsn pg_lsn NOT NULL,
  deed text NOT NULL,
  key text[] NOT NULL,
  before json,
  mended_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
-- What books of an older version lack.
ALTER TABLE "pglockstep"."pipelines" ADD COLUMN IF NOT EXISTS given_up text;
ALTER TABLE "pglockstep"."pipelines" ADD COLUMN IF NOT EXISTS rebasing boolean NOT NULL DEFAULT false;
ALTER TABLE "pglockstep"."verifications" ADD COLUMN IF NOT EXISTS wish text;
ALTER TABLE "pglockstep"."proofs" ADD COLUMN IF NOT EXISTS rechecked boolean NOT NULL DEFAULT false;
"#;

/// The tables of the bookkeeping schema; those that refer to others first.
pub const BOOKKEEPING_TABLES: [&str; 9] = [
    "repairs",
    "proof_parts",
    "proofs",
    "verifications",
    "set_aside",
    "kept_changes",
    "errors",
    "tables",
    "pipelines",
];

/// Table and column of the last addition: they stand for all that books of an older version lack.
pub const LAST_ADDITION: (&str, &str) = ("proof_parts", "upto");

/// The SQL that makes the bookkeeping schema; with `owner`, as an administrator for the daemon's role.
#[must_use]
pub fn bookkeeping_sql(owner: Option<&str>) -> String {
    let schema = quote_ident(BOOKKEEPING_SCHEMA);
    let Some(owner) = owner.map(quote_ident) else {
        return format!("CREATE SCHEMA IF NOT EXISTS {schema};{BOOKKEEPING}");
    };
    let mut sql =
        format!("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner};{BOOKKEEPING}");
    for table in BOOKKEEPING_TABLES.iter().rev() {
        let table = quote_ident(table);
        sql.push_str(&format!("ALTER TABLE {schema}.{table} OWNER TO {owner};\n"));
    }
    sql
}
