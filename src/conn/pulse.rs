//! Whether the server still works for a session that waits for its answer.
//!
//! TCP finds out within a minute that a peer is gone. It does not find one that is there and
//! says nothing: a frozen server, or something in between that keeps our half of a connection
//! and has lost the other. So who has waited for long asks, by another session:
//!
//! ```text
//!  an answer is due, and not a byte for tcp_user_timeout ─▶ another session: what is the first one doing?
//!     it works, it waits for a lock or for the rest of a COPY ─▶ wait on, ask again after as long
//!     the server refuses us (all places taken, another password) ─▶ it lives: the same
//!     it is not there; it is idle; nobody answers ─▶ a moment later once more ─▶ lost
//! ```
//!
//! An idle one is then ended on the server, for it may hold locks that the next one needs.

use super::answers::Answers;
use super::sql::{Endpoint, Session};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

/// However short `tcp_user_timeout` is, a server is not asked more often.
const ASK_AFTER_MIN: Duration = Duration::from_secs(1);
/// An answer may be on its way while we ask after it.
const ANSWER_TRAVELS_MAX: Duration = Duration::from_secs(5);
/// Between two looks at the clock.
const LOOKS_EVERY_MAX: Duration = Duration::from_secs(5);

/// What a process of the server does; one that is idle and certainly ours may be ended.
const STATE_SQL: &str = "\
SELECT a.state,
       CASE WHEN $2::bool AND a.state LIKE 'idle%' AND a.usename = current_user
             AND a.datname = pg_catalog.current_database()
             AND a.application_name = pg_catalog.current_setting('application_name')
            THEN pg_catalog.pg_terminate_backend(a.pid) END
  FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = $1";

/// Since when a stream has waited in vain; written by the stream, read by who watches it.
#[derive(Debug)]
pub(crate) struct Silence {
    origin: Instant,
    /// Milliseconds since `origin`, and one; 0 while nothing is waited for.
    since: AtomicU64,
}

impl Silence {
    fn begin(&self) {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.begin_anew();
        }
    }

    fn begin_anew(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Instant> {
        let ms = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.origin + Duration::from_millis(ms))
    }
}

/// A stream's own part: whether the server owes it an answer.
#[derive(Debug)]
pub(super) struct Attention {
    silence: Arc<Silence>,
    answers: Answers,
}

impl Default for Attention {
    fn default() -> Self {
        Self {
            silence: Arc::new(Silence {
                origin: Instant::now(),
                since: AtomicU64::new(0),
            }),
            answers: Answers::default(),
        }
    }
}

impl Attention {
    pub(super) fn silence(&self) -> Arc<Silence> {
        Arc::clone(&self.silence)
    }

    /// These bytes were sent.
    pub(super) fn said(&mut self, bytes: &[u8]) {
        self.answers.sent(bytes);
        if self.answers.are_due() {
            self.silence.begin_anew();
        }
    }

    /// There is nothing to read, and somebody wants to.
    pub(super) fn waits(&mut self) {
        if self.answers.are_due() {
            self.silence.begin();
        }
    }

    /// These bytes came. Nobody waits until they are dealt with.
    pub(super) fn heard(&mut self, bytes: &[u8]) {
        self.answers.heard(bytes);
        self.silence.end();
    }
}

/// Finds out whether a session is lost.
#[derive(Debug)]
pub(crate) struct Pulse {
    endpoint: Endpoint,
    /// The server's end.
    pid: i32,
    silence: Arc<Silence>,
}

impl Pulse {
    pub(crate) fn new(endpoint: Endpoint, pid: i32, silence: Arc<Silence>) -> Self {
        Self {
            endpoint,
            pid,
            silence,
        }
    }

    /// Ends when the session is lost, with the reason.
    pub(crate) async fn lost(&self) -> String {
        let ask_after = self.endpoint.url.tcp.user_timeout.max(ASK_AFTER_MIN);
        let looks_every = (ask_after / 4).min(LOOKS_EVERY_MAX);
        let mut answered_at = None;
        loop {
            sleep(looks_every).await;
            let Some(since) = self.silence.since() else {
                continue;
            };
            if answered_at
                .max(Some(since))
                .is_none_or(|at| at.elapsed() < ask_after)
            {
                continue;
            }
            let suspicious = self.ask(false).await.is_some();
            sleep(ANSWER_TRAVELS_MAX.min(ask_after)).await;
            answered_at = Some(Instant::now());
            if !suspicious || self.silence.since() != Some(since) {
                continue;
            }
            if let Some(why) = self.ask(true).await
                && self.silence.since() == Some(since)
            {
                let seconds = since.elapsed().as_secs();
                return format!("no answer for {seconds} s, and {why}");
            }
        }
    }

    /// What speaks against the session. Boxed, for a session that is opened has a pulse itself.
    fn ask(&self, ends_idle: bool) -> Pin<Box<dyn Future<Output = Option<String>> + Send + '_>> {
        Box::pin(async move {
            let (client, task, _) = match self.endpoint.connect_unwatched(Session::SourceRead).await
            {
                Ok(connected) => connected,
                Err(error) => return error.is_out_of_reach().then(|| error.to_string()),
            };
            let limit = self.endpoint.url.connect_timeout;
            let answer =
                timeout(limit, client.query_opt(STATE_SQL, &[&self.pid, &ends_idle])).await;
            task.abort();
            match answer {
                Ok(Ok(Some(row))) => match row.try_get::<_, Option<&str>>(0) {
                    Ok(Some(state)) if state.starts_with("idle") => {
                        Some(format!("the server's end (pid {}) is {state}", self.pid))
                    }
                    _ => None,
                },
                Ok(Ok(None)) => Some(format!("the server's end (pid {}) is gone", self.pid)),
                Ok(Err(_)) | Err(_) => Some("another session is not answered either".to_owned()),
            }
        })
    }
}

/// Ends a session's task when the session is lost; ends with it.
pub(super) fn watch(pulse: Pulse, session: AbortHandle) {
    let ended = {
        let session = session.clone();
        async move {
            while !session.is_finished() {
                sleep(LOOKS_EVERY_MAX).await;
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = ended => {}
            why = pulse.lost() => {
                tracing::warn!(side = %pulse.endpoint.side, reason = why, "session lost");
                session.abort();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_due_until_the_server_is_ready() {
        let mut attention = Attention::default();
        let silence = attention.silence();
        attention.waits();
        assert!(silence.since().is_none(), "nothing was asked");
        attention.said(b"\0\0\0\x08\0\x03\0\0");
        assert!(silence.since().is_some());
        attention.heard(b"R\0\0\0\x08\0\0\0\0");
        assert!(silence.since().is_none(), "somebody has to read it first");
        attention.waits();
        assert!(silence.since().is_some(), "more is to come");
        attention.heard(b"Z\0\0\0\x05I");
        attention.waits();
        assert!(silence.since().is_none());
    }
}
