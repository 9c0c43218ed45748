//! `ReplicationStream`: changes in, feedback out.
//!
//! ```text
//!  START_REPLICATION ─▶ CopyBoth ─▶ w, k, k, w …  (receive, try_receive)
//!                                   r …           (send_status)
//!                          stop: CopyDone ─▶ what was under way ─▶ CopyDone, ReadyForQuery
//! ```
//!
//! Fast enough for hundreds of thousands of messages a second: a task calls
//! [`receive`](ReplicationStream::receive) once and then
//! [`try_receive`](ReplicationStream::try_receive) until the buffer is empty, and
//! no call allocates for a message of its own.

use super::connection::ReplicationConnection;
use super::error::{ReplicationError, Request};
use super::protocol::{ReplicationMessage, StandbyStatusUpdate, pg_time_us};
use super::slot::SlotName;
use crate::conn::{ErrorResponse, Incoming, WireError};
use crate::pg::{Lsn, quote_ident};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// How long the source may take to end a stream; it finishes the transaction it is sending.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether transactions are sent before they commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// Whole, at commit.
    #[default]
    Off,
    /// Large ones in pieces; protocol 2.
    On,
    /// In pieces, with what parallel application needs; protocol 4, PostgreSQL 16 and later.
    Parallel,
}

/// Which changes the source is to send, by where they first came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OriginFilter {
    /// All.
    #[default]
    Any,
    /// Only those made on the source itself; PostgreSQL 16 and later.
    None,
}

/// pgoutput's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// 1 to 4; see [`protocol_version_max`].
    pub protocol_version: u32,
    /// Names of publications.
    pub publications: Vec<String>,
    /// Values in binary form.
    pub binary: bool,
    /// `pg_logical_emit_message`'s messages too.
    pub messages: bool,
    /// Transactions under way.
    pub streaming: Streaming,
    /// Prepared transactions; protocol 3, PostgreSQL 15 and later.
    pub two_phase: bool,
    /// Changes by origin.
    pub origin: OriginFilter,
}

impl StreamOptions {
    /// Text values of committed transactions, in the newest protocol the source has.
    #[must_use]
    pub fn new(server_version_num: u32, publications: Vec<String>) -> Self {
        Self {
            protocol_version: protocol_version_max(server_version_num),
            publications,
            binary: false,
            messages: false,
            streaming: Streaming::Off,
            two_phase: false,
            origin: OriginFilter::Any,
        }
    }

    /// The option list, or the option that the server is too old for.
    fn sql(&self, server_version_num: u32) -> Result<String, ReplicationError> {
        let needs = |what, since: u32| match server_version_num {
            version if version < since * 10_000 => Err(ReplicationError::Unsupported {
                what,
                since,
                server_version_num,
            }),
            _ => Ok(()),
        };
        let names: Vec<_> = self
            .publications
            .iter()
            .map(|name| quote_ident(name))
            .collect();
        let mut options = vec![
            ("proto_version", self.protocol_version.to_string()),
            ("publication_names", names.join(",")),
        ];
        let mut set = |name, value: &str| options.push((name, value.to_owned()));
        if self.binary {
            set("binary", "true");
        }
        if self.messages {
            set("messages", "true");
        }
        match self.streaming {
            Streaming::Off => {}
            Streaming::On => set("streaming", "on"),
            Streaming::Parallel => {
                needs("streaming=parallel", 16)?;
                set("streaming", "parallel");
            }
        }
        if self.two_phase {
            needs("two_phase", 15)?;
            set("two_phase", "on");
        }
        if self.origin == OriginFilter::None {
            needs("origin=none", 16)?;
            set("origin", "none");
        }
        // The replication grammar knows doubled quotes and no backslashes.
        let quoted: Vec<_> = options
            .iter()
            .map(|(name, value)| format!("{name} '{}'", value.replace('\'', "''")))
            .collect();
        Ok(quoted.join(", "))
    }
}

/// The newest pgoutput protocol of a server: 2 with 14, 3 with 15, 4 from 16 on.
#[must_use]
pub const fn protocol_version_max(server_version_num: u32) -> u32 {
    match server_version_num {
        160_000.. => 4,
        150_000.. => 3,
        140_000.. => 2,
        _ => 1,
    }
}

/// A running stream.
#[derive(Debug)]
pub struct ReplicationStream {
    connection: ReplicationConnection,
}

impl ReplicationConnection {
    /// Starts to stream from `start`, or from the slot's `confirmed_flush_lsn` if that is later.
    ///
    /// # Errors
    /// [`ReplicationError`]; a missing publication shows only with the first change.
    pub async fn start(
        mut self,
        slot: &SlotName,
        start: Lsn,
        options: &StreamOptions,
    ) -> Result<ReplicationStream, ReplicationError> {
        let options = options.sql(self.server_version_num())?;
        let sql = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {start} ({options})");
        let unsendable = |error: std::io::Error| ReplicationError::Protocol(error.to_string());
        frontend::query(&sql, &mut self.wire.write).map_err(unsendable)?;
        self.wire.send().await?;
        self.wire.begin_answer();
        loop {
            match self.next().await? {
                Incoming::CopyBoth => {
                    self.wire.begin_stream();
                    return Ok(ReplicationStream { connection: self });
                }
                Incoming::Message(Message::ErrorResponse(body)) => {
                    let error = ErrorResponse::from_wire(body.fields());
                    let request = Request::StartReplication;
                    return Err(ReplicationError::server(request, error));
                }
                Incoming::Message(message) => self.note(message)?,
                Incoming::CopyData(_) => {
                    return Err(ReplicationError::Protocol(
                        "changes before CopyBoth".to_owned(),
                    ));
                }
            }
        }
    }
}

impl ReplicationStream {
    /// The next message. Cancellation-safe: nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`ReplicationError`]; the stream is of no use afterwards.
    pub async fn receive(&mut self) -> Result<ReplicationMessage, ReplicationError> {
        loop {
            let incoming = self.connection.wire.next().await?;
            if let Some(message) = self.interpret(incoming)? {
                return Ok(message);
            }
        }
    }

    /// The next message that has already arrived whole, without I/O.
    ///
    /// # Errors
    /// [`ReplicationError`]; the stream is of no use afterwards.
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<ReplicationMessage>, ReplicationError> {
        while let Some(incoming) = self.connection.wire.try_next()? {
            if let Some(message) = self.interpret(incoming)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// For who is about to nap, where others wait: until the next [`receive`](Self::receive) that
    /// finds nothing, what the source sends wakes no reactor, and costs it less.
    ///
    /// # Errors
    /// [`ReplicationError::Lost`].
    pub fn unwatch(&mut self) -> Result<(), ReplicationError> {
        let outcome = self.connection.wire.stream_mut().unwatch();
        Ok(outcome.map_err(WireError::Io)?)
    }

    /// Bytes that have come, those of a message that is not whole yet among them.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.connection.wire.bytes_read()
    }

    /// Tells the source how far we are. Cancellation-safe: once called, the whole message goes
    /// out, if need be with the next `receive` or `send_status`.
    ///
    /// # Errors
    /// [`ReplicationError::Lost`].
    pub async fn send_status(
        &mut self,
        update: StandbyStatusUpdate,
    ) -> Result<(), ReplicationError> {
        update.encode(
            pg_time_us(SystemTime::now()),
            &mut self.connection.wire.write,
        );
        Ok(self.connection.wire.send().await?)
    }

    /// Ends the stream and gives the connection back. Changes still under way are dropped.
    ///
    /// # Errors
    /// [`ReplicationError`], also when the source takes longer than a few seconds.
    pub async fn stop(mut self) -> Result<ReplicationConnection, ReplicationError> {
        let request = Request::Stream;
        match timeout(STOP_TIMEOUT, self.drain()).await {
            Ok(Ok(())) => Ok(self.connection),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ReplicationError::Timeout {
                request,
                after: STOP_TIMEOUT,
            }),
        }
    }

    /// The source's version, for decoding.
    #[must_use]
    pub fn server_version_num(&self) -> u32 {
        self.connection.server_version_num()
    }

    /// After how long a silent client is cut off; `None` for never.
    #[must_use]
    pub fn wal_sender_timeout(&self) -> Option<Duration> {
        self.connection.wal_sender_timeout()
    }

    async fn drain(&mut self) -> Result<(), ReplicationError> {
        frontend::copy_done(&mut self.connection.wire.write);
        self.connection.wire.send().await?;
        loop {
            match self.connection.wire.next().await? {
                Incoming::Message(Message::ReadyForQuery(_)) => return Ok(()),
                Incoming::Message(Message::ErrorResponse(body)) => return Err(refused(&body)),
                Incoming::CopyData(_) | Incoming::Message(Message::CopyDone) => {}
                Incoming::Message(message) => self.connection.note(message)?,
                Incoming::CopyBoth => {
                    return Err(ReplicationError::Protocol("CopyBoth twice".to_owned()));
                }
            }
        }
    }

    #[inline]
    fn interpret(
        &mut self,
        incoming: Incoming,
    ) -> Result<Option<ReplicationMessage>, ReplicationError> {
        match incoming {
            Incoming::CopyData(payload) => match ReplicationMessage::decode(payload) {
                Ok(message) => Ok(Some(message)),
                Err(error) => Err(ReplicationError::Protocol(error.to_string())),
            },
            Incoming::Message(Message::ErrorResponse(body)) => Err(refused(&body)),
            Incoming::Message(Message::CopyDone | Message::CommandComplete(_)) => {
                Err(ReplicationError::Ended)
            }
            Incoming::Message(Message::NoticeResponse(body)) => {
                let notice = ErrorResponse::from_wire(body.fields()).without_values();
                // From 18 on a publication that was not there when a change was written is a
                // warning, and the change is left out.
                if notice.severity == "WARNING" && notice.code == "55000" {
                    return Err(ReplicationError::PublicationSkipped(notice.message));
                }
                Ok(None)
            }
            Incoming::Message(message) => self.connection.note(message).map(|()| None),
            Incoming::CopyBoth => Err(ReplicationError::Protocol("CopyBoth twice".to_owned())),
        }
    }
}

fn refused(body: &postgres_protocol::message::backend::ErrorResponseBody) -> ReplicationError {
    let error = ErrorResponse::from_wire(body.fields()).without_values();
    ReplicationError::server(Request::Stream, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_version() {
        let names = vec!["a'b".to_owned(), "c\"d".to_owned()];
        let mut options = StreamOptions::new(150_018, names);
        assert_eq!(
            options.sql(150_018).unwrap(),
            "proto_version '3', publication_names '\"a''b\",\"c\"\"d\"'"
        );
        options.binary = true;
        options.messages = true;
        options.streaming = Streaming::Parallel;
        options.two_phase = true;
        options.origin = OriginFilter::None;
        options.publications.clear();
        assert_eq!(
            options.sql(160_000).unwrap(),
            "proto_version '3', publication_names '', binary 'true', messages 'true', \
             streaming 'parallel', two_phase 'on', origin 'none'"
        );
        assert!(matches!(
            options.sql(150_018),
            Err(ReplicationError::Unsupported { since: 16, .. })
        ));
        options.streaming = Streaming::On;
        assert!(matches!(
            options.sql(140_023),
            Err(ReplicationError::Unsupported { since: 15, .. })
        ));
        assert_eq!(protocol_version_max(140_001), 2);
    }
}
