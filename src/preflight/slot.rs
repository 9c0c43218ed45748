//! The slot: does it go with what the replica's books say?

use super::finding::Findings;
use super::replica::Books;
use super::{CheckError, Reached};
use crate::pg::quote_literal;
use crate::pipeline::{PipelineConfig, PipelineError, resume_position};
use crate::progress::{PipelineIdentity, Store};
use crate::replication::{SlotName, fetch_slot};

pub(super) async fn check(
    config: &PipelineConfig,
    source: &Reached,
    replica: &Reached,
    books: Books,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let name: SlotName = config.slot.parse()?;
    let slot = fetch_slot(&source.client, &name).await?;
    let record = match books {
        Books::Readable => Store::fetch_record(&replica.client, &config.name).await?,
        Books::Missing => None,
        // Without the books nothing can be said of the slot; that they are closed is a finding.
        Books::Closed => return Ok(()),
    };
    let identity = PipelineIdentity {
        system_id: source.server.system_id.clone(),
        database_oid: source.server.database_oid,
        slot: config.slot.clone(),
    };
    match (&record, &slot) {
        (Some(record), slot) if record.slot_born_at.is_some() => {
            if let Err(PipelineError::Definite { message, advice }) =
                resume_position(record, &identity, slot.as_ref(), None)
            {
                findings.error("source.slot", &name, message, advice);
            }
        }
        // A slot that was meant and is half made: the next start makes it anew.
        (Some(record), Some(_)) if record.identity == identity => {}
        (_, Some(_)) => findings.error(
            "source.slot",
            &name,
            format!("the source has a slot {name} that this replica knows nothing of"),
            format!(
                "another pipeline may use it: choose another [source] slot; or, if it is a left-over: SELECT pg_drop_replication_slot({})",
                quote_literal(name.as_str())
            ),
        ),
        (_, None) => {}
    }
    if let Some(pid) = slot.and_then(|slot| slot.active_pid) {
        findings.info(
            "source.slot",
            &name,
            format!("the slot {name} is in use (walsender {pid}): a daemon is running"),
            "",
        );
    }
    Ok(())
}
