//! The two clusters and the work that is done on the source.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use tokio_postgres::Client;

pub const DATABASE: &str = "figures";
pub const PUBLICATION: &str = "figures";
const SCALE: u32 = 20;
const CLIENTS: u32 = 4;
const WIDE_ROWS: u32 = 1_000_000;

/// Which tables the databases hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// pgbench's four.
    Pgbench,
    /// One of nine mixed columns.
    Wide,
}

impl Work {
    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Pgbench => &[
                "pgbench_accounts",
                "pgbench_branches",
                "pgbench_history",
                "pgbench_tellers",
            ],
            Self::Wide => &["wide"],
        }
    }
}

const SENTINEL: &str =
    "CREATE TABLE sentinel (id int PRIMARY KEY, n int); INSERT INTO sentinel VALUES (1, 0);";

const WIDE: &str = "CREATE TABLE wide (id bigint PRIMARY KEY, kind int NOT NULL, amount numeric(12, 2), \
     name text, made timestamptz, is_open boolean, token uuid, doc jsonb, ratio float8)";

pub struct Ground {
    pub source: Cluster,
    pub replica: Cluster,
}

impl Ground {
    pub async fn start() -> Self {
        let options = || ClusterOptions {
            fsync: true,
            ..ClusterOptions::version(15)
                .with("shared_buffers", "1GB")
                .with("max_wal_size", "8GB")
                .with("wal_retrieve_retry_interval", "10ms")
                .with("listen_addresses", "")
                // Whatever it did would fall on one consumer and not on another.
                .with("autovacuum", "off")
        };
        Self {
            source: Cluster::start(options()).await.unwrap(),
            replica: Cluster::start(options()).await.unwrap(),
        }
    }

    /// Fresh databases on both sides: filled on the source, empty tables on the replica.
    pub async fn make_databases(&self, work: Work) {
        for cluster in [&self.source, &self.replica] {
            let drop = format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)");
            cluster.execute("postgres", &drop).await.unwrap();
            cluster.create_database(DATABASE).await.unwrap();
        }
        match work {
            Work::Pgbench => {
                let scale = SCALE.to_string();
                self.pgbench(&self.source, &["-i", "-I", "dtgvp", "-s", &scale]);
                self.pgbench(&self.replica, &["-i", "-I", "dtp", "-s", &scale]);
            }
            Work::Wide => {
                for cluster in [&self.source, &self.replica] {
                    cluster.execute(DATABASE, WIDE).await.unwrap();
                }
            }
        }
        let (source, replica) = self.clients().await;
        source.batch_execute(SENTINEL).await.unwrap();
        let empty = SENTINEL.split_once(';').unwrap().0;
        replica.batch_execute(empty).await.unwrap();
        let publish = format!("CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES");
        source.batch_execute(&publish).await.unwrap();
    }

    /// TPC-B, the same number of transactions for each client.
    pub fn run_pgbench(&self, transactions: u32) {
        let (clients, transactions) = (CLIENTS.to_string(), transactions.to_string());
        self.pgbench(
            &self.source,
            &["-n", "-c", &clients, "-j", "1", "-t", &transactions],
        );
    }

    /// One transaction; the sentinel's value that it leaves.
    pub async fn write_wide_rows(&self) -> i32 {
        let (source, _) = self.clients().await;
        let fill = format!(
            "BEGIN; INSERT INTO wide SELECT i, i % 1000, (i % 99991) / 7.0, 'row number ' || i, \
             '2024-01-01 00:00+00'::timestamptz + i * interval '1 second', i % 3 = 0, \
             md5(i::text)::uuid, jsonb_build_object('n', i, 'tags', ARRAY['a', 'b'], 'ok', true), i / 3.0 \
             FROM generate_series(1, {WIDE_ROWS}) AS i; \
             UPDATE sentinel SET n = n + 1; COMMIT"
        );
        source.batch_execute(&fill).await.unwrap();
        self.sentinel(&source).await.unwrap()
    }

    /// The last change of a backlog.
    pub async fn write_sentinel(&self) -> i32 {
        let (source, _) = self.clients().await;
        source
            .batch_execute("UPDATE sentinel SET n = n + 1")
            .await
            .unwrap();
        self.sentinel(&source).await.unwrap()
    }

    pub async fn sentinel(&self, client: &Client) -> Option<i32> {
        let row = client.query_opt("SELECT n FROM sentinel", &[]).await;
        row.unwrap().map(|row| row.get(0))
    }

    pub async fn checkpoint(&self) {
        for cluster in [&self.source, &self.replica] {
            cluster.execute(DATABASE, "CHECKPOINT").await.unwrap();
        }
    }

    /// Ends the run unless both sides hold the same rows.
    pub async fn assert_equal(&self, work: Work) {
        let (source, replica) = self.clients().await;
        for table in work.tables() {
            let digest = format!(
                "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
            );
            let of = |row: tokio_postgres::Row| row.get::<_, String>(0);
            let from = of(source.query_one(&digest, &[]).await.unwrap());
            let to = of(replica.query_one(&digest, &[]).await.unwrap());
            assert_eq!(from, to, "{table} differs");
        }
    }

    pub async fn clients(&self) -> (Client, Client) {
        (
            self.source.connect(DATABASE).await.unwrap(),
            self.replica.connect(DATABASE).await.unwrap(),
        )
    }

    fn pgbench(&self, cluster: &Cluster, arguments: &[&str]) {
        let beside = cluster.installation().bin.join("pgbench");
        let program = if beside.is_file() {
            beside
        } else {
            PathBuf::from("pgbench")
        };
        let output = Command::new(program)
            .arg("-h")
            .arg(cluster.socket_dir())
            .args(["-p", &cluster.port().to_string(), "-U", "postgres"])
            .args(arguments)
            .arg(DATABASE)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench: {said}");
    }
}
