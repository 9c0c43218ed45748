//! The source's server and role: may it replicate, and is there room for us?

use super::finding::Findings;
use super::query::rows;
use super::{CheckError, Reached};
use crate::pg::quote_ident;
use crate::pipeline::PipelineConfig;
use crate::replication::ReplicationConnection;
use std::collections::BTreeMap;

/// A slot for the stream, and a passing one when a table joins later.
const SLOTS_NEEDED: i64 = 2;
/// Likewise for walsenders.
const WAL_SENDERS_NEEDED: i64 = 2;

pub(super) async fn check(
    config: &PipelineConfig,
    source: &Reached,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let server = &source.server;
    let address = config.source.describe();
    if server.in_recovery {
        findings.error(
            "source.recovery",
            &address,
            "the source is a standby",
            "connect to the primary: list all hosts in [source] url, with target_session_attrs=primary",
        );
    }
    if server.wal_level != "logical" {
        findings.error(
            "source.wal_level",
            &address,
            format!(
                "the source's wal_level is {}, not logical",
                server.wal_level
            ),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the source server",
        );
    }
    check_room(config, source, findings).await?;
    if !server.may_replicate {
        findings.error(
            "source.role",
            &server.role,
            format!("the source's role {} may not replicate", server.role),
            format!(
                "ALTER ROLE {} REPLICATION (on managed services: grant the provider's replication role)",
                quote_ident(&server.role)
            ),
        );
        return Ok(());
    }
    if !server.sees_statistics {
        findings.warning(
            "source.statistics",
            &server.role,
            format!(
                "the source's role {} may not see whether whoever holds the slot still lives: a daemon that takes over from a host that died waits for wal_sender_timeout",
                server.role
            ),
            format!("GRANT pg_read_all_stats TO {}", quote_ident(&server.role)),
        );
    }
    // The catalogue says yes; pg_hba.conf, a pooler in between or a limit may still say no.
    match ReplicationConnection::connect(&config.source).await {
        Ok(connection) => connection.close().await,
        Err(error) => findings.error(
            "source.replication",
            &address,
            format!("no replication session with the source: {error}"),
            error.advice(),
        ),
    }
    Ok(())
}

/// Slots, walsenders, and what may cut a slot off.
async fn check_room(
    config: &PipelineConfig,
    source: &Reached,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    const SETTINGS: &str = "SELECT s.name, s.setting FROM pg_catalog.pg_settings AS s \
        WHERE s.name IN ('max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size', \
                         'idle_replication_slot_timeout')";
    const USED: &str = "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), \
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name = $1::text), \
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication)";
    let client = &source.client;
    let settings: BTreeMap<String, i64> = rows(client, "settings", SETTINGS, &[])
        .await?
        .iter()
        .filter_map(|row| Some((row.get(0), row.get::<_, &str>(1).parse().ok()?)))
        .collect();
    let used = rows(client, "slots and walsenders", USED, &[&config.slot]).await?;
    let used = |column: usize| used.first().map_or(0, |row| row.get::<_, i64>(column));
    let has_slot = used(1) > 0;
    for (name, used, needed, what) in [
        ("max_replication_slots", used(0), SLOTS_NEEDED, "slots"),
        ("max_wal_senders", used(2), WAL_SENDERS_NEEDED, "walsenders"),
    ] {
        let Some(limit) = settings.get(name) else {
            continue;
        };
        let free = limit - used;
        let remedy = format!(
            "ALTER SYSTEM SET {name} = {}; then restart the source server",
            used + needed + 1
        );
        let message = format!("{used} of {limit} {what} are taken on the source");
        if free >= needed || (has_slot && free >= needed - 1) {
            continue;
        } else if free <= 0 && !has_slot {
            findings.error(format!("source.{name}"), name, message, remedy);
        } else {
            let message = format!("{message}: tables that join later need one more");
            findings.warning(format!("source.{name}"), name, message, remedy);
        }
    }
    if settings.get("max_slot_wal_keep_size") == Some(&-1) {
        findings.info(
            "source.max_slot_wal_keep_size",
            "max_slot_wal_keep_size",
            "there is no limit: while the daemon is stopped the source keeps WAL until its disk is full",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '64GB' (what the disk can spare); SELECT pg_reload_conf()",
        );
    }
    if settings
        .get("idle_replication_slot_timeout")
        .is_some_and(|limit| *limit > 0)
    {
        findings.warning(
            "source.idle_replication_slot_timeout",
            "idle_replication_slot_timeout",
            "the source gives up the slot of a daemon that is stopped for that long",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()",
        );
    }
    Ok(())
}
