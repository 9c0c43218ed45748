//! What the stream's relation numbers mean just now: the mapping of each, its state, or
//! that it is none of ours.

use super::in_hand::Received;
use super::mapped_table::MappedTable;
use super::tables::{PlannedTable, recompile};
use super::{PipelineConfig, PipelineError};
use crate::apply::Written;
use crate::catalog::{fetch_tables, is_under_way};
use crate::conn::Pool;
use crate::mapping::{Resolved, Settings, resolve};
use crate::pg::{Lsn, QualifiedName, Relation, RelationId, TypeName, TypeNames, ValueFormat};
use crate::progress::TableState;
use crate::replication::{PublishedTable, fetch_published_tables};
use crate::telemetry::{Op, PoolHealth, TableStateLabel, TableTelemetry};
use deadpool_postgres::Object;
use foldhash::{HashMap, HashMapExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a committed transaction may take until it is seen.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// What a relation of the stream is to us.
pub(crate) enum Entry {
    /// It goes to the replica.
    Mapped(Box<MappedTable>),
    /// No rule speaks of it.
    Ignored,
}

/// Every relation the stream may speak of.
pub(crate) struct Relations {
    entries: HashMap<RelationId, Entry>,
    types: TypeNames,
    rules: Settings,
    source: Pool,
    replica: Pool,
    publication: String,
    /// Tables with a form that was put aside.
    unread: usize,
    /// Of the stream's values.
    format: ValueFormat,
    /// What either server calls an infinite interval, the other does, too.
    agree_on_intervals: bool,
    /// Where the stream began.
    pub(crate) resumed_at: Lsn,
}

impl Relations {
    /// None yet; `pools` are the source's and the replica's.
    pub(crate) fn new(
        config: &PipelineConfig,
        types: TypeNames,
        pools: (Pool, Pool),
        resumed_at: Lsn,
    ) -> Self {
        Self {
            entries: HashMap::new(),
            types,
            rules: config.mapping.clone(),
            source: pools.0,
            replica: pools.1,
            publication: config.publication.clone(),
            unread: 0,
            format: ValueFormat::Text,
            agree_on_intervals: false,
            resumed_at,
        }
    }

    /// A table of the plan, with its state.
    pub(crate) fn add(
        &mut self,
        table: &PlannedTable,
        state: TableState,
        telemetry: TableTelemetry,
    ) {
        let mapped = MappedTable {
            mapping: Arc::clone(&table.mapping),
            state,
            telemetry,
            resolved: table.resolved.clone(),
            unread_form: None,
            is_told_ready: false,
        };
        self.entries
            .insert(table.source.oid, Entry::Mapped(Box::new(mapped)));
    }

    pub(crate) fn entry(&self, id: RelationId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Whether the stream describes a table otherwise than we know it.
    pub(crate) fn is_new(&self, relation: &Relation) -> bool {
        match self.entries.get(&relation.id) {
            Some(Entry::Mapped(table)) => {
                let form = table.unread_form.as_ref();
                form.unwrap_or(&table.mapping.relation) != relation
            }
            // It may have been renamed into a rule.
            Some(Entry::Ignored) | None => true,
        }
    }

    /// Of a transaction that may yet roll back no description is learnt: what does not bear out
    /// what is known has to wait for its end.
    pub(crate) fn expect_known(&mut self, relation: &Relation) -> Result<(), PipelineError> {
        let is_known = match self.entries.get(&relation.id) {
            Some(Entry::Mapped(_)) => !self.is_new(relation),
            Some(Entry::Ignored) | None => resolve(&self.rules, &relation.name).is_none(),
        };
        if !is_known {
            return Err(PipelineError::TakeWhole(format!(
                "it describes {} otherwise than before",
                relation.name
            )));
        }
        self.entries.entry(relation.id).or_insert(Entry::Ignored);
        Ok(())
    }

    /// Whether every table is past its copy at this position, and none set aside.
    pub(crate) fn are_past_copies(&self, applied: Lsn) -> bool {
        let is_past = |entry: &Entry| match entry {
            Entry::Mapped(table) => table.state.is_ready(Some(applied)),
            Entry::Ignored => true,
        };
        self.entries.values().all(is_past)
    }

    /// A table that does not take its values in binary, if there is one.
    pub(crate) fn as_text(&mut self, agree_on_intervals: bool) -> Option<&QualifiedName> {
        self.agree_on_intervals = agree_on_intervals;
        self.entries.values().find_map(|entry| match entry {
            Entry::Mapped(table) if !table.mapping.takes_binary(agree_on_intervals) => {
                Some(&table.mapping.relation.name)
            }
            Entry::Mapped(_) | Entry::Ignored => None,
        })
    }

    /// The stream's values are of this format.
    pub(crate) fn expect(&mut self, format: ValueFormat) {
        self.format = format;
    }

    pub(crate) fn format(&self) -> ValueFormat {
        self.format
    }

    pub(crate) fn learn_type(&mut self, oid: u32, name: TypeName) {
        self.types.insert(oid, name);
    }

    pub(crate) fn has_unread(&self) -> bool {
        self.unread > 0
    }

    /// Whether a change of this table needs a description that was put aside.
    pub(crate) fn is_unread(&self, id: RelationId, commit_lsn: Lsn) -> bool {
        matches!(self.entries.get(&id), Some(Entry::Mapped(table))
            if table.unread_form.is_some() && table.state.wants(commit_lsn)
                && !table.state.is_quarantined())
    }

    /// Takes in the description that was put aside.
    pub(crate) async fn learn_unread(
        &mut self,
        id: RelationId,
        transaction: Option<Received>,
    ) -> Result<(), PipelineError> {
        if let Some(Entry::Mapped(table)) = self.entries.get_mut(&id)
            && let Some(form) = table.unread_form.take()
        {
            self.unread -= 1;
            if form != table.mapping.relation {
                self.learn(form, transaction).await?;
            }
        }
        Ok(())
    }

    /// Takes in a new description, in stream order; the replica's side is read anew.
    ///
    /// Of a transaction whose changes the copy has, it is put aside: the table may have looked
    /// and been called otherwise then, and the replica need not go with that. So it is for a
    /// table whose changes are only kept.
    pub(crate) async fn learn(
        &mut self,
        relation: Relation,
        transaction: Option<Received>,
    ) -> Result<(), PipelineError> {
        if let Some(Entry::Mapped(table)) = self.entries.get_mut(&relation.id) {
            let commit_lsn = transaction.map(|t| t.commit_lsn);
            if table.unread_form.take().is_some() {
                self.unread -= 1;
            }
            let is_in_copy = commit_lsn.is_some_and(|lsn| !table.state.wants(lsn));
            if is_in_copy || table.state.is_quarantined() {
                table.unread_form = Some(relation);
                self.unread += 1;
                return Ok(());
            }
        }
        let xid = transaction.map(|t| t.xid);
        let known = match self.entries.get(&relation.id) {
            Some(Entry::Mapped(table)) => Some(table.resolved.clone()),
            Some(Entry::Ignored) | None => None,
        };
        match (known, resolve(&self.rules, &relation.name)) {
            (Some(known), Some(resolved)) if resolved.replica == known.replica => {
                self.relearn(relation, resolved).await
            }
            (Some(known), None) => Err(PipelineError::Definite {
                message: format!(
                    "the source table {} is now called {}, which no rule speaks of",
                    known.source, relation.name
                ),
                advice: "add a [[tables]] rule for the new name, with the same replica table"
                    .into(),
            }),
            (_, Some(_)) if self.is_published(&relation, xid).await? => {
                Err(PipelineError::TableJoined(relation.name.to_string()))
            }
            (_, resolved) => {
                if resolved.is_some() {
                    // It was published when this was written, and is no more.
                    tracing::warn!(table = %relation.name, "passing by the changes of a table that has left the publication");
                }
                self.entries.insert(relation.id, Entry::Ignored);
                Ok(())
            }
        }
    }

    /// A table of ours has changed its form.
    async fn relearn(
        &mut self,
        relation: Relation,
        resolved: Resolved,
    ) -> Result<(), PipelineError> {
        let refuse = |problem| PipelineError::Mapping {
            problems: vec![problem],
        };
        let replica = self.replica.get().await?;
        let found = fetch_tables(&replica, std::slice::from_ref(&resolved.replica)).await?;
        let to = found
            .first()
            .ok_or_else(|| refuse(format!("the replica table {} is gone", resolved.replica)))?;
        let mapping = recompile(&relation, &self.types, &resolved, to)
            .map_err(|error| refuse(error.to_string()))?;
        if self.format == ValueFormat::Binary && !mapping.takes_binary(self.agree_on_intervals) {
            return Err(PipelineError::TakeText(format!(
                "{} has a column of another type now",
                relation.name
            )));
        }
        if let Some(Entry::Mapped(table)) = self.entries.get_mut(&relation.id) {
            table.mapping = mapping;
            table.resolved = resolved;
        }
        tracing::info!(table = %relation.name, "the source table has changed its form");
        Ok(())
    }

    /// Whether the table is published now. The stream is quicker than the source's own memory:
    /// a commit is sent before others see what it did, and that may be the table itself.
    async fn is_published(
        &self,
        relation: &Relation,
        xid: Option<u32>,
    ) -> Result<bool, PipelineError> {
        let source = self.source.get().await?;
        let deadline = Instant::now() + VISIBLE_WITHIN;
        loop {
            // First this, then the look: what is no longer under way is seen by it.
            let is_visible = match xid {
                Some(xid) => !is_under_way(&source, xid).await?,
                None => true,
            };
            let published = fetch_published_tables(&source, &self.publication).await?;
            let is_it = |table: &PublishedTable| {
                table.oid == relation.id && resolve(&self.rules, &table.name).is_some()
            };
            if published.iter().any(is_it) {
                return Ok(true);
            }
            if is_visible {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                return Err(PipelineError::Waiting(format!(
                    "the transaction that speaks of {} is committed, but the source does not show its changes yet (it may wait for a synchronous standby)",
                    relation.name
                )));
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Counts as received what was not when it arrived.
    pub(crate) fn tell_received(&self, relation: RelationId, changes: u64) {
        if let Some(Entry::Mapped(table)) = self.entries.get(&relation) {
            table.telemetry.received(changes);
        }
    }

    /// Holds what was received and not told since against what is on its way, table by table.
    /// What is neither was lost by a fault of ours: the tables, and how many changes.
    pub(crate) fn reconcile(
        &self,
        on_their_way: &HashMap<RelationId, u64>,
    ) -> Vec<(QualifiedName, i64)> {
        let unaccounted = |(id, entry): (&RelationId, &Entry)| {
            let Entry::Mapped(table) = entry else {
                return None;
            };
            let on_their_way = on_their_way.get(id).copied().unwrap_or_default();
            let left = table.telemetry.reconcile(on_their_way)?;
            Some((table.mapping.relation.name.clone(), left))
        };
        self.entries.iter().filter_map(unaccounted).collect()
    }

    /// Counts what was committed.
    pub(crate) fn tell_written(&self, written: &Written) {
        let Some(Entry::Mapped(table)) = self.entries.get(&written.mapping.relation.id) else {
            return;
        };
        let mut filtered = written.filtered;
        let ops = [
            (Op::Insert, written.inserts),
            (Op::Update, written.updates),
            (Op::Delete, written.deletes),
            (Op::Truncate, written.truncates),
        ];
        for (op, changes) in ops {
            // Which of several changes of a row the filter kept out cannot be told apart.
            let kept_out = filtered.min(changes);
            filtered -= kept_out;
            if changes > kept_out {
                table.telemetry.applied(op, changes - kept_out);
            }
        }
        table.telemetry.filtered(written.filtered - filtered);
        for (kind, conflicts) in &written.conflicts {
            table.telemetry.conflict(*kind, *conflicts);
            tracing::warn!(table = %written.mapping.replica, kind = kind.as_str(), conflicts, "conflict resolved");
        }
    }

    /// Counts what was kept instead.
    pub(crate) fn tell_kept(&self, relation: RelationId, changes: u64) {
        if let Some(Entry::Mapped(table)) = self.entries.get(&relation) {
            table.telemetry.quarantined(changes);
        }
    }

    /// The source table that goes to this replica table.
    pub(crate) fn source_of(&self, replica: &QualifiedName) -> Option<&MappedTable> {
        self.entries.values().find_map(|entry| match entry {
            Entry::Mapped(table) if table.resolved.replica == *replica => Some(table.as_ref()),
            _ => None,
        })
    }

    /// A table is set aside, or taken back.
    pub(crate) fn set_state(&mut self, relation: RelationId, state: TableState) {
        if let Some(Entry::Mapped(table)) = self.entries.get_mut(&relation) {
            table.state = state;
            table.is_told_ready = false;
        }
    }

    /// Object id and name on the source, and the name on the replica.
    pub(crate) fn names_of(
        &self,
        relation: RelationId,
    ) -> Option<(RelationId, QualifiedName, QualifiedName)> {
        let Some(Entry::Mapped(table)) = self.entries.get(&relation) else {
            return None;
        };
        let source = table.mapping.relation.name.clone();
        Some((relation, source, table.mapping.replica.clone()))
    }

    /// As of when it was copied, if it takes part.
    pub(crate) fn copied_at(&self, relation: RelationId) -> Option<Lsn> {
        match self.entries.get(&relation) {
            Some(Entry::Mapped(table)) => table.state.copied_at(),
            Some(Entry::Ignored) | None => None,
        }
    }

    /// A session of the replica beside the one that applies.
    pub(crate) async fn replica(&self) -> Result<Object, PipelineError> {
        Ok(self.replica.get().await?)
    }

    /// The stream ends here; what was received and not committed will be received again.
    pub(crate) fn discard_pending(&self) {
        for entry in self.entries.values() {
            if let Entry::Mapped(table) = entry {
                table.telemetry.discard_pending();
            }
        }
    }

    /// Sessions of the replica beside the one that applies.
    pub(crate) fn pool_health(&self) -> PoolHealth {
        let status = self.replica.status();
        PoolHealth {
            in_use: status.size.saturating_sub(status.available),
            idle: status.available,
            waiting: status.waiting,
        }
    }

    /// The pipeline stops at this replica table.
    pub(crate) fn tell_errored(&self, replica: &QualifiedName) {
        if let Some(table) = self.source_of(replica) {
            table.telemetry.set_state(TableStateLabel::Errored);
        }
    }

    /// How many tables are set aside.
    pub(crate) fn quarantined(&self) -> usize {
        let is_set_aside =
            |entry: &&Entry| matches!(entry, Entry::Mapped(table) if table.state.is_quarantined());
        self.entries.values().filter(is_set_aside).count()
    }

    /// Tells which tables the replica has caught up with. True when all have that are not set aside.
    pub(crate) fn tell_ready(&mut self, applied: Lsn) -> bool {
        let mut are_all_ready = true;
        for entry in self.entries.values_mut() {
            let Entry::Mapped(table) = entry else {
                continue;
            };
            if table.is_told_ready {
                continue;
            }
            if table.state.is_quarantined() {
                table.is_told_ready = true;
                table.telemetry.set_state(TableStateLabel::Quarantined);
            } else if table.state.is_ready(Some(applied)) {
                table.is_told_ready = true;
                table.telemetry.set_state(TableStateLabel::Ready);
            } else {
                are_all_ready = false;
            }
        }
        are_all_ready
    }
}
