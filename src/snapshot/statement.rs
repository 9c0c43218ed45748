//! The SQL of the first copy; pure. The mapping is done in the SELECT list, so that the
//! daemon only passes bytes on.

use crate::mapping::{ColumnMapping, ColumnValue, InputColumn, TableMapping};
use crate::pg::{QualifiedName, TypeName, TypeNames, quote_ident};

/// Blocks `from` up to `to` (exclusive) of a table; the last range is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtidRange {
    /// First block.
    pub from: u64,
    /// First block that is not part; `None`: to the end.
    pub to: Option<u64>,
}

/// How rows travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    /// As the types' text output.
    Text,
    /// As the types' binary output: only where both sides mean the same by it.
    Binary,
}

impl CopyFormat {
    fn option(self) -> &'static str {
        match self {
            Self::Text => "(FORMAT text)",
            Self::Binary => "(FORMAT binary)",
        }
    }
}

/// What the source is asked and where the answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStatements {
    /// The SELECT on the source, without range; for checking that it can be prepared.
    pub select: String,
    /// `COPY (…) TO STDOUT`.
    pub copy_out: String,
    /// `COPY … FROM STDIN`.
    pub copy_in: String,
}

/// The statements of one table, or of one range of it.
///
/// `into` is the replica table, or a staging table with the mapping's columns. `row_filter`
/// is the publication's: what the stream will not send must not be copied either.
#[must_use]
pub fn copy_statements(
    mapping: &TableMapping,
    types: &TypeNames,
    source_is_partitioned: bool,
    row_filter: Option<&str>,
    range: Option<CtidRange>,
    into: &QualifiedName,
) -> CopyStatements {
    let part = range.map(ctid_condition);
    let (is_partitioned, part) = (source_is_partitioned, part.as_deref());
    copy_statements_where(mapping, types, is_partitioned, row_filter, part, into)
}

/// The statements of those rows for which `part` is true, a condition on the source's columns.
pub(crate) fn copy_statements_where(
    mapping: &TableMapping,
    types: &TypeNames,
    source_is_partitioned: bool,
    row_filter: Option<&str>,
    part: Option<&str>,
    into: &QualifiedName,
) -> CopyStatements {
    let format = format_of(mapping, types);
    let rows = source_rows(mapping, types, source_is_partitioned, row_filter, part);
    let select = format!("SELECT {} FROM {}", rows.values.join(", "), rows.from);
    let names: Vec<String> = mapping
        .columns
        .iter()
        .map(|c| quote_ident(&c.name))
        .collect();
    let names = if names.is_empty() {
        String::new()
    } else {
        format!(" ({})", names.join(", "))
    };
    CopyStatements {
        copy_out: format!("COPY ({select}) TO STDOUT {}", format.option()),
        copy_in: format!(
            "COPY {}{names} FROM STDIN {}",
            into.quoted(),
            format.option()
        ),
        select,
    }
}

/// Rows of a source table as the mapping has them, for a SELECT.
pub(crate) struct SourceRows {
    /// By the mapping's columns.
    pub(crate) values: Vec<String>,
    /// The FROM item, with WHERE.
    pub(crate) from: String,
}

/// What the source has of the rows that belong on the replica; of those for which `part` is true.
pub(crate) fn source_rows(
    mapping: &TableMapping,
    types: &TypeNames,
    source_is_partitioned: bool,
    row_filter: Option<&str>,
    part: Option<&str>,
) -> SourceRows {
    // Partitions hold the rows of a partitioned table; an ordinary one's children are tables
    // of their own.
    let only = if source_is_partitioned { "" } else { "ONLY " };
    let mut conditions: Vec<String> = part.map(str::to_owned).into_iter().collect();
    conditions.extend(row_filter.map(|filter| format!("({filter}\n)")));
    let mut from = format!("{only}{}", mapping.relation.name.quoted());
    if let Some(columns) = columns_as_applied(mapping, types) {
        from = format!(
            "(SELECT {columns} FROM {from}{}) AS s",
            where_all(&conditions)
        );
        conditions.clear();
    }
    conditions.extend(
        mapping
            .filter
            .as_ref()
            .map(|filter| format!("({}\n)", filter.sql)),
    );
    from.push_str(&where_all(&conditions));
    let columns = mapping.columns.iter();
    SourceRows {
        values: columns.map(|c| value(mapping, c, types)).collect(),
        from,
    }
}

fn where_all(conditions: &[String]) -> String {
    if conditions.is_empty() {
        return String::new();
    }
    format!(" WHERE {}", conditions.join(" AND "))
}

/// The replica may know a column's type by another name, and reads it as text then. Where an
/// expression reads such a column, the copy must see the same text, or an enum would compare by
/// its order here and by its letters there. `None` where no column is of that kind.
fn columns_as_applied(mapping: &TableMapping, types: &TypeNames) -> Option<String> {
    let is_read = |position: usize| {
        let computed = mapping
            .columns
            .iter()
            .filter_map(|column| match &column.value {
                ColumnValue::Computed(expression) => Some(expression),
                ColumnValue::Input(_) => None,
            });
        computed
            .chain(&mapping.filter)
            .any(|expression| expression.reads.contains(&position))
    };
    let is_other = |input: &&InputColumn| {
        input.read_as.is_builtin()
            && source_type(mapping, input.position, types) != Some(&input.read_as)
            && is_read(input.position)
    };
    mapping.inputs.iter().find(is_other)?;
    let columns = mapping.inputs.iter().map(|input| {
        let name = quote_ident(&input.name);
        if is_other(&input) {
            format!("{name}::{} AS {name}", input.read_as.quoted())
        } else {
            name
        }
    });
    Some(columns.collect::<Vec<_>>().join(", "))
}

fn ctid_condition(range: CtidRange) -> String {
    let from = format!("ctid >= '({},0)'::pg_catalog.tid", range.from);
    match range.to {
        Some(to) => format!("{from} AND ctid < '({to},0)'::pg_catalog.tid"),
        None => from,
    }
}

fn value(mapping: &TableMapping, column: &ColumnMapping, types: &TypeNames) -> String {
    match &column.value {
        ColumnValue::Computed(expression) => {
            format!(
                "({}\n)::{}",
                expression.sql,
                cast_on_source(&column.cast_to)
            )
        }
        ColumnValue::Input(input) => {
            let Some(input) = mapping.inputs.get(*input) else {
                return "NULL".to_owned();
            };
            let name = quote_ident(&input.name);
            let is_same = source_type(mapping, input.position, types) == Some(&column.cast_to);
            let is_text_enough = !column.cast_to.is_builtin();
            if is_same || is_text_enough {
                name
            } else {
                format!("{name}::{}", cast_on_source(&column.cast_to))
            }
        }
    }
}

/// The replica's own types are not known to the source; their text is.
fn cast_on_source(to: &TypeName) -> String {
    if to.is_builtin() {
        to.quoted()
    } else {
        "pg_catalog.text".to_owned()
    }
}

fn source_type<'t>(
    mapping: &TableMapping,
    position: usize,
    types: &'t TypeNames,
) -> Option<&'t TypeName> {
    types.get(&mapping.relation.columns.get(position)?.type_oid)
}

/// Binary where every column is of one built-in type on both sides, and that type's binary
/// form means the same on every server.
fn format_of(mapping: &TableMapping, types: &TypeNames) -> CopyFormat {
    let travels_binary = |column: &ColumnMapping| {
        let is_same = match &column.value {
            ColumnValue::Computed(_) => true,
            ColumnValue::Input(input) => mapping
                .inputs
                .get(*input)
                .and_then(|input| source_type(mapping, input.position, types))
                .is_some_and(|from| *from == column.cast_to),
        };
        // Whether servers agree on infinite intervals is not known here.
        is_same && column.cast_to.is_portable() && !column.cast_to.is_interval()
    };
    if !mapping.columns.is_empty() && mapping.columns.iter().all(travels_binary) {
        CopyFormat::Binary
    } else {
        CopyFormat::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Triggers;
    use crate::mapping::{ConflictPolicy, Expression, InputColumn, RowIdentity};
    use crate::pg::{Column, OperatorName, Relation, ReplicaIdentity};

    fn type_name(schema: &str, name: &str) -> TypeName {
        TypeName(QualifiedName::new(schema, name))
    }

    fn mapping(mood_to: TypeName, filter: Option<&str>) -> TableMapping {
        let column = |name: &str, type_oid| Column {
            name: name.into(),
            type_oid,
            type_modifier: -1,
            is_key: false,
        };
        let input = |position, name: &str| InputColumn {
            position,
            name: name.into(),
            read_as: type_name("pg_catalog", "int8"),
            kept_in: None,
            binary: None,
        };
        let to = |name: &str, cast_to, value| ColumnMapping {
            name: name.into(),
            cast_to,
            stored_as: "int8".into(),
            equality: OperatorName::builtin_equality(),
            value,
        };
        TableMapping {
            relation: Relation {
                id: 1,
                name: QualifiedName::new("public", "a\"b"),
                replica_identity: ReplicaIdentity::Default,
                columns: vec![column("id", 20), column("mood", 16_400)],
            },
            replica: QualifiedName::new("crm", "t"),
            replica_is_partitioned: false,
            triggers: Triggers::default(),
            inputs: vec![input(0, "id"), input(1, "mood")],
            columns: vec![
                to("id", type_name("pg_catalog", "int8"), ColumnValue::Input(0)),
                to("m", mood_to, ColumnValue::Input(1)),
            ],
            identity: RowIdentity::InsertsOnly,
            filter: filter.map(|sql| Expression {
                sql: sql.into(),
                reads: vec![0],
            }),
            on_conflict: ConflictPolicy::SourceWins,
            row_type: None,
            may_reinsert: true,
        }
    }

    fn types() -> TypeNames {
        TypeNames::from([
            (20, type_name("pg_catalog", "int8")),
            (16_400, type_name("public", "mood")),
        ])
    }

    #[test]
    fn types_of_the_replica_travel_as_text() {
        let mapping = mapping(type_name("crm", "mood"), None);
        let range = CtidRange {
            from: 5,
            to: Some(9),
        };
        let made = copy_statements(
            &mapping,
            &types(),
            false,
            None,
            Some(range),
            &mapping.replica,
        );
        assert_eq!(
            made.copy_out,
            "COPY (SELECT \"id\", \"mood\" FROM ONLY \"public\".\"a\"\"b\" WHERE \
             ctid >= '(5,0)'::pg_catalog.tid AND ctid < '(9,0)'::pg_catalog.tid) TO STDOUT (FORMAT text)"
        );
        assert_eq!(
            made.copy_in,
            "COPY \"crm\".\"t\" (\"id\", \"m\") FROM STDIN (FORMAT text)"
        );
    }

    #[test]
    fn an_expression_sees_what_the_apply_will_show_it() {
        let mut mapping = mapping(type_name("pg_catalog", "text"), Some("mood >= 'mid'"));
        mapping.inputs[1].read_as = type_name("pg_catalog", "text");
        mapping.filter.as_mut().unwrap().reads = vec![1];
        let range = Some(CtidRange { from: 0, to: None });
        let made = copy_statements(&mapping, &types(), false, None, range, &mapping.replica);
        assert_eq!(
            made.select,
            "SELECT \"id\", \"mood\"::\"pg_catalog\".\"text\" FROM (SELECT \"id\", \
             \"mood\"::\"pg_catalog\".\"text\" AS \"mood\" FROM ONLY \"public\".\"a\"\"b\" \
             WHERE ctid >= '(0,0)'::pg_catalog.tid) AS s WHERE (mood >= 'mid'\n)"
        );
    }

    #[test]
    fn filters_casts_and_binary() {
        let cast = mapping(type_name("pg_catalog", "text"), Some("id > 0 -- why"));
        let made = copy_statements(&cast, &types(), true, Some("(id < 9)"), None, &cast.replica);
        assert_eq!(
            made.select,
            "SELECT \"id\", \"mood\"::\"pg_catalog\".\"text\" FROM \"public\".\"a\"\"b\" \
             WHERE ((id < 9)\n) AND (id > 0 -- why\n)"
        );
        let mut same = types();
        same.insert(16_400, type_name("pg_catalog", "text"));
        let made = copy_statements(&cast, &same, true, None, None, &cast.replica);
        assert!(
            made.copy_in.ends_with("(FORMAT binary)"),
            "{}",
            made.copy_in
        );
    }
}
