//! Runs, one after the other, between a database on each cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pglockstep::pg::Lsn;
use tokio_postgres::Client;

use super::load::{COMPARED, CREATE, EMPTY, FILL, Load};
use super::{Passed, Run};
use crate::support::{Daemon, Family, Scenario, eventually};

static FAMILY: Family = Family::const_new();

/// Small batches, so that some are parts; and what failed is tried again soon.
const SETTINGS: &str = "[apply]\nbatch_changes_max = 100\n";

pub struct Lane {
    scenario: Scenario<'static>,
}

impl Lane {
    pub async fn new(name: &str) -> Self {
        let scenario = Scenario::new(&FAMILY, name).await;
        scenario.on_both(CREATE).await;
        scenario.publish_all().await;
        Self { scenario }
    }

    /// One run, with a bug planted or without.
    pub async fn run(&self, run: &Run, bug: Option<&str>) {
        let order = run.order();
        let s = &self.scenario;
        // What is planted concerns whole transactions.
        let settings = if bug.is_some() { "" } else { SETTINGS };
        self.begin_anew().await;
        // Half the runs have what is large sent while it runs; the others, when it has committed.
        let work_mem = match run.point.as_str() {
            "follow.part_written" => "64MB",
            point if point.starts_with("streamed.") => "64kB",
            _ if run.passage.is_multiple_of(2) => "64kB",
            _ => "64MB",
        };
        let name = &s.name;
        let set = format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '{work_mem}'");
        s.on_source(&set).await;
        match run.passed {
            Passed::AtFirst | Passed::Often => {}
            Passed::Later => {
                s.start(settings).await.terminate();
            }
            Passed::AfterHalfACopy => {
                let order = [("PGLOCKSTEP_FAULTS", "copy.table_finishing=kill@2")];
                Daemon::start_with(&s.config(settings), &order).wait();
            }
        }
        let load = Load::start(s.pair.source.connect(&s.name).await.unwrap());
        let watch = Watch::start(s).await;
        let config = s
            .config(settings)
            .replace("delay_max", "delay_min = \"50ms\"\ndelay_max");
        let planted = ("PGLOCKSTEP_PLANTED", bug.unwrap_or_default());
        let faults = ("PGLOCKSTEP_FAULTS", order.as_str());
        let mut daemon = Daemon::start_with(&config, &[faults, planted]);
        let hit = format!("fail point {}:", run.point);
        daemon.until_said(&hit).await;
        if run.act == "kill" {
            let status = daemon.wait();
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert_eq!(signal, Some(9), "{order}: {status}");
            daemon = Daemon::start(&config);
        }
        s.until_state(&mut daemon, "streaming").await;
        let written = load.stop().await;
        s.in_step(&daemon, &COMPARED).await;
        assert_eq!(
            s.replica_one("SELECT n FROM counter").await,
            written.to_string()
        );
        let compared = watch.stop().await;
        assert!(written > 0 && compared > 0, "{order}: nothing was tested");
        assert!(daemon.terminate().success(), "{order}\n{}", daemon.stderr());
        eprintln!("{order}: {written} transactions, {compared} positions compared: equal");
    }

    /// An empty replica, no slot, a source as it was at first.
    async fn begin_anew(&self) {
        let s = &self.scenario;
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE database = '{}'",
            s.name
        );
        // A walsender takes a moment to see that its client is gone.
        eventually(
            "the slot to be free",
            || s.pair.logs(),
            async || s.source.batch_execute(&drop_slot).await.ok(),
        )
        .await;
        s.on_source(FILL).await;
        s.on_replica(EMPTY).await;
        s.on_replica("DROP SCHEMA IF EXISTS pglockstep CASCADE")
            .await;
    }
}

/// Looks again and again whether the slot has confirmed more than the replica holds.
struct Watch {
    ends: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Watch {
    async fn start(s: &Scenario<'_>) -> Self {
        let source = s.pair.source.connect(&s.name).await.unwrap();
        let replica = s.pair.replica.connect(&s.name).await.unwrap();
        let (slot, ends) = (s.slot(), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&ends);
        let task = tokio::spawn(async move {
            let mut compared = 0;
            // One look more after the end: the last position counts too.
            let mut is_last = false;
            while !is_last {
                is_last = stop.load(Ordering::Relaxed);
                compared += u32::from(compare(&source, &replica, &slot).await);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            compared
        });
        Self { ends, task }
    }

    async fn stop(self) -> u32 {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn compare(source: &Client, replica: &Client, slot: &str) -> bool {
    // The source first: what is confirmed now must be stored by the time the replica is asked.
    let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    let confirmed = source.query_opt(sql, &[&slot]).await.unwrap();
    let confirmed: Option<Lsn> = confirmed.and_then(|row| row.get(0));
    let exists = "SELECT to_regclass('pglockstep.pipelines') IS NOT NULL";
    if !replica
        .query_one(exists, &[])
        .await
        .unwrap()
        .get::<_, bool>(0)
    {
        return false;
    }
    let sql = "SELECT applied_lsn FROM pglockstep.pipelines";
    let stored = replica.query_opt(sql, &[]).await.unwrap();
    let stored: Option<Lsn> = stored.and_then(|row| row.get(0));
    // No position is stored before the slot is made.
    if stored.is_none() || confirmed.is_none() {
        return false;
    }
    assert!(
        confirmed <= stored,
        "the slot has confirmed {confirmed:?}, the replica has {stored:?}"
    );
    true
}
