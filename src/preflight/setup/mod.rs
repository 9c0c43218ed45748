//! The SQL that a DBA runs once on each side; only what is not there yet, so that a second
//! time there is nothing to do.
//!
//! ```text
//!  source:   role ─▶ CONNECT, USAGE, SELECT ─▶ REPLICA IDENTITY ─▶ publication
//!  replica:  role ─▶ CONNECT, USAGE, writing ─▶ session_replication_role ─▶ books
//! ```
//!
//! A keyless table gets its replica identity before it is published: in between, the source
//! would refuse its updates and deletes.

mod replica;
mod source;

use super::query::{partitions_without_identity, rows};
use super::{CheckError, identity};
use crate::mapping::{Settings, resolve};
use crate::pg::{QualifiedName, quote_ident};
use crate::pipeline::PipelineConfig;
use tokio_postgres::Client;

use identity::{identity_sql, partition_identity_sql};

/// A step: something to run, or something to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetupStep {
    /// SQL, without its semicolon.
    Run(String),
    /// What only a person can decide or do.
    Note(String),
}

/// The steps of both sides, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetupSql {
    /// For an administrator of the source.
    pub source: Vec<SetupStep>,
    /// For an administrator of the replica.
    pub replica: Vec<SetupStep>,
}

/// Reads what is there with sessions of administrators (or of anybody who may look), and says
/// what is missing for the roles that the configuration names. Changes nothing.
///
/// # Errors
/// When a catalogue cannot be read.
pub async fn plan_setup(
    config: &PipelineConfig,
    source: &Client,
    replica: &Client,
) -> Result<SetupSql, CheckError> {
    let (source, tables) = source::plan(config, source).await?;
    let replica = replica::plan(config, replica, &tables).await?;
    Ok(SetupSql { source, replica })
}

/// A source table that a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceTable {
    pub(super) name: QualifiedName,
    /// Where it goes.
    pub(super) replica: QualifiedName,
    pub(super) is_partitioned: bool,
    /// A rule names it, and not only a pattern.
    pub(super) is_named: bool,
}

/// The tables of the source's catalogue that the rules speak of; partitions only by name.
pub(super) async fn fetch_source_tables(
    client: &Client,
    rules: &Settings,
) -> Result<Vec<SourceTable>, CheckError> {
    let sql = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.relkind = 'p', c.relispartition \
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
          AND n.nspname NOT IN ('information_schema', 'pglockstep') AND n.nspname NOT LIKE 'pg\\_%' \
          AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend AS d \
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e') \
        ORDER BY 1, 2";
    let found = rows(client, "the source's tables", sql, &[]).await?;
    let table = |row: &tokio_postgres::Row| {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let resolved = resolve(rules, &name)?;
        let is_named = !rules.rules.is_empty() && resolved.rule.source.is_exact();
        let is_partition: bool = row.get(3);
        (is_named || !is_partition).then_some(SourceTable {
            name,
            replica: resolved.replica,
            is_partitioned: row.get(2),
            is_named,
        })
    };
    Ok(found.iter().filter_map(table).collect())
}

/// `CREATE PUBLICATION` in full.
pub(super) fn create_publication_sql(name: &str, tables: &[SourceTable]) -> String {
    let list = if tables.is_empty() {
        "…".to_owned()
    } else {
        quoted_list(tables.iter().map(|table| &table.name))
    };
    // Partitions then travel under their root's name, which is the one that rules know.
    let options = if tables.iter().any(|table| table.is_partitioned) {
        " WITH (publish_via_partition_root = true)"
    } else {
        ""
    };
    format!(
        "CREATE PUBLICATION {} FOR TABLE {list}{options}",
        quote_ident(name)
    )
}

fn quoted_list<'a>(names: impl Iterator<Item = &'a QualifiedName>) -> String {
    let names: Vec<String> = names.map(QualifiedName::quoted).collect();
    names.join(", ")
}

/// What a catalogue says of a role.
struct Role {
    may_login: bool,
    /// Superuser, REPLICATION, or a provider's role that stands for it.
    may_replicate: bool,
    sees_statistics: bool,
    is_superuser: bool,
    bypasses_row_security: bool,
}

async fn fetch_role(client: &Client, name: &str) -> Result<Option<Role>, CheckError> {
    let sql = "SELECT r.rolcanlogin, r.rolsuper OR r.rolreplication OR EXISTS ( \
            SELECT 1 FROM pg_catalog.pg_roles AS p \
            WHERE p.rolname IN ('rds_replication', 'rds_superuser', 'azure_pg_admin', 'cloudsqlsuperuser') \
              AND pg_catalog.pg_has_role(r.oid, p.oid, 'USAGE')), \
          r.rolsuper, r.rolsuper OR r.rolbypassrls, \
          pg_catalog.pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE') \
        FROM pg_catalog.pg_roles AS r WHERE r.rolname = $1::text";
    let found = rows(client, "roles", sql, &[&name]).await?;
    Ok(found.first().map(|row| Role {
        may_login: row.get(0),
        may_replicate: row.get(1),
        is_superuser: row.get(2),
        bypasses_row_security: row.get(3),
        sees_statistics: row.get(4),
    }))
}

/// What the role may not do yet with a set of tables; for a role that does not exist, all of it.
struct Lacks {
    connect: bool,
    /// Schemas without USAGE.
    usage: Vec<String>,
    /// Tables and the privileges that are missing on them.
    tables: Vec<(QualifiedName, Vec<String>)>,
    /// Tables whose policies apply to the role.
    row_security: Vec<QualifiedName>,
}

async fn fetch_lacks(
    client: &Client,
    role: &str,
    tables: &[QualifiedName],
    privileges: &[&str],
) -> Result<Lacks, CheckError> {
    const CONNECT: &str = "SELECT 1 FROM pg_catalog.pg_roles AS r WHERE r.rolname = $1::text \
        AND pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CONNECT')";
    const TABLES: &str = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, \
          COALESCE(pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'), false), \
          ARRAY(SELECT p.name FROM pg_catalog.unnest($4::pg_catalog.text[]) WITH ORDINALITY AS p(name, place) \
            WHERE NOT COALESCE(pg_catalog.has_table_privilege(r.oid, c.oid, p.name), false) ORDER BY p.place), \
          c.relrowsecurity AND (c.relforcerowsecurity \
            OR NOT COALESCE(pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE'), false)) \
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) AS w(schema, name) \
        JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema \
        JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name \
        LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = $3::text ORDER BY 1, 2";
    let may_connect = rows(client, "privileges", CONNECT, &[&role]).await?;
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.name.as_str()).collect();
    let found = rows(
        client,
        "privileges",
        TABLES,
        &[&schemas, &names, &role, &privileges],
    )
    .await?;
    let mut lacks = Lacks {
        connect: may_connect.is_empty(),
        usage: Vec::new(),
        tables: Vec::new(),
        row_security: Vec::new(),
    };
    for row in &found {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !row.get::<_, bool>(2) && !lacks.usage.contains(&name.schema) {
            lacks.usage.push(name.schema.clone());
        }
        if row.get(4) {
            lacks.row_security.push(name.clone());
        }
        let missing: Vec<String> = row.get(3);
        if !missing.is_empty() {
            lacks.tables.push((name, missing));
        }
    }
    Ok(lacks)
}

impl Lacks {
    /// The grants, and a note where policies would hide rows.
    fn steps(
        &self,
        database: &str,
        role_name: &str,
        role: Option<&Role>,
        steps: &mut Vec<SetupStep>,
    ) {
        let to = quote_ident(role_name);
        if self.connect {
            steps.push(SetupStep::Run(format!(
                "GRANT CONNECT ON DATABASE {} TO {to}",
                quote_ident(database)
            )));
        }
        if !self.usage.is_empty() {
            let schemas: Vec<String> = self.usage.iter().map(|s| quote_ident(s)).collect();
            steps.push(SetupStep::Run(format!(
                "GRANT USAGE ON SCHEMA {} TO {to}",
                schemas.join(", ")
            )));
        }
        // Tables that lack the same are granted together.
        let mut left: Vec<&(QualifiedName, Vec<String>)> = self.tables.iter().collect();
        while let Some((_, privileges)) = left.first().copied() {
            let (same, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, p)| p == privileges);
            steps.push(SetupStep::Run(format!(
                "GRANT {} ON TABLE {} TO {to}",
                privileges.join(", "),
                quoted_list(same.iter().map(|(name, _)| name))
            )));
            left = others;
        }
        let bypasses = role.is_some_and(|role| role.bypasses_row_security);
        if !self.row_security.is_empty() && !bypasses {
            let names: Vec<String> = self.row_security.iter().map(ToString::to_string).collect();
            steps.push(SetupStep::Note(format!(
                "row security hides rows of {} from the role; a superuser can let it see them:\nALTER ROLE {to} BYPASSRLS;",
                names.join(", ")
            )));
        }
    }
}

/// The role itself: made, or given what it lacks.
fn role_steps(name: &str, role: Option<&Role>, replicates: bool, steps: &mut Vec<SetupStep>) {
    let quoted = quote_ident(name);
    // To see whether the daemon that holds the slot still lives, before its walsender is ended.
    let sees = format!("GRANT pg_read_all_stats TO {quoted}");
    let Some(role) = role else {
        let attributes = if replicates {
            "LOGIN REPLICATION"
        } else {
            "LOGIN"
        };
        steps.push(SetupStep::Run(format!("CREATE ROLE {quoted} {attributes}")));
        if replicates {
            steps.push(SetupStep::Run(sees));
        }
        steps.push(SetupStep::Note(format!(
            "give it a password in psql, where no log sees it:\n\\password {quoted}"
        )));
        return;
    };
    if !role.may_login {
        steps.push(SetupStep::Run(format!("ALTER ROLE {quoted} LOGIN")));
    }
    if replicates && !role.may_replicate {
        steps.push(SetupStep::Run(format!("ALTER ROLE {quoted} REPLICATION")));
    }
    if replicates && !role.sees_statistics {
        steps.push(SetupStep::Run(sees));
    }
}
