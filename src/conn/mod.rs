//! Opens sessions with source and replica: where, as whom, how encrypted, pinned to what.
//!
//! ```text
//!  text ─▶ ConnectionUrl ─▶ Endpoint ─▶ login: each host ─▶ socket ─▶ TLS ─▶ log in ─▶ right kind? ─▶ session
//!           conninfo, url    side, name                                tls, trust         │
//!                                                          SQL: pinned Client, Pool ◀─────┤
//!                                           RawSession: COPY to COPY, bytes untouched ◀───┤
//!                                                          replication room: CopyBoth ◀───┘
//!
//!  auth logs in and wire frames for the last two, which speak the protocol without a library
//! ```
//!
//! Nothing is taken from environment variables or home directories. Passwords stay
//! in `SecretString`s, certificates and password files are read at every connect.

mod admission;
mod answers;
mod auth;
mod conninfo;
mod error;
mod hosts;
mod login;
mod parameters;
mod passfile;
mod pool;
mod pooler;
mod pulse;
mod raw;
mod socket;
mod sql;
mod tls;
mod trust;
mod url;
mod watched;
pub(crate) mod wire;

pub use error::{AuthError, ConnError, ConnFailure, ErrorResponse};
pub use pool::Pool;
pub use sql::{Endpoint, Session};
pub use tls::TlsError;
pub use url::{
    ChannelBinding, ConnectionUrl, SslMode, SslNegotiation, TargetSessionAttrs, UrlError,
};

pub(crate) use auth::{Backend, ServerParameters, log_in};
pub(crate) use login::{Login, SERVER_KIND_SQL, ServerKind, connect};
pub(crate) use pulse::{Pulse, Silence};
pub(crate) use raw::{ForwardError, RawSession};
pub(crate) use socket::ServerStream;
pub(crate) use sql::pins_sql;
pub(crate) use wire::{Incoming, TOO_MUCH, Wire, WireError};
