//! Do two queries, one on each server, yield the same rows? As text, whatever the order.

use std::collections::BTreeMap;

use tokio_postgres::{Client, SimpleQueryMessage};

/// How many differences a failure shows.
const SHOWN_MAX: usize = 10;

/// One row: each value's text, or `None` for NULL.
pub type Row = Vec<Option<String>>;

/// All rows of a query, each value as the server writes it.
pub async fn fetch_rows(client: &Client, sql: &str) -> Vec<Row> {
    let answer = client.simple_query(sql).await.unwrap_or_else(|error| {
        panic!("cannot fetch rows: {error:?}\n{sql}");
    });
    answer
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|i| row.get(i).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

/// What the two sides do not share, as text; `None` when they are the same multiset.
pub fn row_differences(source: &[Row], replica: &[Row]) -> Option<String> {
    let mut balance = BTreeMap::<&Row, i64>::new();
    source
        .iter()
        .for_each(|row| *balance.entry(row).or_default() += 1);
    replica
        .iter()
        .for_each(|row| *balance.entry(row).or_default() -= 1);
    balance.retain(|_, count| *count != 0);
    if balance.is_empty() {
        return None;
    }
    let mut text = format!(
        "{} rows on the source, {} on the replica; {} distinct rows differ:\n",
        source.len(),
        replica.len(),
        balance.len()
    );
    for (row, count) in balance.iter().take(SHOWN_MAX) {
        let side = if *count > 0 { "source " } else { "replica" };
        text.push_str(&format!(
            "  {}x more on the {side}: {}\n",
            count.abs(),
            shown(row)
        ));
    }
    Some(text)
}

/// Rows here are the tests' own, so they may be shown; long values are cut.
fn shown(row: &Row) -> String {
    let value = |value: &Option<String>| match value {
        None => "NULL".to_owned(),
        Some(text) if text.chars().count() > 80 => {
            let head: String = text.chars().take(80).collect();
            format!("'{head}…' ({} bytes)", text.len())
        }
        Some(text) => format!("'{text}'"),
    };
    row.iter().map(value).collect::<Vec<_>>().join(", ")
}

/// Panics with the first differences unless both queries yield the same rows.
pub async fn assert_same_rows(
    source: &Client,
    source_sql: &str,
    replica: &Client,
    replica_sql: &str,
) {
    let source_rows = fetch_rows(source, source_sql).await;
    let replica_rows = fetch_rows(replica, replica_sql).await;
    if let Some(differences) = row_differences(&source_rows, &replica_rows) {
        panic!("{differences}source:  {source_sql}\nreplica: {replica_sql}");
    }
}

/// Number of rows and the sum of their hashes: for tables too large to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub rows: i64,
    pub hash_sum: String,
}

/// The digest of a query's rows, computed by the server. Equal rows in any order, on any
/// major version, have equal digests.
pub async fn digest(client: &Client, sql: &str) -> Digest {
    let rows = fetch_rows(
        client,
        &format!(
            "SELECT count(*), coalesce(sum(hashtextextended(r::text, 0)::numeric), 0) FROM ({sql}) r"
        ),
    )
    .await;
    let [row] = rows.as_slice() else {
        panic!("one row was expected")
    };
    let text = |i: usize| row[i].clone().unwrap();
    Digest {
        rows: text(0).parse().unwrap(),
        hash_sum: text(1),
    }
}

#[test]
fn a_multiset_counts() {
    let row = |text: &str| vec![Some(text.to_owned())];
    let twice = [row("a"), row("b"), row("a")];
    assert_eq!(
        row_differences(&twice, &[row("a"), row("a"), row("b")]),
        None
    );
    let differences = row_differences(&twice, &[row("a"), row("b"), row("b")]).unwrap();
    assert!(
        differences.contains("1x more on the source : 'a'"),
        "{differences}"
    );
    assert!(
        differences.contains("1x more on the replica: 'b'"),
        "{differences}"
    );
    assert!(
        row_differences(&[vec![None]], &[row("")]).is_some(),
        "NULL is not ''"
    );
}
