//! A server that plays a script, with one thing damaged; many at once, each on a socket of its own.

use super::scram::{Exchange, Rules};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

/// Who gets nothing to hear for so long hangs up, where something is damaged.
const QUIET: Duration = Duration::from_millis(100);
/// Where nothing is.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a flood amounts to unless the client hangs up.
pub const FLOOD_BYTES: usize = 64 << 20;

/// Messages of a script from CopyBoth on.
pub const STREAM_SAYS: usize = 6;

/// One turn of a script.
#[derive(Clone, Debug)]
pub enum Turn {
    /// One message of the client, whatever it is.
    Hear,
    /// One message.
    Say(Vec<u8>),
    ScramFirst,
    ScramFinal,
}

/// The messages of a script, in the order in which [`Play::at`] counts them.
pub fn said(turns: &[Turn]) -> impl Iterator<Item = &Turn> {
    turns.iter().filter(|turn| !matches!(turn, Turn::Hear))
}

/// What is done to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    None,
    /// So many bytes of it, then the end.
    Cut(usize),
    /// So many bytes of it, then silence.
    Stall(usize),
    /// Another length in its head.
    Length(u32),
    Tag(u8),
    /// One bit of one byte.
    Flip(usize, u8),
    Left,
    Twice,
    /// Another message before it.
    Before(Vec<u8>),
    /// Again and again in its place, until the client hangs up.
    Flood(Vec<u8>),
}

/// An exchange, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Play {
    pub turns: Arc<Vec<Turn>>,
    pub rules: Rules,
    /// Which of the messages said; beyond the last of them, none.
    pub at: usize,
    pub damage: Damage,
}

impl Play {
    /// By a server that keeps the rules of SCRAM.
    pub fn new(turns: &Arc<Vec<Turn>>, at: usize, damage: Damage) -> Self {
        Self {
            turns: Arc::clone(turns),
            rules: Rules::default(),
            at,
            damage,
        }
    }
}

/// Places a server at a socket; it plays to everybody what is set at the time.
pub struct Stage {
    pub play: Arc<Mutex<Option<Play>>>,
    /// Bytes that the last client was sent.
    pub sent: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stage {
    pub fn open(folder: &Path, number: usize) -> Self {
        let listener = UnixListener::bind(folder.join(format!(".s.PGSQL.{number}"))).unwrap();
        let play: Arc<Mutex<Option<Play>>> = Arc::default();
        let sent: Arc<Mutex<usize>> = Arc::default();
        let (playing, sending) = (Arc::clone(&play), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let play = playing.lock().unwrap().clone().unwrap();
                *sending.lock().unwrap() = 0;
                let sending = Arc::clone(&sending);
                tokio::spawn(async move {
                    let mut actor = Actor {
                        stream,
                        exchange: Exchange::default(),
                        sent: 0,
                    };
                    // Clients hang up; that is what they are here for.
                    let _ = actor.play(&play).await;
                    *sending.lock().unwrap() = actor.sent;
                });
            }
        });
        Self { play, sent, task }
    }
}

struct Actor<S> {
    stream: S,
    exchange: Exchange,
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Actor<S> {
    async fn play(&mut self, play: &Play) -> std::io::Result<()> {
        let patience = if play.damage == Damage::None {
            PATIENCE
        } else {
            QUIET
        };
        let (mut said, mut is_first) = (0, true);
        for turn in play.turns.iter() {
            let message = match turn {
                Turn::Hear => {
                    timeout(patience, self.hear(is_first)).await??;
                    is_first = false;
                    continue;
                }
                Turn::Say(message) => message.clone(),
                Turn::ScramFirst => authentication(11, &self.exchange.server_first(&play.rules)),
                Turn::ScramFinal => authentication(12, &self.exchange.server_final(&play.rules)),
            };
            said += 1;
            if said - 1 == play.at {
                if !self.say_damaged(&message, &play.damage).await? {
                    return Ok(());
                }
            } else {
                self.say(&message).await?;
            }
        }
        // Whoever still listens hears the end once it is quiet.
        let _ = timeout(patience, self.hear(false)).await;
        Ok(())
    }

    /// False when nothing is to follow.
    async fn say_damaged(&mut self, message: &[u8], damage: &Damage) -> std::io::Result<bool> {
        match damage {
            Damage::None => self.say(message).await?,
            Damage::Cut(length) => {
                self.say(&message[..*length]).await?;
                return Ok(false);
            }
            Damage::Stall(length) => {
                self.say(&message[..*length]).await?;
                // Until the client has had enough.
                let mut rest = Vec::new();
                self.stream.read_to_end(&mut rest).await?;
                return Ok(false);
            }
            Damage::Length(length) => {
                self.say(&[&message[..1], &length.to_be_bytes(), &message[5..]].concat())
                    .await?;
            }
            Damage::Tag(tag) => self.say(&[&[*tag], &message[1..]].concat()).await?,
            Damage::Flip(at, bit) => {
                let mut bent = message.to_vec();
                bent[*at] ^= 1 << bit;
                self.say(&bent).await?;
            }
            Damage::Left => {}
            Damage::Twice => self.say(&[message, message].concat()).await?,
            Damage::Before(other) => self.say(&[other, message].concat()).await?,
            Damage::Flood(drop) => {
                let wave = drop.repeat((64 << 10) / drop.len() + 1);
                while self.sent < FLOOD_BYTES {
                    self.say(&wave).await?;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.stream.write(rest).await?;
            self.sent += count;
            rest = &rest[count..];
        }
        Ok(())
    }

    async fn hear(&mut self, is_first: bool) -> std::io::Result<()> {
        let tag_bytes = usize::from(!is_first);
        let mut head = [0; 5];
        self.stream.read_exact(&mut head[1 - tag_bytes..]).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await?;
        if head[0] == b'p' {
            self.exchange.hear(&body);
        }
        Ok(())
    }
}

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

pub fn authentication(kind: u8, body: &[u8]) -> Vec<u8> {
    message(b'R', &[&[0, 0, 0, kind], body].concat())
}

fn row_description(columns: usize) -> Vec<u8> {
    let mut body = u16::try_from(columns).unwrap().to_be_bytes().to_vec();
    for _ in 0..columns {
        body.extend_from_slice(b"name\0\0\0\0\0\0\0\0\0\0\x19\xFF\xFF\xFF\xFF\xFF\xFF\0\0");
    }
    message(b'T', &body)
}

fn row(values: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    message(b'D', &body)
}

/// How the client is asked for its password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Trust,
    Md5,
    Scram,
}

impl Login {
    pub const ALL: [Self; 3] = [Self::Trust, Self::Md5, Self::Scram];
}

/// Who is on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Sql,
    Replication,
}

impl Client {
    pub const ALL: [Self; 2] = [Self::Sql, Self::Replication];
}

fn complete(tag: &[u8]) -> Turn {
    Turn::Say(message(b'C', &[tag, b"\0"].concat()))
}

/// A session from its first byte to its first rows, and for replication to the end of a stream.
pub fn turns(login: Login, client: Client) -> Vec<Turn> {
    let ready = || Turn::Say(message(b'Z', b"I"));
    let parameter = |text: &[u8]| Turn::Say(message(b'S', text));
    let mut turns = vec![Turn::Hear];
    match login {
        Login::Trust => {}
        Login::Md5 => turns.extend([Turn::Say(authentication(5, b"salt")), Turn::Hear]),
        Login::Scram => turns.extend([
            Turn::Say(authentication(10, b"SCRAM-SHA-256\0\0")),
            Turn::Hear,
            Turn::ScramFirst,
            Turn::Hear,
            Turn::ScramFinal,
        ]),
    }
    turns.extend([
        Turn::Say(authentication(0, b"")),
        parameter(b"server_version\x0017.10\0"),
        Turn::Say(message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mwelcome\0\0")),
        parameter(b"client_encoding\0UTF8\0"),
        Turn::Say(message(b'K', &[0, 0, 0x10, 0x92, 1, 2, 3, 4])),
        ready(),
        Turn::Hear,
        Turn::Say(row_description(2)),
        Turn::Say(row(&["22", "4242"])),
        complete(b"SELECT 1"),
    ]);
    if client == Client::Sql {
        turns.push(ready());
        return turns;
    }
    let frame = |payload: &[u8]| Turn::Say(message(b'd', payload));
    let keepalive = b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0";
    let begin = b"w\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0B\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\x01";
    turns.extend([
        complete(b"SET"),
        Turn::Say(row_description(2)),
        Turn::Say(row(&["170010", "60000"])),
        complete(b"SELECT 1"),
        ready(),
        Turn::Hear,
        Turn::Say(message(b'W', &[0, 0, 0])),
        frame(keepalive),
        frame(begin),
        Turn::Say(message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mon the way\0\0")),
        frame(keepalive),
        Turn::Say(message(b'c', b"")),
    ]);
    turns
}
