//! The endpoints: they read the telemetry, and hold no logic.
//!
//! | path | answers |
//! | --- | --- |
//! | `/` | the status page, for people |
//! | `/metrics` | Prometheus text format 0.0.4 |
//! | `/health` | 200 while the process works and the stream moves, else 503; one line |
//! | `/healthz` | the same as JSON: each part, and the whole status |
//! | `/readyz` | 200 only while streaming and within the configured lag, else 503; one line |
//! | `/admin/tables` | JSON |
//!
//! Whoever can reach the port can read them, so everything here is bounded: connections,
//! the size of a request, and the time one may take from its first byte to its last.

mod client;
mod routes;
mod server;
mod settings;

pub use client::{FetchStatusError, fetch_status};
pub use server::{BindError, bind, serve};
pub use settings::Settings;

#[cfg(test)]
mod tests;
