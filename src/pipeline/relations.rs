//! What the stream's relation numbers mean just now: the mapping of each, its state, or
//! that it is none of ours.

use super::tables::{PlannedTable, recompile};
use super::{PipelineConfig, PipelineError};
use crate::apply::Written;
use crate::catalog::{CatalogError, fetch_tables};
use crate::conn::Pool;
use crate::mapping::{Resolved, Settings, TableMapping, resolve};
use crate::pg::{Lsn, Relation, RelationId, TypeName, TypeNames};
use crate::progress::TableState;
use crate::replication::fetch_published_tables;
use crate::telemetry::{Op, TableStateLabel, TableTelemetry};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

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

/// A table that goes to the replica.
pub(crate) struct MappedTable {
    pub(crate) mapping: Arc<TableMapping>,
    pub(crate) state: TableState,
    pub(crate) telemetry: TableTelemetry,
    resolved: Resolved,
    is_told_ready: bool,
}

/// Every relation the stream may speak of.
pub(crate) struct Relations {
    entries: HashMap<RelationId, Entry>,
    types: TypeNames,
    rules: Settings,
    source: Pool,
    replica: Pool,
    publication: String,
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
            Some(Entry::Mapped(table)) => table.mapping.relation != *relation,
            // It may have been renamed into a rule.
            Some(Entry::Ignored) | None => true,
        }
    }

    pub(crate) fn learn_type(&mut self, oid: u32, name: TypeName) {
        self.types.insert(oid, name);
    }

    /// Takes in a new description, in stream order, sent in the transaction `xid`; the replica's
    /// side is read anew.
    pub(crate) async fn learn(
        &mut self,
        relation: Relation,
        xid: Option<u32>,
    ) -> Result<(), PipelineError> {
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
            if published.iter().any(|table| table.name == relation.name) {
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

    /// The stream ends here; what was received and not committed will be received again.
    pub(crate) fn forget_pending(&self) {
        for entry in self.entries.values() {
            if let Entry::Mapped(table) = entry {
                table.telemetry.forget_pending();
            }
        }
    }

    /// Tells which tables the replica has caught up with. True when all have.
    pub(crate) fn tell_ready(&mut self, applied: Lsn) -> bool {
        let mut are_all_ready = true;
        for entry in self.entries.values_mut() {
            let Entry::Mapped(table) = entry else {
                continue;
            };
            if table.is_told_ready {
                continue;
            }
            if table.state.is_ready(Some(applied)) {
                table.is_told_ready = true;
                table.telemetry.set_state(TableStateLabel::Ready);
            } else {
                are_all_ready = false;
            }
        }
        are_all_ready
    }
}

/// Whether a transaction still holds the lock on its own number, which it lets go of after its
/// changes can be seen.
async fn is_under_way(source: &Client, xid: u32) -> Result<bool, PipelineError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'transactionid' \
               AND transactionid::pg_catalog.text = $1)";
    let row = source.query_one(sql, &[&xid.to_string()]).await;
    Ok(row.map_err(CatalogError::reading("transactions"))?.get(0))
}
