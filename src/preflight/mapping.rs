//! Rules against both catalogues, and every expression before both servers.

use super::finding::Findings;
use super::{CheckError, Survey};
use crate::apply::try_statements;
use crate::pg::Disposition;
use crate::pipeline::{PipelineError, PlanProblem, PlannedTable};
use crate::telemetry::Chain;

pub(super) async fn check(
    survey: &Survey<'_>,
    problems: Vec<PlanProblem>,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    for problem in problems {
        findings.error("mapping", problem.object, problem.message, problem.remedy);
    }
    for name in &survey.plan.unmapped {
        findings.info(
            "mapping.unmapped",
            name,
            format!("{name} is published, and no rule of [[tables]] speaks of it: it stays behind"),
            "",
        );
    }
    for table in &survey.tables {
        if table.mapping.is_plain() {
            continue;
        }
        if let Err(error) = try_expressions(survey, table).await {
            // A server that went away in between is no fault of the mapping's.
            if error.disposition() == Disposition::Transient {
                return Err(error.into());
            }
            let remedy = error
                .advice()
                .unwrap_or_else(|| format!("mend the rule of {} in [[tables]]", table.source.name));
            findings.error(
                "mapping.expression",
                &table.source.name,
                Chain(&error).to_string(),
                remedy,
            );
        }
    }
    Ok(())
}

async fn try_expressions(survey: &Survey<'_>, table: &PlannedTable) -> Result<(), PipelineError> {
    table
        .try_select(&survey.source.client, &survey.plan.types)
        .await?;
    try_statements(&survey.replica.client, &table.mapping)
        .await
        .map_err(PipelineError::Prepare)
}
