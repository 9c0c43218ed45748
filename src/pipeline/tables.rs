//! Which tables take part, and each one's mapping: what the publication, both catalogues
//! and the rules come to.

use super::PipelineError;
use crate::catalog::{
    ForeignKey, Table, TableKind, fetch_foreign_keys, fetch_sizes, fetch_tables, parents_first,
};
use crate::mapping::{MappingError, Resolved, Settings, TableMapping, compile, resolve};
use crate::pg::{Column, QualifiedName, Relation, TypeNames};
use crate::replication::{PublishedTable, fetch_published_tables};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_postgres::Client;

/// One table that takes part.
#[derive(Clone, Debug)]
pub struct PlannedTable {
    /// Its mapping.
    pub mapping: Arc<TableMapping>,
    /// The rule behind it.
    pub resolved: Resolved,
    /// The source's description.
    pub source: Table,
    /// The replica's description.
    pub replica: Table,
    /// The publication's row filter.
    pub row_filter: Option<String>,
    /// Size on the source in bytes.
    pub bytes: u64,
}

/// All tables that take part.
#[derive(Clone, Debug, Default)]
pub struct TablePlan {
    /// By object id on the source.
    pub tables: BTreeMap<u32, PlannedTable>,
    /// Type names of the source by object id.
    pub types: Arc<TypeNames>,
    /// Foreign keys of the replica's tables.
    pub foreign_keys: Vec<ForeignKey>,
    /// Published, and left alone since no rule speaks of them.
    pub unmapped: Vec<QualifiedName>,
}

impl TablePlan {
    /// Each replica table's place when tables referred to come first.
    #[must_use]
    pub fn parents_first(&self) -> HashMap<QualifiedName, u32> {
        parents_first(&self.foreign_keys)
    }
}

/// Reads publication and catalogues and compiles every mapping.
///
/// # Errors
/// With everything that is wrong with all tables, not only the first.
pub async fn fetch_plan(
    source: &Client,
    replica: &Client,
    publication: &str,
    rules: &Settings,
) -> Result<TablePlan, PipelineError> {
    let published = fetch_published_tables(source, publication).await?;
    let mut plan = TablePlan::default();
    let mut resolved = Vec::new();
    for table in &published {
        match resolve(rules, &table.name) {
            Some(to) => resolved.push((table, to)),
            None => plan.unmapped.push(table.name.clone()),
        }
    }
    let mut problems = unpublished(rules, &published, publication);
    problems.extend(shared_replicas(&resolved));
    if resolved.is_empty() && problems.is_empty() {
        problems.push(format!(
            "no table takes part: the publication {publication} has {} tables and the [[tables]] rules match none of them",
            published.len()
        ));
    }

    let source_names: Vec<QualifiedName> = resolved.iter().map(|(t, _)| t.name.clone()).collect();
    let replica_names: Vec<QualifiedName> =
        resolved.iter().map(|(_, to)| to.replica.clone()).collect();
    let source_tables = by_name(fetch_tables(source, &source_names).await?);
    let replica_tables = by_name(fetch_tables(replica, &replica_names).await?);
    let source_oids: Vec<u32> = source_tables.values().map(|t| t.oid).collect();
    let replica_oids: Vec<u32> = replica_tables.values().map(|t| t.oid).collect();
    let sizes = fetch_sizes(source, &source_oids).await?;
    plan.foreign_keys = fetch_foreign_keys(replica, &replica_oids).await?;
    plan.types = Arc::new(types_of(source_tables.values()));

    for (published, to) in resolved {
        let Some(from) = source_tables.get(&published.name) else {
            continue;
        };
        let planned = plan_table(published, from, &replica_tables, &plan.types, to);
        match planned {
            Ok(mut table) => {
                table.bytes = sizes.get(&from.oid).copied().unwrap_or(0);
                plan.tables.insert(from.oid, table);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        Ok(plan)
    } else {
        Err(PipelineError::Mapping { problems })
    }
}

fn plan_table(
    published: &PublishedTable,
    from: &Table,
    replica_tables: &HashMap<QualifiedName, Table>,
    types: &TypeNames,
    resolved: Resolved,
) -> Result<PlannedTable, String> {
    let to = replica_tables.get(&resolved.replica).ok_or_else(|| {
        format!(
            "{} goes to the replica table {}, which does not exist there (or the role may not see it)",
            from.name, resolved.replica
        )
    })?;
    if to.kind == TableKind::Other {
        return Err(format!("the replica's {} is not a table", to.name));
    }
    let relation = relation_of(from, published.columns.as_deref());
    let mapping = compile(&relation, types, &resolved, to).map_err(|error| error.to_string())?;
    Ok(PlannedTable {
        mapping: Arc::new(mapping),
        resolved,
        source: from.clone(),
        replica: to.clone(),
        row_filter: published.row_filter.clone(),
        bytes: 0,
    })
}

/// Compiles a table anew for what the stream says it looks like now.
///
/// # Errors
/// When the replica's table does not go with it.
pub(crate) fn recompile(
    relation: &Relation,
    types: &TypeNames,
    resolved: &Resolved,
    replica: &Table,
) -> Result<Arc<TableMapping>, MappingError> {
    compile(relation, types, resolved, replica).map(Arc::new)
}

/// What the stream will say of a table, as far as the catalogue tells.
fn relation_of(table: &Table, published: Option<&[String]>) -> Relation {
    let identity = table.identity_columns();
    let is_published = |name: &String| match published {
        Some(columns) => columns.contains(name),
        None => true,
    };
    Relation {
        id: table.oid,
        name: table.name.clone(),
        replica_identity: table.replica_identity,
        columns: table
            .columns
            .iter()
            .filter(|c| !c.is_generated && is_published(&c.name))
            .map(|c| Column {
                name: c.name.clone(),
                type_oid: c.type_oid,
                type_modifier: c.type_modifier,
                is_key: identity.contains(&c.name),
            })
            .collect(),
    }
}

fn types_of<'t>(tables: impl Iterator<Item = &'t Table>) -> TypeNames {
    tables
        .flat_map(|t| &t.columns)
        .map(|c| (c.type_oid, c.base_type.clone()))
        .collect()
}

fn by_name(tables: Vec<Table>) -> HashMap<QualifiedName, Table> {
    tables
        .into_iter()
        .map(|table| (table.name.clone(), table))
        .collect()
}

/// Rules that name one table which the publication does not have.
fn unpublished(rules: &Settings, published: &[PublishedTable], publication: &str) -> Vec<String> {
    let exact = rules.rules.iter().filter(|rule| rule.source.is_exact());
    exact
        .map(|rule| QualifiedName::new(&rule.source.schema, &rule.source.table))
        .filter(|name| !published.iter().any(|table| table.name == *name))
        .map(|name| {
            format!(
                "{name} is not in the publication {publication} (or not in the database): ALTER PUBLICATION {} ADD TABLE {}",
                crate::pg::quote_ident(publication),
                name.quoted()
            )
        })
        .collect()
}

/// Replica tables that two source tables would write to.
fn shared_replicas(resolved: &[(&PublishedTable, Resolved)]) -> Vec<String> {
    let mut owners: HashMap<&QualifiedName, &QualifiedName> = HashMap::new();
    let mut problems = Vec::new();
    for (table, to) in resolved {
        if let Some(first) = owners.insert(&to.replica, &table.name) {
            problems.push(format!(
                "both {first} and {} go to the replica table {}: give each its own",
                table.name, to.replica
            ));
        }
    }
    problems
}
