//! Two throw-away clusters with a live workload: the main job, to look at.
//!
//! ```text
//!  source cluster ◀── workload, four connections       status page, /metrics
//!      │                                                     ▲
//!      └──▶ the daemon, in this process, as `run` runs it ───┤
//!  replica cluster ◀──┘                                      └── a line a second
//! ```
//!
//! At the end the workload stops, the replica catches up, and every table is compared row
//! by row: only then does the verdict say that they are in lockstep.

pub mod cluster;
pub mod crm;
mod screen;

use crate::config::{Config, Problem};
use crate::daemon::{self, DaemonError};
use crate::pg::Lsn;
use crate::telemetry::Telemetry;
use cluster::{Cluster, ClusterError, ClusterOptions};
use crm::{Counts, TableVerdict, VerifyError, Workload, WorkloadError};
use screen::Screen;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const DATABASE: &str = "crm";
/// Connections that work on the source.
const LANES: u64 = 4;
/// How long the replica may take to catch up once the workload has stopped.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

/// What the demo is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Ends by itself after so long; otherwise when it is interrupted.
    pub lasts: Option<Duration>,
    /// Transactions a second, over all connections.
    pub rate_per_second: NonZeroU32,
    /// What the workload is drawn from.
    pub seed: u64,
}

/// The demo broke off.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A cluster does not do what it should.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The demo's own configuration is refused.
    #[error("the demo's configuration is refused: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<Problem>),
    /// The configuration cannot be written for other verbs to use.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The daemon ended by itself.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The workload broke off.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The sides could not be compared.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The replica did not catch up.
    #[error("the replica is still behind after {} s: {state}", CATCH_UP_WITHIN.as_secs())]
    Behind {
        /// What the daemon said of itself.
        state: String,
    },
    /// A task ended without a word.
    #[error("a task of the demo ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

/// Runs the demo; true when every table ended in lockstep.
///
/// # Errors
/// [`DemoError`]; the clusters are removed all the same.
pub async fn run(options: Options, interrupted: CancellationToken) -> Result<bool, DemoError> {
    let screen = Screen::new();
    screen.say("starting two PostgreSQL clusters and loading the CRM …");
    let source = Cluster::start(ClusterOptions::default()).await?;
    let replica = Cluster::start(ClusterOptions::default()).await?;
    for (cluster, sql) in [(&source, crm::SOURCE_SQL), (&replica, crm::REPLICA_SQL)] {
        cluster.create_database(DATABASE).await?;
        cluster.execute(DATABASE, sql).await?;
    }
    let publish = "CREATE PUBLICATION pglockstep_crm FOR ALL TABLES";
    source.execute(DATABASE, publish).await?;

    let (config, config_path) = configure(&source, &replica)?;
    let telemetry = Telemetry::new(&config.name);
    screen.where_to_look(
        &config,
        &config_path,
        &source.url(DATABASE),
        &replica.url(DATABASE),
    );
    let shutdown = CancellationToken::new();
    let daemon = {
        let (telemetry, shutdown) = (telemetry.clone(), shutdown.clone());
        tokio::spawn(async move { daemon::run(&config, telemetry, shutdown).await })
    };
    let mut demo = Demo {
        source,
        replica,
        telemetry,
        screen,
        daemon,
    };
    let verdict = demo.work(options, interrupted).await;
    shutdown.cancel();
    if !demo.daemon.is_finished() {
        (&mut demo.daemon).await.map_err(DemoError::Task)??;
    }
    let verdict = verdict?;
    Ok(demo.screen.verdict(&verdict))
}

struct Demo {
    source: Cluster,
    replica: Cluster,
    telemetry: Telemetry,
    screen: Screen,
    daemon: tokio::task::JoinHandle<Result<(), DaemonError>>,
}

impl Demo {
    async fn work(
        &mut self,
        options: Options,
        interrupted: CancellationToken,
    ) -> Result<Vec<TableVerdict>, DemoError> {
        let stop = CancellationToken::new();
        let mut lanes = self.start_workload(options, &stop).await?;
        let ends_at = options.lasts.map(|lasts| Instant::now() + lasts);
        let ended = async {
            match ends_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(ended);
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = &mut ended => break,
                () = interrupted.cancelled() => break,
                daemon = &mut self.daemon => {
                    daemon.map_err(DemoError::Task)??;
                    break;
                }
                // A lane ends by itself only when it fails.
                Some(lane) = lanes.join_next() => { lane.map_err(DemoError::Task)??; }
                _ = seconds.tick() => self.screen.live(&self.telemetry.status()),
            }
        }
        stop.cancel();
        let mut counts = Counts::default();
        while let Some(lane) = lanes.join_next().await {
            counts.add(&lane.map_err(DemoError::Task)??);
        }
        self.screen.workload_done(&counts);
        self.catch_up().await?;
        let mut source = self.source.connect(DATABASE).await?;
        let mut replica = self.replica.connect(DATABASE).await?;
        Ok(crm::verify(&mut source, &mut replica).await?)
    }

    async fn start_workload(
        &self,
        options: Options,
        stop: &CancellationToken,
    ) -> Result<JoinSet<Result<Counts, WorkloadError>>, DemoError> {
        self.screen.say(&format!("workload seed: {}", options.seed));
        let mut lanes = JoinSet::new();
        let rate = options.rate_per_second.get() / u32::try_from(LANES).unwrap_or(1);
        let rate = NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN);
        for lane in 0..LANES {
            let client = self.source.connect(DATABASE).await?;
            lanes.spawn(Workload::new(options.seed + lane).run(client, rate, stop.clone()));
        }
        Ok(lanes)
    }

    /// Waits until the replica has everything that the source holds now.
    async fn catch_up(&self) -> Result<(), DemoError> {
        let client = self.source.connect(DATABASE).await?;
        let sql = "SELECT pg_catalog.pg_current_wal_lsn()";
        let end: Lsn = match client.query_one(sql, &[]).await {
            Ok(row) => row.get(0),
            Err(error) => {
                return Err(DemoError::Behind {
                    state: error.to_string(),
                });
            }
        };
        let deadline = Instant::now() + CATCH_UP_WITHIN;
        loop {
            let status = self.telemetry.status();
            if status.applied_lsn >= Some(end) {
                return Ok(());
            }
            if Instant::now() >= deadline || self.daemon.is_finished() {
                let reason = status.reason.unwrap_or_default();
                return Err(DemoError::Behind {
                    state: format!("{} {reason}", status.state),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The configuration, as a user would write it, in a file that other verbs can be given.
fn configure(source: &Cluster, replica: &Cluster) -> Result<(Config, PathBuf), DemoError> {
    let text = format!(
        "name = \"crm\"\n\n[source]\nurl = \"{}\"\n\n[replica]\nurl = \"{}\"\n\n\
         [http]\nlisten = \"127.0.0.1:{}\"\n\n{}",
        source.url(DATABASE),
        replica.url(DATABASE),
        free_port(),
        crm::MAPPING_TOML
    );
    let path = replica.socket_dir().join("pglockstep.toml");
    std::fs::write(&path, &text).map_err(|error| DemoError::Write {
        path: path.clone(),
        source: error,
    })?;
    let config = Config::parse(&text, HashMap::new()).map_err(DemoError::Config)?;
    Ok((config, path))
}

/// The usual port if it is free, or any that is.
fn free_port() -> u16 {
    const USUAL: u16 = 9808;
    let bound = |port| std::net::TcpListener::bind(("127.0.0.1", port));
    match bound(USUAL)
        .or_else(|_| bound(0))
        .and_then(|listener| listener.local_addr())
    {
        Ok(address) => address.port(),
        // The daemon will say what is wrong with it.
        Err(_) => USUAL,
    }
}
