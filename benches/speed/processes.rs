//! What the kernel knows of processes: processor time and memory.

use anyhow::{Context, Result};
use pglockstep::demo::cluster::Cluster;
use serde::{Deserialize, Serialize};

/// The kernel counts in these, on Linux everywhere.
const TICKS_PER_SECOND: f64 = 100.0;
/// Places in /proc/PID/stat, behind the name (proc_pid_stat(5)).
const USER: usize = 11;
const SYSTEM: usize = 12;

/// The process of a server that has computed the most: a walsender, a session that is written by.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Busiest {
    pub computed: f64,
    /// Ready to compute, while others had the processors.
    pub queued: f64,
}

impl Busiest {
    /// Of those that run now; nothing where the kernel does not keep count.
    pub fn of(cluster: &Cluster) -> Result<Option<Self>> {
        let all = children(cluster)?.into_iter().filter_map(Self::of_process);
        Ok(all.max_by(|a, b| a.computed.total_cmp(&b.computed)))
    }

    /// Nanoseconds on and ready for a processor (the kernel's `sched-stats`, "schedstat").
    fn of_process(id: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
        let mut seconds = text.split_whitespace().map(|n| n.parse::<f64>());
        let mut next = || Some(seconds.next()?.ok()? / 1e9);
        let busiest = Self {
            computed: next()?,
            queued: next()?,
        };
        // A kernel that keeps no count of these says 0.
        (next()? > 0.0).then_some(busiest)
    }
}

/// Processor time of a server and of all its processes, those that have ended included.
pub fn server_seconds(cluster: &Cluster) -> Result<f64> {
    let id = cluster.pid().context("the server is down")?;
    let running = children(cluster)?.into_iter().filter_map(process_seconds);
    Ok(seconds_of(id, USER, 4).unwrap_or_default() + running.sum::<f64>())
}

fn children(cluster: &Cluster) -> Result<Vec<u32>> {
    let id = cluster.pid().context("the server is down")?;
    let path = format!("/proc/{id}/task/{id}/children");
    let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ids = children.split_whitespace().map(|id| id.parse::<u32>());
    ids.collect::<Result<_, _>>().context(path)
}

/// Processor time of one process.
pub fn process_seconds(id: u32) -> Option<f64> {
    seconds_of(id, USER, 2)
}

/// What of that the kernel has computed for it.
pub fn system_seconds(id: u32) -> Option<f64> {
    seconds_of(id, SYSTEM, 1)
}

/// So many clocks from this one on: user, system, and the same of ended children; nothing of one that
/// has ended.
fn seconds_of(id: u32, first: usize, clocks: usize) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = after_name.split_whitespace().skip(first).take(clocks);
    let ticks: f64 = ticks.filter_map(|n| n.parse::<f64>().ok()).sum();
    Some(ticks / TICKS_PER_SECOND)
}

/// The most memory that a process has had resident.
pub fn resident_mib_max(id: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}
