//! Which tables take part, and each one's mapping: what the publication, both catalogues
//! and the rules come to.

use super::PipelineError;
use crate::catalog::{
    CatalogError, ForeignKey, Table, TableColumn, TableKind, fetch_builtin_types,
    fetch_foreign_keys, fetch_sizes, fetch_tables, parents_first,
};
use crate::mapping::{MappingError, Resolved, Settings, TableMapping, compile, resolve};
use crate::pg::{Column, QualifiedName, Relation, TypeNames, quote_ident};
use crate::progress::TableRecord;
use crate::replication::{PublishedTable, fetch_published_tables};
use crate::snapshot::{CopyStatements, copy_statements};
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
    /// Its part in the publication.
    pub published: PublishedTable,
    /// Size on the source in bytes.
    pub bytes: u64,
}

impl PlannedTable {
    /// Whether this is what the record speaks of.
    #[must_use]
    pub fn is_of(&self, record: &TableRecord) -> bool {
        record.is_of(
            self.source.oid,
            &self.replica.name,
            self.published.published_by,
        )
    }

    /// Whether the replica keeps values of its own beside what the source sends.
    #[must_use]
    pub fn replica_has_own_columns(&self) -> bool {
        let is_mapped = |name: &str| self.mapping.columns.iter().any(|to| to.name == name);
        let mut columns = self.replica.columns.iter();
        columns.any(|column| !column.is_generated && !is_mapped(&column.name))
    }

    /// The statements of its first copy, straight into the replica table and without ranges.
    #[must_use]
    pub fn copy_statements(&self, types: &TypeNames) -> CopyStatements {
        copy_statements(
            &self.mapping,
            types,
            self.source.kind == TableKind::Partitioned,
            self.published.row_filter.as_deref(),
            None,
            &self.mapping.replica,
        )
    }

    /// Has the source look at every expression, filter and cast of the copy.
    ///
    /// # Errors
    /// What the source says to it.
    pub async fn try_select(
        &self,
        source: &Client,
        types: &TypeNames,
    ) -> Result<(), PipelineError> {
        let select = self.copy_statements(types).select;
        let tried = source.prepare(&select).await;
        tried.map(drop).map_err(|error| PipelineError::Select {
            table: self.source.name.to_string(),
            source: error.into(),
        })
    }
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
    /// Of the records those that speak of the plan's tables, by object id.
    pub(super) fn records_of<'r>(
        &self,
        records: &'r [TableRecord],
    ) -> HashMap<u32, &'r TableRecord> {
        let is_of = |r: &&TableRecord| self.tables.get(&r.source_oid).is_some_and(|t| t.is_of(r));
        let ours = records.iter().filter(is_of);
        ours.map(|record| (record.source_oid, record)).collect()
    }

    /// Each replica table's place when tables referred to come first.
    #[must_use]
    pub fn parents_first(&self) -> HashMap<QualifiedName, u32> {
        parents_first(&self.foreign_keys)
    }
}

/// Something that keeps a table from taking part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanProblem {
    /// What it is about: a source table, or the publication.
    pub object: String,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.message, self.remedy)
    }
}

impl PlanProblem {
    pub(super) fn new(object: impl ToString, message: String, remedy: impl Into<String>) -> Self {
        Self {
            object: object.to_string(),
            message,
            remedy: remedy.into(),
        }
    }

    fn of_mapping(error: &MappingError) -> Vec<Self> {
        let (from, to) = (&error.source_table, &error.replica_table);
        let problem = |sentence: &String| {
            let (what, remedy) = match sentence.split_once(": ") {
                Some((what, remedy)) => (what, remedy.to_owned()),
                None => (
                    sentence.as_str(),
                    format!("mend the rule of {from} in [[tables]], or the replica table {to}"),
                ),
            };
            let message = format!("{from} cannot be mapped to {to}, since {what}");
            Self::new(from, message, remedy)
        };
        error.problems.iter().map(problem).collect()
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
    let (plan, problems) = survey_tables(source, replica, publication, rules).await?;
    if problems.is_empty() {
        return Ok(plan);
    }
    Err(PipelineError::Mapping {
        problems: problems.iter().map(ToString::to_string).collect(),
    })
}

/// As [`fetch_plan`]: the tables that can take part, and what keeps others from it.
///
/// # Errors
/// When a catalogue cannot be read.
pub async fn survey_tables(
    source: &Client,
    replica: &Client,
    publication: &str,
    rules: &Settings,
) -> Result<(TablePlan, Vec<PlanProblem>), PipelineError> {
    let published = fetch_published_tables(source, publication).await?;
    let mut plan = TablePlan::default();
    let mut resolved = Vec::new();
    for table in &published {
        match resolve(rules, &table.name) {
            Some(to) => resolved.push((table, to)),
            None => plan.unmapped.push(table.name.clone()),
        }
    }
    let unpublished = unpublished(rules, &published);
    let source_names: Vec<QualifiedName> = resolved
        .iter()
        .map(|(table, _)| &table.name)
        .chain(&unpublished)
        .cloned()
        .collect();
    let replica_names: Vec<QualifiedName> =
        resolved.iter().map(|(_, to)| to.replica.clone()).collect();
    let (of_source, of_replica) = tokio::try_join!(
        look_at_source(source, &source_names),
        look_at_replica(replica, &replica_names),
    )?;
    let (source_tables, sizes, builtin_types) = of_source;
    let (replica_tables, foreign_keys) = of_replica;
    plan.foreign_keys = foreign_keys;

    let missing = |name| missing_table(name, source_tables.get(name), publication);
    let mut problems: Vec<PlanProblem> = unpublished.iter().map(missing).collect();
    problems.extend(shared_replicas(&resolved));
    if resolved.is_empty() && problems.is_empty() {
        problems.push(nothing_to_do(published.len(), publication));
    }
    // The stream names no type of PostgreSQL's own, should a column of one be added.
    let mut types = builtin_types;
    types.extend(types_of(source_tables.values()));
    plan.types = Arc::new(types);

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
            Err(of_table) => problems.extend(of_table),
        }
    }
    Ok((plan, problems))
}

type ByName = HashMap<QualifiedName, Table>;

async fn look_at_source(
    source: &Client,
    names: &[QualifiedName],
) -> Result<(ByName, HashMap<u32, u64>, TypeNames), CatalogError> {
    let tables = async {
        let tables = fetch_tables(source, names).await?;
        let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
        let sizes = fetch_sizes(source, &oids).await?;
        Ok((by_name(tables), sizes))
    };
    let ((tables, sizes), types) = tokio::try_join!(tables, fetch_builtin_types(source))?;
    Ok((tables, sizes, types))
}

async fn look_at_replica(
    replica: &Client,
    names: &[QualifiedName],
) -> Result<(ByName, Vec<ForeignKey>), CatalogError> {
    let tables = fetch_tables(replica, names).await?;
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    let foreign_keys = fetch_foreign_keys(replica, &oids).await?;
    Ok((by_name(tables), foreign_keys))
}

fn plan_table(
    published: &PublishedTable,
    from: &Table,
    replica_tables: &ByName,
    types: &TypeNames,
    resolved: Resolved,
) -> Result<PlannedTable, Vec<PlanProblem>> {
    let problem =
        |message: String, remedy: String| vec![PlanProblem::new(&from.name, message, remedy)];
    let to = replica_tables.get(&resolved.replica).ok_or_else(|| {
        problem(
            format!(
                "{} goes to the replica table {}, which does not exist",
                from.name, resolved.replica
            ),
            format!(
                "create {} on the replica, or name another table in the rule's `replica`",
                resolved.replica
            ),
        )
    })?;
    if to.kind == TableKind::Other {
        return Err(problem(
            format!("the replica's {} is not a table", to.name),
            format!("name a table in the rule of {}", from.name),
        ));
    }
    if to.is_unlogged {
        return Err(problem(
            format!(
                "{} is UNLOGGED: a crash of the replica would empty it, and nothing would say so",
                to.name
            ),
            format!("ALTER TABLE {} SET LOGGED", to.name.quoted()),
        ));
    }
    let relation = relation_of(from, published.columns.as_deref());
    let mapping = compile(&relation, types, &resolved, to)
        .map_err(|error| PlanProblem::of_mapping(&error))?;
    Ok(PlannedTable {
        mapping: Arc::new(mapping),
        resolved,
        source: from.clone(),
        replica: to.clone(),
        published: published.clone(),
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
pub(super) fn relation_of(table: &Table, published: Option<&[String]>) -> Relation {
    let identity = table.identity_columns();
    // Generated columns are sent from PostgreSQL 18 on, where the publication says so.
    let is_published = |column: &TableColumn| match published {
        Some(columns) => columns.contains(&column.name),
        None => !column.is_generated,
    };
    Relation {
        id: table.oid,
        name: table.name.clone(),
        replica_identity: table.replica_identity,
        columns: table
            .columns
            .iter()
            .filter(|c| is_published(c))
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

fn by_name(tables: Vec<Table>) -> ByName {
    tables
        .into_iter()
        .map(|table| (table.name.clone(), table))
        .collect()
}

/// Tables that a rule names exactly and the publication does not have.
fn unpublished(rules: &Settings, published: &[PublishedTable]) -> Vec<QualifiedName> {
    let exact = rules.rules.iter().filter(|rule| rule.source.is_exact());
    exact
        .map(|rule| QualifiedName::new(&rule.source.schema, &rule.source.table))
        .filter(|name| !published.iter().any(|table| table.name == *name))
        .collect()
}

fn missing_table(name: &QualifiedName, table: Option<&Table>, publication: &str) -> PlanProblem {
    match table {
        None => PlanProblem::new(
            name,
            format!("a rule names the source table {name}, which does not exist"),
            "mend the rule's `source`, or create the table",
        ),
        Some(table) if table.is_unlogged => PlanProblem::new(
            name,
            format!("{name} is UNLOGGED on the source and cannot be published"),
            format!("ALTER TABLE {} SET LOGGED", name.quoted()),
        ),
        Some(_) => PlanProblem::new(
            name,
            format!("{name} is not in the publication {publication}"),
            format!(
                "on the source: ALTER PUBLICATION {} ADD TABLE {}",
                quote_ident(publication),
                name.quoted()
            ),
        ),
    }
}

fn nothing_to_do(published: usize, publication: &str) -> PlanProblem {
    PlanProblem::new(
        publication,
        format!(
            "no table takes part: the publication {publication} has {published} tables and the [[tables]] rules match none of them"
        ),
        format!(
            "ALTER PUBLICATION {} ADD TABLE …, or mend the rules",
            quote_ident(publication)
        ),
    )
}

/// Replica tables that two source tables would write to.
fn shared_replicas(resolved: &[(&PublishedTable, Resolved)]) -> Vec<PlanProblem> {
    let mut owners: HashMap<&QualifiedName, &QualifiedName> = HashMap::new();
    let mut problems = Vec::new();
    for (table, to) in resolved {
        if let Some(first) = owners.insert(&to.replica, &table.name) {
            problems.push(PlanProblem::new(
                &table.name,
                format!(
                    "both {first} and {} go to the replica table {}",
                    table.name, to.replica
                ),
                "give each its own `replica`",
            ));
        }
    }
    problems
}
