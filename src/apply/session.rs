//! The one connection that writes: prepared shapes, and statements sent without waiting
//! for the answer to the one before.
//!
//! tokio-postgres sends a request when its future is first polled, so polling a row of
//! futures once, in order, puts all of them on the wire in that order; answers come back
//! in the same one. After a failed statement the server answers 25P02 to the rest until
//! ROLLBACK; the first error is the one that counts.

use super::array::TextArray;
use super::error::ApplyError;
use super::statement::{ImageSide, Param, ROW_MARKER, Shape, statement};
use crate::mapping::TableMapping;
use crate::pg::RelationId;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

/// Statements kept prepared in one session; beyond it all are forgotten and made anew.
const PREPARED_MAX: usize = 4_096;

/// A shape, ready on the server, and which parameter each column of a row goes to.
pub(crate) struct Prepared {
    statement: Statement,
    pub(crate) params: usize,
    /// Position in the new tuple and number of the parameter, by position.
    pub(crate) new: Vec<(usize, usize)>,
    /// The same of the old tuple.
    pub(crate) old: Vec<(usize, usize)>,
    /// Parameters that only count rows.
    pub(crate) markers: Vec<usize>,
}

impl Prepared {
    fn new(statement: Statement, params: &[Param]) -> Self {
        let of = |wanted: ImageSide| {
            let mut slots: Vec<(usize, usize)> = params
                .iter()
                .enumerate()
                .filter(|(_, param)| param.side == wanted && param.position != ROW_MARKER)
                .map(|(number, param)| (param.position, number))
                .collect();
            slots.sort_unstable();
            slots
        };
        let is_marker = |(_, param): &(usize, &Param)| param.position == ROW_MARKER;
        let markers = params
            .iter()
            .enumerate()
            .filter(is_marker)
            .map(|(number, _)| number);
        Self {
            statement,
            params: params.len(),
            new: of(ImageSide::New),
            old: of(ImageSide::Old),
            markers: markers.collect(),
        }
    }
}

/// One statement with its rows.
pub(crate) struct Work {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) arrays: Vec<TextArray>,
}

struct TableStatements {
    mapping: Arc<TableMapping>,
    by_shape: HashMap<Shape, Arc<Prepared>>,
}

/// A connection to the replica with its prepared shapes.
pub(crate) struct ReplicaSession {
    pub(crate) client: Client,
    tables: HashMap<RelationId, TableStatements>,
    prepared_count: usize,
}

impl ReplicaSession {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            tables: HashMap::new(),
            prepared_count: 0,
        }
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
        let text = statement(mapping, shape)?;
        let types = vec![Type::TEXT_ARRAY; text.params.len()];
        let prepared = self.client.prepare_typed(&text.sql, &types).await;
        let statement =
            prepared.map_err(|error| ApplyError::statement(mapping, "prepare", error))?;
        let prepared = Arc::new(Prepared::new(statement, &text.params));
        self.remember(mapping, shape.clone(), Arc::clone(&prepared));
        Ok(prepared)
    }

    fn remember(&mut self, mapping: &Arc<TableMapping>, shape: Shape, prepared: Arc<Prepared>) {
        if self.prepared_count >= PREPARED_MAX {
            self.tables.clear();
            self.prepared_count = 0;
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

    /// Sends all statements at once, behind `first` if given; returns the rows each touched.
    /// On failure, which statement failed first (`None`: `first` itself).
    pub(crate) async fn execute_all(
        &self,
        first: Option<&str>,
        works: Vec<Work>,
    ) -> Result<Vec<u64>, (Option<usize>, tokio_postgres::Error)> {
        let client = &self.client;
        let begin = async move {
            match first {
                Some(sql) => client.batch_execute(sql).await.map(|()| 0),
                None => Ok(0),
            }
        };
        let mut futures: Vec<Sending<'_>> = Vec::with_capacity(works.len() + 1);
        futures.push(Box::pin(begin));
        for work in works {
            futures.push(Box::pin(async move {
                client
                    .execute_raw(&work.prepared.statement, work.arrays)
                    .await
            }));
        }
        let mut touched = Vec::with_capacity(futures.len());
        let mut failed = None;
        for (place, answer) in in_order(futures).await.into_iter().enumerate() {
            match answer {
                Ok(rows) => touched.push(rows),
                Err(error) if failed.is_none() => failed = Some((place.checked_sub(1), error)),
                Err(_) => {}
            }
        }
        match failed {
            Some(failed) => Err(failed),
            None => Ok(touched.split_off(1)),
        }
    }
}

type Sending<'a> = Pin<Box<dyn Future<Output = Result<u64, tokio_postgres::Error>> + Send + 'a>>;

/// Starts every future in order, then awaits them in order.
async fn in_order(mut futures: Vec<Sending<'_>>) -> Vec<Result<u64, tokio_postgres::Error>> {
    let mut early: Vec<Option<Result<u64, tokio_postgres::Error>>> = Vec::new();
    poll_fn(|context| {
        for future in &mut futures {
            early.push(match future.as_mut().poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            });
        }
        Poll::Ready(())
    })
    .await;
    let mut answers = Vec::with_capacity(futures.len());
    for (future, early) in futures.into_iter().zip(early) {
        answers.push(match early {
            Some(answer) => answer,
            None => future.await,
        });
    }
    answers
}
