//! A backlog drained once by each contender: the way most figures come about.
//!
//! ```text
//!  restore ─▶ clock starts ─▶ enable / spawn … sentinel's last value on the replica ─▶ clock stops ─▶ equal?
//! ```

use std::time::Instant;

use anyhow::{Context, Result};
use pglockstep::pg::Lsn;

use crate::arguments::Arguments;
use crate::contender::{Contender, Running, is_in_step, make_subscription};
use crate::ground::{Backlog, DATABASE, Expected, Ground, Sentinel};
use crate::null_sink;
use crate::processes::{
    Busiest, process_seconds, resident_mib_max, server_seconds, system_seconds,
};
use crate::report::{Results, Sample, Work};
use crate::workload::Workload;

/// All runs of one work.
pub async fn measure(
    workload: &Workload,
    arguments: &Arguments,
    results: &mut Results,
) -> Result<()> {
    println!("\n{}: {}", workload.name, workload.title);
    let mut ground = Ground::start(arguments).await?;
    let prepared = prepare(&mut ground, workload, arguments).await?;
    let pairs = if workload.is_once { 1 } else { arguments.pairs };

    ground.restore().await?;
    let slot = Contender::Ours.slot();
    let ceilings = null_sink::measure(&ground, slot, &prepared.backlog, pairs).await?;
    let changes = ceilings.changes;
    results.works.push(Work {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        at_least: workload.at_least,
        changes,
        ceilings: ceilings.by_mode,
    });

    for pair in 0..pairs {
        let mut contenders: Vec<_> = workload.contenders.clone();
        contenders.retain(|contender| arguments.wants(*contender));
        if pair % 2 == 1 {
            contenders.reverse();
        }
        for contender in contenders {
            ground.restore().await?;
            let run = drain(&ground, workload, contender, &prepared, pair);
            let mut sample = run.await.with_context(|| contender.name())?;
            sample.changes = changes;
            sample.print();
            results.samples.push(sample);
        }
    }
    Ok(())
}

struct Prepared {
    backlog: Backlog,
    expected: Expected,
    expected_mapped: Option<Expected>,
}

/// First copies, then slots and books of all contenders, then the backlog; both sides put aside.
async fn prepare(
    ground: &mut Ground,
    workload: &Workload,
    arguments: &Arguments,
) -> Result<Prepared> {
    let begun = Instant::now();
    let schemas = (&workload.schema, &workload.replica_schema);
    ground.make_tables(schemas.0, schemas.1).await?;
    ground.take(&workload.seed).await?;
    ground.vacuum(&ground.source).await?;
    // Also where it is not a contender: the rows have to come over.
    let ours = workload
        .contenders
        .iter()
        .filter(|c| **c != Contender::Native);
    for contender in ours {
        copy(ground, workload, *contender)
            .await
            .with_context(|| format!("first copy by {}", contender.name()))?;
    }
    if workload.contenders.contains(&Contender::Native) {
        make_subscription(ground, arguments.native_streaming()).await?;
    }
    ground.vacuum(&ground.replica).await?;
    ground.take(&workload.backlog).await?;
    let backlog = ground.end_backlog().await?;
    let expected = ground.expected_tables().await?;
    let expected_mapped = match &workload.mapping {
        Some(mapping) => Some(ground.expected(mapping.compared.clone()).await?),
        None => None,
    };
    ground.put_aside().await?;
    println!("  made ready in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(Prepared {
        backlog,
        expected,
        expected_mapped,
    })
}

/// The daemon's first start, until it streams.
async fn copy(ground: &Ground, workload: &Workload, contender: Contender) -> Result<()> {
    let source = ground.source.connect(DATABASE).await?;
    let replica = ground.replica.connect(DATABASE).await?;
    let begun = Instant::now();
    let mut running = Running::begin(ground, contender, workload.rules(contender)).await?;
    let fact = async || is_in_step(contender, &source, &replica).await;
    running.wait_until("the first copy", fact).await?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("  first start of {}: {seconds:.2} s", contender.name());
    if let Running::Daemon(daemon) = running {
        daemon.terminate()?;
    }
    Ok(())
}

async fn drain(
    ground: &Ground,
    workload: &Workload,
    contender: Contender,
    prepared: &Prepared,
    pair: usize,
) -> Result<Sample> {
    let replica = ground.replica.connect(DATABASE).await?;
    let sentinel = Sentinel::of(&replica, contender.sentinel()).await?;
    let begun = Begun::now(ground).await?;
    let mut running = Running::begin(ground, contender, workload.rules(contender)).await?;
    let last = Some(prepared.backlog.sentinel);
    let fact = async || Ok(sentinel.value().await? == last);
    running.wait_until("the last change", fact).await?;
    let sample = begun
        .sample(ground, workload.name, contender, pair, &mut running)
        .await?;

    let expected = match contender {
        Contender::Mapped => prepared.expected_mapped.as_ref(),
        Contender::Native | Contender::Ours => Some(&prepared.expected),
    };
    let expected = expected.context("a mapping says what it comes to")?;
    ground.must_equal(expected).await?;
    if let Running::Daemon(daemon) = running {
        daemon.terminate()?;
    }
    Ok(sample)
}

/// Clocks as they stood when something began.
pub struct Begun {
    source_seconds: f64,
    replica_seconds: f64,
    replica_wal: Lsn,
    at: Instant,
}

impl Begun {
    pub async fn now(ground: &Ground) -> Result<Self> {
        Ok(Self {
            replica_wal: wal(ground).await?,
            source_seconds: server_seconds(&ground.source)?,
            replica_seconds: server_seconds(&ground.replica)?,
            at: Instant::now(),
        })
    }

    /// What it has taken until now.
    pub async fn sample(
        &self,
        ground: &Ground,
        work: &str,
        contender: Contender,
        pair: usize,
        running: &mut Running,
    ) -> Result<Sample> {
        let seconds = self.at.elapsed().as_secs_f64();
        let daemon = running.daemon().map(|daemon| daemon.id());
        let wal_bytes = wal(ground).await?.as_u64() - self.replica_wal.as_u64();
        #[allow(clippy::cast_precision_loss)]
        let replica_wal_mib = wal_bytes as f64 / f64::from(1 << 20);
        Ok(Sample {
            work: work.to_owned(),
            contender,
            pair,
            changes: 0,
            seconds,
            source_seconds: server_seconds(&ground.source)? - self.source_seconds,
            replica_seconds: server_seconds(&ground.replica)? - self.replica_seconds,
            daemon_seconds: daemon.and_then(process_seconds),
            daemon_system_seconds: daemon.and_then(system_seconds),
            daemon_mib_max: daemon.and_then(resident_mib_max),
            replica_wal_mib,
            source_busiest: Busiest::of(&ground.source)?,
            replica_busiest: Busiest::of(&ground.replica)?,
        })
    }
}

async fn wal(ground: &Ground) -> Result<Lsn> {
    let replica = ground.replica.connect(DATABASE).await?;
    let read = "SELECT pg_current_wal_insert_lsn()::text";
    let row = replica.query_one(read, &[]).await?;
    row.get::<_, String>(0)
        .parse()
        .context("a position of the replica")
}
