//! Mends rows of one table at a cut, some at a time, so that the apply is held up for milliseconds.
//!
//! ```text
//!  replica: BEGIN, a staging table
//!  cut at L ─▶ the apply waits there ─▶ ownership proven: it cannot move on before we end
//!  source, as of L: these rows ─ COPY ─▶ staged ─▶ noted, deleted, updated, inserted ─▶ COMMIT
//! ```
//!
//! What is written is what the source had at L, where the replica is: so the stream goes on from it as
//! if it had always been there. What happened to these rows since they were compared is in it.

use super::RepairError;
use super::report::Deeds;
use super::statement::{Treatment, mend_sql, note_sql, on_replica, on_source};
use crate::apply::take_replica_role;
use crate::conn::Session;
use crate::pg::{Disposition, QualifiedName, ServerError, TypeNames};
use crate::pipeline::{CutAsker, HeldCut, PipelineConfig, PlannedTable};
use crate::progress::{BOOKKEEPING_SCHEMA, Store, TableState};
use crate::snapshot::{copy_statements_where, create_staging, enter_snapshot, rewritten_sql};
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// Keys of one cut.
const KEYS_AT_ONCE: usize = 200;
/// Tries of one cut, and the wait between them.
const TRIES: u32 = 10;
const TRY_AFTER: Duration = Duration::from_millis(500);
/// For a row that somebody has locked. Shorter than any look for deadlocks.
const LOCK_WAIT_MAX: &str = "300ms";
/// So long for all of it, and for each statement on the replica: the apply waits meanwhile.
const WRITTEN_WITHIN: Duration = Duration::from_secs(3);

/// Mends one table after the other.
pub(super) struct Mender<'a> {
    pub(super) config: &'a PipelineConfig,
    pub(super) cuts: &'a CutAsker,
}

/// Both sides' sessions for one cut: whatever becomes of it, nothing of it is left.
struct Sessions {
    source: Client,
    replica: Client,
    is_replica_role: bool,
}

impl Mender<'_> {
    /// Makes the rows of these keys what the source has: how many, and what ended it before its end.
    pub(super) async fn mend(
        &self,
        planned: &PlannedTable,
        types: &TypeNames,
        keys: &[Vec<String>],
        treatment: Treatment,
    ) -> (Deeds, Option<RepairError>) {
        let mut deeds = Deeds::default();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let Some(of_source) = on_source(&planned.mapping, &planned.source, types, keys) else {
                let name = planned.source.name.clone();
                return (deeds, Some(RepairError::NoKey(name)));
            };
            let part = Part {
                planned,
                types,
                of_source,
                of_replica: on_replica(&planned.mapping, keys),
                treatment,
            };
            match self.mend_part(&part).await {
                Ok(more) => deeds.add(&more),
                Err(error) => return (deeds, Some(error)),
            }
        }
        (deeds, None)
    }

    async fn mend_part(&self, part: &Part<'_>) -> Result<Deeds, RepairError> {
        let mut tries = 1;
        loop {
            match self.try_to_mend(part).await {
                // What takes too long once takes too long again, and the apply waits.
                Err(error) if error.is_too_slow() => return Err(error),
                Err(error) if error.may_pass() && tries < TRIES => sleep(TRY_AFTER).await,
                done => return done,
            }
            tries += 1;
        }
    }

    async fn try_to_mend(&self, part: &Part<'_>) -> Result<Deeds, RepairError> {
        let sessions = self.open().await?;
        // Other rows may refer to them, and nobody would note what becomes of those.
        if part.treatment.deletes()
            && !sessions.is_replica_role
            && part.planned.replica.is_referred_to
        {
            return Err(RepairError::ReferredTo(
                part.planned.mapping.replica.clone(),
            ));
        }
        let held = self.cuts.hold(self.config).await?;
        let written = timeout(WRITTEN_WITHIN, self.write(&sessions, &held, part)).await;
        written.map_err(|_| RepairError::TooLate)?
    }

    async fn open(&self) -> Result<Sessions, RepairError> {
        let (source, replica) = tokio::try_join!(
            self.config.source.connect(Session::SourceRead),
            self.config.replica.connect(Session::ReplicaWrite)
        )?;
        Ok(Sessions {
            source,
            is_replica_role: take_replica_role(&replica).await?,
            replica,
        })
    }

    async fn write(
        &self,
        sessions: &Sessions,
        held: &HeldCut,
        part: &Part<'_>,
    ) -> Result<Deeds, RepairError> {
        let Sessions {
            source, replica, ..
        } = sessions;
        let (planned, mapping) = (part.planned, &part.planned.mapping);
        let deferred = if sessions.is_replica_role {
            ""
        } else {
            "; SET CONSTRAINTS ALL DEFERRED"
        };
        // The server itself has to end it: it goes on with what it has begun after we are gone. What is noted is
        // what is changed, whoever else writes meanwhile.
        let most = WRITTEN_WITHIN.as_millis();
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL lock_timeout = '{LOCK_WAIT_MAX}'; SET LOCAL statement_timeout = {most}; \
             SET LOCAL idle_in_transaction_session_timeout = {most}{deferred}"
        );
        let begun = replica.batch_execute(&begin).await;
        begun.map_err(RepairError::writing(planned))?;
        held.owner.prove_ownership(replica).await?;
        let records = Store::fetch_tables(replica, &self.config.name).await?;
        let record = records.iter().find(|record| planned.is_of(record));
        match record.map(|record| record.state) {
            Some(TableState::Copied { at }) if at <= held.cut.at => {}
            // What it lacks is in the books, or comes with its copy.
            _ => return Err(RepairError::NotWhole(planned.source.name.clone())),
        }
        // From here on the position stays where it is until our transaction ends.
        if !held.is_held() {
            return Err(RepairError::TooLate);
        }
        let staging = QualifiedName::new(
            BOOKKEEPING_SCHEMA,
            format!("repair_{}_{}", planned.source.oid, self.config.name),
        );
        create_staging(replica, mapping, &staging).await?;
        enter_snapshot(source, &held.cut.source_snapshot).await?;
        stage(sessions, part, &staging).await?;
        let (from, to) = (&planned.source.name, &mapping.replica);
        let note = note_sql(mapping, &staging, &part.of_replica, part.treatment);
        let at = held.cut.at.to_string();
        let noted = replica
            .query(
                &note,
                &[
                    &self.config.name,
                    &from.schema,
                    &from.name,
                    &to.schema,
                    &to.name,
                    &at,
                ],
            )
            .await
            .map_err(RepairError::writing(planned))?;
        let mend = mend_sql(mapping, &staging, &part.of_replica, part.treatment);
        let mended = replica.batch_execute(&(mend + "COMMIT")).await;
        mended.map_err(RepairError::writing(planned))?;
        Ok(noted.iter().map(|row| row.get::<_, String>(0)).collect())
    }
}

async fn stage(
    Sessions {
        source, replica, ..
    }: &Sessions,
    part: &Part<'_>,
    staging: &QualifiedName,
) -> Result<(), RepairError> {
    let planned = part.planned;
    let statements = copy_statements_where(
        &planned.mapping,
        part.types,
        planned.source_has_parts(),
        planned.published.row_filter.as_deref(),
        Some(&part.of_source),
        staging,
    );
    let reading = RepairError::reading(planned);
    let out = source.copy_out(&statements.copy_out).await;
    let mut out = pin!(out.map_err(&reading)?);
    let into = replica.copy_in::<_, Bytes>(&statements.copy_in).await;
    let mut into = pin!(into.map_err(RepairError::writing(planned))?);
    while let Some(bytes) = out.try_next().await.map_err(&reading)? {
        let sent = into.feed(bytes).await;
        sent.map_err(RepairError::writing(planned))?;
    }
    let done = into.finish().await;
    done.map_err(RepairError::writing(planned))?;
    // Rows that have moved since are no rows to this snapshot.
    let rewritten = rewritten_sql(planned.source.oid, planned.source_has_parts());
    let moved = source.query_opt(&rewritten, &[]).await;
    match moved.map_err(&reading)? {
        Some(_) => Err(RepairError::TooLate),
        None => Ok(()),
    }
}

/// Some rows of a table.
struct Part<'a> {
    planned: &'a PlannedTable,
    types: &'a TypeNames,
    /// Which, on each side.
    of_source: String,
    of_replica: String,
    treatment: Treatment,
}

impl RepairError {
    /// A statement on the replica took longer than the apply may wait.
    fn is_too_slow(&self) -> bool {
        const QUERY_CANCELED: &str = "57014";
        matches!(self, Self::Writing { source, .. } if source.sqlstate() == Some(QUERY_CANCELED))
    }

    /// Whether another try may do.
    fn may_pass(&self) -> bool {
        let is_transient = |disposition| disposition == Disposition::Transient;
        match self {
            Self::TooLate => true,
            Self::Cut(error) => error.may_pass(),
            Self::Conn(error) => is_transient(error.disposition()),
            Self::Snapshot(error) => is_transient(error.disposition()),
            Self::Books(error) => is_transient(error.disposition()),
            Self::Writing { source, .. } | Self::Reading { source, .. } => {
                is_transient(source.disposition())
            }
            _ => false,
        }
    }

    pub(super) fn writing(planned: &PlannedTable) -> impl Fn(tokio_postgres::Error) -> Self {
        let table = planned.mapping.replica.clone();
        move |error| Self::Writing {
            table: table.clone(),
            source: ServerError::from(error),
        }
    }

    pub(super) fn reading(planned: &PlannedTable) -> impl Fn(tokio_postgres::Error) -> Self {
        let table = planned.source.name.clone();
        move |error| Self::Reading {
            table: table.clone(),
            source: ServerError::from(error),
        }
    }
}
