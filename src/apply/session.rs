//! The one connection that writes: the shapes it has been sent, and requests sent without waiting
//! for the answer to the one before.
//!
//! ```text
//!  send ─▶ BEGIN ─▶ UPDATE ─▶ UPDATE ─▶ COPY …          on the wire at once, in this order
//!  land ◀── ok ◀──── 3 rows ◀── …                        looked at when enough is under way
//! ```
//!
//! tokio-postgres sends a request when its future is first polled, so polling each one once as it
//! is made puts all of them on the wire in that order; answers come back in the same one. After a
//! failed statement the server answers 25P02 to the rest until ROLLBACK; the first error is the
//! one that counts.

use super::array::Parameter;
use super::error::ApplyError;
use super::ready::{Given, Ready, all_or_first, name, type_of};
use super::statement::{Shape, Statement as Text, statement};
use crate::faults;
use crate::mapping::TableMapping;
use crate::pg::{RelationId, ValueFormat};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::Client;

/// Shapes remembered in one session. Beyond it each is sent whole, but COPY, and has no name for long.
const KNOWN_MAX: u32 = 4_096;
/// A shape that this many batches did without makes room for others.
const KEPT_FOR: u64 = 64;
/// So often a shape is sent whole before it is given a name.
const WHOLE_FIRST: u32 = 2;
/// Shapes that are given a name at once.
const NAMED_AT_ONCE: usize = 64;
/// Bytes of parameters that may be under way before answers are waited for.
const UNDER_WAY_MAX: usize = 2 << 20;

struct Known {
    ready: Arc<Ready>,
    uses: u32,
    last_used: u64,
}

struct TableStatements {
    mapping: Arc<TableMapping>,
    by_shape: HashMap<Shape, Known>,
}

/// A connection to the replica and the shapes it has been sent.
pub(crate) struct ReplicaSession {
    pub(crate) client: Arc<Client>,
    /// Of the values in the batches that are written.
    format: ValueFormat,
    tables: HashMap<RelationId, TableStatements>,
    known_count: usize,
    /// Batches until now.
    batches: u64,
    tidied_at: u64,
    /// Answers are one request behind: of no use any more.
    pub(super) is_out_of_step: bool,
    /// The last batch did not pass as sets of rows.
    pub(super) wrote_in_source_order: bool,
}

impl ReplicaSession {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client: Arc::new(client),
            format: ValueFormat::Text,
            tables: HashMap::new(),
            known_count: 0,
            batches: 0,
            tidied_at: 0,
            is_out_of_step: false,
            wrote_in_source_order: false,
        }
    }

    pub(crate) fn format(&self) -> ValueFormat {
        self.format
    }

    /// From here on values are of this format.
    pub(crate) fn expect(&mut self, format: ValueFormat) {
        if self.format != format {
            self.forget();
        }
        self.format = format;
    }

    fn forget(&mut self) {
        self.tables.clear();
        self.known_count = 0;
    }

    /// Batches until now.
    pub(super) fn batches(&self) -> u64 {
        self.batches
    }

    /// Another batch is to be written.
    pub(super) fn begin_batch(&mut self) {
        self.wrote_in_source_order = false;
        self.batches += 1;
    }

    /// A shape, so that it can be sent.
    pub(crate) async fn ready_one(
        &mut self,
        mapping: &Arc<TableMapping>,
        shape: &Shape,
    ) -> Result<Arc<Ready>, ApplyError> {
        if let Some(ready) = self.at_hand(mapping, shape)? {
            return Ok(ready);
        }
        let client = Arc::clone(&self.client);
        let named = name(client, Arc::clone(mapping), shape.clone(), self.format);
        let ready = Arc::new(named.await?);
        self.remember(mapping, shape, &ready);
        Ok(ready)
    }

    /// Each of these shapes, in their order, so that they can be sent without a wait.
    pub(crate) async fn ready(
        &mut self,
        wanted: &[(&Arc<TableMapping>, &Shape)],
    ) -> Result<Vec<Arc<Ready>>, ApplyError> {
        let mut all = Vec::with_capacity(wanted.len());
        let mut unnamed: Vec<(&Arc<TableMapping>, &Shape)> = Vec::new();
        // One that is wanted many times has one name.
        let mut numbers = HashMap::new();
        for (mapping, shape) in wanted {
            // At hand, or the number of one that is to be named.
            all.push(self.at_hand(mapping, shape)?.ok_or_else(|| {
                let key = (Arc::as_ptr(mapping).addr(), *shape);
                *numbers.entry(key).or_insert_with(|| {
                    unnamed.push((mapping, shape));
                    unnamed.len() - 1
                })
            }));
        }
        drop(numbers);
        let mut named = Vec::with_capacity(unnamed.len());
        for (mapping, shape) in &unnamed {
            let (client, mapping) = (Arc::clone(&self.client), Arc::clone(mapping));
            named.push(name(client, mapping, Shape::clone(shape), self.format));
        }
        let named: Vec<_> = stream::iter(named).buffered(NAMED_AT_ONCE).collect().await;
        let named = all_or_first(named)?;
        for ((mapping, shape), ready) in unnamed.into_iter().zip(&named) {
            self.remember(mapping, shape, ready);
        }
        let all = all.into_iter();
        Ok(all
            .map(|ready| ready.unwrap_or_else(|number| Arc::clone(&named[number])))
            .collect())
    }

    /// The shape, if it has a name or is to be sent whole.
    fn at_hand(
        &mut self,
        mapping: &Arc<TableMapping>,
        shape: &Shape,
    ) -> Result<Option<Arc<Ready>>, ApplyError> {
        let batches = self.batches;
        if let Some(table) = self.tables.get_mut(&mapping.relation.id)
            && Arc::ptr_eq(&table.mapping, mapping)
            && let Some(known) = table.by_shape.get_mut(shape)
        {
            known.uses += 1;
            known.last_used = batches;
            let is_named = matches!(known.ready.given, Given::ByName(_));
            let is_at_hand = is_named || known.uses <= whole_first();
            return Ok(is_at_hand.then(|| Arc::clone(&known.ready)));
        }
        let Text { sql, params } = statement(mapping, shape, self.format)?;
        let types = params.iter().map(type_of).collect();
        match types {
            Some(types) if *shape != Shape::Copy && whole_first() > 0 => {
                let ready = Arc::new(Ready::new(Given::Whole { sql, types }, params));
                self.remember(mapping, shape, &ready);
                Ok(Some(ready))
            }
            _ => Ok(None),
        }
    }

    /// While there is room.
    fn remember(&mut self, mapping: &Arc<TableMapping>, shape: &Shape, ready: &Arc<Ready>) {
        let known_max = faults::limit("apply.known_max", KNOWN_MAX) as usize;
        self.make_room(known_max);
        let has_room = self.known_count < known_max;
        if !has_room && !self.tables.contains_key(&mapping.relation.id) {
            return;
        }
        let table = self.tables.entry(mapping.relation.id);
        let table = table.or_insert_with(|| TableStatements {
            mapping: Arc::clone(mapping),
            by_shape: HashMap::new(),
        });
        if !Arc::ptr_eq(&table.mapping, mapping) {
            // The table's mapping changed: its old statements are of no use.
            self.known_count -= table.by_shape.len();
            table.mapping = Arc::clone(mapping);
            table.by_shape.clear();
        }
        if let Some(known) = table.by_shape.get_mut(shape) {
            known.ready = Arc::clone(ready);
        } else if has_room {
            let known = Known {
                ready: Arc::clone(ready),
                uses: 1,
                last_used: self.batches,
            };
            table.by_shape.insert(shape.clone(), known);
            self.known_count += 1;
        }
    }

    fn make_room(&mut self, known_max: usize) {
        if self.known_count < known_max || self.batches < self.tidied_at + KEPT_FOR {
            return;
        }
        self.tidied_at = self.batches;
        let used_since = self.batches - KEPT_FOR;
        self.tables.retain(|_, table| {
            table
                .by_shape
                .retain(|_, known| known.last_used > used_since);
            !table.by_shape.is_empty()
        });
        self.known_count = self.tables.values().map(|table| table.by_shape.len()).sum();
    }

    /// Requests that follow each other without a wait.
    pub(crate) fn flight(&self) -> Flight {
        Flight {
            client: Arc::clone(&self.client),
            under_way: VecDeque::new(),
            bytes: 0,
            touched: Vec::new(),
            is_out_of_step: false,
        }
    }
}

type Answer = Result<u64, tokio_postgres::Error>;
type Sending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The request that failed first: the place it was given, if it had one.
pub(crate) type Failed = (Option<usize>, tokio_postgres::Error);

/// Requests under way. Dropped, their answers are of no interest any more.
pub(crate) struct Flight {
    client: Arc<Client>,
    under_way: VecDeque<(Option<usize>, usize, Sending)>,
    bytes: usize,
    touched: Vec<(usize, u64)>,
    /// A COPY was refused before it began.
    pub(super) is_out_of_step: bool,
}

impl Flight {
    /// Sends a statement that has no rows.
    pub(crate) async fn send_sql(&mut self, sql: &str) -> Result<(), Failed> {
        let (client, sql) = (Arc::clone(&self.client), sql.to_owned());
        let request = async move { client.batch_execute(&sql).await.map(|()| 0) };
        self.send(None, 0, Box::pin(request)).await
    }

    /// Sends a shape with its rows; the rows it touches are counted for `place`.
    pub(crate) async fn send_rows(
        &mut self,
        place: usize,
        ready: &Arc<Ready>,
        parameters: Vec<Parameter>,
    ) -> Result<(), Failed> {
        let text_len = match &ready.given {
            Given::Whole { sql, .. } => sql.len(),
            Given::ByName(_) => 0,
        };
        let bytes = text_len + parameters.iter().map(Parameter::len).sum::<usize>();
        let (client, ready) = (Arc::clone(&self.client), Arc::clone(ready));
        let request = async move {
            match &ready.given {
                Given::ByName(statement) => client.execute_raw(statement, &parameters).await,
                Given::Whole { sql, types } => {
                    let typed = parameters.into_iter().zip(types.iter().cloned());
                    let mut rows = pin!(client.query_typed_raw(sql, typed).await?);
                    while rows.try_next().await?.is_some() {}
                    Ok(rows.rows_affected().unwrap_or_default())
                }
            }
        };
        self.send(Some(place), bytes, Box::pin(request)).await
    }

    async fn send(
        &mut self,
        place: Option<usize>,
        bytes: usize,
        mut request: Sending,
    ) -> Result<(), Failed> {
        match poll_once(&mut request).await {
            Some(answer) => self.note(place, answer)?,
            None => {
                self.bytes += bytes;
                self.under_way.push_back((place, bytes, request));
            }
        }
        while self.bytes > UNDER_WAY_MAX {
            self.land_first().await?;
        }
        Ok(())
    }

    /// Begins a COPY once all that is under way has passed, and sends pieces until there are no more.
    ///
    /// tokio-postgres asks for two answers to it, one of which a server that copies does not give: a
    /// COPY that is refused before it begins leaves the session out of step. So it must not follow
    /// what may fail, and a first row is inserted before it (`stage.rs`).
    pub(crate) async fn copy<E>(
        &mut self,
        place: usize,
        ready: &Ready,
        mut next_piece: impl FnMut() -> Result<Option<Bytes>, E>,
    ) -> Result<Result<(), E>, Failed> {
        self.land().await?;
        let failed = |error| (Some(place), error);
        let begun = match &ready.given {
            Given::ByName(statement) => self.client.copy_in::<_, Bytes>(statement).await,
            Given::Whole { sql, .. } => self.client.copy_in(sql).await,
        };
        self.is_out_of_step = begun.is_err();
        let mut sink = pin!(begun.map_err(failed)?);
        loop {
            match next_piece() {
                Ok(Some(piece)) => sink.send(piece).await.map_err(failed)?,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        let rows = sink.finish().await.map_err(failed)?;
        self.touched.push((place, rows));
        Ok(Ok(()))
    }

    /// Waits for every answer.
    pub(crate) async fn land(&mut self) -> Result<(), Failed> {
        while !self.under_way.is_empty() {
            self.land_first().await?;
        }
        Ok(())
    }

    /// The rows touched, by place.
    pub(crate) fn touched(self) -> Vec<(usize, u64)> {
        self.touched
    }

    async fn land_first(&mut self) -> Result<(), Failed> {
        let Some((place, bytes, request)) = self.under_way.pop_front() else {
            return Ok(());
        };
        self.bytes -= bytes;
        let answer = request.await;
        self.note(place, answer)
    }

    fn note(&mut self, place: Option<usize>, answer: Answer) -> Result<(), Failed> {
        let rows = answer.map_err(|error| (place, error))?;
        self.touched.extend(place.map(|place| (place, rows)));
        Ok(())
    }
}

fn whole_first() -> u32 {
    faults::limit("apply.whole_first", WHOLE_FIRST)
}

/// Polls a request for the first time, which sends it; its answer if that is here already.
pub(crate) async fn poll_once<F: Future + Unpin>(request: &mut F) -> Option<F::Output> {
    poll_fn(|context| match Pin::new(&mut *request).poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
