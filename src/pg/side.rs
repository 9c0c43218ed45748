//! The two ends of a pipeline, of equal standing everywhere.

/// Which database is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The master: read, never written.
    Source,
    /// The database kept in step.
    Replica,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Replica => "replica",
        })
    }
}
