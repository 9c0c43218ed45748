//! What scenarios are made of: a source and a replica, waiting for facts, comparing rows,
//! and the daemon as an operator runs it.

// Each family of scenarios uses a part of it.
#![allow(dead_code, unused_imports)]

mod books;
mod daemon;
mod evidence;
mod line;
mod pair;
mod random;
mod reads;
mod rows;
mod scenario;
mod types;
mod wait;

pub use books::{
    OPEN_ERRORS, QUARANTINE, drift_of, errors, reported, retry, retry_in_vain, skip, until_metric,
    verb, with_short_names,
};
pub use daemon::{Daemon, Response, beside, free_port, run_verb};
pub use evidence::evidence;
pub use line::Line;
pub use pair::{DATABASE, Pair, PairOptions};
pub use random::{Random, is_soak, seed};
pub use reads::expect_reads;
pub use rows::{Digest, Row, assert_same_rows, digest, fetch_rows, row_differences};
pub use scenario::{Family, Scenario, row, samples};
pub use types::{TYPES_SETUP_SQL, TypeCase, type_cases};
pub use wait::{WAIT_SECONDS_MAX, eventually};
