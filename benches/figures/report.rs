//! What was measured, as lines while it runs and as a table at the end.

use std::fmt::Write as _;
use std::process::Command;

use crate::consumer::Kind;
use crate::ground::Ground;

/// One consumer doing one piece of work once.
#[derive(Clone, Debug)]
pub struct Sample {
    pub what: &'static str,
    pub kind: Kind,
    pub seconds: f64,
    /// Processor time of the source's walsender.
    pub walsender_seconds: f64,
    /// Processor time of whoever writes on the replica's server.
    pub writer_seconds: f64,
    pub daemon_seconds: f64,
    pub daemon_mib_max: Option<f64>,
}

impl Sample {
    pub fn print(&self) {
        let memory = self.daemon_mib_max.map_or(String::new(), |mib| {
            format!(", at most {mib:.1} MiB resident")
        });
        println!(
            "{:<8} {:<28} {:>7.2} s   (processor s: walsender {:.2}, replica {:.2}, daemon {:.2}{memory})",
            self.what,
            self.kind.name(),
            self.seconds,
            self.walsender_seconds,
            self.writer_seconds,
            self.daemon_seconds,
        );
    }
}

/// Medians, and the daemon's time as a part of each subscription's.
pub fn table(samples: &[Sample]) -> String {
    let mut text = String::from(
        "| work | native, text | native, binary | pglockstep | times as fast as text | as binary | memory |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for what in ["copy", "backlog", "large"] {
        let of = |kind: Kind| median(samples, what, kind, |s| Some(s.seconds));
        let (Some(text_s), Some(binary_s), Some(ours_s)) = (
            of(Kind::NativeText),
            of(Kind::NativeBinary),
            of(Kind::Pglockstep),
        ) else {
            continue;
        };
        let mib = median(samples, what, Kind::Pglockstep, |s| s.daemon_mib_max);
        let _ = writeln!(
            text,
            "| {what} | {text_s:.2} s | {binary_s:.2} s | {ours_s:.2} s | {:.2} | {:.2} | {:.0} MiB |",
            text_s / ours_s,
            binary_s / ours_s,
            mib.unwrap_or_default(),
        );
    }
    text
}

fn median(
    samples: &[Sample],
    what: &str,
    kind: Kind,
    figure: impl Fn(&Sample) -> Option<f64>,
) -> Option<f64> {
    let mut figures: Vec<f64> = samples
        .iter()
        .filter(|sample| sample.what == what && sample.kind == kind)
        .filter_map(figure)
        .collect();
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some((figures[low] + figures[high]) / 2.0)
}

/// Where and with what this was measured.
pub async fn machine(ground: &Ground) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_default();
    let client = ground.source.connect("postgres").await.unwrap();
    let version: String = client
        .query_one("SHOW server_version", &[])
        .await
        .unwrap()
        .get(0);
    let today: String = client
        .query_one("SELECT current_date::text", &[])
        .await
        .unwrap()
        .get(0);
    format!(
        "{today}, pglockstep {} ({}), PostgreSQL {version}, {cores} cores of {model}, {} GiB",
        env!("CARGO_PKG_VERSION"),
        revision(),
        kib >> 20,
    )
}

fn revision() -> String {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
