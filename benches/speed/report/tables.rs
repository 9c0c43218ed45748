//! Medians and ratios as Markdown.

use std::fmt::Write as _;

use super::{LatencySample, Results, Sample, Work, median};
use crate::contender::Contender;
use crate::proving::Proving;
use crate::ways::{COLUMNS, Kind, STATEMENT_ROWS, Way, WaySample};
use crate::workload::thousands;

/// Fewer changes have no rate.
const FEW: u64 = 100;

/// One of a run's.
type Figure = fn(&LatencySample) -> f64;

/// All that there are figures for.
pub fn all(results: &Results) -> String {
    let mut text = speed(results);
    text.push('\n');
    text.push_str(&costs(results));
    text.push('\n');
    text.push_str(&bounds(results));
    if !results.latencies.is_empty() {
        text.push('\n');
        text.push_str(&latency(results));
    }
    if let Some(measured) = &results.proving {
        text.push('\n');
        text.push_str(&proving(measured));
    }
    if !results.ways.is_empty() {
        text.push('\n');
        text.push_str(&ways(results));
    }
    text
}

fn speed(results: &Results) -> String {
    let mut text = String::from(
        "| work | native | pglockstep | times as fast | at least | walsender's ceiling |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for work in &results.works {
        for contender in [Contender::Ours, Contender::Mapped] {
            let Some(ours) = results.seconds(&work.name, contender) else {
                continue;
            };
            let native = results.seconds(&work.name, Contender::Native);
            let title = match contender {
                Contender::Mapped => {
                    let unmapped = results.seconds(&work.name, Contender::Ours);
                    let times = times(unmapped.map(|unmapped| ours / unmapped));
                    format!("the same by the mapping, {times} of the unmapped time")
                }
                Contender::Native | Contender::Ours => work.title.clone(),
            };
            let _ = writeln!(
                text,
                "| {title} | {} | {} | {} | {} | {} |",
                native.map_or(String::new(), |native| rated(work, native)),
                rated(work, ours),
                times(results.ratio(&work.name, contender)),
                times(work.at_least),
                times(results.ceiling_ratio(work)),
            );
        }
    }
    text
}

/// `3.21 s, 155 k/s`.
fn rated(work: &Work, seconds: f64) -> String {
    if work.changes < FEW {
        return format!("{seconds:.2} s");
    }
    #[allow(clippy::cast_precision_loss)]
    let thousands = work.changes as f64 / seconds / 1000.0;
    if thousands < 10.0 {
        format!("{seconds:.2} s, {thousands:.2} k/s")
    } else {
        format!("{seconds:.2} s, {thousands:.0} k/s")
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
}

/// Processor seconds of a million changes, memory, log.
fn costs(results: &Results) -> String {
    let mut text = String::from(
        "| work; CPU in s per million changes | daemon's CPU (at most 1.0) | of it the kernel's | source's, native / ours | replica's, native / ours \
         | daemon's memory, MiB (at most 64) | replica's log, MiB, native / ours |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for work in &results.works {
        for contender in [Contender::Ours, Contender::Mapped] {
            if results.seconds(&work.name, contender).is_none() {
                continue;
            }
            let of = |contender, figure: fn(&Sample) -> Option<f64>| {
                results.median(&work.name, contender, figure)
            };
            #[allow(clippy::cast_precision_loss)]
            let millions = work.changes as f64 / 1e6;
            // Of a single change it says nothing.
            let each = |figure: Option<f64>| {
                let figure = figure.filter(|_| work.changes >= FEW);
                figure.map(|seconds| seconds / millions)
            };
            let both = |figure: fn(&Sample) -> Option<f64>| {
                let native = each(of(Contender::Native, figure));
                format!("{} / {}", times(native), times(each(of(contender, figure))))
            };
            let log = |contender| {
                of(contender, |s| Some(s.replica_wal_mib)).map(|mib| format!("{mib:.0}"))
            };
            let _ = writeln!(
                text,
                "| {}{} | {} | {} | {} | {} | {:.0} | {} / {} |",
                work.name,
                if contender == Contender::Mapped {
                    ", mapped"
                } else {
                    ""
                },
                times(each(of(contender, |s| s.daemon_seconds))),
                times(each(of(contender, |s| s.daemon_system_seconds))),
                both(|s| Some(s.source_seconds)),
                both(|s| Some(s.replica_seconds)),
                of(contender, |s| s.daemon_mib_max).unwrap_or_default(),
                log(Contender::Native).unwrap_or_default(),
                log(contender).unwrap_or_default(),
            );
        }
    }
    text
}

/// Who computes all the time, and who waits for a processor: what bounds a work.
fn bounds(results: &Results) -> String {
    let mut text = String::from(
        "| work; s | takes, native / ours | the source's busiest process computes, native / ours | and waits for a processor \
         | the replica's busiest process computes, native / ours | and waits for a processor |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for work in &results.works {
        let both = |figure: fn(&Sample) -> Option<f64>| {
            let of = |contender| times(results.median(&work.name, contender, figure));
            format!("{} / {}", of(Contender::Native), of(Contender::Ours))
        };
        let computes = |s: &Sample| Some(s.source_busiest?.computed);
        if results
            .median(&work.name, Contender::Ours, computes)
            .is_none()
        {
            continue;
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            work.name,
            both(|s| Some(s.seconds)),
            both(|s| Some(s.source_busiest?.computed)),
            both(|s| Some(s.source_busiest?.queued)),
            both(|s| Some(s.replica_busiest?.computed)),
            both(|s| Some(s.replica_busiest?.queued)),
        );
    }
    text
}

fn proving(measured: &Proving) -> String {
    let of = |seconds: &[f64]| median(seconds.to_vec()).unwrap_or(f64::NAN);
    let (by_hand, by_verify) = (of(&measured.by_hand), of(&measured.by_verify));
    let (alone, beside) = (of(&measured.alone), of(&measured.beside));
    #[allow(clippy::cast_precision_loss)]
    let a_second = measured.rows as f64 / by_verify / 1e6;
    let mut text = format!(
        "| proving | measured | at most |\n\
         | --- | --- | --- |\n\
         | {} rows by `verify`, {by_verify:.2} s, {a_second:.2} million a second; `count(*), sum(hashtext(t::text))` by hand on both sides at once {by_hand:.2} s | {:.2} of it | 1.0 |\n\
         | the daemon's memory meanwhile | {:.0} MiB | 64 |\n",
        thousands(measured.rows),
        by_verify / by_hand,
        measured.daemon_mib_max,
    );
    if let Some(cuts) = &measured.cuts {
        let _ = writeln!(
            text,
            "| {} cuts at {:.0} transactions a second: the longest that one was kept, {:.0} ms in the mean | {:.0} ms | 100 |",
            cuts.made, cuts.rate, cuts.mean_ms, cuts.within_ms
        );
    }
    let _ = writeln!(
        text,
        "| {} changes written and followed, {alone:.2} s; while the daemon compares what it is written into as often as it may (`every = \"10s\"`), {beside:.2} s | {:.1} % longer | 15 % |",
        thousands(measured.changes),
        (beside / alone - 1.0) * 100.0,
    );
    text
}

fn latency(results: &Results) -> String {
    let mut text = String::from(
        "| latency | native | pglockstep | as a part of native's | at most |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (load, at_most_p50, at_most_p99) in [("low", "1.5", ""), ("high", "", "0.8")] {
        let of = |contender, figure: Figure| {
            let samples = results.latencies.iter();
            let of = samples.filter(|s| s.load == load && s.contender == contender);
            median(of.map(figure).collect())
        };
        let rates: Vec<_> = [Contender::Native, Contender::Ours]
            .into_iter()
            .filter_map(|contender| of(contender, |s| s.rate))
            .map(|rate| format!("{rate:.0}"))
            .collect();
        let figures: [(_, Figure, _); 2] = [
            ("p50", |s| s.p50_ms, at_most_p50),
            ("p99", |s| s.p99_ms, at_most_p99),
        ];
        for (quantile, figure, at_most) in figures {
            let (native, ours) = (of(Contender::Native, figure), of(Contender::Ours, figure));
            let ms = |figure: Option<f64>| figure.map_or(String::new(), |ms| format!("{ms:.2} ms"));
            let part = native.zip(ours).map(|(native, ours)| ours / native);
            let _ = writeln!(
                text,
                "| {quantile}, {load} rate, {} transactions a second | {} | {} | {} | {at_most} |",
                rates.join(" / "),
                ms(native),
                ms(ours),
                times(part),
            );
        }
    }
    text
}

/// Microseconds a row, for each number of columns.
fn ways(results: &Results) -> String {
    let widths = COLUMNS.map(|columns| columns.to_string()).join(" / ");
    let sizes = STATEMENT_ROWS.map(|rows| format!(" {rows} |")).concat();
    let mut text = format!(
        "| ways to write: microseconds a row with {widths} columns; rows of a statement: |{sizes}\n\
         | --- |{}\n",
        " --- |".repeat(STATEMENT_ROWS.len())
    );
    for kind in Kind::ALL {
        for way in kind.ways() {
            let _ = write!(text, "| {} |", named(kind, *way));
            for rows in STATEMENT_ROWS {
                let each = COLUMNS.map(|columns| {
                    let is_meant = |s: &&WaySample| {
                        (s.kind, s.way, s.columns, s.rows) == (kind, *way, columns, rows)
                    };
                    let sample = results.ways.iter().find(is_meant);
                    sample.map_or(String::new(), |s| format!("{:.1}", s.micros_each))
                });
                let _ = write!(text, " {} |", each.join(" / "));
            }
            text.push('\n');
        }
    }
    text.push_str(
        "\n| a transaction of one row and its position, kept as | microseconds |\n| --- | --- |\n",
    );
    for sample in &results.positions {
        let _ = writeln!(text, "| {} | {:.0} |", sample.kept_as, sample.micros);
    }
    text
}

fn named(kind: Kind, way: Way) -> String {
    let kind = match kind {
        Kind::Insert => "insert",
        Kind::Update => "update",
        Kind::Delete => "delete",
    };
    let way = match way {
        Way::TextArrays => "arrays of text",
        Way::BinaryArrays => "binary arrays",
        Way::RowArray => "a binary array of rows",
        Way::CopyText => "COPY, text",
        Way::CopyBinary => "COPY, binary",
        Way::Staging => "COPY into a temporary table, and from there",
    };
    format!("{kind}: {way}")
}
