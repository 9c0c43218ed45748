//! What compiling a mapping decides, and what it refuses.

use super::*;
use crate::catalog::{IdentityKind, TableKind, Triggers, TypeForm, TypeKind, UniqueKey};
use crate::mapping::{ExistingRows, ExtraRows, TablePattern};
use crate::pg::{Column, OperatorName};

const INT8: u32 = 20;
const TEXT: u32 = 25;
const MOOD: u32 = 16_400;

fn builtin(name: &str) -> TypeName {
    TypeName(QualifiedName::new("pg_catalog", name))
}

fn types() -> TypeNames {
    TypeNames::from([
        (INT8, builtin("int8")),
        (TEXT, builtin("text")),
        (MOOD, TypeName(QualifiedName::new("public", "mood"))),
    ])
}

fn relation(identity: ReplicaIdentity) -> Relation {
    let column = |name: &str, type_oid, is_key| Column {
        name: name.into(),
        type_oid,
        type_modifier: -1,
        is_key: is_key || identity == ReplicaIdentity::Full,
    };
    Relation {
        id: 1,
        name: QualifiedName::new("public", "leads"),
        replica_identity: identity,
        columns: vec![
            column("id", INT8, true),
            column("email", TEXT, false),
            column("mood", MOOD, false),
            column("secret", TEXT, false),
        ],
    }
}

fn replica_column(name: &str, base_type: TypeName) -> TableColumn {
    TableColumn {
        name: name.into(),
        type_oid: 0,
        form: TypeForm {
            is_domain: false,
            kind: match base_type.is_builtin() {
                true => TypeKind::Base,
                false => TypeKind::Enum,
            },
            element: None,
        },
        base_type,
        stored_as: "int8".into(),
        equality: OperatorName::builtin_equality(),
        type_modifier: -1,
        not_null: false,
        has_default: false,
        is_generated: false,
        identity: IdentityKind::None,
    }
}

fn replica() -> Table {
    Table {
        oid: 9,
        name: QualifiedName::new("crm", "contacts"),
        kind: TableKind::Ordinary,
        is_unlogged: false,
        replica_identity: ReplicaIdentity::Default,
        row_security: false,
        has_rules: false,
        is_referred_to: false,
        triggers: Triggers::default(),
        columns: vec![
            replica_column("contact_id", builtin("int8")),
            replica_column("email", builtin("text")),
            replica_column("mood", TypeName(QualifiedName::new("crm", "mood"))),
            replica_column("local", builtin("text")),
        ],
        unique_keys: vec![UniqueKey {
            name: "contacts_pkey".into(),
            columns: vec!["contact_id".into()],
            is_primary: true,
            is_replica_identity: false,
            is_immediate: true,
        }],
    }
}

fn resolved(change: impl FnOnce(&mut TableRule)) -> Resolved {
    let mut rule = TableRule {
        source: TablePattern {
            schema: "public".into(),
            table: "leads".into(),
        },
        replica: None,
        columns: [("id".to_owned(), "contact_id".to_owned())].into(),
        exclude: vec!["secret".into()],
        set: [("email".to_owned(), "lower(email)".to_owned())].into(),
        filter: Some("secret IS NULL".into()),
        key: None,
        existing_rows: ExistingRows::Refuse,
        extra_rows: ExtraRows::Keep,
        on_conflict: ConflictPolicy::SourceWins,
        priority: 0,
        references: Vec::new(),
        unique: Vec::new(),
    };
    change(&mut rule);
    Resolved {
        source: QualifiedName::new("public", "leads"),
        replica: QualifiedName::new("crm", "contacts"),
        rule,
    }
}

/// By the rule as it is.
fn compiled(relation: &Relation, replica: &Table) -> Result<TableMapping, MappingError> {
    compile(relation, &types(), &resolved(|_| ()), replica)
}

fn problems(change: impl FnOnce(&mut TableRule)) -> String {
    let error = compile(
        &relation(ReplicaIdentity::Default),
        &types(),
        &resolved(change),
        &replica(),
    );
    error.unwrap_err().to_string()
}

#[test]
fn names_expressions_filter_and_key() {
    let mapping = compiled(&relation(ReplicaIdentity::Default), &replica()).unwrap();
    let columns: Vec<_> = mapping.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["contact_id", "mood", "email"]);
    // The excluded column is shipped all the same: the filter reads it.
    let inputs: Vec<_> = mapping.inputs.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(inputs, ["id", "email", "mood", "secret"]);
    assert_eq!(mapping.inputs[2].read_as.to_string(), "crm.mood");
    assert_eq!(mapping.identity, RowIdentity::Key(vec![0]));
    assert_eq!(mapping.key_positions(), [0]);
    assert!(!mapping.is_plain());
}

#[test]
fn full_identity_takes_a_key_of_the_replica_where_there_is_one() {
    let mapping = compiled(&relation(ReplicaIdentity::Full), &replica()).unwrap();
    assert_eq!(mapping.identity, RowIdentity::Key(vec![0]));
    let mut keyless = replica();
    keyless.unique_keys.clear();
    let mapping = compiled(&relation(ReplicaIdentity::Full), &keyless).unwrap();
    assert_eq!(mapping.identity, RowIdentity::FullRow);
    let mut nothing = relation(ReplicaIdentity::Nothing);
    nothing.columns[0].is_key = false;
    let mapping = compiled(&nothing, &replica()).unwrap();
    assert_eq!(mapping.identity, RowIdentity::InsertsOnly);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let text = problems(|rule| {
        rule.exclude = vec!["id".into(), "nope".into()];
        rule.set.insert("absent".into(), "1".into());
        rule.on_conflict = ConflictPolicy::NewestWins {
            column: "updated_at".into(),
        };
    });
    for part in [
        "nope",
        "no column secret",
        "replica column absent",
        "key column id",
        "updated_at",
    ] {
        assert!(text.contains(part), "{part} not in: {text}");
    }
}

#[test]
fn a_key_the_source_does_not_log_is_refused() {
    assert!(
        problems(|rule| rule.key = Some(vec!["mood".into()])).contains("REPLICA IDENTITY FULL")
    );
}

#[test]
fn a_required_column_that_nothing_fills_is_refused() {
    let mut table = replica();
    table.columns[3].not_null = true;
    let error = compiled(&relation(ReplicaIdentity::Default), &table);
    assert!(error.unwrap_err().to_string().contains("local is NOT NULL"));
}

/// What each needs that is not so here, an update leaves otherwise than a delete and an insert.
#[test]
fn rows_are_inserted_anew_only_where_that_leaves_what_an_update_leaves() {
    type Change = fn(&mut Relation, &mut Table, &mut TableRule);
    let may_reinsert = |change: Change| {
        let (mut from, mut to) = (relation(ReplicaIdentity::Default), replica());
        to.columns.retain(|column| column.name != "local");
        let mut resolved = resolved(|rule| {
            rule.set.clear();
            rule.filter = None;
        });
        change(&mut from, &mut to, &mut resolved.rule);
        compile(&from, &types(), &resolved, &to)
            .unwrap()
            .may_reinsert
    };
    assert!(may_reinsert(|_, _, _| ()));
    let keeps: [Change; 7] = [
        |from, _, _| *from = relation(ReplicaIdentity::Full),
        |_, to, _| to.has_rules = true,
        |_, to, _| to.is_referred_to = true,
        |_, to, _| to.columns = replica().columns,
        |_, _, rule| rule.filter = Some("id > 0".into()),
        |_, _, rule| rule.set = [("email".to_owned(), "'x'".to_owned())].into(),
        |_, _, rule| {
            rule.on_conflict = ConflictPolicy::NewestWins {
                column: "email".into(),
            }
        },
    ];
    for (number, keep) in keeps.into_iter().enumerate() {
        assert!(!may_reinsert(keep), "{number}");
    }
    assert!(may_reinsert(|_, to, _| {
        to.columns = replica().columns;
        to.columns[3].is_generated = true;
    }));
}
