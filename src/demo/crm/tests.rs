//! The data set, the workload and the verdict on a real server.
//!
//! Source and replica tables share one database here: their schemas differ, and plain SQL
//! can stand in for the daemon.

use super::{
    Counts, MAPPING_TOML, REPLICA_SQL, SOURCE_SQL, TABLES, TableVerdict, Workload, verify,
};
use crate::demo::cluster::{Cluster, ClusterOptions};
use std::num::NonZeroU32;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// What the daemon does with an empty replica, in plain SQL.
const COPY_SQL: &str = "
    INSERT INTO crm.clients (id, name, industry, country, billing_email, settings, is_active, created_at, updated_at)
        SELECT * FROM public.clients;
    INSERT INTO crm.projects (id, client_id, name, description, budget, spent, currency, starts_on, ends_on, created_at, updated_at)
        SELECT * FROM public.projects;
    INSERT INTO crm.leads (id, client_id, project_id, name, email, email_domain, phone, state, bant_status,
            state_status_metadata, lead_metadata, last_message_from, first_interaction, last_interaction,
            interaction_count, next_follow_up, follow_up_count, requires_human_review,
            last_agent_processed_at, created_at, updated_at)
        SELECT id, client_id, current_project_id, name, email, lower(split_part(email, '@', 2)), phone,
            state::text::crm.lead_state, bant_status::text::crm.bant_status,
            state_status_metadata, lead_metadata, last_message_from::text::crm.message_author, first_interaction,
            last_interaction, interaction_count, next_follow_up, follow_up_count, requires_human_review,
            last_agent_processed_at, created_at, updated_at
        FROM public.leads;
    INSERT INTO crm.conversations SELECT * FROM public.conversations;
    INSERT INTO crm.whatsapp_messages (id, conversation_id, lead_id, wamid, direction, body, payload, sent_at, delivered_at, read_at)
        SELECT * FROM public.whatsapp_messages;
    INSERT INTO crm.agent_interaction_logs SELECT * FROM public.agent_interaction_logs WHERE level <> 'debug';
    INSERT INTO crm.lead_status_history
        SELECT id, lead_id, from_state::text::crm.lead_state, to_state::text::crm.lead_state,
            changed_by::text::crm.message_author, reason, changed_at
        FROM public.lead_status_history;";

const DATABASE: &str = "crm";

async fn connect(cluster: &Cluster) -> Client {
    cluster.connect(DATABASE).await.unwrap()
}

async fn verdicts(cluster: &Cluster) -> Vec<TableVerdict> {
    let (mut source, mut replica) = (connect(cluster).await, connect(cluster).await);
    verify(&mut source, &mut replica).await.unwrap()
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[test]
fn compose_file_and_readme_show_the_same_mapping() {
    let compose = include_str!("../../../deploy/compose/pglockstep.toml");
    assert!(compose.ends_with(MAPPING_TOML));
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(&format!("```toml\n{MAPPING_TOML}```")));
}

#[tokio::test]
async fn a_real_server_takes_data_workload_and_verdict() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    cluster.create_database(DATABASE).await.unwrap();
    let client = connect(&cluster).await;
    client.batch_execute(SOURCE_SQL).await.unwrap();
    client.batch_execute(REPLICA_SQL).await.unwrap();

    let empty = verdicts(&cluster).await;
    assert_eq!(
        empty
            .iter()
            .map(|v| v.source.name.as_str())
            .collect::<Vec<_>>(),
        TABLES
    );
    assert!(
        empty
            .iter()
            .all(|v| v.missing == v.source_rows && v.missing > 0 && v.replica_rows == 0)
    );
    let rows = |table| {
        empty
            .iter()
            .find(|v| v.source.name == table)
            .unwrap()
            .source_rows
    };
    assert_eq!(
        (
            rows("leads"),
            rows("conversations"),
            rows("whatsapp_messages")
        ),
        (499, 499, 1296)
    );

    client.batch_execute(COPY_SQL).await.unwrap();
    assert!(verdicts(&cluster).await.iter().all(TableVerdict::in_sync));
    every_drift_is_found(&cluster, &client).await;
    the_workload_keeps_the_source_consistent(&cluster, &client).await;

    copy_again(&client).await;
    let verdicts = verdicts(&cluster).await;
    assert!(verdicts.iter().all(TableVerdict::in_sync), "{verdicts:?}");
}

/// Each statement drifts the replica; every row it touches is found, as the kind it is.
async fn every_drift_is_found(cluster: &Cluster, client: &Client) {
    const MISSING: fn(u64) -> [u64; 3] = |rows| [rows, 0, 0];
    const EXTRA: fn(u64) -> [u64; 3] = |rows| [0, rows, 0];
    const DIFFERENT: fn(u64) -> [u64; 3] = |rows| [0, 0, rows];
    const NONE: fn(u64) -> [u64; 3] = |_| [0, 0, 0];
    let drifts = [
        (DIFFERENT, "leads", "UPDATE crm.leads SET project_id = NULL WHERE id = 1"),
        (DIFFERENT, "leads", "UPDATE crm.leads SET email_domain = 'EXAMPLE.com' WHERE id = 3"),
        (DIFFERENT, "whatsapp_messages", "UPDATE crm.whatsapp_messages SET body = NULL WHERE body = '' AND id < 20"),
        (DIFFERENT, "conversations", "UPDATE crm.conversations SET long_term_context = NULL WHERE lead_id = 6"),
        (DIFFERENT, "projects", "UPDATE crm.projects SET spent = spent + 0.01 WHERE id = 60"),
        (
            DIFFERENT,
            "agent_interaction_logs",
            "UPDATE crm.agent_interaction_logs SET tools = '{}' WHERE tools = '{NULL}' AND id < 20",
        ),
        (MISSING, "lead_status_history", "DELETE FROM crm.lead_status_history WHERE id IN (5, 500)"),
        (
            EXTRA,
            "clients",
            "INSERT INTO crm.clients SELECT 41, name, industry, country, is_active, billing_email, settings,
                 created_at, updated_at FROM crm.clients WHERE id = 1",
        ),
        (NONE, "leads", "UPDATE crm.leads SET owner_team = 'north', arrived_at = 'infinity'"),
    ];
    for (kind, table, sql) in drifts {
        copy_again(client).await;
        let rows = client.execute(sql, &[]).await.unwrap();
        assert!(rows > 0, "{sql}");
        for v in verdicts(cluster).await {
            let expected = if v.source.name == table {
                kind(rows)
            } else {
                [0; 3]
            };
            assert_eq!(
                [v.missing, v.extra, v.different],
                expected,
                "{}: {sql}",
                v.source
            );
        }
    }
}

async fn copy_again(client: &Client) {
    client
        .batch_execute("TRUNCATE crm.clients CASCADE")
        .await
        .unwrap();
    client.batch_execute(COPY_SQL).await.unwrap();
}

async fn the_workload_keeps_the_source_consistent(cluster: &Cluster, client: &Client) {
    let stop = CancellationToken::new();
    let before = number(client, "SELECT max(id) FROM public.whatsapp_messages").await;
    let mut lanes = tokio::task::JoinSet::new();
    for seed in 1..=4 {
        let (lane, stop) = (connect(cluster).await, stop.clone());
        let rate = NonZeroU32::new(500).unwrap();
        lanes.spawn(async move { Workload::new(seed).run(lane, rate, stop).await });
    }
    // Some 2,000 transactions: enough for the rarest step.
    while number(client, "SELECT max(id) FROM public.whatsapp_messages").await < before + 1500 {
        assert!(lanes.try_join_next().is_none(), "a lane ended early");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stop.cancel();
    let mut counts = Counts::default();
    while let Some(lane) = lanes.join_next().await {
        counts.add(&lane.unwrap().unwrap());
    }
    assert_eq!(
        (counts.steps.len(), counts.abandoned),
        (10, 0),
        "{counts:?}"
    );
    assert_eq!(counts.steps.values().sum::<u64>(), counts.committed);
    let torn = "SELECT count(*) FROM public.conversations c JOIN public.leads l ON l.id = c.lead_id
                WHERE c.message_count <> l.interaction_count OR c.message_count <>
                    (SELECT count(*) FROM public.whatsapp_messages m WHERE m.conversation_id = c.id)";
    assert_eq!(
        number(client, torn).await,
        0,
        "a transaction was applied in part"
    );
    let moved = "SELECT count(*) FROM public.agent_interaction_logs WHERE details ? 'reviewed'";
    assert!(number(client, moved).await > 0);
}
