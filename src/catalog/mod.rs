//! Reads a database's catalogue into nouns. Every query is set-based, read-only and
//! names `pg_catalog` in full, so that neither ten thousand tables nor a hostile
//! `search_path` matter.

use crate::pg::{Disposition, ServerError};

mod foreign_key;
mod privilege;
mod server;
mod table;

pub use foreign_key::{ForeignKey, fetch_foreign_keys, parents_first};
pub use privilege::{
    fetch_closed_schemas, fetch_denied, fetch_hidden_by_row_security, fetch_unreadable,
};
pub use server::{Server, fetch_log_end, fetch_server, is_under_way};
pub use table::{
    IdentityKind, Table, TableColumn, TableKind, Triggers, TypeForm, TypeKind, UniqueKey,
    fetch_builtin_types, fetch_sizes, fetch_tables,
};

/// A catalogue query failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the catalogue ({what})")]
pub struct CatalogError {
    /// What was being read.
    pub what: &'static str,
    /// The server's or the connection's error.
    #[source]
    pub source: ServerError,
}

impl CatalogError {
    pub(crate) fn reading(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self {
            what,
            source: error.into(),
        }
    }

    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.source.disposition()
    }
}
