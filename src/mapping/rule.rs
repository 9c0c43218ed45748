//! Which rule speaks of a source table, and which replica table it names.
//!
//! A rule that names the table exactly goes before a pattern; among patterns the first
//! in the file wins. Without any rule every published table goes to its own name; with
//! rules, a table that none of them matches is left alone.

use super::{Settings, TablePattern, TableRule};
use crate::pg::QualifiedName;
use regex::Regex;

/// A source table with its replica table and the rule that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The source table.
    pub source: QualifiedName,
    /// The replica table.
    pub replica: QualifiedName,
    /// The rule, with every default filled in.
    pub rule: TableRule,
}

/// Finds the rule for a source table; `None` when no rule speaks of it.
#[must_use]
pub fn resolve(settings: &Settings, source: &QualifiedName) -> Option<Resolved> {
    if settings.rules.is_empty() {
        let rule = same_name_rule(settings, source);
        return Some(Resolved {
            source: source.clone(),
            replica: source.clone(),
            rule,
        });
    }
    let exact_first = settings.rules.iter().filter(|r| r.source.is_exact());
    let then_patterns = settings.rules.iter().filter(|r| !r.source.is_exact());
    exact_first.chain(then_patterns).find_map(|rule| {
        let schema = captures(&rule.source.schema, &source.schema)?;
        let table = captures(&rule.source.table, &source.name)?;
        let replica = rule.replica.as_ref().map_or_else(
            || source.clone(),
            |to| QualifiedName::new(fill(&to.schema, &schema), fill(&to.table, &table)),
        );
        Some(Resolved {
            source: source.clone(),
            replica,
            rule: rule.clone(),
        })
    })
}

fn same_name_rule(settings: &Settings, source: &QualifiedName) -> TableRule {
    TableRule {
        source: TablePattern {
            schema: source.schema.clone(),
            table: source.name.clone(),
        },
        replica: None,
        columns: std::collections::BTreeMap::default(),
        exclude: Vec::new(),
        set: std::collections::BTreeMap::default(),
        filter: None,
        key: None,
        existing_rows: settings.existing_rows,
        extra_rows: settings.extra_rows,
        on_conflict: settings.on_conflict.clone(),
        priority: 0,
        references: Vec::new(),
        unique: Vec::new(),
    }
}

/// What each `*` of the pattern stood for; `None` when the name does not match.
fn captures(pattern: &str, name: &str) -> Option<Vec<String>> {
    let parts: Vec<String> = pattern.split('*').map(regex::escape).collect();
    // (?s): a name may hold a newline.
    let regex = Regex::new(&format!("(?s)^{}$", parts.join("(.*)"))).ok()?;
    let found = regex.captures(name)?;
    Some(
        found
            .iter()
            .skip(1)
            .flatten()
            .map(|m| m.as_str().to_owned())
            .collect(),
    )
}

/// Puts what the source's stars stood for in place of the replica's, in order.
fn fill(pattern: &str, stars: &[String]) -> String {
    let mut stars = stars.iter();
    let mut filled = String::new();
    for (place, part) in pattern.split('*').enumerate() {
        if place > 0 {
            filled.push_str(stars.next().map_or("", String::as_str));
        }
        filled.push_str(part);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(source: &str, replica: Option<&str>) -> TableRule {
        TableRule {
            source: source.parse().unwrap(),
            replica: replica.map(|r| r.parse().unwrap()),
            ..same_name_rule(&Settings::default(), &QualifiedName::new("s", "t"))
        }
    }

    fn replica_of(rules: Vec<TableRule>, source: (&str, &str)) -> Option<String> {
        let settings = Settings {
            rules,
            ..Settings::default()
        };
        resolve(&settings, &QualifiedName::new(source.0, source.1)).map(|r| r.replica.to_string())
    }

    #[test]
    fn the_most_exact_rule_wins_and_stars_carry_over() {
        let rules = || {
            vec![
                rule("public.*", Some("crm.*")),
                rule("public.lead*", Some("wrong.*")),
                rule("public.leads", Some("crm.contacts")),
                rule("t_*.x*y", Some("all.*_*")),
            ]
        };
        assert_eq!(
            replica_of(rules(), ("public", "leads")).as_deref(),
            Some("crm.contacts")
        );
        assert_eq!(
            replica_of(rules(), ("public", "a.b*")).as_deref(),
            Some("crm.a.b*")
        );
        assert_eq!(
            replica_of(rules(), ("t_1", "x-y")).as_deref(),
            Some("all.-_")
        );
        assert_eq!(replica_of(rules(), ("other", "leads")), None);
        assert_eq!(
            replica_of(Vec::new(), ("any", "table")).as_deref(),
            Some("any.table")
        );
    }
}
