//! Demo.

pub mod cluster;
