//! `mapping explain`: what a row of a source table becomes, and why.

use super::{Outcome, output, settings};
use crate::apply::{TableStatement, table_statements};
use crate::cli::human;
use crate::config::Config;
use crate::conn::{Endpoint, Session};
use crate::mapping::{
    ColumnMapping, ColumnValue, ConflictPolicy, ExistingRows, ExtraRows, InputColumn, RowIdentity,
    Settings, TableMapping,
};
use crate::pg::{QualifiedName, ReplicaIdentity};
use crate::pipeline::{PlanProblem, PlannedTable, TablePlan, survey_tables};
use crate::snapshot::CopyStatements;
use anyhow::Context;
use serde::Serialize;
use tokio_postgres::Client;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Shows what a row of a source table becomes on the replica.
    Explain {
        /// The source table: schema.table.
        table: String,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let What::Explain { table, json } = args.what;
    let name = settings::table_name(&table)?;
    let config = settings::pipeline_config(&config)?;
    // Looking only: guarded on both sides.
    let source = connect(&config.source).await?;
    let replica = connect(&config.replica).await?;
    let surveyed = survey_tables(&source, &replica, &config.publication, &config.mapping).await;
    let (plan, problems) = surveyed.context("cannot survey the tables")?;
    let found = plan.tables.values().find(|t| t.source.name == name);
    let Some(found) = found else {
        let why = why_not(&name, &config.publication, &plan, &problems);
        output::line(&why.join("\n"))?;
        return Ok(Outcome::Found);
    };
    let explained = Explained::new(found, &config.mapping, &plan)?;
    let text = if json {
        serde_json::to_string_pretty(&explained)?
    } else {
        explained.render()
    };
    output::line(&text).context("cannot print the mapping")?;
    Ok(Outcome::Fine)
}

async fn connect(endpoint: &Endpoint) -> anyhow::Result<Client> {
    endpoint
        .connect(Session::SourceRead)
        .await
        .map_err(|error| anyhow::anyhow!("{error}; {}", error.advice()))
}

fn why_not(
    name: &QualifiedName,
    publication: &str,
    plan: &TablePlan,
    problems: &[PlanProblem],
) -> Vec<String> {
    let own = problems.iter().filter(|p| p.object == name.to_string());
    let own: Vec<String> = own.map(ToString::to_string).collect();
    if !own.is_empty() {
        own
    } else if plan.unmapped.contains(name) {
        vec![format!(
            "{name} stays behind: it is published, and no rule of [[tables]] speaks of it"
        )]
    } else {
        vec![format!(
            "{name} stays behind: it is not in the publication {publication}, or does not exist on the source"
        )]
    }
}

/// All that is to be said of a table.
#[derive(Debug, Serialize)]
struct Explained {
    table: String,
    replica_table: String,
    rule: String,
    /// How rows are found on the replica.
    found_by: String,
    /// What the source logs of old rows.
    replica_identity: &'static str,
    filter: Option<String>,
    on_conflict: String,
    existing_rows: &'static str,
    extra_rows: &'static str,
    columns: Vec<Column>,
    /// Source columns that do not reach the replica.
    left_behind: Vec<String>,
    /// Replica columns that the mapping does not write.
    local_columns: Vec<String>,
    copy_out: String,
    copy_in: String,
    statements: Vec<TableStatement>,
}

#[derive(Debug, Serialize)]
struct Column {
    replica_column: String,
    r#type: String,
    from: String,
    /// The type that the source's value is read as, where it is another.
    cast_from: Option<String>,
    is_key: bool,
}

impl Explained {
    fn new(table: &PlannedTable, rules: &Settings, plan: &TablePlan) -> anyhow::Result<Self> {
        let mapping = &table.mapping;
        let rule = &table.resolved.rule;
        let key: &[usize] = match &mapping.identity {
            RowIdentity::Key(key) => key,
            RowIdentity::FullRow | RowIdentity::InsertsOnly => &[],
        };
        let columns = columns(mapping, key);
        let key_names: Vec<&str> = columns
            .iter()
            .filter(|c| c.is_key)
            .map(|c| c.replica_column.as_str())
            .collect();
        let found_by = match &mapping.identity {
            RowIdentity::Key(_) => format!("key ({})", key_names.join(", ")),
            RowIdentity::FullRow => "the whole old row".to_owned(),
            RowIdentity::InsertsOnly => {
                "nothing: inserts only, the source refuses updates and deletes".to_owned()
            }
        };
        let left_behind = table
            .source
            .columns
            .iter()
            .filter(|c| !arrives(mapping, &c.name));
        let is_written = |name: &str| mapping.columns.iter().any(|c| c.name == name);
        let local = table
            .replica
            .columns
            .iter()
            .filter(|c| !is_written(&c.name));
        let CopyStatements {
            copy_out, copy_in, ..
        } = table.copy_statements(&plan.types);
        Ok(Self {
            table: table.source.name.to_string(),
            replica_table: mapping.replica.to_string(),
            rule: rule_text(rules, table),
            found_by,
            replica_identity: identity_text(table.source.replica_identity),
            filter: mapping.filter.as_ref().map(|filter| filter.sql.clone()),
            on_conflict: policy_text(&mapping.on_conflict),
            existing_rows: match rule.existing_rows {
                ExistingRows::Refuse => "refuse",
                ExistingRows::Merge => "merge",
                ExistingRows::Truncate => "truncate",
            },
            extra_rows: match rule.extra_rows {
                ExtraRows::Keep => "keep",
                ExtraRows::Delete => "delete",
            },
            columns,
            left_behind: left_behind.map(|c| c.name.clone()).collect(),
            local_columns: local.map(|c| c.name.clone()).collect(),
            copy_out,
            copy_in,
            statements: table_statements(mapping)
                .with_context(|| format!("no statements can be written for {}", mapping.replica))?,
        })
    }

    fn render(&self) -> String {
        let none_or = |list: &[String]| {
            if list.is_empty() {
                "-".to_owned()
            } else {
                list.join(", ")
            }
        };
        let facts = [
            ("rule", self.rule.clone()),
            ("rows found by", self.found_by.clone()),
            ("replica identity", self.replica_identity.to_owned()),
            (
                "rows kept where",
                self.filter.clone().unwrap_or_else(|| "always".to_owned()),
            ),
            ("on conflict", self.on_conflict.clone()),
            (
                "existing rows",
                format!("{}, extra rows {}", self.existing_rows, self.extra_rows),
            ),
            ("left behind", none_or(&self.left_behind)),
            ("the replica's own", none_or(&self.local_columns)),
        ];
        let mut lines = vec![format!("{} → {}", self.table, self.replica_table)];
        lines.extend(facts.map(|(name, value)| format!("{name:<18} {value}")));
        let rows: Vec<Vec<String>> = self
            .columns
            .iter()
            .map(|column| {
                let from = match &column.cast_from {
                    Some(read_as) => format!("{} (cast from {read_as})", column.from),
                    None => column.from.clone(),
                };
                let key = if column.is_key { "key" } else { "" };
                vec![
                    column.replica_column.clone(),
                    column.r#type.clone(),
                    key.to_owned(),
                    from,
                ]
            })
            .collect();
        lines.push(String::new());
        lines.push(human::table(
            &["REPLICA COLUMN", "TYPE", "KEY", "FROM THE SOURCE"],
            &rows,
        ));
        lines.push(String::new());
        lines.push(format!("copy   {}", self.copy_out));
        lines.push(format!("       {}", self.copy_in));
        for statement in &self.statements {
            lines.push(format!("{:<6} {}", statement.what, statement.sql));
        }
        lines.join("\n")
    }
}

/// Whether a replica column holds the source column, or is made from it.
fn arrives(mapping: &TableMapping, name: &str) -> bool {
    let is_kept = |input: &InputColumn| input.name == name && input.kept_in.is_some();
    let position = mapping.relation.position(name);
    let is_read = |column: &ColumnMapping| match &column.value {
        ColumnValue::Computed(expression) => {
            position.is_some_and(|p| expression.reads.contains(&p))
        }
        ColumnValue::Input(_) => false,
    };
    mapping.inputs.iter().any(is_kept) || mapping.columns.iter().any(is_read)
}

fn columns(mapping: &TableMapping, key: &[usize]) -> Vec<Column> {
    let column = |(place, column): (usize, &ColumnMapping)| {
        let (from, read_as) = match &column.value {
            ColumnValue::Computed(expression) => (expression.sql.clone(), None),
            ColumnValue::Input(input) => match mapping.inputs.get(*input) {
                Some(input) => (input.name.clone(), Some(&input.read_as)),
                None => (String::new(), None),
            },
        };
        let cast_from = read_as.filter(|read_as| **read_as != column.cast_to);
        Column {
            replica_column: column.name.clone(),
            r#type: column.cast_to.to_string(),
            from,
            cast_from: cast_from.map(ToString::to_string),
            is_key: key.contains(&place),
        }
    };
    mapping.columns.iter().enumerate().map(column).collect()
}

fn rule_text(rules: &Settings, table: &PlannedTable) -> String {
    let rule = &table.resolved.rule;
    match rules.rules.iter().position(|other| other == rule) {
        Some(place) => format!(
            "[[tables]] number {}: source = \"{}\"",
            place + 1,
            rule.source
        ),
        None => "no [[tables]]: every published table goes to the same name".to_owned(),
    }
}

const fn identity_text(identity: ReplicaIdentity) -> &'static str {
    match identity {
        ReplicaIdentity::Default => "default (the primary key)",
        ReplicaIdentity::Nothing => "nothing",
        ReplicaIdentity::Full => "full (the whole old row)",
        ReplicaIdentity::Index => "a unique index",
    }
}

fn policy_text(policy: &ConflictPolicy) -> String {
    match policy {
        ConflictPolicy::SourceWins => "source_wins".to_owned(),
        ConflictPolicy::ReplicaWins => "replica_wins".to_owned(),
        ConflictPolicy::NewestWins { column } => format!("newest_wins({column})"),
        ConflictPolicy::Stop => "stop".to_owned(),
    }
}
