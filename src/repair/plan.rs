//! What a repair would change, and whether it may; pure.

use crate::verify::{DriftKind, Key, TableReport};
use serde::{Deserialize, Serialize};

/// How far a repair may go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Rows that only the replica has go; without it they stay, and are told.
    pub delete_extra: bool,
    /// Rows that are changed at most, of all tables together.
    pub max_rows: u64,
    /// Rows that are changed at most, as a part of each table.
    pub max_percent: f64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            delete_extra: false,
            max_rows: 10_000,
            max_percent: 10.0,
        }
    }
}

impl Bounds {
    /// Rows of a table that would be changed.
    pub(super) fn changes(&self, table: &TableReport) -> u64 {
        let extra = if self.delete_extra { table.extra } else { 0 };
        table.missing + table.different + extra
    }

    /// Why these tables are not mended; everything or nothing is.
    pub(super) fn refusal(&self, tables: &[&TableReport]) -> Option<String> {
        let all: u64 = tables.iter().map(|table| self.changes(table)).sum();
        if all > self.max_rows {
            let most = self.max_rows;
            return Some(format!(
                "{all} rows would be changed, more than --max-rows {most} allows"
            ));
        }
        let too_many = |table: &&&TableReport| self.percent(table) > self.max_percent;
        tables.iter().find(too_many).map(|table| {
            format!(
                "{:.2} % of {} would be changed, more than --max-percent {} allows",
                self.percent(table),
                table.table,
                self.max_percent
            )
        })
    }

    /// Of 100 rows so many would be changed.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(super) fn percent(&self, table: &TableReport) -> f64 {
        let rows = table.source_rows.max(table.replica_rows).max(1);
        self.changes(table) as f64 * 100.0 / rows as f64
    }
}

/// The keys of the rows that differ so. A key with NULL in it finds no row.
pub(super) fn keys(table: &TableReport, is_meant: impl Fn(DriftKind) -> bool) -> Vec<Vec<String>> {
    let rows = table.rows.iter().filter(|(kind, _)| is_meant(*kind));
    let mut keys: Vec<Vec<String>> = rows.filter_map(|(_, key)| whole(key)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn whole(key: &Key) -> Option<Vec<String>> {
    key.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn table(source_rows: u64, [missing, extra, different]: [u64; 3]) -> TableReport {
        TableReport {
            table: "public.t".into(),
            replica_table: "public.t".into(),
            in_sync: false,
            source_rows,
            replica_rows: source_rows,
            missing,
            extra,
            different,
            since: None,
            rechecked: false,
            counts_only: false,
            rows: Vec::new(),
            took: Duration::ZERO,
            names: None,
        }
    }

    #[test]
    fn too_many_rows_are_refused_whatever_table_they_are_of() {
        let bounds = Bounds {
            max_rows: 5,
            max_percent: 10.0,
            delete_extra: false,
        };
        assert_eq!(
            bounds.refusal(&[&table(100, [2, 9, 1]), &table(50, [1, 0, 1])]),
            None
        );
        let refused = bounds.refusal(&[&table(1000, [3, 0, 0]), &table(1000, [0, 0, 3])]);
        assert!(refused.unwrap().contains("6 rows would be changed"));
        let refused = bounds.refusal(&[&table(1000, [1, 0, 0]), &table(10, [1, 0, 1])]);
        assert!(refused.unwrap().contains("20.00 % of public.t"));
        let deleting = Bounds {
            delete_extra: true,
            ..bounds
        };
        assert!(deleting.refusal(&[&table(100, [2, 9, 1])]).is_some());
        assert_eq!(bounds.refusal(&[&table(0, [0, 0, 0])]), None);
    }

    #[test]
    fn keys_are_by_kind_and_whole() {
        let key = |text: &str| vec![Some(text.to_owned())];
        let mut table = table(100, [1, 2, 1]);
        table.rows = vec![
            (DriftKind::Missing, key("1")),
            (DriftKind::Extra, key("2")),
            (DriftKind::Extra, vec![None]),
            (DriftKind::Different, key("3")),
        ];
        assert_eq!(
            keys(&table, |kind| kind != DriftKind::Extra),
            [["1"], ["3"]]
        );
        assert_eq!(keys(&table, |kind| kind == DriftKind::Extra), [["2"]]);
    }
}
