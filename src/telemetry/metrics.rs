//! The registry, and the counters and histograms that only ever add up.
//!
//! Gauges that mirror a fact are in `facts.rs` and `table.rs`. Names, labels and meanings
//! are an interface: dashboards and alert rules are written against them.

use super::facts::{Facts, FactsCollector};
use super::labels::{ErrorCategory, Severity, StreamedOutcome};
use super::proof::ProofCollector;
use super::table::{TableCollector, Tables};
use crate::pg::Side;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;

/// From a commit nobody notices to one that stalls everybody.
const BATCH_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// From a slot that is made at once to a repair that takes all the time it may.
const CUT_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// From a local network's round trip to a backlog of an hour.
const END_TO_END_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 900.0, 3600.0,
];

pub(super) struct Metrics {
    registry: Registry,
    pub(super) transactions_applied: IntCounter,
    pub(super) apply_batch_seconds: Histogram,
    pub(super) end_to_end_seconds: Histogram,
    pub(super) cut_held_seconds: Histogram,
    pub(super) source_write_attempts: IntCounter,
    streamed: IntCounterVec,
    errors: IntCounterVec,
    reconnects: IntCounterVec,
}

impl Metrics {
    /// Registers everything on a registry of its own, so that several pipelines can live
    /// in one process.
    pub(super) fn register(facts: Arc<Facts>, tables: Tables) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            transactions_applied: add(
                &registry,
                IntCounter::new(
                    "pglockstep_transactions_applied_total",
                    "Transactions of the source that are durable on the replica.",
                )?,
            )?,
            apply_batch_seconds: histogram(
                &registry,
                "pglockstep_apply_batch_seconds",
                "Time from a batch's first statement to its commit.",
                BATCH_SECONDS,
            )?,
            end_to_end_seconds: histogram(
                &registry,
                "pglockstep_end_to_end_seconds",
                "Time from a commit on the source to the same on the replica.",
                END_TO_END_SECONDS,
            )?,
            cut_held_seconds: histogram(
                &registry,
                "pglockstep_cut_held_seconds",
                "Longest time that a transaction was kept for a comparison's or a repair's cut.",
                CUT_SECONDS,
            )?,
            source_write_attempts: add(
                &registry,
                IntCounter::new(
                    "pglockstep_source_write_attempts_total",
                    "Statements that tried to write to the source; stays 0.",
                )?,
            )?,
            streamed: counters(
                &registry,
                "pglockstep_streamed_transactions_total",
                "Transactions written to the replica while they ran, by what became of that.",
                &["outcome"],
            )?,
            errors: counters(
                &registry,
                "pglockstep_errors_total",
                "Errors met, retried ones included.",
                &["category", "severity"],
            )?,
            reconnects: counters(
                &registry,
                "pglockstep_reconnects_total",
                "Sessions made again after a break.",
                &["side"],
            )?,
            registry,
        };
        // Series that exist from the start: the first increment shows as a rate.
        for category in ErrorCategory::ALL {
            for severity in Severity::ALL {
                metrics.error_counter(*category, *severity);
            }
        }
        for outcome in StreamedOutcome::ALL {
            metrics.streamed_counter(*outcome);
        }
        for side in [Side::Source, Side::Replica] {
            metrics.reconnect_counter(side);
        }
        metrics
            .registry
            .register(Box::new(FactsCollector::new(facts)?))?;
        metrics
            .registry
            .register(Box::new(ProofCollector::new(tables.clone())?))?;
        metrics
            .registry
            .register(Box::new(TableCollector::new(tables)?))?;
        metrics.register_process()?;
        Ok(metrics)
    }

    /// The process itself, under Prometheus' customary names, and the build.
    fn register_process(&self) -> prometheus::Result<()> {
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            self.registry.register(Box::new(process))?;
        }
        let build = IntGaugeVec::new(
            Opts::new("pglockstep_build_info", "1; the labels say what runs."),
            &["version", "revision"],
        )?;
        build
            .with_label_values(&[super::VERSION, super::REVISION])
            .set(1);
        self.registry.register(Box::new(build))
    }

    pub(super) fn error_counter(&self, category: ErrorCategory, severity: Severity) -> IntCounter {
        self.errors
            .with_label_values(&[category.as_str(), severity.as_str()])
    }

    pub(super) fn streamed_counter(&self, outcome: StreamedOutcome) -> IntCounter {
        self.streamed.with_label_values(&[outcome.as_str()])
    }

    pub(super) fn reconnect_counter(&self, side: Side) -> IntCounter {
        let side = match side {
            Side::Source => "source",
            Side::Replica => "replica",
        };
        self.reconnects.with_label_values(&[side])
    }

    /// Text format 0.0.4.
    pub(super) fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    add(registry, Histogram::with_opts(options)?)
}

/// One counter for each combination of the labels' values.
fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
