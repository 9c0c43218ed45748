//! What was measured, as lines while it runs, and as a table, JSON and a plot.

mod machine;
mod svg;
mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use serde::{Deserialize, Serialize};

use crate::arguments::Arguments;
use crate::contender::Contender;
use crate::null_sink::Mode;
use crate::processes::Busiest;
use crate::proving::Proving;
use crate::ways::{PositionSample, WaySample};

const JSON: &str = "bench.json";
const MARKDOWN: &str = "bench.md";
const SVG: &str = "bench.svg";

/// Everything; what `bench.json` holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub machine: String,
    pub works: Vec<Work>,
    pub samples: Vec<Sample>,
    pub latencies: Vec<LatencySample>,
    #[serde(default)]
    pub proving: Option<Proving>,
    #[serde(default)]
    pub ways: Vec<WaySample>,
    #[serde(default)]
    pub positions: Vec<PositionSample>,
    /// Where this is written to.
    #[serde(skip)]
    folder: PathBuf,
}

/// A piece of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    pub name: String,
    pub title: String,
    pub at_least: Option<f64>,
    pub changes: u64,
    /// The walsender alone, in seconds.
    pub ceilings: BTreeMap<Mode, Vec<f64>>,
}

/// One contender doing one piece of work once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub work: String,
    pub contender: Contender,
    pub pair: usize,
    /// Rows, for a copy.
    pub changes: u64,
    pub seconds: f64,
    /// Processor time of the source's server.
    pub source_seconds: f64,
    /// Processor time of the replica's server.
    pub replica_seconds: f64,
    pub daemon_seconds: Option<f64>,
    /// What of that the kernel has computed.
    #[serde(default)]
    pub daemon_system_seconds: Option<f64>,
    pub daemon_mib_max: Option<f64>,
    pub replica_wal_mib: f64,
    #[serde(default)]
    pub source_busiest: Option<Busiest>,
    #[serde(default)]
    pub replica_busiest: Option<Busiest>,
}

/// One contender following a writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LatencySample {
    pub load: String,
    pub contender: Contender,
    pub pair: usize,
    pub rate_wanted: u32,
    /// Transactions a second that the writer came to.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Sample {
    pub fn print(&self) {
        let daemon = match (self.daemon_seconds, self.daemon_mib_max) {
            (Some(seconds), Some(mib)) => {
                format!(", daemon {seconds:.2}; at most {mib:.1} MiB resident")
            }
            _ => String::new(),
        };
        println!(
            "  {} {:<18} {:>7.2} s   (processor s: source {:.2}, replica {:.2}{daemon}; replica's log {:.0} MiB)",
            self.pair + 1,
            self.contender.name(),
            self.seconds,
            self.source_seconds,
            self.replica_seconds,
            self.replica_wal_mib,
        );
    }
}

impl LatencySample {
    pub fn print(&self) {
        println!(
            "  {} {:<18} {:>6.0} of {} transactions/s: p50 {:.2} ms, p99 {:.2} ms",
            self.pair + 1,
            self.contender.name(),
            self.rate,
            self.rate_wanted,
            self.p50_ms,
            self.p99_ms,
        );
    }
}

impl Results {
    /// Nothing yet; with `--add` what an earlier run has of works that are not measured now.
    pub fn begin(arguments: &Arguments, measured: &[&str]) -> Result<Self> {
        let folder = if arguments.smoke {
            "target/bench-smoke"
        } else {
            "target/bench"
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut results = match arguments.add && folder.join(JSON).exists() {
            true => Self::read(&folder)?,
            false => Self::default(),
        };
        let is_kept = |name: &str| !measured.contains(&name);
        results.works.retain(|work| is_kept(&work.name));
        results.samples.retain(|sample| is_kept(&sample.work));
        if !is_kept(crate::latency::NAME) {
            results.latencies.clear();
        }
        if !is_kept(crate::proving::NAME) {
            results.proving = None;
        }
        if !is_kept(crate::ways::NAME) {
            results.ways.clear();
            results.positions.clear();
        }
        results.folder = folder;
        Ok(results)
    }

    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(JSON);
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("{} cannot be read", path.display()))
    }

    /// An error unless the files hold a figure of each kind.
    pub fn must_be_written(&self, measured: &[&str]) -> Result<()> {
        let read = Self::read(&self.folder)?;
        for name in measured {
            let has = read.samples.iter().any(|sample| sample.work == *name)
                || *name == crate::latency::NAME && !read.latencies.is_empty()
                || *name == crate::proving::NAME && read.proving.is_some()
                || *name == crate::ways::NAME
                    && !read.ways.is_empty()
                    && !read.positions.is_empty();
            ensure!(has, "{JSON} has nothing of {name}");
        }
        let size = |name: &str| std::fs::metadata(self.folder.join(name)).map(|file| file.len());
        ensure!(size(MARKDOWN)? > 0 && size(SVG)? > 0, "an empty file");
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// In the order of `names`, whatever came first.
    pub fn sort(&mut self, names: &[&str]) {
        let place = |work: &Work| names.iter().position(|name| *name == work.name);
        self.works.sort_by_key(place);
    }

    pub async fn describe_machine(&mut self, arguments: &Arguments) -> Result<()> {
        let cluster = Cluster::start(ClusterOptions::version(arguments.major)).await?;
        self.machine = machine::describe(&cluster).await?;
        Ok(())
    }

    pub fn markdown(&self) -> String {
        format!("{}\n\n{}", self.machine, tables::all(self))
    }

    /// Writes `bench.json`, `bench.md` and `bench.svg`.
    pub fn write(&self) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        for (name, content) in [
            (JSON, json),
            (MARKDOWN, self.markdown()),
            (SVG, svg::plot(self)),
        ] {
            let path = self.folder.join(name);
            std::fs::write(&path, content)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// The median over the pairs.
    fn median(
        &self,
        work: &str,
        contender: Contender,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        let samples = self.samples.iter();
        let of = samples.filter(|sample| sample.work == work && sample.contender == contender);
        median(of.filter_map(figure).collect())
    }

    fn seconds(&self, work: &str, contender: Contender) -> Option<f64> {
        self.median(work, contender, |sample| Some(sample.seconds))
    }

    /// How many times as fast as the subscription.
    fn ratio(&self, work: &str, contender: Contender) -> Option<f64> {
        let native = self.seconds(work, Contender::Native)?;
        Some(native / self.seconds(work, contender)?)
    }

    /// What nobody who reads one slot can pass, in the same measure.
    fn ceiling_ratio(&self, work: &Work) -> Option<f64> {
        let native = self.seconds(&work.name, Contender::Native)?;
        Some(native / work.ceiling()?)
    }
}

impl Work {
    /// The walsender's best way, in seconds.
    fn ceiling(&self) -> Option<f64> {
        let medians = self.ceilings.values().cloned().filter_map(median);
        medians.min_by(f64::total_cmp)
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some((figures[low] + figures[high]) / 2.0)
}
