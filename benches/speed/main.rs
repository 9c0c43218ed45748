//! Speed, latency and memory beside PostgreSQL's own `CREATE SUBSCRIPTION`: `make bench`.
//!
//! Two throw-away clusters on this machine for each work, made ready once and put back before
//! every run. A pair is one run by a subscription and one by pglockstep, in an order that turns
//! round from one pair to the next:
//!
//! ```text
//!  workload  a backlog gathers ─▶ put aside ─┬▶ restored ─▶ subscription enabled … last change visible
//!                                            ├▶ restored ─▶ daemon spawned      … last change visible
//!                                            └▶ restored ─▶ walsender into nothing: the ceiling
//!  first_copy  tables with rows ─▶ from nothing until all are in step
//!  latency     a writer at a low and at a high rate ─▶ how long until each row is seen
//!  proving     a comparison's speed, how late a cut makes changes, what it costs the apply
//!  ways        each way to write rows, by rows of a statement and columns; no contenders
//! ```
//!
//! After each run both sides must hold the same rows, by a hash over all of them: a fast wrong
//! answer ends everything. `make bench ARGS="--help"` tells the arguments.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod arguments;
mod contender;
mod daemon;
mod drain;
mod first_copy;
mod folders;
mod ground;
mod latency;
mod null_sink;
mod processes;
mod proving;
mod report;
mod ways;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use arguments::Arguments;
use report::Results;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this as well, without the word.
    if !std::env::args().any(|word| word == "--bench") {
        return ExitCode::SUCCESS;
    }
    let Err(error) = Arguments::read().and_then(|arguments| interruptible(&arguments)) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("make bench: {error:#}");
    ExitCode::FAILURE
}

/// What is dropped takes its servers and folders with it.
fn interruptible(arguments: &Arguments) -> Result<()> {
    // A second thread would have its part of the processors that are measured.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::select! {
            done = Box::pin(run(arguments)) => done,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bail!("interrupted")
            }
        }
    })
}

async fn run(arguments: &Arguments) -> Result<()> {
    let workloads = workload::all(arguments.size());
    let copies = first_copy::all(arguments.size());
    let mut names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
    names.extend(copies.iter().map(|copy| copy.name));
    names.push(latency::NAME);
    names.push(proving::NAME);
    names.push(ways::NAME);
    if arguments.list {
        println!("{}", names.join("\n"));
        return Ok(());
    }
    for name in &arguments.only {
        ensure!(
            names.contains(&name.as_str()),
            "nothing is called {name}; there are {}",
            names.join(", ")
        );
    }
    let is_wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|n| n == name);
    let wanted: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| is_wanted(name))
        .collect();

    let mut results = Results::begin(arguments, &wanted)?;
    results.describe_machine(arguments).await?;
    println!("{}", results.machine);
    for workload in workloads.iter().filter(|workload| is_wanted(workload.name)) {
        let measured = drain::measure(workload, arguments, &mut results).await;
        measured.with_context(|| workload.name)?;
        results.write()?;
    }
    for copy in copies.iter().filter(|copy| is_wanted(copy.name)) {
        let measured = first_copy::measure(copy, arguments, &mut results).await;
        measured.with_context(|| copy.name)?;
        results.write()?;
    }
    if is_wanted(latency::NAME) {
        let measured = latency::measure(arguments, &mut results).await;
        measured.context(latency::NAME)?;
        results.write()?;
    }
    if is_wanted(proving::NAME) {
        let measured = Box::pin(proving::measure(arguments, &mut results)).await;
        measured.context(proving::NAME)?;
        results.write()?;
    }
    if is_wanted(ways::NAME) {
        let measured = ways::measure(arguments, &mut results).await;
        measured.context(ways::NAME)?;
    }
    results.sort(&names);
    results.write()?;
    println!("\n{}", results.markdown());
    println!("written to {}", results.folder().display());
    if arguments.consumer.is_none() {
        results.must_be_written(&wanted)?;
    }
    Ok(())
}
