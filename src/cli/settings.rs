//! From the configuration to what a verb works on; a connection string that cannot be had is
//! the operator's to mend.

use super::Misuse;
use crate::config::Config;
use crate::daemon;
use crate::mapping::TablePattern;
use crate::pg::QualifiedName;
use crate::pipeline::{PipelineConfig, PipelineError};

pub(super) fn pipeline_config(config: &Config) -> Result<PipelineConfig, Misuse> {
    daemon::pipeline_config(config).map_err(|error| match error {
        PipelineError::Configuration { message, advice } => Misuse(format!("{message}; {advice}")),
        other => Misuse(other.to_string()),
    })
}

/// A source table as the command line names it.
///
/// # Errors
/// It is no name.
pub(super) fn table_name(text: &str) -> Result<QualifiedName, Misuse> {
    let pattern: TablePattern = text.parse().map_err(|_| {
        Misuse(format!(
            "{text:?} is not a table's name: expected schema.table"
        ))
    })?;
    Ok(QualifiedName::new(pattern.schema, pattern.table))
}
