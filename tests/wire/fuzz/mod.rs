//! Hostile servers: a whole session from start-up to stream, with one thing wrong in it.
//!
//! ```text
//!  script (login × client) × each message × each damage ─▶ a server on a socket ─▶ both kinds of
//!                                                          session ─▶ an error, in time, in bounds
//! ```
//!
//! What is wrong: a message (`damages`), that it has no end (`floods`), the login's rules
//! (`logins`), the answer to the question for TLS (`handshakes`). `cargo test` draws a share of
//! them by a seed, which is printed; `PGLOCKSTEP_SOAK=1` does all.

mod damages;
mod floods;
mod handshakes;
mod logins;
mod scram;
mod server;

use super::source;
use crate::support::{Random, is_soak};
use pglockstep::conn::{Endpoint, Session};
use pglockstep::replication::{ReplicationConnection, ReplicationError, StreamOptions};
use scram::PASSWORD;
use server::{Client, Play, Stage};
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Sessions at a time.
const STAGES: usize = 48;
/// The `connect_timeout`, and what a busy machine may take on top.
const TIMEOUT: u64 = 1;
const SLACK: Duration = Duration::from_secs(15);
/// Whatever is wrong, an exchange is over by then.
const EXCHANGE_MAX: Duration = SLACK.saturating_add(Duration::from_secs(3 * TIMEOUT));

/// What came of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything was believed: the session opened, and the stream ended in good order.
    Believed,
    /// So far the stream was believed, and then came this.
    Refused(String),
}

/// How many there were since the first call; those of tasks that nobody joins, too.
fn panics() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
    });
    PANICS.load(Ordering::Relaxed)
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
    let before = panics();
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
                let outcome = open(client, &folder, number);
                let outcome = tokio::time::timeout(EXCHANGE_MAX, outcome).await;
                let outcome = outcome.unwrap_or_else(|_| panic!("{client:?} hangs: {play:?}"));
                if let Outcome::Refused(text) = &outcome {
                    assert!(!text.contains(PASSWORD), "{play:?}: {text}");
                    assert!(text.len() > 30 && text.len() < 4_000, "{play:?}: {text}");
                }
                assert!(started.elapsed() < EXCHANGE_MAX, "{play:?}");
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
    assert_eq!(panics(), before, "a task has panicked");
    all
}

/// All in a soak, otherwise `most` of them by lot.
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
