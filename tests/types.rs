//! Every type's values on the wire: what the stream says is what a query says.
//!
//! The stream is read through SQL, so this is about server and decoder alone; that the
//! values arrive on a replica is for the scenarios to show.

use bytes::Bytes;
use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use pglockstep::pg::{Change, TupleValue};
use pglockstep::pgoutput::{Decoder, Message, Streaming};
use tokio_postgres::Client;

use crate::support::{TYPES_SETUP_SQL, TypeCase, fetch_rows, row_differences, type_cases};

/// The rows that the stream inserted into this table, each value as text.
async fn inserted(client: &Client, table: &str, binary: bool) -> Vec<Vec<Option<TupleText>>> {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, \
         'proto_version', '1', 'publication_names', '{table}', 'binary', '{binary}')"
    );
    let mut decoder = Decoder::new(1, Streaming::Off);
    let mut rows = Vec::new();
    for row in client.query(&sql, &[]).await.unwrap() {
        let message = decoder
            .decode(Bytes::from(row.get::<_, Vec<u8>>(0)))
            .unwrap();
        if let Message::Change {
            change: Change::Insert { new, .. },
            ..
        } = message
        {
            rows.push(new.values().map(TupleText::of).collect());
        }
    }
    rows
}

/// One value as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TupleText {
    Text(String),
    Binary,
}

impl TupleText {
    fn of(value: TupleValue<'_>) -> Option<Self> {
        match value {
            TupleValue::Null => None,
            TupleValue::Text(text) => Some(Self::Text(String::from_utf8(text.to_vec()).unwrap())),
            TupleValue::Binary(_) => Some(Self::Binary),
            TupleValue::UnchangedToast => panic!("an insert has all its values"),
        }
    }
}

async fn check_case(client: &Client, case: &TypeCase) {
    let text = inserted(client, &case.name, false).await;
    let text: Vec<Vec<_>> = text
        .into_iter()
        .map(|row| {
            row.into_iter()
                .map(|value| match value {
                    Some(TupleText::Text(text)) => Some(text),
                    Some(TupleText::Binary) => panic!("{}: binary was not asked for", case.name),
                    None => None,
                })
                .collect()
        })
        .collect();
    let queried = fetch_rows(client, &case.select_sql()[0]).await;
    assert_eq!(
        queried.len(),
        1 + case.values.len() + case.huge.len(),
        "{}",
        case.name
    );
    if let Some(differences) = row_differences(&text, &queried) {
        panic!(
            "{}: the stream (as source) and a query differ: {differences}",
            case.name
        );
    }
    if case.has_binary {
        let binary = inserted(client, &case.name, true).await;
        assert_eq!(binary.len(), text.len(), "{}", case.name);
        let is_binary = |row: &Vec<_>| row.get(1) == Some(&Some(TupleText::Binary));
        assert!(binary.iter().any(is_binary), "{}", case.name);
    }
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| {
        let statement = sql.chars().take(2000).collect::<String>();
        panic!("{}\n{statement}", error.as_db_error().unwrap())
    });
}

async fn check_major(major: u32) {
    let cluster = Cluster::start(ClusterOptions::version(major))
        .await
        .unwrap();
    let client = cluster.connect("postgres").await.unwrap();
    client.batch_execute(TYPES_SETUP_SQL).await.unwrap();
    let cases = type_cases(major);
    assert!(cases.len() > 150, "only {} cases", cases.len());
    for case in &cases {
        let publication = format!("CREATE PUBLICATION {0} FOR TABLE types.{0}", case.name);
        let sql = format!("{}{publication}", case.create_sql());
        run(&client, &sql).await;
    }
    let slot = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    // Each case has the slot to itself: a slot read again and again from its start is slow.
    for case in &cases {
        client.batch_execute(slot).await.unwrap();
        let sql = case.insert_sql();
        run(&client, &sql).await;
        check_case(&client, case).await;
        for sql in [case.update_sql(), case.delete_sql()] {
            run(&client, &sql).await;
        }
        client
            .batch_execute("SELECT pg_drop_replication_slot('s')")
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn on_the_oldest_major() {
    check_major(14).await;
}

#[tokio::test]
async fn on_the_newest_major() {
    check_major(18).await;
}
