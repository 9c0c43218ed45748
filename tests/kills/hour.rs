//! A fault every few seconds, of every kind, one upon the other: what a month brings, in an hour.
//!
//! `cargo test` runs it for 25 s, `PGLOCKSTEP_SOAK=1` for an hour, `PGLOCKSTEP_HOUR_SECONDS=600` for ten
//! minutes. In between all is
//! healed, the load rests, and both sides are compared row by row.

use std::time::Duration;

use pglockstep::demo::cluster::{Cluster, ClusterError, StopMode};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::error::SqlState;

use super::load::Load;
use super::oracle::{self, Oracle};
use super::watch::{Readers, Watcher};
use super::{Ground, as_follower, tables};
use crate::faults::proxy::{Line, Proxy};
use crate::support::{DATABASE, Daemon, Random, is_soak, seed};

const FAULT_EVERY: Duration = Duration::from_secs(5);
/// A source that stops is let go after 15 s without a move.
const HELD_UP_MAX: Duration = Duration::from_secs(30);
/// Rows are counted by readers and a history is kept in memory: both begin anew.
const ROUND_SECONDS_MAX: u64 = 240;
/// Silence is noticed soon: holes of a few seconds are then worse than slow.
const IMPATIENT: &str = "connect_timeout=2&tcp_user_timeout=2000";

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillDaemon,
    FreezeDaemon,
    StopSource(StopMode),
    KillSource,
    StopReplica(StopMode),
    KillReplica,
    Reset(Link),
    HalfOpen(Link),
    Hole(Link),
    PoorLine(Link),
    Terminate(Link),
    LockTables,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Source,
    Replica,
}

const FAULTS: [Fault; 19] = [
    Fault::KillDaemon,
    Fault::KillDaemon,
    Fault::FreezeDaemon,
    Fault::StopSource(StopMode::Fast),
    Fault::StopSource(StopMode::Immediate),
    Fault::KillSource,
    Fault::StopReplica(StopMode::Fast),
    Fault::StopReplica(StopMode::Immediate),
    Fault::KillReplica,
    Fault::Reset(Link::Source),
    Fault::Reset(Link::Replica),
    Fault::HalfOpen(Link::Source),
    Fault::HalfOpen(Link::Replica),
    Fault::Hole(Link::Source),
    Fault::Hole(Link::Replica),
    Fault::PoorLine(Link::Source),
    Fault::PoorLine(Link::Replica),
    Fault::Terminate(Link::Source),
    Fault::Terminate(Link::Replica),
];

/// The servers, the lines to them, and the daemon.
struct Field {
    ground: Ground,
    source: Proxy,
    replica: Proxy,
    daemon: Daemon,
}

#[derive(Debug, Default)]
struct Figures {
    faults: u64,
    transactions: u64,
    prefixes: usize,
    positions: u64,
    statements: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_keep_coming() {
    let wanted = std::env::var("PGLOCKSTEP_HOUR_SECONDS");
    let default = if is_soak() { 3_600 } else { 25 };
    let mut left: u64 = wanted.map_or(default, |seconds| seconds.parse().unwrap());
    let total = left;
    let seed = seed();
    eprintln!("a fault every {FAULT_EVERY:?} for {total} s, PGLOCKSTEP_SEED={seed}");
    let mut random = Random::new(seed);
    let mut field = Field::new(seed).await;
    let mut figures = Figures::default();
    while left > 0 {
        let now = left.min(ROUND_SECONDS_MAX);
        field.round(now, &mut random, &mut figures).await;
        left -= now;
        eprintln!("{} of {total} s: {figures:?}: equal", total - left);
    }
    assert!(figures.faults > 0 && figures.prefixes > 0 && figures.positions > 0);
    assert!(figures.statements > 0);
    assert!(field.daemon.terminate().success());
}

impl Field {
    async fn new(seed: u64) -> Self {
        let mut ground = Ground::new().await;
        let source = Proxy::start(ground.pair.source.port(), seed).await;
        let replica = Proxy::start(ground.pair.replica.port(), seed + 1).await;
        ground.begin_anew("").await;
        let urls = (
            ground.pair.source.url(DATABASE),
            ground.pair.replica.url(DATABASE),
        );
        let by = (
            source.url(DATABASE, IMPATIENT),
            replica.url(DATABASE, IMPATIENT),
        );
        let config = ground
            .config
            .replace(&as_follower(&urls.0), &as_follower(&by.0));
        ground.config = config.replace(&urls.1, &by.1);
        let daemon = Daemon::start(&ground.config);
        Self {
            ground,
            source,
            replica,
            daemon,
        }
    }

    async fn round(&mut self, seconds: u64, random: &mut Random, figures: &mut Figures) {
        self.ground.until_streaming(&self.daemon).await;
        // Numbers begin anew where nobody looks.
        self.ground
            .pair
            .on_source("TRUNCATE journal, bulk; UPDATE counters SET n = 0")
            .await;
        self.ground.catch_up(&self.daemon).await;
        let urls = (
            self.ground.pair.source.url(DATABASE),
            self.ground.pair.replica.url(DATABASE),
        );
        let (source, _) = self.ground.pair.clients().await;
        let oracle = Oracle::start(&source).await;
        let load = Load::start(&urls.0, random);
        let readers = Readers::start(&urls.1);
        let watcher = Watcher::start(&urls.0, &urls.1);
        let ends = Instant::now() + Duration::from_secs(seconds);
        let mut next = Instant::now() + FAULT_EVERY / 2;
        while next < ends {
            sleep_until(next).await;
            next += FAULT_EVERY;
            let at = usize::try_from(random.below(20)).unwrap();
            let fault = FAULTS.get(at).copied().unwrap_or(Fault::LockTables);
            eprintln!("{fault:?}");
            self.strike(fault, random).await;
            figures.faults += 1;
        }
        figures.transactions += load.stop().await;
        for proxy in [&self.source, &self.replica] {
            proxy.heal();
            proxy.line(Line::default());
        }
        self.ground.until_streaming(&self.daemon).await;
        self.ground.catch_up(&self.daemon).await;
        let looks = readers.stop().await;
        figures.positions += watcher.stop().await;
        let (source, _) = self.ground.pair.clients().await;
        let history = oracle.prefixes(&source).await;
        for seen in &looks {
            oracle::check(&history, seen);
            figures.prefixes += seen.len();
        }
        for table in tables::COMPARED {
            self.ground.compare(table, &self.daemon).await;
        }
        figures.statements += self.ground.expect_reads();
    }

    async fn strike(&mut self, fault: Fault, random: &mut Random) {
        let pair = &mut self.ground.pair;
        match fault {
            Fault::KillDaemon => {
                self.daemon.kill9();
                self.daemon = Daemon::start(&self.ground.config);
            }
            Fault::FreezeDaemon => {
                self.daemon.signal(Signal::STOP);
                random.pause(500, 6_000).await;
                self.daemon.signal(Signal::CONT);
            }
            Fault::StopSource(mode) => {
                stop_source(&mut pair.source, mode, &self.daemon).await;
                random.pause(0, 2_000).await;
                pair.source.restart().await.unwrap();
            }
            Fault::KillSource => {
                pair.source.kill9();
                pair.source.restart().await.unwrap();
            }
            Fault::StopReplica(mode) => {
                pair.replica.stop(mode).await.unwrap();
                random.pause(0, 2_000).await;
                pair.replica.restart().await.unwrap();
            }
            Fault::KillReplica => {
                pair.replica.kill9();
                pair.replica.restart().await.unwrap();
            }
            Fault::Reset(link) => self.proxy(link).reset(),
            Fault::HalfOpen(link) => self.proxy(link).half_open(),
            Fault::Hole(link) => {
                self.proxy(link).black_hole();
                random.pause(500, 6_000).await;
                self.proxy(link).heal();
            }
            Fault::PoorLine(link) => {
                self.proxy(link).line(Line {
                    latency: Duration::from_millis(150),
                    bits_per_second: Some(256_000),
                    loss_percent: 1,
                    ..Line::default()
                });
                sleep(FAULT_EVERY).await;
                self.proxy(link).line(Line::default());
            }
            Fault::Terminate(link) => {
                let cluster = match link {
                    Link::Source => &pair.source,
                    Link::Replica => &pair.replica,
                };
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name LIKE 'pglockstep%'";
                cluster.execute(DATABASE, sql).await.unwrap();
            }
            Fault::LockTables => {
                let sql = "BEGIN; LOCK TABLE accounts, counters IN SHARE MODE; \
                           SELECT pg_sleep(3); COMMIT";
                // Where each waits for the other the server chooses who gives way: that is a fault too.
                match pair.replica.execute(DATABASE, sql).await {
                    Err(ClusterError::Sql { source, .. })
                        if source.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                    done => done.unwrap(),
                }
            }
        }
        assert!(
            self.daemon.exit_status().is_none(),
            "the daemon has ended by itself:\n{}",
            self.daemon.stderr()
        );
    }

    fn proxy(&self, link: Link) -> &Proxy {
        match link {
            Link::Source => &self.source,
            Link::Replica => &self.replica,
        }
    }
}

/// There may be much that it waits for. While that moves, it may be killed in the end instead.
async fn stop_source(source: &mut Cluster, mode: StopMode, daemon: &Daemon) {
    let (mut durable, mut moved_at) = (None, Instant::now());
    let mut stop = std::pin::pin!(source.stop(mode));
    let stopped = loop {
        tokio::select! {
            stopped = &mut stop => break stopped,
            () = sleep(Duration::from_secs(1)) => {
                let now = daemon.metric("pglockstep_flushed_lsn").await;
                if now != durable {
                    (durable, moved_at) = (now, Instant::now());
                }
            }
        }
    };
    if let Err(error) = stopped {
        let stands = moved_at.elapsed();
        let said = daemon.stderr();
        assert!(
            stands < HELD_UP_MAX,
            "{error}: {durable:?} for {stands:?}\n{said}"
        );
    }
}
