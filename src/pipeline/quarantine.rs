//! What becomes of a transaction that cannot be applied: it is noted in the books, and where
//! that is wanted its table is set aside, so that the others can go on.
//!
//! ```text
//!  attempt fails ─▶ rolled back ─▶ noted, table set aside (one transaction) ─▶ next attempt:
//!      the table's changes go into the books, in the transaction of the position
//!  errors retry, skip ─▶ next attempt, before it streams: what was kept, in source order, in
//!      one transaction that takes the table back
//! ```
//!
//! Set aside before anything of it is passed: whatever breaks in between, no change is lost.

use super::PipelineError;
use super::in_hand::{InHand, Received};
use super::relations::Relations;
use crate::apply::{Applier, ApplyError, OnError, Settings, Written};
use crate::pg::{Disposition, Lsn, RelationId};
use crate::pgoutput::{Decoder, Message, Streaming};
use crate::progress::{
    BookedError, ErrorState, Failure, KeptRow, ProgressError, Request, Store, TableState,
};
use crate::telemetry::{Chain, ErrorStatus, Telemetry};
use std::collections::HashMap;
use tokio_postgres::Client;

/// Kept changes read at once.
const PAGE_ROWS_MAX: i64 = 2_000;
const PAGE_BYTES_MAX: i64 = 4 << 20;

/// What is written of the pipeline on the replica, beside its position.
pub(crate) struct Books {
    pub(crate) store: Store,
    /// Errors that wait for somebody.
    pub(crate) open_errors: Vec<BookedError>,
}

impl Books {
    /// Transactions that are to be passed by: the commit record and the error of each.
    pub(super) fn skips(&self) -> HashMap<Lsn, i64> {
        self.open_errors
            .iter()
            .filter(|e| e.state == ErrorState::Stopped && e.request == Some(Request::Skip))
            .map(|error| (error.commit_lsn, error.id))
            .collect()
    }
}

/// Whether `after` has a request that `before` has not.
pub(super) fn are_news(after: Option<&str>, before: Option<&str>) -> bool {
    let words = |text| str::split_whitespace(Option::unwrap_or(text, ""));
    words(after).any(|word| words(before).all(|known| known != word))
}

/// Notes an error that stops the pipeline, or sets its table aside; returns what the attempt
/// ends with.
pub(super) async fn book(
    store: &Store,
    on_error: OnError,
    relations: &Relations,
    key_hash: Option<&str>,
    error: PipelineError,
) -> PipelineError {
    let Some(failure) = failure(relations, key_hash, &error) else {
        return error;
    };
    match note(store, on_error, relations, &failure).await {
        Ok(Some(table)) => PipelineError::SetAside {
            table,
            source: Box::new(error),
        },
        Ok(None) => error,
        // Not in the books, then; the error itself is told all the same.
        Err(unbooked) => {
            tracing::warn!(error = %Chain(&unbooked), "the error could not be noted on the replica");
            error
        }
    }
}

/// The source table that was set aside, if one was.
async fn note(
    store: &Store,
    on_error: OnError,
    relations: &Relations,
    failure: &Failure,
) -> Result<Option<String>, PipelineError> {
    let mut client = relations.replica().await?;
    let transaction = client.transaction().await;
    let transaction = transaction.map_err(ProgressError::doing("note an error"))?;
    let mut set_aside = None;
    match (&failure.table, on_error) {
        (Some((oid, source, _)), OnError::Quarantine) => {
            if store.quarantine(&*transaction, failure, *oid).await? {
                set_aside = Some(source.to_string());
            } else {
                // It is set aside already: that does not help.
                store.note_stopped(&*transaction, failure).await?;
            }
        }
        _ => store.note_stopped(&*transaction, failure).await?,
    }
    let committed = transaction.commit().await;
    committed.map_err(ProgressError::doing("note an error"))?;
    Ok(set_aside)
}

/// Of an error that names the one transaction which cannot be applied.
fn failure(
    relations: &Relations,
    key_hash: Option<&str>,
    error: &PipelineError,
) -> Option<Failure> {
    let (commit_lsn, true) = error.failed_at()? else {
        return None;
    };
    let PipelineError::Apply { source, .. } = error else {
        return None;
    };
    Some(describe(relations, key_hash, commit_lsn, source))
}

fn describe(
    relations: &Relations,
    key_hash: Option<&str>,
    commit_lsn: Lsn,
    error: &ApplyError,
) -> Failure {
    let table = error.table().and_then(|table| relations.source_of(table));
    Failure {
        commit_lsn,
        table: table.and_then(|table| relations.names_of(table.mapping.relation.id)),
        sqlstate: error.sqlstate().map(str::to_owned),
        message: Chain(error).to_string(),
        advice: error.advice().map(str::to_owned),
        key_hash: key_hash.map(str::to_owned),
    }
}

/// Tells what waits for somebody.
pub(super) fn tell(telemetry: &Telemetry, errors: &[BookedError]) {
    let told = |error: &BookedError| ErrorStatus {
        id: error.id,
        state: error.state.as_str(),
        commit_lsn: error.commit_lsn,
        table: error.table.clone(),
        message: error.message.clone(),
        advice: error.advice.clone(),
        kept_changes: error.kept_changes,
        first_unix_ms: error.first_unix_ms,
    };
    telemetry.set_open_errors(errors.iter().map(told).collect());
}

/// Applies what was kept of tables that are set aside, where an operator wants it.
pub(super) struct Replay<'a> {
    pub(super) store: &'a Store,
    /// Reads what was kept.
    pub(super) books: &'a Client,
    pub(super) applier: &'a mut Applier,
    pub(super) relations: &'a mut Relations,
    pub(super) settings: &'a Settings,
    /// The pipeline's position; it stays.
    pub(super) applied: Lsn,
    pub(super) telemetry: &'a Telemetry,
}

/// What was received of one table, on its way.
struct Kept {
    in_hand: InHand,
    decoder: Decoder,
    /// The transaction of the changes in hand.
    commit_lsn: Lsn,
    written: Vec<Written>,
    /// Constraints may wait for the transaction's end.
    is_unchecked: bool,
}

impl Replay<'_> {
    /// Carries out what the open errors ask for.
    ///
    /// # Errors
    /// When the replica is lost. What cannot be applied still is noted, and stays set aside.
    pub(super) async fn run(&mut self, errors: &[BookedError]) -> Result<(), PipelineError> {
        for error in errors {
            let (Some(request), Some(oid)) = (error.request, error.source_oid) else {
                continue;
            };
            if error.state != ErrorState::Quarantined {
                continue;
            }
            if request == Request::Skip {
                if !self.store.skip_kept(self.books, error.id).await? {
                    let epoch = self.store.epoch();
                    return Err(ProgressError::Superseded { epoch }.into());
                }
                tracing::warn!(
                    error = error.id,
                    commit_lsn = %error.commit_lsn,
                    reason = error.reason.as_deref().unwrap_or_default(),
                    "a transaction's changes of a table are passed by, as an operator wants"
                );
            }
            self.replay(oid, request == Request::Skip).await?;
        }
        Ok(())
    }

    async fn replay(&mut self, oid: RelationId, skipped: bool) -> Result<(), PipelineError> {
        let Some(at) = self.relations.copied_at(oid) else {
            return Ok(());
        };
        self.relations.set_state(oid, TableState::Copied { at });
        let mut kept = Kept {
            in_hand: InHand::default(),
            decoder: Decoder::new(1, Streaming::Off),
            commit_lsn: at,
            written: Vec::new(),
            is_unchecked: false,
        };
        match self.apply(oid, skipped, &mut kept).await {
            Ok(()) => {
                for written in &kept.written {
                    self.relations.tell_written(written);
                }
                tracing::info!(
                    relation = oid,
                    "what was kept is applied: the table is taken back"
                );
                Ok(())
            }
            Err(error) if error.disposition() == Disposition::Definite => {
                self.applier.rollback().await;
                self.relations.discard_pending();
                self.relations
                    .set_state(oid, TableState::Quarantined { at });
                self.note_again(oid, kept.commit_lsn, &error).await
            }
            Err(error) => Err(error),
        }
    }

    async fn apply(
        &mut self,
        oid: RelationId,
        skipped: bool,
        kept: &mut Kept,
    ) -> Result<(), PipelineError> {
        let mut after = 0;
        loop {
            let pipeline = self.store.pipeline();
            let page = (PAGE_ROWS_MAX, PAGE_BYTES_MAX);
            let rows = Store::fetch_waiting(self.books, pipeline, oid, after, page).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            for row in rows {
                self.take(kept, row).await?;
            }
        }
        self.end(kept).await?;
        let released = self.applier.release(oid, skipped, self.applied).await;
        released.map_err(|source| kept.failed(source))
    }

    async fn take(&mut self, kept: &mut Kept, row: KeptRow) -> Result<(), PipelineError> {
        if row.commit_lsn != kept.commit_lsn {
            self.end(kept).await?;
            kept.commit_lsn = row.commit_lsn;
        } else if kept.in_hand.is_full(self.settings) {
            self.write(kept).await?;
        }
        if let Some(form) = row.form {
            let Message::Relation { mut relation, .. } = kept.decoder.decode(form)? else {
                return Err(PipelineError::OutOfOrder("a kept form is none"));
            };
            // It may have been renamed since, and the rules with it.
            if let Some((_, name, _)) = self.relations.names_of(relation.id) {
                relation.name = name;
            }
            if self.relations.is_new(&relation) {
                self.write(kept).await?;
                self.relations.learn(relation, None).await?;
            }
        }
        let Message::Change { change, .. } = kept.decoder.decode(row.change)? else {
            return Err(PipelineError::OutOfOrder("a kept change is none"));
        };
        if kept.in_hand.is_between_transactions() {
            kept.in_hand.begin(Received {
                commit_lsn: kept.commit_lsn,
                xid: 0,
                skipped_by: None,
            })?;
        }
        kept.in_hand.change(self.relations, change)
    }

    /// Ends one transaction.
    async fn end(&mut self, kept: &mut Kept) -> Result<(), PipelineError> {
        self.write(kept).await?;
        if std::mem::take(&mut kept.is_unchecked) {
            // What waits for a commit is this transaction's, and not the last one's.
            let checked = self.applier.check_constraints().await;
            checked.map_err(|source| kept.failed(source))?;
        }
        Ok(())
    }

    /// Writes what is in hand of one transaction: it may be a part.
    async fn write(&mut self, kept: &mut Kept) -> Result<(), PipelineError> {
        let batch = kept.in_hand.take_part();
        kept.in_hand = InHand::default();
        if batch.is_empty() {
            return Ok(());
        }
        let written = self.applier.write(&batch).await;
        let written = written.map_err(|source| kept.failed(source))?;
        kept.is_unchecked = true;
        for written in written {
            match kept.written.last_mut() {
                Some(last) if last.mapping == written.mapping => last.add(&written),
                _ => kept.written.push(written),
            }
        }
        self.telemetry.progressed();
        Ok(())
    }

    async fn note_again(
        &mut self,
        oid: RelationId,
        commit_lsn: Lsn,
        error: &PipelineError,
    ) -> Result<(), PipelineError> {
        let message = Chain(error).to_string();
        tracing::error!(
            relation = oid,
            error = message,
            "what was kept still cannot be applied: the table stays set aside"
        );
        let mut failure = match error {
            PipelineError::Apply { source, .. } => describe(
                self.relations,
                self.applier.failed_key(),
                commit_lsn,
                source,
            ),
            _ => Failure {
                commit_lsn,
                table: None,
                sqlstate: None,
                message,
                advice: error.advice(),
                key_hash: None,
            },
        };
        failure.table = self.relations.names_of(oid);
        // What was passed by and what stands in its place: a table that is set aside is never
        // without an open error.
        let mut client = self.relations.replica().await?;
        let transaction = client.transaction().await;
        let transaction = transaction.map_err(ProgressError::doing("note an error"))?;
        self.store.note_quarantined(&*transaction, &failure).await?;
        let committed = transaction.commit().await;
        Ok(committed.map_err(ProgressError::doing("note an error"))?)
    }
}

impl Kept {
    fn failed(&self, source: ApplyError) -> PipelineError {
        PipelineError::Apply {
            at: self.commit_lsn,
            is_alone: true,
            source,
        }
    }
}
