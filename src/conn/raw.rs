//! A session whose bytes are ours to see: what one server copies out goes to another as it came.
//!
//! ```text
//!  source:   COPY … TO STDOUT ──▶ H  d d d d d  c  C Z
//!                                    └──┬────┘ runs of what has come, whole messages or not
//!  replica:  COPY … FROM STDIN ─▶ G     ▼
//!                                    d d d d d  c ─▶ C Z
//! ```
//!
//! CopyData looks the same in both directions (manual, 55.7 "Message Formats"), so only the heads
//! are read, to see where something else begins. Questions can be put ahead of the answers.
//! After an error a session is of no more use: whoever drops it ends its transaction.

use super::auth::{Backend, log_in};
use super::login::{Login, SERVER_KIND_SQL, ServerKind, connect};
use super::pulse::{Pulse, Silence};
use super::socket::ServerStream;
use super::sql::{Endpoint, Session, pins_sql};
use super::wire::{Incoming, Passed, Wire, WireError};
use super::{ConnError, ConnFailure, ConnectionUrl, ErrorResponse};
use crate::pg::{Named, Refusal, ServerError, Side};
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use secrecy::SecretString;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// One row of an answer, as text.
type Row = Vec<Option<String>>;

/// How an answer ended early.
#[derive(Debug)]
enum Broken {
    Refused(Box<(ErrorResponse, Refusal)>),
    Failed(ConnFailure),
    Lost(String),
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Broken> for ConnFailure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(refused) => Self::Server(refused.0),
            Broken::Failed(failure) => failure,
            Broken::Lost(why) => Self::Network(io::Error::new(io::ErrorKind::TimedOut, why)),
        }
    }
}

impl From<Broken> for ServerError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused(refused) => Self::Refused(Box::new(refused.1)),
            Broken::Failed(failure) => Self::Lost(failure.to_string()),
            Broken::Lost(why) => Self::Lost(why),
        }
    }
}

/// At which end a copy broke.
#[derive(Debug)]
pub(crate) enum ForwardError {
    /// Where the rows come from.
    From(ServerError),
    /// Where they go to.
    Into(ServerError),
}

/// A pinned, watched session, of which COPY's bytes can be had.
pub(crate) struct RawSession {
    wire: Wire,
    silence: Arc<Silence>,
    /// None until pinned: the login has a limit of its own.
    pulse: Option<Arc<Pulse>>,
    side: Side,
}

impl RawSession {
    pub(super) async fn connect(endpoint: &Endpoint, session: Session) -> Result<Self, ConnError> {
        let mut raw = connect(endpoint, &RawLogin { endpoint }).await?;
        let limit = endpoint.url.connect_timeout;
        let pinned = timeout(limit, raw.pin(endpoint, session)).await;
        match pinned.unwrap_or(Err(ConnFailure::Timeout(limit))) {
            Ok(()) => Ok(raw),
            Err(failure) => Err(endpoint.failed(failure)),
        }
    }

    async fn pin(&mut self, endpoint: &Endpoint, session: Session) -> Result<(), ConnFailure> {
        self.put(&pins_sql(session, endpoint.lock_timeout_ms))?;
        let rows = self.hear_rows().await?;
        let pid = rows.first().and_then(|row| row.get(1)?.as_deref());
        let pid = pid.and_then(|pid| pid.parse().ok());
        let pid = pid.ok_or_else(no_row)?;
        self.wire.stream().admission().admit();
        let pulse = Pulse::new(endpoint.clone(), pid, Arc::clone(&self.silence));
        self.pulse = Some(Arc::new(pulse));
        Ok(())
    }

    /// Asks, without waiting for the answer: it is had by [`answer`](Self::answer), one for each
    /// question and in their order.
    pub(crate) fn ask(&mut self, sql: &str) -> Result<(), ServerError> {
        Ok(self.put(sql)?)
    }

    /// The rows that the next question's answer holds.
    pub(crate) async fn answer(&mut self) -> Result<Vec<Row>, ServerError> {
        Ok(self.hear_rows().await?)
    }

    /// Asks and waits.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<Vec<Row>, ServerError> {
        self.ask(sql)?;
        self.answer().await
    }

    /// Waits until the server, asked for a `COPY … TO STDOUT`, begins.
    pub(crate) async fn copy_out_begun(&mut self) -> Result<(), ServerError> {
        match self.hear().await? {
            Message::CopyOutResponse(_) => {}
            _ => return Err(out_of_place().into()),
        }
        self.wire.begin_stream();
        Ok(())
    }

    /// Waits until the server, asked for a `COPY … FROM STDIN`, listens.
    pub(crate) async fn copy_in_begun(&mut self) -> Result<(), ServerError> {
        match self.hear().await? {
            Message::CopyInResponse(_) => Ok(()),
            _ => Err(out_of_place().into()),
        }
    }

    /// Passes on all that the server copies out, up to its end; `told` hears of the messages that
    /// were. What remains to be had is the answer.
    pub(crate) async fn forward(
        &mut self,
        into: &mut Self,
        mut told: impl FnMut(u64),
    ) -> Result<(), ForwardError> {
        let (from_pulse, into_pulse) = (self.pulse.clone(), into.pulse.clone());
        let lost = |why| ServerError::from(Broken::Lost(why));
        tokio::select! {
            biased;
            done = self.pump(into, &mut told) => done,
            why = lost_by(from_pulse.as_deref()) => Err(ForwardError::From(lost(why))),
            why = lost_by(into_pulse.as_deref()) => Err(ForwardError::Into(lost(why))),
        }
    }

    async fn pump(
        &mut self,
        into: &mut Self,
        told: &mut impl FnMut(u64),
    ) -> Result<(), ForwardError> {
        let from = |broken: Broken| ForwardError::From(broken.into());
        let to = |broken: Broken| ForwardError::Into(broken.into());
        loop {
            if let Some(mut run) = self.wire.try_run().map_err(|e| from(e.into()))? {
                while into.pass(&mut run.bytes).await.map_err(to)? == Passed::Heard {}
                told(run.begun);
                continue;
            }
            match self.wire.try_next().map_err(|e| from(e.into()))? {
                Some(Incoming::Message(Message::CopyDone)) => {
                    self.wire.begin_answer();
                    return Ok(());
                }
                Some(other) => match self.note(other).map_err(from)? {
                    None => {}
                    Some(_) => return Err(from(out_of_place())),
                },
                None => self.wire.hear().await.map_err(|e| from(e.into()))?,
            }
        }
    }

    /// Hands over bytes of a COPY; an end of it that comes from the server is an error.
    async fn pass(&mut self, bytes: &mut bytes::Bytes) -> Result<Passed, Broken> {
        let passed = self.wire.pass(bytes).await?;
        if passed == Passed::Heard {
            while let Some(incoming) = self.wire.try_next()? {
                if self.note(incoming)?.is_some() {
                    return Err(out_of_place());
                }
            }
        }
        Ok(passed)
    }

    /// Ends a COPY that goes in; yields its rows.
    pub(crate) async fn end_copy_in(&mut self) -> Result<u64, ServerError> {
        frontend::copy_done(&mut self.wire.write);
        self.wire.begin_answer();
        let mut rows = None;
        loop {
            match self.hear().await? {
                Message::CommandComplete(body) => {
                    let tag = body.tag().unwrap_or_default();
                    rows = tag.strip_prefix("COPY ").and_then(|rows| rows.parse().ok());
                }
                Message::ReadyForQuery(_) => break,
                _ => return Err(out_of_place().into()),
            }
        }
        rows.ok_or_else(|| out_of_place().into())
    }

    /// Takes leave of the server, which would otherwise find out by itself.
    pub(crate) async fn close(mut self) {
        frontend::terminate(&mut self.wire.write);
        // A server that is gone need not be told.
        let _ = timeout(Duration::from_secs(1), self.wire.send()).await;
    }

    fn put(&mut self, sql: &str) -> Result<(), Broken> {
        self.wire.begin_answer();
        frontend::query(sql, &mut self.wire.write)
            .map_err(|error| Broken::Failed(ConnFailure::Protocol(error.to_string())))
    }

    async fn hear_rows(&mut self) -> Result<Vec<Row>, Broken> {
        let mut rows = Vec::new();
        loop {
            match self.hear().await? {
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse => {}
                Message::ReadyForQuery(_) => return Ok(rows),
                _ => return Err(out_of_place()),
            }
        }
    }

    /// The next message of an answer; a refusal is an error. An answer may take long, a dead
    /// connection is noticed.
    async fn hear(&mut self) -> Result<Message, Broken> {
        let pulse = self.pulse.clone();
        loop {
            let incoming = tokio::select! {
                biased;
                incoming = self.wire.next() => incoming?,
                why = lost_by(pulse.as_deref()) => return Err(Broken::Lost(why)),
            };
            if let Some(message) = self.note(incoming)? {
                return Ok(message);
            }
        }
    }

    /// Takes note of what may come between any others.
    fn note(&mut self, incoming: Incoming) -> Result<Option<Message>, Broken> {
        match incoming {
            Incoming::Message(Message::ErrorResponse(body)) => Err(refused(&body)),
            Incoming::Message(Message::NoticeResponse(body)) => {
                // The text may hold values of rows (RAISE NOTICE in a trigger): only the code is logged.
                let notice = ErrorResponse::from_wire(body.fields());
                tracing::debug!(side = %self.side, sqlstate = notice.code, "notice from the server");
                // Triggers may say as much as they like, once the session is open.
                if self.pulse.is_some() {
                    self.wire.answer_goes_on();
                }
                Ok(None)
            }
            Incoming::Message(Message::ParameterStatus(_) | Message::NotificationResponse(_)) => {
                Ok(None)
            }
            Incoming::Message(message) => Ok(Some(message)),
            Incoming::CopyData(_) | Incoming::CopyBoth => Err(out_of_place()),
        }
    }
}

async fn lost_by(pulse: Option<&Pulse>) -> String {
    match pulse {
        Some(pulse) => pulse.lost().await,
        None => std::future::pending().await,
    }
}

fn out_of_place() -> Broken {
    Broken::Failed(ConnFailure::Protocol("a message out of place".to_owned()))
}

fn no_row() -> ConnFailure {
    ConnFailure::Protocol("no row where one was asked for".to_owned())
}

fn refused(body: &ErrorResponseBody) -> Broken {
    let response = ErrorResponse::from_wire(body.fields());
    let (mut constraint, mut table, mut column) = (None, None, None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = || Some(String::from_utf8_lossy(field.value_bytes()).into_owned());
        match field.type_() {
            b'n' => constraint = value(),
            b't' => table = value(),
            b'c' => column = value(),
            _ => {}
        }
    }
    let named = Named {
        constraint: constraint.as_deref(),
        table: table.as_deref(),
        column: column.as_deref(),
    };
    let refusal = Refusal::new(&response.code, &response.message, named);
    Broken::Refused(Box::new((response, refusal)))
}

fn row(body: &DataRowBody) -> Result<Row, Broken> {
    let value = |range: Option<std::ops::Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
    };
    let row = body.ranges().map(value).collect();
    row.map_err(|error: io::Error| Broken::Failed(ConnFailure::Protocol(error.to_string())))
}

struct RawLogin<'a> {
    endpoint: &'a Endpoint,
}

impl Login for RawLogin<'_> {
    type Session = RawSession;

    async fn log_in(
        &self,
        stream: ServerStream,
        url: &ConnectionUrl,
        password: Option<&SecretString>,
    ) -> Result<RawSession, ConnFailure> {
        self.endpoint.tell_certificates(&stream);
        let silence = stream.silence();
        let name = self.endpoint.effective_application_name();
        let mut wire = Wire::new(stream);
        log_in(&mut wire, url, password, name, Backend::Ordinary).await?;
        Ok(RawSession {
            wire,
            silence,
            pulse: None,
            side: self.endpoint.side,
        })
    }

    async fn server_kind(&self, session: &mut RawSession) -> Result<ServerKind, ConnFailure> {
        session.put(SERVER_KIND_SQL)?;
        let rows = session.hear_rows().await?;
        match rows.first().map(Vec::as_slice) {
            Some([recovery, read_only]) => {
                ServerKind::from_row(recovery.as_deref(), read_only.as_deref())
            }
            _ => None,
        }
        .ok_or_else(no_row)
    }
}
