//! A pool of SQL sessions: deadpool's keeping, our connecting.
//!
//! A session whose batch failed or was cancelled may hold an open transaction, which
//! recycling does not see: its user takes it out (`Object::take`) and drops it.

use super::raw::RawSession;
use super::sql::{Endpoint, Session};
use super::{ConnError, ConnFailure, ServerStream};
use deadpool_postgres::{
    Connect, Manager, ManagerConfig, Object, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Config, SslMode, SslNegotiation};
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::{Client, Error};

/// For a free session, and for a new one over all hosts of the URL.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sessions of one kind with one database, at most so many, made as they are needed.
#[derive(Clone)]
pub struct Pool {
    inner: deadpool_postgres::Pool,
    endpoint: Endpoint,
    session: Session,
}

impl Pool {
    pub(super) fn new(
        endpoint: Endpoint,
        session: Session,
        max_size: usize,
    ) -> Result<Self, ConnError> {
        let config = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let connect = PinnedConnect {
            endpoint: endpoint.clone(),
            session,
        };
        let manager = Manager::from_connect(Config::new(), connect, config);
        let inner = deadpool_postgres::Pool::builder(manager)
            .max_size(max_size)
            .wait_timeout(Some(WAIT_TIMEOUT))
            .create_timeout(Some(WAIT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| endpoint.failed(ConnFailure::Pool(error.to_string())))?;
        Ok(Self {
            inner,
            endpoint,
            session,
        })
    }

    /// A session, recycled or new.
    ///
    /// # Errors
    /// [`ConnError`]: no new session could be made, or none came free in time.
    pub async fn get(&self) -> Result<Object, ConnError> {
        self.inner.get().await.map_err(|error| self.explain(error))
    }

    /// A session of the same kind beside the pool, of which COPY's bytes can be had.
    pub(crate) async fn raw(&self) -> Result<RawSession, ConnError> {
        RawSession::connect(&self.endpoint, self.session).await
    }

    /// Size, sessions in use and waiting callers.
    #[must_use]
    pub fn status(&self) -> deadpool_postgres::Status {
        self.inner.status()
    }

    /// Keeps at most so many from now on.
    pub fn resize(&self, max_size: usize) {
        self.inner.resize(max_size);
    }

    /// Ends all idle sessions; those in use end when they come back.
    pub fn close(&self) {
        self.inner.close();
    }

    fn explain(&self, error: PoolError) -> ConnError {
        let seconds = WAIT_TIMEOUT.as_secs();
        let failure = match error {
            PoolError::Backend(error) => {
                let text = error.to_string();
                match error
                    .into_source()
                    .map(|source| source.downcast::<ConnError>())
                {
                    Some(Ok(error)) => return *error,
                    _ => ConnFailure::Pool(text),
                }
            }
            PoolError::Timeout(TimeoutType::Wait) => ConnFailure::Pool(format!(
                "all {} sessions of the pool were busy for {seconds} s",
                self.status().max_size
            )),
            PoolError::Timeout(_) => ConnFailure::Timeout(WAIT_TIMEOUT),
            other => ConnFailure::Pool(other.to_string()),
        };
        self.endpoint.failed(failure)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

struct PinnedConnect {
    endpoint: Endpoint,
    session: Session,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl Connect for PinnedConnect {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(async move {
            match self.endpoint.connect_with_task(self.session).await {
                Ok(connected) => Ok(connected),
                Err(error) => Err(carry(error).await),
            }
        })
    }
}

/// deadpool wants the library's error, which only the library can make: ours rides in it as a
/// "failed handshake" and is taken out again in [`Pool::get`].
async fn carry(error: ConnError) -> Error {
    let mut config = Config::new();
    config
        .user("")
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    match config.connect_raw(tokio::io::empty(), Carrier(error)).await {
        Err(error) => error,
        Ok(_) => Error::__private_api_timeout(),
    }
}

struct Carrier(ConnError);

impl TlsConnect<tokio::io::Empty> for Carrier {
    type Stream = ServerStream;
    type Error = ConnError;
    type Future = Ready<Result<ServerStream, ConnError>>;

    fn connect(self, _: tokio::io::Empty) -> Self::Future {
        ready(Err(self.0))
    }
}
