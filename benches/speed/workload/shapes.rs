//! Tables whose shape makes a change dear: secondary indexes, many columns, TOAST.

use super::{Workload, thousands, transactions};
use crate::arguments::Size;

/// Updates, each of which touches all four secondary indexes.
pub fn indexes(size: Size) -> Workload {
    let rows = size.at_least(200_000, 100);
    let count = size.of(20_000);
    let title = format!(
        "four secondary indexes, {} updates in 10-row transactions",
        thousands(u64::from(count) * 10)
    );
    Workload::new("indexes", title)
        .at_least(1.2)
        .tables(
            "CREATE TABLE item (id int PRIMARY KEY, price numeric(10, 2) NOT NULL, stock int NOT NULL, \
             label text NOT NULL, changed timestamptz NOT NULL); \
             CREATE INDEX ON item (price); CREATE INDEX ON item (stock); \
             CREATE INDEX ON item (label); CREATE INDEX ON item (changed, id)",
        )
        .seed(format!(
            "INSERT INTO item SELECT i, i % 977, i % 313, 'label ' || md5(i::text), '2024-01-01 00:00+00' \
             FROM generate_series(1, {rows}) AS i"
        ))
        // Scattered, and no row twice in a transaction.
        .backlog(transactions(
            count,
            &format!(
                "UPDATE item SET price = price + 1, stock = stock + 3, label = 'label ' || md5(t::text || id), \
                 changed = clock_timestamp() WHERE id = ANY (ARRAY(SELECT \
                 (((t - 1) * 10 + i)::bigint * 7919 % {rows} + 1)::int FROM generate_series(1, 10) AS i));"
            ),
        ))
}

/// Of each ten columns one of each type.
const WIDE_TYPES: [&str; 10] = [
    "int",
    "bigint",
    "numeric(14, 4)",
    "text",
    "timestamptz",
    "boolean",
    "uuid",
    "float8",
    "date",
    "varchar(40)",
];

fn wide_value(type_name: &str) -> &'static str {
    match type_name {
        "int" => "i + c",
        "bigint" => "i::bigint * 100003 + c",
        "numeric(14, 4)" => "(i % 99991) / 7.0 + c",
        "text" => "'a text in row ' || i || ', column ' || c",
        "timestamptz" => "'2024-01-01 00:00+00'::timestamptz + (i + c) * interval '1 second'",
        "boolean" => "(i + c) % 2 = 0",
        "uuid" => "md5((i + c)::text)::uuid",
        "float8" => "(i + c) / 3.0",
        "date" => "'2024-01-01'::date + (i + c) % 1000",
        _ => "CASE WHEN (i + c) % 3 > 0 THEN 'short ' || i END",
    }
}

/// Forty columns; in each transaction ten rows come, five change in five columns, and five go.
pub fn wide(size: Size) -> Workload {
    let count = size.of(24_000);
    let columns: Vec<String> = (0..40)
        .map(|c| format!("c{c:02} {}", WIDE_TYPES[c % WIDE_TYPES.len()]))
        .collect();
    let values: Vec<String> = (0..40)
        .map(|c| {
            let value = wide_value(WIDE_TYPES[c % WIDE_TYPES.len()]);
            value
                .replace("+ c", &format!("+ {c}"))
                .replace("|| c", &format!("|| {c}"))
        })
        .collect();
    let insert = format!(
        "INSERT INTO broad SELECT i, {} FROM generate_series",
        values.join(", ")
    );
    let seeded = count * 5 + 100;
    let title = format!(
        "40 mixed columns, {} inserts, updates and deletes in 20-row transactions",
        thousands(u64::from(count) * 20)
    );
    Workload::new("wide", title)
        .at_least(1.2)
        .tables(format!(
            "CREATE TABLE broad (id int PRIMARY KEY, {})",
            columns.join(", ")
        ))
        .seed(format!("{insert}(1, {seeded}) AS i"))
        .backlog(transactions(
            count,
            &format!(
                "{insert}({seeded} + (t - 1) * 10 + 1, {seeded} + t * 10) AS i; \
                 UPDATE broad SET c00 = c00 + 1, c02 = c02 + 1, c03 = c03 || '.', c15 = NOT c15, \
                 c37 = c37 * 2 WHERE id BETWEEN {seeded} + (t - 1) * 10 + 1 AND {seeded} + (t - 1) * 10 + 5; \
                 DELETE FROM broad WHERE id BETWEEN (t - 1) * 5 + 1 AND t * 5;"
            ),
        ))
}

/// Rows with 20 kB outside of the row, which most changes leave as they are.
pub fn toast(size: Size) -> Workload {
    // Not compressed, so that it is outside.
    const BODY: &str =
        "(SELECT string_agg(md5(i || '.' || n), '') FROM generate_series(1, 640) AS n)";
    let rows = size.at_least(4_000, 20);
    let count = size.of(40_000);
    let inserts = size.of(8_000);
    let title = format!(
        "20 kB of TOAST, {} updates beside it in 10-row transactions, {} inserts with it",
        thousands(u64::from(count) * 10),
        thousands(inserts.into())
    );
    Workload::new("toast", title)
        .at_least(1.2)
        .tables(
            "CREATE TABLE paper (id int PRIMARY KEY, title text NOT NULL, read int NOT NULL, body text NOT NULL); \
             ALTER TABLE paper ALTER body SET STORAGE EXTERNAL",
        )
        .seed(format!(
            "INSERT INTO paper SELECT i, 'paper ' || i, 0, {BODY} FROM generate_series(1, {rows}) AS i"
        ))
        .backlog(transactions(
            count,
            &format!(
                "UPDATE paper SET read = read + 1, title = 'paper ' || id || ', read at ' || t \
                 WHERE id = ANY (ARRAY(SELECT (((t - 1) * 10 + i)::bigint * 7919 % {rows} + 1)::int \
                 FROM generate_series(1, 10) AS i));"
            ),
        ))
        .backlog(transactions(
            inserts,
            &format!(
                "INSERT INTO paper SELECT i, 'new paper ' || i, 0, {BODY} \
                 FROM generate_series({rows} + t, {rows} + t) AS i;"
            ),
        ))
}
