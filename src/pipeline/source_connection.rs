//! The connections that speak the replication protocol: opened while the catalogues are read, looked at
//! before they are used, and let in where a daemon that is gone still holds the slot.

use super::start::Start;
use super::{PipelineConfig, PipelineError};
use crate::pg::Lsn;
use crate::reactor::Reactor;
use crate::replication::{
    ReplicationConnection, ReplicationError, ReplicationStream, SlotName, SlotUser, StreamOptions,
    end_dead_user,
};
use tokio::task::JoinHandle;

/// `object_in_use`
const SLOT_IN_USE: &str = "55006";

/// A connection that is being opened.
pub(super) type Connecting = JoinHandle<Result<ReplicationConnection, ReplicationError>>;

/// On the thread that will listen, should this connection be the one that streams.
pub(super) fn connecting(listener: &Reactor, config: &PipelineConfig) -> Connecting {
    let source = config.source.clone();
    listener.spawn(async move { ReplicationConnection::connect(&source).await })
}

impl Start<'_> {
    /// Another connection, for a snapshot of its own.
    pub(super) async fn replication(&self) -> Result<ReplicationConnection, PipelineError> {
        self.introduced(connecting(&self.listener, self.config))
            .await
    }

    pub(super) async fn introduced(
        &self,
        connecting: Connecting,
    ) -> Result<ReplicationConnection, PipelineError> {
        let connected = connecting.await;
        let mut connection = connected.map_err(|_| PipelineError::ReceiverGone)??;
        // Of several hosts another one may have answered this time.
        let system = connection.identify_system().await?.system_id;
        let known = &self.source_server.system_id;
        if !known.is_empty() && system != *known {
            return Err(PipelineError::Definite {
                message: format!(
                    "one session with the source is with system {known}, another with system {system}"
                ),
                advice: "all hosts of [source] url must be servers of one system".into(),
            });
        }
        Ok(connection)
    }

    /// Begins the stream; the slot may be held by a daemon that is gone.
    pub(super) async fn stream_from(
        &self,
        connection: ReplicationConnection,
        slot: &SlotName,
        applied: Lsn,
        options: &StreamOptions,
    ) -> Result<ReplicationStream, PipelineError> {
        let started = connection.start(slot, applied, options).await;
        if let Err(error) = &started
            && error.code() == Some(SLOT_IN_USE)
        {
            self.free_slot(slot).await?;
        }
        Ok(started?)
    }

    /// This daemon owns the pipeline: whoever still holds the slot under its name did before. One
    /// that is alive says so every second; one whose host is gone would hold it for long.
    async fn free_slot(&self, slot: &SlotName) -> Result<(), PipelineError> {
        let name = self.config.source.effective_application_name();
        match end_dead_user(&self.source, slot, name).await? {
            SlotUser::Ended => {
                tracing::warn!(%slot, "ended the walsender of a daemon that is gone: it held the slot");
            }
            SlotUser::Hidden => tracing::warn!(
                %slot,
                "the slot is held, and this role may not see whether by a daemon that is gone: \
                 waiting for wal_sender_timeout; GRANT pg_read_all_stats to it on the source"
            ),
            SlotUser::None | SlotUser::Alive => {}
        }
        Ok(())
    }
}
