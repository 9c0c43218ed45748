//! Hostile servers: a whole session from start-up to stream, with one message damaged.
//!
//! ```text
//!  script (login × client) × each message × each damage ─▶ a server on a socket ─▶ both kinds of
//!                                                          session ─▶ an error, in time, in bounds
//! ```
//!
//! `cargo test` draws a share of them by a seed, which is printed; `PGLOCKSTEP_SOAK=1` does all.

mod scram;
mod server;

use super::source;
use crate::support::{Random, is_soak, seed};
use pglockstep::conn::{Endpoint, Session};
use pglockstep::replication::{ReplicationConnection, ReplicationError, StreamOptions};
use scram::{PASSWORD, Rules};
use server::{
    Client, Damage, FLOOD_BYTES, Login, Play, STREAM_SAYS, Stage, Turn, authentication, message,
    turns,
};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Sessions at a time.
const STAGES: usize = 48;
/// Of all exchanges, so many in `cargo test`.
const SHARE: usize = 8_000;
/// Of those that end by a time-out, so many.
const STALLS: usize = 250;
/// The `connect_timeout`, and what a busy machine may take on top.
const TIMEOUT: u64 = 1;
const SLACK: Duration = Duration::from_secs(15);
/// A client that was flooded hung up before it was sent this much; most of it is the sockets'.
const HEARD_BYTES_MAX: usize = 4 << 20;

/// What came of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything was believed: the session opened, and the stream ended in good order.
    Believed,
    /// So far the stream was believed, and then came this.
    Refused(String),
}

/// Panics of tasks that nobody joins are counted as well.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
    });
}

async fn open(client: Client, folder: &Path, number: usize) -> Outcome {
    let url = format!(
        "postgres://u:{PASSWORD}@/d?host={}&port={number}&connect_timeout={TIMEOUT}",
        folder.display()
    );
    let endpoint = source(&url);
    if client == Client::Sql {
        return match endpoint.connect(Session::SourceRead).await {
            Ok(_) => Outcome::Believed,
            Err(error) => Outcome::Refused(format!("{error}; {}", error.advice())),
        };
    }
    let Err(error) = Box::pin(stream_to_its_end(&endpoint)).await;
    match error {
        ReplicationError::Ended => Outcome::Believed,
        error => Outcome::Refused(format!("{error}; {}", error.advice())),
    }
}

async fn stream_to_its_end(endpoint: &Endpoint) -> Result<Infallible, ReplicationError> {
    let connection = ReplicationConnection::connect(endpoint).await?;
    let options = StreamOptions::new(170_010, vec!["p".to_owned()]);
    let (slot, at) = ("s".parse().unwrap(), "0/1".parse().unwrap());
    let mut stream = connection.start(&slot, at, &options).await?;
    loop {
        stream.receive().await?;
    }
}

/// Plays to both ends of a queue of exchanges at once; the outcomes with what was sent.
async fn perform(plays: Vec<(Client, Play)>) -> Vec<(Client, Play, Outcome, usize)> {
    count_panics();
    let panics = PANICS.load(Ordering::Relaxed);
    let folder = tempfile::tempdir().unwrap();
    let queue = Arc::new(Mutex::new(plays));
    let mut lanes = tokio::task::JoinSet::new();
    for number in 1..=STAGES {
        let (folder, queue) = (folder.path().to_owned(), Arc::clone(&queue));
        lanes.spawn(async move {
            let stage = Stage::open(&folder, number);
            let mut done = Vec::new();
            loop {
                let next = queue.lock().unwrap().pop();
                let Some((client, play)) = next else { break };
                *stage.play.lock().unwrap() = Some(play.clone());
                let started = Instant::now();
                let most = Duration::from_secs(3 * TIMEOUT) + SLACK;
                let outcome = tokio::time::timeout(most, open(client, &folder, number)).await;
                let outcome = outcome.unwrap_or_else(|_| panic!("{client:?} hangs: {play:?}"));
                if let Outcome::Refused(text) = &outcome {
                    assert!(!text.contains(PASSWORD), "{play:?}: {text}");
                    assert!(text.len() > 30 && text.len() < 4_000, "{play:?}: {text}");
                }
                assert!(started.elapsed() < most, "{play:?}");
                let sent = *stage.sent.lock().unwrap();
                done.push((client, play, outcome, sent));
            }
            done
        });
    }
    let mut all = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        all.extend(lane.unwrap());
    }
    let panicked = PANICS.load(Ordering::Relaxed) - panics;
    assert_eq!(panicked, 0, "a task has panicked");
    all
}

fn says(turns: &[Turn]) -> usize {
    turns
        .iter()
        .filter(|turn| !matches!(turn, Turn::Hear))
        .count()
}

/// Long enough for the two SCRAM messages, which are made when they are due.
fn length_of(turn: &Turn) -> usize {
    match turn {
        Turn::Hear => 0,
        Turn::Say(message) => message.len(),
        Turn::ScramFirst => 9 + "r=".len() + 24 + "server,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=1".len(),
        Turn::ScramFinal => 9 + "v=".len() + 44,
    }
}

/// Every message of every script with every damage.
fn all_plays() -> Vec<(Client, Play)> {
    let mut plays = Vec::new();
    for client in [Client::Sql, Client::Replication] {
        for login in [Login::Trust, Login::Md5, Login::Scram] {
            let turns = Arc::new(turns(login, client));
            let said = turns.iter().filter(|turn| !matches!(turn, Turn::Hear));
            for (at, turn) in said.enumerate() {
                // Silence on an open stream is the pipeline's to notice; see `faults::network`.
                let is_open = client == Client::Replication && at + STREAM_SAYS >= says(&turns);
                let is_noticed = |damage: &Damage| !is_open || !matches!(damage, Damage::Stall(_));
                for damage in damages(turn).into_iter().filter(is_noticed) {
                    let turns = Arc::clone(&turns);
                    plays.push((
                        client,
                        Play {
                            turns,
                            rules: Rules::default(),
                            at,
                            damage,
                        },
                    ));
                }
            }
        }
    }
    plays
}

fn damages(turn: &Turn) -> Vec<Damage> {
    let length = length_of(turn);
    let number = u32::try_from(length - 1).unwrap();
    let lengths = [
        number - 1,
        number + 1,
        0,
        3,
        1 << 31,
        (1 << 31) - 1,
        u32::MAX,
        1 << 20,
    ];
    let mut damages: Vec<Damage> = lengths.into_iter().map(Damage::Length).collect();
    damages.extend((0..length).map(Damage::Cut));
    damages.extend((0..length).map(Damage::Stall));
    damages.extend((0..=u8::MAX).map(Damage::Tag));
    damages.extend((0..length).flat_map(|at| (0..8).map(move |bit| Damage::Flip(at, bit))));
    damages.extend([Damage::Left, Damage::Twice]);
    let strangers = [
        authentication(0, b""),
        authentication(12, b"v=AAAA"),
        message(b'Z', b"I"),
        message(b'W', &[0, 0, 0]),
        message(b'd', b"k"),
        message(b'c', b""),
        message(b'E', b""),
        message(b'E', b"SFATAL\0C28000\0Mno"),
        message(b'E', b"\0\0\0"),
        message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
        message(b'K', &[0, 0, 0, 1, 2, 3, 4, 5, 6]),
        message(b'A', &[0, 0, 0, 1, b'c', 0]),
        message(b'D', &[0xFF, 0xFF]),
        message(b'T', &[0xFF, 0xFF]),
        message(b'G', &[0, 0xFF, 0xFF]),
    ];
    damages.extend(strangers.map(Damage::Before));
    damages
}

/// What cannot be a session, whatever else is said.
fn cannot_be_believed(turns: &[Turn], at: usize, damage: &Damage) -> bool {
    let turn = turns
        .iter()
        .filter(|turn| !matches!(turn, Turn::Hear))
        .nth(at)
        .unwrap();
    let authenticates = match turn {
        Turn::Say(message) => message[0] == b'R',
        _ => true,
    };
    match damage {
        Damage::Cut(_) | Damage::Stall(_) | Damage::Length(_) => true,
        Damage::Tag(tag) => authenticates && *tag != b'R',
        // Each of its bits counts, but for those that base64 leaves over.
        Damage::Flip(place, _) => matches!(turn, Turn::ScramFinal) && *place != 53,
        Damage::Left => authenticates,
        _ => false,
    }
}

fn share(mut plays: Vec<(Client, Play)>, most: usize, random: &mut Random) -> Vec<(Client, Play)> {
    if is_soak() || plays.len() <= most {
        return plays;
    }
    for place in 0..most {
        let left = u32::try_from(plays.len() - place).unwrap();
        plays.swap(place, place + random.below(left) as usize);
    }
    plays.truncate(most);
    plays
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undamaged_scripts_are_believed() {
    let mut plays = Vec::new();
    for client in [Client::Sql, Client::Replication] {
        for login in [Login::Trust, Login::Md5, Login::Scram] {
            let turns = Arc::new(turns(login, client));
            assert!(says(&turns) >= 9);
            plays.push((
                client,
                Play {
                    turns,
                    rules: Rules::default(),
                    at: 0,
                    damage: Damage::None,
                },
            ));
        }
    }
    for (client, play, outcome, _) in perform(plays).await {
        assert_eq!(outcome, Outcome::Believed, "{client:?} {play:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_damaged() {
    let seed = seed();
    let mut random = Random::new(seed);
    let is_stall = |play: &(Client, Play)| matches!(play.1.damage, Damage::Stall(_));
    let (stalls, others): (Vec<_>, Vec<_>) = all_plays().into_iter().partition(is_stall);
    let whole = stalls.len() + others.len();
    let mut plays = share(stalls, STALLS, &mut random);
    plays.extend(share(others, SHARE, &mut random));
    eprintln!(
        "{} of {whole} exchanges, PGLOCKSTEP_SEED={seed}",
        plays.len()
    );
    let mut counts: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for (client, play, outcome, _) in perform(plays).await {
        let must_fail = cannot_be_believed(&play.turns, play.at, &play.damage);
        let is_believed = outcome == Outcome::Believed;
        assert!(!(must_fail && is_believed), "{client:?} believes {play:?}");
        let how = format!("{:?}", play.damage);
        let how = how.split('(').next().unwrap().to_owned();
        *counts.entry((is_believed, how)).or_default() += 1;
    }
    eprintln!("believed or not, by damage: {counts:?}");
}

/// Before the session is ours nobody may talk for ever, in whatever way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_cut_off() {
    let many: Vec<u8> = (0..2_000_u32)
        .flat_map(|n| message(b'S', format!("p{n}\0{}\0", "x".repeat(500)).as_bytes()))
        .collect();
    let endless = |tag: u8| [&[tag][..], &(1_u32 << 30).to_be_bytes()].concat();
    let floods = [
        many,
        message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhear, hear\0\0"),
        message(b'A', &[0, 0, 0, 1, b'c', 0, b'p', 0]),
        message(b'K', &[0, 0, 0, 1, 2, 3, 4, 5]),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'D', &[0, 1, 0, 0, 0, 1, b'x']),
        message(b'C', b"SELECT 1\0"),
        message(b'T', &[0, 0]),
        message(b'I', b""),
        authentication(0, b""),
        authentication(11, b"r=x,s=AAAA,i=4096"),
        endless(b'E'),
        endless(b'N'),
        endless(b'R'),
        endless(b'S'),
        endless(b'D'),
    ];
    let mut plays = Vec::new();
    for client in [Client::Sql, Client::Replication] {
        let turns = Arc::new(turns(Login::Scram, client));
        // Until the session is pinned; and for replication until the stream begins.
        let open = if client == Client::Sql {
            says(&turns)
        } else {
            says(&turns) - STREAM_SAYS + 1
        };
        for at in 0..open {
            for flood in &floods {
                let damage = Damage::Flood(flood.clone());
                let turns = Arc::clone(&turns);
                plays.push((
                    client,
                    Play {
                        turns,
                        rules: Rules::default(),
                        at,
                        damage,
                    },
                ));
            }
        }
    }
    let mut random = Random::new(seed());
    let plays = share(plays, 200, &mut random);
    const { assert!(HEARD_BYTES_MAX < FLOOD_BYTES) };
    for (client, play, outcome, sent) in perform(plays).await {
        let (at, Damage::Flood(flood)) = (play.at, &play.damage) else {
            unreachable!()
        };
        let flood = flood[..flood.len().min(24)].escape_ascii();
        assert!(outcome != Outcome::Believed, "{client:?} at {at}: {flood}");
        assert!(
            sent < HEARD_BYTES_MAX,
            "{client:?} at {at}: {sent} bytes of {flood}: {outcome:?}"
        );
    }
}

/// A server that makes its own rules of SCRAM, or does not know the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_is_held_to_its_rules() {
    let like = Rules::default;
    let cases = [
        (
            Rules {
                iterations: "100001",
                ..like()
            },
            false,
        ),
        (
            Rules {
                iterations: "4294967295",
                ..like()
            },
            false,
        ),
        (
            Rules {
                iterations: "4294967296",
                ..like()
            },
            false,
        ),
        (
            Rules {
                iterations: "-1",
                ..like()
            },
            false,
        ),
        (
            Rules {
                iterations: "",
                ..like()
            },
            false,
        ),
        (
            Rules {
                iterations: "1,m=ext",
                ..like()
            },
            false,
        ),
        (
            Rules {
                nonce: "theirs",
                forgets_nonce: true,
                ..like()
            },
            false,
        ),
        (
            Rules {
                nonce: "",
                forgets_nonce: true,
                ..like()
            },
            false,
        ),
        (
            Rules {
                nonce: "a,b",
                ..like()
            },
            false,
        ),
        (
            Rules {
                password: "guess",
                ..like()
            },
            false,
        ),
        (
            Rules {
                password: "",
                ..like()
            },
            false,
        ),
        (like(), true),
    ];
    let mut plays = Vec::new();
    for client in [Client::Sql, Client::Replication] {
        for (rules, is_good) in &cases {
            // What is left out is beyond the script's end.
            let at = if *is_good { 0 } else { usize::MAX };
            let (turns, rules) = (Arc::new(turns(Login::Scram, client)), rules.clone());
            plays.push((
                client,
                Play {
                    turns,
                    rules,
                    at,
                    damage: Damage::None,
                },
            ));
        }
        for turns in wrong_turns(client) {
            let (turns, rules, at) = (Arc::new(turns), like(), usize::MAX);
            plays.push((
                client,
                Play {
                    turns,
                    rules,
                    at,
                    damage: Damage::Left,
                },
            ));
        }
    }
    assert_eq!(plays.len(), (12 + 7) + (12 + 8));
    for (client, play, outcome, _) in perform(plays).await {
        let is_good = play.at == 0;
        assert_eq!(
            outcome == Outcome::Believed,
            is_good,
            "{client:?} {play:?}: {outcome:?}"
        );
    }
}

/// No mechanism that we know; the last word first, and alone; a refusal in SCRAM's own words.
fn wrong_turns(client: Client) -> Vec<Vec<Turn>> {
    let by_the_book = || turns(Login::Scram, client);
    let mechanisms: [&[u8]; 5] = [
        b"OAUTHBEARER\0\0",
        b"\0",
        b"",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256-PLUS\0\0",
    ];
    let mut wrong: Vec<Vec<Turn>> = Vec::new();
    for list in mechanisms {
        if client == Client::Sql && list.starts_with(b"SCRAM-SHA-256-PLUS") {
            // The library takes it for an offer of both; the proofs are the same.
            continue;
        }
        let mut turns = by_the_book();
        turns[1] = Turn::Say(authentication(10, list));
        wrong.push(turns);
    }
    let mut first = by_the_book();
    first.swap(3, 5);
    let mut alone = by_the_book();
    alone.drain(2..5);
    let mut refused = by_the_book();
    refused[5] = Turn::Say(authentication(12, b"e=other-error"));
    wrong.extend([first, alone, refused]);
    wrong
}

/// It was sent in clear, by a socket of this host; whoever has it may say it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_the_server_repeats_is_not_told() {
    let error =
        format!("SFATAL\0VFATAL\0C28P01\0Mno {PASSWORD}\0D\x1b[2J\n{PASSWORD}\0H{PASSWORD}\0\0");
    let turns = vec![
        Turn::Hear,
        Turn::Say(authentication(3, b"")),
        Turn::Hear,
        Turn::Say(message(b'E', error.as_bytes())),
    ];
    let play = Play {
        turns: Arc::new(turns),
        rules: Rules::default(),
        at: usize::MAX,
        damage: Damage::None,
    };
    let plays = [Client::Sql, Client::Replication].map(|client| (client, play.clone()));
    for (client, _, outcome, _) in perform(plays.to_vec()).await {
        let Outcome::Refused(text) = outcome else {
            panic!("{client:?}")
        };
        assert!(text.contains("no … (FATAL 28P01)"), "{client:?}: {text}");
        assert!(!text.contains(char::is_control), "{client:?}: {text:?}");
    }
}

/// What a handshake may begin with, and anything else.
fn tls_answer(random: &mut Random) -> Vec<u8> {
    let mut answer = [&b"S"[..], b"", b"N", b"E", b"SS"][random.below(5) as usize].to_vec();
    let record = [0x16, 0x15, 0x14, 0x17, 0x00][random.below(5) as usize];
    let length = [0_u16, 1, 7, 300, 0x4000, 0xFFFF][random.below(6) as usize];
    answer.extend([record, 3, 3]);
    answer.extend(length.to_be_bytes());
    answer.extend([2, 0, 0, random.next() as u8]);
    answer.extend((0..random.below(600)).map(|_| random.next() as u8));
    answer.truncate(random.below(700) as usize);
    answer
}

/// Nothing but TLS may follow the question for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_made_up_at_random() {
    count_panics();
    let panics = PANICS.load(Ordering::Relaxed);
    let seed = seed();
    let mut random = Random::new(seed);
    let many = if is_soak() { 5_000 } else { 300 };
    eprintln!("{many} handshakes, PGLOCKSTEP_SEED={seed}");
    for _ in 0..many / 20 {
        let answers: Vec<Vec<u8>> = (0..20).map(|_| tls_answer(&mut random)).collect();
        let mut lanes = tokio::task::JoinSet::new();
        for (number, answer) in answers.into_iter().enumerate() {
            lanes.spawn(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let port = listener.local_addr().unwrap().port();
                let how = ["postgres", "direct"][number % 2];
                let url = format!(
                    "postgres://u:{PASSWORD}@127.0.0.1:{port}/d?connect_timeout={TIMEOUT}\
                     &sslmode=require&sslnegotiation={how}"
                );
                let said = answer.clone();
                tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.write_all(&said).await;
                    // One of them waits for what comes next.
                    let patience = if number == 0 {
                        SLACK
                    } else {
                        Duration::from_millis(30)
                    };
                    let mut heard = Vec::new();
                    let _ = tokio::time::timeout(patience, stream.read_to_end(&mut heard)).await;
                });
                let most = Duration::from_secs(3 * TIMEOUT) + SLACK;
                let endpoint = source(&url);
                let opened = tokio::time::timeout(most, endpoint.connect(Session::SourceRead));
                let text = opened.await.unwrap().map(drop).unwrap_err().to_string();
                assert!(
                    !text.contains(PASSWORD) && text.len() < 4_000,
                    "{answer:?}: {text}"
                );
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), panics);
}
