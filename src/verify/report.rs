//! What a comparison came to. The JSON form is an interface.

use super::compare::{DriftKind, Key};
use crate::pg::{Lsn, QualifiedName};
use crate::pipeline::PlannedTable;
use crate::progress::{Part, Proof};
use crate::telemetry::{Telemetry, Verified};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Source and replica at one position.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// All tables were compared, and are the same.
    pub in_sync: bool,
    /// The position.
    pub lsn: Lsn,
    /// Why the source could be held there only nearly.
    #[serde(default)]
    pub near: Option<String>,
    /// Those that were compared.
    pub tables: Vec<TableReport>,
    /// Those that were not.
    pub not_compared: Vec<PassedBy>,
    /// How long tables were compared, or looked at in vain.
    #[serde(skip)]
    pub took: Duration,
    /// Those of which a part was compared, for there was no time for more.
    #[serde(skip)]
    pub parts: Vec<Part>,
}

/// One table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableReport {
    /// The source table.
    pub table: String,
    /// The replica table.
    pub replica_table: String,
    /// It has the same rows on both sides; of counts only, as many.
    pub in_sync: bool,
    /// Rows that belong on the replica.
    pub source_rows: u64,
    /// Rows that are there.
    pub replica_rows: u64,
    /// Rows that only the source has.
    pub missing: u64,
    /// Rows that only the replica has.
    pub extra: u64,
    /// Rows of one key that are not the same.
    pub different: u64,
    /// A transaction of the source was in the way of an exact position: rows that differed were looked at
    /// again, and those are told that differed while the source had not changed them.
    #[serde(default)]
    pub rechecked: bool,
    /// Where its first part was compared, if it was compared in parts: the others were at later positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Lsn>,
    /// They were only counted.
    #[serde(skip)]
    pub counts_only: bool,
    /// Rows that are not the same, as many as were wanted.
    #[serde(skip)]
    pub rows: Vec<(DriftKind, Key)>,
    /// How long it took.
    #[serde(skip)]
    pub took: Duration,
    /// The two tables; of a report that was kept, none.
    #[serde(skip)]
    pub names: Option<(QualifiedName, QualifiedName)>,
}

/// A table that was not compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassedBy {
    /// The source table.
    pub table: String,
    /// Why.
    pub reason: NotCompared,
}

/// Why a table was not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotCompared {
    /// Its copy is not whole yet, or is newer than the cut.
    NotCopied,
    /// It is set aside.
    Quarantined,
    /// No table of the publication that a rule maps has its name now.
    Gone,
    /// It was emptied or rewritten after the cut: what was there cannot be read any more.
    Rewritten,
    /// A transaction of the source is in the way of an exact position, and its rows, which differ, have no key by
    /// which they could be looked at again.
    NoKey,
    /// The same, and so many of the rows that differ changed on the source at each look.
    Changing(u64),
    /// The same, and so many rows differ: too many to be looked at again.
    TooMany(u64),
    /// The same, and there are not as many rows, for all that can be counted.
    Uncertain,
    /// A server refuses.
    Refused(String),
}

impl NotCompared {
    /// Whether what was compared before of the table stands.
    pub(super) fn is_of_the_moment(&self) -> bool {
        match self {
            Self::Changing(_) | Self::TooMany(_) | Self::Refused(_) | Self::Rewritten => true,
            Self::NotCopied | Self::Quarantined | Self::Gone | Self::NoKey | Self::Uncertain => {
                false
            }
        }
    }
}

impl std::fmt::Display for NotCompared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotCopied => f.write_str("its copy is not whole yet"),
            Self::Quarantined => f.write_str("it is set aside: `pglockstep errors list`"),
            Self::Gone => f.write_str(
                "no table of the publication that a rule maps has this name now: it was renamed, or left",
            ),
            Self::Rewritten => f.write_str(
                "it was emptied or rewritten after the comparison had begun: compare it again",
            ),
            Self::NoKey => f.write_str(
                "a transaction of the source is in the way of an exact position, and its rows have no key by which they could be looked at again",
            ),
            Self::Changing(rows) => write!(
                f,
                "a transaction of the source is in the way of an exact position, and {rows} rows changed there at each look, or commits hang there on a standby (GRANT pg_read_all_stats lets the role see whether they do)"
            ),
            Self::TooMany(rows) => write!(
                f,
                "a transaction of the source is in the way of an exact position, and {rows} rows differ, too many to be looked at again"
            ),
            Self::Uncertain => f.write_str(
                "a transaction of the source is in the way of an exact position, and only there counts that differ say something",
            ),
            Self::Refused(why) => write!(f, "it cannot be read: {why}"),
        }
    }
}

impl Report {
    pub(super) fn new(lsn: Lsn, near: Option<String>) -> Self {
        Self {
            in_sync: true,
            lsn,
            near,
            tables: Vec::new(),
            not_compared: Vec::new(),
            parts: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// The form that is an interface.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("names and numbers only"))
    }

    /// Has the metrics say it.
    pub fn tell(&self, telemetry: &Telemetry) {
        for proof in self.proofs() {
            let table = telemetry.table(&proof.source, &proof.replica);
            table.verified(&proof.verified(Duration::ZERO));
        }
    }

    /// What is to be kept of it.
    #[must_use]
    pub fn proofs(&self) -> Vec<Proof> {
        let proof = |table: &TableReport| {
            let (source, replica) = table.names.clone()?;
            Some(Proof {
                source,
                replica,
                counts_only: table.counts_only,
                at: table.since.unwrap_or(self.lsn),
                source_rows: table.source_rows,
                replica_rows: table.replica_rows,
                drift: [table.missing, table.extra, table.different],
                in_sync: table.in_sync,
                rechecked: table.rechecked,
                took: table.took,
            })
        };
        self.tables.iter().filter_map(proof).collect()
    }

    pub(super) fn add(&mut self, table: TableReport) {
        self.in_sync &= table.in_sync;
        self.tables.push(table);
    }

    pub(super) fn break_off(&mut self, part: Part, reason: Option<NotCompared>) {
        self.in_sync = false;
        if let Some(reason) = reason {
            self.pass_by(&part.source, reason);
        }
        self.parts.push(part);
    }

    pub(super) fn pass_by(&mut self, table: &QualifiedName, reason: NotCompared) {
        self.in_sync = false;
        self.not_compared.push(PassedBy {
            table: table.to_string(),
            reason,
        });
    }
}

impl TableReport {
    /// Of a table of which nothing was compared yet, or a part.
    pub(super) fn begun(planned: &PlannedTable, part: Option<&Part>) -> Self {
        let names = (planned.source.name.clone(), planned.mapping.replica.clone());
        let [missing, extra, different] = part.map_or([0; 3], |part| part.drift);
        Self {
            table: names.0.to_string(),
            replica_table: names.1.to_string(),
            in_sync: part.is_none_or(|part| part.in_sync),
            source_rows: part.map_or(0, |part| part.source_rows),
            replica_rows: part.map_or(0, |part| part.replica_rows),
            missing,
            extra,
            different,
            rechecked: part.is_some_and(|part| part.rechecked),
            since: part.map(|part| part.since),
            counts_only: false,
            rows: Vec::new(),
            took: part.map_or(Duration::ZERO, |part| part.took),
            names: Some(names),
        }
    }

    /// With what was found of some more rows; so many are named of each kind.
    pub(super) fn add(&mut self, more: Self, named_max: usize) {
        self.in_sync &= more.in_sync;
        self.source_rows += more.source_rows;
        self.replica_rows += more.replica_rows;
        self.missing += more.missing;
        self.extra += more.extra;
        self.different += more.different;
        self.rechecked |= more.rechecked;
        self.rows.extend(more.rows);
        keep_named(&mut self.rows, named_max);
    }

    /// What is to be known of it in the next turn: it is compared up to a key's values, a share of all.
    pub(super) fn part(
        &self,
        planned: &PlannedTable,
        at: Lsn,
        (form, to, share): (String, Vec<String>, f64),
    ) -> Part {
        Part {
            source: planned.source.name.clone(),
            replica: planned.mapping.replica.clone(),
            form,
            to,
            share,
            since: self.since.unwrap_or(at),
            source_rows: self.source_rows,
            replica_rows: self.replica_rows,
            drift: [self.missing, self.extra, self.different],
            in_sync: self.in_sync,
            rechecked: self.rechecked,
            took: self.took,
        }
    }
}

/// Leaves so many rows of each kind.
pub(super) fn keep_named(rows: &mut Vec<(DriftKind, Key)>, named_max: usize) {
    let mut left = [named_max; 3];
    rows.retain(|(kind, _)| {
        let left = &mut left[*kind as usize];
        let is_named = *left > 0;
        *left = left.saturating_sub(1);
        is_named
    });
}

impl Proof {
    /// For the metrics; found so long ago.
    #[must_use]
    pub fn verified(&self, age: Duration) -> Verified {
        Verified {
            at: self.at,
            source_rows: self.source_rows,
            replica_rows: self.replica_rows,
            drift: (!self.counts_only).then_some(self.drift),
            in_sync: self.in_sync,
            age,
        }
    }
}
