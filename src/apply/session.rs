//! The one connection that writes: prepared shapes, and requests sent without waiting for the
//! answer to the one before.
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

use super::array::{ColumnArray, Parameter};
use super::error::ApplyError;
use super::row::RowArray;
use super::statement::{Element, Fields, ImageSide, Param, Shape, statement};
use crate::mapping::TableMapping;
use crate::pg::{RelationId, ValueFormat};
use bytes::Bytes;
use futures_util::SinkExt;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

/// Statements kept prepared in one session; beyond it all are forgotten and made anew.
const PREPARED_MAX: usize = 4_096;
/// Bytes of parameters that may be under way before answers are waited for.
const UNDER_WAY_MAX: usize = 2 << 20;

/// A shape, ready on the server, and which parameter each value of a row goes to.
pub(crate) struct Prepared {
    statement: Statement,
    params: Vec<Param>,
    /// Position in the new tuple and number of the parameter, by position.
    pub(crate) new: Vec<(usize, usize)>,
    /// The same of the old tuple.
    pub(crate) old: Vec<(usize, usize)>,
    /// Parameters that take whole rows: their number, which tuple, and what of it.
    pub(crate) rows: Vec<(usize, ImageSide, Fields)>,
    /// Parameters that only count rows.
    pub(crate) markers: Vec<usize>,
}

impl Prepared {
    fn new(statement: Statement, params: Vec<Param>) -> Self {
        let mut prepared = Self {
            statement,
            new: Vec::new(),
            old: Vec::new(),
            rows: Vec::new(),
            markers: Vec::new(),
            params: Vec::new(),
        };
        for (number, param) in params.iter().enumerate() {
            match param {
                Param::Column { side, position, .. } => match side {
                    ImageSide::New => prepared.new.push((*position, number)),
                    ImageSide::Old => prepared.old.push((*position, number)),
                },
                Param::Row { side, fields } => {
                    prepared.rows.push((number, *side, fields.clone()));
                }
                Param::Marker => prepared.markers.push(number),
            }
        }
        prepared.new.sort_unstable();
        prepared.old.sort_unstable();
        prepared.params = params;
        prepared
    }

    /// The parameters, without rows yet.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let parameter = |param: &Param| match param {
            Param::Column { element, .. } => Parameter::Column(ColumnArray::new(*element)),
            Param::Marker => Parameter::Column(ColumnArray::new(Element::Text)),
            Param::Row { .. } => Parameter::Rows(RowArray::default()),
        };
        self.params.iter().map(parameter).collect()
    }
}

/// What the server is to take a parameter for; the type of a table's rows it knows by itself.
fn type_of(param: &Param) -> Type {
    match param {
        Param::Column {
            element: Element::Typed { array_oid },
            ..
        } => Type::from_oid(*array_oid).unwrap_or(Type::UNKNOWN),
        Param::Column { .. } | Param::Marker => Type::TEXT_ARRAY,
        Param::Row { .. } => Type::UNKNOWN,
    }
}

struct TableStatements {
    mapping: Arc<TableMapping>,
    by_shape: HashMap<Shape, Arc<Prepared>>,
}

/// A connection to the replica with its prepared shapes.
pub(crate) struct ReplicaSession {
    pub(crate) client: Arc<Client>,
    /// Of the values in the batches that are written.
    format: ValueFormat,
    tables: HashMap<RelationId, TableStatements>,
    prepared_count: usize,
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
            prepared_count: 0,
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
        self.prepared_count = 0;
    }

    /// The shape for a table, prepared now if it was not.
    pub(crate) async fn prepare(
        &mut self,
        mapping: &Arc<TableMapping>,
        shape: &Shape,
    ) -> Result<Arc<Prepared>, ApplyError> {
        let relation = mapping.relation.id;
        if let Some(known) = self.tables.get(&relation)
            && Arc::ptr_eq(&known.mapping, mapping)
            && let Some(prepared) = known.by_shape.get(shape)
        {
            return Ok(Arc::clone(prepared));
        }
        let text = statement(mapping, shape, self.format)?;
        let types: Vec<Type> = text.params.iter().map(type_of).collect();
        let prepared = self.client.prepare_typed(&text.sql, &types).await;
        let statement =
            prepared.map_err(|error| ApplyError::statement(mapping, "prepare", error))?;
        let prepared = Arc::new(Prepared::new(statement, text.params));
        self.remember(mapping, shape.clone(), Arc::clone(&prepared));
        Ok(prepared)
    }

    fn remember(&mut self, mapping: &Arc<TableMapping>, shape: Shape, prepared: Arc<Prepared>) {
        if self.prepared_count >= PREPARED_MAX {
            self.forget();
        }
        let table = self
            .tables
            .entry(mapping.relation.id)
            .or_insert_with(|| TableStatements {
                mapping: Arc::clone(mapping),
                by_shape: HashMap::new(),
            });
        if !Arc::ptr_eq(&table.mapping, mapping) {
            // The table's mapping changed: its old statements are of no use.
            self.prepared_count -= table.by_shape.len();
            table.mapping = Arc::clone(mapping);
            table.by_shape.clear();
        }
        table.by_shape.insert(shape, prepared);
        self.prepared_count += 1;
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

    /// Sends a prepared statement with its rows; the rows it touches are counted for `place`.
    pub(crate) async fn send_rows(
        &mut self,
        place: usize,
        prepared: &Arc<Prepared>,
        parameters: Vec<Parameter>,
    ) -> Result<(), Failed> {
        let bytes = parameters.iter().map(Parameter::len).sum();
        let (client, prepared) = (Arc::clone(&self.client), Arc::clone(prepared));
        let request = async move { client.execute_raw(&prepared.statement, &parameters).await };
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
        prepared: &Prepared,
        mut next_piece: impl FnMut() -> Result<Option<Bytes>, E>,
    ) -> Result<Result<(), E>, Failed> {
        self.land().await?;
        let failed = |error| (Some(place), error);
        let begun = self.client.copy_in::<_, Bytes>(&prepared.statement).await;
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

/// Polls a request for the first time, which sends it; its answer if that is here already.
pub(crate) async fn poll_once<F: Future + Unpin>(request: &mut F) -> Option<F::Output> {
    poll_fn(|context| match Pin::new(&mut *request).poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
