//! Why a throw-away cluster cannot be had.

use std::path::PathBuf;

/// What went wrong with a throw-away cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No server programs of that version.
    #[error(
        "PostgreSQL {} is not installed here; run tests/install-postgres.sh, or name folders \
         that hold `postgres` and `initdb` in PGLOCKSTEP_PG_BIN (looked in {looked})",
        .wanted.map_or_else(|| "(any version)".to_owned(), |major| major.to_string())
    )]
    NotInstalled {
        /// The major version asked for.
        wanted: Option<u32>,
        /// Where.
        looked: String,
    },
    /// The server refuses to run as root, and there is no one else.
    #[error("a PostgreSQL server does not run as root, and there is no user `postgres` to run it")]
    NoServerUser,
    /// The temporary folder, a file in it, or a free port cannot be had.
    #[error("cannot prepare the cluster's folder")]
    Folder(#[source] std::io::Error),
    /// A program cannot be started.
    #[error("cannot start {program}; the user that runs the server must be able to read it")]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `initdb` failed.
    #[error("{program} failed: {said}")]
    Initdb {
        /// Its path.
        program: PathBuf,
        /// What it printed.
        said: String,
    },
    /// The server ended instead of starting.
    #[error("the server ended while it started; its log ends with:\n{log}")]
    Exited {
        /// The log's last lines.
        log: String,
    },
    /// The server runs but answers no query.
    #[error("the server answers no query after {seconds} s; its log ends with:\n{log}")]
    NotReady {
        /// How long it was asked.
        seconds: u64,
        /// The log's last lines.
        log: String,
    },
    /// The server did not end when told to.
    #[error("the server was still running {seconds} s after it was told to stop, and was killed")]
    NotStopped {
        /// How long it was given.
        seconds: u64,
    },
    /// A statement failed.
    #[error("a statement failed on database {database:?} of a throw-away cluster: {}", said(.source))]
    Sql {
        /// The database.
        database: String,
        /// Why.
        source: tokio_postgres::Error,
    },
}

/// The server's own words; tokio-postgres' `Display` is only "db error".
fn said(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), ToString::to_string)
}
