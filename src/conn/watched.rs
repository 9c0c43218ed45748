//! `Watched`: a socket that the reactor watches, but while somebody naps instead of waiting.
//!
//! ```text
//!  on the reactor ── unwatch ──▶ off it ── a read finds nothing, a write no room ──▶ on the reactor
//!   the other end's every send         a send finds nobody to tell;
//!   tells the reactor, awake or not    reads and writes take what there is
//! ```
//!
//! Linux calls back into epoll at each send to a socket that is registered with it, whether or not anybody
//! waits (`ep_poll_callback`). To a walsender, which sends each change by itself, that is one
//! part in twelve of all it computes.

use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop::poll_proceed;

/// What one read off the reactor takes at most.
const READ_BYTES: usize = super::wire::READ_BYTES;

/// A socket of the reactor, and the same without it.
pub(super) trait OfReactor: AsyncRead + AsyncWrite + Unpin + Sized {
    /// Never blocks either.
    type Off: Read + Write + Unpin;
    fn leave(self) -> io::Result<Self::Off>;
    fn enter(off: Self::Off) -> io::Result<Self>;
}

impl OfReactor for TcpStream {
    type Off = std::net::TcpStream;

    fn leave(self) -> io::Result<Self::Off> {
        self.into_std()
    }

    fn enter(off: Self::Off) -> io::Result<Self> {
        Self::from_std(off)
    }
}

impl OfReactor for UnixStream {
    type Off = std::os::unix::net::UnixStream;

    fn leave(self) -> io::Result<Self::Off> {
        self.into_std()
    }

    fn enter(off: Self::Off) -> io::Result<Self> {
        Self::from_std(off)
    }
}

/// The socket, where it is.
#[derive(Debug)]
pub(super) struct Watched<S: OfReactor> {
    place: Place<S, S::Off>,
    /// What a read off the reactor fills; none before the first.
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Place<S, Off> {
    On(S),
    Off(Off),
    /// It could not be moved, and is closed.
    Lost,
}

impl<S: OfReactor> Watched<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            place: Place::On(socket),
            buffer: Vec::new(),
        }
    }

    /// Takes it off the reactor, until the next read that finds nothing.
    ///
    /// # Errors
    /// The system's; the connection is of no use afterwards.
    pub(super) fn unwatch(&mut self) -> io::Result<()> {
        self.place = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::On(socket) => Place::Off(socket.leave()?),
            place => place,
        };
        Ok(())
    }

    fn watch(&mut self) -> io::Result<Pin<&mut S>> {
        if matches!(self.place, Place::Off(_)) {
            self.place = match std::mem::replace(&mut self.place, Place::Lost) {
                Place::Off(socket) => Place::On(S::enter(socket)?),
                place => place,
            };
        }
        match &mut self.place {
            Place::On(socket) => Ok(Pin::new(socket)),
            Place::Off(_) | Place::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// `None`: it would have to wait.
fn at_once(outcome: io::Result<usize>) -> Option<io::Result<usize>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
        outcome => Some(outcome),
    }
}

impl<S: OfReactor> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Place::Off(socket) = &mut this.place {
            // What the reactor's own sockets do: others have their turn, however much there is.
            let turn = ready!(poll_proceed(cx));
            // Through a buffer, for what is not yet filled can be read into by unsafe code only.
            this.buffer.resize(READ_BYTES, 0);
            let room = buf.remaining().min(READ_BYTES);
            if let Some(read) = at_once(socket.read(&mut this.buffer[..room])) {
                turn.made_progress();
                buf.put_slice(&this.buffer[..read?]);
                return Poll::Ready(Ok(()));
            }
        }
        this.watch()?.poll_read(cx, buf)
    }
}

impl<S: OfReactor> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Place::Off(socket) = &mut this.place
            && let Some(written) = at_once(socket.write(buf))
        {
            return Poll::Ready(written);
        }
        this.watch()?.poll_write(cx, buf)
    }

    /// TLS has many records to send at once.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Place::Off(socket) = &mut this.place
            && let Some(written) = at_once(socket.write_vectored(bufs))
        {
            return Poll::Ready(written);
        }
        this.watch()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().place {
            Place::On(socket) => Pin::new(socket).poll_flush(cx),
            // The kernel keeps nothing back.
            Place::Off(_) | Place::Lost => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().watch()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn is_on<S: OfReactor>(socket: &Watched<S>) -> bool {
        matches!(socket.place, Place::On(_))
    }

    #[tokio::test]
    async fn off_the_reactor_it_takes_what_there_is_and_waits_on_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = Watched::new(ours);
        theirs.write_all(b"abc").await.unwrap();
        ours.unwatch().unwrap();
        let mut read = [0; 8];
        assert_eq!(ours.read(&mut read).await.unwrap(), 3);
        assert!(!is_on(&ours));
        ours.write_all(b"x").await.unwrap();
        assert!(!is_on(&ours));
        let later = tokio::spawn(async move {
            tokio::task::yield_now().await;
            theirs.write_all(b"de").await.unwrap();
            theirs
        });
        assert_eq!(ours.read(&mut read).await.unwrap(), 2);
        assert!(is_on(&ours));
        let mut theirs = later.await.unwrap();
        assert_eq!(theirs.read(&mut read).await.unwrap(), 1);
        ours.unwatch().unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut read).await.unwrap(), 0, "the end is seen");
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    /// Sends it all and hears it back, going off the reactor as `turns` have it.
    async fn echoed<S, T>((ours, theirs): (S, T), sent: &[u8], turns: &[bool]) -> Vec<u8>
    where
        S: OfReactor,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut ours = Watched::new(ours);
        let (mut from, mut to) = tokio::io::split(theirs);
        let len = sent.len();
        let echo = tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        let (mut said, mut heard, mut turns) = (0, Vec::new(), turns.iter().cycle());
        while heard.len() < len {
            if *turns.next().unwrap() {
                ours.unwatch().unwrap();
            }
            let mut read = vec![0; 50_000];
            if said < len && heard.len() + 100_000 > said {
                let (one, other) = sent[said..].split_at((len - said) / 2);
                said += ours
                    .write_vectored(&[IoSlice::new(one), IoSlice::new(other)])
                    .await
                    .unwrap();
            } else {
                let count = ours.read(&mut read).await.unwrap();
                heard.extend_from_slice(&read[..count]);
            }
        }
        drop(ours);
        let _ = echo.await;
        heard
    }

    proptest! {
        /// However often it changes its place, every byte arrives once, in order, both ways.
        #[test]
        fn no_byte_is_lost_on_the_way_on_and_off(turns in proptest::collection::vec(any::<bool>(), 1..40)) {
            let sent: Vec<u8> = (0..600_000_u32).map(|i| (i % 251) as u8).collect();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let (by_file, by_port) = runtime.block_on(async {
                let by_file = echoed(UnixStream::pair().unwrap(), &sent, &turns).await;
                (by_file, echoed(tcp_pair().await, &sent, &turns).await)
            });
            prop_assert!(by_file == sent);
            prop_assert!(by_port == sent);
        }
    }
}
