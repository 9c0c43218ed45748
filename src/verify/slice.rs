//! Which parts of a huge table are compared one after the other; pure.
//!
//! ```text
//!  keys sampled on the source          k1        k2        k3
//!  slices                     ── k1 ] ( k1 ── k2 ] ( k2 ── k3 ] ( k3 ──
//! ```
//!
//! Slices need not be even, only the same for both sides, and no row may be outside all of them. So a table
//! has slices only where its key is the primary one of both sides, in one order of columns, which has no NULL and an
//! index by which a slice is read without all the rest; and of types that every server orders alike.

use super::statement::TableQueries;
use crate::catalog::Table;
use crate::mapping::{ColumnValue, RowIdentity, TableMapping};
use crate::pg::{quote_ident, quote_literal};
use crate::pipeline::PlannedTable;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How large a slice is on the source, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceSize(pub u64);

impl Default for SliceSize {
    /// Some seconds' worth.
    fn default() -> Self {
        Self(256 << 20)
    }
}

/// A table of less than so many slices is read at once, which is cheaper.
const SLICES_MIN: u64 = 4;
/// Pages of the source that are sampled for each slice: with fewer slices are too uneven.
const PAGES_SAMPLED: u64 = 4;
const PAGE: u64 = 8192;
/// Types whose order is the same on every server, and whose text says all of a value.
const ORDERED: [&str; 7] = [
    "int2",
    "int4",
    "int8",
    "uuid",
    "date",
    "timestamp",
    "timestamptz",
];

/// Values of the key's columns, as text.
pub(super) type Bound = Vec<String>;

/// The rows beyond one key, up to and with another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) after: Option<Bound>,
    pub(super) to: Option<Bound>,
}

/// What orders a table's rows for its slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slicing {
    /// In the order of the index.
    columns: Vec<KeyColumn>,
    slices: u64,
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyColumn {
    /// Among the mapping's columns.
    place: usize,
    /// On the source.
    name: String,
    /// `int8`
    of_type: String,
}

impl Slicing {
    /// How the table is cut up, if it is large enough, and can be.
    pub(super) fn of(planned: &PlannedTable, size: SliceSize) -> Option<Self> {
        let slices = planned.bytes / size.0.max(PAGE);
        if slices < SLICES_MIN {
            return None;
        }
        let RowIdentity::Key(places) = &planned.mapping.identity else {
            return None;
        };
        let columns = places
            .iter()
            .map(|place| key_column(planned, *place))
            .collect::<Option<Vec<_>>>()?;
        let here = primary_key(&planned.source)?;
        let of = |name: &String| columns.iter().find(|column| column.name == *name);
        let in_order = here.iter().map(|name| of(name).cloned());
        let columns: Vec<KeyColumn> = in_order.collect::<Option<_>>()?;
        let is_whole = columns.len() == places.len();
        if !is_whole || *primary_key(&planned.replica)? != replica_names(&planned.mapping, &columns)
        {
            return None;
        }
        Some(Self {
            columns,
            slices,
            bytes: planned.bytes,
        })
    }

    /// Tells what is compared, and the key by which, from all else, within one version of ours.
    pub(super) fn form(&self, whole: &TableQueries) -> String {
        let mut hasher = DefaultHasher::new();
        let keys = self.columns.iter().map(|key| (key.place, &key.of_type));
        let keys: Vec<(usize, &String)> = keys.collect();
        (&whole.source.blocks, &whole.replica.blocks, keys).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Of the source: bounds beyond a key in their order, each an array of texts.
    pub(super) fn bounds_sql(&self, planned: &PlannedTable, after: Option<&Bound>) -> String {
        let keys = |of: &dyn Fn(usize, &KeyColumn) -> String| {
            let columns = self.columns.iter().enumerate();
            let columns: Vec<String> = columns.map(|(n, column)| of(n, column)).collect();
            columns.join(", ")
        };
        let only = match planned.source_has_parts() {
            true => "",
            false => "ONLY ",
        };
        let wanted = self.slices * PAGES_SAMPLED * PAGE;
        let percent = (wanted as f64 / self.bytes as f64 * 100.0).clamp(0.000_001, 100.0);
        let beyond = after.map(|after| {
            let keys = keys(&|n, _| format!("k{n}"));
            format!(
                " AND ROW({keys}) OPERATOR(pg_catalog.>) {}",
                self.row(after)
            )
        });
        format!(
            "SELECT ARRAY[{}] FROM (SELECT *, pg_catalog.row_number() OVER (ORDER BY {}) AS n, \
             pg_catalog.count(*) OVER () AS of FROM (SELECT {} FROM {only}{} TABLESAMPLE SYSTEM ({percent:.6})) AS k) AS s \
             WHERE n % GREATEST(of / {}, 1) = 0{} ORDER BY n",
            keys(&|n, _| format!("k{n}::pg_catalog.text")),
            keys(&|n, _| format!("k{n}")),
            keys(&|n, column| format!("{} AS k{n}", quote_ident(&column.name))),
            planned.source.name.quoted(),
            self.slices,
            beyond.unwrap_or_default(),
        )
    }

    /// The slices beyond a key that bounds, which are in order, make of the rest.
    pub(super) fn slices(after: Option<Bound>, bounds: Vec<Bound>) -> Vec<Slice> {
        let mut slices = Vec::with_capacity(bounds.len() + 1);
        let mut last = after;
        for bound in bounds {
            if last.as_ref() == Some(&bound) {
                continue;
            }
            let to = Some(bound);
            slices.push(Slice {
                after: std::mem::replace(&mut last, to.clone()),
                to,
            });
        }
        slices.push(Slice {
            after: last,
            to: None,
        });
        slices
    }

    /// What is true of a slice's rows, which are spoken of as `r.v0`, `r.v1` …
    pub(super) fn condition(&self, slice: &Slice) -> Option<String> {
        let columns = self.columns.iter();
        let columns: Vec<String> = columns
            .map(|column| format!("r.v{}", column.place))
            .collect();
        let columns = columns.join(", ");
        let ends = [(&slice.after, ">"), (&slice.to, "<=")].into_iter();
        let conditions: Vec<String> = ends
            .filter_map(|(bound, operator)| {
                let bound = self.row(bound.as_ref()?);
                Some(format!(
                    "ROW({columns}) OPERATOR(pg_catalog.{operator}) {bound}"
                ))
            })
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    fn row(&self, bound: &Bound) -> String {
        let values = bound.iter().zip(&self.columns);
        let values: Vec<String> = values
            .map(|(value, column)| {
                format!("{}::pg_catalog.{}", quote_literal(value), column.of_type)
            })
            .collect();
        format!("ROW({})", values.join(", "))
    }
}

/// Its columns; it has no NULL in any of them.
fn primary_key(table: &Table) -> Option<&Vec<String>> {
    let mut keys = table.unique_keys.iter();
    keys.find(|key| key.is_primary).map(|key| &key.columns)
}

/// A column of the key that both sides order alike.
fn key_column(planned: &PlannedTable, place: usize) -> Option<KeyColumn> {
    let column = planned.mapping.columns.get(place)?;
    let ColumnValue::Input(input) = column.value else {
        return None;
    };
    let input = planned.mapping.inputs.get(input)?;
    let here = planned.source.column(&input.name)?;
    let there = planned.replica.column(&column.name)?;
    let of_type = column.cast_to.0.name.clone();
    let is_alike = column.cast_to.is_builtin()
        && ORDERED.contains(&of_type.as_str())
        && here.base_type == column.cast_to
        && input.read_as == column.cast_to
        && there.base_type == column.cast_to
        && here.stored_as == there.stored_as;
    is_alike.then(|| KeyColumn {
        place,
        name: input.name.clone(),
        of_type,
    })
}

fn replica_names(mapping: &TableMapping, columns: &[KeyColumn]) -> Vec<String> {
    let columns = columns.iter();
    columns
        .filter_map(|column| Some(mapping.columns.get(column.place)?.name.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slicing() -> Slicing {
        let column = |place, name: &str, of_type: &str| KeyColumn {
            place,
            name: name.to_owned(),
            of_type: of_type.to_owned(),
        };
        Slicing {
            columns: vec![column(2, "tenant", "uuid"), column(0, "id", "int8")],
            slices: 10,
            bytes: 1 << 30,
        }
    }

    fn bound(id: &str) -> Bound {
        vec!["t".to_owned(), id.to_owned()]
    }

    #[test]
    fn slices_leave_no_key_between_them_and_the_ends_open() {
        let slice = |after: Option<&str>, to: Option<&str>| Slice {
            after: after.map(bound),
            to: to.map(bound),
        };
        // Two sampled rows may be in one place.
        let bounds = ["3", "5", "5", "9"].map(bound).to_vec();
        assert_eq!(
            Slicing::slices(None, bounds),
            [
                slice(None, Some("3")),
                slice(Some("3"), Some("5")),
                slice(Some("5"), Some("9")),
                slice(Some("9"), None),
            ]
        );
        assert_eq!(
            Slicing::slices(Some(bound("9")), Vec::new()),
            [slice(Some("9"), None)]
        );
        assert_eq!(Slicing::slices(None, Vec::new()), [slice(None, None)]);
    }

    #[test]
    fn a_slice_is_told_by_its_key_in_the_order_of_the_index() {
        let slicing = slicing();
        let slice = Slice {
            after: Some(bound("3")),
            to: Some(bound("it's")),
        };
        assert_eq!(
            slicing.condition(&slice).unwrap(),
            "ROW(r.v2, r.v0) OPERATOR(pg_catalog.>) ROW('t'::pg_catalog.uuid, '3'::pg_catalog.int8) AND \
             ROW(r.v2, r.v0) OPERATOR(pg_catalog.<=) ROW('t'::pg_catalog.uuid, 'it''s'::pg_catalog.int8)"
        );
        assert_eq!(slicing.condition(&Slice::default()), None);
    }
}
