//! A TCP proxy that does to connections what networks do.
//!
//! ```text
//!  daemon ── client's socket ─▶ read ─▶ queue: each chunk with the time it may leave ─▶ write ── server's socket ─▶ server
//!                                        latency, bandwidth, losses: later, in order
//!  reset      both sockets end with RST
//!  half-open  the server's socket is closed; the client's stays, and nothing comes
//!  hole       nothing is read and nothing written; the sockets stay
//! ```
//!
//! A loss is what TCP makes of one: the chunk, and all behind it, come a retransmission later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::support::Random;

const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way in one direction: what a long line holds.
const CHUNKS_UNDER_WAY: usize = 64;
/// Linux' least time before it sends again.
pub const RETRANSMITTED_AFTER: Duration = Duration::from_millis(200);

/// How a line carries bytes, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub latency: Duration,
    pub bits_per_second: Option<u32>,
    pub loss_percent: u32,
    pub byte_by_byte: bool,
}

/// Which connections are in the hole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hole {
    #[default]
    None,
    /// Those with a lower number.
    Before(u64),
    All,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    line: Line,
    hole: Hole,
    /// Connections with a lower number are reset, or half-open.
    reset_before: u64,
    half_open_before: u64,
}

/// Listens for as long as it lives.
pub struct Proxy {
    port: u16,
    rule: watch::Sender<Rule>,
    accepted: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    listening: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server_port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rule = watch::Sender::new(Rule::default());
        let (accepted, passed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, bytes, rules) = (Arc::clone(&accepted), Arc::clone(&passed), rule.clone());
        let listening = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(Connection {
                    client,
                    server_port,
                    number,
                    rule: rules.subscribe(),
                    passed: Arc::clone(&bytes),
                    random: Random::new(seed ^ number),
                }));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            port,
            rule,
            accepted,
            passed,
            listening,
        }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `cluster`'s TCP address with this proxy in its place.
    pub fn url(&self, database: &str, parameters: &str) -> String {
        let port = self.port;
        format!("postgresql://postgres@127.0.0.1:{port}/{database}?{parameters}")
    }

    /// Bytes that went through, both ways.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Connections that were ever made.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn line(&self, line: Line) {
        self.rule.send_modify(|rule| rule.line = line);
    }

    /// All connections of now.
    pub fn reset(&self) {
        let now = self.accepted();
        self.rule.send_modify(|rule| rule.reset_before = now);
    }

    /// All connections of now.
    pub fn half_open(&self) {
        let now = self.accepted();
        self.rule.send_modify(|rule| rule.half_open_before = now);
    }

    /// All connections, those to come too.
    pub fn black_hole(&self) {
        self.rule.send_modify(|rule| rule.hole = Hole::All);
    }

    /// All connections of now; new ones pass.
    pub fn black_hole_of_now(&self) {
        let now = self.accepted();
        self.rule.send_modify(|rule| rule.hole = Hole::Before(now));
    }

    /// What is in the hole goes on.
    pub fn heal(&self) {
        self.rule.send_modify(|rule| {
            rule.hole = Hole::None;
            rule.line = Line::default();
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

struct Connection {
    client: TcpStream,
    server_port: u16,
    number: u64,
    rule: watch::Receiver<Rule>,
    passed: Arc<AtomicU64>,
    random: Random,
}

impl Rule {
    fn is_in_hole(&self, number: u64) -> bool {
        match self.hole {
            Hole::None => false,
            Hole::Before(bound) => number < bound,
            Hole::All => true,
        }
    }
}

async fn serve(connection: Connection) {
    let Connection {
        client,
        server_port,
        number,
        mut rule,
        passed,
        mut random,
    } = connection;
    let outside = rule.wait_for(|rule| !rule.is_in_hole(number)).await;
    if outside.map(drop).is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
        return;
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let direction = |random| Direction {
        number,
        rule: rule.clone(),
        passed: Arc::clone(&passed),
        random,
    };
    let (there, back) = (
        direction(Random::new(random.next())),
        direction(Random::new(random.next())),
    );
    let is_struck = |rule: &Rule| number < rule.reset_before || number < rule.half_open_before;
    let struck = tokio::select! {
        _ = async { tokio::join!(there.carry(&client, &server), back.carry(&server, &client)) } => return,
        rule = rule.wait_for(is_struck) => rule.map(|rule| *rule),
    };
    match struck {
        Ok(rule) if number < rule.reset_before => {
            for socket in [&client, &server] {
                let reset = socket2::SockRef::from(socket);
                reset.set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        Ok(_) => {
            drop(server);
            swallow(&client).await;
        }
        Err(_) => {}
    }
}

/// Takes what comes until the other end closes.
async fn swallow(socket: &TcpStream) {
    let mut bytes = vec![0; CHUNK_BYTES];
    while matches!(read(socket, &mut bytes).await, Some(1..)) {}
}

struct Direction {
    number: u64,
    rule: watch::Receiver<Rule>,
    passed: Arc<AtomicU64>,
    random: Random,
}

impl Direction {
    /// Until either end closes; the other one is then closed for writing.
    async fn carry(self, from: &TcpStream, to: &TcpStream) {
        let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
        let (mut rule, mut random, number) = (self.rule.clone(), self.random, self.number);
        let reading = async move {
            let mut leaves_at = Instant::now();
            loop {
                let mut bytes = vec![0; CHUNK_BYTES];
                // In the hole the sender's bytes stay in its kernel.
                if rule
                    .wait_for(|rule| !rule.is_in_hole(number))
                    .await
                    .is_err()
                {
                    return;
                }
                let Some(count @ 1..) = read(from, &mut bytes).await else {
                    return;
                };
                bytes.truncate(count);
                let line = rule.borrow().line;
                let mut takes = line.latency;
                if random.below(100) < line.loss_percent {
                    takes += RETRANSMITTED_AFTER;
                }
                let busy = line.bits_per_second.map_or(Duration::ZERO, |bits| {
                    Duration::from_secs_f64(8.0 * count as f64 / f64::from(bits))
                });
                leaves_at = leaves_at.max(Instant::now() + takes) + busy;
                if sender.send((leaves_at, bytes)).await.is_err() {
                    return;
                }
            }
        };
        let mut rule = self.rule;
        let writing = async move {
            while let Some((leaves_at, bytes)) = chunks.recv().await {
                sleep_until(leaves_at).await;
                if rule
                    .wait_for(|rule| !rule.is_in_hole(number))
                    .await
                    .is_err()
                {
                    return;
                }
                let piece = if rule.borrow().line.byte_by_byte {
                    1
                } else {
                    CHUNK_BYTES
                };
                for bytes in bytes.chunks(piece) {
                    if write_all(to, bytes).await.is_none() {
                        return;
                    }
                }
                self.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        };
        tokio::join!(reading, writing);
        // It may be gone already.
        let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
    }
}

async fn read(socket: &TcpStream, bytes: &mut [u8]) -> Option<usize> {
    loop {
        socket.readable().await.ok()?;
        match socket.try_read(bytes) {
            Ok(count) => return Some(count),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

async fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        socket.writable().await.ok()?;
        match socket.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    Some(())
}
