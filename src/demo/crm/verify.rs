//! The demo's verdict: both sides read whole and compared row by row, as text.
//!
//! It shares nothing with the daemon but the text of the mapping. Each side is read in one
//! snapshot, in the byte order of the key, and the two streams are merged:
//!
//! ```text
//!  source   1  2     4        key only on the source: missing
//!  replica  1  2  3  4'       key only on the replica: extra; both, but other text: different
//! ```
//!
//! The verdict is of value only while the source is quiet and the replica has caught up.

use super::{MAPPING_TOML, TABLES};
use crate::pg::{QualifiedName, Side, quote_ident};
use futures_util::{Stream, TryStreamExt};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::pin::pin;
use tokio_postgres::{Client, IsolationLevel, Transaction};

/// Every table of the demo has this key on both sides.
const KEY: &str = "id";

/// Text of a value depends on these.
const PINNED: &str = "SET LOCAL search_path = ''; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; \
                      SET LOCAL IntervalStyle = 'postgres'; SET LOCAL extra_float_digits = 3; \
                      SET LOCAL bytea_output = 'hex'; SET LOCAL row_security = off";

/// How one table compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableVerdict {
    /// The source table.
    pub source: QualifiedName,
    /// The replica table.
    pub replica: QualifiedName,
    /// Rows of the source that belong on the replica.
    pub source_rows: u64,
    /// Rows on the replica.
    pub replica_rows: u64,
    /// Rows that only the source has.
    pub missing: u64,
    /// Rows that only the replica has.
    pub extra: u64,
    /// Rows that both have with different values.
    pub different: u64,
}

impl TableVerdict {
    /// Nothing missing, nothing extra, nothing different.
    #[must_use]
    pub const fn in_sync(&self) -> bool {
        self.missing == 0 && self.extra == 0 && self.different == 0
    }
}

/// The comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The demo's own mapping does not read.
    #[error("the demo's mapping.toml cannot be read")]
    Mapping(#[from] config::ConfigError),
    /// No rule of the demo's mapping speaks of the table.
    #[error("the demo's mapping.toml has no rule for public.{0}")]
    NoRule(&'static str),
    /// One of the databases did not answer.
    #[error("the {side} could not be read to compare {table}")]
    Read {
        /// Which one.
        side: Side,
        /// The table that was read.
        table: String,
        /// What the server or the connection said.
        source: tokio_postgres::Error,
    },
}

/// Compares all seven tables.
///
/// # Errors
/// [`VerifyError`] when a side cannot be read; a difference is not an error.
pub async fn verify(
    source: &mut Client,
    replica: &mut Client,
) -> Result<Vec<TableVerdict>, VerifyError> {
    let rules = rules()?;
    let source = begin(source)
        .await
        .map_err(read_error(Side::Source, "any table"))?;
    let replica = begin(replica)
        .await
        .map_err(read_error(Side::Replica, "any table"))?;
    let mut verdicts = Vec::with_capacity(TABLES.len());
    for table in TABLES {
        let plan = plan(&source, &rules, table).await?;
        verdicts.push(compare(&source, &replica, &plan).await?);
    }
    Ok(verdicts)
}

fn read_error(side: Side, table: &str) -> impl Fn(tokio_postgres::Error) -> VerifyError + use<> {
    let table = table.to_owned();
    move |source| VerifyError::Read {
        side,
        table: table.clone(),
        source,
    }
}

/// One snapshot for the whole comparison, and a second lock against writing.
async fn begin(client: &mut Client) -> Result<Transaction<'_>, tokio_postgres::Error> {
    let tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    tx.batch_execute(PINNED).await?;
    Ok(tx)
}

/// The keys of `[[tables]]` that decide what a row looks like on the replica.
#[derive(Debug, serde::Deserialize)]
struct Rule {
    source: String,
    replica: String,
    #[serde(default)]
    columns: BTreeMap<String, String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default, rename = "where")]
    filter: Option<String>,
}

fn rules() -> Result<Vec<Rule>, config::ConfigError> {
    #[derive(serde::Deserialize)]
    struct Mapping {
        tables: Vec<Rule>,
    }
    let text = config::File::from_str(MAPPING_TOML, config::FileFormat::Toml);
    let mapping: Mapping = config::Config::builder()
        .add_source(text)
        .build()?
        .try_deserialize()?;
    Ok(mapping.tables)
}

/// The rule that names the table, or else the one for all of `public`.
fn rule_of<'r>(rules: &'r [Rule], table: &'static str) -> Result<&'r Rule, VerifyError> {
    let named = |name: &str| {
        rules
            .iter()
            .find(|rule| rule.source.strip_prefix("public.") == Some(name))
    };
    named(table)
        .or_else(|| named("*"))
        .ok_or(VerifyError::NoRule(table))
}

/// How to read one table on both sides so that equal rows are equal text.
#[derive(Debug)]
struct Plan {
    source: QualifiedName,
    replica: QualifiedName,
    source_sql: String,
    replica_sql: String,
}

async fn plan(
    source: &Transaction<'_>,
    rules: &[Rule],
    table: &'static str,
) -> Result<Plan, VerifyError> {
    let rule = rule_of(rules, table)?;
    let columns = source
        .query(
            "SELECT attname::text FROM pg_catalog.pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&QualifiedName::new("public", table).quoted()],
        )
        .await
        .map_err(read_error(Side::Source, table))?;
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    Ok(plan_reads(rule, table, &columns))
}

fn plan_reads(rule: &Rule, table: &str, columns: &[String]) -> Plan {
    let shipped = columns
        .iter()
        .filter(|column| !rule.exclude.contains(column));
    let pairs = shipped.map(|column| {
        let renamed = rule.columns.get(column).unwrap_or(column);
        (quote_ident(column), quote_ident(renamed))
    });
    let computed = rule
        .set
        .iter()
        .map(|(column, sql)| (sql.clone(), quote_ident(column)));
    let (read, kept): (Vec<String>, Vec<String>) = pairs.chain(computed).unzip();
    let source = QualifiedName::new("public", table);
    let (schema, name) = rule
        .replica
        .split_once('.')
        .unwrap_or(("public", &rule.replica));
    let replica = QualifiedName::new(schema, if name == "*" { table } else { name });
    Plan {
        source_sql: select(&source, &read, rule.filter.as_deref()),
        replica_sql: select(&replica, &kept, None),
        source,
        replica,
    }
}

/// Key and row as text. A row's text tells NULL from the empty text.
fn select(table: &QualifiedName, values: &[String], filter: Option<&str>) -> String {
    let values: Vec<String> = values
        .iter()
        .map(|value| format!("({value})::text"))
        .collect();
    format!(
        "SELECT {key}::text COLLATE \"C\", ROW({values})::text FROM {table} WHERE {filter} ORDER BY 1",
        key = quote_ident(KEY),
        values = values.join(", "),
        table = table.quoted(),
        filter = filter.unwrap_or("true"),
    )
}

async fn compare(
    source: &Transaction<'_>,
    replica: &Transaction<'_>,
    plan: &Plan,
) -> Result<TableVerdict, VerifyError> {
    let source_rows = rows(source, Side::Source, &plan.source, &plan.source_sql).await?;
    let replica_rows = rows(replica, Side::Replica, &plan.replica, &plan.replica_sql).await?;
    let mut verdict = TableVerdict {
        source: plan.source.clone(),
        replica: plan.replica.clone(),
        source_rows: 0,
        replica_rows: 0,
        missing: 0,
        extra: 0,
        different: 0,
    };
    merge(source_rows, replica_rows, &mut verdict).await?;
    Ok(verdict)
}

/// A key and the text of its row.
type KeyedRow = (String, String);

async fn rows<'t>(
    tx: &'t Transaction<'_>,
    side: Side,
    table: &QualifiedName,
    sql: &str,
) -> Result<impl Stream<Item = Result<KeyedRow, VerifyError>> + use<'t>, VerifyError> {
    let failed = read_error(side, &table.to_string());
    let rows = tx
        .query_raw(sql, std::iter::empty::<&str>())
        .await
        .map_err(&failed)?;
    Ok(rows.map_ok(|row| (row.get(0), row.get(1))).map_err(failed))
}

/// Walks both streams in key order, one row of each at a time.
async fn merge<E>(
    source: impl Stream<Item = Result<KeyedRow, E>>,
    replica: impl Stream<Item = Result<KeyedRow, E>>,
    verdict: &mut TableVerdict,
) -> Result<(), E> {
    let (mut source, mut replica) = (pin!(source), pin!(replica));
    let mut left = source.try_next().await?;
    let mut right = replica.try_next().await?;
    loop {
        let order = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.0.cmp(&right.0),
        };
        match order {
            Ordering::Less => verdict.missing += 1,
            Ordering::Greater => verdict.extra += 1,
            Ordering::Equal => verdict.different += u64::from(left != right),
        }
        if order.is_le() {
            verdict.source_rows += 1;
            left = source.try_next().await?;
        }
        if order.is_ge() {
            verdict.replica_rows += 1;
            right = replica.try_next().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    async fn merged(source: &[(&str, &str)], replica: &[(&str, &str)]) -> [u64; 5] {
        let side = |rows: &[(&str, &str)]| {
            let rows: Vec<Result<KeyedRow, ()>> = rows
                .iter()
                .map(|(key, row)| Ok(((*key).into(), (*row).into())))
                .collect();
            stream::iter(rows)
        };
        let mut v = TableVerdict {
            source: QualifiedName::new("public", "t"),
            replica: QualifiedName::new("crm", "t"),
            source_rows: 0,
            replica_rows: 0,
            missing: 0,
            extra: 0,
            different: 0,
        };
        merge(side(source), side(replica), &mut v).await.unwrap();
        [
            v.source_rows,
            v.replica_rows,
            v.missing,
            v.extra,
            v.different,
        ]
    }

    #[tokio::test]
    async fn each_kind_of_difference_is_counted_once() {
        let rows = [("1", "(a)"), ("10", "(b)"), ("2", "(c)")];
        assert_eq!(merged(&rows, &rows).await, [3, 3, 0, 0, 0]);
        assert_eq!(merged(&rows, &[]).await, [3, 0, 3, 0, 0]);
        assert_eq!(merged(&[], &rows).await, [0, 3, 0, 3, 0]);
        let drifted = [("10", "(B)"), ("2", "(c)"), ("3", "(d)")];
        assert_eq!(merged(&rows, &drifted).await, [3, 3, 1, 1, 1]);
    }

    #[test]
    fn rows_are_read_as_the_mapping_says() {
        let rules = rules().unwrap();
        let columns = ["id", "email", "current_project_id", "internal_notes"].map(String::from);
        let leads = plan_reads(rule_of(&rules, "leads").unwrap(), "leads", &columns);
        assert_eq!(
            leads.source_sql,
            "SELECT \"id\"::text COLLATE \"C\", ROW((\"id\")::text, (\"email\")::text, (\"current_project_id\")::text, \
             (lower(split_part(email, '@', 2)))::text)::text FROM \"public\".\"leads\" WHERE true ORDER BY 1"
        );
        assert_eq!(
            leads.replica_sql,
            "SELECT \"id\"::text COLLATE \"C\", ROW((\"id\")::text, (\"email\")::text, (\"project_id\")::text, \
             (\"email_domain\")::text)::text FROM \"crm\".\"leads\" WHERE true ORDER BY 1"
        );
        let logs = rule_of(&rules, "agent_interaction_logs").unwrap();
        assert_eq!(logs.filter.as_deref(), Some("level <> 'debug'"));
        let rest = plan_reads(rule_of(&rules, "clients").unwrap(), "clients", &columns);
        assert_eq!(rest.replica.to_string(), "crm.clients");
    }
}
