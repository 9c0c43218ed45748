//! An operator has a transaction passed by, and the daemon dies over it: it is passed by once,
//! its changes are kept once, and what comes after is applied.
//!
//! ```text
//!  stopped ─▶ skip left in the books ─▶ killed at each step before the commit: nothing yet
//!                                    └▶ killed at a step after it: all of it, and never again
//! ```

use std::os::unix::process::ExitStatusExt;

use crate::support::{
    Daemon, Family, QUARANTINE, Scenario, errors, row, skip, verb, with_short_names,
};

static FAMILY: Family = Family::const_new();

const ALL_KEPT: &str = "SELECT count(*) FROM pglockstep.kept_changes";

async fn scenario(name: &str) -> Scenario<'static> {
    with_short_names(&FAMILY, name, "INSERT INTO leads VALUES (1, 'first')").await
}

/// Three changes of which the replica takes two, then a transaction that it takes.
async fn poison(s: &Scenario<'_>, number: usize) {
    s.on_source(&format!(
        "BEGIN; INSERT INTO notes VALUES ({number}0, 'with it'); \
         INSERT INTO leads VALUES ({number}0, 'far too long a name'); \
         UPDATE notes SET text = 'with it too' WHERE id = {number}0; COMMIT"
    ))
    .await;
    s.on_source(&format!("INSERT INTO notes VALUES ({number}1, 'after')"))
        .await;
}

/// A daemon that stands before a transaction, and the number of its error.
async fn stopped(s: &Scenario<'_>) -> (Daemon, String) {
    let mut daemon = s.launch("");
    s.until_failed(&mut daemon, &["22001"]).await;
    let open = errors(s, "", false);
    let [error] = open.as_slice() else {
        panic!("{open:?}")
    };
    (daemon, error["id"].to_string())
}

fn dies_at(s: &Scenario<'_>, more: &str, point: &str) {
    // What was sent is to be under way before the end.
    let order = format!("{point}=delay(20ms);{point}=kill");
    let mut daemon = Daemon::start_with(&s.config(more), &[("PGLOCKSTEP_FAULTS", &order)]);
    let status = daemon.wait();
    assert_eq!(status.signal(), Some(9), "{point}: {}", daemon.stderr());
}

/// Whether it is done; it is as a whole, or not at all.
fn is_done(s: &Scenario<'_>, id: &str, changes: u64) -> bool {
    let all = errors(s, "", true);
    let error = all
        .iter()
        .find(|e| e["id"].as_i64() == id.parse().ok())
        .unwrap();
    let state = error["state"].as_str().unwrap();
    let (request, kept) = (error["request"].as_str(), error["kept_changes"].as_u64());
    match (state, request, kept.unwrap()) {
        ("skipped", None, kept) if kept == changes => true,
        ("stopped", Some("skip"), 0) => false,
        other => panic!("{other:?}: {error}"),
    }
}

#[tokio::test]
async fn a_transaction_is_passed_by_once_whenever_the_daemon_dies() {
    let s = scenario("skip_dies").await;
    assert!(s.start("").await.terminate().success());
    let before = [
        "start.claimed",
        "stream.started",
        "follow.taken",
        "apply.begun",
        "apply.written",
        "apply.position_moved",
    ];
    let rounds: [(&[&str], Option<bool>); 5] = [
        (&before, Some(false)),
        // Whether the server had it yet nobody knows.
        (&["apply.commit_sent"], None),
        (&["follow.committed"], Some(true)),
        (&["follow.told"], Some(true)),
        // Here it is the running one that dies, as soon as the word is left.
        (&[], None),
    ];
    for (number, (points, done)) in (1..).zip(rounds) {
        poison(&s, number).await;
        let (mut daemon, id) = stopped(&s).await;
        if points.is_empty() {
            skip(&s, "", &id, "as it runs");
        }
        daemon.kill9();
        if !points.is_empty() {
            skip(&s, "", &id, "while nobody runs");
        }
        let _ = is_done(&s, &id, 3);
        for point in points {
            dies_at(&s, "", point);
            let is_done = is_done(&s, &id, 3);
            assert!(done.is_none_or(|done| done == is_done), "{point}");
        }
        let mut daemon = s.start("").await;
        s.caught_up(&daemon).await;
        assert!(is_done(&s, &id, 3), "{points:?}");
        let kept = s.replica_one(ALL_KEPT).await;
        assert_eq!(kept, (3 * number).to_string(), "{points:?}");
        let after: Vec<_> = (1..=number).map(|n| row([&format!("{n}1")])).collect();
        let notes = s.replica_rows("SELECT id::text FROM notes").await;
        assert_eq!(notes, after, "{points:?}");
        assert!(daemon.terminate().success());
    }
    let leads = s.replica_rows("SELECT id::text FROM leads").await;
    assert_eq!(leads, [row(["1"])]);
    let all = errors(&s, "", true);
    assert_eq!(all.len(), 5, "{all:?}");
}

#[tokio::test]
async fn a_table_set_aside_loses_one_transaction_once_whenever_the_daemon_dies() {
    let s = scenario("skip_aside_dies").await;
    let mut daemon = s.start(QUARANTINE).await;
    poison(&s, 1).await;
    s.on_source(
        "INSERT INTO leads VALUES (2, 'short'); UPDATE leads SET name = 'shorter' WHERE id = 2",
    )
    .await;
    s.replica_eventually(
        "SELECT count(*) FROM pglockstep.kept_changes WHERE skipped_by IS NULL",
        "3",
    )
    .await;
    daemon.kill9();
    let id = errors(&s, QUARANTINE, false)[0]["id"].to_string();
    skip(&s, QUARANTINE, &id, "no lead at all");
    let look = async || {
        let left = s.replica_one(ALL_KEPT).await;
        let leads = s.replica_one("SELECT count(*) FROM leads").await;
        let state = s
            .replica_one("SELECT state FROM pglockstep.tables WHERE source_table = 'leads'")
            .await;
        let error = s.replica_one("SELECT state FROM pglockstep.errors").await;
        [left, leads, state, error]
    };
    let (waits, done) = (
        ["3", "1", "quarantined", "quarantined"],
        ["1", "2", "copied", "skipped"],
    );
    for point in [
        "start.claimed",
        "apply.begun",
        "apply.written",
        "apply.position_moved",
    ] {
        dies_at(&s, QUARANTINE, point);
        assert_eq!(look().await, waits, "{point}");
    }
    dies_at(&s, QUARANTINE, "apply.commit_sent");
    let found = look().await;
    assert!(found == waits || found == done, "{found:?}");
    let mut daemon = s.start(QUARANTINE).await;
    s.on_source("UPDATE leads SET name = 'on' WHERE id = 2")
        .await;
    s.in_step(
        &daemon,
        &["SELECT * FROM notes", "SELECT * FROM leads WHERE id <> 10"],
    )
    .await;
    assert_eq!(look().await, done);
    let (_, shown) = verb(&s, QUARANTINE, &["errors", "show", &id, "--values"]);
    assert!(
        shown.contains("1 changes") && shown.contains("far too long a name"),
        "{shown}"
    );
    assert!(daemon.terminate().success());
}
