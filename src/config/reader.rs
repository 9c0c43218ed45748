//! Reads values out of the merged tree, strictly, noting every problem and going on.
//!
//! The `config` crate merges file and environment. Its own conversions are lenient
//! (`"5"` is a number, `1.9` becomes 2) and stop at the first problem, so only the tree
//! is taken from it. What comes from the environment is text and is parsed here.

use super::problems::{Report, join};
use super::size::parse_size;
use config::{Value, ValueKind};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// One section: its values, and which of its keys were asked for.
pub(super) struct Section {
    path: String,
    values: HashMap<String, Value>,
    known: Vec<&'static str>,
}

impl Section {
    pub(super) fn new(path: impl Into<String>, values: HashMap<String, Value>) -> Self {
        Self {
            path: path.into(),
            values,
            known: Vec::new(),
        }
    }

    /// What the names of this section's keys begin with.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The full name of a key of this section.
    pub(super) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Takes a key's value; `None` when it is absent, or wrong, which is then noted.
    pub(super) fn take<T: FromValue>(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<T> {
        let value = self.take_value(key)?;
        let found = kind_name(&value.kind);
        match T::from_value(value) {
            Ok(value) => Some(value),
            Err(expected) => {
                report.add(
                    &self.key(key),
                    format!("expected {expected}, found {found}"),
                );
                None
            }
        }
    }

    /// Takes one of a few words.
    pub(super) fn take_choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        report: &mut Report,
    ) -> Option<T> {
        let text: String = self.take(key, report)?;
        let choice = choices.iter().find(|(word, _)| *word == text);
        if choice.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            report.add(
                &self.key(key),
                format!("{text:?} is not one of {}", words.join(", ")),
            );
        }
        choice.map(|(_, value)| *value)
    }

    /// Takes a section; an absent one is empty.
    pub(super) fn take_section(&mut self, key: &'static str, report: &mut Report) -> Self {
        let path = self.key(key);
        let values = match self.take_value(key).map(|value| value.kind) {
            None => HashMap::new(),
            Some(ValueKind::Table(values)) => values,
            Some(other) => {
                report.add(
                    &path,
                    format!("expected a section, found {}", kind_name(&other)),
                );
                HashMap::new()
            }
        };
        Self::new(path, values)
    }

    /// Takes a list of sections, as `[[tables]]` makes it.
    pub(super) fn take_sections(&mut self, key: &'static str, report: &mut Report) -> Vec<Self> {
        let path = self.key(key);
        let items = match self.take_value(key).map(|value| value.kind) {
            None => return Vec::new(),
            Some(ValueKind::Array(items)) => items,
            Some(other) => {
                let found = kind_name(&other);
                report.add(&path, format!("expected [[{key}]] sections, found {found}"));
                return Vec::new();
            }
        };
        let mut sections = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{position}]");
            match item.kind {
                ValueKind::Table(values) => sections.push(Self::new(path, values)),
                other => {
                    let found = kind_name(&other);
                    report.add(
                        &path,
                        format!("expected a [[{key}]] section, found {found}"),
                    );
                }
            }
        }
        sections
    }

    /// Whether a key is there; it then counts as known, whatever is in it.
    pub(super) fn take_presence(&mut self, key: &'static str) -> bool {
        self.take_value(key).is_some()
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, report: &mut Report) {
        for key in self.values.keys() {
            let hint = match closest(key, &self.known) {
                Some(close) => format!("did you mean {close}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            report.add(&self.key(key), format!("unknown key; {hint}"));
        }
    }

    fn take_value(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values
            .remove(key)
            .filter(|value| value.kind != ValueKind::Nil)
    }
}

/// A type that a value of the tree can be; the error says what was expected.
pub(super) trait FromValue: Sized {
    fn from_value(value: Value) -> Result<Self, &'static str>;
}

/// Text that came by environment, where everything is text.
fn environment_text(value: &Value) -> Option<&str> {
    match &value.kind {
        ValueKind::String(text) if value.origin().is_some() => Some(text.trim()),
        _ => None,
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        match value.kind {
            ValueKind::String(text) => Ok(text),
            _ => Err("text in quotes"),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        match (environment_text(&value), &value.kind) {
            (_, ValueKind::Boolean(flag)) => Ok(*flag),
            (Some("true"), _) => Ok(true),
            (Some("false"), _) => Ok(false),
            _ => Err("true or false"),
        }
    }
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a whole number";
        match (environment_text(&value), &value.kind) {
            (_, ValueKind::I64(number)) => Ok(*number),
            (Some(text), _) => text.parse().map_err(|_| EXPECTED),
            _ => Err(EXPECTED),
        }
    }
}

impl FromValue for f64 {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a number";
        let number = match (environment_text(&value), &value.kind) {
            (_, ValueKind::I64(number)) => *number as f64,
            (_, ValueKind::Float(number)) => *number,
            (Some(text), _) => text.parse().map_err(|_| EXPECTED)?,
            _ => return Err(EXPECTED),
        };
        if number.is_finite() {
            Ok(number)
        } else {
            Err(EXPECTED)
        }
    }
}

impl FromValue for Vec<String> {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a list of texts, as in [\"a\", \"b\"]";
        if let Some(text) = environment_text(&value) {
            return Ok(text.split(',').map(|item| item.trim().to_owned()).collect());
        }
        match value.kind {
            ValueKind::Array(items) => items
                .into_iter()
                .map(String::from_value)
                .collect::<Result<_, _>>()
                .map_err(|_| EXPECTED),
            _ => Err(EXPECTED),
        }
    }
}

impl FromValue for Vec<Vec<String>> {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a list of lists of texts, as in [[\"a\"], [\"b\", \"c\"]]";
        match value.kind {
            ValueKind::Array(items) => items
                .into_iter()
                .map(Vec::<String>::from_value)
                .collect::<Result<_, _>>()
                .map_err(|_| EXPECTED),
            _ => Err(EXPECTED),
        }
    }
}

impl FromValue for BTreeMap<String, String> {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "names and texts, as in { a = \"b\" }";
        let ValueKind::Table(entries) = value.kind else {
            return Err(EXPECTED);
        };
        let entry = |(key, value)| Ok((key, String::from_value(value)?));
        entries
            .into_iter()
            .map(entry)
            .collect::<Result<_, &str>>()
            .map_err(|_| EXPECTED)
    }
}

/// A number of bytes: a whole number, or text with a unit.
pub(super) struct ByteSize(pub(super) u64);

impl FromValue for ByteSize {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a size such as 65536, \"500kB\" or \"16MiB\"";
        match value.kind {
            ValueKind::I64(bytes) => u64::try_from(bytes).map_err(|_| EXPECTED).map(Self),
            ValueKind::String(text) => parse_size(&text).map_err(|_| EXPECTED).map(Self),
            _ => Err(EXPECTED),
        }
    }
}

impl FromValue for Duration {
    fn from_value(value: Value) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a time such as \"200ms\", \"30s\" or \"1h\"";
        match value.kind {
            ValueKind::String(text) => humantime::parse_duration(text.trim()).map_err(|_| EXPECTED),
            _ => Err(EXPECTED),
        }
    }
}

/// What a value is, without showing it: it may be a secret.
fn kind_name(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => {
            "a whole number"
        }
        ValueKind::Float(_) => "a number with a fraction",
        ValueKind::String(_) => "other text",
        ValueKind::Table(_) => "a section",
        ValueKind::Array(_) => "a list",
    }
}

/// The known key that a misspelt one most likely stands for.
fn closest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |known: &&&str| edit_distance(key, known);
    known
        .iter()
        .min_by_key(distance)
        .filter(|known| edit_distance(key, known) <= 2)
        .copied()
}

/// How many letters to change, add or take away (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_keys_find_their_like() {
        let known = ["url", "url_file", "environment", "slot"];
        assert_eq!(closest("enviroment", &known), Some("environment"));
        assert_eq!(closest("urlfile", &known), Some("url_file"));
        assert_eq!(closest("password", &known), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
