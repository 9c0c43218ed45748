//! The remedy for a source table that logs nothing of old rows; pure.

use crate::catalog::{Table, TableKind};
use crate::pg::{QualifiedName, quote_ident};

/// `REPLICA IDENTITY` by the best that the table has: a unique key without NULLs, or all of it.
/// Partitions have indexes of other names than their root.
pub(super) fn identity_sql(table: &Table) -> String {
    let is_not_null = |name: &String| table.column(name).is_some_and(|column| column.not_null);
    let key = table.unique_keys.iter().find(|key| {
        key.is_immediate && !key.columns.is_empty() && key.columns.iter().all(is_not_null)
    });
    let identity = match key.filter(|key| key.is_primary || table.kind != TableKind::Partitioned) {
        Some(key) if key.is_primary => "DEFAULT".to_owned(),
        Some(key) => format!("USING INDEX {}", quote_ident(&key.name)),
        None => "FULL".to_owned(),
    };
    format!(
        "ALTER TABLE {} REPLICA IDENTITY {identity}",
        table.name.quoted()
    )
}

/// The remedy for a partition of a table without a primary key.
pub(super) fn partition_identity_sql(name: &QualifiedName) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL", name.quoted())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{IdentityKind, TableColumn, Triggers, TypeForm, UniqueKey};
    use crate::pg::{OperatorName, ReplicaIdentity, TypeName};

    fn table(not_null: bool, key: Option<(&str, bool)>) -> Table {
        Table {
            oid: 1,
            name: QualifiedName::new("s", "t"),
            kind: TableKind::Ordinary,
            is_unlogged: false,
            replica_identity: ReplicaIdentity::Nothing,
            row_security: false,
            has_rules: false,
            is_referred_to: false,
            triggers: Triggers::default(),
            columns: vec![TableColumn {
                name: "id".into(),
                type_oid: 20,
                base_type: TypeName(QualifiedName::new("pg_catalog", "int8")),
                form: TypeForm::default(),
                stored_as: "int8".into(),
                equality: OperatorName::builtin_equality(),
                type_modifier: -1,
                not_null,
                has_default: false,
                is_generated: false,
                identity: IdentityKind::None,
            }],
            unique_keys: key
                .into_iter()
                .map(|(name, is_primary)| UniqueKey {
                    name: name.into(),
                    columns: vec!["id".into()],
                    is_primary,
                    is_replica_identity: false,
                    is_immediate: true,
                })
                .collect(),
        }
    }

    #[test]
    fn the_cheapest_identity_that_holds() {
        for (table, expected) in [
            (table(true, Some(("t_pkey", true))), "DEFAULT"),
            (table(true, Some(("t_key", false))), "USING INDEX \"t_key\""),
            (table(false, Some(("t_key", false))), "FULL"),
            (table(true, None), "FULL"),
        ] {
            assert_eq!(
                identity_sql(&table),
                format!("ALTER TABLE \"s\".\"t\" REPLICA IDENTITY {expected}")
            );
        }
    }
}
