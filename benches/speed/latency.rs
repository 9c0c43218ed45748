//! End-to-end latency: from a row's stamp on the source to its first sight on the replica.
//!
//! ```text
//!  writer ─ INSERT … clock_timestamp() ─▶ source ─▶ contender ─▶ replica ◀─ SELECT max(id), again and again ─ reader
//! ```
//!
//! One machine, one clock. The reader is a thread of its own and the same for both; how often it
//! looks bounds how fine the figures are. It sees rows in the order in which they were written.
//!
//! Two rates: a low one on an idle machine, and 70 % of what a subscription can carry *here*, with
//! writer and reader on the same processors: its rate on a backlog would be more than the
//! machine has room for beside a writer, and everybody's queue would only grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use crate::arguments::Arguments;
use crate::contender::{Contender, Running, is_in_step, make_subscription};
use crate::ground::{DATABASE, Ground, Sentinel};
use crate::report::{LatencySample, Results};

pub const NAME: &str = "latency";

const TABLE: &str = "CREATE TABLE stamped (id bigint PRIMARY KEY, stamp timestamptz NOT NULL)";
const LOW_RATE: u32 = 50;
/// As a part of what a subscription can carry.
const HIGH_PART: f64 = 0.7;
const LOOK_EVERY_LOW: Duration = Duration::from_micros(100);
/// Looking costs processor time, which is scarce then.
const LOOK_EVERY_HIGH: Duration = Duration::from_millis(1);
/// The source's log is flushed this often while a writer does not wait for it.
const SOURCE_FLUSHES: &str = "5ms";

pub async fn measure(arguments: &Arguments, results: &mut Results) -> Result<()> {
    println!("\n{NAME}: from a row's stamp on the source to its sight on the replica");
    let mut ground = Ground::start(arguments).await?;
    prepare(&mut ground, arguments).await?;
    let seconds = if arguments.smoke { 1 } else { 10 };
    let carried = saturation(&mut ground, arguments).await?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let high_rate = ((carried * HIGH_PART) as u32).max(LOW_RATE);
    println!("  native carries {carried:.0} one-row transactions a second beside their writer");
    for pair in 0..arguments.pairs {
        let mut contenders = vec![Contender::Native, Contender::Ours];
        contenders.retain(|contender| arguments.wants(*contender));
        if pair % 2 == 1 {
            contenders.reverse();
        }
        for contender in contenders {
            for (load, rate) in [("low", LOW_RATE), ("high", high_rate)] {
                ground.restore().await?;
                let (source, replica) = connect(&ground).await?;
                let running = start(&ground, contender, &source, &replica).await?;
                let written = follow(&ground, load, rate, seconds).await;
                let mut sample = written.with_context(|| contender.name())?;
                sample.contender = contender;
                sample.pair = pair;
                ground.must_equal(&ground.expected_tables().await?).await?;
                if let Running::Daemon(daemon) = running {
                    daemon.terminate()?;
                }
                sample.print();
                results.latencies.push(sample);
            }
        }
    }
    Ok(())
}

async fn prepare(ground: &mut Ground, arguments: &Arguments) -> Result<()> {
    ground.make_tables(TABLE, "").await?;
    for (name, value) in [
        ("wal_writer_delay", SOURCE_FLUSHES),
        ("wal_writer_flush_after", "0"),
    ] {
        ground.source.alter_system(name, value).await?;
    }
    let (source, replica) = connect(ground).await?;
    let mut running = Running::begin(ground, Contender::Ours, "").await?;
    let fact = async || is_in_step(Contender::Ours, &source, &replica).await;
    running.wait_until("the first copy", fact).await?;
    if let Running::Daemon(daemon) = running {
        daemon.terminate()?;
    }
    make_subscription(ground, arguments.native_streaming()).await?;
    ground.put_aside().await
}

async fn connect(ground: &Ground) -> Result<(Client, Client)> {
    Ok((
        ground.source.connect(DATABASE).await?,
        ground.replica.connect(DATABASE).await?,
    ))
}

/// Until a change comes through.
async fn start(
    ground: &Ground,
    contender: Contender,
    source: &Client,
    replica: &Client,
) -> Result<Running> {
    let mut running = Running::begin(ground, contender, "").await?;
    let change = "UPDATE sentinel SET n = n + 1";
    source.batch_execute(change).await?;
    let last = Sentinel::of(source, "sentinel").await?.value().await?;
    let sentinel = Sentinel::of(replica, "sentinel").await?;
    let fact = async || Ok(sentinel.value().await? == last);
    running.wait_until("a first change", fact).await?;
    // What a start leaves to do is done then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(running)
}

/// How many one-row transactions a second a subscription carries from a writer that never waits.
async fn saturation(ground: &mut Ground, arguments: &Arguments) -> Result<f64> {
    let count = arguments.size().of(300_000);
    ground.restore().await?;
    let (source, replica) = connect(ground).await?;
    let mut running = start(ground, Contender::Native, &source, &replica).await?;
    let begun = Instant::now();
    source.batch_execute("SET synchronous_commit = off").await?;
    source
        .batch_execute(&format!(
            "DO $do$ BEGIN FOR i IN 1..{count} LOOP INSERT INTO stamped VALUES (i, clock_timestamp()); \
             COMMIT; END LOOP; END $do$"
        ))
        .await?;
    let fact = async || Ok(newest(&replica).await? == i64::from(count));
    running.wait_until("the last row", fact).await?;
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Writes at a rate for some seconds; the latencies of all rows.
async fn follow(ground: &Ground, load: &str, rate: u32, seconds: u32) -> Result<LatencySample> {
    let count = rate * seconds;
    let writer = ground.source.connect(DATABASE).await?;
    let done = Arc::new(AtomicBool::new(false));
    let look_every = match rate {
        LOW_RATE => LOOK_EVERY_LOW,
        _ => LOOK_EVERY_HIGH,
    };
    let reader = std::thread::spawn({
        let url = ground.replica.url(DATABASE);
        let done = Arc::clone(&done);
        move || read(&url, i64::from(count), look_every, &done)
    });
    let begun = Instant::now();
    let written = if rate == LOW_RATE {
        write_slowly(&writer, rate, count).await
    } else {
        write_fast(&writer, rate, count).await
    };
    let elapsed = begun.elapsed().as_secs_f64();
    if written.is_err() {
        done.store(true, Ordering::Relaxed);
    }
    let sights = tokio::task::spawn_blocking(move || reader.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    written.context("writing on the source")?;
    let sights = sights.context("reading on the replica")?;
    let mut latencies = latencies(&writer, &sights).await?;
    ensure!(
        latencies.len() == usize::try_from(count)?,
        "{} rows of {count} were seen",
        latencies.len()
    );
    latencies.sort_by(f64::total_cmp);
    let quantile = |part: usize| latencies[(latencies.len() - 1) * part / 100];
    Ok(LatencySample {
        load: load.to_owned(),
        contender: Contender::Native,
        pair: 0,
        rate_wanted: rate,
        rate: f64::from(count) / elapsed,
        p50_ms: quantile(50),
        p99_ms: quantile(99),
    })
}

/// Each row as a client's own transaction, which waits for the source's disk.
async fn write_slowly(writer: &Client, rate: u32, count: u32) -> Result<()> {
    let insert = writer
        .prepare("INSERT INTO stamped VALUES ($1, clock_timestamp())")
        .await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    for id in 1..=i64::from(count) {
        ticks.tick().await;
        writer.execute(&insert, &[&id]).await?;
    }
    Ok(())
}

/// Each row a transaction, those of two milliseconds at once; nothing waits for a client's messages.
async fn write_fast(writer: &Client, rate: u32, count: u32) -> Result<()> {
    writer.batch_execute("SET synchronous_commit = off").await?;
    let block = format!(
        "DO $do$ DECLARE begun timestamptz := clock_timestamp(); i int := 0; due int; BEGIN \
         WHILE i < {count} LOOP \
           due := least({count}, (extract(epoch FROM clock_timestamp() - begun) * {rate})::int); \
           WHILE i < due LOOP \
             i := i + 1; INSERT INTO stamped VALUES (i, clock_timestamp()); COMMIT; \
           END LOOP; \
           PERFORM pg_sleep(0.002); \
         END LOOP; END $do$"
    );
    Ok(writer.batch_execute(&block).await?)
}

/// When which row was the newest that could be seen.
struct Sight {
    at_us: i64,
    id: i64,
}

/// Looks until the last row is there.
fn read(url: &str, last: i64, every: Duration, done: &AtomicBool) -> Result<Vec<Sight>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let look = client
            .prepare("SELECT coalesce(max(id), 0) FROM stamped")
            .await?;
        let mut sights: Vec<Sight> = Vec::new();
        while sights.last().is_none_or(|sight| sight.id < last) {
            ensure!(!done.load(Ordering::Relaxed), "the writer failed");
            let id = client.query_one(&look, &[]).await?.get(0);
            if sights.last().is_none_or(|sight| sight.id < id) {
                let at = SystemTime::now().duration_since(UNIX_EPOCH)?;
                let at_us = i64::try_from(at.as_micros())?;
                sights.push(Sight { at_us, id });
            }
            // Finer than the runtime's own clock; nothing else is to be done on this thread.
            std::thread::sleep(every);
        }
        Ok(sights)
    })
}

/// In milliseconds.
async fn latencies(source: &Client, sights: &[Sight]) -> Result<Vec<f64>> {
    let read = "SELECT id, (extract(epoch FROM stamp) * 1000000)::bigint FROM stamped ORDER BY id";
    let mut sights = sights.iter().peekable();
    let mut latencies = Vec::new();
    for row in source.query(read, &[]).await? {
        let (id, stamp_us): (i64, i64) = (row.get(0), row.get(1));
        while sights.peek().is_some_and(|sight| sight.id < id) {
            sights.next();
        }
        if let Some(sight) = sights.peek() {
            #[allow(clippy::cast_precision_loss)]
            latencies.push((sight.at_us - stamp_us) as f64 / 1000.0);
        }
    }
    Ok(latencies)
}

async fn newest(replica: &Client) -> Result<i64> {
    let read = "SELECT coalesce(max(id), 0) FROM stamped";
    Ok(replica.query_one(read, &[]).await?.get(0))
}
