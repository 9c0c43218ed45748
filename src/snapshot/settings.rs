//! What an operator says about the first copy.

/// `[copy]`, but for what each table can override (see `mapping::Settings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tables, or parts of one, that are copied at the same time.
    pub workers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { workers: 4 }
    }
}
