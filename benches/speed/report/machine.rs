//! Where and with what was measured.

use std::process::Command;

use anyhow::Result;
use pglockstep::demo::cluster::Cluster;

/// Date, versions, processors, memory.
pub async fn describe(cluster: &Cluster) -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_default();
    let client = cluster.connect("postgres").await?;
    let ask = "SELECT current_date::text, current_setting('server_version')";
    let row = client.query_one(ask, &[]).await?;
    let (today, version): (String, String) = (row.get(0), row.get(1));
    Ok(format!(
        "{today}, pglockstep {} ({}), PostgreSQL {version} on both sides, {cores} cores of {model}, {} GiB",
        env!("CARGO_PKG_VERSION"),
        revision(),
        kib >> 20,
    ))
}

fn revision() -> String {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
