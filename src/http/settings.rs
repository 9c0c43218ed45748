//! What an operator says about the endpoints.

use crate::telemetry::ReadyBounds;
use std::net::{Ipv4Addr, SocketAddr};

/// `[http]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Where to listen. Nothing here asks for a password: keep it on loopback or a private network.
    pub listen: SocketAddr,
    /// How far behind still counts as ready.
    pub ready: ReadyBounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9808)),
            ready: ReadyBounds {
                lag_seconds_max: Some(30.0),
                lag_bytes_max: None,
            },
        }
    }
}
