//! Speed and memory beside PostgreSQL's own `CREATE SUBSCRIPTION`: `make figures`.
//!
//! Two throw-away clusters on this machine. In every round each consumer gets empty replica
//! tables and does the same work, in an order that turns round from one round to the next:
//!
//! ```text
//!  copy     pgbench scale 20, from the consumer's start until all tables are in step
//!  backlog  consumer stopped ─▶ pgbench TPC-B, 4 clients ─▶ CHECKPOINT ─▶ start … last change visible
//!  large    consumer stopped ─▶ one transaction of 1,000,000 rows ─▶ CHECKPOINT ─▶ start … visible
//! ```
//!
//! After each, both sides must hold the same rows, by a hash over all of them: a fast wrong
//! answer ends the run. Arguments: `--rounds N` (3), `--transactions N` for each pgbench
//! client (25000), `--only copy|large` to leave the rest out.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod consumer;
mod ground;
mod report;

use consumer::{Consumer, Kind};
use ground::{Ground, Work};
use report::Sample;

struct Arguments {
    rounds: usize,
    transactions: u32,
    only: Option<String>,
}

fn main() {
    // `cargo test --all-targets` runs this as well, without the word.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let arguments = arguments();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(run(&arguments));
}

fn arguments() -> Arguments {
    let words: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).cloned()
    };
    Arguments {
        rounds: after("--rounds").map_or(3, |n| n.parse().unwrap()),
        transactions: after("--transactions").map_or(25_000, |n| n.parse().unwrap()),
        only: after("--only"),
    }
}

async fn run(arguments: &Arguments) {
    let ground = Ground::start().await;
    println!("{}\n", report::machine(&ground).await);
    let mut samples = Vec::new();
    let is_wanted = |what: &str| arguments.only.as_deref().is_none_or(|only| only == what);
    for round in 0..arguments.rounds {
        let mut kinds = [Kind::NativeText, Kind::NativeBinary, Kind::Pglockstep];
        if round % 2 == 1 {
            kinds.reverse();
        }
        for kind in kinds {
            if is_wanted("copy") {
                samples.extend(pgbench(&ground, kind, arguments).await);
            }
            if is_wanted("large") {
                samples.push(large(&ground, kind).await);
            }
        }
    }
    println!("\n{}", report::table(&samples));
}

/// First copy, then a backlog of small transactions.
async fn pgbench(ground: &Ground, kind: Kind, arguments: &Arguments) -> Vec<Sample> {
    ground.make_databases(Work::Pgbench).await;
    let mut consumer = Consumer::new(ground, kind);
    let mut samples = Vec::new();
    ground.checkpoint().await;
    samples.push(consumer.first_copy("copy").await);
    ground.assert_equal(Work::Pgbench).await;
    if arguments.only.is_none() {
        consumer.stop().await;
        ground.run_pgbench(arguments.transactions);
        let sentinel = ground.write_sentinel().await;
        ground.checkpoint().await;
        samples.push(consumer.drain("backlog", sentinel).await);
        ground.assert_equal(Work::Pgbench).await;
    }
    consumer.remove().await;
    samples.iter().for_each(Sample::print);
    samples
}

/// One transaction far larger than memory is allowed to be.
async fn large(ground: &Ground, kind: Kind) -> Sample {
    ground.make_databases(Work::Wide).await;
    let mut consumer = Consumer::new(ground, kind);
    consumer.first_copy("copy of nothing").await;
    consumer.stop().await;
    let sentinel = ground.write_wide_rows().await;
    ground.checkpoint().await;
    let sample = consumer.drain("large", sentinel).await;
    ground.assert_equal(Work::Wide).await;
    consumer.remove().await;
    sample.print();
    sample
}
