//! How large a batch may grow.
/// `[apply]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Changes.
    pub batch_changes_max: usize,
    /// Bytes.
    pub batch_bytes_max: usize,
    /// Bytes.
    pub memory_max: usize,
}
