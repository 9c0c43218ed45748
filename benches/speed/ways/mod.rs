//! Each way to write rows, in one session with the replica's server: microseconds a row, by rows
//! of a statement and by columns. What apply's shapes were chosen by.
//!
//! ```text
//!  rows, as the server itself sends them ─▶ parameters or COPY data ─▶ one transaction after the other
//! ```
//!
//! No commit waits for the disk. What a statement is sent as is made ready before the clock starts:
//! the server and the line are measured, and not who encodes.

mod rows;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::SinkExt;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::arguments::Arguments;
use crate::ground::{DATABASE, Ground};
use crate::report::Results;
use rows::{Raw, Rows};

pub const NAME: &str = "ways";

/// Rows of one statement, and so of one transaction.
pub const STATEMENT_ROWS: [usize; 5] = [1, 8, 64, 512, 4096];
pub const COLUMNS: [usize; 3] = [3, 10, 30];
const ROWS: usize = 16_384;
/// One way at one size goes on for so long, or until there are no more rows.
const LONG_ENOUGH: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Insert,
    Update,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// An array of text for each column, cast by the statement.
    TextArrays,
    /// An array of each column's own type.
    BinaryArrays,
    /// One array of the table's row type; to delete with nothing but keys in it.
    RowArray,
    CopyText,
    CopyBinary,
    /// A binary COPY into a temporary table, and one statement from there.
    Staging,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Insert, Self::Update, Self::Delete];

    pub fn ways(self) -> &'static [Way] {
        use Way::{BinaryArrays, CopyBinary, CopyText, RowArray, Staging, TextArrays};
        match self {
            Self::Insert => &[
                TextArrays,
                BinaryArrays,
                RowArray,
                CopyText,
                CopyBinary,
                Staging,
            ],
            Self::Update => &[TextArrays, BinaryArrays, RowArray, Staging],
            Self::Delete => &[TextArrays, BinaryArrays, RowArray, Staging],
        }
    }
}

/// One way at one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WaySample {
    pub kind: Kind,
    pub way: Way,
    pub columns: usize,
    pub rows: usize,
    pub micros_each: f64,
}

/// Where a position is kept: a transaction of one row and its position, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PositionSample {
    pub kept_as: String,
    pub micros: f64,
}

pub async fn measure(arguments: &Arguments, results: &mut Results) -> Result<()> {
    println!("\n{NAME}: each way to write, microseconds a row");
    let ground = Ground::start(arguments).await?;
    let client = ground.replica.connect(DATABASE).await?;
    client
        .batch_execute(
            "SET synchronous_commit = off; SET jit = off; SET plan_cache_mode = force_generic_plan",
        )
        .await?;
    let enough = if arguments.smoke {
        Duration::ZERO
    } else {
        LONG_ENOUGH
    };
    for columns in COLUMNS {
        let rows = Rows::make(&client, columns, ROWS).await?;
        for kind in Kind::ALL {
            for way in kind.ways() {
                for at_once in STATEMENT_ROWS {
                    let writer = Writer::prepare(&client, &rows, kind, *way).await?;
                    let micros_each = writer.time(at_once, enough).await;
                    results.ways.push(WaySample {
                        kind,
                        way: *way,
                        columns,
                        rows: at_once,
                        micros_each: micros_each.with_context(|| format!("{kind:?} {way:?}"))?,
                    });
                }
            }
        }
        println!("  {columns} columns: done");
    }
    let witness = ground.replica.connect(DATABASE).await?;
    results.positions = positions(&client, &witness, enough).await?;
    Ok(())
}

/// One way, ready on the server.
struct Writer<'a> {
    client: &'a Client,
    rows: &'a Rows,
    kind: Kind,
    way: Way,
    /// None where COPY is all of it.
    statement: Option<Statement>,
}

/// What one transaction is sent.
enum Load {
    Parameters(Vec<Raw>),
    Copy(Bytes),
}

impl<'a> Writer<'a> {
    /// The table is as the first statement needs it: empty for inserts, full for the others.
    async fn prepare(client: &'a Client, rows: &'a Rows, kind: Kind, way: Way) -> Result<Self> {
        client
            .batch_execute(rows.refill(kind != Kind::Insert))
            .await?;
        let statement = match way {
            Way::CopyText | Way::CopyBinary => None,
            _ => Some(client.prepare(&rows.statement(kind, way)).await?),
        };
        Ok(Self {
            client,
            rows,
            kind,
            way,
            statement,
        })
    }

    async fn time(&self, at_once: usize, enough: Duration) -> Result<f64> {
        let mut taken = Duration::ZERO;
        let mut written = 0;
        for from in (0..ROWS).step_by(at_once) {
            let load = self.load(from, at_once);
            let begun = Instant::now();
            let touched = self.write(load).await?;
            taken += begun.elapsed();
            ensure!(touched == at_once as u64, "{touched} rows of {at_once}");
            written += at_once;
            if taken >= enough {
                break;
            }
        }
        #[allow(clippy::cast_precision_loss)]
        Ok(taken.as_secs_f64() * 1e6 / written as f64)
    }

    fn load(&self, from: usize, count: usize) -> Load {
        let range = from..from + count;
        match self.way {
            Way::CopyText => Load::Copy(self.rows.copy_text(range)),
            Way::CopyBinary | Way::Staging => Load::Copy(self.rows.copy_binary(range)),
            Way::RowArray => {
                let columns = match self.kind {
                    Kind::Delete => 1,
                    Kind::Insert | Kind::Update => self.rows.columns(),
                };
                Load::Parameters(vec![self.rows.row_array(range, columns)])
            }
            Way::TextArrays | Way::BinaryArrays => {
                let columns = match self.kind {
                    Kind::Delete => 1,
                    Kind::Insert | Kind::Update => self.rows.columns(),
                };
                let is_text = self.way == Way::TextArrays;
                let array = |column| self.rows.column_array(column, range.clone(), is_text);
                Load::Parameters((0..columns).map(array).collect())
            }
        }
    }

    async fn write(&self, load: Load) -> Result<u64> {
        match (load, &self.statement) {
            (Load::Parameters(parameters), Some(statement)) => {
                let parameters: Vec<&(dyn ToSql + Sync)> = parameters
                    .iter()
                    .map(|p| p as &(dyn ToSql + Sync))
                    .collect();
                Ok(self.client.execute(statement, &parameters).await?)
            }
            (Load::Copy(data), None) => self.copy("rows_of_ways", data).await,
            (Load::Copy(data), Some(statement)) => {
                self.client.batch_execute("BEGIN").await?;
                self.copy("staged", data).await?;
                let touched = self.client.execute(statement, &[]).await?;
                // Emptied at the commit.
                self.client.batch_execute("COMMIT").await?;
                Ok(touched)
            }
            (Load::Parameters(_), None) => unreachable!("no COPY takes parameters"),
        }
    }

    async fn copy(&self, into: &str, data: Bytes) -> Result<u64> {
        let format = if self.way == Way::CopyText {
            "text"
        } else {
            "binary"
        };
        let sql = format!("COPY {into} FROM STDIN (FORMAT {format})");
        let mut sink = Box::pin(self.client.copy_in::<_, Bytes>(&sql).await?);
        sink.send(data).await?;
        Ok(sink.as_mut().finish().await?)
    }
}

/// One-row transactions with the position of what they hold.
async fn positions(
    client: &Client,
    witness: &Client,
    enough: Duration,
) -> Result<Vec<PositionSample>> {
    client
        .batch_execute(
            "CREATE TABLE one (id int PRIMARY KEY, n int) WITH (fillfactor = 10); INSERT INTO one VALUES (1, 0); \
             CREATE TABLE position (name text PRIMARY KEY, lsn pg_lsn) WITH (fillfactor = 10); \
             INSERT INTO position VALUES ('p', '0/1'); SELECT pg_replication_origin_create('ways')",
        )
        .await?;
    let row = "UPDATE one SET n = n + 1 WHERE id = 1";
    let kept = "UPDATE position SET lsn = lsn + 1 WHERE name = 'p'";
    let watched = "a row of a table, while a second session waits for the disk ten times a second";
    let origin = "SELECT pg_replication_origin_xact_setup('0/1', now())";
    let mut samples = Vec::new();
    for (kept_as, position, waits) in [
        ("no position", "", "off"),
        ("a row of a table", kept, "off"),
        (watched, kept, "off"),
        ("a replication origin", origin, "off"),
        (
            "a row of a table; the commit waits for the disk",
            kept,
            "on",
        ),
        (
            "a replication origin; the commit waits for the disk",
            origin,
            "on",
        ),
    ] {
        // A session that has an origin writes it into each commit, whatever else it does.
        if position == origin {
            let begin = "SELECT pg_replication_origin_session_setup('ways')";
            client.batch_execute(begin).await?;
        }
        let sql =
            format!("BEGIN; SET LOCAL synchronous_commit = {waits}; {row}; {position}; COMMIT");
        let (begun, mut count) = (Instant::now(), 0u32);
        let work = async {
            while count == 0 || begun.elapsed() < enough {
                client.batch_execute(&sql).await?;
                count += 1;
            }
            Ok::<_, tokio_postgres::Error>(begun.elapsed())
        };
        let taken = match kept_as == watched {
            false => work.await?,
            true => tokio::select! {
                done = work => done?,
                ended = watch_the_disk(witness) => bail!("the second session has ended: {ended:?}"),
            },
        };
        if position == origin {
            let end = "SELECT pg_replication_origin_session_reset()";
            client.batch_execute(end).await?;
        }
        samples.push(PositionSample {
            kept_as: kept_as.to_owned(),
            micros: taken.as_secs_f64() * 1e6 / f64::from(count),
        });
    }
    Ok(samples)
}

/// What has it known how far the replica is durable: a commit that waits makes all before it so.
async fn watch_the_disk(client: &Client) -> Result<(), tokio_postgres::Error> {
    let wait = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'ways', '')";
    loop {
        client.batch_execute(wait).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
