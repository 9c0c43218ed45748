//! The source's tables: may they be read, and what do they log of old rows?

use super::finding::Findings;
use super::identity::{identity_sql, partition_identity_sql};
use super::query::partitions_without_identity;
use super::{CheckError, Survey};
use crate::catalog::TableKind;
use crate::mapping::RowIdentity;
use crate::pg::{ReplicaIdentity, Side};
use crate::pipeline::{PlannedTable, source_lacks};

pub(super) async fn check(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    let role = &survey.source.server.role;
    let lacks = source_lacks(&survey.source.client, role, &survey.tables).await?;
    findings.lacks(Side::Source, lacks);
    for table in &survey.tables {
        check_identity(survey, table, findings);
    }
    check_partitions(survey, findings).await
}

async fn check_partitions(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    if !survey.publication.update && !survey.publication.delete {
        return Ok(());
    }
    let is_root = |table: &&&PlannedTable| table.source.kind == TableKind::Partitioned;
    let roots = survey.tables.iter().filter(is_root);
    let roots: Vec<u32> = roots.map(|table| table.source.oid).collect();
    for name in partitions_without_identity(&survey.source.client, &roots).await? {
        findings.warning(
            "source.replica_identity",
            &name,
            format!(
                "the partition {name} logs nothing of old rows: the SOURCE will refuse UPDATE and DELETE on it while it is published"
            ),
            partition_identity_sql(&name),
        );
    }
    Ok(())
}

fn check_identity(survey: &Survey<'_>, table: &PlannedTable, findings: &mut Findings) {
    let source = &table.source;
    let name = &source.name;
    let is_full = source.replica_identity == ReplicaIdentity::Full;
    if is_full {
        let found_by = match table.mapping.identity {
            RowIdentity::Key(_) => "its key",
            RowIdentity::FullRow | RowIdentity::InsertsOnly => "the whole row",
        };
        findings.info(
            "source.replica_identity",
            name,
            format!(
                "{name} has REPLICA IDENTITY FULL: updates and deletes log the whole old row; on the replica a row is found by {found_by}"
            ),
            "",
        );
    } else if source.identity_columns().is_empty()
        && (survey.publication.update || survey.publication.delete)
    {
        findings.warning(
            "source.replica_identity",
            name,
            format!(
                "{name} logs nothing of old rows: inserts only; the SOURCE will refuse UPDATE and DELETE on it while it is published"
            ),
            identity_sql(source),
        );
    }
}
