//! What is proven of each table: the last comparison, and since when it is known to be in sync.

use super::family::{Family, Sample};
use super::table::Tables;
use crate::pg::Lsn;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::time::Duration;
use tokio::time::Instant;

/// What a comparison of a table found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Where both sides were.
    pub at: Lsn,
    /// Rows that belong on the replica.
    pub source_rows: u64,
    /// Rows that are there.
    pub replica_rows: u64,
    /// Rows that are missing, extra, different; `None`: they were only counted.
    pub drift: Option<[u64; 3]>,
    /// Nothing was found.
    pub in_sync: bool,
    /// How long ago.
    pub age: Duration,
}

/// What is known of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Proof {
    rows: Option<[u64; 2]>,
    drift: Option<[u64; 3]>,
    in_sync: Option<bool>,
    /// Where and when it was last proven to be in sync.
    proven: Option<(Lsn, Instant)>,
    /// How much of it is compared, where that takes several turns.
    part: Option<f64>,
}

impl Proof {
    pub(super) fn take(&mut self, found: &Verified) {
        self.rows = Some([found.source_rows, found.replica_rows]);
        if found.drift.is_some() {
            self.part = None;
        }
        if let Some(drift) = found.drift {
            self.drift = Some(drift);
            self.in_sync = Some(found.in_sync);
            if found.in_sync {
                let now = Instant::now();
                // A clock that runs since the machine's start may not reach back so far.
                let proven = now.checked_sub(found.age).unwrap_or(now);
                self.proven = Some((found.at, proven));
            }
        } else if !found.in_sync {
            // As many rows prove nothing; another number does.
            self.in_sync = Some(false);
        }
    }

    pub(super) fn take_part(&mut self, share: f64, drift: [u64; 3]) {
        self.part = Some(share);
        if drift != [0; 3] {
            self.drift = Some(drift);
            self.in_sync = Some(false);
        }
    }
}

const KINDS: [&str; 3] = ["missing", "extra", "different"];
const SIDES: [&str; 2] = ["source", "replica"];

const ROWS: Family = Family::gauge(
    "pglockstep_table_rows",
    &["side", "table"],
    "Rows when both sides were last counted; of the source those that belong on the replica.",
);
const DRIFT: Family = Family::gauge(
    "pglockstep_drift_rows",
    &["table", "kind"],
    "Rows that the last comparison found missing, extra or different; absent before the first.",
);
const IN_SYNC: Family = Family::gauge(
    "pglockstep_in_sync",
    &["table"],
    "1 where the last comparison found no difference, 0 where it did; absent before the first.",
);
const VERIFIED_LSN: Family = Family::gauge(
    "pglockstep_verified_lsn",
    &["table"],
    "Where the table was last proven to be in sync; absent until it was.",
);
const VERIFIED_AGE: Family = Family::gauge(
    "pglockstep_verified_age_seconds",
    &["table"],
    "Since the table was last proven to be in sync; absent until it was.",
);
const VERIFIED_PART: Family = Family::gauge(
    "pglockstep_verified_part_ratio",
    &["table"],
    "How much of a huge table is compared, which takes several turns; absent between two such comparisons.",
);
const FAMILIES: [&Family; 6] = [
    &ROWS,
    &DRIFT,
    &IN_SYNC,
    &VERIFIED_LSN,
    &VERIFIED_AGE,
    &VERIFIED_PART,
];

/// Makes the metrics at a scrape.
pub(super) struct ProofCollector {
    tables: Tables,
    descs: Vec<Desc>,
}

impl ProofCollector {
    pub(super) fn new(tables: Tables) -> prometheus::Result<Self> {
        let descs = FAMILIES.iter().map(|family| family.desc());
        Ok(Self {
            descs: descs.collect::<Result<_, _>>()?,
            tables,
        })
    }
}

impl Collector for ProofCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let proofs: Vec<(String, Proof)> = self
            .tables
            .snapshot()
            .into_iter()
            .map(|(name, facts)| (name.to_string(), facts.proof()))
            .collect();
        let rows = proofs.iter().flat_map(|(table, proof)| {
            let both = SIDES.into_iter().zip(proof.rows.into_iter().flatten());
            both.map(move |(side, rows)| -> Sample<'_> { (vec![side, table], rows as f64) })
        });
        let drift = proofs.iter().flat_map(|(table, proof)| {
            let all = KINDS.into_iter().zip(proof.drift.into_iter().flatten());
            all.map(move |(kind, rows)| -> Sample<'_> { (vec![table, kind], rows as f64) })
        });
        let each = |family: &Family, value: fn(&Proof) -> Option<f64>| {
            let samples = proofs
                .iter()
                .filter_map(|(table, proof)| Some((vec![table.as_str()], value(proof)?)));
            family.samples(samples)
        };
        vec![
            ROWS.samples(rows),
            DRIFT.samples(drift),
            each(&IN_SYNC, |proof| proof.in_sync.map(f64::from)),
            each(&VERIFIED_LSN, |proof| Some(proof.proven?.0.as_u64() as f64)),
            each(&VERIFIED_AGE, |proof| {
                Some(proof.proven?.1.elapsed().as_secs_f64())
            }),
            each(&VERIFIED_PART, |proof| proof.part),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_comparison_proves_and_only_equal_rows() {
        let lsn = |raw| Lsn::from_wire(raw).unwrap();
        let found = |at, drift: Option<[u64; 3]>, in_sync| Verified {
            at: lsn(at),
            source_rows: 5,
            replica_rows: 5,
            drift,
            in_sync,
            age: Duration::ZERO,
        };
        let mut proof = Proof::default();
        proof.take(&found(1, None, true));
        assert_eq!((proof.in_sync, proof.drift), (None, None));
        assert!(proof.proven.is_none());
        proof.take(&found(2, Some([0; 3]), true));
        assert_eq!(proof.in_sync, Some(true));
        assert_eq!(proof.proven.unwrap().0, lsn(2));
        proof.take(&found(3, Some([0, 1, 2]), false));
        assert_eq!((proof.in_sync, proof.drift), (Some(false), Some([0, 1, 2])));
        assert_eq!(proof.proven.unwrap().0, lsn(2), "it was, then");
        proof.take(&found(4, None, true));
        assert_eq!(proof.in_sync, Some(false), "as many, and not the same");
    }
}
