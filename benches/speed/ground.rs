//! Two clusters, made ready once for a work and put back before every run.
//!
//! ```text
//!  prepare:  schema ─▶ seed ─▶ first copy ─▶ slots, books, subscription (disabled) ─▶ backlog ─▶ CHECKPOINT
//!            stop, data ─▶ prepared
//!  restore:  stop, prepared ─▶ data (what has changed since), start, read all into memory
//! ```
//!
//! One prepared pair of folders serves all contenders: each has its own slot on the source, and
//! what it left on the replica is its own. So all start from the same bytes.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pglockstep::demo::cluster::{Cluster, ClusterOptions, StopMode};
use pglockstep::pg::Lsn;
use tokio::process::Command;
use tokio_postgres::{Client, Statement};

use crate::arguments::Arguments;
use crate::folders;
use crate::workload::{Compared, Step};

pub const DATABASE: &str = "bench";
pub const PUBLICATION: &str = "bench";

pub const SENTINEL: &str = "CREATE TABLE sentinel (id int PRIMARY KEY, n int);";

/// More tables than this are neither vacuumed nor read before a run.
const TABLES_WARMED_MAX: usize = 100;

pub struct Ground {
    pub source: Cluster,
    pub replica: Cluster,
    /// Where nothing is measured, nothing has to survive the machine, and nothing waits for disks.
    is_measured: bool,
}

/// The end of a backlog.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// The last value of the sentinel.
    pub sentinel: i32,
    /// Everything but the sentinel's last change is before this.
    pub nearly_end: Lsn,
}

/// What both sides must come to: a digest for each comparison.
pub struct Expected(Vec<(Compared, String)>);

impl Ground {
    pub async fn start(arguments: &Arguments) -> Result<Self> {
        let (major, is_measured) = (arguments.major, !arguments.smoke);
        let options = || ClusterOptions {
            fsync: is_measured,
            ..ClusterOptions::version(major)
                .with("shared_buffers", if is_measured { "1GB" } else { "64MB" })
                .with("max_wal_size", "8GB")
                .with("wal_retrieve_retry_interval", "10ms")
                .with("listen_addresses", "")
                .with("jit", "off")
                // A transaction may touch thousands of tables.
                .with("max_locks_per_transaction", "512")
                .with("max_worker_processes", "24")
                .with("max_logical_replication_workers", "16")
                .with("max_sync_workers_per_subscription", "4")
                // Whatever it did would fall on one contender and not on another.
                .with("autovacuum", "off")
        };
        let start = async |side| {
            let cluster = Cluster::start(options()).await;
            cluster.with_context(|| format!("starting the {side}"))
        };
        let ground = Self {
            source: start("source").await?,
            replica: start("replica").await?,
            is_measured,
        };
        for cluster in ground.clusters() {
            cluster.create_database(DATABASE).await?;
            let warmer = "CREATE EXTENSION pg_prewarm";
            cluster.execute(DATABASE, warmer).await?;
        }
        Ok(ground)
    }

    fn clusters(&self) -> [&Cluster; 2] {
        [&self.source, &self.replica]
    }

    /// The same tables on both sides, the sentinel among them; its row on the source.
    pub async fn make_tables(&self, schema: &str, replica_schema: &str) -> Result<()> {
        for cluster in self.clusters() {
            cluster.execute(DATABASE, SENTINEL).await?;
            // One by one: a script that ends transactions cannot be part of a batch.
            cluster.execute(DATABASE, schema).await?;
        }
        self.replica.execute(DATABASE, replica_schema).await?;
        let row = "INSERT INTO sentinel VALUES (1, 0)";
        self.source.execute(DATABASE, row).await?;
        let publish = format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES");
        Ok(self.source.execute(DATABASE, &publish).await?)
    }

    /// Work of the source's clients.
    pub async fn take(&self, steps: &[Step]) -> Result<()> {
        let client = self.source.connect(DATABASE).await?;
        // The backlog is what counts, not how fast it comes.
        client.batch_execute("SET synchronous_commit = off").await?;
        for step in steps {
            match step {
                Step::Sql(sql) => client
                    .batch_execute(sql)
                    .await
                    .with_context(|| format!("on the source: {}", head(sql)))?,
                Step::Pgbench {
                    clients,
                    transactions,
                } => self.pgbench(*clients, *transactions).await?,
            }
        }
        Ok(())
    }

    /// The last change of a backlog.
    pub async fn end_backlog(&self) -> Result<Backlog> {
        let source = self.source.connect(DATABASE).await?;
        let row = source
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
            .await?;
        let nearly_end = row.get::<_, String>(0);
        let row = source
            .query_one("UPDATE sentinel SET n = n + 1 RETURNING n", &[])
            .await?;
        Ok(Backlog {
            sentinel: row.get(0),
            nearly_end: nearly_end.parse().context("a position of the source")?,
        })
    }

    /// Statistics and hint bits as a server that has run for a while has them.
    pub async fn vacuum(&self, cluster: &Cluster) -> Result<()> {
        if self.tables().await?.len() > TABLES_WARMED_MAX {
            return Ok(());
        }
        Ok(cluster.execute(DATABASE, "VACUUM (ANALYZE)").await?)
    }

    /// Puts the clusters as they are aside, for [`restore`](Self::restore). They are down then.
    pub async fn put_aside(&mut self) -> Result<()> {
        for cluster in [&mut self.source, &mut self.replica] {
            cluster.execute(DATABASE, "CHECKPOINT").await?;
            cluster.stop(StopMode::Fast).await?;
            let (data, prepared) = (cluster.data_dir(), prepared(cluster));
            std::fs::rename(&data, &prepared)
                .with_context(|| format!("renaming {}", data.display()))?;
        }
        Ok(())
    }

    /// Starts both clusters anew as they were put aside.
    pub async fn restore(&mut self) -> Result<()> {
        // Both before either starts: a subscription would find the source again and move its slot.
        for cluster in [&mut self.replica, &mut self.source] {
            cluster.stop(StopMode::Immediate).await?;
        }
        for cluster in [&mut self.source, &mut self.replica] {
            let (data, prepared) = (cluster.data_dir(), prepared(cluster));
            folders::put_back(&prepared, &data, self.is_measured)?;
            cluster.restart().await?;
        }
        self.warm_up().await
    }

    /// Tables and indexes into the servers' own memory, as those that have run for a while have
    /// them: what a new server pays for its first look at each page is the same for all contenders,
    /// and none of their doing. A plain read would not do: of a large table it keeps little.
    async fn warm_up(&self) -> Result<()> {
        if self.tables().await?.len() > TABLES_WARMED_MAX {
            return Ok(());
        }
        let read = "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i', 't', 'm') \
                    AND relnamespace IN ('public'::regnamespace, 'pg_toast'::regnamespace)";
        for cluster in self.clusters() {
            cluster.execute(DATABASE, read).await?;
        }
        Ok(())
    }

    /// The source's tables, quoted.
    pub async fn tables(&self) -> Result<Vec<String>> {
        let list = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
                    WHERE schemaname = 'public' ORDER BY 1";
        let source = self.source.connect(DATABASE).await?;
        let rows = source.query(list, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// What is to be read on the replica when all has been applied.
    pub async fn expected(&self, compared: Vec<Compared>) -> Result<Expected> {
        let source = self.source.connect(DATABASE).await?;
        let mut digests = Vec::with_capacity(compared.len());
        for compared in compared {
            let digest = digest(&source, &compared.on_source).await?;
            digests.push((compared, digest));
        }
        Ok(Expected(digests))
    }

    /// The same, of all tables as they are.
    pub async fn expected_tables(&self) -> Result<Expected> {
        let tables = self.tables().await?;
        let compared = tables.into_iter().map(|name| Compared::same(&name));
        self.expected(compared.collect()).await
    }

    /// An error unless the replica holds what is expected.
    pub async fn must_equal(&self, expected: &Expected) -> Result<()> {
        let replica = self.replica.connect(DATABASE).await?;
        for (compared, on_source) in &expected.0 {
            let on_replica = digest(&replica, &compared.on_replica).await?;
            ensure!(
                *on_source == on_replica,
                "a wrong answer: {} is {on_source} on the source, and {on_replica} on the replica",
                compared.on_replica
            );
        }
        Ok(())
    }

    async fn pgbench(&self, clients: u32, transactions: u32) -> Result<()> {
        let beside = self.source.installation().bin.join("pgbench");
        let program = if beside.is_file() {
            beside
        } else {
            PathBuf::from("pgbench")
        };
        let output = Command::new(&program)
            .arg("-h")
            .arg(self.source.socket_dir())
            .args(["-p", &self.source.port().to_string(), "-U", "postgres"])
            .args(["-n", "-j", "1", "-c", &clients.to_string()])
            .args(["-t", &transactions.to_string()])
            .arg(DATABASE)
            .env("PGOPTIONS", "-c synchronous_commit=off")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("starting {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {said}");
        Ok(())
    }
}

/// Inside the cluster's folder: whatever happens, it goes with it.
fn prepared(cluster: &Cluster) -> PathBuf {
    cluster.socket_dir().join("prepared")
}

/// The value of the sentinel, if it has a row there.
/// The table whose one value says how far a side has come.
pub struct Sentinel<'a> {
    client: &'a Client,
    /// Prepared once: whoever looks has a part of the processors that are measured.
    read: Statement,
}

impl<'a> Sentinel<'a> {
    pub async fn of(client: &'a Client, table: &str) -> Result<Self> {
        let read = client.prepare(&format!("SELECT n FROM {table}")).await?;
        Ok(Self { client, read })
    }

    pub async fn value(&self) -> Result<Option<i32>> {
        let row = self.client.query_opt(&self.read, &[]).await?;
        Ok(row.map(|row| row.get(0)))
    }
}

async fn digest(client: &Client, rows: &str) -> Result<String> {
    let sql = format!(
        "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {rows} t"
    );
    let row = client.query_one(&sql, &[]).await;
    Ok(row.with_context(|| format!("comparing {rows}"))?.get(0))
}

fn head(sql: &str) -> String {
    sql.split_whitespace()
        .take(12)
        .collect::<Vec<_>>()
        .join(" ")
}
