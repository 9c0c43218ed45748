//! What a server or a connection answered instead of doing the work.
//!
//! A server's message may quote a row ("invalid input syntax for type integer: …"), and
//! its DETAIL nearly always does. So DETAIL, CONTEXT and the message of data and
//! constraint errors stay here; what is told is the code, its name, and which
//! constraint, column or table.

use super::{Disposition, sqlstate_disposition};
use crate::faults::Fault;
use std::fmt;
use tokio_postgres::error::DbError;

/// An error of a statement or of its connection, safe to show and to log.
#[derive(Debug)]
pub enum ServerError {
    /// The server refused.
    Refused(Box<Refusal>),
    /// No answer: the connection is gone or was never there.
    Lost(String),
}

/// A server's refusal, without any value of a row.
#[derive(Debug)]
pub struct Refusal {
    /// Five letters.
    pub sqlstate: String,
    /// What happened, as far as it may be shown.
    pub message: String,
    /// The constraint, where the server named one.
    pub constraint: Option<String>,
}

impl ServerError {
    /// The SQLSTATE, where a server answered at all.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.sqlstate),
            Self::Lost(_) => None,
        }
    }

    /// Whether the session is gone: cut off, ended by an administrator or with its server.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        self.sqlstate()
            .is_none_or(|code| code.starts_with("08") || code.starts_with("57P0"))
    }

    /// Whether to try again; a lost connection is always worth another try.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.sqlstate()
            .map_or(Disposition::Transient, sqlstate_disposition)
    }
}

impl From<tokio_postgres::Error> for ServerError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Refused(Box::new(Refusal::from(refusal))),
            None => Self::Lost(chain(&error)),
        }
    }
}

impl From<Fault> for ServerError {
    fn from(fault: Fault) -> Self {
        Self::Lost(fault.to_string())
    }
}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Self {
        let of = Named {
            constraint: error.constraint(),
            table: error.table(),
            column: error.column(),
        };
        Self::new(error.code().code(), error.message(), of)
    }
}

/// What a refusal is about, where the server says it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Named<'a> {
    pub(crate) constraint: Option<&'a str>,
    pub(crate) table: Option<&'a str>,
    pub(crate) column: Option<&'a str>,
}

impl Refusal {
    /// What may be shown of an answer.
    pub(crate) fn new(code: &str, message: &str, of: Named<'_>) -> Self {
        let named = |what: &str, name: Option<&str>| {
            name.map_or(String::new(), |name| format!(", {what} {name}"))
        };
        let message = if may_quote_values(code) {
            format!(
                "{}{}{}{}",
                condition(code),
                named("constraint", of.constraint),
                named("table", of.table),
                named("column", of.column),
            )
        } else {
            message.to_owned()
        };
        Self {
            sqlstate: code.to_owned(),
            message,
            constraint: of.constraint.map(str::to_owned),
        }
    }
}

/// Whether the message may hold a row's value: any class but those in which the server itself
/// speaks of names, privileges and its own state. A trigger may raise what it likes.
pub(crate) fn may_quote_values(code: &str) -> bool {
    const SPEAKS_OF_ITSELF: [&str; 14] = [
        "08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58",
    ];
    let class = code.get(..2).unwrap_or_default();
    !SPEAKS_OF_ITSELF.contains(&class)
}

/// The condition's name for the codes an operator meets most; the code itself is always shown.
fn condition(code: &str) -> &'static str {
    match code {
        "22001" => "a value is too long for its column",
        "22003" => "a number is out of range",
        "22007" | "22008" => "a date or time is out of range or malformed",
        "22021" => "a value's bytes are not valid in the database's encoding",
        "22P02" => "a value does not have the form its type needs",
        "22P05" => "a character does not exist in the database's encoding",
        "23502" => "a NULL in a column that refuses it",
        "23503" => "a foreign key is violated",
        "23505" => "a unique key is violated",
        "23514" => "a check constraint is violated",
        "23P01" => "an exclusion constraint is violated",
        _ => "the value or row was refused",
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => f.write_str(what),
            Self::Refused(refusal) => {
                write!(f, "{} (SQLSTATE {})", refusal.message, refusal.sqlstate)
            }
        }
    }
}

impl std::error::Error for ServerError {}
