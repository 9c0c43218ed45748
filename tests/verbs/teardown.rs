//! `teardown`: asks, refuses while a daemon runs, and leaves nothing.

use super::{TABLES, assert_untouched, pair, verb};
use crate::support::{DATABASE, Daemon, fetch_rows};

#[tokio::test]
async fn what_it_takes_away() {
    let pair = pair().await;
    let config = pair.config(TABLES);
    let said = verb(&config, &["teardown", "--yes"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.out.contains("nothing is left of the pipeline it"),
        "{said:?}"
    );

    let mut daemon = Daemon::start(&config);
    daemon.until_ready().await;
    let said = verb(&config, &["teardown", "--yes"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.err.contains("stop it first; nothing was changed"),
        "{said:?}"
    );
    daemon.terminate();

    // Nobody to ask.
    let said = verb(&config, &["teardown"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("--yes"), "{said:?}");
    assert!(
        said.out
            .contains("drops the replication slot pglockstep_it"),
        "{said:?}"
    );

    // Another pipeline's books stay.
    pair.on_replica(
        "INSERT INTO pglockstep.pipelines (name, system_id, database_oid, slot) VALUES ('other', '', 0, '')",
    )
    .await;
    let said = verb(&config, &["teardown", "--yes"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let (source, replica) = pair.clients().await;
    assert!(
        fetch_rows(&source, "SELECT 1 FROM pg_replication_slots")
            .await
            .is_empty()
    );
    let names = fetch_rows(&replica, "SELECT name FROM pglockstep.pipelines").await;
    assert_eq!(names, [[Some("other".to_owned())]]);
    pair.on_replica("DELETE FROM pglockstep.pipelines").await;
    let said = verb(&config, &["teardown", "--yes"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_untouched(&pair).await;
    // The rows are the operator's.
    let rows = fetch_rows(&replica, "SELECT id FROM crm.leads ORDER BY 1").await;
    assert_eq!(rows.len(), 2);

    // A slot that the books do not know is not dropped.
    pair.on_source("SELECT pg_create_logical_replication_slot('pglockstep_it', 'pgoutput')")
        .await;
    let said = verb(&config, &["teardown", "--yes"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out
            .contains("pg_drop_replication_slot('pglockstep_it')"),
        "{said:?}"
    );
    let slots = pair.source.connect(DATABASE).await.unwrap();
    assert_eq!(
        fetch_rows(&slots, "SELECT 1 FROM pg_replication_slots")
            .await
            .len(),
        1
    );
}
