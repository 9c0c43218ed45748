//! Demo.

/// The demo's data set, its live workload and its verdict.
pub mod crm;
