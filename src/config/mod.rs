//! The configuration: one TOML file, each key of which the environment can set anew.
//!
//! ```text
//!  file ─┐                 ┌─ places: key ─▶ line, variable ─┐
//!        ├─ config crate ──┤                                 ├─▶ problems, all at once
//!  env ──┘   (merges)      └─ reader ─▶ raw ─▶ validate ─────┘
//!                             types     shape  meaning ─▶ Config, made of each room's Settings
//! ```
//!
//! `PGLOCKSTEP__SOURCE__URL` sets `source.url`: two underscores, so that
//! `PGLOCKSTEP_CONFIG` and `PGLOCKSTEP_LOG` are no keys. What a version does not do yet
//! is a problem, never ignored: a file that loads means what it says.

mod problems;
mod raw;
mod reader;
mod secret;
mod size;
mod tables;
mod validate;

pub use problems::Problem;
pub use secret::{ReadUrlError, UrlSource};

use crate::{apply, http, mapping, pipeline, snapshot, upkeep};
use problems::{Places, Report};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The prefix of all names, here and on the servers.
pub const PREFIX: &str = "pglockstep";
/// What the environment variables of keys begin with; the separator follows.
const VARIABLE_PREFIX: &str = "PGLOCKSTEP";
/// Between the parts of a key in a variable's name.
const SEPARATOR: &str = "__";

/// A configuration that makes sense.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pipeline's name; names on both servers derive from it.
    pub name: String,
    /// The database that is read.
    pub source: SourceConfig,
    /// The database that is kept in step.
    pub replica: ReplicaConfig,
    /// The first copy.
    pub snapshot: snapshot::Settings,
    /// Applying changes.
    pub apply: apply::Settings,
    /// How much log the source may keep for the slot.
    pub slot_budget: pipeline::SlotBudget,
    /// How long the slot stays behind the replica.
    pub holdback: Duration,
    /// Trying again.
    pub retry: pipeline::RetrySettings,
    /// Proving that both sides agree.
    pub upkeep: upkeep::Settings,
    /// The endpoints.
    pub http: http::Settings,
    /// What becomes of each table.
    pub mapping: mapping::Settings,
}

/// `[source]`
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// How to reach it.
    pub url: UrlSource,
    /// A label for people.
    pub environment: Option<String>,
    /// The publication that is followed.
    pub publication: String,
    /// The replication slot.
    pub slot: String,
    /// Whether the slot is to survive a failover of the source (17 and later).
    pub failover: bool,
}

/// `[replica]`
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// How to reach it.
    pub url: UrlSource,
    /// A label for people.
    pub environment: Option<String>,
    /// Sessions opened at most.
    pub pool_max: usize,
}

/// The configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was read, and is wrong.
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, in the order of the file. Never empty.
        problems: Vec<Problem>,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, .. } => write!(
                f,
                "cannot read the configuration {}; name another with --config FILE or \
                 PGLOCKSTEP_CONFIG",
                path.display()
            ),
            Self::Invalid { path, problems } => {
                let count = problems.len();
                let noun = if count == 1 { "problem" } else { "problems" };
                write!(f, "{count} {noun} in the configuration {}", path.display())?;
                problems
                    .iter()
                    .try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Invalid { .. } => None,
        }
    }
}

impl Config {
    /// Reads a file, and the environment over it.
    ///
    /// # Errors
    /// The file cannot be read, or something in it or in the environment is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        variables(std::env::vars_os())
            .and_then(|variables| Self::parse(&text, variables))
            .map_err(|problems| ConfigError::Invalid {
                path: path.to_owned(),
                problems,
            })
    }

    /// Makes a configuration of a file's text and environment variables.
    ///
    /// # Errors
    /// All that is wrong, in the order of the file.
    pub fn parse(text: &str, variables: HashMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut places = Places::default();
        let problems = places.add_file(text);
        if !problems.is_empty() {
            return Err(problems);
        }
        for name in variables.keys() {
            if let Some(key) = key_of_variable(name) {
                places.add_variable(key, name.clone());
            }
        }
        let root = merge(text, variables).map_err(|message| {
            vec![Problem {
                line: None,
                key: String::new(),
                message,
            }]
        })?;
        let mut report = Report::new(places);
        let raw = raw::RawConfig::read(reader::Section::new("", root), &mut report);
        let config = validate::validate(raw, &mut report);
        match (config, report.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(problems),
        }
    }

    /// What the sessions of this pipeline call themselves.
    #[must_use]
    pub fn application_name(&self) -> String {
        derived_name(&self.name)
    }
}

/// The name of a pipeline's publication, slot, origin and sessions.
fn derived_name(pipeline: &str) -> String {
    format!("{PREFIX}_{pipeline}")
}

/// `PGLOCKSTEP__SOURCE__URL` to `source.url`, as the config crate does it.
fn key_of_variable(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let prefix = format!("{VARIABLE_PREFIX}{SEPARATOR}").to_lowercase();
    Some(name.strip_prefix(&prefix)?.replace(SEPARATOR, "."))
}

/// The variables that set keys. One that is not UTF-8 is a problem: it must not be passed over.
fn variables(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<HashMap<String, String>, Vec<Problem>> {
    let mut variables = HashMap::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if key_of_variable(&name).is_none() {
            continue;
        }
        let Ok(value) = value.into_string() else {
            let key = format!("environment variable {name}");
            return Err(vec![Problem {
                line: None,
                key,
                message: "not UTF-8".to_owned(),
            }]);
        };
        variables.insert(name, value);
    }
    Ok(variables)
}

/// File below, environment above, as one tree.
fn merge(
    text: &str,
    variables: HashMap<String, String>,
) -> Result<HashMap<String, config::Value>, String> {
    let environment = config::Environment::with_prefix(VARIABLE_PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .ignore_empty(true)
        .source(Some(variables.into_iter().collect()));
    config::Config::builder()
        .add_source(config::File::from_str(text, config::FileFormat::Toml))
        .add_source(environment)
        .build()
        .and_then(|merged| merged.cache.into_table())
        .map(|table| table.into_iter().collect())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
