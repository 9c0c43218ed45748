//! Replica side.
mod settings;
pub use settings::Settings;
