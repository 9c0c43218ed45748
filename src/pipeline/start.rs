//! From nothing, or from where the replica says we were, to a running stream.
//!
//! ```text
//!  replica: own it (lock, epoch) ─▶ source: is it the right one ─▶ tables and mappings
//!      ─▶ record? ── none ─▶ look at the rows ─▶ slot + snapshot ─▶ copy all ─┐
//!            │                                                                ├─▶ stream
//!            └─ known ─▶ slot still ours, not ahead? ─▶ copy what is missing ─┘
//! ```
//!
//! Order matters: everything is looked at before anything is changed; the intention to
//! make a slot is written down before it is made, its birth right after. A slot found
//! without a birth is then ours and half made; one found without a record is not ours.

use super::PipelineConfig;
use super::PipelineError;
use super::follow::{Follower, Streams};
use super::listener::Listener;
use super::receive::Inbox;
use super::relations::Relations;
use super::resume::resume_position;
use super::source_watch::SourceWatch;
use super::tables::{PlannedTable, TablePlan, fetch_plan};
use crate::apply::{Applier, try_statements};
use crate::catalog::{Server, fetch_server};
use crate::conn::{Pool, Session};
use crate::pg::{Lsn, QualifiedName, Side, quote_ident};
use crate::pgoutput::{Decoder, Streaming};
use crate::progress::{PipelineIdentity, Store, TableRecord, TableState};
use crate::replication::{
    ReplicationConnection, ReplicationSlot, SlotName, SlotOptions, StreamOptions, create_slot,
    drop_slot, fetch_publication, fetch_slot,
};
use crate::snapshot::{CopyTable, SnapshotCopy, check_existing_rows};
use crate::telemetry::{ConnectionState, PipelineState, TableStateLabel, Telemetry};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;

/// How long another daemon's lock is waited for between looks.
const STANDBY_LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Everything that a start has at hand.
struct Start<'a> {
    config: &'a PipelineConfig,
    telemetry: &'a Telemetry,
    source_pool: Pool,
    replica_pool: Pool,
    source: deadpool_postgres::Object,
    control: deadpool_postgres::Object,
    source_server: Server,
    store: Store,
    plan: TablePlan,
    ignores_foreign_keys: bool,
    places: HashMap<QualifiedName, u32>,
    listener: Listener,
}

/// Connects, copies what has to be copied, and opens the stream. A pipeline that is
/// `stuck_at` a commit has failed until it is beyond it.
pub(crate) async fn start<'a>(
    config: &'a PipelineConfig,
    telemetry: &'a Telemetry,
    stuck_at: Option<Lsn>,
) -> Result<Follower<'a>, PipelineError> {
    let writer = config.replica.connect(Session::ReplicaWrite).await?;
    telemetry.set_connection(Side::Replica, ConnectionState::Connected, None);
    let replica_server = fetch_server(&writer).await?;
    if replica_server.in_recovery {
        return Err(PipelineError::Waiting(
            "the replica is a standby and cannot be written".into(),
        ));
    }
    queue(&writer, config, telemetry).await?;
    let source_pool = config
        .source
        .pool(Session::SourceRead, config.copy.workers + 2)?;
    let source = source_pool.get().await?;
    telemetry.set_connection(Side::Source, ConnectionState::Connected, None);
    let source_server = fetch_server(&source).await?;
    check_servers(&source_server, &replica_server, config)?;
    check_publication(&source, config).await?;
    let replica_pool = config
        .replica
        .pool(Session::ReplicaWrite, config.copy.workers + 2)?;
    let control = replica_pool.get().await?;
    let plan = fetch_plan(&source, &control, &config.publication, &config.mapping).await?;

    check_mappings(&source, &control, &plan).await?;
    // Everything was looked at; from here on things change.
    Store::ensure_schema(&writer).await?;
    let store = Store::claim(&writer, &config.name).await?;
    let places = plan.parents_first();
    let applier = Applier::new(writer, store.clone(), places.clone())
        .await
        .map_err(PipelineError::Prepare)?;
    let start = Start {
        config,
        telemetry,
        source_pool,
        replica_pool,
        source,
        control,
        source_server,
        store,
        plan,
        ignores_foreign_keys: applier.ignores_foreign_keys(),
        places,
        listener: Listener::start()?,
    };
    start.open(applier, stuck_at).await
}

/// Waits until no other daemon runs this pipeline; what comes after sees the world as it is then.
async fn queue(
    writer: &Client,
    config: &PipelineConfig,
    telemetry: &Telemetry,
) -> Result<(), PipelineError> {
    while !Store::try_lock(writer, &config.name).await? {
        let reason = "another daemon runs this pipeline; taking over when it ends".to_owned();
        telemetry.set_state(PipelineState::Standby, Some(reason));
        telemetry.progressed();
        tokio::time::sleep(STANDBY_LOOKS_EVERY).await;
    }
    Ok(())
}

fn check_servers(
    source: &Server,
    replica: &Server,
    config: &PipelineConfig,
) -> Result<(), PipelineError> {
    if source.is_same_database(replica) {
        return Err(PipelineError::Definite {
            message: format!(
                "source and replica are one and the same database ({} on system {})",
                source.database, source.system_id
            ),
            advice: "point [replica] url at the database that is to be kept in step".into(),
        });
    }
    if source.in_recovery {
        return Err(PipelineError::Waiting(format!(
            "the source {} is a standby; waiting for the primary",
            config.source.describe()
        )));
    }
    if source.wal_level != "logical" {
        return Err(PipelineError::Definite {
            message: format!(
                "the source's wal_level is {}, not logical",
                source.wal_level
            ),
            advice: "ALTER SYSTEM SET wal_level = 'logical', then restart the source server".into(),
        });
    }
    if !source.may_replicate {
        return Err(PipelineError::Definite {
            message: format!("the source's role {} may not replicate", source.role),
            advice: format!(
                "ALTER ROLE {} REPLICATION (on managed services: grant the provider's replication role)",
                quote_ident(&source.role)
            ),
        });
    }
    Ok(())
}

async fn check_publication(source: &Client, config: &PipelineConfig) -> Result<(), PipelineError> {
    let name = &config.publication;
    let Some(publication) = fetch_publication(source, name).await? else {
        return Err(no_publication(name));
    };
    let left_out = publication.left_out();
    if left_out.is_empty() {
        return Ok(());
    }
    Err(PipelineError::Definite {
        message: format!(
            "the publication {name} leaves out {}: the replica would drift, and nothing would say so",
            left_out.join(", ")
        ),
        advice: format!(
            "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
            quote_ident(name)
        ),
    })
}

fn no_publication(name: &str) -> PipelineError {
    PipelineError::Definite {
        message: format!("the source has no publication {name}"),
        advice: format!(
            "as the tables' owner: CREATE PUBLICATION {} FOR TABLE …; `pglockstep setup` prints it in full",
            quote_ident(name)
        ),
    }
}

/// Has both servers look at every expression, filter and cast before anything is changed.
async fn check_mappings(
    source: &Client,
    replica: &Client,
    plan: &TablePlan,
) -> Result<(), PipelineError> {
    let unusual = plan.tables.values().filter(|t| !t.mapping.is_plain());
    for table in unusual {
        table.try_select(source, &plan.types).await?;
        try_statements(replica, &table.mapping)
            .await
            .map_err(PipelineError::Prepare)?;
    }
    Ok(())
}

impl<'a> Start<'a> {
    async fn open(
        self,
        applier: Applier,
        stuck_at: Option<Lsn>,
    ) -> Result<Follower<'a>, PipelineError> {
        let record = Store::fetch_record(&self.control, &self.config.name).await?;
        let slot_name = self.slot_name()?;
        let slot = fetch_slot(&self.source, &slot_name).await?;
        let known = record.filter(|record| record.slot_born_at.is_some());
        let (connection, applied) = match (known, slot) {
            (Some(record), slot) => {
                let mut connection = self.replication().await?;
                let source_end = connection.identify_system().await?.wal_position;
                let applied =
                    resume_position(&record, &self.identity(), slot.as_ref(), Some(source_end))?;
                self.copy_missing().await?;
                (connection, applied)
            }
            (None, slot) => self.begin(&slot_name, slot).await?,
        };
        if stuck_at.is_none() {
            self.telemetry.set_state(PipelineState::CatchingUp, None);
        }
        let follower = self.stream(applier, connection, &slot_name, applied);
        Ok(follower.await?.stuck_at(stuck_at))
    }

    /// The first start: look, note the intention, make the slot, copy everything.
    async fn begin(
        &self,
        slot_name: &SlotName,
        found: Option<ReplicationSlot>,
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
        let tables = self.copy_tables(self.plan.tables.values(), &[]);
        check_existing_rows(&self.control, &tables, &self.config.name).await?;
        let mut connection = self.replication().await?;
        if found.is_some() {
            tracing::warn!(slot = %slot_name, "dropping the slot of an interrupted first start");
            drop_slot(&mut connection, slot_name).await?;
        }
        self.store
            .intend_slot(&self.control, &self.identity())
            .await?;
        let options = SlotOptions {
            temporary: false,
            failover: self.config.failover,
            lock_timeout_ms: self.config.slot_lock_timeout_ms,
        };
        let exported = create_slot(&mut connection, slot_name, options).await?;
        tracing::info!(slot = %slot_name, at = %exported.consistent_point, "slot created");
        self.store
            .record_slot(&self.control, exported.consistent_point)
            .await?;
        self.copy(&tables, &exported.name, exported.consistent_point)
            .await?;
        Ok((connection, exported.consistent_point))
    }

    /// Copies tables that joined since, or whose copy was interrupted, under a snapshot of their own.
    async fn copy_missing(&self) -> Result<(), PipelineError> {
        // A table that does not take part now has missed changes when it comes back.
        let taking_part: Vec<u32> = self.plan.tables.keys().copied().collect();
        self.store
            .forget_others(&self.control, &taking_part)
            .await?;
        let records = Store::fetch_tables(&self.control, &self.config.name).await?;
        let is_copied = |table: &&PlannedTable| {
            records.iter().any(|r| {
                r.is_of(table.source.oid, &table.replica.name)
                    && matches!(r.state, TableState::Copied { .. })
            })
        };
        let missing = self.plan.tables.values().filter(|table| !is_copied(table));
        let tables = self.copy_tables(missing, &records);
        if tables.is_empty() {
            return Ok(());
        }
        check_existing_rows(&self.control, &tables, &self.config.name).await?;
        let mut exporter = self.replication().await?;
        // Slots share one name space over all databases: the name must be this attempt's own.
        let slot: String = self.config.slot.chars().take(40).collect();
        let name = format!("{slot}_copy_{}", self.store.epoch());
        let name = name.parse::<SlotName>()?;
        let options = SlotOptions {
            temporary: true,
            failover: false,
            lock_timeout_ms: self.config.slot_lock_timeout_ms,
        };
        let exported = create_slot(&mut exporter, &name, options).await?;
        // The exporter stays until the copy is done: with it goes the snapshot.
        self.copy(&tables, &exported.name, exported.consistent_point)
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
        self.telemetry.set_state(PipelineState::Copying, None);
        let copy = SnapshotCopy {
            settings: &self.config.copy,
            source: &self.source_pool,
            replica: &self.replica_pool,
            control: &self.control,
            store: &self.store,
            snapshot,
            consistent_point,
            ignores_foreign_keys: self.ignores_foreign_keys,
        };
        let started = std::time::Instant::now();
        // Rows that arrive are progress; between them a long merge or index build may be.
        let mut alive = tokio::time::interval(Duration::from_secs(5));
        let run = copy.run(tables);
        tokio::pin!(run);
        loop {
            tokio::select! {
                done = &mut run => { done?; break }
                _ = alive.tick() => self.telemetry.progressed(),
            }
        }
        tracing::info!(
            tables = tables.len(),
            seconds = started.elapsed().as_secs_f64(),
            "first copy done"
        );
        Ok(())
    }

    async fn stream(
        self,
        applier: Applier,
        connection: ReplicationConnection,
        slot_name: &SlotName,
        applied: Lsn,
    ) -> Result<Follower<'a>, PipelineError> {
        let records = Store::fetch_tables(&self.control, &self.config.name).await?;
        let states: HashMap<&QualifiedName, TableState> = records
            .iter()
            .map(|r: &TableRecord| (&r.source, r.state))
            .collect();
        let types = self.plan.types.as_ref().clone();
        let pools = (self.source_pool.clone(), self.replica_pool.clone());
        let mut relations = Relations::new(self.config, types, pools, applied);
        for table in self.plan.tables.values() {
            let state = states
                .get(&table.source.name)
                .copied()
                .unwrap_or(TableState::Init);
            let telemetry = self
                .telemetry
                .table(&table.source.name, &table.replica.name);
            telemetry.set_state(TableStateLabel::CatchingUp);
            relations.add(table, state, telemetry);
        }
        let publications = vec![self.config.publication.clone()];
        let options = StreamOptions {
            // Version 1 has all that an unstreamed, unprepared transaction needs.
            protocol_version: 1,
            ..StreamOptions::new(self.source_server.version_num, publications)
        };
        let stream = connection.start(slot_name, applied, &options).await?;
        let inbox = Inbox::open(
            self.listener,
            stream,
            Decoder::new(1, Streaming::Off),
            applied,
            self.config.queue_bytes_max(),
            self.telemetry.clone(),
        );
        let streams = Streams {
            inbox,
            applier,
            relations,
            watch: SourceWatch::start(
                self.source_pool.clone(),
                slot_name.clone(),
                self.config.publication.clone(),
                self.plan
                    .tables
                    .values()
                    .map(|t| (t.source.oid, t.source.name.clone()))
                    .collect(),
                self.telemetry.clone(),
            ),
        };
        Ok(Follower::new(
            streams,
            applied,
            &self.config.apply,
            self.telemetry,
        ))
    }

    fn copy_tables<'t>(
        &self,
        tables: impl Iterator<Item = &'t PlannedTable>,
        records: &[TableRecord],
    ) -> Vec<CopyTable> {
        let state = |table: &PlannedTable| {
            let record = records
                .iter()
                .find(|r| r.is_of(table.source.oid, &table.replica.name));
            record.map_or(TableState::Init, |r| r.state)
        };
        tables
            .map(|table| CopyTable {
                mapping: Arc::clone(&table.mapping),
                types: Arc::clone(&self.plan.types),
                source_kind: table.source.kind,
                row_filter: table.row_filter.clone(),
                existing_rows: table.resolved.rule.existing_rows,
                extra_rows: table.resolved.rule.extra_rows,
                priority: table.resolved.rule.priority,
                place: self
                    .places
                    .get(&table.replica.name)
                    .copied()
                    .unwrap_or_default(),
                bytes: table.bytes,
                state: state(table),
                telemetry: self
                    .telemetry
                    .table(&table.source.name, &table.replica.name),
            })
            .collect()
    }

    /// On the thread that will listen, should this connection be the one that streams.
    async fn replication(&self) -> Result<ReplicationConnection, PipelineError> {
        let source = self.config.source.clone();
        let connecting = async move { ReplicationConnection::connect(&source).await };
        let connected = self.listener.spawn(connecting).await;
        Ok(connected.map_err(|_| PipelineError::ReceiverGone)??)
    }

    fn slot_name(&self) -> Result<SlotName, PipelineError> {
        Ok(self.config.slot.parse()?)
    }

    fn identity(&self) -> PipelineIdentity {
        PipelineIdentity {
            system_id: self.source_server.system_id.clone(),
            database_oid: self.source_server.database_oid,
            slot: self.config.slot.clone(),
        }
    }
}
