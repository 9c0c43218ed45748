//! Pipeline.
mod settings;
pub use settings::RetrySettings;
