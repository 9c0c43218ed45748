//! First copy.
