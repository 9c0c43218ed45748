//! Compiles one source table, one replica table and one rule into a [`TableMapping`].

use super::row_type::{binary_input, row_type};
use super::table::{ColumnMapping, ColumnValue, InputColumn, RowIdentity, TableMapping};
use super::{ConflictPolicy, Expression, Resolved, TableRule};
use crate::catalog::{IdentityKind, Table, TableColumn, TableKind};
use crate::pg::{QualifiedName, Relation, ReplicaIdentity, TypeName, TypeNames, quote_ident};
use std::collections::BTreeSet;

/// Everything that is wrong between a source table, its rule and its replica table.
#[derive(Debug, thiserror::Error)]
#[error("{source_table} cannot be mapped to {replica_table}: {}", problems.join("; "))]
pub struct MappingError {
    /// The source table.
    pub source_table: QualifiedName,
    /// The replica table.
    pub replica_table: QualifiedName,
    /// One sentence each, with its remedy.
    pub problems: Vec<String>,
}

/// Compiles the way of one table.
///
/// `types` names the source's types by object id, with domains replaced by their base.
///
/// # Errors
/// [`MappingError`] with all problems found.
pub fn compile(
    relation: &Relation,
    types: &TypeNames,
    resolved: &Resolved,
    replica: &Table,
) -> Result<TableMapping, MappingError> {
    let mut compiler = Compiler {
        relation,
        types,
        rule: &resolved.rule,
        replica,
        problems: Vec::new(),
    };
    let mapping = compiler.compile();
    if compiler.problems.is_empty() {
        return Ok(mapping);
    }
    Err(MappingError {
        source_table: relation.name.clone(),
        replica_table: resolved.replica.clone(),
        problems: compiler.problems,
    })
}

struct Compiler<'a> {
    relation: &'a Relation,
    types: &'a TypeNames,
    rule: &'a TableRule,
    replica: &'a Table,
    problems: Vec<String>,
}

impl<'a> Compiler<'a> {
    fn compile(&mut self) -> TableMapping {
        self.check_names();
        let plain = self.plain_columns();
        let computed = self.computed_columns(&plain);
        let filter = self.rule.filter.as_deref().map(|sql| self.expression(sql));
        self.check_uncovered(&plain, &computed);

        let read: BTreeSet<usize> = plain
            .iter()
            .map(|(position, _)| *position)
            .chain(computed.iter().flat_map(|(_, e)| e.reads.iter().copied()))
            .chain(filter.iter().flat_map(|e| e.reads.iter().copied()))
            .collect();
        let inputs: Vec<InputColumn> = read
            .iter()
            .filter_map(|position| self.input(*position, &plain))
            .collect();
        let input_at = |position: usize| {
            inputs
                .iter()
                .position(|i| i.position == position)
                .unwrap_or(0)
        };
        let column = |to: &TableColumn, value| ColumnMapping {
            name: to.name.clone(),
            cast_to: to.base_type.clone(),
            stored_as: to.stored_as.clone(),
            equality: to.equality.clone(),
            value,
        };
        let mut columns: Vec<ColumnMapping> = plain
            .iter()
            .map(|(position, to)| column(to, ColumnValue::Input(input_at(*position))))
            .collect();
        columns.extend(
            computed
                .into_iter()
                .map(|(to, e)| column(to, ColumnValue::Computed(e))),
        );
        let identity = self.identity(&plain);
        self.check_identity_columns(&plain, &identity);
        self.check_policy(&columns);
        let is_plain = filter.is_none() && columns.len() == plain.len();
        let row_type = row_type(self.replica, &plain, |position| self.type_at(position));
        let row_type = row_type.filter(|_| is_plain);
        let may_reinsert = row_type.is_some() && self.may_reinsert(&columns, &identity);
        TableMapping {
            relation: self.relation.clone(),
            replica: self.replica.name.clone(),
            replica_is_partitioned: self.replica.kind == TableKind::Partitioned,
            triggers: self.replica.triggers,
            inputs,
            columns,
            identity,
            filter,
            on_conflict: self.rule.on_conflict.clone(),
            row_type,
            may_reinsert,
        }
    }

    /// Whether a DELETE and an INSERT leave what an UPDATE leaves: the key is one that the source
    /// holds at once, no column keeps a value of the replica's own, no policy compares old with new,
    /// no rule rewrites the one or the other, and no other row refers to this one: a foreign key
    /// would act upon the DELETE, or refuse whoever refers to the row meanwhile.
    fn may_reinsert(&self, columns: &[ColumnMapping], identity: &RowIdentity) -> bool {
        let is_filled = |column: &TableColumn| {
            column.is_generated || columns.iter().any(|c| c.name == column.name)
        };
        matches!(identity, RowIdentity::Key(_))
            && self.relation.replica_identity != ReplicaIdentity::Full
            && !matches!(self.rule.on_conflict, ConflictPolicy::NewestWins { .. })
            && !self.replica.has_rules
            && !self.replica.is_referred_to
            && self.replica.columns.iter().all(is_filled)
    }

    /// The source's name of the type at a position.
    fn type_at(&self, position: usize) -> Option<&'a TypeName> {
        self.types
            .get(&self.relation.columns.get(position)?.type_oid)
    }

    /// Names in the rule that nothing bears.
    fn check_names(&mut self) {
        let rule = self.rule;
        let named = rule.columns.keys().map(|c| ("columns", c));
        let named = named.chain(rule.exclude.iter().map(|c| ("exclude", c)));
        let named = named.chain(rule.key.iter().flatten().map(|c| ("key", c)));
        for (place, column) in named {
            // A pattern's rule may name columns that only some of its tables have.
            if self.relation.position(column).is_none() && rule.source.is_exact() {
                self.problems.push(format!(
                    "`{place}` names the source column {column}, which is not there or not published"
                ));
            }
        }
    }

    fn plain_columns(&mut self) -> Vec<(usize, &'a TableColumn)> {
        let (relation, rule, replica) = (self.relation, self.rule, self.replica);
        let mut plain = Vec::new();
        for (position, column) in relation.columns.iter().enumerate() {
            if rule.exclude.contains(&column.name) {
                continue;
            }
            let name = rule.columns.get(&column.name).unwrap_or(&column.name);
            // A column of `set` replaces the one of the same name.
            if rule.set.contains_key(name) {
                continue;
            }
            match replica.column(name) {
                // The replica computes it by itself.
                Some(to) if to.is_generated => {}
                Some(to) => plain.push((position, to)),
                None => self.problems.push(format!(
                    "the replica table has no column {name} for the source's {}: add it, rename it in `columns`, or list it in `exclude`",
                    column.name
                )),
            }
        }
        plain
    }

    fn computed_columns(
        &mut self,
        plain: &[(usize, &TableColumn)],
    ) -> Vec<(&'a TableColumn, Expression)> {
        let (rule, replica) = (self.rule, self.replica);
        let mut computed = Vec::new();
        for (name, sql) in &rule.set {
            match replica.column(name) {
                None => self
                    .problems
                    .push(format!("`set` names the replica column {name}, which is not there")),
                Some(to) if to.is_generated => self.problems.push(format!(
                    "`set` names the replica column {name}, which is generated and cannot be written"
                )),
                Some(to) if plain.iter().any(|(_, p)| p.name == to.name) => {
                    self.problems.push(format!("two values for the replica column {name}"));
                }
                Some(to) => computed.push((to, self.expression(sql))),
            }
        }
        computed
    }

    fn expression(&self, sql: &str) -> Expression {
        Expression::new(sql, self.relation.columns.iter().map(|c| c.name.as_str()))
    }

    /// A NOT NULL replica column that nothing fills, and a column that two sources fill.
    fn check_uncovered(
        &mut self,
        plain: &[(usize, &TableColumn)],
        computed: &[(&TableColumn, Expression)],
    ) {
        let mut seen = BTreeSet::new();
        for (_, to) in plain {
            if !seen.insert(to.name.as_str()) {
                self.problems.push(format!(
                    "two source columns for the replica column {}",
                    to.name
                ));
            }
        }
        seen.extend(computed.iter().map(|(to, _)| to.name.as_str()));
        let replica = self.replica;
        for column in &replica.columns {
            let filled = seen.contains(column.name.as_str()) || column.is_generated;
            if column.not_null && !column.has_default && !filled {
                self.problems.push(format!(
                    "the replica column {} is NOT NULL without a default and nothing fills it: give it a default or a `set` expression",
                    column.name
                ));
            }
        }
    }

    fn input(&self, position: usize, plain: &[(usize, &TableColumn)]) -> Option<InputColumn> {
        let column = self.relation.columns.get(position)?;
        let to = plain
            .iter()
            .find(|(p, _)| *p == position)
            .map(|(_, to)| *to);
        let read_as = self.read_as(column.type_oid, to);
        Some(InputColumn {
            position,
            name: column.name.clone(),
            kept_in: to.map(|to| to.name.clone()),
            binary: binary_input(self.types.get(&column.type_oid), &read_as, to),
            read_as,
        })
    }

    /// The replica's name for a source type. A built-in one is the same everywhere. Another one
    /// may be called differently there, so the column it goes to decides; where that is
    /// built in (an enum kept as text), or there is none, its text is taken as text.
    fn read_as(&self, type_oid: u32, to: Option<&TableColumn>) -> TypeName {
        match (self.types.get(&type_oid), to) {
            (Some(name), _) if name.is_builtin() => name.clone(),
            (_, Some(to)) if !to.base_type.is_builtin() => to.base_type.clone(),
            _ => TypeName(QualifiedName::new("pg_catalog", "text")),
        }
    }

    fn identity(&mut self, plain: &[(usize, &TableColumn)]) -> RowIdentity {
        let relation = self.relation;
        let logged: Vec<&str> = relation
            .columns
            .iter()
            .filter(|c| c.is_key)
            .map(|c| c.name.as_str())
            .collect();
        let logs_all = self.relation.replica_identity == ReplicaIdentity::Full;
        if logged.is_empty() && !logs_all {
            return RowIdentity::InsertsOnly;
        }
        let rule = self.rule;
        if let Some(key) = &rule.key {
            let missing: Vec<&String> = key
                .iter()
                .filter(|k| !logs_all && !logged.contains(&k.as_str()))
                .collect();
            if !missing.is_empty() {
                self.problems.push(format!(
                    "`key` names {missing:?}, which the source does not log for old rows: ALTER TABLE {} REPLICA IDENTITY FULL, or use its identity {logged:?}",
                    self.relation.name.quoted()
                ));
            }
            self.check_key_is_not_null(key, plain);
            return self.key(key.iter().map(String::as_str), plain);
        }
        if !logs_all {
            return self.key(logged.into_iter(), plain);
        }
        // The whole old row is there: any key of the replica whose columns come straight from the source
        // will do, unless two rows may hold it until the end of a transaction.
        let own_key = self.replica.unique_keys.iter().find(|key| {
            key.is_immediate
                && key.columns.iter().all(|name| {
                    plain
                        .iter()
                        .any(|(_, to)| to.name == *name && (key.is_primary || to.not_null))
                })
        });
        own_key.map_or(RowIdentity::FullRow, |key| {
            RowIdentity::Key(
                key.columns
                    .iter()
                    .filter_map(|name| plain.iter().position(|(_, to)| to.name == *name))
                    .collect(),
            )
        })
    }

    /// Nothing equals NULL: a row with one in its key would never be found.
    fn check_key_is_not_null(&mut self, key: &[String], plain: &[(usize, &TableColumn)]) {
        for name in key {
            let position = self.relation.position(name);
            let to = plain.iter().find(|(p, _)| Some(*p) == position);
            if let Some((_, to)) = to.filter(|(_, to)| !to.not_null) {
                self.problems.push(format!(
                    "`key` names {name}, and the replica column {to} may be NULL: ALTER TABLE {table} ALTER {quoted} SET NOT NULL",
                    to = to.name,
                    table = self.replica.name.quoted(),
                    quoted = quote_ident(&to.name),
                ));
            }
        }
    }

    fn key<'k>(
        &mut self,
        names: impl Iterator<Item = &'k str>,
        plain: &[(usize, &TableColumn)],
    ) -> RowIdentity {
        let mut key = Vec::new();
        for name in names {
            let position = self.relation.position(name);
            match plain.iter().position(|(p, _)| Some(*p) == position) {
                Some(column) => key.push(column),
                None => self.problems.push(format!(
                    "the key column {name} does not reach the replica unchanged: it must not be excluded or computed"
                )),
            }
        }
        RowIdentity::Key(key)
    }

    /// An identity column that is GENERATED ALWAYS takes inserts, but no update.
    fn check_identity_columns(&mut self, plain: &[(usize, &TableColumn)], found_by: &RowIdentity) {
        let is_updated = |place: usize| match found_by {
            RowIdentity::Key(key) => !key.contains(&place),
            RowIdentity::FullRow => true,
            RowIdentity::InsertsOnly => false,
        };
        for (place, (_, to)) in plain.iter().enumerate() {
            if to.identity == IdentityKind::Always && is_updated(place) {
                self.problems.push(format!(
                    "the replica column {} is GENERATED ALWAYS AS IDENTITY and no key, so that no update could write it: ALTER TABLE {} ALTER COLUMN {} SET GENERATED BY DEFAULT",
                    to.name,
                    self.replica.name.quoted(),
                    quote_ident(&to.name)
                ));
            }
        }
    }

    fn check_policy(&mut self, columns: &[ColumnMapping]) {
        if let ConflictPolicy::NewestWins { column } = &self.rule.on_conflict
            && !columns.iter().any(|c| c.name == *column)
        {
            self.problems.push(format!(
                    "`on_conflict = newest_wins({column})` compares a replica column that the mapping does not write: map a source column to it, or `set` it"
                ));
        }
    }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
