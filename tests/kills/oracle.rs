//! The history of the source by another hand than ours: a slot of its own, decoded by
//! `test_decoding`. What readers of the replica saw must be one of its prefixes.
//!
//! ```text
//!  commits on the source    w2 w0 w0 w3 w2 …         each counts itself in `counters`
//!  prefixes                 [0,0,1,0] [1,0,1,0] [2,0,1,0] …
//!  a reader of the replica  sees one such vector, and never an earlier one again
//! ```

use std::collections::HashMap;

use tokio_postgres::Client;

use super::tables::WRITERS;

/// How many transactions of each writer a reader saw.
pub type Vector = [i64; WRITERS as usize];

/// Where the history begins.
pub struct Oracle {
    begin: Vector,
}

const SLOT: &str = "oracle";

impl Oracle {
    /// Begins to record; nobody must write meanwhile.
    pub async fn start(source: &Client) -> Self {
        let sql = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        source.batch_execute(&sql).await.unwrap();
        let mut begin = Vector::default();
        let counters = "SELECT writer, n FROM counters";
        for row in source.query(counters, &[]).await.unwrap() {
            let writer: i32 = row.get(0);
            begin[usize::try_from(writer).unwrap()] = row.get(1);
        }
        Self { begin }
    }

    /// Every prefix, with its place in the order of commits.
    pub async fn prefixes(self, source: &Client) -> HashMap<Vector, usize> {
        let sql = format!(
            "SELECT data FROM pg_logical_slot_get_changes('{SLOT}', NULL, NULL, \
             'include-xids', 'false', 'skip-empty-xacts', 'true') \
             WHERE data LIKE 'table public.counters: UPDATE:%'"
        );
        let mut vector = self.begin;
        let mut prefixes = HashMap::from([(vector, 0)]);
        for row in source.query(&sql, &[]).await.unwrap() {
            let (writer, n) = parse(row.get(0));
            assert_eq!(
                n,
                vector[writer] + 1,
                "the oracle itself lacks a transaction"
            );
            vector[writer] = n;
            prefixes.insert(vector, prefixes.len());
        }
        let drop = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        source.batch_execute(&drop).await.unwrap();
        prefixes
    }
}

/// Each reader's looks, in its order: all of them prefixes, and none that goes back.
pub fn check(prefixes: &HashMap<Vector, usize>, seen: &[Vector]) {
    let mut last = 0;
    for vector in seen {
        let place = prefixes.get(vector);
        let place = *place.unwrap_or_else(|| panic!("{vector:?} is no prefix of the history"));
        assert!(place >= last, "{vector:?} was seen after a later one");
        last = place;
    }
}

/// `table public.counters: UPDATE: writer[integer]:2 n[bigint]:57`
fn parse(line: &str) -> (usize, i64) {
    let value = |name: &str| {
        let rest = line.split_once(name).unwrap().1;
        rest.split(' ').next().unwrap().parse::<i64>().unwrap()
    };
    let writer = usize::try_from(value(" writer[integer]:")).unwrap();
    (writer, value(" n[bigint]:"))
}

#[test]
fn what_is_no_prefix_is_noticed() {
    let prefixes = HashMap::from([([0, 0, 0, 0], 0), ([1, 0, 0, 0], 1), ([1, 1, 0, 0], 2)]);
    check(&prefixes, &[[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]);
    let fails = |seen: &[Vector]| std::panic::catch_unwind(|| check(&prefixes, seen)).is_err();
    assert!(fails(&[[0, 1, 0, 0]]), "no prefix");
    assert!(fails(&[[1, 1, 0, 0], [1, 0, 0, 0]]), "back");
    assert_eq!(
        parse("table public.counters: UPDATE: writer[integer]:2 n[bigint]:57"),
        (2, 57)
    );
}
