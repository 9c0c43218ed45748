//! Source side.
