//! What else writes to the replicated tables, or would: roles, triggers, sequences; and who may read
//! there what the source hides.

use super::Survey;
use crate::pg::{QualifiedName, quote_ident};
use crate::preflight::{CheckError, Findings, rows};

/// So many tables are named.
const NAMED_MAX: usize = 3;

pub(super) async fn look(
    survey: &Survey<'_>,
    is_quiet: bool,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    look_at_sequences(survey, findings).await?;
    look_at_roles(survey, findings).await?;
    for table in &survey.tables {
        let name = &table.replica.name;
        if table.replica.triggers.fire(is_quiet) {
            findings.warning(
                "diagnose.triggers",
                name,
                format!("triggers of {name} fire for what is applied: what they write is not the source's"),
                format!("ALTER TABLE {} DISABLE TRIGGER USER", name.quoted()),
            );
        }
        if table.source.row_security && !table.replica.row_security {
            findings.warning(
                "diagnose.row_security",
                name,
                format!(
                    "row security is enabled on the source's {}, and not on {name}: whoever may read it reads every row",
                    table.source.name
                ),
                format!("CREATE POLICY … ON {0}; ALTER TABLE {0} ENABLE ROW LEVEL SECURITY", name.quoted()),
            );
        }
    }
    Ok(())
}

/// Sequences are not replicated: rows that somebody inserts here, say after a cutover, would meet
/// the source's.
async fn look_at_sequences(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    let sql = "SELECT tn.nspname::pg_catalog.text, t.relname::pg_catalog.text, a.attname::pg_catalog.text, \
          sn.nspname::pg_catalog.text, s.relname::pg_catalog.text, q.seqincrement, \
          pg_catalog.has_sequence_privilege(s.oid, 'SELECT') \
        FROM pg_catalog.pg_depend AS d \
        JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S' \
        JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace \
        JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = s.oid \
        JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid \
        JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace \
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i') \
          AND d.refobjid = ANY ($1) AND a.atttypid IN (20, 21, 23) \
          AND pg_catalog.has_table_privilege(t.oid, 'SELECT') ORDER BY 1, 2, 3";
    for row in &rows(survey.replica, "sequences", sql, &[&oids]).await? {
        let name = |at| QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
        let (table, sequence) = (name(0), name(3));
        let column: String = row.get(2);
        if !row.get::<_, bool>(6) {
            findings.info(
                "diagnose.unreadable",
                &sequence,
                format!("where the sequence {sequence} stands cannot be looked at"),
                format!("let the role SELECT from {}", sequence.quoted()),
            );
            continue;
        }
        let (furthest, behind) = if row.get::<_, i64>(5) > 0 {
            ("max", ">")
        } else {
            ("min", "<")
        };
        let sql = format!(
            "SELECT r.value::pg_catalog.text, s.last_value::pg_catalog.text, r.value {behind} s.last_value \
               OR r.value = s.last_value AND NOT s.is_called \
             FROM (SELECT pg_catalog.{furthest}({}) AS value FROM {}) AS r, {} AS s",
            quote_ident(&column),
            table.quoted(),
            sequence.quoted()
        );
        let found = rows(survey.replica, "sequences", &sql, &[]).await?;
        let Some(row) = found
            .first()
            .filter(|row| row.get::<_, Option<bool>>(2) == Some(true))
        else {
            continue;
        };
        let (value, last): (String, String) = (row.get(0), row.get(1));
        findings.info(
            "diagnose.sequence",
            &sequence,
            format!("the sequence {sequence} stands at {last}, and {table}.{column} is at {value}"),
            format!(
                "before anybody inserts rows here: SELECT pg_catalog.setval('{}', {value})",
                sequence.quoted().replace('\'', "''")
            ),
        );
    }
    Ok(())
}

/// What others write is drift.
async fn look_at_roles(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    // A role may write by what it is a member of, whether it inherits that or sets it.
    let sql = "WITH acts AS MATERIALIZED (SELECT r.rolname, m.oid FROM pg_catalog.pg_roles AS r, pg_catalog.pg_roles AS m \
          WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> CURRENT_USER AND NOT m.rolsuper \
          AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')) \
        SELECT a.rolname::pg_catalog.text, pg_catalog.array_agg(DISTINCT pg_catalog.format('%I.%I', n.nspname, c.relname)) \
        FROM acts AS a \
        CROSS JOIN pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE c.oid IN (SELECT o FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS o \
            UNION SELECT p.relid FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS o, pg_catalog.pg_partition_tree(o) AS p) \
          AND pg_catalog.has_schema_privilege(a.oid, n.oid, 'USAGE') \
          AND (pg_catalog.has_table_privilege(a.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') \
            OR pg_catalog.has_any_column_privilege(a.oid, c.oid, 'INSERT, UPDATE')) \
        GROUP BY a.rolname ORDER BY a.rolname";
    for row in &rows(survey.replica, "roles", sql, &[&oids]).await? {
        let role: String = row.get(0);
        let tables: Vec<String> = row.get(1);
        let named = tables
            .iter()
            .take(NAMED_MAX)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = match tables.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        findings.warning(
            "diagnose.writers",
            &role,
            format!("the role {role} may write to {named}{more}: whatever it writes is drift"),
            format!(
                "REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {} FROM {} (or from the role, or PUBLIC, that it has this by)",
                tables.join(", "),
                quote_ident(&role)
            ),
        );
    }
    Ok(())
}
