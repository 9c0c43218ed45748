//! Differences of every kind, planted at random under a live load: all are found, none is invented, all
//! are mended. `make soak` plants 1,000 and goes on for half an hour of TPC-B.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Daemon, Family, Random, Scenario, is_soak, reported, seed};

static FAMILY: Family = Family::const_new();

/// A column, its type, its value in row `g`, and what makes another value of it that looks the same,
/// or nearly.
const KINDS: [(&str, &str, &str, &str); 24] = [
    ("a_int4", "int4", "g", "a_int4 + 1"),
    ("a_int8", "int8", "g", "a_int8 + 4294967296"),
    (
        "a_numeric",
        "numeric",
        "g / 4.0",
        "round(a_numeric, scale(a_numeric) + 1)",
    ),
    ("a_price", "numeric(12, 2)", "g / 4.0", "a_price + 0.01"),
    ("a_float8", "float8", "g / 3.0", "a_float8 * (1 + 2.3e-16)"),
    ("a_float4", "float4", "g / 3.0", "-a_float4"),
    ("a_text", "text", "'text ' || g", "a_text || ' '"),
    ("a_word", "varchar(40)", "'word' || g", "upper(a_word)"),
    ("a_pad", "char(12)", "'pad' || g", "reverse(a_pad)"),
    ("an_empty", "text", "''", "NULL"),
    ("a_null", "text", "NULL", "''"),
    (
        "a_bytea",
        "bytea",
        "decode(md5(g::text), 'hex')",
        "set_byte(a_bytea, 7, (get_byte(a_bytea, 7) + 1) % 256)",
    ),
    (
        "a_time",
        "timestamptz",
        "'2026-01-01 00:00+00'::timestamptz + g * interval '1 second'",
        "a_time + interval '1 microsecond'",
    ),
    (
        "a_local",
        "timestamp",
        "'2026-01-01'::timestamp + g * interval '1 minute'",
        "a_local - interval '1 microsecond'",
    ),
    (
        "a_date",
        "date",
        "'2026-01-01'::date + g % 3000",
        "a_date + 1",
    ),
    (
        "a_clock",
        "timetz",
        "'12:00:00+02'::timetz",
        "'11:00:00+01'",
    ),
    ("a_span", "interval", "'1 mon'", "'30 days'"),
    ("a_bool", "bool", "g % 2 = 0", "NOT a_bool"),
    (
        "a_uuid",
        "uuid",
        "md5(g::text)::uuid",
        "md5('other' || a_uuid)::uuid",
    ),
    (
        "a_json",
        "jsonb",
        "jsonb_build_object('n', g)",
        "a_json || '{\"m\": 1.0}'",
    ),
    (
        "a_plain_json",
        "json",
        "json_build_object('n', g)",
        "json_build_object('n', a_int4, 'n', a_int4)",
    ),
    (
        "a_list",
        "int[]",
        "ARRAY[g, NULL, 3]",
        "array_append(a_list, NULL)",
    ),
    (
        "a_net",
        "inet",
        "'10.0.0.0'::inet + g",
        "set_masklen(a_net, 24)",
    ),
    // Too long for its row: it is kept beside it, compressed or not.
    (
        "a_long",
        "text",
        "(SELECT string_agg(md5((g * 1000 + n)::text), '') FROM generate_series(1, 300) n)",
        "overlay(a_long PLACING '#' FROM 5000 FOR 1)",
    ),
];
const ROWS: u32 = 1_000;

fn schema() -> String {
    let columns: Vec<String> = KINDS
        .iter()
        .map(|(name, of, ..)| format!("{name} {of}"))
        .collect();
    format!(
        "CREATE TABLE kinds (id int PRIMARY KEY, {});
         CREATE TABLE pairs (a int, b text, v numeric, PRIMARY KEY (a, b));
         CREATE TABLE bag (what text, n numeric);
         CREATE TABLE branches (bid int PRIMARY KEY, balance int NOT NULL);
         CREATE TABLE tellers (tid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL);
         CREATE TABLE accounts (aid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL, filler char(84));
         CREATE TABLE history (tid int, bid int, aid int, delta int, mtime timestamptz);",
        columns.join(", ")
    )
}

fn rows() -> String {
    let values: Vec<&str> = KINDS.iter().map(|(_, _, value, _)| *value).collect();
    format!(
        "INSERT INTO kinds SELECT g, {} FROM generate_series(1, {ROWS}) g;
         INSERT INTO pairs SELECT g % 50, 'it''s ' || g, g / 7.0 FROM generate_series(1, {ROWS}) g;
         INSERT INTO bag SELECT 'line ' || g % 100, g % 7 FROM generate_series(1, {ROWS}) g;
         INSERT INTO leads SELECT g, g % 9, 'Lead' || g, nullif(g % 5, 0) FROM generate_series(1, {ROWS}) g;
         INSERT INTO branches SELECT g, 0 FROM generate_series(1, 5) g;
         INSERT INTO tellers SELECT g, 1 + g % 5, 0 FROM generate_series(1, 50) g;
         INSERT INTO accounts SELECT g, 1 + g % 5, 0, '' FROM generate_series(1, 5000) g",
        values.join(", ")
    )
}

const RULES: &str = "[verify]\nslice = \"1MiB\"\n[[tables]]\nsource = \"public.*\"\n\
    [[tables]]\nsource = \"public.leads\"\nreplica = \"crm.leads\"\n\
    columns = { current_project_id = \"project_id\" }\nexclude = [\"client\"]\n\
    set = { email = \"lower(email)\" }\nwhere = \"client IS NOT NULL\"";

/// Missing, extra and different rows by source table.
type Found = BTreeMap<String, [u64; 3]>;

const MISSING: usize = 0;
const EXTRA: usize = 1;
const DIFFERENT: usize = 2;

/// SQL for the replica, and what is to be found afterwards: so many differences. Each row is planted on once, and rows
/// from 500 on are left to the load.
fn planted(random: &mut Random, count: u32) -> (Vec<String>, Found) {
    let (mut sql, mut found) = (Vec::new(), Found::new());
    let mut note =
        |table: &str, kind: usize| found.entry(format!("public.{table}")).or_default()[kind] += 1;
    let mut used = std::collections::BTreeSet::new();
    let (mut n, mut kinds) = (0, 0);
    // Not every draw is one.
    while sql.len() < count as usize {
        n += 1;
        let id = loop {
            let id = 1 + random.below(499);
            let table = random.below(4);
            if used.insert((table, id)) {
                break (table, id);
            }
        };
        let kind = random.below(4);
        match (id, kind) {
            ((0, id), 0) => {
                sql.push(format!("DELETE FROM kinds WHERE id = {id}"));
                note("kinds", MISSING);
            }
            ((0, id), 1) => {
                sql.push(format!(
                    "INSERT INTO kinds (id, a_text) VALUES ({}, 'extra of {id}')",
                    100_000 + n
                ));
                note("kinds", EXTRA);
            }
            ((0, id), _) => {
                // Each of them at first.
                let (name, _, _, other) = match KINDS.get(kinds) {
                    Some(kind) => *kind,
                    None => KINDS[random.below(KINDS.len() as u32) as usize],
                };
                kinds += 1;
                sql.push(format!("UPDATE kinds SET {name} = {other} WHERE id = {id}"));
                note("kinds", DIFFERENT);
            }
            ((1, id), 0) => {
                sql.push(format!(
                    "DELETE FROM pairs WHERE a = {id} % 50 AND b = 'it''s {id}'"
                ));
                note("pairs", MISSING);
            }
            ((1, id), 1) => {
                sql.push(format!(
                    "INSERT INTO pairs VALUES ({id} % 50, 'it''s ' || -{id}, NULL)"
                ));
                note("pairs", EXTRA);
            }
            ((1, id), _) => {
                sql.push(format!(
                    "UPDATE pairs SET v = v + 0.0000000001 WHERE a = {id} % 50 AND b = 'it''s {id}'"
                ));
                note("pairs", DIFFERENT);
            }
            ((2, id), 0) => {
                sql.push(format!("DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE what = 'line {}' AND n < 7)", id % 100));
                note("bag", MISSING);
            }
            ((2, id), _) => {
                sql.push(format!(
                    "INSERT INTO bag VALUES ('line {}', 7.{id})",
                    id % 100
                ));
                note("bag", EXTRA);
            }
            // Kept out by the filter, and so in nobody's way.
            ((_, id), 1) if id % 5 == 0 => {
                // Of a number that is none of the source's type, or of a row that the filter keeps out.
                let id = u64::from(id) + if id % 2 == 0 { 3_000_000_000 } else { 0 };
                sql.push(format!(
                    "INSERT INTO crm.leads VALUES ({id}, 1, 'lead{id}')"
                ));
                note("leads", EXTRA);
            }
            ((_, id), 0) if id % 5 != 0 => {
                sql.push(format!("DELETE FROM crm.leads WHERE id = {id}"));
                note("leads", MISSING);
            }
            ((_, id), _) if id % 5 != 0 => {
                sql.push(format!(
                    "UPDATE crm.leads SET email = 'Lead{id}' WHERE id = {id}"
                ));
                note("leads", DIFFERENT);
            }
            _ => {}
        }
    }
    (sql, found)
}

/// TPC-B by hand, and changes of rows on which nothing is planted, until told to stop.
async fn load(s: &Scenario<'_>, mut random: Random, is_done: &Cell<bool>) -> u32 {
    let mut transactions = 0;
    while !is_done.get() {
        let (aid, tid, delta) = (
            1 + random.below(5000),
            1 + random.below(50),
            random.below(100),
        );
        let id = 500 + random.below(ROWS - 500);
        s.on_source(&format!(
            "BEGIN; UPDATE accounts SET balance = balance + {delta} WHERE aid = {aid};
             UPDATE tellers SET balance = balance + {delta} WHERE tid = {tid};
             UPDATE branches SET balance = balance + {delta} WHERE bid = 1 + {tid} % 5;
             INSERT INTO history VALUES ({tid}, 1 + {tid} % 5, {aid}, {delta}, now()); COMMIT;
             UPDATE kinds SET a_int4 = a_int4 + 1, a_text = a_text || '.' WHERE id = {id};
             UPDATE pairs SET v = v + 1 WHERE a = {id} % 50 AND b = 'it''s {id}';
             DELETE FROM leads WHERE id = {id}; INSERT INTO leads VALUES ({id}, {delta}, 'Lead{id}', nullif({delta} % 5, 0))"
        ))
        .await;
        transactions += 1;
    }
    transactions
}

fn found(report: &Value) -> Found {
    let tables = report["tables"].as_array();
    let tables = tables
        .unwrap_or_else(|| panic!("no report: {report}"))
        .iter();
    let found = tables.map(|table| {
        let kinds = ["missing", "extra", "different"].map(|kind| table[kind].as_u64().unwrap());
        (table["table"].as_str().unwrap().to_owned(), kinds)
    });
    found.filter(|(_, kinds)| *kinds != [0; 3]).collect()
}

async fn running() -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, "drift").await;
    s.on_both(&schema()).await;
    s.on_source(
        "CREATE TABLE leads (id int PRIMARY KEY, current_project_id int, email text, client int); \
         ALTER TABLE bag REPLICA IDENTITY FULL; ALTER TABLE history REPLICA IDENTITY FULL",
    )
    .await;
    s.on_replica("CREATE SCHEMA crm; CREATE TABLE crm.leads (id bigint PRIMARY KEY, project_id int, email text)")
        .await;
    s.on_source(&rows()).await;
    s.publish_all().await;
    let daemon = s.start(RULES).await;
    s.caught_up(&daemon).await;
    (s, daemon)
}

#[tokio::test]
async fn every_difference_is_found_none_is_invented_and_all_are_mended() {
    let seed = seed();
    eprintln!("PGLOCKSTEP_SEED={seed}");
    let (count, lasts) = match is_soak() {
        true => (1_000, Duration::from_secs(1_800)),
        false => (250, Duration::from_secs(10)),
    };
    let (s, _daemon) = running().await;
    let is_done = Cell::new(false);
    let work = load(&s, Random::new(seed ^ 1), &is_done);
    let look = async {
        let begun = Instant::now();
        let mut comparisons = 0;
        while comparisons < 2 || begun.elapsed() < lasts / 2 {
            let (code, report) = reported(&s, RULES, &["verify"]).await;
            assert_eq!(
                (code, found(&report)),
                (Some(0), Found::new()),
                "invented: {report}"
            );
            comparisons += 1;
        }
        let (sql, planted) = planted(&mut Random::new(seed), count);
        for sql in &sql {
            s.on_replica(sql).await;
        }
        while comparisons < 4 || begun.elapsed() < lasts {
            let (code, report) = reported(&s, RULES, &["verify"]).await;
            assert_eq!(
                (code, found(&report)),
                (Some(1), planted.clone()),
                "{report}"
            );
            comparisons += 1;
        }
        let bounds = ["--max-rows", "100000", "--max-percent", "100"];
        let mut mend = vec!["repair", "--apply", "--delete-extra"];
        mend.extend(bounds);
        let (code, report) = reported(&s, RULES, &mend).await;
        assert_eq!(found(&report), planted, "{report}");
        assert_eq!(code, Some(0), "{report}");
        let (code, report) = reported(&s, RULES, &["verify"]).await;
        assert_eq!(code, Some(0), "not mended: {report}");
        is_done.set(true);
        (comparisons, sql.len())
    };
    let (transactions, (comparisons, differences)) = tokio::join!(work, look);
    assert!(transactions > 20, "{transactions}");
    eprintln!(
        "{differences} differences, {comparisons} comparisons, {transactions} transactions: found, mended"
    );
}
