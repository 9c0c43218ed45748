//! What proving costs: how fast a large table is compared, how late a cut makes changes, and how
//! much slower the apply is while something is compared.
//!
//! ```text
//!  comparing  `verify` of one table ◀─ in turns ─▶ count and hash of its text by hand, on both sides at once
//!  cuts       a writer at a rate, comparisons one after the other ─▶ how late changes were, at most
//!  beside     a writer followed ◀─ in turns ─▶ the same while the daemon compares as often as it may
//! ```

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pglockstep::demo::cluster::Cluster;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio_postgres::Client;

use crate::arguments::Arguments;
use crate::contender::{Contender, Running, holds, is_in_step};
use crate::daemon::{Daemon, Sections};
use crate::ground::{DATABASE, Ground, Sentinel};
use crate::processes::resident_mib_max;
use crate::report::Results;
use crate::workload::{Step, thousands};

pub const NAME: &str = "proving";

/// Transactions a second while cuts are made.
const RATE: u32 = 5_000;
const CLIENTS: u32 = 8;
const RATED_SECONDS: u32 = 30;

/// What it is written into, every ten seconds at most; then it rests nineteen times as long as that took.
const COMPARES_OFTEN: &str = "every = \"10s\"\n[[tables]]\nsource = \"public.hit\"\n\
     [[tables]]\nsource = \"public.sentinel\"";

/// Rows are being read: what is at the source by now is in the cut, and all that comes is not.
const IS_COMPARING: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() \
     AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL AND query LIKE '%\"hit\"%'";
const HAS_COMPARED: &str =
    "SELECT count(*) > 0 FROM pglockstep.proofs WHERE NOT counts_only AND source_table = 'hit'";

const TABLES: &str = "CREATE TABLE compared (id bigint PRIMARY KEY, kind int NOT NULL, amount numeric(12, 2), \
     name text, made timestamptz, is_open boolean, ratio float8); \
     CREATE TABLE hit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int NOT NULL)";

/// What was measured; medians are made later.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Proving {
    pub rows: u64,
    /// Seconds, each by hand and by `verify`.
    pub by_hand: Vec<f64>,
    pub by_verify: Vec<f64>,
    pub daemon_mib_max: f64,
    pub cuts: Option<Cuts>,
    /// Seconds until a writer's changes are there, alone and while the daemon compares.
    pub changes: u64,
    pub alone: Vec<f64>,
    pub beside: Vec<f64>,
}

/// How late changes were while a writer kept its rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cuts {
    pub rate: f64,
    pub made: u64,
    pub mean_ms: f64,
    /// Of the histogram's buckets the first that has them all, in milliseconds.
    pub within_ms: f64,
}

pub async fn measure(arguments: &Arguments, results: &mut Results) -> Result<()> {
    println!("\n{NAME}: what it costs to compare");
    let rows = arguments.size().of(10_000_000);
    let mut ground = Ground::start(arguments).await?;
    ground.make_tables(TABLES, "").await?;
    let seed = format!(
        "INSERT INTO compared SELECT i, i % 1000, (i % 99991) / 7.0, 'row number ' || i, \
         '2024-01-01 00:00+00'::timestamptz + i * interval '1 second', i % 3 = 0, i / 3.0 \
         FROM generate_series(1, {rows}) AS i"
    );
    // Compared in a second or so: with the rest after it that is as long as a writer is followed.
    let part = rows / 6;
    let hit = format!("INSERT INTO hit (n) SELECT 0 FROM generate_series(1, {part})");
    ground.take(&[Step::Sql(seed), Step::Sql(hit)]).await?;
    let port = free_port()?;
    let sections = Sections {
        http: &format!("listen = \"127.0.0.1:{port}\""),
        ..Sections::default()
    };
    let mut running = Running::Daemon(Daemon::spawn(&ground, Contender::Ours, &sections)?);
    let (source, replica) = (
        ground.source.connect(DATABASE).await?,
        ground.replica.connect(DATABASE).await?,
    );
    let fact = async || is_in_step(Contender::Ours, &source, &replica).await;
    running.wait_until("the first copy", fact).await?;
    for cluster in [&ground.source, &ground.replica] {
        cluster.execute(DATABASE, "VACUUM (ANALYZE)").await?;
    }
    let Running::Daemon(daemon) = running else {
        bail!("a daemon was started");
    };
    let mut proving = Proving {
        rows: u64::from(rows),
        ..Proving::default()
    };
    compare(&ground, &daemon, arguments, &mut proving).await?;
    proving.daemon_mib_max = resident_mib_max(daemon.id()).unwrap_or_default();
    proving.cuts = Some(cuts(&ground, &daemon, port, arguments).await?);
    daemon.terminate()?;
    drop((source, replica));
    beside(&mut ground, arguments, &mut proving).await?;
    results.proving = Some(proving);
    Ok(())
}

async fn compare(
    ground: &Ground,
    daemon: &Daemon,
    arguments: &Arguments,
    proving: &mut Proving,
) -> Result<()> {
    for pair in 0..arguments.pairs {
        let mut turns = [true, false];
        if pair % 2 == 1 {
            turns.reverse();
        }
        for is_by_hand in turns {
            let begun = Instant::now();
            if is_by_hand {
                let both = (hash(&ground.source), hash(&ground.replica));
                tokio::try_join!(both.0, both.1)?;
            } else {
                verify(daemon, &["public.compared"])
                    .await?
                    .wait_with_output()
                    .await
                    .map(in_sync)??;
            }
            let seconds = begun.elapsed().as_secs_f64();
            let (name, list) = match is_by_hand {
                true => ("by hand", &mut proving.by_hand),
                false => ("verify", &mut proving.by_verify),
            };
            println!(
                "  {} {name:<8} {seconds:>7.2} s for {} rows",
                pair + 1,
                thousands(proving.rows)
            );
            list.push(seconds);
        }
    }
    Ok(())
}

async fn hash(cluster: &Cluster) -> Result<()> {
    let client = cluster.connect(DATABASE).await?;
    let plain = "SET max_parallel_workers_per_gather = 0";
    client.batch_execute(plain).await?;
    let sql = "SELECT count(*), sum(hashtext(t::text)) FROM compared AS t";
    client.query_one(sql, &[]).await?;
    Ok(())
}

/// The verb, beside the daemon.
async fn verify(daemon: &Daemon, words: &[&str]) -> Result<Child> {
    Command::new(env!("CARGO_BIN_EXE_pglockstep"))
        .arg("--config")
        .arg(daemon.config())
        .arg("verify")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting `pglockstep verify`")
}

fn in_sync(output: Output) -> Result<()> {
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "`pglockstep verify`: {said}");
    Ok(())
}

async fn cuts(ground: &Ground, daemon: &Daemon, port: u16, arguments: &Arguments) -> Result<Cuts> {
    let seconds = if arguments.smoke { 2 } else { RATED_SECONDS };
    let source = ground.source.connect(DATABASE).await?;
    let hits = async || -> Result<i64> {
        let row = source.query_one("SELECT count(*) FROM hit", &[]).await?;
        Ok(row.get(0))
    };
    let hits_before = hits().await?;
    let before = Held::read(port)?;
    let begun = Instant::now();
    let mut writer = write_at_rate(&ground.source, seconds)?;
    let mut failed = 0;
    while writer.try_wait()?.is_none() {
        let output = verify(daemon, &["--counts", "public.hit"])
            .await?
            .wait_with_output()
            .await?;
        failed += u32::from(!output.status.success());
    }
    let elapsed = begun.elapsed().as_secs_f64();
    ensure!(writer.wait().await?.success(), "pgbench failed");
    let written = hits().await? - hits_before;
    let after = Held::read(port)?;
    let made = after.count - before.count;
    ensure!(
        made > 0 && failed == 0,
        "{failed} comparisons failed, {made} cuts were made"
    );
    #[allow(clippy::cast_precision_loss)]
    let cuts = Cuts {
        rate: written as f64 / elapsed,
        made,
        mean_ms: (after.sum - before.sum) * 1000.0 / made as f64,
        within_ms: after.within(&before) * 1000.0,
    };
    println!(
        "  {} cuts at {:.0} transactions/s: {:.1} ms late in the mean, all within {} ms",
        cuts.made, cuts.rate, cuts.mean_ms, cuts.within_ms
    );
    Ok(cuts)
}

fn write_at_rate(source: &Cluster, seconds: u32) -> Result<Child> {
    let script = source.socket_dir().join("hit.sql");
    std::fs::write(&script, "INSERT INTO hit (n) VALUES (1);\n")?;
    let beside = source.installation().bin.join("pgbench");
    let program = match beside.is_file() {
        true => beside,
        false => PathBuf::from("pgbench"),
    };
    Command::new(program)
        .arg("-h")
        .arg(source.socket_dir())
        .args(["-p", &source.port().to_string(), "-U", "postgres", "-n"])
        .args(["-c", &CLIENTS.to_string(), "-R", &RATE.to_string()])
        .args(["-T", &seconds.to_string(), "-M", "prepared", "-f"])
        .arg(script)
        .arg(DATABASE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting pgbench")
}

/// `pglockstep_cut_held_seconds`.
struct Held {
    /// Bound and how many within it, in order.
    buckets: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

impl Held {
    fn read(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the daemon's metrics")?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let name = "pglockstep_cut_held_seconds";
        let number = |line: &str| {
            line.rsplit_once(' ')
                .and_then(|(_, n)| n.parse::<f64>().ok())
        };
        let one = |suffix: &str| {
            let begin = format!("{name}_{suffix} ");
            let line = text.lines().find(|line| line.starts_with(&begin));
            line.and_then(number)
                .with_context(|| format!("{name}_{suffix}"))
        };
        let bucket = |line: &str| {
            let bound = line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?;
            let bound = bound.split_once('"')?.0.parse().unwrap_or(f64::INFINITY);
            Some((bound, whole(number(line)?)))
        };
        Ok(Self {
            buckets: text.lines().filter_map(bucket).collect(),
            sum: one("sum")?,
            count: whole(one("count")?),
        })
    }

    /// The bound that nothing since `before` was beyond.
    fn within(&self, before: &Self) -> f64 {
        let all = self.count - before.count;
        let pairs = self.buckets.iter().zip(&before.buckets);
        let mut has_all = pairs.filter(|(now, then)| now.1 - then.1 >= all);
        has_all.next().map_or(f64::INFINITY, |(now, _)| now.0)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: f64) -> u64 {
    number as u64
}

async fn beside(ground: &mut Ground, arguments: &Arguments, proving: &mut Proving) -> Result<()> {
    let transactions = arguments.size().of(240_000);
    ground.put_aside().await?;
    proving.changes = u64::from(transactions) * 25;
    for pair in 0..arguments.pairs {
        let mut turns = [false, true];
        if pair % 2 == 1 {
            turns.reverse();
        }
        for compares in turns {
            ground.restore().await?;
            let seconds = follow(ground, transactions, compares).await?;
            let (name, list) = match compares {
                false => ("alone", &mut proving.alone),
                true => ("beside", &mut proving.beside),
            };
            println!(
                "  {} {name:<8} {seconds:>7.2} s for {} changes",
                pair + 1,
                thousands(proving.changes)
            );
            list.push(seconds);
        }
    }
    Ok(())
}

/// A writer that never waits, until all of it is on the replica.
async fn follow(ground: &Ground, transactions: u32, compares: bool) -> Result<f64> {
    let (source, replica) = (
        ground.source.connect(DATABASE).await?,
        ground.replica.connect(DATABASE).await?,
    );
    let sections = match compares {
        true => Sections {
            verify: COMPARES_OFTEN,
            ..Sections::default()
        },
        false => Sections::default(),
    };
    let daemon = Daemon::spawn(ground, Contender::Ours, &sections)?;
    let mut running = Running::Daemon(daemon);
    let fact = async || is_in_step(Contender::Ours, &source, &replica).await;
    running.wait_until("the stream", fact).await?;
    if compares {
        let fact = async || {
            Ok(holds(&source, IS_COMPARING).await? || holds(&replica, HAS_COMPARED).await?)
        };
        running.wait_until("a comparison", fact).await?;
    }
    let begun = Instant::now();
    let steps = [Step::Sql(format!(
        "DO $do$ BEGIN FOR t IN 1..{transactions} LOOP \
         INSERT INTO hit (n) SELECT generate_series(1, 25); COMMIT; END LOOP; END $do$"
    ))];
    ground.take(&steps).await?;
    let backlog = ground.end_backlog().await?;
    let sentinel = Sentinel::of(&replica, "sentinel").await?;
    let fact = async || Ok(sentinel.value().await? == Some(backlog.sentinel));
    running.wait_until("the last change", fact).await?;
    let seconds = begun.elapsed().as_secs_f64();
    if compares {
        let fact = async || holds(&replica, HAS_COMPARED).await;
        running.wait_until("what was found", fact).await?;
        tell_turns(&replica).await?;
    }
    ground.must_equal(&ground.expected_tables().await?).await?;
    if let Running::Daemon(daemon) = running {
        daemon.terminate()?;
    }
    Ok(seconds)
}

/// What the daemon has compared by itself.
async fn tell_turns(replica: &Client) -> Result<()> {
    let sql = "SELECT source_table, count(*), sum(seconds), bool_and(in_sync) FROM pglockstep.proofs \
               WHERE NOT counts_only AND source_table = 'hit' GROUP BY 1";
    let rows = replica.query(sql, &[]).await?;
    for row in rows {
        let (table, times, seconds): (String, i64, f64) = (row.get(0), row.get(1), row.get(2));
        ensure!(row.get::<_, bool>(3), "{table} is not in sync");
        println!("    {table} compared {times} times, {seconds:.2} s");
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
