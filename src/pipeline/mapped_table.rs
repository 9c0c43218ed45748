//! One table of the stream that goes to the replica, and what its rows must be like.

use super::PipelineError;
use crate::apply::RowChange;
use crate::mapping::{Resolved, RowIdentity, TableMapping};
use crate::pg::{OldTuple, Relation, Tuple, TupleValue};
use crate::progress::TableState;
use crate::telemetry::TableTelemetry;
use std::sync::Arc;

/// A table that goes to the replica.
pub(crate) struct MappedTable {
    pub(crate) mapping: Arc<TableMapping>,
    pub(crate) state: TableState,
    pub(crate) telemetry: TableTelemetry,
    pub(super) resolved: Resolved,
    /// How a transaction described it whose changes the copy has; see `Relations::learn`.
    pub(super) unread_form: Option<Relation>,
    pub(super) is_told_ready: bool,
}

impl MappedTable {
    /// How the source last described it, whether its mapping was made anew for that or not.
    pub(crate) fn form(&self) -> &Relation {
        self.unread_form.as_ref().unwrap_or(&self.mapping.relation)
    }

    /// An old row must have what finds it.
    pub(crate) fn check_row(&self, change: &RowChange) -> Result<(), PipelineError> {
        let Some(old) = change.old_tuple() else {
            return Ok(());
        };
        let is_found = match (&self.mapping.identity, old) {
            (RowIdentity::FullRow, OldTuple::Key(_)) => false,
            // A row that the filter keeps out needs no key.
            (RowIdentity::Key(_), OldTuple::Full(_)) if self.mapping.filter.is_some() => true,
            (RowIdentity::Key(_), old) => {
                let mut key = self.mapping.iter_key_positions();
                !key.any(|p| old.tuple().value(p) == Some(TupleValue::Null))
            }
            _ => true,
        };
        if is_found {
            return Ok(());
        }
        Err(PipelineError::Definite {
            message: format!(
                "{} has a changed row that cannot be found: the source did not log the columns that find it",
                self.mapping.relation.name
            ),
            advice: "one of its partitions has a replica identity of its own: give it the same as its root, or REPLICA IDENTITY FULL, and copy the table again".into(),
        })
    }

    /// A row must have the columns that its table was last said to have.
    pub(crate) fn check_width(&self, change: &RowChange) -> Result<(), PipelineError> {
        let fits = |tuple: &Tuple| tuple.len() == self.form().columns.len();
        let is_new_right = change.new_tuple().is_none_or(fits);
        let is_old_right = change.old_tuple().is_none_or(|old| fits(old.tuple()));
        if is_new_right && is_old_right {
            return Ok(());
        }
        Err(PipelineError::OutOfOrder(
            "a row has another number of columns than its table",
        ))
    }
}
