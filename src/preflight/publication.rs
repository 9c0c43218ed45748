//! The publication: is it there, and does it let everything through?

use super::finding::Findings;
use super::setup::{create_publication_sql, fetch_source_tables};
use super::{CheckError, Reached};
use crate::pipeline::{PipelineConfig, partial_publication};
use crate::replication::{Publication, fetch_publication};

/// The publication; `None` when its absence is a finding already.
pub(super) async fn check(
    config: &PipelineConfig,
    source: &Reached,
    findings: &mut Findings,
) -> Result<Option<Publication>, CheckError> {
    let name = &config.publication;
    let Some(publication) = fetch_publication(&source.client, name).await? else {
        let tables = fetch_source_tables(&source.client, &config.mapping).await?;
        findings.error(
            "source.publication",
            name,
            format!("the source has no publication {name}"),
            format!(
                "as the tables' owner: {}",
                create_publication_sql(name, &tables)
            ),
        );
        return Ok(None);
    };
    if let Some(problem) = partial_publication(&publication) {
        findings.error(
            "source.publication",
            problem.object,
            problem.message,
            problem.remedy,
        );
    }
    Ok(Some(publication))
}
