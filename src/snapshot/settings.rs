//! What an operator says about the first copy.

/// What becomes of a replica table's indexes and keys while it is empty and copied into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Indexes {
    /// They stay, and every row goes into each of them.
    #[default]
    Keep,
    /// They are dropped before and built after the data; so are foreign keys where they fire.
    After,
}

/// `[copy]`, but for what each table can override (see `mapping::Settings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Tables, or parts of one, that are copied at the same time.
    pub workers: usize,
    /// Tables of so many bytes on are copied in ranges, by several workers at the same time.
    /// That takes more room in the replica's indexes: keys then come in no order, and a leaf
    /// that is split in the middle stays half full.
    pub split_from: u64,
    /// When indexes and keys are built.
    pub indexes: Indexes,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 4,
            split_from: 128 << 20,
            indexes: Indexes::Keep,
        }
    }
}
