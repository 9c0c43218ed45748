//! A shape of SQL that can be sent: whole, or by the name the server knows it by.
//!
//! ```text
//!  Shape ─ statement.rs ─▶ text, parameters ─┬─▶ whole    the server parses it each time; nobody waits
//!                                            └─▶ by name  parsed once; its answer is waited for
//! ```

use super::array::{ColumnArray, Parameter};
use super::error::ApplyError;
use super::row::RowArray;
use super::statement::{Element, Fields, ImageSide, Param, Shape, statement};
use crate::mapping::TableMapping;
use crate::pg::ValueFormat;
use std::sync::Arc;
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, Statement};

/// How the server is given a shape.
pub(super) enum Given {
    /// Whole, with each set of rows: it parses and plans it each time, and nobody waits for that.
    Whole { sql: String, types: Vec<Type> },
    /// By the name of what it has parsed and planned. tokio-postgres waits for that, and asks for
    /// the types of parameters that it does not know: not worth it for what is seldom written.
    ByName(Statement),
}

/// A shape that can be sent, and which parameter each value of a row goes to.
pub(crate) struct Ready {
    pub(super) given: Given,
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

impl Ready {
    pub(super) fn new(given: Given, params: Vec<Param>) -> Self {
        let mut ready = Self {
            given,
            new: Vec::new(),
            old: Vec::new(),
            rows: Vec::new(),
            markers: Vec::new(),
            params: Vec::new(),
        };
        for (number, param) in params.iter().enumerate() {
            match param {
                Param::Column { side, position, .. } => match side {
                    ImageSide::New => ready.new.push((*position, number)),
                    ImageSide::Old => ready.old.push((*position, number)),
                },
                Param::Row { side, fields } => {
                    ready.rows.push((number, *side, fields.clone()));
                }
                Param::Marker => ready.markers.push(number),
            }
        }
        ready.new.sort_unstable();
        ready.old.sort_unstable();
        ready.params = params;
        ready
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

/// What the server is to take a parameter for, where that is known without asking it. What is cast to
/// the table's own row type needs no object id: of types that are not built in no server believes
/// what an array says (arrayfuncs.c, `array_recv`, since 14).
pub(super) fn type_of(param: &Param) -> Option<Type> {
    match param {
        Param::Column {
            element: Element::Typed { array_oid },
            ..
        } => Type::from_oid(*array_oid),
        Param::Column { .. } | Param::Marker => Some(Type::TEXT_ARRAY),
        Param::Row { .. } => {
            let unsaid = |kind| Type::new(String::new(), 0, kind, String::new());
            Some(unsaid(Kind::Array(unsaid(Kind::Simple))))
        }
    }
}

/// All of them, or the first error: not that of one which came too late, in a transaction that had
/// failed by then (25P02).
pub(super) fn all_or_first(
    named: Vec<Result<Ready, ApplyError>>,
) -> Result<Vec<Arc<Ready>>, ApplyError> {
    let is_late = |error: &ApplyError| error.sqlstate() == Some("25P02");
    let mut all = Vec::with_capacity(named.len());
    let mut first: Option<ApplyError> = None;
    for ready in named {
        match ready {
            Ok(ready) => all.push(Arc::new(ready)),
            Err(error) if first.as_ref().is_none_or(is_late) => first = Some(error),
            Err(_) => {}
        }
    }
    first.map_or(Ok(all), Err)
}

/// Has the server parse a shape, under a name.
pub(super) async fn name(
    client: Arc<Client>,
    mapping: Arc<TableMapping>,
    shape: Shape,
    format: ValueFormat,
) -> Result<Ready, ApplyError> {
    let text = statement(&mapping, &shape, format)?;
    // Types of the replica's own it finds by itself.
    let own = |param| type_of(param).filter(|own| own.oid() != 0);
    let types: Vec<Type> = text
        .params
        .iter()
        .map(|param| own(param).unwrap_or(Type::UNKNOWN))
        .collect();
    let prepared = client.prepare_typed(&text.sql, &types).await;
    let statement = prepared.map_err(|error| ApplyError::statement(&mapping, "prepare", error))?;
    Ok(Ready::new(Given::ByName(statement), text.params))
}
