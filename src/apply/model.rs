//! For simulations: a replica's tables, in memory, and what the statements of a batch do to them.
//!
//! The net effect, its stages and the rows each statement must touch are the real ones; only
//! the statements themselves are carried out here. Keys and other unique columns are held at
//! once, row by row, as a unique index that is not deferrable does.

use super::batch::{Batch, BatchItem, RowChange};
use super::moving::MovingValues;
use super::net_effect::{NetEffect, Stage, net_effect};
use super::plan::{StageContext, Step, Way};
use super::resolve::Conflicts;
use super::statement::{Shape, statement};
use super::tally::{Tally, tell};
use super::{ApplyError, Outcome, Written};
use crate::mapping::TableMapping;
use crate::pg::{ConflictKind, Refusal, RelationId, ServerError, Tuple, TupleValue, ValueFormat};
use std::collections::BTreeMap;

/// A row's values; `None` is NULL.
pub(crate) type Row = Vec<Option<Vec<u8>>>;

/// One table: its rows in no order, and the columns that are unique besides the key.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelTable {
    pub(crate) rows: Vec<Row>,
    pub(crate) unique: Vec<usize>,
}

/// All tables by the source's number.
pub(crate) type ModelTables = BTreeMap<RelationId, ModelTable>;

/// Which way a batch took; see `ways.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Taken {
    NetEffect,
    /// The same, rows of some table deleted and inserted.
    Moving,
    SourceOrder,
    Resolving,
}

/// Writes a batch; on failure the tables are as before.
pub(crate) fn write(
    tables: &mut ModelTables,
    batch: &Batch,
) -> Result<(Vec<Written>, Taken), ApplyError> {
    let before = tables.clone();
    let mut taken = Taken::NetEffect;
    let mut moving = MovingValues::default();
    let mut done = run_stages(tables, batch, &net_effect(batch, true, Some(&moving)));
    while let Err(error) = &done
        && error
            .update_refused_by_index()
            .is_some_and(|table| moving.seen_in(table))
    {
        tables.clone_from(&before);
        taken = Taken::Moving;
        done = run_stages(tables, batch, &net_effect(batch, true, Some(&moving)));
    }
    let objects = |done: &Result<Outcome, ApplyError>| {
        done.as_ref()
            .is_err_and(ApplyError::may_pass_in_source_order)
    };
    if objects(&done) {
        tables.clone_from(&before);
        taken = Taken::SourceOrder;
        done = run_stages(tables, batch, &NetEffect::in_source_order(batch));
    }
    if objects(&done) {
        tables.clone_from(&before);
        taken = Taken::Resolving;
        done = run_resolving(tables, batch);
    }
    match done {
        Ok(outcome) => Ok((tell(batch, &outcome), taken)),
        Err(error) => {
            *tables = before;
            Err(error)
        }
    }
}

/// Plans a batch in both orders and writes its statements; nothing is carried out.
pub(crate) fn plan(batch: &Batch) -> Result<usize, ApplyError> {
    let mut statements = 0;
    let moving = MovingValues::default();
    for effect in [
        net_effect(batch, true, Some(&moving)),
        NetEffect::in_source_order(batch),
    ] {
        let context = StageContext {
            format: ValueFormat::Text,
            batch,
            effect: &effect,
            parents_first: &vec![0; batch.tables.len()],
        };
        for stage in &effect.stages {
            for step in &steps(&context, stage) {
                for format in [ValueFormat::Text, ValueFormat::Binary] {
                    statement(step.mapping, &step.shape, format)?;
                }
                statements += 1;
            }
        }
    }
    Ok(statements)
}

/// The statements of a stage; a truncation has none.
fn steps<'a>(context: &StageContext<'a>, stage: &Stage) -> Vec<Step<'a>> {
    match stage {
        Stage::Net(nets) => context.plan_net(nets),
        Stage::Ordered(items) => context.plan_ordered(items),
        Stage::Truncate(_) => Vec::new(),
    }
}

pub(super) fn run_stages(
    tables: &mut ModelTables,
    batch: &Batch,
    effect: &NetEffect,
) -> Result<Outcome, ApplyError> {
    let context = StageContext {
        format: ValueFormat::Text,
        batch,
        effect,
        parents_first: &vec![0; batch.tables.len()],
    };
    let mut tally = Tally::new(batch, effect);
    for stage in &effect.stages {
        if let Stage::Truncate(item) = stage {
            truncate(tables, batch, *item);
            tally.settle(&[*item]);
        }
        for step in &steps(&context, stage) {
            step.check(carry_out(tables, &context, step)?)?;
            tally.settle(&step.items);
        }
    }
    Ok(tally.close(|_| false))
}

fn truncate(tables: &mut ModelTables, batch: &Batch, item: u32) {
    if let Some(BatchItem::Truncate {
        tables: emptied, ..
    }) = batch.items.get(item as usize)
    {
        for table in emptied {
            let id = batch.mapping(*table).unwrap().relation.id;
            tables.get_mut(&id).unwrap().rows.clear();
        }
    }
}

/// Carries out one statement; the rows it touched.
fn carry_out(
    tables: &mut ModelTables,
    context: &StageContext<'_>,
    step: &Step<'_>,
) -> Result<u64, ApplyError> {
    let table = tables.get_mut(&step.mapping.relation.id).unwrap();
    if matches!(step.shape, Shape::UpdateFullRows | Shape::DeleteFullRows) {
        return full_rows(table, context, step);
    }
    let mut touched = 0;
    for item in &step.items {
        touched += u64::from(one(table, context, step.mapping, &step.shape, *item)?);
    }
    Ok(touched)
}

/// All rows are found in the table as it is before the first is written, each another one.
fn full_rows(
    table: &mut ModelTable,
    context: &StageContext<'_>,
    step: &Step<'_>,
) -> Result<u64, ApplyError> {
    let mut found: Vec<(usize, u32)> = Vec::new();
    for item in &step.items {
        let wanted = row_of(context.effect.old_tuple(context.batch, *item).unwrap());
        let is_free = |place: &usize| !found.iter().any(|(taken, _)| taken == place);
        let mut places = (0..table.rows.len()).filter(|place| table.rows[*place] == wanted);
        found.extend(places.find(is_free).map(|place| (place, *item)));
    }
    let touched = found.len() as u64;
    if step.shape == Shape::DeleteFullRows {
        found.sort_unstable();
        for (place, _) in found.iter().rev() {
            table.rows.remove(*place);
        }
        return Ok(touched);
    }
    for (place, item) in found {
        let value = |position| {
            context
                .effect
                .new_value(context.batch, item, position, false)
        };
        let columns = 0..step.mapping.relation.columns.len();
        let row: Row = columns.map(|p| owned(value(p).unwrap())).collect();
        hold_unique(table, step.mapping, &row, Some(place))?;
        table.rows[place] = row;
    }
    Ok(touched)
}

/// One row of one statement; whether a row was touched.
fn one(
    table: &mut ModelTable,
    context: &StageContext<'_>,
    mapping: &TableMapping,
    shape: &Shape,
    item: u32,
) -> Result<bool, ApplyError> {
    let (_, change) = context.batch.row(item).unwrap();
    let key = mapping.key_positions();
    let value = |position: usize| {
        let is_key = key.contains(&position);
        let value = context
            .effect
            .new_value(context.batch, item, position, is_key);
        value.unwrap()
    };
    let old_or_new = || {
        let old = context.effect.old_tuple(context.batch, item);
        old.or(change.new_tuple()).unwrap()
    };
    let place = match shape {
        Shape::Insert | Shape::Copy => None,
        Shape::Update(_) | Shape::Overwrite(_) | Shape::Exists => {
            let wanted: Row = key.iter().map(|p| owned(value(*p))).collect();
            find(table, &key, &wanted)
        }
        Shape::Rekey(_) | Shape::Delete => {
            let wanted: Row = key
                .iter()
                .map(|p| owned(old_or_new().value(*p).unwrap()))
                .collect();
            find(table, &key, &wanted)
        }
        Shape::UpdateFull | Shape::DeleteFull => {
            let wanted = row_of(old_or_new());
            table.rows.iter().position(|row| *row == wanted)
        }
        other => panic!("the simulation has no filters: {other:?}"),
    };
    match (shape, place) {
        (Shape::Insert | Shape::Copy, _) => {
            let row: Row = (0..mapping.relation.columns.len())
                .map(|p| owned(value(p)))
                .collect();
            hold_unique(table, mapping, &row, None)?;
            table.rows.push(row);
            Ok(true)
        }
        (_, None) => Ok(false),
        (Shape::Exists, Some(_)) => Ok(true),
        (Shape::Delete | Shape::DeleteFull, Some(place)) => {
            table.rows.swap_remove(place);
            Ok(true)
        }
        (_, Some(place)) => {
            let absent: &[u16] = match shape {
                Shape::Update(absent) | Shape::Overwrite(absent) | Shape::Rekey(absent) => absent,
                _ => &[],
            };
            let mut row = table.rows[place].clone();
            for (position, held) in row.iter_mut().enumerate() {
                if !absent.iter().any(|a| usize::from(*a) == position) {
                    *held = owned(value(position));
                }
            }
            hold_unique(table, mapping, &row, Some(place))?;
            table.rows[place] = row;
            Ok(true)
        }
    }
}

fn find(table: &ModelTable, key: &[usize], wanted: &Row) -> Option<usize> {
    let is_it = |row: &Row| key.iter().zip(wanted).all(|(p, value)| row[*p] == *value);
    table.rows.iter().position(is_it)
}

fn hold_unique(
    table: &ModelTable,
    mapping: &TableMapping,
    row: &Row,
    own: Option<usize>,
) -> Result<(), ApplyError> {
    let key = mapping.key_positions();
    let others = || {
        table
            .rows
            .iter()
            .enumerate()
            .filter(|(place, _)| Some(*place) != own)
    };
    let same_key = |other: &Row| !key.is_empty() && key.iter().all(|p| other[*p] == row[*p]);
    let same_value = |other: &Row| {
        table
            .unique
            .iter()
            .any(|p| row[*p].is_some() && other[*p] == row[*p])
    };
    if others().any(|(_, other)| same_key(other) || same_value(other)) {
        let what = if own.is_some() { "update" } else { "insert" };
        return Err(refused(mapping, what, "23505"));
    }
    Ok(())
}

/// What the server would say.
pub(crate) fn refused(mapping: &TableMapping, what: &'static str, sqlstate: &str) -> ApplyError {
    ApplyError::Statement {
        table: mapping.replica.clone(),
        what,
        source: ServerError::Refused(Box::new(Refusal {
            sqlstate: sqlstate.to_owned(),
            message: "simulated".to_owned(),
            constraint: None,
        })),
    }
}

/// The resolving way under `source_wins`.
fn run_resolving(tables: &mut ModelTables, batch: &Batch) -> Result<Outcome, ApplyError> {
    let effect = NetEffect::default();
    let places = vec![0; batch.tables.len()];
    let context = StageContext {
        format: ValueFormat::Text,
        batch,
        effect: &effect,
        parents_first: &places,
    };
    let mut tally = Tally::new(batch, &effect);
    let mut conflicts = Conflicts::new();
    for (place, item) in (0u32..).zip(&batch.items) {
        let BatchItem::Row { table, change } = item else {
            truncate(tables, batch, place);
            tally.settle(&[place]);
            continue;
        };
        let mapping = batch.mapping(*table).unwrap();
        let model = tables.get_mut(&mapping.relation.id).unwrap();
        let mut run = |shape: Shape| one(model, &context, mapping, &shape, place);
        let way = context.way(*table, change);
        let absent = context.absent(*table, place);
        let kind = match change {
            RowChange::Insert { .. } if way != Way::Full && run(Shape::Exists)? => {
                run(Shape::Overwrite(Vec::new()))?;
                Some(ConflictKind::InsertExists)
            }
            RowChange::Insert { .. } => {
                run(Shape::Insert)?;
                None
            }
            RowChange::Update { .. } => {
                let shape = match way {
                    Way::Key => Shape::Update(absent.clone()),
                    Way::Rekey => Shape::Rekey(absent.clone()),
                    Way::Full => Shape::UpdateFull,
                };
                if run(shape)? {
                    None
                } else if way == Way::Full || !absent.is_empty() {
                    let table = mapping.replica.clone();
                    return Err(ApplyError::IncompleteRow { table });
                } else {
                    run(Shape::Insert)?;
                    Some(ConflictKind::UpdateMissing)
                }
            }
            RowChange::Delete { .. } => {
                let shape = if way == Way::Full {
                    Shape::DeleteFull
                } else {
                    Shape::Delete
                };
                (!run(shape)?).then_some(ConflictKind::DeleteMissing)
            }
        };
        if let Some(kind) = kind {
            *conflicts.entry((*table, kind)).or_default() += 1;
        }
        tally.settle(&[place]);
    }
    Ok(Outcome {
        conflicts,
        ..tally.close(|_| false)
    })
}

fn row_of(tuple: &Tuple) -> Row {
    tuple.values().map(owned).collect()
}

fn owned(value: TupleValue<'_>) -> Option<Vec<u8>> {
    match value {
        TupleValue::Null => None,
        TupleValue::Text(bytes) | TupleValue::Binary(bytes) => Some(bytes.to_vec()),
        TupleValue::UnchangedToast => panic!("a value that was not sent is written"),
    }
}
