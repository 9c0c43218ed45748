//! Rows that refer to nothing or share a key go, where the source has them not; each is kept first.

use serde_json::Value;

use crate::support::{Daemon, Family, Scenario, reported, run_verb, until_metric};

static FAMILY: Family = Family::const_new();

const RULES: &str = "[verify]\nevery = \"10s\"\ncounts_every = \"0s\"\n\
    [[tables]]\nsource = \"public.*\"\nreplica = \"crm.*\"\n\
    [[tables]]\nsource = \"public.leads\"\nreplica = \"crm.leads\"\n\
    columns = { current_project_id = \"project_id\" }\n\
    unique = [[\"email\"]]\n\
    references = [{ columns = [\"project_id\"], table = \"crm.projects\", to = [\"id\"] }]";

/// No catalogue says that a lead has a project; nothing on the replica keeps a lead's key or email.
async fn running(name: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_source(
        "CREATE TABLE projects (id int PRIMARY KEY);
         CREATE TABLE leads (id int PRIMARY KEY, current_project_id int, email text);
         CREATE TABLE notes (id int PRIMARY KEY, lead_id int REFERENCES leads, body text);
         INSERT INTO projects SELECT generate_series(1, 5);
         INSERT INTO leads SELECT g, g % 5 + 1, 'm' || g FROM generate_series(1, 100) g;
         INSERT INTO leads VALUES (500, 77, 'the source has it so');
         INSERT INTO notes SELECT g, g, 'n' || g FROM generate_series(1, 100) g",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA crm; CREATE TABLE crm.projects (id int PRIMARY KEY);
         CREATE TABLE crm.leads (id int NOT NULL, project_id int, email text, own text DEFAULT 'ours');
         CREATE INDEX ON crm.leads (id);
         CREATE TABLE crm.notes (id int PRIMARY KEY, lead_id int, body text)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start(RULES).await;
    s.caught_up(&daemon).await;
    (s, daemon)
}

fn of<'r>(report: &'r Value, table: &str, what: &str) -> &'r Value {
    let tables = report["tables"].as_array();
    let tables = tables.unwrap_or_else(|| panic!("no report: {report}"));
    let is_it =
        |t: &&Value| t["table"] == table && t["what"].as_str().is_some_and(|w| w.contains(what));
    let found = tables.iter().find(is_it);
    found.unwrap_or_else(|| panic!("{table}, {what}: {report}"))
}

fn numbers(of: &Value) -> [Option<u64>; 4] {
    let deleted = &of["done"]["deleted"];
    [&of["rows"], &of["to_go"], deleted, &of["left"]].map(Value::as_u64)
}

#[tokio::test]
async fn orphans_that_only_the_replica_has_go_and_whoever_referred_to_them() {
    let (s, daemon) = running("gone").await;
    s.on_replica(
        "INSERT INTO crm.leads (id, project_id, email) SELECT g, 99, 'o' || g FROM generate_series(901, 903) g;
         INSERT INTO crm.notes VALUES (901, 902, 'of an orphan'), (902, 7, 'not an orphan')",
    )
    .await;
    let orphans = "pglockstep_foreign_key_orphans{constraint=\"crm.leads.leads_project_id_fkey\"}";
    until_metric(&daemon, orphans, 4.0).await;
    let findings = "pglockstep_findings{check=\"diagnose.orphans\",severity=\"error\"}";
    until_metric(&daemon, findings, 1.0).await;
    daemon
        .until_said("rows refer to rows that are not there")
        .await;

    let (code, plan) = reported(&s, RULES, &["cleanup", "orphans"]).await;
    assert_eq!((code, &plan["applied"]), (Some(1), &Value::Bool(false)));
    let leads = of(&plan, "public.leads", "leads_project_id_fkey");
    assert_eq!(numbers(leads), [Some(4), Some(3), None, None], "{plan}");
    assert_eq!(leads["keys"][0][0], "901", "{plan}");
    assert_eq!(s.replica_one("SELECT count(*) FROM crm.leads").await, "104");

    let (code, refused) = reported(
        &s,
        RULES,
        &["cleanup", "orphans", "--apply", "--max-rows", "2"],
    )
    .await;
    assert_eq!((code, &refused["applied"]), (Some(1), &Value::Bool(false)));
    assert!(refused["refused"].is_string(), "{refused}");
    assert_eq!(s.replica_one("SELECT count(*) FROM crm.leads").await, "104");

    let (code, done) = reported(&s, RULES, &["cleanup", "orphans", "--apply"]).await;
    assert_eq!(code, Some(1), "the source has one: {done}");
    let leads = of(&done, "public.leads", "leads_project_id_fkey");
    assert_eq!(
        numbers(leads),
        [Some(4), Some(3), Some(3), Some(1)],
        "{done}"
    );
    let notes = of(&done, "public.notes", "notes_lead_id_fkey");
    assert_eq!(
        numbers(notes),
        [Some(1), Some(1), Some(1), Some(0)],
        "{done}"
    );
    let rows = "SELECT string_agg(id::text, ',' ORDER BY id) FROM crm.leads WHERE id > 100";
    assert_eq!(s.replica_one(rows).await, "500");
    let kept = "SELECT string_agg(before->>'id' || ' ' || deed, ', ' ORDER BY replica_table, before->>'id') FROM pglockstep.repairs";
    assert_eq!(
        s.replica_one(kept).await,
        "901 deleted, 902 deleted, 903 deleted, 901 deleted"
    );
    assert_eq!(
        s.replica_one("SELECT count(*) FROM crm.notes WHERE id = 902")
            .await,
        "1",
        "it refers to a row that is there"
    );
    until_metric(&daemon, orphans, 1.0).await;
    // The stream goes on from there.
    s.on_source("UPDATE leads SET current_project_id = 1 WHERE id = 500")
        .await;
    s.caught_up(&daemon).await;
    let output = run_verb(&s.config(RULES), &["cleanup", "orphans"]);
    assert_eq!(output.status.code(), Some(0));
}

#[tokio::test]
async fn foreign_keys_that_were_not_valid_are_validated_after() {
    let s = Scenario::new(&FAMILY, "validated").await;
    s.on_both(
        "CREATE TABLE projects (id int PRIMARY KEY); CREATE TABLE leads (id int PRIMARY KEY, project_id int);
         CREATE TABLE notes (id int PRIMARY KEY, project_id int)",
    )
    .await;
    s.on_source("INSERT INTO projects VALUES (1); INSERT INTO leads VALUES (1, 1); INSERT INTO notes VALUES (1, 1)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.on_replica(
        "INSERT INTO leads VALUES (2, 99); INSERT INTO notes VALUES (2, 99);
         ALTER TABLE leads ADD CONSTRAINT of_lead FOREIGN KEY (project_id) REFERENCES projects NOT VALID;
         ALTER TABLE notes ADD CONSTRAINT of_note FOREIGN KEY (project_id) REFERENCES projects NOT VALID",
    )
    .await;
    let valid = "SELECT string_agg(conname || ' ' || convalidated, ', ' ORDER BY conname) \
                 FROM pg_constraint WHERE conname LIKE 'of_%'";
    let (code, plan) = reported(&s, "", &["cleanup", "orphans", "public.leads"]).await;
    assert_eq!(
        (code, &plan["validated"]),
        (Some(1), &serde_json::json!([]))
    );
    let (code, done) = reported(&s, "", &["cleanup", "orphans", "public.leads", "--apply"]).await;
    assert_eq!(code, Some(0), "{done}");
    let of_lead = serde_json::json!([{"replica_table": "public.leads", "constraint": "of_lead", "error": null}]);
    assert_eq!(done["validated"], of_lead, "{done}");
    assert_eq!(s.replica_one(valid).await, "of_lead true, of_note false");
    // What the source has as well keeps the other from being valid, and is told.
    s.on_source("INSERT INTO notes VALUES (3, 77)").await;
    s.caught_up(&daemon).await;
    let (code, done) = reported(&s, "", &["cleanup", "orphans", "--apply"]).await;
    assert_eq!(code, Some(1), "{done}");
    let why = done["validated"][0]["error"].as_str().unwrap();
    let sql = r#"ALTER TABLE "public"."notes" VALIDATE CONSTRAINT "of_note""#;
    assert!(why.contains("23503") && why.contains(sql), "{why}");
    assert_eq!(s.replica_one(valid).await, "of_lead true, of_note false");
    s.end(daemon).await;
}

#[tokio::test]
async fn of_rows_that_share_a_key_one_is_left_and_is_what_the_source_has() {
    let (s, daemon) = running("doubled").await;
    s.on_replica(
        "INSERT INTO crm.leads (id, project_id, email) VALUES (7, 1, 'a double of 7'), (7, 2, 'another'), (8, 2, 'm8');
         UPDATE crm.leads SET own = 'kept' WHERE id = 7 AND email = 'm7';
         INSERT INTO crm.leads (id, project_id, email) VALUES (950, 1, 'm9')",
    )
    .await;
    let (code, done) = reported(&s, RULES, &["cleanup", "duplicates", "--apply"]).await;
    assert_eq!(code, Some(0), "{done}");
    let by_id = of(&done, "public.leads", "(id)");
    assert_eq!(
        numbers(by_id),
        [Some(5), Some(2), Some(3), Some(0)],
        "{done}"
    );
    let by_email = of(&done, "public.leads", "(email)");
    assert_eq!(by_email["left"], 0, "{done}");
    let rows = "SELECT string_agg(format('%s %s %s', id, email, own), ', ' ORDER BY id) FROM crm.leads \
                WHERE id IN (7, 8, 9, 950)";
    assert_eq!(s.replica_one(rows).await, "7 m7 kept, 8 m8 ours, 9 m9 ours");
    let kept =
        "SELECT count(*) FROM pglockstep.repairs WHERE deed = 'deleted' AND before IS NOT NULL";
    assert_eq!(s.replica_one(kept).await, "4");
    s.end(daemon).await;
    // Without a daemon it is the same.
    s.on_replica("INSERT INTO crm.leads (id, email) VALUES (11, 'm11')")
        .await;
    let (code, done) = reported(
        &s,
        RULES,
        &["cleanup", "duplicates", "public.leads", "--apply"],
    )
    .await;
    assert_eq!(code, Some(0), "{done}");
    assert_eq!(
        s.replica_one("SELECT count(*) FROM crm.leads WHERE id = 11")
            .await,
        "1"
    );
}

#[tokio::test]
async fn what_both_sides_have_is_for_the_source_to_mend() {
    let (s, daemon) = running("both").await;
    s.on_source("INSERT INTO leads VALUES (600, 1, 'm3')").await;
    s.caught_up(&daemon).await;
    let (code, done) = reported(&s, RULES, &["cleanup", "duplicates", "--apply"]).await;
    assert_eq!(code, Some(1), "{done}");
    let by_email = of(&done, "public.leads", "(email)");
    assert_eq!(numbers(by_email)[..2], [Some(2), Some(0)], "{done}");
    assert_eq!(s.replica_one("SELECT count(*) FROM crm.leads").await, "102");
    let output = run_verb(&s.config(RULES), &["cleanup", "orphans", "public.nothing"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A key of the replica that is no value of the source's type cannot be asked for there.
#[tokio::test]
async fn one_tables_trouble_is_no_others() {
    let s = Scenario::new(&FAMILY, "trouble").await;
    s.on_source(
        "CREATE TABLE leads (id int PRIMARY KEY);
         CREATE TABLE notes (id int PRIMARY KEY, lead_id int REFERENCES leads);
         CREATE TABLE tags (id int PRIMARY KEY, lead_id int REFERENCES leads)",
    )
    .await;
    s.on_replica(
        "CREATE TABLE leads (id int PRIMARY KEY);
         CREATE TABLE notes (id int PRIMARY KEY, lead_id int);
         CREATE TABLE tags (id text PRIMARY KEY, lead_id int)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.caught_up(&daemon).await;
    s.on_replica("INSERT INTO notes VALUES (1, 99); INSERT INTO tags VALUES ('x1', 99)")
        .await;
    let (code, done) = reported(&s, "", &["cleanup", "orphans", "--apply"]).await;
    assert_eq!(code, Some(1), "{done}");
    let notes = of(&done, "public.notes", "notes_lead_id_fkey");
    assert_eq!(
        numbers(notes),
        [Some(1), Some(1), Some(1), Some(0)],
        "{done}"
    );
    let tags = of(&done, "public.tags", "tags_lead_id_fkey");
    assert!(tags["error"].is_string(), "{done}");
    assert_eq!(s.replica_one("SELECT count(*) FROM tags").await, "1");
}
