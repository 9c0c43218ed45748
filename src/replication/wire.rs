//! Frames of PostgreSQL's protocol on a stream, bounded and cancellation-safe.
//!
//! ```text
//!  socket ─▶ one large BytesMut ─▶ tag, i32 length ─▶ 'd' CopyData: a handle into the buffer, no copy
//!                                                     'W' CopyBoth: unknown to postgres-protocol
//!                                                     others: postgres_protocol's Message
//! ```
//!
//! A length is checked before a byte is reserved for it, and memory at most doubles
//! with what has really arrived: a few bytes cannot make us allocate a gigabyte.
//! Whatever was read or not yet written stays in the two buffers, so dropping a future
//! at any await loses nothing.

use crate::conn::{ConnFailure, ServerStream};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Room that is kept for reading: some hundred messages a system call.
const READ_BYTES: usize = 256 * 1024;
/// Below this much room the buffer is replaced.
const READ_BYTES_MIN: usize = 16 * 1024;

/// No login comes near this, and no answer before the stream.
pub(super) const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// PostgreSQL's own bound on a message (`PQ_LARGE_MESSAGE_LIMIT`, `MaxAllocSize`), and a little.
pub(super) const MESSAGE_BYTES_MAX: usize = 1024 * 1024 * 1024;

pub(super) const TOO_MUCH: &str = "an answer that does not end";

/// What a stream of frames can suffer.
#[derive(Debug)]
pub(super) enum WireError {
    /// Broken or closed.
    Io(io::Error),
    /// Longer than allowed.
    TooLarge { tag: u8, bytes: usize, limit: usize },
    /// An answer without an end.
    TooMuch,
    /// Not a message.
    Malformed(String),
}

impl From<WireError> for ConnFailure {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(error) => Self::from_io(error),
            WireError::TooLarge { tag, bytes, .. } => Self::Protocol(format!(
                "a message 0x{tag:02X} of {bytes} bytes during login"
            )),
            WireError::TooMuch => Self::Protocol(TOO_MUCH.to_owned()),
            WireError::Malformed(why) => Self::Protocol(why),
        }
    }
}

/// One message from the server.
pub(super) enum Incoming {
    /// The payload of a CopyData message.
    CopyData(Bytes),
    /// Both sides may now send CopyData.
    CopyBoth,
    /// Any other message.
    Message(Message),
}

/// A stream with its two buffers. Generic for tests alone.
pub(super) struct Wire<S = ServerStream> {
    stream: S,
    read: BytesMut,
    /// What is to be sent; filled by callers, emptied by [`send`](Self::send).
    pub(super) write: BytesMut,
    must_flush: bool,
    /// All that has come, whole messages or not.
    bytes_read: u64,
    message_bytes_max: usize,
    /// What may come before the next question; none while it streams.
    answer_bytes_left: Option<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            write: BytesMut::new(),
            must_flush: false,
            bytes_read: 0,
            message_bytes_max: ANSWER_BYTES_MAX,
            answer_bytes_left: Some(ANSWER_BYTES_MAX),
        }
    }

    /// Something new was asked.
    pub(super) fn begin_answer(&mut self) {
        self.message_bytes_max = ANSWER_BYTES_MAX;
        self.answer_bytes_left = Some(ANSWER_BYTES_MAX);
    }

    /// From here on it goes on for ever, in messages as large as the source's rows.
    pub(super) fn begin_stream(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
        self.answer_bytes_left = None;
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// The next message that is already here, without I/O.
    #[inline]
    pub(super) fn try_next(&mut self) -> Result<Option<Incoming>, WireError> {
        let Some((tag, length)) = self.peek()? else {
            return Ok(None);
        };
        if self.read.len() < length {
            return Ok(None);
        }
        if let Some(left) = &mut self.answer_bytes_left {
            *left = left.checked_sub(length).ok_or(WireError::TooMuch)?;
        }
        match tag {
            b'd' => {
                let mut frame = self.read.split_to(length).freeze();
                frame.advance(5);
                Ok(Some(Incoming::CopyData(frame)))
            }
            b'W' => {
                self.read.advance(length);
                Ok(Some(Incoming::CopyBoth))
            }
            _ => match Message::parse(&mut self.read) {
                Ok(message) => Ok(message.map(Incoming::Message)),
                Err(error) => Err(WireError::Malformed(error.to_string())),
            },
        }
    }

    /// The next message. Cancellation-safe.
    pub(super) async fn next(&mut self) -> Result<Incoming, WireError> {
        loop {
            if let Some(incoming) = self.try_next()? {
                return Ok(incoming);
            }
            self.fill().await?;
        }
    }

    /// Writes all of [`write`](Self::write). Cancellation-safe: the rest goes with the next call.
    pub(super) async fn send(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_send(cx))
            .await
            .map_err(WireError::Io)
    }

    /// Tag and whole length of the message at the front.
    #[inline]
    fn peek(&self) -> Result<Option<(u8, usize)>, WireError> {
        let header = Header::parse(&self.read).map_err(|e| WireError::Malformed(e.to_string()))?;
        let Some(header) = header else {
            return Ok(None);
        };
        let (tag, bytes) = (
            header.tag(),
            usize::try_from(header.len()).unwrap_or(usize::MAX),
        );
        let limit = self.message_bytes_max;
        if bytes > limit {
            return Err(WireError::TooLarge { tag, bytes, limit });
        }
        Ok(Some((tag, bytes + 1)))
    }

    async fn fill(&mut self) -> Result<(), WireError> {
        let wanted = self.peek()?.map_or(5, |(_, length)| length);
        self.make_room(wanted.saturating_sub(self.read.len()));
        let count = poll_fn(|cx| {
            // A feedback message that did not go out whole must not wait for the next one.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            pin!(self.stream.read_buf(&mut self.read)).poll(cx)
        });
        match count.await {
            Ok(0) => Err(WireError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.bytes_read += count as u64;
                Ok(())
            }
            Err(error) => Err(WireError::Io(error)),
        }
    }

    fn make_room(&mut self, missing: usize) {
        let length = self.read.len();
        if self.read.capacity() - length < READ_BYTES_MIN {
            // A whole of READ_BYTES, so that a buffer nobody holds on to is used again.
            let whole = (length + missing).min(2 * length).max(READ_BYTES);
            self.read.reserve((whole - length).max(1));
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.write))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write.advance(count);
            self.must_flush = true;
        }
        if self.must_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.must_flush = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn copy_data(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len() + 4).unwrap().to_be_bytes();
        [b"d", &length[..], payload].concat()
    }

    proptest! {
        /// However the bytes are cut and whenever the reader is cancelled, every frame arrives once.
        #[test]
        fn frames_survive_cuts_and_cancellation(
            sizes in proptest::collection::vec(0_usize..60_000, 1..20),
            cuts in proptest::collection::vec(1_usize..50_000, 1..20),
        ) {
            let payloads: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(i, size)| vec![i as u8; *size]).collect();
            let bytes = payloads.iter().flat_map(|payload| copy_data(payload)).collect::<Vec<u8>>();
            let received = block_on(async {
                let (mut server, client) = tokio::io::duplex(8192);
                let writer = tokio::spawn(async move {
                    let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
                    while !rest.is_empty() {
                        let (part, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                        server.write_all(part).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = after;
                    }
                });
                let mut wire = Wire::new(client);
                let mut received = Vec::new();
                while received.len() < payloads.len() {
                    tokio::select! {
                        biased;
                        () = tokio::task::yield_now() => {} // the reader is dropped half-way
                        frame = wire.next() => match frame.map_err(|e| format!("{e:?}")).unwrap() {
                            Incoming::CopyData(payload) => received.push(payload.to_vec()),
                            _ => unreachable!(),
                        },
                    }
                }
                writer.await.unwrap();
                received
            });
            prop_assert!(received == payloads);
        }

        /// A hostile server is an error or asks for more, never a panic.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = Wire::new(tokio::io::empty());
            wire.read.extend_from_slice(&bytes);
            while let Ok(Some(_)) = wire.try_next() {}
        }
    }

    #[test]
    fn lengths_are_bounded_before_memory_is() {
        let mut wire = Wire::new(tokio::io::empty());
        wire.read.extend_from_slice(b"R\x7f\xff\xff\xff");
        assert!(matches!(
            wire.try_next(),
            Err(WireError::TooLarge { tag: b'R', .. })
        ));
        let mut wire = Wire::new(tokio::io::empty());
        wire.begin_stream();
        wire.read.extend_from_slice(b"d\x3f\xff\xff\xff");
        assert!(matches!(block_on(wire.next()), Err(WireError::Io(_))));
        assert!(
            wire.read.capacity() <= 2 * READ_BYTES,
            "{}",
            wire.read.capacity()
        );
        wire.read.clear();
        wire.read.extend_from_slice(b"d\0\0\0\x03");
        assert!(matches!(wire.try_next(), Err(WireError::Malformed(_))));
    }
}
