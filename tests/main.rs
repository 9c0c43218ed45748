//! What the project promises, on real servers. One binary; a module for each family.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::too_many_lines)]

mod architecture;
mod cases;
mod cluster;
mod documents;
#[cfg(feature = "faults")]
mod fail_points;
mod faults;
mod golden;
mod kills;
mod scenarios;
mod support;
mod types;
mod verbs;
mod wire;
