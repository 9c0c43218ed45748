//! What an operator says about tables: the validated form of `[[tables]]`.

use crate::pg::QualifiedName;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What to do where a replica table already has rows when its first copy begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistingRows {
    /// Stop before anything is changed.
    #[default]
    Refuse,
    /// Keep the rows: update those the source has, insert those that are missing.
    Merge,
    /// Empty the table first.
    Truncate,
}

/// When merging: what becomes of rows that only the replica has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtraRows {
    /// They stay.
    #[default]
    Keep,
    /// They go.
    Delete,
}

/// Whose row stands when source and replica disagree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// The source is the truth.
    #[default]
    SourceWins,
    /// What the replica has stays.
    ReplicaWins,
    /// The row with the larger value in this replica column stands; `newest_wins(updated_at)`.
    NewestWins {
        /// Name of the replica column that is compared.
        column: String,
    },
    /// Any conflict stops the pipeline.
    Stop,
}

/// The text is none of the policies.
#[derive(Debug, thiserror::Error)]
#[error("expected source_wins, replica_wins, newest_wins(COLUMN) or stop")]
pub struct ParseConflictPolicyError;

impl std::str::FromStr for ConflictPolicy {
    type Err = ParseConflictPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "source_wins" => Ok(Self::SourceWins),
            "replica_wins" => Ok(Self::ReplicaWins),
            "stop" => Ok(Self::Stop),
            other => other
                .strip_prefix("newest_wins(")
                .and_then(|rest| rest.strip_suffix(')'))
                .map(str::trim)
                .filter(|column| !column.is_empty())
                .map(|column| Self::NewestWins {
                    column: column.to_owned(),
                })
                .ok_or(ParseConflictPolicyError),
        }
    }
}

/// `schema.table` in which `*` stands for any run of characters, in either half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    /// The schema half.
    pub schema: String,
    /// The table half.
    pub table: String,
}

/// The text is not `schema.table`.
#[derive(Debug, thiserror::Error)]
#[error("expected schema.table, where * stands for any characters and \"double quotes\" keep dots")]
pub struct ParsePatternError;

impl std::str::FromStr for TablePattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (schema, rest) = take_name(text)?;
        let (table, rest) = take_name(rest.strip_prefix('.').ok_or(ParsePatternError)?)?;
        if rest.is_empty() {
            Ok(Self { schema, table })
        } else {
            Err(ParsePatternError)
        }
    }
}

/// One name off the front: up to a dot, or a double-quoted one with `""` for a quote.
fn take_name(text: &str) -> Result<(String, &str), ParsePatternError> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return if name.is_empty() {
            Err(ParsePatternError)
        } else {
            Ok((name.to_owned(), rest))
        };
    };
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('"').ok_or(ParsePatternError)?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None if name.is_empty() => return Err(ParsePatternError),
            None => return Ok((name, after)),
        }
    }
}

impl TablePattern {
    /// Whether the pattern names exactly one table.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.schema.contains('*') && !self.table.contains('*')
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// Replica columns that refer to rows of another replica table, whether that is declared there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The columns that refer.
    pub columns: Vec<String>,
    /// The replica table referred to.
    pub table: QualifiedName,
    /// Its columns, as many.
    pub to: Vec<String>,
}

/// One `[[tables]]` entry: which source tables it speaks of and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRule {
    /// The source tables.
    pub source: TablePattern,
    /// Where they go; a `*` stands for what the same half of `source` matched. Default: the same name.
    pub replica: Option<TablePattern>,
    /// Source column to replica column, for those whose names differ.
    pub columns: BTreeMap<String, String>,
    /// Source columns that stay behind.
    pub exclude: Vec<String>,
    /// Replica column to an SQL expression over the source's columns.
    pub set: BTreeMap<String, String>,
    /// `where`: an SQL condition over the source's columns; rows for which it is true belong on the replica.
    pub filter: Option<String>,
    /// Source columns that identify a row; default: the replica identity or the primary key.
    pub key: Option<Vec<String>>,
    /// Overrides `[copy] existing_rows`.
    pub existing_rows: ExistingRows,
    /// Overrides `[copy] extra_rows`.
    pub extra_rows: ExtraRows,
    /// Overrides `[apply] on_conflict`.
    pub on_conflict: ConflictPolicy,
    /// Higher is copied earlier.
    pub priority: i32,
    /// What `diagnose` holds the replica's rows against, beside what is declared.
    pub references: Vec<Reference>,
    /// Sets of replica columns that no two rows share: natural keys.
    pub unique: Vec<Vec<String>>,
}

/// All rules in file order, and what holds where none says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The rules. Empty: every published table goes to the same name.
    pub rules: Vec<TableRule>,
    /// `[copy] existing_rows`, for tables without a rule.
    pub existing_rows: ExistingRows,
    /// `[copy] extra_rows`, for tables without a rule.
    pub extra_rows: ExtraRows,
    /// `[apply] on_conflict`, for tables without a rule.
    pub on_conflict: ConflictPolicy,
}

impl Settings {
    /// Tells these rules from others, within one version of ours: what was found under others says
    /// nothing now.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.rules).hash(&mut hasher);
        format!("{} {:016x}", env!("CARGO_PKG_VERSION"), hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let parse = |text: &str| {
            text.parse::<TablePattern>()
                .map(|p| (p.schema, p.table))
                .ok()
        };
        assert_eq!(
            parse("public.leads"),
            Some(("public".into(), "leads".into()))
        );
        assert_eq!(
            parse("\"a.b\".\"c\"\"d\""),
            Some(("a.b".into(), "c\"d".into()))
        );
        for wrong in ["", "leads", "a.b.c", ".b", "a.", "\"a.b", "\"\".b"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn policies() {
        let newest = "newest_wins( updated_at )"
            .parse::<ConflictPolicy>()
            .unwrap();
        assert_eq!(
            newest,
            ConflictPolicy::NewestWins {
                column: "updated_at".into()
            }
        );
        assert!("newest_wins()".parse::<ConflictPolicy>().is_err());
        assert!("latest".parse::<ConflictPolicy>().is_err());
    }
}
