//! Replica side.
