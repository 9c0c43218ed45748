//! Who keeps the replica in step: a subscription of PostgreSQL's, or the daemon.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::daemon::{Daemon, Sections};
use crate::ground::{DATABASE, Ground, PUBLICATION};

/// The subscription, and its slot on the source.
pub const SUBSCRIPTION: &str = "native";
/// How often it is looked whether something is done. A look has its part of the processors.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// `CREATE SUBSCRIPTION` at its best settings.
    Native,
    /// pglockstep, table by table to the same name.
    Ours,
    /// pglockstep through the work's mapping.
    Mapped,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Ours => "pglockstep",
            Self::Mapped => "pglockstep, mapped",
        }
    }

    /// Of the daemon's pipeline.
    pub fn pipeline(self) -> &'static str {
        match self {
            Self::Native | Self::Ours => "bench",
            Self::Mapped => "mapped",
        }
    }

    /// On the source.
    pub fn slot(self) -> &'static str {
        match self {
            Self::Native => SUBSCRIPTION,
            Self::Ours => "pglockstep_bench",
            Self::Mapped => "pglockstep_mapped",
        }
    }

    /// Where this one's sentinel is on the replica.
    pub fn sentinel(self) -> &'static str {
        match self {
            Self::Native | Self::Ours => "public.sentinel",
            Self::Mapped => "mapped.sentinel",
        }
    }
}

/// One that runs. Dropped, a daemon is killed; a subscription goes with its cluster.
pub enum Running {
    Native,
    Daemon(Daemon),
}

impl Running {
    /// Of what is prepared: the subscription is enabled, or the daemon started.
    pub async fn begin(ground: &Ground, contender: Contender, tables: &str) -> Result<Self> {
        if contender == Contender::Native {
            let enable = format!("ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE");
            ground.replica.execute(DATABASE, &enable).await?;
            return Ok(Self::Native);
        }
        let sections = Sections {
            tables,
            ..Sections::default()
        };
        Daemon::spawn(ground, contender, &sections).map(Self::Daemon)
    }

    pub fn daemon(&mut self) -> Option<&mut Daemon> {
        match self {
            Self::Native => None,
            Self::Daemon(daemon) => Some(daemon),
        }
    }

    /// Returns when it is so; an error where a daemon ends, or nothing happens for long.
    pub async fn wait_until(
        &mut self,
        what: &str,
        mut fact: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while !fact().await? {
            if Instant::now() > deadline {
                bail!("waited {} s in vain for {what}", WAIT_MAX.as_secs());
            }
            if let Some(status) = self.daemon().and_then(Daemon::ended) {
                bail!("the daemon ended ({status}) while it was waited for {what}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// A subscription that is to follow from here on: both sides hold the same rows, and nobody writes.
pub async fn make_subscription(ground: &Ground, streaming: &str) -> Result<()> {
    let slot = format!("SELECT pg_create_logical_replication_slot('{SUBSCRIPTION}', 'pgoutput')");
    ground.source.execute(DATABASE, &slot).await?;
    let options = format!(
        "enabled = false, create_slot = false, slot_name = {SUBSCRIPTION}, copy_data = false, \
         binary = true, streaming = {streaming}"
    );
    ground
        .replica
        .execute(DATABASE, &subscription(ground, &options))
        .await?;
    Ok(())
}

pub fn subscription(ground: &Ground, options: &str) -> String {
    format!(
        "CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION '{}' PUBLICATION {PUBLICATION} WITH ({options})",
        ground.source.url(DATABASE)
    )
}

/// Whether every table is copied and the stream runs.
pub async fn is_in_step(contender: Contender, source: &Client, replica: &Client) -> Result<bool> {
    if contender == Contender::Native {
        let ready = "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel";
        return holds(replica, ready).await;
    }
    let exists = "SELECT to_regclass('pglockstep.tables') IS NOT NULL";
    let copied = format!(
        "SELECT count(*) > 0 AND bool_and(state = 'copied') FROM pglockstep.tables \
         WHERE pipeline = '{}'",
        contender.pipeline()
    );
    Ok(
        holds(replica, exists).await? && holds(replica, &copied).await? && {
            let slot = contender.slot();
            let streams =
                format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
            holds(source, &streams).await?
        },
    )
}

pub async fn holds(client: &Client, sql: &str) -> Result<bool> {
    let row = client.query_opt(sql, &[]).await?;
    Ok(row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)))
}
