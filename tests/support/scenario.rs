//! One scenario: a database of its own on a pair of clusters that a family shares, and the
//! daemon between the two.
//!
//! Slots belong to a whole cluster, so everything is named after the scenario.

use rustix::process::Signal;
use std::cell::RefCell;
use std::collections::BTreeMap;

use pglockstep::demo::cluster::ClusterOptions;
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::daemon::{beside, free_port};
use super::pair::{Pair, PairOptions};
use super::rows::{Row, fetch_rows, row_differences};
use super::{Daemon, Response, eventually};

/// The clusters of one family of scenarios: started by the first, gone with the process.
pub type Family = OnceCell<Pair>;

/// A database on both clusters, of the same name.
#[derive(Debug)]
pub struct Scenario<'a> {
    pub pair: &'a Pair,
    pub name: String,
    pub source: Client,
    pub replica: Client,
    source_url: String,
    replica_url: String,
    listen: String,
}

impl Scenario<'static> {
    /// Two empty databases in the clusters of the family.
    pub async fn new(family: &'static Family, name: &str) -> Self {
        let pair = family.get_or_init(|| Pair::start_with(options())).await;
        Self::on_pair(pair, name).await
    }
}

/// Room for the slots and sessions of a whole family, and no waiting for the disk.
fn options() -> PairOptions {
    let options = || {
        ClusterOptions::default()
            .with("max_connections", "200")
            .with("max_replication_slots", "50")
            .with("max_wal_senders", "50")
    };
    PairOptions {
        source: options(),
        replica: options(),
    }
}

impl<'a> Scenario<'a> {
    /// Two empty databases in clusters of the test's own.
    pub async fn on_pair(pair: &'a Pair, name: &str) -> Self {
        for cluster in [&pair.source, &pair.replica] {
            cluster.create_database(name).await.unwrap();
        }
        Self::again(pair, name).await
    }

    /// The same databases by new connections, after a server was restarted.
    pub async fn again(pair: &'a Pair, name: &str) -> Self {
        Self {
            pair,
            name: name.to_owned(),
            source: pair.source.connect(name).await.unwrap(),
            replica: pair.replica.connect(name).await.unwrap(),
            source_url: pair.source.url(name),
            replica_url: pair.replica.url(name),
            listen: format!("127.0.0.1:{}", free_port()),
        }
    }

    /// Lets the daemon reach the source by this connection string.
    pub fn source_by(&mut self, url: String) {
        self.source_url = url;
    }

    /// Lets the daemon reach the replica by this connection string.
    pub fn replica_by(&mut self, url: String) {
        self.replica_url = url;
    }

    /// Lets the daemon log in to the replica as somebody else than the superuser.
    pub fn replica_role(&mut self, role: &str) {
        self.replica_url = self
            .replica_url
            .replace("//postgres@", &format!("//{role}@"));
    }

    /// Runs statements on the source, in one transaction unless they say otherwise.
    pub async fn on_source(&self, sql: &str) {
        run(&self.source, sql).await;
    }

    /// Runs statements on the replica.
    pub async fn on_replica(&self, sql: &str) {
        run(&self.replica, sql).await;
    }

    /// Runs statements on both.
    pub async fn on_both(&self, sql: &str) {
        self.on_source(sql).await;
        self.on_replica(sql).await;
    }

    /// Slot and publication.
    pub fn slot(&self) -> String {
        format!("pglockstep_{}", self.name)
    }

    /// Publishes every table of the source, those to come too.
    pub async fn publish_all(&self) {
        self.publish("FOR ALL TABLES").await;
    }

    /// Publishes what the clause says.
    pub async fn publish(&self, what: &str) {
        let slot = self.slot();
        self.on_source(&format!("CREATE PUBLICATION {slot} {what}"))
            .await;
    }

    /// The configuration, with `more` sections after it.
    pub fn config(&self, more: &str) -> String {
        let (name, slot) = (&self.name, self.slot());
        let (source, replica, listen) = (&self.source_url, &self.replica_url, &self.listen);
        format!(
            "name = \"{name}\"\n\n\
             [source]\nurl = \"{source}\"\nenvironment = \"test\"\n\
             publication = \"{slot}\"\nslot = \"{slot}\"\n\n\
             [replica]\nurl = \"{replica}\"\nenvironment = \"test\"\n\n\
             [retry]\ndelay_max = \"1s\"\n\n\
             [http]\nlisten = \"{listen}\"\n\n{more}\n"
        )
    }

    /// Starts the daemon and waits until it streams.
    pub async fn start(&self, more: &str) -> Daemon {
        let mut daemon = self.launch(more);
        self.until_state(&mut daemon, "streaming").await;
        daemon
    }

    /// A daemon with the same configuration but for its own address.
    pub fn launch_beside(&self, more: &str) -> Daemon {
        Daemon::start(&beside(&self.config(more)))
    }

    /// Starts the daemon; does not wait for anything.
    pub fn launch(&self, more: &str) -> Daemon {
        Daemon::start(&self.config(more))
    }

    /// Starts the daemon with a configuration that it must refuse, and returns what it says.
    pub async fn refused(&self, more: &str) -> String {
        let mut daemon = self.launch(more);
        let code = eventually(
            "a refusal",
            || self.pair.logs(),
            async || {
                let is_streaming = daemon.metric("pglockstep_state{state=\"streaming\"}").await;
                assert!(
                    is_streaming.is_none_or(|is| is < 0.5),
                    "it was not refused:\n{more}"
                );
                daemon.exit_status()?.code()
            },
        )
        .await;
        let said = daemon.stderr();
        assert_eq!(code, 1, "{said}");
        said
    }

    /// Waits for a state of the daemon; fails at once when the daemon ends.
    pub async fn until_state(&self, daemon: &mut Daemon, state: &str) {
        let sample = format!("pglockstep_state{{state=\"{state}\"}}");
        eventually(
            &format!("state {state}"),
            || self.pair.logs(),
            async || {
                let ended = daemon.exit_status();
                assert!(ended.is_none(), "the daemon ended:\n{}", daemon.stderr());
                (daemon.metric(&sample).await? > 0.5).then_some(())
            },
        )
        .await;
    }

    /// Waits until the pipeline has failed and said all of these; returns what it said.
    pub async fn until_failed(&self, daemon: &mut Daemon, words: &[&str]) -> String {
        self.until_state(daemon, "failed").await;
        let evidence = || format!("{words:?} in: {}", daemon.stderr());
        eventually("its words", evidence, async || {
            let said = daemon.stderr();
            words.iter().all(|word| said.contains(word)).then_some(said)
        })
        .await
    }

    /// Waits until all that is committed on the source is on the replica, and checks that
    /// the ledger of each table balances.
    pub async fn caught_up(&self, daemon: &Daemon) {
        let end = self.one("SELECT pg_current_wal_insert_lsn() - '0/0'").await;
        let end: f64 = end.parse().unwrap();
        let evidence = || format!("{}\n{}", daemon.stderr(), self.pair.logs());
        eventually("the replica to catch up", evidence, async || {
            (daemon.metric("pglockstep_applied_lsn").await? >= end).then_some(())
        })
        .await;
        let unbalanced = RefCell::new(BTreeMap::new());
        let evidence = || format!("{:?}", unbalanced.borrow());
        eventually("every ledger to balance", evidence, async || {
            let mut left = samples(daemon, "pglockstep_ledger_imbalance").await;
            left.retain(|_, value| *value != 0.0);
            unbalanced.replace(left);
            unbalanced.borrow().is_empty().then_some(())
        })
        .await;
    }

    /// Waits until all is applied, then compares the rows of each query on both sides.
    pub async fn in_step(&self, daemon: &Daemon, queries: &[&str]) {
        let pairs: Vec<_> = queries.iter().map(|sql| (*sql, *sql)).collect();
        self.in_step_mapped(daemon, &pairs).await;
    }

    /// The same where the sides are asked differently: source first.
    pub async fn in_step_mapped(&self, daemon: &Daemon, queries: &[(&str, &str)]) {
        self.caught_up(daemon).await;
        for (source_sql, replica_sql) in queries {
            let source = fetch_rows(&self.source, source_sql).await;
            let replica = fetch_rows(&self.replica, replica_sql).await;
            if let Some(differences) = row_differences(&source, &replica) {
                panic!("{differences}source:  {source_sql}\nreplica: {replica_sql}");
            }
        }
    }

    /// Each statement alone on the source, then the comparison.
    pub async fn each_mapped(&self, daemon: &Daemon, statements: &[&str], same: (&str, &str)) {
        for sql in statements {
            self.on_source(sql).await;
            self.in_step_mapped(daemon, &[same]).await;
        }
    }

    /// `times` small transactions of PL/pgSQL while the daemon stands still.
    pub async fn in_one_backlog(&self, daemon: &mut Daemon, times: usize, sql: &str) {
        daemon.signal(Signal::STOP);
        self.on_source(&format!(
            "DO $$ BEGIN FOR i IN 1..{times} LOOP {sql}; COMMIT; END LOOP; END $$"
        ))
        .await;
        daemon.signal(Signal::CONT);
    }

    /// Ends the daemon and waits for its sessions: what they did to the replica is told when they end.
    pub async fn end(&self, mut daemon: Daemon) {
        daemon.terminate();
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                    AND application_name LIKE 'pglockstep%'";
        self.replica_eventually(ours, "0").await;
    }

    /// Rows of a query on the replica, ordered as text.
    pub async fn replica_rows(&self, sql: &str) -> Vec<Row> {
        let mut rows = fetch_rows(&self.replica, sql).await;
        rows.sort();
        rows
    }

    /// The one value of a query on the source.
    pub async fn one(&self, sql: &str) -> String {
        single(fetch_rows(&self.source, sql).await, sql)
    }

    /// The one value of a query on the replica.
    pub async fn replica_one(&self, sql: &str) -> String {
        single(fetch_rows(&self.replica, sql).await, sql)
    }

    /// Waits until the query on the replica yields this one value.
    pub async fn replica_eventually(&self, sql: &str, value: &str) {
        let last = RefCell::new(String::new());
        let evidence = || format!("it is {:?}\n{}", last.borrow(), self.pair.logs());
        eventually(&format!("{value} from {sql}"), evidence, async || {
            let now = self.replica_one(sql).await;
            let is_met = now == value;
            last.replace(now);
            is_met.then_some(())
        })
        .await;
    }
}

async fn run(client: &Client, sql: &str) {
    let done = client.batch_execute(sql).await;
    done.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
}

fn single(rows: Vec<Row>, sql: &str) -> String {
    match rows.as_slice() {
        [row] => row[0].clone().unwrap_or_else(|| "NULL".to_owned()),
        rows => panic!("{} rows instead of one\n{sql}", rows.len()),
    }
}

/// All samples of a metric, by their labels.
pub async fn samples(daemon: &Daemon, metric: &str) -> BTreeMap<String, f64> {
    let Some(Response { body, .. }) = daemon.http_get("/metrics").await else {
        return BTreeMap::new();
    };
    let of_metric = body
        .lines()
        .filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    of_metric
        .map(|rest| {
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            (labels.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// A row of text values, to compare with.
pub fn row<const N: usize>(values: [&str; N]) -> Row {
    values
        .iter()
        .map(|value| (*value != "NULL").then(|| (*value).to_owned()))
        .collect()
}
