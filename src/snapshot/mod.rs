//! First copy.
mod settings;
pub use settings::Settings;
