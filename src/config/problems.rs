//! What is wrong with a configuration: all of it at once, each with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, where the key stands in it.
    pub line: Option<usize>,
    /// The key, as in `source.url` or `tables[1].key`; or the environment variable.
    pub key: String,
    /// What is wrong and what is expected. Never the value of a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.key.as_str()) {
            (Some(line), "") => write!(f, "line {line}: {}", self.message),
            (Some(line), key) => write!(f, "line {line}, {key}: {}", self.message),
            (None, "") => f.write_str(&self.message),
            (None, key) => write!(f, "{key}: {}", self.message),
        }
    }
}

/// Where each key was set.
#[derive(Default)]
pub(super) struct Places {
    lines: BTreeMap<String, usize>,
    /// Key to environment variable; it stands over the file.
    variables: BTreeMap<String, String>,
}

impl Places {
    pub(super) fn add_variable(&mut self, key: String, variable: String) {
        self.variables.insert(key, variable);
    }

    /// The variable that set a key, or that made a section which the file does not have.
    fn variable(&self, key: &str) -> Option<&String> {
        let made = || {
            let prefix = join(key, "");
            let below = |(set, _): &(&String, &String)| set.starts_with(&prefix);
            self.variables
                .iter()
                .find(below)
                .map(|(_, variable)| variable)
        };
        let in_file = self.lines.contains_key(key);
        self.variables
            .get(key)
            .or_else(|| if in_file { None } else { made() })
    }

    /// Finds the line of every key in a file. A file that is not TOML yields its problems instead.
    pub(super) fn add_file(&mut self, text: &str) -> Vec<Problem> {
        let starts: Vec<usize> = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let line_of = |offset: usize| starts.partition_point(|start| *start <= offset);
        let (table, errors) = toml::de::DeTable::parse_recoverable(text);
        self.walk_table("", table.get_ref(), &line_of);
        // Not the error's own Display: it quotes the line, which may hold a password.
        let problem = |error: toml::de::Error| Problem {
            line: error.span().map(|span| line_of(span.start)),
            key: String::new(),
            message: format!("not TOML: {}", error.message()),
        };
        errors.into_iter().map(problem).collect()
    }

    fn walk_table(
        &mut self,
        prefix: &str,
        table: &toml::de::DeTable<'_>,
        line_of: &impl Fn(usize) -> usize,
    ) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            self.lines
                .entry(path.clone())
                .or_insert_with(|| line_of(key.span().start));
            self.walk_value(&path, value.get_ref(), line_of);
        }
    }

    fn walk_value(
        &mut self,
        path: &str,
        value: &toml::de::DeValue<'_>,
        line_of: &impl Fn(usize) -> usize,
    ) {
        match value {
            toml::de::DeValue::Table(table) => self.walk_table(path, table, line_of),
            toml::de::DeValue::Array(array) => {
                for (position, item) in array.iter().enumerate() {
                    let path = format!("{path}[{position}]");
                    self.lines.insert(path.clone(), line_of(item.span().start));
                    self.walk_value(&path, item.get_ref(), line_of);
                }
            }
            _ => {}
        }
    }
}

/// A key inside a section: `source` and `url` make `source.url`.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

/// Collects problems while the configuration is read.
pub(super) struct Report {
    places: Places,
    problems: Vec<Problem>,
    /// Keys already complained of; what follows from a problem is not another one.
    broken: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            problems: Vec::new(),
            broken: BTreeSet::new(),
        }
    }

    /// Notes what is wrong with a key.
    pub(super) fn add(&mut self, key: &str, message: impl Into<String>) {
        self.broken.insert(key.to_owned());
        let (line, key) = match self.places.variable(key) {
            Some(variable) => (None, format!("environment variable {variable}")),
            // A key that is missing is reported at the section it belongs to.
            None => (self.line_of(key), key.to_owned()),
        };
        self.problems.push(Problem {
            line,
            key,
            message: message.into(),
        });
    }

    /// Whether something was already said about the key.
    pub(super) fn is_broken(&self, key: &str) -> bool {
        self.broken.contains(key)
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        let parent = || {
            key.rsplit_once('.')
                .and_then(|(parent, _)| self.places.lines.get(parent))
        };
        self.places.lines.get(key).or_else(parent).copied()
    }

    /// All problems, in the order of the file.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by(|a, b| {
            (a.line.unwrap_or(usize::MAX), &a.key).cmp(&(b.line.unwrap_or(usize::MAX), &b.key))
        });
        self.problems.dedup();
        self.problems
    }
}
