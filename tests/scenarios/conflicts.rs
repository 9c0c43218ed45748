//! Source and replica disagree: whose row stands, and what is told of it.

use std::collections::BTreeMap;

use crate::support::{Daemon, Family, Scenario, row, samples};

static FAMILY: Family = Family::const_new();

/// Ten rows in step, then somebody writes to the replica.
async fn disagreeing(name: &str, policy: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text, at int)")
        .await;
    s.on_source("INSERT INTO t SELECT g, 'first', 0 FROM generate_series(1, 10) g")
        .await;
    s.publish_all().await;
    let daemon = s
        .start(&format!("[apply]\non_conflict = \"{policy}\""))
        .await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    s.on_replica(
        "INSERT INTO t VALUES (100, 'replica', 90), (101, 'replica', 10);
         DELETE FROM t WHERE id IN (2, 3);
         UPDATE t SET v = 'replica', at = 90 WHERE id = 4;
         UPDATE t SET v = 'replica', at = 10 WHERE id = 5;",
    )
    .await;
    (s, daemon)
}

const CHANGES: [&str; 6] = [
    "INSERT INTO t VALUES (100, 'source', 50)",
    "INSERT INTO t VALUES (101, 'source', 50)",
    "UPDATE t SET v = 'source', at = 50 WHERE id = 2",
    "DELETE FROM t WHERE id = 3",
    "UPDATE t SET v = 'source', at = 50 WHERE id IN (4, 5)",
    "UPDATE t SET v = 'source', at = 50 WHERE id = 6",
];

/// What the table and the counters show, after the changes one by one and in one transaction.
async fn comes_to(policy: &str, rows: &[[&str; 3]], conflicts: &[(&str, f64)]) {
    let plain = policy.split('(').next().unwrap();
    for (name, is_one) in [
        (format!("{plain}_each"), false),
        (format!("{plain}_one"), true),
    ] {
        let (s, daemon) = disagreeing(&name, policy).await;
        if is_one {
            s.on_source(&format!("BEGIN; {}; COMMIT", CHANGES.join("; ")))
                .await;
        } else {
            for sql in CHANGES {
                s.on_source(sql).await;
            }
        }
        s.caught_up(&daemon).await;
        let found = s
            .replica_rows("SELECT id, v, at FROM t WHERE id <= 6 AND id > 1 OR id >= 100")
            .await;
        let rows: Vec<_> = rows.iter().map(|values| row(*values)).collect();
        assert_eq!(found, rows, "{name}");
        let counted = samples(&daemon, "pglockstep_conflicts_total").await;
        let kind = |labels: &str| {
            labels
                .split("kind=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .to_owned()
        };
        let counted: BTreeMap<String, f64> = counted
            .iter()
            .filter(|(_, count)| **count > 0.0)
            .map(|(labels, count)| (kind(labels), *count))
            .collect();
        let expected = conflicts
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count))
            .collect();
        assert_eq!(counted, expected, "{name}");
        // What the source never spoke of stays, and it goes on.
        s.on_source("UPDATE t SET v = 'later' WHERE id IN (7, 8)")
            .await;
        s.in_step(&daemon, &["SELECT * FROM t WHERE id BETWEEN 7 AND 10"])
            .await;
    }
}

#[tokio::test]
async fn the_source_wins() {
    let source = |id| [id, "source", "50"];
    comes_to(
        "source_wins",
        &["100", "101", "2", "4", "5", "6"].map(source),
        &[
            ("insert_exists", 2.0),
            ("update_missing", 1.0),
            ("delete_missing", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_replica_wins() {
    let source = |id| [id, "source", "50"];
    comes_to(
        "replica_wins",
        &[
            ["100", "replica", "90"],
            ["101", "replica", "10"],
            source("4"),
            source("5"),
            source("6"),
        ],
        &[
            ("insert_exists", 2.0),
            ("update_missing", 1.0),
            ("delete_missing", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_newest_wins() {
    let source = |id| [id, "source", "50"];
    comes_to(
        "newest_wins(at)",
        &[
            ["100", "replica", "90"],
            source("101"),
            source("2"),
            ["4", "replica", "90"],
            source("5"),
            source("6"),
        ],
        &[
            ("insert_exists", 2.0),
            ("update_missing", 1.0),
            ("delete_missing", 1.0),
            ("update_origin_differs", 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn any_conflict_stops() {
    let (s, mut daemon) = disagreeing("stops", "stop").await;
    // Each stops it; put right by hand, it goes on where it was.
    for (change, kind, remedy) in [
        (CHANGES[0], "insert_exists", "DELETE FROM t WHERE id = 100"),
        (
            CHANGES[2],
            "update_missing",
            "INSERT INTO t VALUES (2, 'first', 0)",
        ),
        (
            CHANGES[3],
            "delete_missing",
            "INSERT INTO t VALUES (3, 'first', 0)",
        ),
    ] {
        let before = s.replica_rows("SELECT * FROM t").await;
        s.on_source(&format!(
            "BEGIN; UPDATE t SET v = v || '+' WHERE id IN (9, 10); {change}; COMMIT"
        ))
        .await;
        s.until_failed(&mut daemon, &[kind]).await;
        assert_eq!(
            s.replica_rows("SELECT * FROM t").await,
            before,
            "nothing of the transaction is there"
        );
        s.on_replica(remedy).await;
        s.caught_up(&daemon).await;
    }
    s.on_replica("DELETE FROM t WHERE id = 101").await;
    s.in_step(&daemon, &["SELECT * FROM t WHERE id NOT IN (4, 5)"])
        .await;
}

#[tokio::test]
async fn a_value_that_another_row_holds_stops_whatever_the_policy() {
    for policy in ["source_wins", "replica_wins", "newest_wins(at)"] {
        let name = format!("unique_{}", policy.split('(').next().unwrap());
        let (s, mut daemon) = disagreeing(&name, policy).await;
        s.on_replica("ALTER TABLE t ADD CONSTRAINT single UNIQUE (v, id, at), ADD u text UNIQUE")
            .await;
        s.on_source("ALTER TABLE t ADD u text UNIQUE").await;
        s.on_replica("INSERT INTO t VALUES (500, 'local', 0, 'taken')")
            .await;
        s.on_source("INSERT INTO t VALUES (600, 'source', 0, 'taken')")
            .await;
        let words = ["t_u_key", "remove or change it"];
        let said = s.until_failed(&mut daemon, &words).await;
        assert!(!said.contains("taken"), "no value is ever told: {said}");
        s.on_replica("DELETE FROM t WHERE id = 500").await;
        s.in_step(&daemon, &["SELECT * FROM t WHERE id = 600"])
            .await;
    }
}

#[tokio::test]
async fn a_value_that_does_not_fit_stops_and_goes_on_when_it_does() {
    let (s, mut daemon) = disagreeing("fitting", "source_wins").await;
    for (narrow, change, remedy, words) in [
        (
            "ALTER TABLE t ALTER v TYPE varchar(9)",
            "INSERT INTO t VALUES (70, 'much too long', 0)",
            "ALTER TABLE t ALTER v TYPE text",
            ["22001", "widen"],
        ),
        (
            "ALTER TABLE t ADD CHECK (at < 1000)",
            "UPDATE t SET at = 1000 WHERE id = 7",
            "ALTER TABLE t DROP CONSTRAINT t_at_check",
            ["t_at_check", "relax"],
        ),
        (
            "ALTER TABLE t ALTER v SET NOT NULL",
            "UPDATE t SET v = NULL WHERE id = 8",
            "ALTER TABLE t ALTER v DROP NOT NULL",
            ["23502", "relax"],
        ),
    ] {
        s.on_replica(narrow).await;
        s.on_source(change).await;
        let said = s.until_failed(&mut daemon, &words).await;
        assert!(
            !said.contains("much too long"),
            "no value is ever told: {said}"
        );
        s.on_replica(remedy).await;
        s.in_step(&daemon, &["SELECT * FROM t WHERE id > 6 AND id < 100"])
            .await;
    }
}
