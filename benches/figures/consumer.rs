//! Who keeps the replica in step: a subscription of PostgreSQL's, or the daemon.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::Client;

use crate::ground::{DATABASE, Ground, PUBLICATION};
use crate::report::Sample;

const NAME: &str = "figures";
const SLOT: &str = "pglockstep_figures";
/// How often it is looked whether something is done.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NativeText,
    NativeBinary,
    Pglockstep,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeText => "CREATE SUBSCRIPTION, text",
            Self::NativeBinary => "CREATE SUBSCRIPTION, binary",
            Self::Pglockstep => "pglockstep",
        }
    }
}

pub struct Consumer<'g> {
    ground: &'g Ground,
    kind: Kind,
    daemon: Option<Daemon>,
}

/// Dropped, it is killed.
struct Daemon {
    child: Child,
    _config: tempfile::TempPath,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'g> Consumer<'g> {
    pub fn new(ground: &'g Ground, kind: Kind) -> Self {
        Self {
            ground,
            kind,
            daemon: None,
        }
    }

    /// From nothing until every table is copied and the stream runs.
    pub async fn first_copy(&mut self, what: &'static str) -> Sample {
        let (source, replica) = self.ground.clients().await;
        let started = Instant::now();
        match self.kind {
            Kind::NativeText | Kind::NativeBinary => {
                let sql = format!(
                    "CREATE SUBSCRIPTION {NAME} CONNECTION '{}' PUBLICATION {PUBLICATION} \
                     WITH (binary = {}, slot_name = {SLOT})",
                    self.ground.source.url(DATABASE),
                    self.kind == Kind::NativeBinary
                );
                replica.batch_execute(&sql).await.unwrap();
            }
            Kind::Pglockstep => self.daemon = Some(self.spawn()),
        }
        wait("the first copy", async || {
            self.is_in_step(&source, &replica).await
        })
        .await;
        let took = started.elapsed();
        self.sample(what, took, &source, &replica).await
    }

    /// From the start until the sentinel's last value can be read on the replica.
    pub async fn drain(&mut self, what: &'static str, sentinel: i32) -> Sample {
        let (source, replica) = self.ground.clients().await;
        assert_ne!(self.ground.sentinel(&replica).await, Some(sentinel));
        let started = Instant::now();
        match self.kind {
            Kind::NativeText | Kind::NativeBinary => {
                let sql = format!("ALTER SUBSCRIPTION {NAME} ENABLE");
                replica.batch_execute(&sql).await.unwrap();
            }
            Kind::Pglockstep => self.daemon = Some(self.spawn()),
        }
        wait("the last change", async || {
            self.ground.sentinel(&replica).await == Some(sentinel)
        })
        .await;
        let took = started.elapsed();
        self.sample(what, took, &source, &replica).await
    }

    /// Ends it in order; the slot stays.
    pub async fn stop(&mut self) {
        let (source, replica) = self.ground.clients().await;
        match self.kind {
            Kind::NativeText | Kind::NativeBinary => {
                let sql = format!("ALTER SUBSCRIPTION {NAME} DISABLE");
                replica.batch_execute(&sql).await.unwrap();
            }
            Kind::Pglockstep => self.terminate(),
        }
        let idle =
            format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        wait("the slot to be free", async || holds(&source, &idle).await).await;
    }

    /// Leaves nothing of it on either side.
    pub async fn remove(mut self) {
        self.stop().await;
        let (source, replica) = self.ground.clients().await;
        if self.kind == Kind::Pglockstep {
            let drop = format!("SELECT pg_drop_replication_slot('{SLOT}')");
            source.batch_execute(&drop).await.unwrap();
        } else {
            let drop = format!("DROP SUBSCRIPTION {NAME}");
            replica.batch_execute(&drop).await.unwrap();
        }
    }

    async fn is_in_step(&self, source: &Client, replica: &Client) -> bool {
        if self.kind != Kind::Pglockstep {
            let ready =
                "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel";
            return holds(replica, ready).await;
        }
        let exists = "SELECT to_regclass('pglockstep.tables') IS NOT NULL";
        let copied = "SELECT count(*) > 0 AND bool_and(state = 'copied') FROM pglockstep.tables";
        let streams = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        holds(replica, exists).await
            && holds(replica, copied).await
            && holds(source, &streams).await
    }

    fn spawn(&self) -> Daemon {
        let config = format!(
            "name = \"{NAME}\"\n[source]\nurl = \"{}\"\npublication = \"{PUBLICATION}\"\nslot = \"{SLOT}\"\n\
             [replica]\nurl = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
            self.ground.source.url(DATABASE),
            self.ground.replica.url(DATABASE),
        );
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let config = file.into_temp_path();
        let child = Command::new(env!("CARGO_BIN_EXE_pglockstep"))
            .arg("--config")
            .arg(&config)
            .arg("run")
            .env("PGLOCKSTEP_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Daemon {
            child,
            _config: config,
        }
    }

    fn terminate(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        let id = i32::try_from(daemon.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        assert!(daemon.child.wait().unwrap().success());
    }

    async fn sample(
        &self,
        what: &'static str,
        took: Duration,
        source: &Client,
        replica: &Client,
    ) -> Sample {
        let walsenders = "SELECT pid FROM pg_stat_replication";
        let writers = "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL UNION \
             SELECT pid FROM pg_stat_activity WHERE application_name = 'pglockstep_figures'";
        let daemon = self.daemon.as_ref().map(|daemon| daemon.child.id());
        Sample {
            what,
            kind: self.kind,
            seconds: took.as_secs_f64(),
            walsender_seconds: cpu_seconds(&pids(source, walsenders).await),
            writer_seconds: cpu_seconds(&pids(replica, writers).await),
            daemon_seconds: cpu_seconds(daemon.as_slice()),
            daemon_mib_max: daemon.map(resident_mib_max),
        }
    }
}

async fn pids(client: &Client, sql: &str) -> Vec<u32> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter()
        .map(|row| u32::try_from(row.get::<_, i32>(0)).unwrap())
        .collect()
}

/// User and system time of processes that still run.
fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids
        .iter()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
        })
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let seconds = ticks as f64 / 100.0;
    seconds
}

fn resident_mib_max(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024.0
}

async fn holds(client: &Client, sql: &str) -> bool {
    let row = client.query_opt(sql, &[]).await.unwrap();
    row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
}

async fn wait<Fut: Future<Output = bool>>(what: &str, mut fact: impl FnMut() -> Fut) {
    let deadline = Instant::now() + WAIT_MAX;
    while !fact().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
