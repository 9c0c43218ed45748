//! What a check found: how bad it is, what it is about, what to do.

use crate::pg::Side;
use crate::pipeline::{Lack, PlanProblem};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline would not run, or would stop.
    Error,
    /// It runs; something will hurt later.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// One finding. Its fields are an interface (`check --json`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Which check: `source.wal_level`.
    pub check: String,
    /// How bad.
    pub severity: Severity,
    /// A server, role, table, slot or publication.
    pub object: String,
    /// What is the matter.
    pub message: String,
    /// The exact SQL or setting; empty where there is nothing to do.
    pub remedy: String,
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn error(
        &mut self,
        check: impl Into<String>,
        object: impl ToString,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, check.into(), object, message, remedy);
    }

    pub(crate) fn warning(
        &mut self,
        check: impl Into<String>,
        object: impl ToString,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, check.into(), object, message, remedy);
    }

    pub(crate) fn info(
        &mut self,
        check: impl Into<String>,
        object: impl ToString,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Info, check.into(), object, message, remedy);
    }

    pub(super) fn lacks(&mut self, side: Side, lacks: Vec<Lack>) {
        for lack in lacks {
            let what = if lack.is_row_security {
                "row_security"
            } else {
                "privileges"
            };
            let PlanProblem {
                object,
                message,
                remedy,
            } = lack.problem;
            self.error(format!("{side}.{what}"), object, message, remedy);
        }
    }

    fn add(
        &mut self,
        severity: Severity,
        check: String,
        object: impl ToString,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            severity,
            object: object.to_string(),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}
