//! What has to be copied before the stream begins: everything at the first start; later what
//! joined, what was interrupted, and what an operator wants copied again.

use super::PipelineError;
use super::copy_watch::CopyWatch;
use super::look::check_forms;
use super::source_connection::Connecting;
use super::start::Start;
use super::tables::PlannedTable;
use crate::conn::Session;
use crate::faults;
use crate::mapping::{ConflictPolicy, ExistingRows, ExtraRows};
use crate::pg::{Disposition, Lsn, QualifiedName};
use crate::progress::{Store, TableRecord, TableState};
use crate::replication::{ReplicationConnection, ReplicationSlot, SlotName, drop_slot};
use crate::snapshot::{CopyTable, SnapshotCopy, check_existing_rows, make_left_overs};
use crate::telemetry::PipelineState;
use std::collections::HashMap;
use std::sync::Arc;

impl Start<'_> {
    /// The first start: look, note the intention, make the slot, copy everything.
    pub(super) async fn begin(
        &self,
        slot_name: &SlotName,
        found: Option<ReplicationSlot>,
        connecting: Connecting,
    ) -> Result<(ReplicationConnection, Lsn), PipelineError> {
        let intended = Store::fetch_record(&self.control, &self.config.name).await?;
        let is_ours = intended.is_some_and(|record| record.identity == self.identity());
        if found.is_some() && !is_ours {
            return Err(PipelineError::Definite {
                message: format!(
                    "the source has a slot {slot_name} that this replica knows nothing of"
                ),
                advice: "another pipeline may use it: choose another [source] slot, or, if it is a left-over, SELECT pg_drop_replication_slot() it".into(),
            });
        }
        let records = Store::fetch_tables(&self.control, &self.config.name).await?;
        let tables = self.copy_tables(self.plan.tables.values(), &records);
        make_left_overs(&self.control, &self.config.name, &tables).await?;
        check_existing_rows(&self.control, &tables, &self.config.name).await?;
        let mut connection = self.introduced(connecting).await?;
        if found.is_some() {
            tracing::warn!(slot = %slot_name, "dropping the slot of an interrupted first start");
            drop_slot(&mut connection, slot_name).await?;
        }
        self.store
            .intend_slot(&self.control, &self.identity())
            .await?;
        faults::at("slot.intended").await?;
        let timeline = connection.identify_system().await?.timeline;
        let exported = self.make_slot(&mut connection, slot_name, false).await?;
        faults::at("slot.made").await?;
        tracing::info!(slot = %slot_name, at = %exported.consistent_point, "slot created");
        self.store
            .record_slot(&self.control, exported.consistent_point, timeline)
            .await?;
        self.own_slot();
        faults::at("slot.recorded").await?;
        self.copy(&tables, &exported.name, exported.consistent_point)
            .await?;
        Ok((connection, exported.consistent_point))
    }

    /// Copies tables that joined since, or whose copy was interrupted, under a snapshot of their own.
    pub(super) async fn copy_missing(&self) -> Result<(), PipelineError> {
        let records = Store::fetch_tables(&self.control, &self.config.name).await?;
        // What does not take part now, or did not in between, has missed changes.
        // Under a new history that says nothing: tables may have other numbers.
        let is_former = |r: &TableRecord| {
            self.store.is_rebasing() && matches!(r.state, TableState::Resync { .. })
        };
        let ours = self.plan.records_of(&records);
        let gone =
            |record: &&TableRecord| !is_former(record) && !ours.contains_key(&record.source_oid);
        let gone: Vec<u32> = records.iter().filter(gone).map(|r| r.source_oid).collect();
        self.store.forget_copies(&self.control, &gone).await?;
        let is_copied = |oid: &u32| ours.get(oid).is_some_and(|r| r.state.copied_at().is_some());
        let missing = self
            .plan
            .tables
            .values()
            .filter(|t| !is_copied(&t.source.oid));
        let tables = self.copy_tables(missing, &records);
        make_left_overs(&self.control, &self.config.name, &tables).await?;
        if tables.is_empty() {
            return Ok(());
        }
        let copied = self.copy_under_own_snapshot(&tables).await;
        if let Err(error) = &copied
            && error.disposition() == Disposition::Definite
        {
            // It may have left a transaction open.
            let _ = self.control.batch_execute("ROLLBACK").await;
            let called_off = self.store.call_off_resyncs(&self.control).await?;
            if !called_off.is_empty() {
                let names: Vec<String> = called_off.iter().map(ToString::to_string).collect();
                return Err(PipelineError::ResyncFailed {
                    tables: names.join(", "),
                    source: Box::new(copied.err().unwrap_or(PipelineError::Requested)),
                });
            }
        }
        copied
    }

    async fn copy_under_own_snapshot(&self, tables: &[CopyTable]) -> Result<(), PipelineError> {
        check_existing_rows(&self.control, tables, &self.config.name).await?;
        let mut exporter = self.replication().await?;
        // Slots share one name space over all databases: the name must be this attempt's own.
        let slot: String = self.config.slot.chars().take(40).collect();
        let name = format!("{slot}_copy_{}", self.store.epoch());
        let name = name.parse::<SlotName>()?;
        let exported = self.make_slot(&mut exporter, &name, true).await?;
        faults::at("copy.slot_made").await?;
        // The exporter stays until the copy is done: with it goes the snapshot.
        self.copy(tables, &exported.name, exported.consistent_point)
            .await?;
        drop(exporter);
        Ok(())
    }

    async fn copy(
        &self,
        tables: &[CopyTable],
        snapshot: &str,
        consistent_point: Lsn,
    ) -> Result<(), PipelineError> {
        check_forms(self.config, tables, snapshot).await?;
        self.telemetry.set_state(PipelineState::Copying, None);
        let copy = SnapshotCopy {
            settings: &self.config.copy,
            source: &self.source_pool,
            replica: &self.replica_pool,
            control: &self.control,
            store: &self.store,
            snapshot,
            consistent_point,
            is_replica_role: self.is_replica_role,
        };
        let started = std::time::Instant::now();
        let watch = CopyWatch {
            source: self.source_pool.clone(),
            slot: self.config.slot.parse()?,
            publication: self.config.publication.clone(),
        };
        tokio::select! {
            copied = copy.run(tables) => copied?,
            ended = watch.run() => return Err(self.broken_off(ended).await?),
        }
        faults::at("copy.done").await?;
        tracing::info!(
            tables = tables.len(),
            seconds = started.elapsed().as_secs_f64(),
            "first copy done"
        );
        Ok(())
    }

    /// What was copied by then, and what is still to be, has changes that are in no stream.
    async fn broken_off(&self, ended: PipelineError) -> Result<PipelineError, PipelineError> {
        if let PipelineError::Narrowed { .. } = ended {
            // The copy may have used up the pool.
            let replica = self.config.replica.connect(Session::ReplicaWrite).await?;
            Store::want_again(&replica, &self.config.name, None).await?;
        }
        Ok(ended)
    }

    fn copy_tables<'t>(
        &self,
        tables: impl Iterator<Item = &'t PlannedTable>,
        records: &[TableRecord],
    ) -> Vec<CopyTable> {
        let ours = self.plan.records_of(records);
        // Under a new history tables may have other numbers; their places on the replica stay.
        let is_former = |r: &&TableRecord| matches!(r.state, TableState::Resync { .. });
        let former: HashMap<&QualifiedName, &TableRecord> = match self.store.is_rebasing() {
            true => records
                .iter()
                .filter(is_former)
                .map(|r| (&r.replica, r))
                .collect(),
            false => HashMap::new(),
        };
        let state = |table: &PlannedTable| {
            let own = ours.get(&table.source.oid);
            let record = own.or_else(|| former.get(&table.replica.name));
            record.map_or(TableState::Init, |record| record.state)
        };
        tables
            .map(|table| (table, state(table)))
            .map(|(table, state)| CopyTable {
                mapping: Arc::clone(&table.mapping),
                types: Arc::clone(&self.plan.types),
                source_kind: table.source.kind,
                row_filter: table.published.row_filter.clone(),
                published_by: table.published.published_by,
                existing_rows: match state {
                    TableState::Resync { .. } => ExistingRows::Merge,
                    _ => table.resolved.rule.existing_rows,
                },
                extra_rows: match state {
                    TableState::Resync { keep_extra: true } => ExtraRows::Keep,
                    TableState::Resync { keep_extra: false } => ExtraRows::Delete,
                    _ => table.resolved.rule.extra_rows,
                },
                // A table that is to be mended becomes what the source has.
                on_conflict: match state {
                    TableState::Resync { .. } => ConflictPolicy::SourceWins,
                    _ => table.mapping.on_conflict.clone(),
                },
                priority: table.resolved.rule.priority,
                place: self
                    .places
                    .get(&table.replica.name)
                    .copied()
                    .unwrap_or_default(),
                bytes: table.bytes,
                state,
                telemetry: self
                    .telemetry
                    .table(&table.source.name, &table.replica.name),
            })
            .collect()
    }
}
