//! Is there a pooler that lends a server process for one transaction only?
//!
//! Then settings, locks and prepared statements of a session belong to whoever comes next, and
//! nothing here would hold. Two sessions that begin and commit in turns find out: a pooler gives
//! the process that came free last, or the one that came free first, and one of the two is not
//! the one that a session had before.
//!
//! ```text
//!  a BEGIN, b BEGIN ─▶ a COMMIT, b COMMIT ─▶ a again: b's process?    it takes the last one
//!  a BEGIN, b BEGIN ─▶ b COMMIT, a COMMIT ─▶ a again: b's process?    it takes the first one
//! ```

use super::sql::{failure, value};
use super::{ConnError, ConnFailure, Endpoint};
use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};

const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
const BEGIN: &str = "BEGIN; SELECT pg_catalog.pg_backend_pid()";

impl Endpoint {
    /// Refuses a server on which these two sessions of ours do not keep their processes. Neither
    /// may be in a transaction.
    ///
    /// # Errors
    /// [`ConnError`]: it is a pooler, or nobody answers.
    pub async fn refuse_pooler(&self, a: &Client, b: &Client) -> Result<(), ConnError> {
        // The processes that `a` had, one transaction after the other.
        let mut pids = Vec::new();
        for (first, second) in [(a, b), (b, a)] {
            pids.push(self.ask_pid(a, BEGIN).await?);
            self.ask_pid(b, BEGIN).await?;
            for client in [first, second] {
                self.ask_pid(client, "COMMIT").await?;
            }
        }
        pids.push(self.ask_pid(a, PID).await?);
        if pids.windows(2).any(|pids| pids[0] != pids[1]) {
            return Err(self.failed(ConnFailure::Pooler));
        }
        Ok(())
    }

    /// With a limit: a pooler with one place alone would let `b` wait for `a`.
    async fn ask_pid(&self, client: &Client, sql: &str) -> Result<String, ConnError> {
        let limit = self.url.connect_timeout;
        let answer = timeout(limit, client.simple_query(sql)).await;
        let answer = answer
            .map_err(|_| self.failed(ConnFailure::Timeout(limit)))?
            .map_err(|error| self.failed(failure(error)))?;
        let pid = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => value(row, 0),
            _ => None,
        });
        Ok(pid.unwrap_or_default().to_owned())
    }
}
