//! The net effect against a model: carrying out the stages must end where carrying out
//! the changes one by one ends, whatever the history.

use super::*;
use crate::apply::batch::RowChange;
use crate::apply::keyed_rows::bytes_of;
use crate::apply::plan::StageContext;
use crate::apply::statement::Shape;
use crate::apply::tally::tests::check_tally;
use crate::catalog::Triggers;
use crate::mapping::{
    ColumnMapping, ColumnValue, ConflictPolicy, Field, FieldValue, InputColumn, RowType,
    TableMapping,
};
use crate::pg::{
    Column, OldTuple, OperatorName, QualifiedName, Relation, ReplicaIdentity, Tuple, TypeName,
    ValueFormat,
};
use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// `None`: unchanged TOAST.
type Row = (u8, Option<u8>);

fn mapping() -> Arc<TableMapping> {
    let text = TypeName(QualifiedName::new("pg_catalog", "text"));
    let column = |name: &str, is_key| Column {
        name: name.into(),
        type_oid: 25,
        type_modifier: -1,
        is_key,
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
    Arc::new(TableMapping {
        relation: Relation {
            id: 1,
            name: QualifiedName::new("s", "t"),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("k", true), column("v", false)],
        },
        replica: QualifiedName::new("s", "t"),
        replica_is_partitioned: false,
        triggers: Triggers::default(),
        inputs: vec![input(0, "k"), input(1, "v")],
        columns: vec![to("k", 0), to("v", 1)],
        identity: RowIdentity::Key(vec![0]),
        filter: None,
        on_conflict: ConflictPolicy::SourceWins,
        row_type: None,
        may_reinsert: true,
    })
}

fn tuple(key: u8, value: Option<u8>) -> Tuple {
    let mut wire = BytesMut::new();
    wire.put_i16(2);
    wire.put_slice(&[b't', 0, 0, 0, 1, key]);
    match value {
        Some(value) => wire.put_slice(&[b't', 0, 0, 0, 1, value]),
        None => wire.put_u8(b'u'),
    }
    Tuple::decode(&mut Bytes::from(wire)).unwrap()
}

#[derive(Clone, Debug)]
enum Act {
    Insert(u8, u8),
    Update(u8, Option<u8>),
    Rekey(u8, u8, Option<u8>),
    Delete(u8),
    Truncate,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let key = 0u8..6;
    let act = prop_oneof![
        4 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Act::Insert(k, v)),
        4 => (key.clone(), any::<Option<u8>>()).prop_map(|(k, v)| Act::Update(k, v)),
        1 => (key.clone(), key.clone(), any::<Option<u8>>()).prop_map(|(a, b, v)| Act::Rekey(a, b, v)),
        3 => key.prop_map(Act::Delete),
        1 => Just(Act::Truncate),
    ];
    proptest::collection::vec(act, 0..90)
}

/// What keeps values unique, and sends them all.
fn swaps() -> impl Strategy<Value = Vec<Act>> {
    acts().prop_map(|acts| {
        let mut rows: BTreeMap<u8, u8> = BTreeMap::new();
        let mut kept = Vec::new();
        for act in acts {
            let (key, to, value) = match act {
                Act::Insert(k, v) if !rows.contains_key(&k) => (k, k, v),
                Act::Update(k, Some(v)) if rows.contains_key(&k) => (k, k, v),
                Act::Rekey(a, b, Some(v)) if rows.contains_key(&a) && !rows.contains_key(&b) => {
                    (a, b, v)
                }
                Act::Delete(k) => {
                    rows.remove(&k);
                    kept.push(act);
                    continue;
                }
                _ => continue,
            };
            // Few values, so that they are met again.
            let value = value % 8;
            if rows.iter().any(|(k, v)| *k != key && *v == value) {
                continue;
            }
            rows.remove(&key);
            rows.insert(to, value);
            kept.push(match act {
                Act::Insert(k, _) => Act::Insert(k, value),
                Act::Rekey(a, b, _) => Act::Rekey(a, b, Some(value)),
                _ => Act::Update(key, Some(value)),
            });
        }
        kept
    })
}

/// Turns wishes into a history that a source could have had, applying it to `rows`.
fn history(acts: &[Act], rows: &mut BTreeMap<u8, u8>) -> Batch {
    let mut batch = Batch::default();
    let table = batch.table(&mapping());
    for act in acts {
        match *act {
            Act::Insert(k, v) if !rows.contains_key(&k) => {
                rows.insert(k, v);
                batch.push_row(
                    table,
                    RowChange::Insert {
                        new: tuple(k, Some(v)),
                    },
                );
            }
            Act::Update(k, v) if rows.contains_key(&k) => {
                let kept = rows.get(&k).copied();
                rows.extend(v.or(kept).map(|v| (k, v)));
                batch.push_row(
                    table,
                    RowChange::Update {
                        old: None,
                        new: tuple(k, v),
                    },
                );
            }
            Act::Rekey(a, b, v) if rows.contains_key(&a) && (a == b || !rows.contains_key(&b)) => {
                let kept = rows.remove(&a);
                rows.extend(v.or(kept).map(|v| (b, v)));
                let old = Some(OldTuple::Key(tuple(a, Some(b'?'))));
                batch.push_row(
                    table,
                    RowChange::Update {
                        old,
                        new: tuple(b, v),
                    },
                );
            }
            Act::Delete(k) if rows.remove(&k).is_some() => {
                let old = OldTuple::Key(tuple(k, Some(b'?')));
                batch.push_row(table, RowChange::Delete { old });
            }
            Act::Truncate => {
                rows.clear();
                batch.push_truncate(vec![table], false);
            }
            _ => {}
        }
    }
    batch
}

/// A replica that carries stages out as strictly as the real one checks row counts.
struct Model<'a> {
    batch: &'a Batch,
    effect: &'a NetEffect,
    rows: BTreeMap<u8, u8>,
    /// No two rows may hold one value, at any time.
    is_unique: bool,
}

impl Model<'_> {
    fn row(&self, item: u32) -> Row {
        let byte = |position| match self
            .effect
            .new_value(self.batch, item, position, position == 0)
        {
            Some(TupleValue::Text(bytes)) => Some(bytes[0]),
            Some(TupleValue::UnchangedToast) => None,
            other => panic!("{other:?}"),
        };
        (byte(0).unwrap(), byte(1))
    }

    /// An update that sent no old key has kept it.
    fn old_key(&self, item: u32) -> u8 {
        let change = self.batch.row(item).unwrap().1;
        let old = change.old_tuple().map(OldTuple::tuple);
        let with_key = old.or(change.new_tuple()).unwrap();
        bytes_of(with_key.value(0).unwrap()).unwrap()[0]
    }

    fn update(&mut self, item: u32, found_by: u8) {
        let (key, value) = self.row(item);
        let kept = self
            .rows
            .remove(&found_by)
            .expect("an update must find its row");
        assert!(!self.is_unique, "rows are deleted and inserted");
        assert!(self.rows.insert(key, value.unwrap_or(kept)).is_none());
    }

    fn insert(&mut self, item: u32) {
        let (key, value) = self.row(item);
        let value = value.expect("an insert must be whole");
        assert!(
            !self.is_unique || self.rows.values().all(|other| *other != value),
            "a value is there once"
        );
        assert!(
            self.rows.insert(key, value).is_none(),
            "an insert must be new"
        );
    }

    fn carry_out(&mut self, stage: &Stage) {
        match stage {
            Stage::Truncate(_) => self.rows.clear(),
            Stage::Net(nets) => {
                for net in nets {
                    for item in &net.deletes {
                        let key = self.old_key(*item);
                        assert!(
                            self.rows.remove(&key).is_some(),
                            "a delete must find its row"
                        );
                    }
                    for item in &net.came_and_went {
                        let key = self.old_key(*item);
                        assert!(!self.rows.contains_key(&key), "none may be there");
                    }
                    for item in &net.updates {
                        let key = self.row(*item).0;
                        self.update(*item, key);
                    }
                    net.inserts.iter().for_each(|item| self.insert(*item));
                }
            }
            Stage::Ordered(items) => {
                for item in items {
                    match self.batch.row(*item).unwrap().1 {
                        RowChange::Insert { .. } => self.insert(*item),
                        RowChange::Update { old: None, .. } => {
                            self.update(*item, self.row(*item).0)
                        }
                        RowChange::Update { .. } => self.update(*item, self.old_key(*item)),
                        RowChange::Delete { .. } => {
                            let key = self.old_key(*item);
                            assert!(self.rows.remove(&key).is_some());
                        }
                    }
                }
            }
        }
    }
}

fn check(before: &[Act], acts: &[Act], is_unique: bool, plan: impl Fn(&Batch) -> NetEffect) {
    let mut source = BTreeMap::new();
    history(before, &mut source);
    let replica = source.clone();
    let batch = history(acts, &mut source);
    let effect = plan(&batch);
    let mut model = Model {
        batch: &batch,
        effect: &effect,
        rows: replica,
        is_unique,
    };
    for stage in &effect.stages {
        model.carry_out(stage);
    }
    assert_eq!(model.rows, source);
    check_tally(&effect, &batch);
}

proptest! {
    #[test]
    fn the_net_effect_ends_where_the_history_ends(before in acts(), acts in acts()) {
        let mut moving = MovingValues::default();
        check(&before, &acts, false, |batch| net_effect(batch, true, Some(&moving)));
        check(&before, &acts, false, |batch| net_effect(batch, false, None));
        check(&before, &acts, false, NetEffect::in_source_order);
        moving.seen_in(&mapping().replica);
        check(&before, &acts, false, |batch| net_effect(batch, true, Some(&moving)));
    }

    #[test]
    fn moving_values_meet_no_other_row(acts in swaps(), part in 0.0..1.0) {
        let mut moving = MovingValues::default();
        moving.seen_in(&mapping().replica);
        let (before, acts) = acts.split_at((acts.len() as f64 * part) as usize);
        check(before, acts, true, |batch| net_effect(batch, true, Some(&moving)));
    }
}

#[test]
fn a_hot_row_is_written_once() {
    let mut rows = BTreeMap::from([(1, 0)]);
    let batch = history(
        &[
            Act::Update(1, Some(1)),
            Act::Update(1, None),
            Act::Update(1, Some(3)),
        ],
        &mut rows,
    );
    let effect = net_effect(&batch, true, None);
    let net = TableNet {
        table: 0,
        updates: vec![2],
        ..TableNet::default()
    };
    assert_eq!(effect.stages, [Stage::Net(vec![net])]);
}

#[test]
fn what_came_and_went_must_not_be_there_from_before() {
    let mut rows = BTreeMap::new();
    let batch = history(&[Act::Insert(1, 1), Act::Delete(1)], &mut rows);
    let net = TableNet {
        table: 0,
        came_and_went: vec![1],
        ..TableNet::default()
    };
    assert_eq!(
        net_effect(&batch, true, None).stages,
        [Stage::Net(vec![net])]
    );
}

#[test]
fn triggers_that_fire_see_every_change_in_its_order() {
    let acts = [Act::Insert(1, 1), Act::Update(1, Some(2)), Act::Delete(1)];
    let mut batch = history(&acts, &mut BTreeMap::new());
    let ordinary = Triggers {
        ordinary: true,
        as_replica: false,
    };
    batch.tables[0] = Arc::new(TableMapping {
        triggers: ordinary,
        ..TableMapping::clone(&batch.tables[0])
    });
    let in_order = [Stage::Ordered(vec![0, 1, 2])];
    assert_eq!(net_effect(&batch, false, None).stages, in_order);
    assert_ne!(net_effect(&batch, true, None).stages, in_order);
}

#[test]
fn inserts_in_source_order_go_as_one_statement() {
    let acts = [
        Act::Insert(1, 1),
        Act::Insert(2, 1),
        Act::Update(1, Some(2)),
        Act::Insert(3, 1),
    ];
    let batch = history(&acts, &mut BTreeMap::new());
    let effect = NetEffect::in_source_order(&batch);
    let context = StageContext {
        format: ValueFormat::Text,
        batch: &batch,
        effect: &effect,
        parents_first: &[0],
    };
    let steps = context.plan_ordered(&[0, 1, 2, 3]);
    let items: Vec<&[u32]> = steps.iter().map(|step| step.items.as_slice()).collect();
    assert_eq!(items, [&[0, 1][..], &[2], &[3]]);
    assert!(steps[0].check(2).is_ok());
    assert!(steps[0].check(1).is_err());
}

#[test]
fn many_rows_in_binary_are_copied_where_copy_does_what_insert_does() {
    let value = FieldValue {
        position: 0,
        element_oid: None,
    };
    let row_type = |may_copy| {
        let field = Field {
            name: "k".into(),
            type_oid: 25,
            value: Some(value),
        };
        Some(RowType {
            fields: vec![field],
            may_copy,
        })
    };
    let shape = |rows: u8, format, row_type: Option<RowType>| {
        let acts: Vec<Act> = (0..rows).map(|key| Act::Insert(key, 1)).collect();
        let mut batch = history(&acts, &mut BTreeMap::new());
        batch.tables[0] = Arc::new(TableMapping {
            row_type,
            ..TableMapping::clone(&batch.tables[0])
        });
        let effect = net_effect(&batch, true, None);
        let context = StageContext {
            format,
            batch: &batch,
            effect: &effect,
            parents_first: &[0],
        };
        let [Stage::Net(nets)] = effect.stages.as_slice() else {
            unreachable!("one stage");
        };
        context.plan_net(nets)[0].shape.clone()
    };
    let (text, binary) = (ValueFormat::Text, ValueFormat::Binary);
    assert_eq!(shape(64, binary, row_type(true)), Shape::Copy);
    assert_eq!(shape(63, binary, row_type(true)), Shape::Insert);
    assert_eq!(shape(64, text, row_type(true)), Shape::Insert);
    assert_eq!(shape(64, binary, row_type(false)), Shape::Insert);
    assert_eq!(shape(64, binary, None), Shape::Insert);
}

#[test]
fn the_rest_of_a_batch_speaks_only_of_its_own_tables() {
    let of_relation = |id| {
        let mut mapping = TableMapping::clone(&mapping());
        mapping.relation.id = id;
        Arc::new(mapping)
    };
    let [first, second] = [1, 2].map(of_relation);
    let mut batch = Batch::default();
    let numbers = [batch.table(&first), batch.table(&second)];
    batch.push_row(
        numbers[0],
        RowChange::Insert {
            new: tuple(1, None),
        },
    );
    let cut = batch.end();
    batch.push_row(
        numbers[1],
        RowChange::Insert {
            new: tuple(2, None),
        },
    );
    batch.push_truncate(vec![numbers[1]], false);
    let mut rest = batch.split_off(cut);

    assert_eq!((batch.len(), rest.len(), rest.tables.len()), (1, 2, 1));
    let spoken_of = rest.row_mapping(0).unwrap();
    assert!(Arc::ptr_eq(spoken_of, &second));
    let BatchItem::Truncate { tables, .. } = &rest.items[1] else {
        panic!("not a TRUNCATE");
    };
    assert_eq!(*tables, [0]);
    assert_eq!([rest.table(&second), rest.table(&first)], [0, 1]);
}
