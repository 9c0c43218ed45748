//! A source and a replica cluster with a database each, and the daemon's configuration for them.

use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use tokio_postgres::Client;

use super::daemon::free_port;
use super::{eventually, fetch_rows, row_differences};

/// The database on both sides.
pub const DATABASE: &str = "app";

/// What the two clusters are to be.
#[derive(Clone, Debug, Default)]
pub struct PairOptions {
    pub source: ClusterOptions,
    pub replica: ClusterOptions,
}

/// Two running clusters. Dropped, they are gone.
#[derive(Debug)]
pub struct Pair {
    pub source: Cluster,
    pub replica: Cluster,
}

/// Where a test does not care, by default the first version found.
fn wanted_major() -> Option<u32> {
    let wanted = std::env::var("PGLOCKSTEP_MAJOR").ok()?;
    Some(wanted.parse().expect("PGLOCKSTEP_MAJOR is a major version"))
}

impl Pair {
    /// Two default clusters with an empty database each.
    pub async fn start() -> Self {
        Self::start_with(PairOptions::default()).await
    }

    /// From one major version to another.
    pub async fn start_majors(source: u32, replica: u32) -> Self {
        let (source, replica) = (
            ClusterOptions::version(source),
            ClusterOptions::version(replica),
        );
        Self::start_with(PairOptions { source, replica }).await
    }

    pub async fn start_with(mut options: PairOptions) -> Self {
        for cluster in [&mut options.source, &mut options.replica] {
            cluster.version = cluster.version.or_else(wanted_major);
        }
        let (source, replica) = tokio::join!(
            Cluster::start(options.source),
            Cluster::start(options.replica)
        );
        let pair = Self {
            source: source.unwrap(),
            replica: replica.unwrap(),
        };
        for cluster in [&pair.source, &pair.replica] {
            cluster.create_database(DATABASE).await.unwrap();
        }
        pair
    }

    /// Whether both have what came with this version; says it where they do not.
    pub fn has(&self, major: u32) -> bool {
        let has = self.major() >= major;
        if !has {
            let found = self.major();
            eprintln!("left out: it takes PostgreSQL {major}, and this is {found}");
        }
        has
    }

    /// The older one's version.
    pub fn major(&self) -> u32 {
        let majors = [&self.source, &self.replica].map(|c| c.installation().major);
        majors[0].min(majors[1])
    }

    /// Runs statements on the source.
    pub async fn on_source(&self, sql: &str) {
        self.source
            .execute(DATABASE, sql)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    /// Runs statements on the replica.
    pub async fn on_replica(&self, sql: &str) {
        self.replica
            .execute(DATABASE, sql)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    /// Runs statements on both.
    pub async fn on_both(&self, sql: &str) {
        self.on_source(sql).await;
        self.on_replica(sql).await;
    }

    /// A superuser's connection to each, source first.
    pub async fn clients(&self) -> (Client, Client) {
        (
            self.source.connect(DATABASE).await.unwrap(),
            self.replica.connect(DATABASE).await.unwrap(),
        )
    }

    /// A configuration for this pair, named `it`, with `more` after it: further keys of
    /// `[http]` first, then any other section.
    pub fn config(&self, more: &str) -> String {
        format!(
            "name = \"it\"\n\n\
             [source]\nurl = \"{}\"\nenvironment = \"test\"\n\
             publication = \"pglockstep_it\"\nslot = \"pglockstep_it\"\n\n\
             [replica]\nurl = \"{}\"\nenvironment = \"test\"\n\n\
             [http]\nlisten = \"127.0.0.1:{}\"\n{more}\n",
            self.source.url(DATABASE),
            self.replica.url(DATABASE),
            free_port(),
        )
    }

    /// The ends of both logs, for a failure's message.
    pub fn logs(&self) -> String {
        format!(
            "--- source log ---\n{}\n--- replica log ---\n{}",
            self.source.log_tail(30),
            self.replica.log_tail(30)
        )
    }

    /// Waits until both queries yield the same rows. The source's are fetched anew each
    /// time, so they may still change.
    pub async fn eventually_same_rows(&self, source_sql: &str, replica_sql: &str) {
        let (source, replica) = self.clients().await;
        let last = std::sync::Mutex::new(String::new());
        let evidence = || format!("{}{}", last.lock().unwrap(), self.logs());
        let what = format!("the same rows from\n  {source_sql}\n  {replica_sql}");
        eventually(&what, evidence, async || {
            let source_rows = fetch_rows(&source, source_sql).await;
            let replica_rows = fetch_rows(&replica, replica_sql).await;
            match row_differences(&source_rows, &replica_rows) {
                None => Some(()),
                Some(differences) => {
                    *last.lock().unwrap() = differences;
                    None
                }
            }
        })
        .await;
    }
}
