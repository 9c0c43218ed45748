//! What the roles of both sides lack to copy and to follow these tables.

use super::tables::{PlanProblem, PlannedTable};
use crate::catalog::{
    CatalogError, TableKind, fetch_closed_schemas, fetch_denied, fetch_hidden_by_row_security,
    fetch_unreadable,
};
use crate::mapping::RowIdentity;
use crate::pg::{Side, quote_ident};
use tokio_postgres::Client;

/// A privilege that is missing, or rows that are hidden; with the SQL that helps.
#[derive(Clone, Debug)]
pub struct Lack {
    /// Rows are hidden, rather than a privilege missing.
    pub is_row_security: bool,
    /// What is lacking.
    pub problem: PlanProblem,
}

impl Lack {
    fn privilege(object: impl ToString, message: String, remedy: String) -> Self {
        Self {
            is_row_security: false,
            problem: PlanProblem::new(object, message, remedy),
        }
    }
}

/// Of the source's role.
///
/// # Errors
/// When the catalogue cannot be read.
pub async fn source_lacks(
    client: &Client,
    role: &str,
    tables: &[&PlannedTable],
) -> Result<Vec<Lack>, CatalogError> {
    let oids: Vec<u32> = tables.iter().map(|t| t.source.oid).collect();
    let mut read: Vec<(u32, &str)> = Vec::new();
    for table in tables {
        let oid = table.source.oid;
        let inputs = &table.mapping.inputs;
        read.extend(inputs.iter().map(|input| (oid, input.name.as_str())));
        // Large tables are read by ranges of ctid, which has a privilege of its own.
        read.extend((table.source.kind == TableKind::Ordinary).then_some((oid, "ctid")));
    }
    let (mut lacks, unreadable, hidden) = tokio::try_join!(
        closed_schemas(client, Side::Source, role, &oids),
        fetch_unreadable(client, &read),
        fetch_hidden_by_row_security(client, &oids),
    )?;
    for table in tables {
        let name = &table.source.name;
        if let Some(columns) = unreadable.get(&table.source.oid) {
            lacks.push(Lack::privilege(
                name,
                format!(
                    "the source's role {role} may not SELECT from {name} ({})",
                    columns.join(", ")
                ),
                format!(
                    "GRANT SELECT ON TABLE {} TO {}",
                    name.quoted(),
                    quote_ident(role)
                ),
            ));
        }
        if hidden.contains(&table.source.oid) {
            lacks.push(row_security(Side::Source, role, name));
        }
    }
    Ok(lacks)
}

/// Of the replica's role. TRUNCATE is not missed before somebody truncates.
///
/// # Errors
/// When the catalogue cannot be read.
pub async fn replica_lacks(
    client: &Client,
    role: &str,
    tables: &[&PlannedTable],
) -> Result<Vec<Lack>, CatalogError> {
    let oids: Vec<u32> = tables.iter().map(|t| t.replica.oid).collect();
    let (mut lacks, denied, hidden) = tokio::try_join!(
        closed_schemas(client, Side::Replica, role, &oids),
        fetch_denied(client, &oids),
        fetch_hidden_by_row_security(client, &oids),
    )?;
    for table in tables {
        let name = &table.replica.name;
        let is_insert_only = table.mapping.identity == RowIdentity::InsertsOnly;
        let is_needed = |privilege: &&String| match privilege.as_str() {
            "UPDATE" | "DELETE" => !is_insert_only,
            "TRUNCATE" => false,
            _ => true,
        };
        let missing = denied.get(&table.replica.oid).into_iter().flatten();
        let needed: Vec<&str> = missing.filter(is_needed).map(String::as_str).collect();
        if !needed.is_empty() {
            let list = needed.join(", ");
            lacks.push(Lack::privilege(
                name,
                format!("the replica's role {role} lacks {list} on {name}"),
                format!(
                    "GRANT {list} ON TABLE {} TO {}",
                    name.quoted(),
                    quote_ident(role)
                ),
            ));
        }
        if hidden.contains(&table.replica.oid) {
            lacks.push(row_security(Side::Replica, role, name));
        }
    }
    Ok(lacks)
}

async fn closed_schemas(
    client: &Client,
    side: Side,
    role: &str,
    tables: &[u32],
) -> Result<Vec<Lack>, CatalogError> {
    let closed = fetch_closed_schemas(client, tables).await?;
    let lack = |schema: String| {
        Lack::privilege(
            &schema,
            format!("the {side}'s role {role} may not use the schema {schema}"),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {}",
                quote_ident(&schema),
                quote_ident(role)
            ),
        )
    };
    Ok(closed.into_iter().map(lack).collect())
}

fn row_security(side: Side, role: &str, table: impl ToString) -> Lack {
    let table = table.to_string();
    Lack {
        is_row_security: true,
        problem: PlanProblem::new(
            &table,
            format!("row security of {table} hides rows from the {side}'s role {role}"),
            format!("ALTER ROLE {} BYPASSRLS", quote_ident(role)),
        ),
    }
}
