//! An SQL expression over a source table's columns, and which columns it speaks of.
//!
//! The expression itself is PostgreSQL's to judge: both servers prepare it at start.
//! Here only its names are looked for, and more generously than needed: a word that is
//! a column's name counts as that column, even where it names a function. The price of
//! a false hit is a column shipped in vain; the price of a miss would be wrong rows.

use std::collections::BTreeSet;

/// An expression and the source columns that it may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The text as the operator wrote it.
    pub sql: String,
    /// Positions of the source columns it names, ascending.
    pub reads: Vec<usize>,
}

impl Expression {
    /// Finds the columns that `sql` names among `columns`.
    #[must_use]
    pub fn new<'a>(sql: &str, columns: impl Iterator<Item = &'a str> + Clone) -> Self {
        let names = names_in(sql);
        let reads = columns
            .enumerate()
            .filter(|(_, column)| names.contains(*column))
            .map(|(position, _)| position)
            .collect();
        Self {
            sql: sql.to_owned(),
            reads,
        }
    }
}

/// Every identifier in the text: unquoted ones folded to lower case, quoted ones as they are.
fn names_in(sql: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '\'' => after_quoted(rest, '\'').1,
            '"' => {
                let (name, after) = after_quoted(rest, '"');
                names.insert(name);
                after
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = rest
                    .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                    .unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                names.insert(word.to_ascii_lowercase());
                after
            }
            c => rest.get(c.len_utf8()..).unwrap_or_default(),
        };
    }
    names
}

/// The text inside a quoted run at the front (doubled quotes folded), and what follows it.
fn after_quoted(text: &str, quote: char) -> (String, &str) {
    let mut inside = String::new();
    let mut rest = text.get(1..).unwrap_or_default();
    loop {
        let Some((part, after)) = rest.split_once(quote) else {
            return (inside, "");
        };
        inside.push_str(part);
        match after.strip_prefix(quote) {
            Some(after) => {
                inside.push(quote);
                rest = after;
            }
            None => return (inside, after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_names_and_only_outside_strings() {
        let columns = ["email", "Name", "state", "id", "größe"];
        let reads = |sql| Expression::new(sql, columns.iter().copied()).reads;
        assert_eq!(reads("lower(EMAIL)"), [0]);
        assert_eq!(reads("\"Name\" || 'state ''id'' '"), [1]);
        assert_eq!(reads("name"), [0usize; 0]);
        assert_eq!(reads("state <> 'x' AND id IS NOT NULL"), [2, 3]);
        assert_eq!(reads("größe+1"), [4]);
        assert_eq!(reads("'agentdb'"), [0usize; 0]);
        assert_eq!(reads("'unterminated"), [0usize; 0]);
    }
}
