//! Reads a database's catalogue into nouns. Every query is set-based, read-only and
//! names `pg_catalog` in full, so that neither ten thousand tables nor a hostile
//! `search_path` matter.

mod server;
mod table;

pub use server::{Server, fetch_server};
pub use table::{
    ForeignKey, IdentityKind, Table, TableColumn, TableKind, UniqueKey, fetch_foreign_keys,
    fetch_sizes, fetch_tables,
};

/// A catalogue query failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the catalogue ({what})")]
pub struct CatalogError {
    /// What was being read.
    pub what: &'static str,
    /// The server's or the connection's error.
    #[source]
    pub source: tokio_postgres::Error,
}

impl CatalogError {
    fn reading(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self { what, source }
    }
}
