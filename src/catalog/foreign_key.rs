//! Foreign keys, and an order of tables in which parents come before children.

use super::CatalogError;
use crate::pg::QualifiedName;
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::Client;

/// A foreign key between two tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// The table that refers.
    pub table: QualifiedName,
    /// The table referred to.
    pub referenced: QualifiedName,
    /// DEFERRABLE.
    pub is_deferrable: bool,
}

const FOREIGN_KEYS: &str = "
SELECT k.conname::pg_catalog.text, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
       rn.nspname::pg_catalog.text, r.relname::pg_catalog.text, k.condeferrable
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND (k.conrelid = ANY ($1) OR k.confrelid = ANY ($1))
ORDER BY 1, 2, 3";

/// The foreign keys that leave or enter these tables.
///
/// # Errors
/// When the query fails.
pub async fn fetch_foreign_keys(
    client: &Client,
    tables: &[u32],
) -> Result<Vec<ForeignKey>, CatalogError> {
    let rows = client
        .query(FOREIGN_KEYS, &[&tables])
        .await
        .map_err(CatalogError::reading("foreign keys"))?;
    Ok(rows
        .iter()
        .map(|row| ForeignKey {
            name: row.get(0),
            table: QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            referenced: QualifiedName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
            is_deferrable: row.get(5),
        })
        .collect())
}

/// Gives each table its place: a table referred to comes before those that refer to it.
/// Tables of a circle keep an arbitrary order among each other.
#[must_use]
pub fn parents_first(keys: &[ForeignKey]) -> HashMap<QualifiedName, u32> {
    let mut parents: BTreeMap<&QualifiedName, Vec<&QualifiedName>> = BTreeMap::new();
    for key in keys {
        parents.entry(&key.referenced).or_default();
        if key.table != key.referenced {
            parents.entry(&key.table).or_default().push(&key.referenced);
        }
    }
    let mut places = HashMap::new();
    let mut next = 0;
    while !parents.is_empty() {
        let is_free = |of: &Vec<&QualifiedName>| of.iter().all(|p| places.contains_key(*p));
        let free: Vec<&QualifiedName> = parents
            .iter()
            .filter(|(_, of)| is_free(of))
            .map(|(table, _)| *table)
            .collect();
        // Nothing free: a circle, which is opened anywhere.
        let taken = if free.is_empty() {
            parents.keys().take(1).copied().collect()
        } else {
            free
        };
        for table in taken {
            parents.remove(table);
            places.insert(table.clone(), next);
            next += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(table: &str, referenced: &str) -> ForeignKey {
        ForeignKey {
            name: "k".into(),
            table: QualifiedName::new("s", table),
            referenced: QualifiedName::new("s", referenced),
            is_deferrable: false,
        }
    }

    #[test]
    fn parents_come_first_and_circles_end() {
        let places = parents_first(&[
            key("lead", "project"),
            key("project", "client"),
            key("message", "lead"),
            key("message", "client"),
            key("client", "client"),
            key("a", "b"),
            key("b", "a"),
        ]);
        let place = |name: &str| places[&QualifiedName::new("s", name)];
        assert!(place("client") < place("project"));
        assert!(place("project") < place("lead"));
        assert!(place("lead") < place("message"));
        assert_eq!(places.len(), 6);
    }
}
