//! What an operator says about applying.

/// `[apply]`, but for what each table can override (see `mapping::Settings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A batch takes no further transaction once it holds this many changes.
    pub batch_changes_max: usize,
    /// A batch takes no further transaction once it holds this many bytes.
    pub batch_bytes_max: usize,
    /// Bytes of changes in memory, over all queues.
    pub memory_max: usize,
    /// What becomes of a change that cannot be applied.
    pub on_error: OnError,
}

/// What becomes of a change that cannot be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The pipeline stops before its transaction.
    #[default]
    Stop,
    /// Its table is set aside: that change and all after it are kept, and the others go on.
    Quarantine,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_changes_max: 20_000,
            batch_bytes_max: 16 << 20,
            memory_max: 64 << 20,
            on_error: OnError::Stop,
        }
    }
}
