//! Rows without a key against a bag of rows: merged or one by one, the same must remain.

use crate::apply::Written;
use crate::apply::batch::{Batch, RowChange};
use crate::apply::model::{ModelTable, ModelTables, Row, Taken, run_stages, write};
use crate::apply::moving::MovingValues;
use crate::apply::net_effect::{NetEffect, Stage, TableNet, net_effect};
use crate::apply::tally::tests::check_tally;
use crate::catalog::Triggers;
use crate::mapping::{
    ColumnMapping, ColumnValue, ConflictPolicy, Expression, InputColumn, RowIdentity, TableMapping,
};
use crate::pg::{
    Column, OldTuple, OperatorName, QualifiedName, Relation, ReplicaIdentity, Tuple, TypeName,
};
use crate::pgoutput::encode::{Value, tuple};
use foldhash::HashMap;
use proptest::prelude::*;
use std::sync::Arc;

const TABLE: u32 = 1;

/// Two columns; `left_out` is published and not mapped.
fn mapping() -> TableMapping {
    let text = TypeName(QualifiedName::new("pg_catalog", "text"));
    let column = |name: &str| Column {
        name: name.into(),
        type_oid: 25,
        type_modifier: -1,
        is_key: true,
    };
    let input = |position, name: &str| InputColumn {
        position,
        name: name.into(),
        read_as: text.clone(),
        kept_in: Some(name.into()),
        binary: None,
    };
    let to = |name: &str, input| ColumnMapping {
        name: name.into(),
        cast_to: text.clone(),
        stored_as: "text".into(),
        equality: OperatorName::builtin_equality(),
        value: ColumnValue::Input(input),
    };
    TableMapping {
        relation: Relation {
            id: TABLE,
            name: QualifiedName::new("s", "t"),
            replica_identity: ReplicaIdentity::Full,
            columns: vec![column("a"), column("b")],
        },
        replica: QualifiedName::new("s", "t"),
        replica_is_partitioned: false,
        triggers: Triggers::default(),
        inputs: vec![input(0, "a"), input(1, "b")],
        columns: vec![to("a", 0), to("b", 1)],
        identity: RowIdentity::FullRow,
        filter: None,
        on_conflict: ConflictPolicy::SourceWins,
        row_type: None,
        may_reinsert: false,
    }
}

/// `a` is a letter, or NULL for `-`; `b` likewise, or unchanged for `=`.
fn row(letters: &str) -> Tuple {
    let value = |letter: char| match letter {
        '-' => Value::Null,
        '=' => Value::UnchangedToast,
        letter => Value::Text(letter.to_string().into_bytes()),
    };
    tuple(&letters.chars().map(value).collect::<Vec<_>>())
}

fn full(letters: &str) -> OldTuple {
    OldTuple::Full(row(letters))
}

/// `+new`, `-old` and `old>new`, each of a row.
fn batch_of(mapping: TableMapping, changes: &str) -> Batch {
    let mut batch = Batch::default();
    let table = batch.table(&Arc::new(mapping));
    for change in changes.split_whitespace() {
        let change = match change.split_once('>') {
            Some((old, new)) => RowChange::Update {
                old: Some(full(old)),
                new: row(new),
            },
            None if change.starts_with('+') => RowChange::Insert {
                new: row(&change[1..]),
            },
            None => RowChange::Delete {
                old: full(&change[1..]),
            },
        };
        batch.push_row(table, change);
    }
    batch
}

/// What remains of changes: for each update, the change that says what the row was.
fn net(changes: &str) -> (TableNet, HashMap<u32, u32>) {
    let batch = batch_of(mapping(), changes);
    let mut effect = net_effect(&batch, true, None);
    let first = std::mem::take(&mut effect.first);
    match effect.stages.pop() {
        Some(Stage::Net(mut nets)) if effect.stages.is_empty() => (nets.remove(0), first),
        None => (TableNet::default(), first),
        other => panic!("{other:?} after {:?}", effect.stages),
    }
}

#[test]
fn changes_of_one_row_are_merged() {
    // Changes, then what remains: inserts, updates with their first change, deletes.
    type Remains<'a> = (&'a [u32], &'a [(u32, u32)], &'a [u32]);
    let table: [(&str, Remains<'_>); 16] = [
        ("+aa", (&[0], &[], &[])),
        ("+aa aa>bb", (&[1], &[], &[])),
        ("+aa aa>bb bb>cc", (&[2], &[], &[])),
        ("+aa -aa", (&[], &[], &[])),
        ("+aa aa>bb -bb", (&[], &[], &[])),
        ("aa>bb", (&[], &[(0, 0)], &[])),
        ("aa>bb bb>cc", (&[], &[(1, 0)], &[])),
        ("aa>bb bb>cc cc>aa", (&[], &[(2, 0)], &[])),
        ("aa>bb -bb", (&[], &[], &[0])),
        ("-aa", (&[], &[], &[0])),
        ("-aa +aa", (&[1], &[], &[0])),
        // Another row of that look, which was there before.
        ("-aa -aa +aa aa>bb", (&[3], &[], &[0, 1])),
        ("bb>cc aa>bb", (&[], &[(0, 0), (1, 1)], &[])),
        // Of equal rows each change takes one: first those of the batch.
        ("+aa +aa -aa", (&[0], &[], &[])),
        ("+aa -aa -aa", (&[], &[], &[2])),
        // NULL is a value like others, and none is unlike unchanged.
        ("a->b= -b-", (&[], &[], &[0])),
    ];
    for (changes, (inserts, updates, deletes)) in table {
        let (net, first) = net(changes);
        assert_eq!(net.inserts, inserts, "{changes}");
        assert_eq!(net.full_deletes, deletes, "{changes}");
        let of_update = |last: &u32| (*last, first[last]);
        let found: Vec<_> = net.full_updates.iter().map(of_update).collect();
        assert_eq!(found, updates, "{changes}");
    }
}

#[test]
fn what_is_not_mapped_tells_no_rows_apart() {
    let mut mapping = mapping();
    mapping.inputs.pop();
    mapping.columns.pop();
    let batch = batch_of(mapping, "+a1 a2>b= -b3");
    assert_eq!(net_effect(&batch, true, None).stages, []);
}

#[test]
fn source_order_is_kept_where_rows_are_not_told_apart() {
    let ordered = [Stage::Ordered(vec![0, 1])];
    let stages = |mapping| net_effect(&batch_of(mapping, "aa>bb -bb"), true, None).stages;
    let expression = |sql: &str| Expression::new(sql, ["a", "b"].into_iter());
    let filtered = TableMapping {
        filter: Some(expression("a > 'b'")),
        ..mapping()
    };
    assert_eq!(stages(filtered), ordered);
    let mut unseen = mapping();
    for column in &mut unseen.columns {
        column.value = ColumnValue::Computed(expression("now()"));
    }
    assert_eq!(stages(unseen), ordered);
    let fires = Triggers {
        ordinary: false,
        as_replica: true,
    };
    let triggered = TableMapping {
        triggers: fires,
        ..mapping()
    };
    assert_eq!(stages(triggered), ordered);
    // The stream does not hold the row.
    let batch = batch_of(mapping(), "a=>bb -bb");
    let stages = net_effect(&batch, true, None).stages;
    assert_eq!(stages[0], Stage::Ordered(vec![0]));
    let mut batch = Batch::default();
    let table = batch.table(&Arc::new(mapping()));
    let old = OldTuple::Key(row("aa"));
    batch.push_row(table, RowChange::Delete { old });
    assert_eq!(
        net_effect(&batch, true, None).stages,
        [Stage::Ordered(vec![0])]
    );
}

#[derive(Clone, Debug)]
enum Act {
    Insert(String),
    /// The row at a place, as far as there are rows, becomes this one.
    Update(usize, String),
    Delete(usize),
    Truncate,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => "[ab-][ab-]".prop_map(Act::Insert),
        10 => (any::<usize>(), "[ab-][ab=-]").prop_map(|(place, row)| Act::Update(place, row)),
        7 => any::<usize>().prop_map(Act::Delete),
        1 => Just(Act::Truncate),
    ];
    proptest::collection::vec(act, 0..60)
}

/// What a source that these things happened to would send; `rows` are its rows.
fn history(acts: &[Act], rows: &mut Vec<String>) -> Batch {
    history_of(mapping(), acts, rows)
}

fn history_of(mapping: TableMapping, acts: &[Act], rows: &mut Vec<String>) -> Batch {
    let mut batch = Batch::default();
    let table = batch.table(&Arc::new(mapping));
    for act in acts {
        match act {
            Act::Insert(new) => {
                rows.push(new.clone());
                batch.push_row(table, RowChange::Insert { new: row(new) });
            }
            Act::Update(place, wanted) if !rows.is_empty() => {
                let place = place % rows.len();
                let before = rows[place].clone();
                // NULL is never out of line, and so never left out.
                let is_unsent = wanted.ends_with('=') && !before.ends_with('-');
                let kept = before.chars().last().unwrap().to_string();
                rows[place] = wanted.replace('=', &kept);
                let sent = if is_unsent { wanted } else { &rows[place] };
                let change = RowChange::Update {
                    old: Some(full(&before)),
                    new: row(sent),
                };
                batch.push_row(table, change);
            }
            Act::Delete(place) if !rows.is_empty() => {
                let gone = rows.swap_remove(place % rows.len());
                batch.push_row(table, RowChange::Delete { old: full(&gone) });
            }
            Act::Truncate => {
                rows.clear();
                batch.push_truncate(vec![table], false);
            }
            Act::Update(..) | Act::Delete(_) => {}
        }
    }
    batch
}

fn tables(rows: &[String]) -> ModelTables {
    let value = |letter: char| (letter != '-').then(|| letter.to_string().into_bytes());
    let table = ModelTable {
        rows: rows
            .iter()
            .map(|row| row.chars().map(value).collect())
            .collect(),
        unique: Vec::new(),
    };
    ModelTables::from([(TABLE, table)])
}

fn sorted(tables: &ModelTables) -> Vec<Row> {
    let mut rows = tables[&TABLE].rows.clone();
    rows.sort();
    rows
}

proptest! {
    #[test]
    fn merged_or_in_source_order_the_same_rows_remain(before in acts(), acts in acts()) {
        let mut source = Vec::new();
        history(&before, &mut source);
        let (mut merged, mut ordered) = (tables(&source), tables(&source));
        let batch = history(&acts, &mut source);
        let (written, taken) = write(&mut merged, &batch).unwrap();
        prop_assert_eq!(taken, Taken::NetEffect);
        let counted: u64 = written.iter().map(Written::changes).sum();
        prop_assert_eq!(counted, batch.items.len() as u64);
        check_tally(&net_effect(&batch, true, None), &batch);
        run_stages(&mut ordered, &batch, &NetEffect::in_source_order(&batch)).unwrap();
        prop_assert_eq!(sorted(&merged), sorted(&tables(&source)));
        prop_assert_eq!(sorted(&ordered), sorted(&tables(&source)));
    }

    /// A row that the replica lacks is missed as it is in source order, never passed over.
    #[test]
    fn a_row_that_is_missing_is_missed(before in acts(), acts in acts(), lost in any::<usize>()) {
        let mut source = Vec::new();
        history(&before, &mut source);
        let mut replica = source.clone();
        if !replica.is_empty() {
            replica.swap_remove(lost % replica.len());
        }
        let (mut merged, mut ordered) = (tables(&replica), tables(&replica));
        let batch = history(&acts, &mut source);
        let source_order = NetEffect::in_source_order(&batch);
        let is_met = run_stages(&mut ordered, &batch, &source_order).is_ok();
        let taken = run_stages(&mut merged, &batch, &net_effect(&batch, true, None));
        prop_assert_eq!(taken.is_ok(), is_met);
        if is_met {
            prop_assert_eq!(sorted(&merged), sorted(&ordered));
        }
    }

    /// The replica has a key where the source's whole rows are logged, since the source has none
    /// or one that is deferred: what passes as sets is right, and what cannot be is refused.
    #[test]
    fn a_key_of_the_replica_alone_loses_no_row(before in acts(), acts in acts()) {
        let keyed = || TableMapping {
            identity: RowIdentity::Key(vec![0]),
            ..mapping()
        };
        let mut source = Vec::new();
        history(&before, &mut source);
        source.sort();
        source.dedup_by_key(|row| row.chars().next());
        source.retain(|row| !row.starts_with('-'));
        let mut replica = tables(&source);
        // Few changes: of many, one would be refused.
        let few = acts.len().min(4);
        let batch = history_of(keyed(), &acts[..few], &mut source);
        let moving = MovingValues::default();
        if run_stages(&mut replica, &batch, &net_effect(&batch, true, Some(&moving))).is_ok() {
            prop_assert_eq!(sorted(&replica), sorted(&tables(&source)));
        }
    }
}
