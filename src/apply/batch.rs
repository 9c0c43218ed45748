//! A batch: changes in source order that go to the replica in one transaction.
//!
//! It holds whole source transactions, or consecutive parts of one that is too large
//! to be held. Changes keep the bytes they came in; tables are referred to by number.

use crate::mapping::TableMapping;
use crate::pg::{Change, OldTuple, RelationId, Tuple, TupleValue};
use crate::progress::KeptChange;
use foldhash::HashMap;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What happens to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// A new row.
    Insert {
        /// The row.
        new: Tuple,
    },
    /// A row that changed.
    Update {
        /// As it was, as far as the source says.
        old: Option<OldTuple>,
        /// As it is.
        new: Tuple,
    },
    /// A row that went.
    Delete {
        /// As it was, as far as the source says.
        old: OldTuple,
    },
}

/// One change, in source order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchItem {
    /// A row of a table of the batch.
    Row {
        /// Index into [`Batch::tables`].
        table: u32,
        /// The change.
        change: RowChange,
    },
    /// Tables emptied by one statement.
    Truncate {
        /// Indexes into [`Batch::tables`].
        tables: Vec<u32>,
        /// RESTART IDENTITY.
        restart_identity: bool,
    },
}

/// Changes to be applied together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The tables spoken of.
    pub tables: Vec<Arc<TableMapping>>,
    /// The last number of each relation's table.
    numbers: HashMap<RelationId, u32>,
    /// The changes.
    pub items: Vec<BatchItem>,
    /// Changes that are not applied but kept in the books.
    pub kept: Vec<KeptChange>,
    /// Bytes held.
    pub bytes: usize,
}

/// Where a batch is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Items before it.
    pub items: usize,
    /// Kept changes before it.
    pub kept: usize,
    /// Bytes before it.
    pub bytes: usize,
}

impl Batch {
    /// The number of a table in this batch.
    pub fn table(&mut self, mapping: &Arc<TableMapping>) -> u32 {
        let id = mapping.relation.id;
        if let Some(number) = self.numbers.get(&id)
            && let Some(known) = self.mapping(*number)
            && Arc::ptr_eq(known, mapping)
        {
            return *number;
        }
        let number = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        self.tables.push(Arc::clone(mapping));
        self.numbers.insert(id, number);
        number
    }

    /// Appends a row's change.
    pub fn push_row(&mut self, table: u32, change: RowChange) {
        self.bytes += change.wire_bytes() + size_of::<BatchItem>();
        self.items.push(BatchItem::Row { table, change });
    }

    /// Appends a TRUNCATE.
    pub fn push_truncate(&mut self, tables: Vec<u32>, restart_identity: bool) {
        self.bytes += size_of::<BatchItem>() + tables.len() * 4;
        self.items.push(BatchItem::Truncate {
            tables,
            restart_identity,
        });
    }

    /// Appends a change that is kept.
    pub fn keep(&mut self, change: KeptChange) {
        self.bytes += change.bytes();
        self.kept.push(change);
    }

    /// Where it ends now.
    #[must_use]
    pub fn end(&self) -> Cut {
        Cut {
            items: self.items.len(),
            kept: self.kept.len(),
            bytes: self.bytes,
        }
    }

    /// Cuts it in two; returns the rest.
    #[must_use]
    pub fn split_off(&mut self, at: Cut) -> Self {
        let mut rest = Self {
            items: self.items.split_off(at.items.min(self.items.len())),
            kept: self.kept.split_off(at.kept.min(self.kept.len())),
            bytes: self.bytes.saturating_sub(at.bytes),
            ..Self::default()
        };
        self.bytes = at.bytes;
        rest.speak_only_of_its_own(self);
        rest
    }

    /// Gives its tables numbers of its own, so that it counts no others and lets old versions go.
    fn speak_only_of_its_own(&mut self, cut_from: &Self) {
        let mut own = HashMap::default();
        let tables = &mut self.tables;
        let mut renumber = |number: &mut u32| {
            *number = *own.entry(*number).or_insert_with(|| {
                tables.extend(cut_from.mapping(*number).cloned());
                u32::try_from(tables.len() - 1).unwrap_or(u32::MAX)
            });
        };
        for item in &mut self.items {
            match item {
                BatchItem::Row { table, .. } => renumber(table),
                BatchItem::Truncate { tables, .. } => tables.iter_mut().for_each(&mut renumber),
            }
        }
        let last = cut_from.numbers.iter();
        self.numbers = last
            .filter_map(|(id, number)| Some((*id, *own.get(number)?)))
            .collect();
    }

    /// No changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.kept.is_empty()
    }

    /// How many changes, applied or kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len() + self.kept.len()
    }

    /// A table by its number.
    #[must_use]
    pub fn mapping(&self, table: u32) -> Option<&Arc<TableMapping>> {
        self.tables.get(table as usize)
    }

    /// The table of a row's change by its place.
    #[must_use]
    pub fn row_mapping(&self, item: u32) -> Option<&Arc<TableMapping>> {
        self.mapping(self.row(item)?.0)
    }

    /// A row's change by its place.
    #[must_use]
    pub fn row(&self, item: u32) -> Option<(u32, &RowChange)> {
        match self.items.get(item as usize)? {
            BatchItem::Row { table, change } => Some((*table, change)),
            BatchItem::Truncate { .. } => None,
        }
    }
}

impl RowChange {
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Insert { new } => new.wire_bytes(),
            Self::Update { old, new } => {
                new.wire_bytes() + old.as_ref().map_or(0, |old| old.tuple().wire_bytes())
            }
            Self::Delete { old } => old.tuple().wire_bytes(),
        }
    }

    /// As the source sent it.
    #[must_use]
    pub fn into_change(self, relation: RelationId) -> Change {
        match self {
            Self::Insert { new } => Change::Insert { relation, new },
            Self::Update { old, new } => Change::Update { relation, old, new },
            Self::Delete { old } => Change::Delete { relation, old },
        }
    }

    /// The row as it is now.
    #[must_use]
    pub fn new_tuple(&self) -> Option<&Tuple> {
        match self {
            Self::Insert { new } | Self::Update { new, .. } => Some(new),
            Self::Delete { .. } => None,
        }
    }

    /// The row as it was.
    #[must_use]
    pub fn old_tuple(&self) -> Option<&OldTuple> {
        match self {
            Self::Insert { .. } => None,
            Self::Update { old, .. } => old.as_ref(),
            Self::Delete { old } => Some(old),
        }
    }

    /// What tells rows of a table apart without telling their keys: 16 letters; `None` where
    /// the row has no key.
    #[must_use]
    pub fn key_hash(&self, mapping: &TableMapping) -> Option<String> {
        let key = match self.old_tuple() {
            Some(old) => old.tuple(),
            None => self.new_tuple()?,
        };
        let mut hash = Sha256::new();
        let mut parts = 0;
        for position in mapping.iter_key_positions() {
            let (TupleValue::Text(bytes) | TupleValue::Binary(bytes)) = key.value(position)? else {
                return None;
            };
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
            parts += 1;
        }
        let hash = hash.finalize();
        let hex = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
        (parts > 0).then(|| hex.collect())
    }

    /// A value of the row as it is now, taken from the old image where the source left
    /// it out as unchanged and the old image is known to hold it.
    #[must_use]
    pub fn new_value(&self, position: usize, is_key: bool) -> Option<TupleValue<'_>> {
        let value = self.new_tuple()?.value(position)?;
        if value != TupleValue::UnchangedToast {
            return Some(value);
        }
        match self.old_tuple() {
            Some(OldTuple::Full(old)) => old.value(position),
            // A key tuple holds the identity's columns only; its other nulls mean nothing.
            Some(OldTuple::Key(old)) if is_key => old.value(position),
            _ => Some(TupleValue::UnchangedToast),
        }
    }
}
