//! A deterministic simulation of the pipeline: no sockets, no clock; a seed replays it.
//!
//! ```text
//!  history ─▶ walsender ─▶ receiver ─▶ Follower ─▶ Writer ─▶ replica: visible, durable
//!  (random)    bytes        Decoder     InHand       net effect, stages     │
//!     ▲                                                                     │
//!     └── slot ◀──────── feedback ◀── Positions ◀───────────────────────────┘
//! ```
//!
//! The source's and the replica's servers are models; decoder, follower, batches, net effect,
//! positions, durability and `resume_position` are the real ones. The daemon dies between any two awaits,
//! freezes while another takes over, and wakes; servers crash, lose commits that were not durable, also while those
//! are being flushed, drop connections with a COMMIT under way; a stranger moves the slot or deletes a row.
//!
//! After every commit, crash and status (`world.rs`): the replica shows the source's rows at
//! the commit its position says; the slot has confirmed no more than is durable; what is durable
//! only grows; at the end both sides are equal. `PGLOCKSTEP_SEED=n` replays one seed,
//! `PGLOCKSTEP_SEEDS=n` runs so many, `PGLOCKSTEP_SOAK=1` twenty minutes of them.

mod aside;
mod bugs;
mod daemon;
mod effects;
mod history;
mod long;
mod replica;
mod source;
pub(super) mod tables;
mod world;

use super::PipelineError;
use crate::apply::model::Taken;
use crate::apply::{ChangesMax, Settings};
use crate::faults::random::{Random, is_soak, seed};
use crate::pg::{Disposition, Lsn};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tables::{PAIRS, Plan};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use world::{Shared, World};

/// Transactions of a run, beside the first few.
const TRANSACTIONS: usize = 30;
/// Far beyond what catching up takes, by the simulated clock.
const CALM: Duration = Duration::from_secs(120);
const SECONDS: u64 = 15;
const SOAK_SECONDS: u64 = 1_200;

type Life = Pin<Box<dyn Future<Output = Result<(), PipelineError>>>>;

/// What a run came to, so that nobody takes an idle simulation for a good one.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    seeds: u64,
    commits: u64,
    flushes: u64,
    parts: u64,
    source_order: u64,
    resolving: u64,
    killed: u64,
    frozen: u64,
    failed: u64,
    gaps_refused: u64,
    streamed: u64,
    undone: u64,
    whole: u64,
}

impl Report {
    fn add(&mut self, mut other: Self) {
        other.seeds = 1;
        for (sum, more) in self.counts().into_iter().zip(other.counts()) {
            *sum += *more;
        }
    }

    /// All of them; with one left out this does not compile.
    fn counts(&mut self) -> [&mut u64; size_of::<Self>() / size_of::<u64>()] {
        [
            &mut self.seeds,
            &mut self.commits,
            &mut self.flushes,
            &mut self.parts,
            &mut self.source_order,
            &mut self.resolving,
            &mut self.killed,
            &mut self.frozen,
            &mut self.failed,
            &mut self.gaps_refused,
            &mut self.streamed,
            &mut self.undone,
            &mut self.whole,
        ]
    }
}

/// One run, as its seed has it.
fn simulate(plan: &Rc<Plan>, seed: u64) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let run = || local.block_on(&runtime, Simulation::new(plan, seed).run());
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!(
            "panic: {}",
            text.or(panic.downcast_ref::<&str>().copied())
                .unwrap_or("?")
        ))
    })
}

struct Simulation {
    world: Shared,
    plan: Rc<Plan>,
    random: Random,
    settings: Settings,
    report: Report,
    frozen: Option<Life>,
    /// Where the slot was before a stranger moved it.
    moved_from: Option<Lsn>,
}

impl Simulation {
    fn new(plan: &Rc<Plan>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let world = World::new(&mut random);
        let settings = Settings {
            batch_changes_max: ChangesMax::Exactly([2, 5, 12, 100][random.below(4)]),
            batch_bytes_max: [400, 2_000, 1 << 20][random.below(3)],
            memory_max: 1 << 20,
            ..Settings::default()
        };
        Self {
            world,
            plan: Rc::clone(plan),
            random,
            settings,
            report: Report::default(),
            frozen: None,
            moved_from: None,
        }
    }

    async fn run(mut self) -> Result<Report, String> {
        let load = tokio::task::spawn_local(load(self.world.clone(), self.random.branch()));
        let faults = tokio::task::spawn_local(faults(self.world.clone(), self.random.branch()));
        while !load.is_finished() && self.world.broken().is_none() {
            self.one_life().await;
        }
        faults.abort();
        self.world.replica.borrow_mut().is_up = true;
        self.world.replica.borrow_mut().fails_once_in = 0;
        if self.world.broken().is_none() {
            self.end_well().await;
        }
        let replica = self.world.replica.borrow();
        self.report.commits = replica.commits;
        self.report.flushes = replica.flushes;
        self.report.parts = replica.parts;
        self.report.streamed = replica.streamed;
        self.report.undone = replica.undone;
        self.report.source_order = replica.ways.get(&Taken::SourceOrder).copied().unwrap_or(0);
        self.report.resolving = replica.ways.get(&Taken::Resolving).copied().unwrap_or(0);
        match self.world.broken() {
            Some(what) => Err(what),
            None => Ok(self.report),
        }
    }

    fn begin(&self, shutdown: &CancellationToken) -> Life {
        Box::pin(daemon::live(
            self.world.clone(),
            Rc::clone(&self.plan),
            self.settings,
            shutdown.clone(),
        ))
    }

    /// From a start to an end of whatever kind.
    async fn one_life(&mut self) {
        let mut life = self.begin(&CancellationToken::new());
        if self.frozen.is_some() {
            // The other one sleeps on for a while, and then finds somebody in its place.
            let polls = self.random.below(60);
            if let Some(ended) = self.drive(&mut life, polls, false).await {
                return self.ended(ended).await;
            }
        }
        let polls = match self.random.below(3) {
            0 => usize::MAX,
            _ => self.random.below(300),
        };
        let ended = self.drive(&mut life, polls, true).await;
        self.frozen = None;
        match ended {
            Some(ended) => self.ended(ended).await,
            None if self.random.once_in(4) => {
                self.report.frozen += 1;
                self.frozen = Some(life);
            }
            None => {
                self.report.killed += 1;
                drop(life);
                self.stranger();
            }
        }
        let pause = self.random.below(300) as u64;
        sleep(Duration::from_millis(pause)).await;
    }

    /// Polls a life so many times, or for a while; `None` when it goes on.
    async fn drive(
        &mut self,
        life: &mut Life,
        polls: usize,
        is_frozen_awake: bool,
    ) -> Option<Result<(), PipelineError>> {
        let most = Duration::from_millis(200 + self.random.below(20_000) as u64);
        let (mut left, frozen, world) = (polls, &mut self.frozen, &self.world);
        let polled = poll_fn(|context| {
            if let Some(other) = frozen.as_mut().filter(|_| is_frozen_awake)
                && other.as_mut().poll(context).is_ready()
            {
                *frozen = None;
            }
            match life.as_mut().poll(context) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if left == 0 || world.broken().is_some() => Poll::Ready(None),
                Poll::Pending => {
                    left -= 1;
                    Poll::Pending
                }
            }
        });
        timeout(most, polled).await.ok().flatten()
    }

    async fn ended(&mut self, ended: Result<(), PipelineError>) {
        let Err(error) = ended else {
            return self.world.fail("it ended without being told to".to_owned());
        };
        self.report.failed += 1;
        if matches!(error, PipelineError::TakeWhole(_)) {
            self.report.whole += 1;
            self.world.take_whole(self.random.below(3));
        }
        if error.disposition() == Disposition::Definite {
            match self.moved_from.take() {
                Some(before) => {
                    self.report.gaps_refused += 1;
                    self.world.source.borrow_mut().confirmed = before;
                }
                None => self.world.fail(format!("it gave up: {error:?}")),
            }
        }
        let pause = 20 + self.random.below(400) as u64;
        sleep(Duration::from_millis(pause)).await;
    }

    /// While nobody runs: somebody uses the slot, or deletes a row of the replica.
    fn stranger(&mut self) {
        if self.moved_from.is_none() && self.random.once_in(8) {
            let mut source = self.world.source.borrow_mut();
            let end = source.history.wal_end();
            if end > self.world.replica.borrow().visible.applied {
                self.moved_from = Some(std::mem::replace(&mut source.confirmed, end));
            }
        }
        if self.random.once_in(4) {
            let copied_at = self.world.copied_at(PAIRS);
            let mut replica = self.world.replica.borrow_mut();
            replica.take_row_away(PAIRS, copied_at);
        }
    }

    /// With nothing more in the way it catches up, and ends when told to.
    async fn end_well(&mut self) {
        self.frozen = None;
        let deadline = tokio::time::Instant::now() + CALM;
        let wanted = |world: &World| {
            let last = world
                .source
                .borrow()
                .history
                .transactions
                .last()
                .unwrap()
                .end_lsn;
            world.replica.borrow().visible.applied >= last
        };
        while !wanted(&self.world) && self.world.broken().is_none() {
            if tokio::time::Instant::now() > deadline {
                return self.world.fail("it does not catch up".to_owned());
            }
            let shutdown = CancellationToken::new();
            let mut life = self.begin(&shutdown);
            let waited = timeout(CALM, async {
                loop {
                    tokio::select! {
                        ended = &mut life => return Some(ended),
                        () = sleep(Duration::from_millis(100)) => {
                            if wanted(&self.world) || self.world.broken().is_some() {
                                return None;
                            }
                        }
                    }
                }
            })
            .await;
            match waited {
                Ok(Some(ended)) => self.ended(ended).await,
                Ok(None) => {
                    shutdown.cancel();
                    if let Err(error) = life.await {
                        self.world.fail(format!("it does not end well: {error:?}"));
                    }
                }
                Err(_) => self.world.fail("it does not catch up".to_owned()),
            }
        }
        self.world.check();
    }
}

/// The source's work: alone, close together, with pauses.
async fn load(world: Shared, mut random: Random) {
    for _ in 0..TRANSACTIONS {
        let pause = match random.below(6) {
            0 => random.below(15_000),
            1..=2 => random.below(300),
            _ => 0,
        };
        sleep(Duration::from_millis(pause as u64)).await;
        let mut source = world.source.borrow_mut();
        for _ in 0..random.below(4) {
            source.history.go_on();
        }
        source.history.commit();
        if random.once_in(4) {
            source.history.write_other();
        }
    }
    world.source.borrow_mut().history.end_all();
}

/// What befalls the servers.
async fn faults(world: Shared, mut random: Random) {
    loop {
        sleep(Duration::from_millis(100 + random.below(6_000) as u64)).await;
        match random.below(3) {
            0 => {
                world.crash_replica();
                sleep(Duration::from_millis(random.below(800) as u64)).await;
                world.replica.borrow_mut().is_up = true;
            }
            1 => world.source.borrow_mut().restart(),
            _ => world.source.borrow_mut().history.write_other(),
        }
    }
}

#[test]
fn whatever_happens_the_replica_is_at_a_commit_of_the_source() {
    if let Some(seed) = seed() {
        let report = simulate(&Rc::new(Plan::new()), seed)
            .unwrap_or_else(|what| panic!("PGLOCKSTEP_SEED={seed}: {what}"));
        eprintln!("PGLOCKSTEP_SEED={seed}: {report:?}");
        return;
    }
    let started = Instant::now();
    let seconds = if is_soak() { SOAK_SECONDS } else { SECONDS };
    let first = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() << 20;
    let most = std::env::var("PGLOCKSTEP_SEEDS").ok();
    let most: Option<u64> = most.map(|n| n.parse().unwrap());
    let mut all = Report::default();
    let plan = Rc::new(Plan::new());
    let goes_on = |seeds| match most {
        Some(most) => seeds < most,
        None => started.elapsed() < Duration::from_secs(seconds),
    };
    while goes_on(all.seeds) {
        let seed = first + all.seeds;
        match simulate(&plan, seed) {
            Ok(report) => all.add(report),
            Err(what) => panic!("PGLOCKSTEP_SEED={seed}: {what}"),
        }
    }
    eprintln!("seeds from {first}: {all:?}");
    let is_tested = all.counts().iter().all(|n| **n > 0);
    assert!(is_tested, "nothing was tested: {all:?}");
}

#[test]
fn a_seed_replays() {
    let plan = Rc::new(Plan::new());
    let shown = |seed| format!("{:?}", simulate(&plan, seed));
    for seed in 1..20 {
        assert_eq!(shown(seed), shown(seed), "seed {seed}");
    }
}
