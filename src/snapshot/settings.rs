//! What an operator says about the first copy.

/// `[copy]`, but for what each table can override (see `mapping::Settings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tables, or parts of one, that are copied at the same time.
    pub workers: usize,
    /// Tables of so many bytes on are copied in ranges, by several workers at the same time.
    /// That takes more room in the replica's indexes: keys then come in no order, and a leaf
    /// that is split in the middle stays half full.
    pub split_from: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 4,
            split_from: 1 << 30,
        }
    }
}
