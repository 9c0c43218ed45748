//! A change that the replica refuses: the pipeline stops before its transaction, or its table is
//! set aside and the others go on; an operator decides, and nothing is lost on the way.

use crate::support::{
    Daemon, Family, OPEN_ERRORS as OPEN, QUARANTINE, Scenario, errors, eventually, retry, row,
    until_metric as until, verb,
};

static FAMILY: Family = Family::const_new();

const TABLES: &str = "CREATE TABLE leads (id int PRIMARY KEY, name varchar(40)); \
                      CREATE TABLE notes (id int PRIMARY KEY, text text); \
                      CREATE TABLE journal (what text)";
const ALL: [&str; 3] = [
    "SELECT * FROM leads",
    "SELECT * FROM notes",
    "SELECT * FROM journal",
];
const SET_ASIDE: &str = "pglockstep_table_state{table=\"public.leads\",state=\"quarantined\"}";

/// A replica whose column is too narrow for what comes.
async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(TABLES).await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(10)")
        .await;
    s.on_source("INSERT INTO leads VALUES (1, 'first'); INSERT INTO notes VALUES (1, 'first')")
        .await;
    s.publish_all().await;
    s
}

const POISON: &str = "BEGIN; INSERT INTO notes VALUES (2, 'with it'); \
                      INSERT INTO leads VALUES (2, 'far too long a name'); \
                      INSERT INTO journal VALUES ('with it'); COMMIT";

async fn until_set_aside(daemon: &Daemon) {
    until(daemon, SET_ASIDE, 1.0).await;
    until(daemon, OPEN, 1.0).await;
}

#[tokio::test]
async fn the_pipeline_stops_before_the_one_transaction_that_cannot_be_applied() {
    let s = scenario("poison_stop").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    daemon.terminate();
    // Many wait together: those before the bad one are applied, that one and the later are not.
    for n in 10..20 {
        s.on_source(&format!("INSERT INTO notes VALUES ({n}, 'before')"))
            .await;
    }
    s.on_source(POISON).await;
    let before = s.one("SELECT pg_current_wal_lsn()").await;
    s.on_source("INSERT INTO notes VALUES (30, 'after')").await;
    let mut daemon = s.launch("");
    let said = s
        .until_failed(
            &mut daemon,
            &["22001", "replica table public.leads", "widen"],
        )
        .await;
    assert!(!said.contains("far too long"), "{said}");
    s.replica_eventually("SELECT count(*) FROM notes WHERE text = 'before'", "10")
        .await;
    assert_eq!(s.replica_one("SELECT count(*) FROM notes").await, "11");
    assert_eq!(s.replica_one("SELECT count(*) FROM journal").await, "0");
    let found = errors(&s, "", false);
    let [error] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(error["state"], "stopped");
    assert_eq!(error["sqlstate"], "22001");
    assert_eq!(error["table"], "public.leads");
    assert_eq!(error["key_hash"].as_str().unwrap().len(), 16);
    let is_before = format!(
        "SELECT '{}'::pg_lsn < '{before}'::pg_lsn",
        error["commit_lsn"].as_str().unwrap()
    );
    assert_eq!(s.one(&is_before).await, "t");
    // Started again before it is mended, it never says that all is well.
    daemon.kill9();
    let mut daemon = s.launch("");
    s.until_failed(&mut daemon, &["22001"]).await;
    let said = daemon.stderr();
    assert!(!said.contains("in step: streaming"), "{said}");
    // Mended, it goes on by itself; the error ends.
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
    until(&daemon, OPEN, 0.0).await;
    let ended = errors(&s, "", true);
    assert_eq!(ended[0]["state"], "applied");
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn an_operator_passes_one_transaction_by_and_its_content_is_kept() {
    let s = scenario("poison_skip").await;
    let mut daemon = s.start("").await;
    s.on_source(POISON).await;
    s.on_source("INSERT INTO notes VALUES (30, 'after')").await;
    s.until_failed(&mut daemon, &["22001"]).await;
    let id = errors(&s, "", false)[0]["id"].to_string();
    let (code, said) = verb(&s, "", &["errors", "skip", &id, "--reason", "a test row"]);
    assert_eq!(code, Some(0), "{said}");
    s.until_state(&mut daemon, "streaming").await;
    s.caught_up(&daemon).await;
    assert_eq!(
        s.replica_rows("SELECT id::text FROM notes").await,
        [row(["1"]), row(["30"])],
        "the whole transaction is passed by, and only it"
    );
    assert_eq!(s.replica_one("SELECT count(*) FROM leads").await, "1");
    let ended = errors(&s, "", true);
    assert_eq!(ended[0]["state"], "skipped");
    assert_eq!(ended[0]["reason"], "a test row");
    assert_eq!(ended[0]["kept_changes"], 3);
    let (_, hidden) = verb(&s, "", &["errors", "show", &id]);
    assert!(
        hidden.contains("insert public.leads") && !hidden.contains("far too long"),
        "{hidden}"
    );
    let (_, shown) = verb(&s, "", &["errors", "show", &id, "--values"]);
    assert!(shown.contains("far too long a name"), "{shown}");
    // Once: the same again is an error again, and the skipped one has ended.
    s.on_source(
        "DELETE FROM leads WHERE id = 1; INSERT INTO leads VALUES (3, 'far too long again')",
    )
    .await;
    s.until_state(&mut daemon, "failed").await;
    let (code, said) = verb(&s, "", &["errors", "retry", &id]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("has ended"), "{said}");
}

#[tokio::test]
async fn one_table_is_set_aside_and_the_others_go_on() {
    let s = scenario("poison_aside").await;
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source(POISON).await;
    until_set_aside(&daemon).await;
    s.on_source("UPDATE leads SET name = 'again' WHERE id = 1; INSERT INTO notes VALUES (3, 'on')")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    let others = &ALL[1..];
    s.in_step(&daemon, others).await;
    assert_eq!(
        s.replica_rows("SELECT name FROM leads").await,
        [row(["first"])],
        "as it was before the transaction"
    );
    let kept = "pglockstep_changes_quarantined_total{table=\"public.leads\"}";
    until(&daemon, kept, 2.0).await;
    let ready = daemon.http_get("/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("public.leads"), "{}", ready.body);
    let listed = daemon.http_get("/admin/errors").await.unwrap().body;
    assert!(listed.contains("22001"), "{listed}");
    let found = errors(&s, QUARANTINE, false);
    assert_eq!(found[0]["state"], "quarantined");
    let id = found[0]["id"].to_string();
    // Tried again too early, it stays set aside.
    assert_eq!(verb(&s, QUARANTINE, &["errors", "retry", &id]).0, Some(0));
    eventually(
        "a second attempt",
        || daemon.stderr(),
        async || (errors(&s, QUARANTINE, false)[0]["attempts"].as_i64()? > 1).then_some(()),
    )
    .await;
    // And over a restart.
    assert!(daemon.terminate().success());
    s.on_source("DELETE FROM leads WHERE id = 1; INSERT INTO leads VALUES (4, 'short')")
        .await;
    daemon = s.start(QUARANTINE).await;
    until_set_aside(&daemon).await;
    s.on_source("TRUNCATE notes, leads; INSERT INTO leads VALUES (5, 'last')")
        .await;
    s.in_step(&daemon, others).await;
    // Mended: what was kept is applied, in its order.
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
        .await;
    retry(&s, QUARANTINE, &mut daemon, &id, "public.leads").await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(errors(&s, QUARANTINE, true)[0]["state"], "applied");
    let left = s.replica_one("SELECT count(*) FROM pglockstep.kept_changes");
    assert_eq!(left.await, "0");
    s.on_source("INSERT INTO leads VALUES (6, 'on as before')")
        .await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(daemon.http_get("/readyz").await.unwrap().status, 200);
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_table_set_aside_loses_one_transaction_on_an_operators_word() {
    let s = scenario("poison_aside_skip").await;
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source(POISON).await;
    s.on_source("INSERT INTO leads VALUES (3, 'short')").await;
    until_set_aside(&daemon).await;
    let id = errors(&s, QUARANTINE, false)[0]["id"].to_string();
    let skip = ["errors", "skip", &id, "--reason", "no lead at all"];
    assert_eq!(verb(&s, QUARANTINE, &skip).0, Some(0));
    until(&daemon, OPEN, 0.0).await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL[1..]).await;
    assert_eq!(
        s.replica_rows("SELECT id::text FROM leads").await,
        [row(["1"]), row(["3"])]
    );
    let (_, shown) = verb(&s, QUARANTINE, &["errors", "show", &id, "--values"]);
    assert!(
        shown.contains("skipped") && shown.contains("far too long a name"),
        "{shown}"
    );
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_resync_mends_what_was_set_aside_and_what_has_drifted() {
    let s = scenario("poison_resync").await;
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source(POISON).await;
    until_set_aside(&daemon).await;
    s.on_source("DELETE FROM leads WHERE id = 1").await;
    s.on_replica(
        "ALTER TABLE leads ALTER name TYPE varchar(40); INSERT INTO leads VALUES (99, 'stray'); \
         DELETE FROM notes; INSERT INTO journal VALUES ('stray')",
    )
    .await;
    let unknown = verb(&s, QUARANTINE, &["resync", "public.leads", "public.ghosts"]);
    assert_eq!(unknown.0, Some(2), "{}", unknown.1);
    assert!(unknown.1.contains("nothing was changed"), "{}", unknown.1);
    let tables = ["resync", "public.leads", "public.notes", "public.journal"];
    assert_eq!(verb(&s, QUARANTINE, &tables).0, Some(0));
    until(&daemon, SET_ASIDE, 0.0).await;
    until(&daemon, OPEN, 0.0).await;
    s.until_state(&mut daemon, "streaming").await;
    s.on_source("INSERT INTO leads VALUES (7, 'after'); INSERT INTO journal VALUES ('after')")
        .await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(errors(&s, QUARANTINE, true)[0]["state"], "resynced");
    // Rows that only the replica has stay where that is wanted.
    s.on_replica("INSERT INTO notes VALUES (98, 'own')").await;
    let keep = ["resync", "--keep-extra", "public.notes"];
    assert_eq!(verb(&s, QUARANTINE, &keep).0, Some(0));
    let copied = "SELECT state FROM pglockstep.tables WHERE source_table = 'notes'";
    s.replica_eventually(copied, "copied").await;
    s.caught_up(&daemon).await;
    assert_eq!(
        s.replica_rows("SELECT id::text FROM notes").await,
        [row(["1"]), row(["2"]), row(["98"])]
    );
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_resync_follows_the_source_whatever_the_policy_and_keeps_no_row_twice() {
    let mut s = scenario("resync_plain").await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
        .await;
    s.on_source(
        "ALTER TABLE journal REPLICA IDENTITY FULL; \
         INSERT INTO journal SELECT 'row ' || g FROM generate_series(1, 500) g",
    )
    .await;
    s.on_replica(
        "CREATE ROLE resync_plain LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO resync_plain; \
         GRANT CREATE ON DATABASE resync_plain TO resync_plain",
    )
    .await;
    s.replica_role("resync_plain");
    let policy = "[apply]\non_conflict = \"replica_wins\"";
    let mut daemon = s.start(policy).await;
    s.in_step(&daemon, &ALL).await;
    s.on_replica(
        "UPDATE leads SET name = 'drifted'; DELETE FROM journal WHERE what LIKE 'row 1%'; \
         INSERT INTO journal VALUES ('stray')",
    )
    .await;
    let tables = ["resync", "--json", "public.leads", "public.journal"];
    assert_eq!(verb(&s, policy, &tables).0, Some(0));
    let left = "SELECT count(*) FROM pglockstep.tables WHERE state <> 'copied'";
    s.replica_eventually(left, "0").await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_resync_that_fails_leaves_everything_as_it_was() {
    let s = scenario("resync_fails").await;
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source(POISON).await;
    until_set_aside(&daemon).await;
    // The replica is not mended: the row does not fit by a copy either.
    assert_eq!(verb(&s, QUARANTINE, &["resync", "public.leads"]).0, Some(0));
    daemon.until_said("a resync has failed").await;
    s.until_state(&mut daemon, "streaming").await;
    s.on_source("INSERT INTO notes VALUES (7, 'goes on'); INSERT INTO leads VALUES (7, 'kept')")
        .await;
    s.in_step(&daemon, &ALL[1..]).await;
    until_set_aside(&daemon).await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
        .await;
    let id = errors(&s, QUARANTINE, false)[0]["id"].to_string();
    assert_eq!(verb(&s, QUARANTINE, &["errors", "retry", &id]).0, Some(0));
    until(&daemon, OPEN, 0.0).await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_truncate_of_a_table_set_aside_and_one_that_it_refers_to() {
    let s = Scenario::new(&FAMILY, "truncate_aside").await;
    s.on_both(
        "CREATE TABLE notes (id int PRIMARY KEY, text text); \
         CREATE TABLE leads (id int PRIMARY KEY, name varchar(40), note int REFERENCES notes)",
    )
    .await;
    s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(10)")
        .await;
    s.publish_all().await;
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source(
        "INSERT INTO notes VALUES (1, 'a'); INSERT INTO leads VALUES (1, 'far too long a name', 1)",
    )
    .await;
    until_set_aside(&daemon).await;
    s.on_source("TRUNCATE notes, leads; INSERT INTO notes VALUES (2, 'b')")
        .await;
    // The other cannot be emptied while the first is as it was: it is set aside too.
    until(&daemon, OPEN, 2.0).await;
    s.until_state(&mut daemon, "streaming").await;
    assert_eq!(
        verb(&s, QUARANTINE, &["resync", "public.notes", "public.leads"]).0,
        Some(0)
    );
    until(&daemon, OPEN, 0.0).await;
    s.in_step(&daemon, &["SELECT * FROM notes", "SELECT * FROM leads"])
        .await;
    assert!(daemon.terminate().success());
}

/// A value that an update did not send is not among what is kept either: it stands in the row that
/// the update finds once it is applied.
#[tokio::test]
async fn values_that_were_not_sent_survive_being_set_aside() {
    for (name, identity) in [
        ("unsent_aside", ""),
        (
            "unsent_aside_full",
            "ALTER TABLE leads REPLICA IDENTITY FULL",
        ),
    ] {
        let s = Scenario::new(&FAMILY, name).await;
        s.on_both(
            "CREATE TABLE notes (id int PRIMARY KEY); \
             CREATE TABLE leads (id int PRIMARY KEY, name varchar(40), n int, memo text); \
             ALTER TABLE leads ALTER memo SET STORAGE EXTERNAL",
        )
        .await;
        s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(10)")
            .await;
        s.on_source(identity).await;
        s.on_source("INSERT INTO leads SELECT g, 'first', 0, repeat('memo' || g, 3000) FROM generate_series(1, 9) g")
            .await;
        s.publish_all().await;
        let mut daemon = s.start(QUARANTINE).await;
        s.on_source("INSERT INTO leads VALUES (20, 'far too long a name', 0, repeat('x', 9000))")
            .await;
        until_set_aside(&daemon).await;
        for sql in [
            "UPDATE leads SET n = 1 WHERE id = 1",
            "UPDATE leads SET id = 102 WHERE id = 2",
            "UPDATE leads SET id = 103, n = 3 WHERE id = 3",
            "UPDATE leads SET n = n + 1 WHERE id = 103",
            // Merged when it is applied: the first is the only one to say what `memo` is.
            "BEGIN; UPDATE leads SET memo = repeat('new', 3000) WHERE id = 4; \
             UPDATE leads SET n = 4 WHERE id = 4; UPDATE leads SET id = 104 WHERE id = 4; COMMIT",
            "BEGIN; DELETE FROM leads WHERE id = 5; \
             INSERT INTO leads VALUES (5, 'anew', 0, repeat('anew', 3000)); \
             UPDATE leads SET n = 5 WHERE id = 5; COMMIT",
            // Of the row that was refused, too; and one key takes another's place.
            "UPDATE leads SET n = 6, id = 120 WHERE id = 20",
            "BEGIN; UPDATE leads SET id = 106 WHERE id = 6; UPDATE leads SET id = 6 WHERE id = 7; COMMIT",
            "INSERT INTO notes VALUES (1)",
        ] {
            s.on_source(sql).await;
        }
        s.until_state(&mut daemon, "streaming").await;
        s.in_step(&daemon, &["SELECT * FROM notes"]).await;
        let found = errors(&s, QUARANTINE, false);
        let id = found[0]["id"].to_string();
        let (_, shown) = verb(&s, QUARANTINE, &["errors", "show", &id, "--values"]);
        assert!(shown.contains("unchanged"), "all was sent: {shown}");
        s.on_replica("ALTER TABLE leads ALTER name TYPE varchar(40)")
            .await;
        retry(&s, QUARANTINE, &mut daemon, &id, "public.leads").await;
        let both = ["SELECT * FROM leads", "SELECT * FROM notes"];
        s.in_step(&daemon, &both).await;
        // It goes on as any other.
        s.on_source("UPDATE leads SET n = 9, id = id + 1000").await;
        s.in_step(&daemon, &both).await;
        assert!(daemon.terminate().success());
    }
}

#[tokio::test]
async fn books_of_an_older_version_are_brought_up() {
    let s = scenario("old_books").await;
    let mut daemon = s.start("").await;
    assert!(daemon.terminate().success());
    s.on_replica(
        "DROP TABLE pglockstep.set_aside, pglockstep.kept_changes, pglockstep.errors; \
         ALTER TABLE pglockstep.pipelines DROP given_up, DROP rebasing",
    )
    .await;
    let mut daemon = s.start("").await;
    s.on_source("INSERT INTO notes VALUES (9, 'on')").await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
}
