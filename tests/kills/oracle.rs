//! The history of the source by another hand than ours: a slot of its own, decoded by
//! `test_decoding`. What readers of the replica saw must be one of its prefixes.
//!
//! ```text
//!  commits on the source    w2 w0 w0 w3 w2 …         each counts itself in `counters`
//!  prefixes                 [0,0,1,0] [1,0,1,0] [2,0,1,0] …
//!  a reader of the replica  sees one such vector, and never an earlier one again;
//!                           with it the bulk that each writer had written by then
//! ```

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::tables::WRITERS;

/// A number of each writer.
pub type Vector = [i64; WRITERS as usize];

/// What a reader saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// How many transactions.
    pub counters: Vector,
    /// The newest of them that wrote to `bulk`; 0 for none.
    pub bulk: Vector,
}

/// Where a vector of counters stands in the history.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    place: usize,
    bulk: Vector,
}

/// Where the history begins.
pub struct Oracle {
    begin: Look,
}

const SLOT: &str = "oracle";

impl Oracle {
    /// Begins to record; nobody must write meanwhile.
    pub async fn start(source: &Client) -> Self {
        let sql = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        source.batch_execute(&sql).await.unwrap();
        let mut begin = Look::default();
        let counters = "SELECT writer, n FROM counters";
        for row in source.query(counters, &[]).await.unwrap() {
            begin.counters[at_writer(&row)] = row.get(1);
        }
        let bulk = "SELECT writer, max(at) FROM bulk GROUP BY writer";
        for row in source.query(bulk, &[]).await.unwrap() {
            begin.bulk[at_writer(&row)] = row.get(1);
        }
        Self { begin }
    }

    /// Every prefix, by its counters, with its place in the order of commits.
    pub async fn prefixes(self, source: &Client) -> HashMap<Vector, Prefix> {
        let sql = format!(
            "SELECT data FROM pg_logical_slot_get_changes('{SLOT}', NULL, NULL, \
             'include-xids', 'false', 'skip-empty-xacts', 'true') \
             WHERE data LIKE 'table public.counters: UPDATE:%' \
             OR data LIKE 'table public.bulk: INSERT:% i[integer]:1 %'"
        );
        let Look { mut counters, bulk } = self.begin;
        let mut last = Prefix { place: 0, bulk };
        let mut prefixes = HashMap::from([(counters, last)]);
        for row in source.query(&sql, &[]).await.unwrap() {
            match parse(row.get(0)) {
                Line::Counter { writer, n } => {
                    assert_eq!(
                        n,
                        counters[writer] + 1,
                        "the oracle itself lacks a transaction"
                    );
                    counters[writer] = n;
                    last.place += 1;
                }
                // Of the transaction that has just counted itself.
                Line::Bulk { writer, at } => last.bulk[writer] = at,
            }
            prefixes.insert(counters, last);
        }
        let drop = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        source.batch_execute(&drop).await.unwrap();
        prefixes
    }
}

/// How many of the transactions wrote to `bulk`.
pub fn count_bulk(prefixes: &HashMap<Vector, Prefix>) -> usize {
    let states: HashSet<Vector> = prefixes.values().map(|prefix| prefix.bulk).collect();
    states.len() - 1
}

/// The first column, as an index.
pub fn at_writer(row: &Row) -> usize {
    usize::try_from(row.get::<_, i32>(0)).unwrap()
}

/// Each reader's looks, in its order: all of them prefixes, and none that goes back.
pub fn check(prefixes: &HashMap<Vector, Prefix>, seen: &[Look]) {
    let mut last = 0;
    for look in seen {
        let prefix = prefixes.get(&look.counters);
        let prefix = prefix.unwrap_or_else(|| panic!("{look:?} is no prefix of the history"));
        assert_eq!(look.bulk, prefix.bulk, "{look:?} has another bulk");
        assert!(prefix.place >= last, "{look:?} was seen after a later one");
        last = prefix.place;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Counter { writer: usize, n: i64 },
    Bulk { writer: usize, at: i64 },
}

/// `table public.counters: UPDATE: writer[integer]:2 n[bigint]:57`
fn parse(line: &str) -> Line {
    let value = |name: &str| {
        let rest = line.split_once(name).unwrap().1;
        rest.split(' ').next().unwrap().parse::<i64>().unwrap()
    };
    let writer = usize::try_from(value(" writer[integer]:")).unwrap();
    if line.starts_with("table public.bulk:") {
        let at = value(" at[bigint]:");
        Line::Bulk { writer, at }
    } else {
        let n = value(" n[bigint]:");
        Line::Counter { writer, n }
    }
}

#[test]
fn what_is_no_prefix_is_noticed() {
    let prefix = |place, bulk| Prefix { place, bulk };
    let prefixes = HashMap::from([
        ([0, 0, 0, 0], prefix(0, [0; 4])),
        ([1, 0, 0, 0], prefix(1, [0; 4])),
        ([1, 1, 0, 0], prefix(2, [0, 1, 0, 0])),
    ]);
    let look = |counters, bulk| Look { counters, bulk };
    let looks = [
        look([0, 0, 0, 0], [0; 4]),
        look([1, 0, 0, 0], [0; 4]),
        look([1, 1, 0, 0], [0, 1, 0, 0]),
    ];
    check(&prefixes, &looks);
    let fails = |seen: &[Look]| std::panic::catch_unwind(|| check(&prefixes, seen)).is_err();
    assert!(fails(&[look([0, 1, 0, 0], [0, 1, 0, 0])]), "no prefix");
    assert!(fails(&[looks[2], looks[1]]), "back");
    assert!(fails(&[look([1, 1, 0, 0], [0; 4])]), "without its bulk");
    assert!(
        fails(&[look([1, 0, 0, 0], [0, 1, 0, 0])]),
        "with a later one's bulk"
    );
    assert_eq!(
        parse("table public.counters: UPDATE: writer[integer]:2 n[bigint]:57"),
        Line::Counter { writer: 2, n: 57 }
    );
    assert_eq!(
        parse(
            "table public.bulk: INSERT: writer[integer]:3 at[bigint]:12 i[integer]:1 filler[text]:'row 1'"
        ),
        Line::Bulk { writer: 3, at: 12 }
    );
}
