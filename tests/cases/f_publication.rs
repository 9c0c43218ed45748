//! F: what is published changes while the pipeline runs: columns and tables join, the publication
//! goes and comes back.

use super::ground::{FILL, Ground, T, each, same};
use super::runner::{Case, case};
use crate::support::{Scenario, run_verb};

pub const CASES: &[Case] = &[
    case!(f18_the_list_of_columns_grows, Ends, since 15),
    case!(f22_published_while_a_transaction_is_open),
    case!(f24_the_publication_goes_and_comes_back, Each),
];

async fn f18_the_list_of_columns_grows(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_source("CREATE TABLE t (id int PRIMARY KEY, a int, b int)")
        .await;
    s.on_source("INSERT INTO t SELECT g, g, g FROM generate_series(1, 9) g")
        .await;
    s.on_replica("CREATE TABLE t (id int PRIMARY KEY, a int)")
        .await;
    s.publish("FOR TABLE t (id, a)").await;
    let merge = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"";
    let daemon = s.start(merge).await;
    let narrow = ("SELECT id, a FROM t", "SELECT id, a FROM t");
    s.each_mapped(&daemon, &["UPDATE t SET a = 0, b = 0 WHERE id < 3"], narrow)
        .await;
    s.on_replica("ALTER TABLE t ADD b int").await;
    s.on_source(&format!(
        "ALTER PUBLICATION {} SET TABLE t (id, a, b)",
        s.slot()
    ))
    .await;
    s.on_source("UPDATE t SET b = 5 WHERE id = 9").await;
    // The values from before come by a copy.
    s.replica_eventually("SELECT count(b) FROM t", "9").await;
    each(&s, &daemon, &["UPDATE t SET b = b + 1 WHERE id > 4"]).await;
}

/// Its rows are neither in the copy nor known to be published when they are written.
async fn f22_published_while_a_transaction_is_open(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY, v text)",
    )
    .await;
    s.publish("FOR TABLE t").await;
    let daemon = s.start("").await;
    let other = g.pair.source.connect(g.name).await.unwrap();
    let open = "BEGIN; INSERT INTO late VALUES (1, 'open'); INSERT INTO t VALUES (1)";
    other.batch_execute(open).await.unwrap();
    s.on_source(&format!("ALTER PUBLICATION {} ADD TABLE late", s.slot()))
        .await;
    s.on_source("INSERT INTO late VALUES (2, 'beside')").await;
    let close =
        "INSERT INTO late VALUES (3, 'open'); UPDATE late SET v = 'updated' WHERE id = 1; COMMIT";
    other.batch_execute(close).await.unwrap();
    s.on_source("INSERT INTO late VALUES (4, 'after')").await;
    s.replica_eventually("SELECT count(*) FROM late", "4").await;
    each(
        &s,
        &daemon,
        &["DELETE FROM late WHERE id = 1", "INSERT INTO t VALUES (2)"],
    )
    .await;
}

/// What was written meanwhile was never published: 14 to 17 end the stream, 18 passes it by.
async fn f24_the_publication_goes_and_comes_back(g: Ground<'_>) {
    for (what, away, back) in [
        (
            "FOR TABLE t",
            "ALTER PUBLICATION {} RENAME TO away",
            "ALTER PUBLICATION away RENAME TO {}",
        ),
        (
            "FOR ALL TABLES",
            "DROP PUBLICATION {}",
            "CREATE PUBLICATION {} FOR ALL TABLES",
        ),
    ] {
        let s = if what == "FOR TABLE t" {
            let s = g.scenario().await;
            s.on_both(T).await;
            s.on_source(FILL).await;
            s
        } else {
            Scenario::again(g.pair, g.name).await
        };
        let publication = s.slot();
        s.publish(what).await;
        let merge = "[copy]\nexisting_rows = \"merge\"\nextra_rows = \"delete\"";
        let mut daemon = s.start(merge).await;
        same(&s, &daemon).await;
        let before = s.replica_rows("SELECT * FROM t").await;
        s.on_source(&away.replace("{}", &publication)).await;
        s.on_source("UPDATE t SET v = v || '+' WHERE id < 4; DELETE FROM t WHERE id = (SELECT max(id) FROM t)")
            .await;
        s.on_source(&back.replace("{}", &publication)).await;
        s.on_source("INSERT INTO t SELECT max(id) + 10, 'after' FROM t")
            .await;
        s.until_failed(
            &mut daemon,
            &["publication was not there", "rebase --force"],
        )
        .await;
        assert_eq!(s.replica_rows("SELECT * FROM t").await, before);
        assert!(daemon.terminate().success());
        let begun = run_verb(&s.config(""), &["rebase", "--force", "--apply", "--yes"]);
        assert!(begun.status.success(), "{begun:?}");
        let mut daemon = s.start("").await;
        each(&s, &daemon, &["UPDATE t SET v = 'last' WHERE id = 1"]).await;
        assert!(daemon.terminate().success());
        let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
        assert!(torn_down.status.success(), "{torn_down:?}");
        s.on_source(&format!("DROP PUBLICATION {publication}"))
            .await;
    }
}
