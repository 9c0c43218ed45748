//! The source is only read: every statement that the daemon and its verbs send there is on a list.

use crate::support::{Daemon, Pair, PairOptions, eventually, expect_reads, run_verb};
use pglockstep::demo::cluster::ClusterOptions;

const TABLES: &str = "CREATE TABLE leads (id int PRIMARY KEY, name text, born date); \
                      CREATE TABLE notes (what text); ALTER TABLE notes REPLICA IDENTITY FULL";

#[tokio::test]
async fn every_statement_on_the_source_is_a_read() {
    let source = ClusterOptions::default()
        .with("log_statement", "all")
        .with("log_replication_commands", "on")
        .with("log_min_duration_statement", "0");
    let pair = Pair::start_with(PairOptions {
        source,
        ..PairOptions::default()
    })
    .await;
    pair.on_both(TABLES).await;
    pair.on_source(
        "INSERT INTO leads SELECT g, 'lead ' || g, now() FROM generate_series(1, 100) g; \
         CREATE PUBLICATION pglockstep_it FOR ALL TABLES",
    )
    .await;
    let rules = "[copy]\nexisting_rows = \"merge\"\n[[tables]]\nsource = \"public.leads\"\n\
                 set = { name = \"upper(name)\" }\nwhere = \"id <> 50\"\n\
                 [[tables]]\nsource = \"public.*\"";
    let config = pair.config(rules);
    let verb = |arguments: &[&str]| {
        let output = run_verb(&config, arguments);
        assert!(output.status.success(), "{arguments:?} {output:?}");
    };
    for arguments in [
        &["check"][..],
        &["setup"],
        &["mapping", "explain", "public.leads"],
    ] {
        verb(arguments);
    }
    let same = (
        "SELECT id, upper(name), born FROM leads WHERE id <> 50",
        "SELECT * FROM leads",
    );
    for round in 0..2 {
        let mut daemon = Daemon::start(&config);
        pair.eventually_same_rows(same.0, same.1).await;
        pair.on_source(
            "UPDATE leads SET name = name || '!' WHERE id < 20; DELETE FROM leads WHERE id = 30; \
             INSERT INTO notes VALUES ('one'), ('two'); UPDATE notes SET what = what || '.'; \
             ALTER TABLE leads ALTER name TYPE varchar(80)",
        )
        .await;
        pair.eventually_same_rows(same.0, same.1).await;
        pair.eventually_same_rows("SELECT * FROM notes", "SELECT * FROM notes")
            .await;
        if round == 0 {
            pair.on_both("CREATE TABLE joined (id int PRIMARY KEY)")
                .await;
            pair.on_source("INSERT INTO joined VALUES (1)").await;
            pair.eventually_same_rows("SELECT * FROM joined", "SELECT * FROM joined")
                .await;
        }
        // A look at the slot, and the like of what happens now and then.
        let retained = "pglockstep_slot_retained_bytes";
        eventually(
            "the slot to be looked at",
            || daemon.stderr(),
            async || daemon.metric(retained).await,
        )
        .await;
        for arguments in [
            &["status"][..],
            &["check"],
            &["errors", "list"],
            &["resync", "public.leads"],
        ] {
            verb(arguments);
        }
        pair.eventually_same_rows(same.0, same.1).await;
        assert_eq!(
            daemon
                .metric("pglockstep_source_write_attempts_total")
                .await,
            Some(0.0)
        );
        // Another one takes over from one that is dead, or this one has ended.
        if round == 0 {
            daemon.kill9();
        } else {
            assert!(daemon.terminate().success());
        }
    }
    verb(&["rebase"]);
    verb(&["rebase", "--apply", "--force", "--yes"]);
    let mut daemon = Daemon::start(&config);
    pair.eventually_same_rows(same.0, same.1).await;
    daemon.until_ready().await;
    assert!(daemon.terminate().success());
    let statements = expect_reads(&pair.source.log());
    assert!(statements > 30, "{statements}");
    // What is left is what was declared.
    let (source, _) = pair.clients().await;
    let objects = "SELECT (SELECT count(*) FROM pg_replication_slots), \
                   (SELECT count(*) FROM pg_publication), \
                   (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pglockstep%')";
    let row = source.query_one(objects, &[]).await.unwrap();
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts, [1, 1, 0]);
}
