//! Source and replica compared at one position: what differs is found, and nothing else.

use std::cell::Cell;

use serde_json::Value;

use crate::support::{Daemon, Family, Scenario, drift_of, eventually, reported, run_verb, samples};

static FAMILY: Family = Family::const_new();
/// Slots wait for the transactions of all databases.
static ALONE: Family = Family::const_new();
static ASYNCHRONOUS: Family = Family::const_new();

/// `verify --json` with these arguments, while the rest of the test goes on: exit code and report.
async fn verify(s: &Scenario<'_>, more: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut all = vec!["verify"];
    all.extend(arguments);
    reported(s, more, &all).await
}

const TABLES: &str =
    "CREATE TABLE accounts (id int PRIMARY KEY, balance numeric NOT NULL, at timestamptz);
    CREATE TABLE moves (a int, b text, amount numeric, note text, PRIMARY KEY (a, b));
    CREATE TABLE journal (what text, n int)";

async fn running(name: &str) -> (Scenario<'static>, Daemon) {
    running_in(&FAMILY, name).await
}

async fn running_in(family: &'static Family, name: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(family, name).await;
    s.on_both(TABLES).await;
    s.on_source("ALTER TABLE journal REPLICA IDENTITY FULL")
        .await;
    s.on_source(
        "INSERT INTO accounts SELECT g, g, '2026-01-01 00:00+00'::timestamptz + g * interval '1 s' \
         FROM generate_series(1, 3000) g;
         INSERT INTO moves SELECT g % 50, 'b' || g, g / 3.0, repeat('x', g % 90) FROM generate_series(1, 2000) g;
         INSERT INTO journal SELECT 'line ' || g % 100, g % 7 FROM generate_series(1, 1000) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    (s, daemon)
}

/// Transactions that touch every table, until told to stop.
async fn work(s: &Scenario<'_>, is_done: &Cell<bool>) -> u32 {
    let mut rounds = 0;
    while !is_done.get() {
        rounds += 1;
        s.on_source(&format!(
            "BEGIN; UPDATE accounts SET balance = balance - 1, at = now() WHERE id % 97 = {rounds} % 97;
             UPDATE accounts SET balance = balance + 1 WHERE id = {rounds} % 3000 + 1;
             INSERT INTO moves VALUES (1000 + {rounds}, 'new', {rounds}, repeat('y', 3000)); COMMIT;
             DELETE FROM moves WHERE a = 1000 + {rounds} - 5; INSERT INTO journal VALUES ('more', {rounds});
             DELETE FROM journal WHERE what = 'more' AND n < {rounds} - 9"
        ))
        .await;
    }
    rounds
}

#[tokio::test]
async fn under_load_nothing_is_invented() {
    let (s, daemon) = running("load").await;
    let is_done = Cell::new(false);
    let look = async {
        let mut last = String::new();
        for _ in 0..8 {
            let (code, report) = verify(&s, "", &[]).await;
            assert_eq!(
                (code, &report["in_sync"]),
                (Some(0), &Value::Bool(true)),
                "{report}"
            );
            assert_eq!(report["tables"].as_array().unwrap().len(), 3);
            let lsn = report["lsn"].as_str().unwrap().to_owned();
            assert_ne!(lsn, last, "the load stood still");
            last = lsn;
        }
        is_done.set(true);
    };
    let (rounds, ()) = tokio::join!(work(&s, &is_done), look);
    assert!(rounds > 8, "{rounds} rounds");
    s.in_step(
        &daemon,
        &[
            "SELECT * FROM accounts",
            "SELECT * FROM moves",
            "SELECT * FROM journal",
        ],
    )
    .await;
    // Nothing is left behind on the source, once the last one's session has ended.
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()";
    let evidence = || "a temporary slot".to_owned();
    eventually("no slot to be left", evidence, async || {
        (s.one(slots).await == "0").then_some(())
    })
    .await;
}

/// One of each kind in each kind of table, while the source is written to.
#[tokio::test]
async fn what_was_planted_is_found_and_nothing_else() {
    let (s, daemon) = running("planted").await;
    s.caught_up(&daemon).await;
    s.on_replica(
        "DELETE FROM accounts WHERE id IN (2999, 3000); INSERT INTO accounts VALUES (9999, 1, NULL);
         UPDATE accounts SET balance = balance + 0.0001 WHERE id BETWEEN 2990 AND 2992;
         INSERT INTO moves VALUES (7, 'extra', 1, ''), (8, 'extra', 1, NULL);
         UPDATE moves SET note = note || ' ' WHERE a = 3 AND b = 'b3';
         DELETE FROM journal WHERE ctid IN (SELECT ctid FROM journal WHERE what = 'line 5' LIMIT 3);
         INSERT INTO journal VALUES ('line 6', 6), ('line 6', 6)",
    )
    .await;
    let is_done = Cell::new(false);
    // Rows that the load does not touch: those that it does it would mend, or stumble over.
    let load = async {
        while !is_done.get() {
            s.on_source("UPDATE accounts SET balance = balance + 1 WHERE id < 50")
                .await;
        }
    };
    let look = async {
        for _ in 0..3 {
            let (code, report) = verify(&s, "", &[]).await;
            assert_eq!(code, Some(1));
            assert_eq!(drift_of(&report, "public.accounts"), [2, 1, 3], "{report}");
            assert_eq!(drift_of(&report, "public.moves"), [0, 2, 1], "{report}");
            assert_eq!(drift_of(&report, "public.journal"), [3, 2, 0], "{report}");
        }
        is_done.set(true);
    };
    tokio::join!(load, look);
    let (code, report) = verify(&s, "", &["public.moves", "--counts"]).await;
    assert_eq!(
        (code, report["tables"].as_array().unwrap().len()),
        (Some(1), 1)
    );
    assert_eq!(report["tables"][0]["replica_rows"], 2002);
    let (code, said) = crate::support::verb(&s, "", &["verify", "public.nothing"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("public.nothing"), "{said}");
}

/// What `=` calls equal and is not the same, and what is the smallest difference of a type.
#[tokio::test]
async fn one_byte_is_enough() {
    let s = Scenario::new(&FAMILY, "one_byte").await;
    let table = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8,
        r float4, i interval, ts timestamp, tz timestamptz, tt timetz, v varchar, txt text, by bytea, jb jsonb,
        j json, a int[], na numeric[], m mood, u uuid, net inet, b bool, c char(5), bits bit(3), big text,
        p point, rng int4range, x xml, d date, small int2, large int8);
        ALTER TABLE t ALTER big SET STORAGE EXTERNAL";
    s.on_both(table).await;
    s.on_source(
        "INSERT INTO t SELECT g, 1.0, 0, 0, '1 mon', '2026-01-01', '2026-01-01 00:00+00', '10:00+00', 'a', '', '\\x00',
         '{\"a\": 1.0}', '{\"a\":1}', '{1,2}', '{1.0}', 'sad', '00000000-0000-0000-0000-000000000000', '10.0.0.1/24',
         true, 'a', '101', repeat('z', 9000), '(0,0)', '[1,5)', '<a/>', '2026-01-01', 1, 1
         FROM generate_series(1, 40) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    let (code, report) = verify(&s, "", &[]).await;
    assert_eq!(code, Some(0), "{report}");
    let changes = [
        "n = 1.00",
        "f = '-0'",
        "r = '-0'",
        "i = '30 days'",
        "ts = ts + interval '1 us'",
        "tz = tz + interval '1 us'",
        "tt = '11:00+01'",
        "v = 'a '",
        "txt = NULL",
        "by = '\\x01'",
        "jb = '{\"a\": 1.00}'",
        "j = '{\"a\": 1}'",
        "a = '[0:1]={1,2}'",
        "na = '{1.00}'",
        "m = 'ok'",
        "u = '00000000-0000-0000-0000-000000000001'",
        "net = '10.0.0.1'",
        "b = false",
        "c = 'b'",
        "bits = '100'",
        "big = repeat('z', 8999) || 'y'",
        "p = '(0,-0)'",
        "rng = '[1,6)'",
        "x = '<a />'",
        "d = '2026-01-02'",
        "small = 2",
        "large = 2",
        "n = 'NaN'",
        "large = 4294967296",
        "txt = ' '",
        "by = ''",
        "i = '1 mon 0.000001 s'",
    ];
    for (id, change) in (1..).zip(&changes) {
        s.on_replica(&format!("UPDATE t SET {change} WHERE id = {id}"))
            .await;
    }
    let (code, report) = verify(&s, "", &[]).await;
    assert_eq!(code, Some(1));
    assert_eq!(
        drift_of(&report, "public.t"),
        [0, 0, changes.len() as u64],
        "{report}"
    );
}

/// What the hashes of PostgreSQL's own do not tell apart: a number folded into half its length, and
/// sums that do not care which row has which value.
#[tokio::test]
async fn no_sum_hides_a_difference() {
    let s = Scenario::new(&FAMILY, "sums").await;
    s.on_both("CREATE TABLE folded (id int PRIMARY KEY, n bigint); CREATE TABLE swapped (id int PRIMARY KEY, v int)")
        .await;
    s.on_source(
        "INSERT INTO folded VALUES (1, -1), (2, 1), (3, 0), (4, (7::bigint << 32) | 9);
         INSERT INTO swapped SELECT g, g FROM generate_series(1, 5000) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &["SELECT * FROM folded", "SELECT * FROM swapped"])
        .await;
    let pairs = "SELECT min(id) AS a, max(id) AS b FROM swapped GROUP BY
        hash_record_extended(ROW(id), 0) & 16383 HAVING count(*) = 2";
    s.on_replica(&format!(
        "UPDATE folded SET n = CASE id WHEN 1 THEN 4294967295 WHEN 2 THEN 4294967296 WHEN 3 THEN 4294967297
             ELSE (9::bigint << 32) | 7 END;
         CREATE TABLE pairs AS {pairs}; UPDATE swapped AS s SET v = CASE s.id WHEN p.a THEN p.b ELSE p.a END
             FROM pairs AS p WHERE s.id IN (p.a, p.b)"
    ))
    .await;
    let swapped: u64 = s
        .replica_one("SELECT 2 * count(*) FROM pairs")
        .await
        .parse()
        .unwrap();
    assert!(swapped > 100, "{swapped} rows share a block with one other");
    let (_, report) = verify(&s, "", &[]).await;
    assert_eq!(drift_of(&report, "public.folded"), [0, 0, 4], "{report}");
    assert_eq!(
        drift_of(&report, "public.swapped"),
        [0, 0, swapped],
        "{report}"
    );
}

/// Compared as the mapping has it: renamed, cast, computed, filtered; what is not mapped is left out.
#[tokio::test]
async fn the_mapping_is_applied_first() {
    let s = Scenario::new(&FAMILY, "mapped").await;
    s.on_source(
        "CREATE TABLE leads (id int PRIMARY KEY, current_project_id int, email text, price numeric, secret text, client int)",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA crm; CREATE TABLE crm.leads (id bigint PRIMARY KEY, project_id int, email varchar(40), \
         price numeric(9, 1), origin text, here_only text)",
    )
    .await;
    s.on_source(
        "INSERT INTO leads SELECT g, g % 9, 'Lead' || g || '@X.org', g / 7.0, 'not for you', nullif(g % 5, 0) \
         FROM generate_series(1, 500) g",
    )
    .await;
    s.publish_all().await;
    let rules = "[[tables]]\nsource = \"public.leads\"\nreplica = \"crm.leads\"\n\
        columns = { current_project_id = \"project_id\" }\nexclude = [\"secret\", \"client\"]\n\
        set = { email = \"lower(email)\", origin = \"'master'\" }\nwhere = \"client IS NOT NULL\"";
    let daemon = s.start(rules).await;
    s.caught_up(&daemon).await;
    s.on_replica("UPDATE crm.leads SET here_only = 'ours'")
        .await;
    let (code, report) = verify(&s, rules, &[]).await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["tables"][0]["source_rows"], 400);
    assert_eq!(report["tables"][0]["replica_table"], "crm.leads");
    s.on_replica(
        "UPDATE crm.leads SET email = upper(email) WHERE id = 1; UPDATE crm.leads SET origin = 'x' WHERE id = 2;
         INSERT INTO crm.leads (id) VALUES (5)",
    )
    .await;
    let (_, report) = verify(&s, rules, &[]).await;
    assert_eq!(drift_of(&report, "public.leads"), [0, 1, 2], "{report}");
}

#[tokio::test]
async fn without_a_daemon_it_catches_up_and_compares() {
    let (s, mut daemon) = running("stopped").await;
    s.caught_up(&daemon).await;
    assert!(daemon.terminate().success());
    s.on_source("UPDATE accounts SET balance = 0 WHERE id < 100; DELETE FROM moves WHERE a = 4")
        .await;
    let (code, report) = verify(&s, "", &[]).await;
    assert_eq!(code, Some(0), "{report}");
    s.on_replica("DELETE FROM journal WHERE n = 3").await;
    let (code, report) = verify(&s, "", &["public.journal"]).await;
    assert_eq!(code, Some(1), "{report}");
    assert!(drift_of(&report, "public.journal")[0] > 0, "{report}");
}

/// A transaction that stays open on the source is in the way of an exact cut, and of nothing else: what was
/// planted is found, and nothing invented, while rows change.
#[tokio::test]
async fn beside_a_long_transaction_of_the_source_what_differs_is_looked_at_again() {
    let (s, daemon) = running_in(&ALONE, "long").await;
    s.caught_up(&daemon).await;
    s.on_replica(
        "DELETE FROM accounts WHERE id = 2000; UPDATE accounts SET balance = -1 WHERE id IN (2001, 2002);
         INSERT INTO accounts VALUES (9000, 1)",
    )
    .await;
    let other = s.pair.source.connect(&s.name).await.unwrap();
    other
        .batch_execute("BEGIN; INSERT INTO journal VALUES ('open', 1)")
        .await
        .unwrap();
    let look = async {
        let config = s.config("");
        tokio::task::spawn_blocking(move || run_verb(&config, &["verify"]))
            .await
            .unwrap()
    };
    let is_done = Cell::new(false);
    let goes_on = async {
        let mut rounds = 0;
        while !is_done.get() {
            rounds += 1;
            let change = "UPDATE accounts SET balance = balance + 1 WHERE id < 50; \
                          UPDATE moves SET amount = amount + 1 WHERE a < 3";
            s.on_source(change).await;
        }
        rounds
    };
    let look = async {
        let output = look.await;
        is_done.set(true);
        output
    };
    let (output, rounds) = tokio::join!(look, goes_on);
    let errors = String::from_utf8(output.stderr).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}{errors}");
    assert!(rounds > 100, "{rounds} rounds");
    assert!(
        said.contains("waits for each transaction of the source"),
        "{said}"
    );
    assert!(said.contains("the transaction of pid"), "{said}");
    let accounts = "NOT the same: 1 missing, 1 extra, 2 different, rechecked";
    assert!(said.contains(accounts), "{said}");
    assert!(said.contains("public.moves: the same, rechecked"), "{said}");
    // A table without a key cannot be looked at again, and need not be where it is the same.
    assert!(
        said.contains("public.journal: the same, rechecked"),
        "{said}"
    );
    other.batch_execute("COMMIT").await.unwrap();
    s.caught_up(&daemon).await;
    s.on_replica("INSERT INTO journal VALUES ('ours', 1)").await;
    other
        .batch_execute("BEGIN; INSERT INTO accounts VALUES (9001, 1)")
        .await
        .unwrap();
    let (code, report) = verify(&s, "", &["public.journal"]).await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(report["not_compared"][0]["reason"], "no_key", "{report}");
    other.batch_execute("COMMIT").await.unwrap();
    s.caught_up(&daemon).await;
    let (code, report) = verify(&s, "", &[]).await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(report["near"], Value::Null, "{report}");
    assert_eq!(drift_of(&report, "public.accounts"), [1, 1, 2], "{report}");
    let marked = "SELECT count(*) FILTER (WHERE rechecked) || ' of ' || count(*) FROM pglockstep.proofs \
                  WHERE source_table = 'accounts' AND NOT counts_only AND missing = 1";
    assert_eq!(s.replica_one(marked).await, "1 of 2");
}

/// Nothing keeps the replica's key from being NULL.
#[tokio::test]
async fn a_row_whose_key_is_null_is_extra() {
    let s = Scenario::new(&FAMILY, "loose").await;
    s.on_source(
        "CREATE TABLE loose (id int PRIMARY KEY, v text); INSERT INTO loose VALUES (1, 'a')",
    )
    .await;
    s.on_replica("CREATE TABLE loose (id int, v text); CREATE UNIQUE INDEX ON loose (id)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.caught_up(&daemon).await;
    s.on_replica("INSERT INTO loose VALUES (NULL, 'b')").await;
    let (code, report) = verify(&s, "", &[]).await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(drift_of(&report, "public.loose"), [0, 1, 0], "{report}");
}

/// Where each commit of the source is asynchronous, its log reaches the disk five times a second.
#[tokio::test]
async fn a_source_that_commits_asynchronously_is_compared_like_others() {
    let (s, daemon) = running_in(&ASYNCHRONOUS, "async").await;
    s.caught_up(&daemon).await;
    s.on_source(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        s.name
    ))
    .await;
    let is_done = Cell::new(false);
    let looks = async {
        for _ in 0..5 {
            let (code, report) = verify(&s, "", &[]).await;
            assert_eq!(code, Some(0), "{report}");
            assert_eq!(report["near"], Value::Null, "{report}");
        }
        is_done.set(true);
    };
    let ((), rounds) = tokio::join!(looks, work(&s, &is_done));
    assert!(rounds > 10, "{rounds} rounds");
    let held = samples(&daemon, "pglockstep_cut_held_seconds_bucket").await;
    let within = held.get("le=\"0.1\"").copied();
    assert!(within >= Some(5.0), "{held:?}");
    let all = daemon.metric("pglockstep_cut_held_seconds_count").await;
    assert_eq!(within, all, "held up longer: {held:?}");
}
