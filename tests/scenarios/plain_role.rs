//! A replica role that may not switch triggers and foreign keys off, nor empty tables.

use rustix::process::Signal;

use crate::support::{Daemon, Family, Scenario, run_verb};

static FAMILY: Family = Family::const_new();

const TABLES: &str = "CREATE TABLE zebra (id int PRIMARY KEY, v text);
     CREATE TABLE middle (id int PRIMARY KEY, zebra int NOT NULL REFERENCES zebra);
     CREATE TABLE a_leaf (id int PRIMARY KEY, middle int NOT NULL REFERENCES middle ON DELETE CASCADE,
                          above int REFERENCES a_leaf);
     CREATE TABLE loose (id int PRIMARY KEY, zebra int REFERENCES zebra DEFERRABLE INITIALLY DEFERRED);";
const ALL: [&str; 4] = [
    "SELECT * FROM zebra",
    "SELECT * FROM middle",
    "SELECT * FROM a_leaf",
    "SELECT * FROM loose",
];

async fn plain(name: &str, grants: &str) -> Scenario<'static> {
    let mut s = Scenario::new(&FAMILY, name).await;
    s.on_both(TABLES).await;
    s.on_source(
        "INSERT INTO zebra SELECT g, 'z' FROM generate_series(1, 30) g;
         INSERT INTO middle SELECT g, 31 - g FROM generate_series(1, 30) g;
         INSERT INTO a_leaf SELECT g, 31 - g, CASE WHEN g > 1 THEN 31 - g END FROM generate_series(1, 30) g;
         INSERT INTO loose SELECT g, g FROM generate_series(1, 30) g;",
    )
    .await;
    // Roles belong to the cluster.
    let role = format!("plain_{name}");
    s.on_replica(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role};
         GRANT {grants} ON ALL TABLES IN SCHEMA public TO {role};"
    ))
    .await;
    s.publish_all().await;
    s.replica_role(&role);
    s
}

async fn changes(s: &Scenario<'_>, daemon: &mut Daemon) {
    let statements = [
        "BEGIN; INSERT INTO zebra VALUES (100, 'n'); INSERT INTO middle VALUES (100, 100);
         INSERT INTO a_leaf VALUES (100, 100, NULL), (101, 100, 100); COMMIT",
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO loose VALUES (200, 200); INSERT INTO zebra VALUES (200, 'after'); COMMIT",
        "DELETE FROM middle WHERE id = 100",
        "BEGIN; DELETE FROM loose WHERE id = 200; DELETE FROM zebra WHERE id IN (100, 200); COMMIT",
        "BEGIN; INSERT INTO zebra VALUES (300, 'new'); UPDATE middle SET zebra = 300 WHERE id = 30;
         UPDATE loose SET zebra = NULL WHERE zebra = 1; DELETE FROM zebra WHERE id = 1; COMMIT",
        "UPDATE a_leaf SET above = id",
        "BEGIN; INSERT INTO a_leaf VALUES (302, 5, NULL), (301, 5, 302); UPDATE a_leaf SET above = 301 WHERE id = 302; COMMIT",
        "BEGIN; UPDATE a_leaf SET above = NULL WHERE id = 302; DELETE FROM a_leaf WHERE id = 301; DELETE FROM a_leaf WHERE id = 302; COMMIT",
        "BEGIN; UPDATE middle SET zebra = 2 WHERE zebra = 300; DELETE FROM zebra WHERE id = 300;
         INSERT INTO zebra VALUES (1, 'back'); COMMIT",
    ];
    for sql in statements {
        s.on_source(sql).await;
        s.in_step(daemon, &ALL).await;
    }
    daemon.signal(Signal::STOP);
    for sql in statements {
        let sql = sql.replace(
            "VALUES (1, 'back')",
            "VALUES (1000, 'back') ON CONFLICT DO NOTHING",
        );
        s.on_source(&sql.replace("WHERE id = 30;", "WHERE id = 29;"))
            .await;
    }
    daemon.signal(Signal::CONT);
    s.in_step(daemon, &ALL).await;
}

#[tokio::test]
async fn parents_come_first() {
    let s = plain("grants", "SELECT, INSERT, UPDATE, DELETE").await;
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    changes(&s, &mut daemon).await;
    s.on_source("TRUNCATE zebra, middle, a_leaf, loose").await;
    s.until_failed(&mut daemon, &["grant"]).await;
    s.on_replica("GRANT TRUNCATE ON ALL TABLES IN SCHEMA public TO plain_grants")
        .await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn rows_that_are_there_go_children_first() {
    let s = plain("emptying", "SELECT, INSERT, UPDATE, DELETE").await;
    s.on_replica(
        "INSERT INTO zebra VALUES (-1, 'old'); INSERT INTO middle VALUES (-1, -1);
         INSERT INTO a_leaf VALUES (-1, -1, NULL), (-2, -1, -1); INSERT INTO loose VALUES (-1, -1)",
    )
    .await;
    let daemon = s.start("[copy]\nexisting_rows = \"truncate\"").await;
    s.in_step(&daemon, &ALL).await;
}

/// Merged as of a later point, and then told that nothing had happened, a table would meet the
/// changes in between.
#[tokio::test]
async fn a_table_that_was_merged_before_a_resync_failed_is_merged_again() {
    let s = plain(
        "half_resynced",
        "SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES",
    )
    .await;
    s.on_source("UPDATE zebra SET v = id::text").await;
    s.on_both("ALTER TABLE zebra ADD UNIQUE (v)").await;
    let stop = "[apply]\non_conflict = \"stop\"\nbatch_changes_max = 1";
    let mut daemon = s.start(stop).await;
    s.in_step(&daemon, &ALL).await;
    assert!(daemon.terminate().success());
    // On the replica a row is missing that cannot come back.
    s.on_replica("DELETE FROM loose WHERE id = 9; ALTER TABLE loose ADD CHECK (id <> 9)")
        .await;
    for (id, v) in [(2, "moves"), (2, "freed"), (3, "moves")] {
        s.on_source(&format!("UPDATE zebra SET v = '{v}' WHERE id = {id}"))
            .await;
    }
    let asked = run_verb(&s.config(stop), &["resync", "public.zebra", "public.loose"]);
    assert!(asked.status.success(), "{asked:?}");
    let mut daemon = s.launch(stop);
    daemon.until_said("a resync has failed").await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL[..3]).await;
    let said = daemon.stderr();
    assert!(
        !said.contains("23505") && !said.contains("cannot be applied"),
        "{said}"
    );
}

#[tokio::test]
async fn rows_are_merged_parents_first() {
    let s = plain("merging", "SELECT, INSERT, UPDATE, DELETE").await;
    s.on_replica(
        "INSERT INTO zebra VALUES (1, 'old'), (2, 'z'); INSERT INTO middle VALUES (1, 1), (7, 2);
         INSERT INTO a_leaf VALUES (1, 1, NULL), (9, 7, 1); INSERT INTO loose VALUES (1, NULL), (3, 2)",
    )
    .await;
    let mut daemon = s.start("[copy]\nexisting_rows = \"merge\"").await;
    s.in_step(&daemon, &ALL).await;
    changes(&s, &mut daemon).await;
}
