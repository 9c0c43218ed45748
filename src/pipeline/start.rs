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
use super::delivery::{SEGMENT_BYTES, Standing};
use super::door::queue;
use super::errors_watch::ErrorsWatch;
use super::follow::{Follower, Streams};
use super::look::{check_mappings, check_privileges, check_publication, check_servers};
use super::memory::Memory;
use super::publication_watch::{Known, PublicationWatch};
use super::quarantine::{self, Books, Replay};
use super::receive::{Bounds, Inbox};
use super::relations::Relations;
use super::resume::{expect_not_beyond, resume_position};
use super::shutdown_watch::watch_shutdown;
use super::source_connection::{Connecting, connecting};
use super::source_history::ask_history;
use super::tables::{TablePlan, fetch_plan};
use super::trouble::Trouble;
use super::watch::Watch;
use crate::apply::{Applier, connecting_witness, take_replica_role};
use crate::catalog::{Server, fetch_server};
use crate::conn::{Pool, Session};
use crate::faults;
use crate::pg::{Lsn, QualifiedName, Side};
use crate::progress::{BookedError, PipelineIdentity, Store, TableState};
use crate::reactor::Reactor;
use crate::replication::{
    ReplicationConnection, ReplicationSlot, SlotName, fetch_slot, keep_on_standbys,
};
use crate::snapshot::make_constraints_again;
use crate::telemetry::{ConnectionState, PipelineState, TableStateLabel, Telemetry};
use std::collections::HashMap;
use tokio::time::Instant;
use tokio_postgres::Client;

/// Everything that a start has at hand.
pub(super) struct Start<'a> {
    pub(super) config: &'a PipelineConfig,
    pub(super) telemetry: &'a Telemetry,
    pub(super) source_pool: Pool,
    pub(super) replica_pool: Pool,
    pub(super) source: deadpool_postgres::Object,
    pub(super) control: deadpool_postgres::Object,
    pub(super) source_server: Server,
    /// Infinite ones, which a server has from 17 on, are none to one before it.
    agree_on_intervals: bool,
    pub(super) store: Store,
    pub(super) plan: TablePlan,
    pub(super) is_replica_role: bool,
    pub(super) places: HashMap<QualifiedName, u32>,
    pub(super) listener: Reactor,
    memory: &'a Memory,
}

/// Where a stream begins.
struct Stream {
    connection: ReplicationConnection,
    slot_name: SlotName,
    applied: Lsn,
    trouble: Option<Trouble>,
}

/// Connects, copies what has to be copied, and opens the stream. A pipeline in `trouble` that
/// is found has failed until it is beyond it.
pub(crate) async fn start<'a>(
    config: &'a PipelineConfig,
    telemetry: &'a Telemetry,
    trouble: Option<Trouble>,
    memory: &'a Memory,
) -> Result<Follower<'a>, PipelineError> {
    // The session that applies is outside the pool.
    let pooled = config.replica_pool_max.saturating_sub(1);
    let replica_pool = config.replica.pool(Session::ReplicaWrite, pooled)?;
    let writer = config.replica.connect(Session::ReplicaWrite);
    let (writer, second) = tokio::try_join!(writer, replica_pool.get())?;
    // Before a lock is taken, which a pooler would keep.
    config.replica.refuse_pooler(&writer, &second).await?;
    drop(second);
    telemetry.set_connection(Side::Replica, ConnectionState::Connected, None);
    let replica_server = fetch_server(&writer).await?;
    if replica_server.in_recovery {
        return Err(PipelineError::Waiting(
            "the replica is a standby and cannot be written".into(),
        ));
    }
    queue(&writer, &config.name, telemetry, memory).await?;
    faults::at("start.locked").await?;
    mend_interrupted_copy(&writer, config, memory).await?;
    let source_pool = config
        .source
        .pool(Session::SourceRead, config.copy.workers + 2)?;
    let (source, second) = tokio::try_join!(source_pool.get(), source_pool.get())?;
    config.source.refuse_pooler(&source, &second).await?;
    drop(second);
    telemetry.set_connection(Side::Source, ConnectionState::Connected, None);
    let source_server = fetch_server(&source).await?;
    check_servers(&source_server, &replica_server, config)?;
    // Opened while the catalogues are read.
    let listener = Reactor::start("listener").map_err(no_thread)?;
    let connecting = connecting(&listener, config);
    let checked = check_publication(&source, &config.publication).await;
    if let Err(PipelineError::Narrowed { .. }) = &checked
        && Store::has_books(&writer).await?
    {
        Store::want_again(&writer, &config.name, None).await?;
    }
    checked?;
    let control = replica_pool.get().await?;
    let plan = fetch_plan(&source, &control, &config.publication, &config.mapping).await?;

    check_mappings(&source, &control, &plan).await?;
    check_privileges(
        (&source, &source_server),
        (&control, &replica_server),
        &plan,
    )
    .await?;
    // Everything was looked at; from here on things change.
    Store::ensure_schema(&writer).await?;
    let store = Store::claim(&writer, &config.name).await?;
    memory.claimed(&store);
    memory.know(Store::fetch_requests(&writer, &config.name).await?);
    faults::at("start.claimed").await?;
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
        agree_on_intervals: replica_server.version_num >= 170_000
            || source_server.version_num < 170_000,
        source_server,
        store,
        plan,
        is_replica_role: applier.is_replica_role(),
        places,
        listener,
        memory,
    };
    Box::pin(start.open(applier, trouble, connecting)).await
}

/// An interrupted copy may have left tables without their keys, and what is looked at from here on
/// rests on them.
async fn mend_interrupted_copy(
    writer: &Client,
    config: &PipelineConfig,
    memory: &Memory,
) -> Result<(), PipelineError> {
    let name = &config.name;
    if !Store::has_books(writer).await? || Store::fetch_set_aside(writer, name).await?.is_empty() {
        return Ok(());
    }
    // Whoever was interrupted may still write.
    memory.claimed(&Store::claim(writer, name).await?);
    let is_replica_role = take_replica_role(writer).await;
    let is_replica_role = is_replica_role.map_err(PipelineError::Prepare)?;
    Ok(make_constraints_again(writer, name, is_replica_role).await?)
}

fn no_thread(error: std::io::Error) -> PipelineError {
    PipelineError::Waiting(format!(
        "the thread that listens to the source cannot be started: {error}"
    ))
}

impl<'a> Start<'a> {
    async fn open(
        self,
        applier: Applier,
        trouble: Option<Trouble>,
        connecting: Connecting,
    ) -> Result<Follower<'a>, PipelineError> {
        let record = Store::fetch_record(&self.control, &self.config.name).await?;
        let slot_name = self.slot_name()?;
        let slot = fetch_slot(&self.source, &slot_name).await?;
        let known = record.filter(|record| record.slot_born_at.is_some());
        let is_new = known.is_none();
        let (connection, applied) = match (known, slot) {
            (Some(record), slot) => {
                let mut connection = self.introduced(connecting).await?;
                let history = ask_history(&mut connection, record.timeline).await?;
                let applied =
                    resume_position(&record, &self.identity(), slot.as_ref(), Some(history))
                        .inspect_err(|_| self.memory.disown())?;
                self.own_slot();
                self.keep_on_standbys(&mut connection, &slot_name, slot.as_ref())
                    .await?;
                self.store
                    .record_timeline(&self.control, history.timeline)
                    .await?;
                tracing::info!(slot = %slot_name, %applied, "going on where the replica is");
                faults::at("start.resumed").await?;
                self.copy_missing().await?;
                (connection, applied)
            }
            (None, slot) => self.begin(&slot_name, slot, connecting).await?,
        };
        // Under a new history the old one's positions say nothing.
        let trouble = trouble.filter(|_| !is_new);
        let stream = Stream {
            connection,
            slot_name,
            applied,
            trouble,
        };
        Box::pin(self.stream(applier, stream)).await
    }

    async fn stream(
        self,
        mut applier: Applier,
        from: Stream,
    ) -> Result<Follower<'a>, PipelineError> {
        let applied = from.applied;
        // What has failed has failed until it is applied: an attempt alone mends nothing.
        let tells_catching_up = !from.trouble.is_some_and(Trouble::is_found);
        if tells_catching_up {
            self.telemetry.set_state(PipelineState::CatchingUp, None);
        }
        let requests = || Store::fetch_requests(&self.control, &self.config.name);
        let requested_before = requests().await?;
        let mut relations = self.relations(applied, tells_catching_up).await?;
        if self.store.is_rebasing() {
            let parts: Vec<u32> = self.plan.tables.keys().copied().collect();
            self.store.end_rebase(&self.control, &parts).await?;
        }
        let open_errors = self
            .work_through_errors(&mut applier, &mut relations, applied)
            .await?;
        // From here on no more than one session of the pool is used at a time.
        self.leave_sessions(0);
        let witness = connecting_witness(&self.config.replica);
        quarantine::tell(self.telemetry, &open_errors);
        let trouble = from
            .trouble
            .or_else(|| Trouble::in_books(&open_errors, applied));
        let known_requests = requests().await?;
        if quarantine::are_news(known_requests.as_deref(), requested_before.as_deref()) {
            // Left while others were carried out.
            return Err(PipelineError::Requested);
        }
        let books = Books {
            store: self.store.clone(),
            open_errors,
        };
        let has_errors = !books.open_errors.is_empty() || trouble.is_some();
        let delivery = self
            .standing(&mut relations, applied, has_errors)
            .delivery();
        let in_progress_max = delivery.in_progress_max;
        let (options, decoder) =
            delivery.asked(self.source_server.version_num, &self.config.publication);
        applier.expect(delivery.format);
        relations.expect(delivery.format);
        tracing::info!(values = ?delivery.format, in_progress_max, "asking for the stream");
        self.leave_sessions(in_progress_max);
        if in_progress_max > 0 {
            applier = applier.with_siblings(&self.config.replica);
        }
        applier = applier.with_witness(witness).await;
        faults::at("stream.asked").await?;
        let mut connection = from.connection;
        if in_progress_max > 0 {
            connection.limit_segments(SEGMENT_BYTES).await?;
        }
        let stream = self
            .stream_from(connection, &from.slot_name, applied, &options)
            .await?;
        faults::at("stream.started").await?;
        // It was looked at long ago, before the copies; now it is ours, and nobody can move it.
        let slot = fetch_slot(&*self.source_pool.get().await?, &from.slot_name).await?;
        slot.map_or(Ok(()), |slot| expect_not_beyond(&slot, applied))?;
        let watch = self.watch(known_requests, !books.open_errors.is_empty());
        let inbox = Inbox::open(
            self.listener,
            stream,
            decoder,
            applied,
            Bounds {
                queue_bytes_max: self.config.queue_bytes_max(),
                holdback: self.config.holdback,
            },
            self.telemetry.clone(),
        );
        let streams = Streams {
            watch: watch(&inbox),
            inbox,
            applier,
            relations,
            books: Some(books),
            in_progress_max,
        };
        Ok(Follower::new(streams, applied, &self.config.apply, self.telemetry).after(trouble))
    }

    /// What decides about the stream.
    fn standing(&self, relations: &mut Relations, applied: Lsn, has_errors: bool) -> Standing {
        let as_text = relations.as_text(self.agree_on_intervals);
        if let Some(table) = as_text {
            tracing::info!(%table, "values come as text: this table has columns that take no other form");
        }
        Standing {
            server_version_num: self.source_server.version_num,
            takes_binary: as_text.is_none(),
            are_past_copies: relations.are_past_copies(applied),
            has_errors,
            keeps_whole: self.memory.takes_whole(Instant::now()),
            keeps_text: self.memory.takes_text(Instant::now()),
            sessions: self.pooled(),
        }
    }

    /// Sessions with the replica beside the one that applies and its witness.
    fn pooled(&self) -> usize {
        self.config.replica_pool_max.saturating_sub(2)
    }

    /// The pool gives up what others will use.
    fn leave_sessions(&self, in_progress_max: usize) {
        let left = self.pooled().saturating_sub(in_progress_max);
        self.replica_pool.resize(left.max(1));
    }

    /// What may end the stream from beside it, once there is one.
    fn watch(
        &self,
        known_requests: Option<String>,
        has_open: bool,
    ) -> impl FnOnce(&Inbox) -> Watch + use<> {
        let (source, replica) = (self.source_pool.clone(), self.replica_pool.clone());
        let (store, telemetry) = (self.store.clone(), self.telemetry.clone());
        let publication = PublicationWatch {
            source: source.clone(),
            replica: replica.clone(),
            pipeline: self.config.name.clone(),
            publication: self.config.publication.clone(),
            known: Known::of(&self.plan),
        };
        move |inbox| {
            let positions = || inbox.positions.subscribe();
            let errors = ErrorsWatch {
                replica,
                store,
                telemetry,
                positions: positions(),
                known_requests,
                has_open,
            };
            Watch::new()
                .and(errors.run())
                .and(publication.run(positions()))
                .and(watch_shutdown(source, positions(), inbox.stopper()))
        }
    }

    /// Every table that takes part, with its state.
    async fn relations(
        &self,
        applied: Lsn,
        tells_catching_up: bool,
    ) -> Result<Relations, PipelineError> {
        let records = Store::fetch_tables(&self.control, &self.config.name).await?;
        let types = self.plan.types.as_ref().clone();
        let pools = (self.source_pool.clone(), self.replica_pool.clone());
        let mut relations = Relations::new(self.config, types, pools, applied);
        let ours = self.plan.records_of(&records);
        for (oid, table) in &self.plan.tables {
            let state = ours
                .get(oid)
                .map_or(TableState::Init, |record| record.state);
            if matches!(state, TableState::Resync { .. }) {
                // Asked for while others were copied.
                return Err(PipelineError::Requested);
            }
            if state.copied_at().is_none() {
                // Its changes would be passed by, and nothing would say so.
                return Err(PipelineError::Definite {
                    message: format!("{} is to be followed and was not copied", table.source.name),
                    advice: "report this".into(),
                });
            }
            let telemetry = self
                .telemetry
                .table(&table.source.name, &table.replica.name);
            if tells_catching_up {
                telemetry.set_state(TableStateLabel::CatchingUp);
            }
            relations.add(table, state, telemetry);
        }
        Ok(relations)
    }

    /// Carries out what operators want done about errors, as far as it can be done now; returns
    /// those that are left.
    async fn work_through_errors(
        &self,
        applier: &mut Applier,
        relations: &mut Relations,
        applied: Lsn,
    ) -> Result<Vec<BookedError>, PipelineError> {
        let pipeline = &self.config.name;
        let open = Store::fetch_errors(&self.control, pipeline, true).await?;
        if open.is_empty() {
            return Ok(open);
        }
        self.store.take_retries(&self.control).await?;
        self.store.pass_errors(&self.control, applied).await?;
        let mut replay = Replay {
            store: &self.store,
            books: &self.control,
            applier,
            relations,
            settings: &self.config.apply,
            applied,
            telemetry: self.telemetry,
        };
        replay.run(&open).await?;
        Ok(Store::fetch_errors(&self.control, pipeline, true).await?)
    }

    /// A slot that was made before the configuration said so.
    async fn keep_on_standbys(
        &self,
        connection: &mut ReplicationConnection,
        name: &SlotName,
        slot: Option<&ReplicationSlot>,
    ) -> Result<(), PipelineError> {
        if self.config.failover && slot.is_some_and(|slot| !slot.failover) {
            keep_on_standbys(connection, name).await?;
            tracing::info!(slot = %name, "the slot is synchronised to standbys from now on");
        }
        Ok(())
    }

    fn slot_name(&self) -> Result<SlotName, PipelineError> {
        Ok(self.config.slot.parse()?)
    }

    /// The slot is this pipeline's, and goes on.
    pub(super) fn own_slot(&self) {
        self.memory.own(self.identity(), self.store.clone());
    }

    pub(super) fn identity(&self) -> PipelineIdentity {
        PipelineIdentity {
            system_id: self.source_server.system_id.clone(),
            database_oid: self.source_server.database_oid,
            slot: self.config.slot.clone(),
        }
    }
}
