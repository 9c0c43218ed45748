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

use super::{ConnFailure, ServerStream};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Room that is kept for reading: some hundred messages a system call.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// Below this much room the buffer is replaced.
const READ_BYTES_MIN: usize = 16 * 1024;

/// No login comes near this, and no answer before the stream.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// PostgreSQL's own bound on a message (`PQ_LARGE_MESSAGE_LIMIT`, `MaxAllocSize`), and a little.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024 * 1024 * 1024;

pub(crate) const TOO_MUCH: &str = "an answer that does not end";

/// What a stream of frames can suffer.
#[derive(Debug)]
pub(crate) enum WireError {
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
                "a message 0x{tag:02X} of {bytes} bytes, out of all proportion"
            )),
            WireError::TooMuch => Self::Protocol(TOO_MUCH.to_owned()),
            WireError::Malformed(why) => Self::Protocol(why),
        }
    }
}

/// One message from the server.
pub(crate) enum Incoming {
    /// The payload of a CopyData message.
    CopyData(Bytes),
    /// Both sides may now send CopyData.
    CopyBoth,
    /// Any other message.
    Message(Message),
}

/// CopyData messages as they came, heads included; the last may go on in the next run.
pub(crate) struct Run {
    pub(crate) bytes: Bytes,
    /// Messages that begin in it.
    pub(crate) begun: u64,
}

/// How far bytes were passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// All of them.
    All,
    /// Something was heard before; more may be left.
    Heard,
}

/// A stream with its two buffers. Generic for tests alone.
pub(crate) struct Wire<S = ServerStream> {
    stream: S,
    read: BytesMut,
    /// What is to be sent; filled by callers, emptied by [`send`](Self::send).
    pub(crate) write: BytesMut,
    must_flush: bool,
    /// The rest of a CopyData message whose beginning was part of a run.
    running: usize,
    /// All that has come, whole messages or not.
    bytes_read: u64,
    message_bytes_max: usize,
    /// What may come before the next question; none while it streams.
    answer_bytes_left: Option<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            write: BytesMut::new(),
            must_flush: false,
            running: 0,
            bytes_read: 0,
            message_bytes_max: ANSWER_BYTES_MAX,
            answer_bytes_left: Some(ANSWER_BYTES_MAX),
        }
    }

    /// Something new was asked.
    pub(crate) fn begin_answer(&mut self) {
        self.message_bytes_max = ANSWER_BYTES_MAX;
        self.answer_bytes_left = Some(ANSWER_BYTES_MAX);
    }

    /// What came so far was no part of the answer.
    pub(crate) fn answer_goes_on(&mut self) {
        if let Some(left) = &mut self.answer_bytes_left {
            *left = ANSWER_BYTES_MAX;
        }
    }

    /// From here on it goes on for ever, in messages as large as the source's rows.
    pub(crate) fn begin_stream(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
        self.answer_bytes_left = None;
    }

    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The next message that is already here, without I/O.
    #[inline]
    pub(crate) fn try_next(&mut self) -> Result<Option<Incoming>, WireError> {
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
    pub(crate) async fn next(&mut self) -> Result<Incoming, WireError> {
        loop {
            if let Some(incoming) = self.try_next()? {
                return Ok(incoming);
            }
            self.fill().await?;
        }
    }

    /// CopyData that is already here, to be passed on as it is; `None`: something else comes next,
    /// or nothing is here. However large a row is, no more of it is held than was read at once.
    pub(crate) fn try_run(&mut self) -> Result<Option<Run>, WireError> {
        let (mut end, mut begun) = (0, 0);
        loop {
            let passed = self.running.min(self.read.len() - end);
            self.running -= passed;
            end += passed;
            match self.head(end)? {
                Some((b'd', length)) => self.running = length,
                _ => break,
            }
            begun += 1;
        }
        let bytes = self.read.split_to(end).freeze();
        Ok((end > 0).then_some(Run { bytes, begun }))
    }

    /// Writes `bytes` behind what is still to be written, and listens meanwhile.
    pub(crate) async fn pass(&mut self, bytes: &mut Bytes) -> Result<Passed, WireError> {
        poll_fn(|cx| {
            if let Poll::Ready(heard) = self.poll_fill(cx) {
                return Poll::Ready(heard.map(|()| Passed::Heard));
            }
            ready!(self.poll_write_out(cx)).map_err(WireError::Io)?;
            while !bytes.is_empty() {
                let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))
                    .and_then(some)
                    .map_err(WireError::Io)?;
                bytes.advance(count);
                self.must_flush = true;
            }
            Poll::Ready(Ok(Passed::All))
        })
        .await
    }

    /// More bytes, whatever they are. Cancellation-safe.
    pub(crate) async fn hear(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Writes all of [`write`](Self::write). Cancellation-safe: the rest goes with the next call.
    pub(crate) async fn send(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_send(cx))
            .await
            .map_err(WireError::Io)
    }

    /// Tag and whole length of the message at the front.
    #[inline]
    fn peek(&self) -> Result<Option<(u8, usize)>, WireError> {
        self.head(0)
    }

    /// Tag and whole length of the message that begins at `at`.
    #[inline]
    fn head(&self, at: usize) -> Result<Option<(u8, usize)>, WireError> {
        let here = self.read.get(at..).unwrap_or_default();
        let header = Header::parse(here).map_err(|e| WireError::Malformed(e.to_string()))?;
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
        self.hear().await
    }

    /// Reads once, into the room there is.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.make_room(1);
        // A feedback message that did not go out whole must not wait for the next one.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(WireError::Io(error)));
        }
        match ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx)) {
            Ok(0) => Poll::Ready(Err(WireError::Io(io::ErrorKind::UnexpectedEof.into()))),
            Ok(count) => {
                self.bytes_read += count as u64;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(WireError::Io(error))),
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
        ready!(self.poll_write_out(cx))?;
        if self.must_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.must_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write.is_empty() {
            let count =
                ready!(Pin::new(&mut self.stream).poll_write(cx, &self.write)).and_then(some)?;
            self.write.advance(count);
            self.must_flush = true;
        }
        Poll::Ready(Ok(()))
    }
}

fn some(written: usize) -> io::Result<usize> {
    match written {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

#[cfg(test)]
impl Wire<tokio::io::Empty> {
    /// One that has read these bytes.
    pub(crate) fn of(bytes: &[u8], is_stream: bool) -> Self {
        let mut wire = Self::new(tokio::io::empty());
        if is_stream {
            wire.begin_stream();
        }
        wire.read.extend_from_slice(bytes);
        wire
    }

    /// What it has read and not yielded.
    pub(crate) fn rest(&self) -> &BytesMut {
        &self.read
    }
}

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

        /// What is to be passed on arrives at the other end as it came, and nothing behind it.
        #[test]
        fn runs_are_passed_on_as_they_came(
            sizes in proptest::collection::vec(0_usize..60_000, 1..20),
            cuts in proptest::collection::vec(1_usize..50_000, 1..20),
        ) {
            let frames: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(i, size)| copy_data(&vec![i as u8; *size])).collect();
            let copied = frames.concat();
            let bytes = [&copied[..], b"c\0\0\0\x04"].concat();
            let (begun, arrived) = block_on(async {
                let (mut server, client) = tokio::io::duplex(8192);
                let (mut target, replica) = tokio::io::duplex(4096);
                let wanted = copied.len();
                tokio::spawn(async move {
                    let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
                    while !rest.is_empty() {
                        let (part, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                        server.write_all(part).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = after;
                    }
                });
                let reader = tokio::spawn(async move {
                    let mut arrived = vec![0; wanted];
                    target.read_exact(&mut arrived).await.unwrap();
                    arrived
                });
                let (mut source, mut replica) = (Wire::new(client), Wire::new(replica));
                source.begin_stream();
                let mut begun = 0;
                loop {
                    if let Some(mut run) = source.try_run().unwrap() {
                        begun += run.begun;
                        assert_eq!(replica.pass(&mut run.bytes).await.unwrap(), Passed::All);
                    } else if let Some(next) = source.try_next().unwrap() {
                        assert!(matches!(next, Incoming::Message(Message::CopyDone)));
                        break;
                    } else {
                        source.hear().await.unwrap();
                    }
                }
                (begun, reader.await.unwrap())
            });
            prop_assert!(begun == sizes.len() as u64 && arrived == copied);
        }

        /// A hostile server is an error or asks for more, never a panic.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = Wire::new(tokio::io::empty());
            wire.read.extend_from_slice(&bytes);
            while let Ok(Some(_)) = wire.try_next() {}
            let mut wire = Wire::of(&bytes, true);
            while let Ok(Some(run)) = wire.try_run() {
                prop_assert!(!run.bytes.is_empty());
            }
        }
    }

    #[test]
    fn what_the_other_end_says_is_heard_before_all_is_written() {
        block_on(async {
            let (mut server, client) = tokio::io::duplex(64);
            let mut wire = Wire::new(client);
            server.write_all(b"N\0\0\0\x05\0").await.unwrap();
            let mut bytes = Bytes::from_static(&[7; 1000]);
            assert_eq!(wire.pass(&mut bytes).await.unwrap(), Passed::Heard);
            assert!(bytes.len() == 1000 && wire.try_next().unwrap().is_some());
        });
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
