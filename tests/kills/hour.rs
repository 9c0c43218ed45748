//! A fault every few seconds, of every kind, one upon the other: what a month brings, in an hour.
//! Two daemons run: one leads, the other stands by.
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
use super::{Ground, Turn, as_follower, tables};
use crate::faults::proxy::{Line, Proxy};
use crate::support::{DATABASE, Daemon, Random, beside, eventually, evidence, is_soak, seed};

const FAULT_EVERY: Duration = Duration::from_secs(5);
/// A source that stops is let go after 15 s without a move.
const HELD_UP_MAX: Duration = Duration::from_secs(30);
/// Rows are counted by readers and a history is kept in memory: both begin anew.
const ROUND_SECONDS_MAX: u64 = 240;
/// Silence is noticed soon: holes of a few seconds are then worse than slow.
const IMPATIENT: &str = "connect_timeout=2&tcp_user_timeout=2000";

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillLeader,
    KillOther,
    FreezeLeader,
    /// The replica believes it dead, and the other takes over; then it wakes.
    LoseLeader,
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

const FAULTS: [Fault; 20] = [
    Fault::KillLeader,
    Fault::KillOther,
    Fault::FreezeLeader,
    Fault::LoseLeader,
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

/// The servers, the lines to them, and the daemons.
struct Field {
    ground: Ground,
    source: Proxy,
    replica: Proxy,
    configs: [String; 2],
    daemons: [Daemon; 2],
    /// Which of them led when it was last looked.
    led: usize,
}

#[derive(Debug, Default)]
struct Figures {
    faults: u64,
    successions: u64,
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
    for daemon in &mut field.daemons {
        assert!(daemon.terminate().success());
    }
}

impl Field {
    async fn new(seed: u64) -> Self {
        let mut ground = Ground::new().await;
        let source = Proxy::start(ground.pair.source.port(), seed).await;
        let replica = Proxy::start(ground.pair.replica.port(), seed + 1).await;
        ground.begin_anew(Turn::default()).await;
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
        let configs = [ground.config.clone(), beside(&ground.config)];
        Self {
            ground,
            source,
            replica,
            daemons: configs.each_ref().map(|config| Daemon::start(config)),
            configs,
            led: 0,
        }
    }

    async fn round(&mut self, seconds: u64, random: &mut Random, figures: &mut Figures) {
        self.until_one_leads().await;
        // Numbers begin anew where nobody looks.
        self.ground.pair.on_source(tables::FORGET).await;
        self.ground.catch_up(&self.daemons[self.led]).await.unwrap();
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
            let at = usize::try_from(random.below(21)).unwrap();
            let fault = FAULTS.get(at).copied().unwrap_or(Fault::LockTables);
            figures.successions += u64::from(self.look_who_leads().await);
            eprintln!("{fault:?}");
            self.strike(fault, random).await;
            figures.faults += 1;
        }
        figures.transactions += load.stop().await;
        for proxy in [&self.source, &self.replica] {
            proxy.heal();
            proxy.line(Line::default());
        }
        self.until_one_leads().await;
        self.ground.catch_up(&self.daemons[self.led]).await.unwrap();
        let looks = readers.stop().await;
        figures.positions += watcher.stop().await;
        let (source, _) = self.ground.pair.clients().await;
        let history = oracle.prefixes(&source).await;
        for seen in &looks {
            oracle::check(&history, seen);
            figures.prefixes += seen.len();
        }
        for table in tables::COMPARED {
            self.ground.compare(table, &self.daemons[self.led]).await;
        }
        figures.statements += self.ground.expect_reads();
    }

    async fn strike(&mut self, fault: Fault, random: &mut Random) {
        let pair = &mut self.ground.pair;
        match fault {
            Fault::KillLeader | Fault::KillOther => {
                let at = if matches!(fault, Fault::KillLeader) {
                    self.led
                } else {
                    1 - self.led
                };
                self.daemons[at].kill9();
                random.pause(0, 3_000).await;
                self.daemons[at] = Daemon::start(&self.configs[at]);
            }
            Fault::FreezeLeader | Fault::LoseLeader => {
                self.daemons[self.led].signal(Signal::STOP);
                if matches!(fault, Fault::LoseLeader) {
                    let sql = "SELECT pg_terminate_backend(pid) FROM pg_locks \
                               WHERE locktype = 'advisory' AND granted";
                    pair.replica.execute(DATABASE, sql).await.unwrap();
                }
                random.pause(500, 6_000).await;
                self.daemons[self.led].signal(Signal::CONT);
            }
            Fault::StopSource(mode) => {
                stop_source(&mut pair.source, mode, &self.daemons).await;
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
        for daemon in &mut self.daemons {
            let ended = daemon.exit_status();
            let said = daemon.stderr();
            assert!(
                ended.is_none(),
                "the daemon has ended by itself: {ended:?}\n{said}"
            );
        }
    }

    /// Whether it is another one than before. While nobody does, it counts as before.
    async fn look_who_leads(&mut self) -> bool {
        let leads = |at: usize| self.daemons[at].metric("pglockstep_state{state=\"streaming\"}");
        let (is_led, other) = (leads(self.led).await, leads(1 - self.led).await);
        let has_changed = is_led != Some(1.0) && other == Some(1.0);
        if has_changed {
            self.led = 1 - self.led;
        }
        has_changed
    }

    /// One streams, and the other stands by.
    async fn until_one_leads(&mut self) {
        let state = |at: usize, state: &str| {
            let sample = format!("pglockstep_state{{state=\"{state}\"}}");
            let daemon = &self.daemons[at];
            async move { daemon.metric(&sample).await == Some(1.0) }
        };
        let evidence = || {
            let of = |daemon| evidence(&self.ground.pair, daemon);
            self.daemons.each_ref().map(of).join("\n")
        };
        self.led = eventually("one daemon to lead", evidence, async || {
            for at in [0, 1] {
                if state(at, "streaming").await && state(1 - at, "standby").await {
                    return Some(at);
                }
            }
            None
        })
        .await;
    }

    fn proxy(&self, link: Link) -> &Proxy {
        match link {
            Link::Source => &self.source,
            Link::Replica => &self.replica,
        }
    }
}

/// There may be much that it waits for. While that moves, it may be killed in the end instead.
async fn stop_source(source: &mut Cluster, mode: StopMode, daemons: &[Daemon; 2]) {
    let (mut durable, mut moved_at) = ([None; 2], Instant::now());
    let mut stop = std::pin::pin!(source.stop(mode));
    let stopped = loop {
        tokio::select! {
            stopped = &mut stop => break stopped,
            () = sleep(Duration::from_secs(1)) => {
                let flushed = |at: usize| daemons[at].metric("pglockstep_flushed_lsn");
                let now = [flushed(0).await, flushed(1).await];
                if now != durable {
                    (durable, moved_at) = (now, Instant::now());
                }
            }
        }
    };
    if let Err(error) = stopped {
        let stands = moved_at.elapsed();
        let said = daemons.each_ref().map(Daemon::stderr).join("\n");
        assert!(
            stands < HELD_UP_MAX,
            "{error}: {durable:?} for {stands:?}\n{said}"
        );
    }
}
