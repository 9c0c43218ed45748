//! The resolving way: one change at a time, each looked at before the next, for a batch
//! in which source and replica disagree.
//!
//! ```text
//!  change    row on the replica   conflict          source_wins   replica_wins  newest_wins
//!  insert    key is there         insert_exists     overwrite     keep          newer row stands
//!  update    key is missing       update_missing    insert        leave out     insert
//!  update    replica is newer     update_origin_…   –             –             keep
//!  delete    key is missing       delete_missing    nothing to do, whatever the policy
//! ```
//!
//! Under `stop` every conflict is an error. A unique key other than the row's own that is
//! taken stays an error under every policy: which of two rows is right cannot be known here.

use super::batch::RowChange;
use super::error::ApplyError;
use super::plan::{StageContext, Way};
use super::session::ReplicaSession;
use super::statement::Shape;
use crate::mapping::{ConflictPolicy, RowIdentity, TableMapping};
use crate::pg::ConflictKind;
use std::collections::BTreeMap;

/// Conflicts met, by table number and kind.
pub(crate) type Conflicts = BTreeMap<(u32, ConflictKind), u64>;

/// Resolves one change at a time.
pub(crate) struct Resolver<'a> {
    pub(crate) context: &'a StageContext<'a>,
    pub(crate) session: &'a mut ReplicaSession,
    pub(crate) conflicts: &'a mut Conflicts,
    /// Rows of filtered tables that neither were nor became visible.
    pub(crate) filtered: &'a mut BTreeMap<u32, u64>,
}

impl Resolver<'_> {
    /// Brings the replica to where the source was after this change.
    pub(crate) async fn resolve(&mut self, item: u32) -> Result<(), ApplyError> {
        let context = self.context;
        let Some((table, change)) = context.batch.row(item) else {
            return Ok(());
        };
        let Some(mapping) = context.batch.mapping(table) else {
            return Ok(());
        };
        let step = Step {
            table,
            item,
            mapping,
        };
        match (context.way(table, change), change) {
            (_, RowChange::Insert { .. }) => self.insert(&step).await,
            (Way::Key, RowChange::Update { .. }) => {
                let absent = context.absent(table, item);
                let touched = self.run(&step, &Shape::Update(absent)).await?;
                self.after_update(&step, touched).await
            }
            (Way::Rekey, RowChange::Update { .. }) => self.rekey(&step).await,
            (Way::Full, RowChange::Update { .. }) => {
                let touched = self.run(&step, &Shape::UpdateFull).await?;
                if touched == 0 && mapping.filter.is_some() {
                    // It left the filter, or was never in it.
                    self.run(&step, &Shape::DeleteFull).await?;
                    let inserted = self.run(&step, &Shape::Insert).await?;
                    self.note_filtered(&step, inserted);
                    return Ok(());
                }
                self.after_update(&step, touched).await
            }
            (way, RowChange::Delete { .. }) => {
                let shape = if way == Way::Full {
                    Shape::DeleteFull
                } else {
                    Shape::Delete
                };
                match self.run(&step, &shape).await? {
                    0 if mapping.filter.is_some() => Ok(()),
                    0 => self.conflict(&step, ConflictKind::DeleteMissing),
                    touched => one_row(&step, "delete", touched),
                }
            }
        }
    }

    async fn insert(&mut self, step: &Step<'_>) -> Result<(), ApplyError> {
        if !matches!(step.mapping.identity, RowIdentity::Key(_)) {
            let touched = self.run(step, &Shape::Insert).await?;
            if step.mapping.filter.is_some() {
                self.note_filtered(step, touched);
                return Ok(());
            }
            return one_row(step, "insert", touched);
        }
        if self.run(step, &Shape::InsertIfAbsent).await? == 1 {
            return Ok(());
        }
        if self.run(step, &Shape::Exists).await? == 0 {
            // Not there and not inserted: the filter keeps it out, or something swallows it.
            if step.mapping.filter.is_some() {
                self.note_filtered(step, 0);
                return Ok(());
            }
            return one_row(step, "insert", 0);
        }
        self.conflict(step, ConflictKind::InsertExists)?;
        match &step.mapping.on_conflict {
            ConflictPolicy::SourceWins => self.overwrite(step, Vec::new()).await,
            ConflictPolicy::NewestWins { .. } => {
                // Touches nothing where the replica's row is newer, and that is the rule.
                self.run(step, &Shape::Update(Vec::new())).await.map(|_| ())
            }
            ConflictPolicy::ReplicaWins | ConflictPolicy::Stop => Ok(()),
        }
    }

    async fn overwrite(&mut self, step: &Step<'_>, absent: Vec<u16>) -> Result<(), ApplyError> {
        let touched = self.run(step, &Shape::Overwrite(absent.clone())).await?;
        if touched == 0 && step.mapping.filter.is_some() {
            self.run(step, &Shape::DeleteFiltered(absent)).await?;
            return Ok(());
        }
        one_row(step, "update", touched)
    }

    /// What an update by key left to do.
    async fn after_update(&mut self, step: &Step<'_>, touched: u64) -> Result<(), ApplyError> {
        if touched > 0 {
            return one_row(step, "update", touched);
        }
        let absent = self.context.absent(step.table, step.item);
        let has_key = matches!(step.mapping.identity, RowIdentity::Key(_));
        if step.mapping.filter.is_some() && has_key {
            let gone = self
                .run(step, &Shape::DeleteFiltered(absent.clone()))
                .await?;
            if gone > 0 {
                return Ok(());
            }
        }
        if has_key && self.run(step, &Shape::Exists).await? > 0 {
            return match step.mapping.on_conflict {
                ConflictPolicy::NewestWins { .. } => {
                    self.conflict(step, ConflictKind::UpdateOriginDiffers)
                }
                _ => one_row(step, "update", 0),
            };
        }
        self.insert_missing(step, &absent).await
    }

    /// The row of an update is not there: it comes into the filter, or the replica lost it.
    async fn insert_missing(&mut self, step: &Step<'_>, absent: &[u16]) -> Result<(), ApplyError> {
        let is_filtered = step.mapping.filter.is_some();
        if !is_filtered {
            self.conflict(step, ConflictKind::UpdateMissing)?;
            if step.mapping.on_conflict == ConflictPolicy::ReplicaWins {
                return Ok(());
            }
        }
        if is_filtered
            && !absent.is_empty()
            && self.run(step, &Shape::Missing(absent.to_vec())).await? == 0
        {
            self.note_filtered(step, 0);
            return Ok(());
        }
        if !is_filtered && step.mapping.identity == RowIdentity::FullRow {
            // The row may well be there and only look otherwise: an insert would double it.
            return one_row(step, "update", 0);
        }
        if !absent.is_empty() {
            return Err(ApplyError::IncompleteRow {
                table: step.mapping.replica.clone(),
            });
        }
        let touched = self.run(step, &Shape::Insert).await?;
        if is_filtered {
            self.note_filtered(step, touched);
            return Ok(());
        }
        one_row(step, "insert", touched)
    }

    async fn rekey(&mut self, step: &Step<'_>) -> Result<(), ApplyError> {
        let absent = self.context.absent(step.table, step.item);
        let touched = self.run(step, &Shape::Rekey(absent.clone())).await?;
        if touched > 0 {
            return one_row(step, "update", touched);
        }
        // Out of the filter: the old row goes. Never in it: there is nothing to delete.
        if step.mapping.filter.is_some() && self.run(step, &Shape::Delete).await? > 0 {
            return Ok(());
        }
        if self.run(step, &Shape::Exists).await? > 0 {
            self.conflict(step, ConflictKind::UpdateMissing)?;
            return match step.mapping.on_conflict {
                ConflictPolicy::ReplicaWins => Ok(()),
                _ => self.overwrite(step, absent).await,
            };
        }
        self.insert_missing(step, &absent).await
    }

    async fn run(&mut self, step: &Step<'_>, shape: &Shape) -> Result<u64, ApplyError> {
        self.context
            .run_single(self.session, step.item, shape)
            .await
    }

    /// Counts a conflict; under `stop` it is an error.
    fn conflict(&mut self, step: &Step<'_>, kind: ConflictKind) -> Result<(), ApplyError> {
        if step.mapping.on_conflict == ConflictPolicy::Stop {
            let table = step.mapping.replica.clone();
            return Err(ApplyError::Conflict {
                table,
                kind: kind.as_str(),
            });
        }
        *self.conflicts.entry((step.table, kind)).or_default() += 1;
        Ok(())
    }

    fn note_filtered(&mut self, step: &Step<'_>, inserted: u64) {
        if inserted == 0 {
            *self.filtered.entry(step.table).or_default() += 1;
        }
    }
}

/// One change of one table.
struct Step<'a> {
    table: u32,
    item: u32,
    mapping: &'a TableMapping,
}

fn one_row(step: &Step<'_>, what: &'static str, touched: u64) -> Result<(), ApplyError> {
    if touched == 1 {
        return Ok(());
    }
    Err(ApplyError::RowCount {
        table: step.mapping.replica.clone(),
        what,
        touched,
    })
}
