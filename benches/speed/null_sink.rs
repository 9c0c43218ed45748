//! The walsender's ceiling: the same backlog received, counted and thrown away.
//!
//! Nothing is confirmed, so the slot stays where it is, and one prepared source does for all runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pglockstep::conn::{ConnectionUrl, Endpoint};
use pglockstep::pg::{Lsn, Side};
use pglockstep::reactor::Reactor;
use pglockstep::replication::{
    ReplicationConnection, ReplicationMessage, StandbyStatusUpdate, StreamOptions, Streaming,
};
use serde::{Deserialize, Serialize};

use crate::ground::{Backlog, DATABASE, Ground, PUBLICATION};

/// What the walsender is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Text,
    Binary,
    /// Binary, and large transactions before they commit.
    Streaming,
}

const MODES: [Mode; 3] = [Mode::Text, Mode::Binary, Mode::Streaming];

/// Woken for each message the sink would cost the walsender more than it takes off it; the socket
/// holds what comes meanwhile.
const GATHER: Duration = Duration::from_micros(200);

pub struct Ceilings {
    /// Inserts, updates, deletes and truncates of committed transactions.
    pub changes: u64,
    /// Seconds, a run after the other.
    pub by_mode: BTreeMap<Mode, Vec<f64>>,
}

pub async fn measure(
    ground: &Ground,
    slot: &str,
    backlog: &Backlog,
    runs: usize,
) -> Result<Ceilings> {
    let mut ceilings = Ceilings {
        changes: 0,
        by_mode: BTreeMap::new(),
    };
    for _ in 0..runs {
        let mut said = String::new();
        for mode in MODES {
            // Or another thread would be woken by each message.
            let alone = Reactor::start("sink")?;
            let source = ground.source.url(DATABASE);
            let received = receive(source, slot.to_owned(), backlog.nearly_end, mode);
            let (seconds, changes) = alone
                .spawn(received)
                .await?
                .with_context(|| format!("the null sink, {mode:?}"))?;
            if mode == Mode::Text {
                ceilings.changes = changes;
            }
            ceilings.by_mode.entry(mode).or_default().push(seconds);
            said.push_str(&format!(" {mode:?} {seconds:.2} s"));
        }
        println!(
            "  walsender into nothing:{said}, {} changes",
            ceilings.changes
        );
    }
    Ok(ceilings)
}

async fn receive(source: String, slot: String, until: Lsn, mode: Mode) -> Result<(f64, u64)> {
    let url = ConnectionUrl::parse(&source.into())?;
    let endpoint = Endpoint::new(Side::Source, url, "bench");
    let mut connection = ReplicationConnection::connect(&endpoint).await?;
    let read = format!(
        "SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots \
         WHERE slot_name OPERATOR(pg_catalog.=) '{slot}'"
    );
    let rows = connection.simple_query(&read).await?;
    let start = rows.into_iter().flatten().flatten().next();
    let start: Lsn = start.context("the slot is not there")?.parse()?;
    let version = connection.server_version_num();
    let mut options = StreamOptions::new(version, vec![PUBLICATION.to_owned()]);
    options.binary = mode != Mode::Text;
    if mode == Mode::Streaming {
        options.protocol_version = 2;
        options.streaming = Streaming::On;
    }

    let begun = Instant::now();
    let mut stream = connection.start(&slot.parse()?, start, &options).await?;
    let mut changes = 0;
    loop {
        let mut next = Some(stream.receive().await?);
        let mut is_asked = false;
        while let Some(message) = next {
            match message {
                ReplicationMessage::Keepalive(keepalive) => is_asked |= keepalive.reply_requested,
                ReplicationMessage::XLogData(data) => match data.payload.first() {
                    Some(b'I' | b'U' | b'D' | b'T') => changes += 1,
                    Some(b'C' | b'c') if data.wal_start > Some(until) => {
                        let seconds = begun.elapsed().as_secs_f64();
                        stream.stop().await?.close().await;
                        return Ok((seconds, changes));
                    }
                    _ => {}
                },
            }
            next = stream.try_receive()?;
        }
        if is_asked {
            stream.send_status(StandbyStatusUpdate::default()).await?;
        }
        // The thread has nothing else to do.
        stream.unwatch()?;
        std::thread::sleep(GATHER);
    }
}
