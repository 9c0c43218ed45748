//! What a repair would do, or did. The JSON form is an interface.

use crate::pg::Lsn;
use crate::verify::{self, DriftKind, Key, PassedBy};
use serde::{Deserialize, Serialize};

/// All tables of a repair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Rows were changed.
    pub applied: bool,
    /// Where both sides were compared.
    pub lsn: Lsn,
    /// Why nothing was changed, though it was to be.
    pub refused: Option<String>,
    /// Those that are not the same.
    pub tables: Vec<TableRepair>,
    /// Those that could not be compared.
    pub not_compared: Vec<PassedBy>,
    /// The tables whose rows were changed, afterwards.
    pub verified: Option<verify::Report>,
    /// Why they were not compared again.
    pub unverified: Option<String>,
    /// All tables that are not the same are among `tables`.
    pub is_whole: bool,
}

/// One table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableRepair {
    /// The source table.
    pub table: String,
    /// The replica table.
    pub replica_table: String,
    /// Rows that belong on the replica.
    pub source_rows: u64,
    /// Rows that only the source has.
    pub missing: u64,
    /// Rows that only the replica has.
    pub extra: u64,
    /// Rows of one key that are not the same.
    pub different: u64,
    /// Of 100 rows so many are to be changed.
    pub percent: f64,
    /// How it is mended.
    pub way: Way,
    /// The key's columns on the replica; empty without a key.
    pub key: Vec<String>,
    /// The first of the rows that are not the same.
    pub rows: Vec<RowToMend>,
    /// What was done.
    pub done: Option<Deeds>,
    /// Why it was not done, or not to its end.
    pub error: Option<String>,
}

/// How a table is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Row by row, at a cut.
    Rows,
    /// It has no key, and is copied again: rows that only the replica has go with it.
    Resync,
    /// It is let be: it has no key, and rows that only the replica has are to stay; or nobody asked, and
    /// other rows than the source's may win there.
    LetBe,
}

/// A row that is not the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowToMend {
    /// How.
    pub kind: DriftKind,
    /// Its key, as text; without a key its hash.
    pub key: Key,
}

/// Rows that were changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deeds {
    /// They were missing.
    pub inserted: u64,
    /// They were different.
    pub updated: u64,
    /// Only the replica had them.
    pub deleted: u64,
}

impl Report {
    /// The form that is an interface.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("names, texts and numbers"))
    }

    /// Source and replica are the same, as far as is known.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        let is_mended = |table: &TableRepair| table.way != Way::LetBe && table.error.is_none();
        self.is_whole
            && self.unverified.is_none()
            && self.not_compared.is_empty()
            && self.tables.iter().all(is_mended)
            && match &self.verified {
                Some(verified) => verified.in_sync,
                None => self.tables.is_empty(),
            }
    }
}

impl Deeds {
    pub(super) fn add(&mut self, more: &Self) {
        self.inserted += more.inserted;
        self.updated += more.updated;
        self.deleted += more.deleted;
    }

    /// Rows altogether.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inserted + self.updated + self.deleted
    }
}

/// Of the words that the note of each row has.
impl FromIterator<String> for Deeds {
    fn from_iter<I: IntoIterator<Item = String>>(words: I) -> Self {
        let mut deeds = Self::default();
        for word in words {
            match word.as_str() {
                "inserted" => deeds.inserted += 1,
                "updated" => deeds.updated += 1,
                _ => deeds.deleted += 1,
            }
        }
        deeds
    }
}
