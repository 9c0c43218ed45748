//! What is not the same is mended: at a cut, within bounds, with what was before kept.

use std::cell::Cell;

use serde_json::Value;

use crate::support::{Daemon, Family, Scenario, eventually, reported};

static FAMILY: Family = Family::const_new();

fn of<'r>(report: &'r Value, table: &str) -> &'r Value {
    let tables = report["tables"].as_array();
    let tables = tables.unwrap_or_else(|| panic!("no report: {report}"));
    let found = tables.iter().find(|t| t["table"] == table);
    found.unwrap_or_else(|| panic!("{table}: {report}"))
}

fn numbers<const N: usize>(of: &Value, names: [&str; N]) -> [u64; N] {
    names.map(|name| of[name].as_u64().unwrap_or_else(|| panic!("{name}: {of}")))
}

const FOUND: [&str; 3] = ["missing", "extra", "different"];
const DONE: [&str; 3] = ["inserted", "updated", "deleted"];

const TABLES: &str =
    "CREATE TABLE accounts (id int PRIMARY KEY, balance numeric NOT NULL, note text);
    CREATE TABLE moves (a int, \"B b\" text, amount numeric, PRIMARY KEY (a, \"B b\"))";

async fn running(name: &str, more: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(TABLES).await;
    s.on_source(
        "INSERT INTO accounts SELECT g, g, 'n' || g FROM generate_series(1, 3000) g;
         INSERT INTO moves SELECT g % 50, 'it''s \\' || g, g / 3.0 FROM generate_series(1, 2000) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start(more).await;
    s.caught_up(&daemon).await;
    (s, daemon)
}

const PLANTED: &str = "DELETE FROM accounts WHERE id BETWEEN 2001 AND 2250;
    UPDATE accounts SET balance = balance + 0.001 WHERE id BETWEEN 1001 AND 1030;
    UPDATE accounts SET note = NULL WHERE id = 1031;
    INSERT INTO accounts SELECT g, 7, 'extra' FROM generate_series(9001, 9004) g;
    DELETE FROM moves WHERE a = 3; UPDATE moves SET amount = -1 WHERE a = 4;
    INSERT INTO moves VALUES (3, 'only here', 1)";

/// While the source changes the very rows that are mended.
#[tokio::test]
async fn what_was_planted_is_mended_under_load() {
    let (s, daemon) = running("mended", "").await;
    s.on_replica(PLANTED).await;
    let (code, plan) = reported(&s, "", &["repair"]).await;
    assert_eq!(
        (code, &plan["applied"]),
        (Some(1), &Value::Bool(false)),
        "{plan}"
    );
    assert_eq!(
        numbers(of(&plan, "public.accounts"), FOUND),
        [250, 4, 31],
        "{plan}"
    );
    assert_eq!(
        numbers(of(&plan, "public.moves"), FOUND),
        [40, 1, 40],
        "{plan}"
    );
    let first = &of(&plan, "public.moves")["rows"][0];
    assert_eq!(first["kind"], "missing", "{plan}");
    assert_eq!(first["key"].as_array().unwrap().len(), 2, "{plan}");
    assert_eq!(s.replica_one("SELECT count(*) FROM accounts").await, "2754");

    let is_done = Cell::new(false);
    let load = async {
        let mut rounds = 0;
        while !is_done.get() {
            rounds += 1;
            s.on_source(&format!(
                "UPDATE accounts SET balance = balance + 1, note = 'r{rounds}' WHERE id BETWEEN 1001 AND 1100;
                 UPDATE moves SET amount = amount + {rounds} WHERE a IN (4, 5)"
            ))
            .await;
        }
        rounds
    };
    let mend = async {
        // Rows that the load has mended by now are fewer: none is more.
        let (code, report) = reported(&s, "", &["repair", "--apply"]).await;
        assert_eq!(code, Some(1), "what is extra stays: {report}");
        let accounts = &of(&report, "public.accounts")["done"];
        assert_eq!(
            numbers(accounts, ["inserted", "deleted"]),
            [250, 0],
            "{report}"
        );
        let moves = &of(&report, "public.moves")["done"];
        assert_eq!(numbers(moves, ["inserted", "deleted"]), [40, 0], "{report}");
        let verified = &report["verified"];
        assert_eq!(
            numbers(of(verified, "public.accounts"), FOUND),
            [0, 4, 0],
            "{report}"
        );
        assert_eq!(
            numbers(of(verified, "public.moves"), FOUND),
            [0, 1, 0],
            "{report}"
        );
        let (code, report) = reported(&s, "", &["repair", "--apply", "--delete-extra"]).await;
        assert_eq!(
            (code, &report["verified"]["in_sync"]),
            (Some(0), &Value::Bool(true)),
            "{report}"
        );
        let accounts = &of(&report, "public.accounts")["done"];
        assert_eq!(numbers(accounts, DONE), [0, 0, 4], "{report}");
        is_done.set(true);
    };
    let (rounds, ()) = tokio::join!(load, mend);
    assert!(rounds > 3, "{rounds}");
    let all = ["SELECT * FROM accounts", "SELECT * FROM moves"];
    s.in_step(&daemon, &all).await;
    let (code, report) = reported(&s, "", &["verify"]).await;
    assert_eq!(code, Some(0), "{report}");
    // What was before: of rows that were inserted nothing, of others all.
    let kept =
        "SELECT string_agg(DISTINCT deed || ' ' || (before IS NULL), ', ') FROM pglockstep.repairs";
    let deeds = s.replica_one(kept).await;
    assert!(deeds.contains("deleted false, inserted true"), "{deeds}");
    assert!(
        !deeds.contains("deleted true") && !deeds.contains("inserted false"),
        "{deeds}"
    );
    let extra = "SELECT before ->> 'note' FROM pglockstep.repairs WHERE deed = 'deleted' AND key = '{9001}'";
    assert_eq!(s.replica_one(extra).await, "extra");
}

#[tokio::test]
async fn beyond_the_bounds_nothing_is_changed() {
    let (s, _daemon) = running("bounds", "").await;
    s.on_replica(PLANTED).await;
    let before = s.replica_rows("SELECT * FROM accounts").await;
    for (bounds, words) in [
        (["--max-rows", "360"], "361 rows would be changed"),
        (
            ["--max-percent", "9"],
            "of public.accounts would be changed",
        ),
    ] {
        let mut arguments = vec!["repair", "--apply"];
        arguments.extend(bounds);
        let (code, report) = reported(&s, "", &arguments).await;
        assert_eq!((code, &report["applied"]), (Some(1), &Value::Bool(false)));
        assert!(
            report["refused"].as_str().unwrap().contains(words),
            "{report}"
        );
    }
    assert_eq!(s.replica_rows("SELECT * FROM accounts").await, before);
    // One table alone is within them.
    let (_, report) = reported(
        &s,
        "",
        &["repair", "--apply", "--max-rows", "100", "public.moves"],
    )
    .await;
    assert_eq!(
        report["verified"]["tables"].as_array().unwrap().len(),
        1,
        "{report}"
    );
    assert_eq!(
        numbers(&of(&report, "public.moves")["done"], DONE),
        [40, 40, 0]
    );
}

/// Keys of types that need a cast, renamed, computed and filtered columns, columns of the
/// replica's own; with no daemon there.
#[tokio::test]
async fn the_mapping_holds_and_no_daemon_is_needed() {
    let s = Scenario::new(&FAMILY, "mapped_repair").await;
    s.on_both("CREATE TYPE mood AS ENUM ('low', 'high')").await;
    s.on_source(
        "CREATE TABLE leads (at timestamptz, m mood, u uuid, n numeric(6, 2), project int, secret text, client int, \
         PRIMARY KEY (at, m, u, n))",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA crm; CREATE TABLE crm.leads (at timestamptz, m mood, u uuid, n numeric(6, 2), project_id bigint, \
         origin text, here_only text, PRIMARY KEY (at, m, u, n))",
    )
    .await;
    s.on_source(
        "INSERT INTO leads SELECT '2026-01-01 00:00+02'::timestamptz + g * interval '1 us', \
         (ARRAY['low', 'high'])[1 + g % 2]::mood, md5(g::text)::uuid, g / 4.0, g % 9, 'x', nullif(g % 5, 0) \
         FROM generate_series(1, 500) g",
    )
    .await;
    s.publish_all().await;
    let rules = "[[tables]]\nsource = \"public.leads\"\nreplica = \"crm.leads\"\n\
        columns = { project = \"project_id\" }\nexclude = [\"secret\", \"client\"]\n\
        set = { origin = \"'master'\" }\nwhere = \"client IS NOT NULL\"";
    let daemon = s.start(rules).await;
    s.caught_up(&daemon).await;
    s.end(daemon).await;
    s.on_replica(
        "UPDATE crm.leads SET here_only = 'ours'; UPDATE crm.leads SET project_id = 77 WHERE n = 1; \
         DELETE FROM crm.leads WHERE n IN (2, 3, 4); UPDATE crm.leads SET origin = '' WHERE n = 6",
    )
    .await;
    // A row that is none of the replica's: the filter keeps it out.
    s.on_replica(
        "INSERT INTO crm.leads SELECT '2026-01-01 00:00+02'::timestamptz + 5 * interval '1 us', 'high', md5('5')::uuid, \
         1.25, 5, 'master', NULL",
    )
    .await;
    let mut arguments = vec!["repair", "--apply", "--delete-extra"];
    let (code, report) = reported(&s, rules, &arguments).await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(
        numbers(&of(&report, "public.leads")["done"], DONE),
        [3, 2, 1],
        "{report}"
    );
    let kept = "SELECT count(*) FROM crm.leads WHERE here_only = 'ours'";
    assert_eq!(s.replica_one(kept).await, "397");
    arguments.push("public.leads");
    let (code, report) = reported(&s, rules, &arguments).await;
    assert_eq!(
        (code, report["tables"].as_array().unwrap().len()),
        (Some(0), 0),
        "{report}"
    );
}

#[tokio::test]
async fn a_table_without_a_key_is_copied_again() {
    let s = Scenario::new(&FAMILY, "keyless_repair").await;
    s.on_both("CREATE TABLE journal (what text, n int)").await;
    s.on_source(
        "ALTER TABLE journal REPLICA IDENTITY FULL; \
         INSERT INTO journal SELECT 'line ' || g % 100, g % 7 FROM generate_series(1, 1000) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.caught_up(&daemon).await;
    s.on_replica(
        "INSERT INTO journal VALUES ('only here', 1), ('only here', 1), ('line 5', 5); \
         DELETE FROM journal WHERE ctid IN (SELECT ctid FROM journal WHERE what = 'line 8' LIMIT 2)",
    )
    .await;
    let (code, report) = reported(&s, "", &["repair", "--apply"]).await;
    assert_eq!(
        (code, &of(&report, "public.journal")["way"]),
        (Some(1), &Value::from("let_be")),
        "{report}"
    );
    let (code, report) = reported(&s, "", &["repair", "--apply", "--delete-extra"]).await;
    let journal = of(&report, "public.journal");
    assert_eq!(
        (code, &journal["way"], &report["verified"]["in_sync"]),
        (Some(0), &Value::from("resync"), &Value::from(true)),
        "{report}"
    );
    assert_eq!(numbers(&journal["done"], DONE), [2, 0, 3], "{report}");
    let same = ["SELECT * FROM journal"];
    s.in_step(&daemon, &same).await;
    // What went is kept: of rows that are alike as many as were too many.
    let went = "SELECT string_agg(before::text, ' ' ORDER BY before::text) FROM pglockstep.repairs WHERE deed = 'deleted'";
    assert_eq!(
        s.replica_one(went).await,
        r#"{"what":"line 5","n":5} {"what":"only here","n":1} {"what":"only here","n":1}"#
    );
    // A verb alone does it as well.
    s.end(daemon).await;
    s.on_replica("DELETE FROM journal WHERE what = 'line 9'")
        .await;
    let (code, report) = reported(&s, "", &["repair", "--apply"]).await;
    let done = numbers(&of(&report, "public.journal")["done"], DONE);
    assert_eq!((code, done[0], done[2]), (Some(0), 10, 0), "{report}");
    let daemon = s.start("").await;
    s.in_step(&daemon, &same).await;
}

#[tokio::test]
async fn small_drift_is_mended_by_itself_where_that_is_wanted() {
    let more = "[verify]\nevery = \"10s\"\ncounts_every = \"0s\"\nrepair = true";
    let (s, daemon) = running("by_itself_mended", more).await;
    s.on_replica(
        "DELETE FROM accounts WHERE id < 20; UPDATE moves SET amount = 0 WHERE a = 9; \
                  INSERT INTO accounts VALUES (7777, 1, 'extra')",
    )
    .await;
    s.replica_eventually("SELECT count(*) FROM accounts WHERE id < 20", "19")
        .await;
    s.replica_eventually("SELECT count(*) FROM moves WHERE amount = 0", "0")
        .await;
    s.in_step(
        &daemon,
        &[
            "SELECT * FROM accounts WHERE id < 7777",
            "SELECT * FROM moves",
        ],
    )
    .await;
    daemon.until_said("mending by itself").await;
    // Never by itself: a row that only the replica has is deleted.
    assert_eq!(
        s.replica_one("SELECT note FROM accounts WHERE id = 7777")
            .await,
        "extra"
    );
    // Nor what is beyond the bounds.
    s.on_replica("DELETE FROM accounts WHERE id BETWEEN 1000 AND 2000")
        .await;
    daemon.until_said("10 allows").await;
    assert_eq!(
        s.replica_one("SELECT count(*) FROM accounts WHERE id BETWEEN 1000 AND 2000")
            .await,
        "0"
    );
}

/// Somebody else's lock: it is tried again, and the apply goes on meanwhile.
#[tokio::test]
async fn a_row_that_is_locked_holds_nobody_up() {
    let (s, daemon) = running("locked_row", "").await;
    s.on_replica("UPDATE accounts SET balance = 0 WHERE id = 5")
        .await;
    let mut other = s.pair.replica.connect(&s.name).await.unwrap();
    let lock = other.transaction().await.unwrap();
    lock.execute("SELECT 1 FROM accounts WHERE id = 5 FOR UPDATE", &[])
        .await
        .unwrap();
    let mend = reported(&s, "", &["repair", "--apply"]);
    let meanwhile = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%repair\\_%'";
        eventually(
            "a repair that waits",
            || daemon.stderr(),
            async || (s.replica_one(waits).await == "1").then_some(()),
        )
        .await;
        s.on_source("UPDATE accounts SET note = 'meanwhile' WHERE id > 10")
            .await;
        s.caught_up(&daemon).await;
        lock.rollback().await.unwrap();
    };
    let ((code, report), ()) = tokio::join!(mend, meanwhile);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(
        numbers(&of(&report, "public.accounts")["done"], DONE),
        [0, 1, 0],
        "{report}"
    );
    s.in_step(&daemon, &["SELECT * FROM accounts"]).await;
}

/// A repair that takes longer than the apply waits for it: what comes in the stream comes after it.
#[tokio::test]
async fn a_slow_repair_undoes_nothing_that_the_stream_brings() {
    let (s, daemon) = running("slow_repair", "").await;
    s.on_replica(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.id = 5 THEN PERFORM pg_sleep(2); END IF; RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION slow();
         ALTER TABLE accounts ENABLE ALWAYS TRIGGER slow; DELETE FROM accounts WHERE id = 5",
    )
    .await;
    let mend = reported(&s, "", &["repair", "--apply", "public.accounts"]);
    let meanwhile = async {
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        eventually(
            "a repair that sleeps",
            || daemon.stderr(),
            async || (s.replica_one(sleeps).await == "1").then_some(()),
        )
        .await;
        // It is as of before this.
        s.on_source("DELETE FROM accounts WHERE id = 5").await;
    };
    let ((_, report), ()) = tokio::join!(mend, meanwhile);
    assert_eq!(
        numbers(&of(&report, "public.accounts")["done"], DONE),
        [1, 0, 0],
        "{report}"
    );
    s.in_step(&daemon, &["SELECT * FROM accounts"]).await;
}

/// However long the replica takes: the server itself ends it, and the apply goes on.
#[tokio::test]
async fn a_repair_that_never_ends_is_ended() {
    let (s, daemon) = running("endless_repair", "").await;
    s.on_replica(
        "CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.id = 5 THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END';
         CREATE TRIGGER endless BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION endless();
         ALTER TABLE accounts ENABLE ALWAYS TRIGGER endless; DELETE FROM accounts WHERE id IN (5, 6)",
    )
    .await;
    let mend = reported(&s, "", &["repair", "--apply"]);
    let meanwhile = async {
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        eventually(
            "a repair that sleeps",
            || daemon.stderr(),
            async || (s.replica_one(sleeps).await == "1").then_some(()),
        )
        .await;
        s.on_source("UPDATE moves SET amount = amount + 1").await;
        s.in_step(&daemon, &["SELECT * FROM moves"]).await;
        s.on_replica("DROP TRIGGER endless ON accounts").await;
    };
    let ((code, report), ()) = tokio::join!(mend, meanwhile);
    assert_eq!(code, Some(0), "{report}");
    s.in_step(&daemon, &["SELECT * FROM accounts"]).await;
}
