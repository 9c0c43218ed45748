//! From the configuration to what a verb works on; a connection string that cannot be had is
//! the operator's to mend.

use super::Misuse;
use crate::config::Config;
use crate::daemon;
use crate::pipeline::{PipelineConfig, PipelineError};

pub(super) fn pipeline_config(config: &Config) -> Result<PipelineConfig, Misuse> {
    daemon::pipeline_config(config).map_err(|error| match error {
        PipelineError::Configuration { message, advice } => Misuse(format!("{message}; {advice}")),
        other => Misuse(other.to_string()),
    })
}
