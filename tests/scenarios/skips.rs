//! One transaction is to be passed by twice: it is once, and the second word changes nothing.

use crate::support::{
    Family, QUARANTINE, Row, Scenario, errors, eventually, row, run_verb, skip, verb,
    with_short_names,
};

static FAMILY: Family = Family::const_new();

const BOOKS: [&str; 3] = [
    "SELECT t::text FROM pglockstep.errors AS t",
    "SELECT md5(t::text) FROM pglockstep.kept_changes AS t",
    "SELECT t::text FROM pglockstep.tables AS t",
];

async fn scenario(name: &str) -> Scenario<'static> {
    with_short_names(&FAMILY, name, "").await
}

/// A transaction that the replica refuses.
async fn poison(s: &Scenario<'_>, id: u32) {
    s.on_source(&format!(
        "BEGIN; INSERT INTO notes VALUES ({id}, 'with it'); \
         INSERT INTO leads VALUES ({id}, 'far too long a name'); COMMIT"
    ))
    .await;
}

async fn books(s: &Scenario<'_>) -> Vec<Vec<Row>> {
    let mut books = Vec::new();
    for sql in BOOKS {
        books.push(s.replica_rows(sql).await);
    }
    books
}

/// A word that comes too late: one line says so, and the books are as they were.
async fn too_late(s: &Scenario<'_>, more: &str, id: &str) {
    let before = books(s).await;
    let (code, said) = verb(
        s,
        more,
        &["errors", "skip", id, "--reason", "another reason"],
    );
    assert_eq!(code, Some(2), "{said}");
    let expected = format!("error {id} has ended: it is skipped; nothing was changed");
    assert!(said.contains(&expected), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert_eq!(books(s).await, before);
}

#[tokio::test]
async fn a_transaction_that_is_to_be_passed_by_twice_is_passed_by_once() {
    let s = scenario("skip_twice").await;
    let mut daemon = s.start("").await;
    poison(&s, 1).await;
    s.on_source("INSERT INTO notes VALUES (2, 'after')").await;
    s.until_failed(&mut daemon, &["22001"]).await;
    daemon.kill9();
    let id = errors(&s, "", false)[0]["id"].to_string();
    skip(&s, "", &id, "the first reason");
    skip(&s, "", &id, "the second reason");
    let waits = errors(&s, "", false);
    assert_eq!(waits.len(), 1, "{waits:?}");
    assert_eq!(waits[0]["request"], "skip");
    let mut daemon = s.start("").await;
    s.caught_up(&daemon).await;
    let is_passed = async || {
        let all = errors(&s, "", true);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0]["state"], "skipped");
        assert_eq!(all[0]["reason"], "the second reason");
        assert_eq!(all[0]["kept_changes"], 2);
        let kept = s.replica_one("SELECT count(*) FROM pglockstep.kept_changes");
        assert_eq!(kept.await, "2");
    };
    is_passed().await;
    too_late(&s, "", &id).await;
    s.on_source("INSERT INTO notes VALUES (3, 'later')").await;
    s.caught_up(&daemon).await;
    is_passed().await;
    // And with nobody there who could carry it out.
    assert!(daemon.terminate().success());
    too_late(&s, "", &id).await;
    let mut daemon = s.start("").await;
    s.caught_up(&daemon).await;
    is_passed().await;
    assert_eq!(
        s.replica_rows("SELECT id::text FROM notes").await,
        [row(["2"]), row(["3"])]
    );
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn two_operators_at_once() {
    let s = scenario("skip_at_once").await;
    let mut daemon = s.start("").await;
    poison(&s, 1).await;
    s.until_failed(&mut daemon, &["22001"]).await;
    let id = errors(&s, "", false)[0]["id"].to_string();
    let both = ["one", "the other"].map(|reason| {
        let (config, id) = (s.config(""), id.clone());
        let asked = move || run_verb(&config, &["errors", "skip", &id, "--reason", reason]);
        (reason, std::thread::spawn(asked))
    });
    let both = both.map(|(reason, asked)| (reason, asked.join().unwrap()));
    s.until_state(&mut daemon, "streaming").await;
    s.caught_up(&daemon).await;
    let all = errors(&s, "", true);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (&all[0]["state"], all[0]["kept_changes"].as_u64()),
        (&"skipped".into(), Some(2))
    );
    for (reason, output) in &both {
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(2) => {
                assert!(said.contains("has ended"), "{said}");
                assert_ne!(all[0]["reason"], *reason);
            }
            other => panic!("{other:?}: {said}"),
        }
    }
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_word_about_one_transaction_of_a_table_set_aside_is_not_about_the_next() {
    let s = scenario("skip_next").await;
    let mut daemon = s.start(QUARANTINE).await;
    poison(&s, 1).await;
    s.on_source("INSERT INTO leads VALUES (2, 'short')").await;
    poison(&s, 3).await;
    s.on_source("INSERT INTO leads VALUES (4, 'shorter')").await;
    let waiting = "SELECT count(*) FROM pglockstep.kept_changes WHERE skipped_by IS NULL";
    s.replica_eventually(waiting, "4").await;
    let first = errors(&s, QUARANTINE, false)[0]["id"].to_string();
    daemon.kill9();
    skip(&s, QUARANTINE, &first, "a reason");
    skip(&s, QUARANTINE, &first, "a better reason");
    let mut daemon = s.start(QUARANTINE).await;
    let next = eventually(
        "the next transaction to fail",
        || daemon.stderr(),
        async || {
            let open = errors(&s, QUARANTINE, false);
            let id = open.first()?["id"].to_string();
            (id != first).then_some(id)
        },
    )
    .await;
    assert_eq!(s.replica_one(waiting).await, "3");
    too_late(&s, QUARANTINE, &first).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM leads").await, "0");
    skip(&s, QUARANTINE, &next, "this one too");
    s.replica_eventually(
        "SELECT string_agg(id::text, ' ' ORDER BY id) FROM leads",
        "2 4",
    )
    .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &["SELECT * FROM notes"]).await;
    for (error, reason) in errors(&s, QUARANTINE, true)
        .iter()
        .zip(["a better reason", "this one too"])
    {
        assert_eq!(error["state"], "skipped", "{error}");
        assert_eq!(error["reason"], reason, "{error}");
        assert_eq!(error["kept_changes"], 1, "{error}");
        too_late(&s, QUARANTINE, &error["id"].to_string()).await;
    }
    assert_eq!(s.replica_one(waiting).await, "0");
    assert!(daemon.terminate().success());
}
