//! What the apply will send for a table, for whoever looks before anything is written.

use super::error::ApplyError;
use super::statement::{Shape, ShapeError, statement};
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::ValueFormat;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// A statement of the apply: rows come as one array of text for each parameter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableStatement {
    /// The change it is for.
    pub what: &'static str,
    /// Its text.
    pub sql: String,
    /// How many arrays it takes.
    #[serde(skip)]
    pub params: usize,
}

/// The shapes that a table will surely need: nothing left out, nothing in conflict.
pub(super) fn sure_shapes(mapping: &TableMapping) -> Vec<(&'static str, Shape)> {
    let mut shapes = vec![("insert", Shape::Insert)];
    match mapping.identity {
        RowIdentity::Key(_) => shapes.extend([
            ("update", Shape::Update(Vec::new())),
            ("delete", Shape::Delete),
        ]),
        RowIdentity::FullRow => {
            shapes.extend([
                ("update", Shape::UpdateFull),
                ("delete", Shape::DeleteFull),
                ("update many", Shape::UpdateFullRows),
                ("delete many", Shape::DeleteFullRows),
            ]);
        }
        RowIdentity::InsertsOnly => {}
    }
    shapes
}

/// The statements that a table will surely need.
///
/// # Errors
/// When one cannot be written.
pub fn table_statements(mapping: &TableMapping) -> Result<Vec<TableStatement>, ShapeError> {
    let made = |(what, shape): (&'static str, Shape)| {
        let statement = statement(mapping, &shape, ValueFormat::Text)?;
        Ok(TableStatement {
            what,
            sql: statement.sql,
            params: statement.params.len(),
        })
    };
    sure_shapes(mapping).into_iter().map(made).collect()
}

/// Has the replica look at those statements, and keeps nothing of it.
///
/// # Errors
/// What the replica says to the first one that it refuses.
pub async fn try_statements(client: &Client, mapping: &TableMapping) -> Result<(), ApplyError> {
    for statement in table_statements(mapping)? {
        let types = vec![Type::TEXT_ARRAY; statement.params];
        client
            .prepare_typed(&statement.sql, &types)
            .await
            .map_err(|error| ApplyError::statement(mapping, "prepare", error))?;
    }
    Ok(())
}
