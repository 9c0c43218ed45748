//! Tables as a catalogue describes them: columns, keys, foreign keys, size.

use super::CatalogError;
use crate::pg::{OperatorName, QualifiedName, ReplicaIdentity, TypeName, TypeNames};
use std::collections::HashMap;
use tokio_postgres::{Client, Row};

/// What kind of relation holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// An ordinary table.
    Ordinary,
    /// The root or an inner node of a partition tree: no rows of its own.
    Partitioned,
    /// Something that cannot be replicated: a view, a foreign table, a sequence.
    Other,
}

/// `GENERATED … AS IDENTITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// Not an identity column.
    None,
    /// An explicit value needs OVERRIDING SYSTEM VALUE, and an update is refused.
    Always,
    /// An explicit value is welcome.
    ByDefault,
}

/// What kind of type (`pg_type.typtype`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TypeKind {
    /// A type of its own; arrays are among them.
    #[default]
    Base,
    /// A list of labels.
    Enum,
    /// A row, a range, a pseudo-type.
    Other,
}

/// What decides whether a column takes a type's binary form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeForm {
    /// The column's own type is a domain, which looks at every value, NULL among them.
    pub is_domain: bool,
    /// What the type is, domains replaced by what they are made of.
    pub kind: TypeKind,
    /// Of an array: object id on this server, and kind, of its elements' type.
    pub element: Option<(u32, TypeKind)>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type's object id on this server.
    pub type_oid: u32,
    /// The type, with domains replaced by what they are made of.
    pub base_type: TypeName,
    /// What kind of type that is.
    pub form: TypeForm,
    /// `base_type` with its modifier, as the server writes it: `numeric(10,2)`. For SQL.
    pub stored_as: String,
    /// What a unique index of it calls equal. No search path leads to an extension's.
    pub equality: OperatorName,
    /// `atttypmod`.
    pub type_modifier: i32,
    /// NULL is refused.
    pub not_null: bool,
    /// A value comes about without being given: a default, an identity.
    pub has_default: bool,
    /// GENERATED ALWAYS AS (expression): cannot be written.
    pub is_generated: bool,
    /// Identity.
    pub identity: IdentityKind,
}

/// A unique index on plain columns that covers all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// The index's name.
    pub name: String,
    /// Its columns, in index order, without INCLUDEd ones.
    pub columns: Vec<String>,
    /// The primary key.
    pub is_primary: bool,
    /// Chosen by REPLICA IDENTITY USING INDEX.
    pub is_replica_identity: bool,
    /// Uniqueness is checked at once, not at the end of statement or transaction.
    pub is_immediate: bool,
}

/// The sessions for which a table's own triggers fire; those of constraints are not meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    /// For an ordinary session: enabled, or `ENABLE ALWAYS`.
    pub ordinary: bool,
    /// Under `session_replication_role = replica`: `ENABLE REPLICA`, or `ENABLE ALWAYS`.
    pub as_replica: bool,
}

impl Triggers {
    /// Whether any fires, in a session with or without `session_replication_role = replica`.
    #[must_use]
    pub fn fire(self, is_replica_role: bool) -> bool {
        if is_replica_role {
            self.as_replica
        } else {
            self.ordinary
        }
    }
}

/// A table and all that a mapping needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Object id on this server.
    pub oid: u32,
    /// Its name.
    pub name: QualifiedName,
    /// What kind of relation.
    pub kind: TableKind,
    /// UNLOGGED: emptied by a crash.
    pub is_unlogged: bool,
    /// What it logs of old rows.
    pub replica_identity: ReplicaIdentity,
    /// Row security is enabled on it.
    pub row_security: bool,
    /// Rules may rewrite what is done to it.
    pub has_rules: bool,
    /// Foreign keys refer to it, or to a partition of it.
    pub is_referred_to: bool,
    /// When its users' triggers fire, those of its partitions among them.
    pub triggers: Triggers,
    /// Columns in table order, dropped ones left out.
    pub columns: Vec<TableColumn>,
    /// Unique keys, the primary one first.
    pub unique_keys: Vec<UniqueKey>,
}

impl Table {
    /// A column by name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// The primary key's columns; empty without one.
    #[must_use]
    pub fn primary_key(&self) -> &[String] {
        self.unique_keys
            .iter()
            .find(|k| k.is_primary)
            .map_or(&[], |k| &k.columns)
    }

    /// The columns the source logs to identify an old row; empty when it logs none.
    #[must_use]
    pub fn identity_columns(&self) -> Vec<String> {
        match self.replica_identity {
            ReplicaIdentity::Default => self.primary_key().to_vec(),
            ReplicaIdentity::Nothing => Vec::new(),
            ReplicaIdentity::Full => self.columns.iter().map(|c| c.name.clone()).collect(),
            ReplicaIdentity::Index => self
                .unique_keys
                .iter()
                .find(|k| k.is_replica_identity)
                .map_or_else(Vec::new, |k| k.columns.clone()),
        }
    }
}

const TABLES: &str = "
SELECT c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.relkind, c.relpersistence,
       c.relreplident, c.relrowsecurity, c.relhasrules
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
  AS w(schema, name)
  ON w.schema = n.nspname AND w.name = c.relname
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')";

const COLUMNS: &str = "
WITH RECURSIVE base(oid, base, modifier) AS (
  SELECT t.oid, t.oid, -1 FROM pg_catalog.pg_type t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT d.oid, b.base, CASE d.typtypmod WHEN -1 THEN b.modifier ELSE d.typtypmod END FROM pg_catalog.pg_type d JOIN base b ON d.typbasetype = b.oid
  WHERE d.typtype = 'd'),
equality(type, schema, operator) AS (
  SELECT k.opcintype, n.nspname, o.oprname
  FROM pg_catalog.pg_opclass k
  JOIN pg_catalog.pg_am m ON m.oid = k.opcmethod AND m.amname = 'btree'
  JOIN pg_catalog.pg_amop p ON p.amopfamily = k.opcfamily AND p.amopstrategy = 3
   AND p.amoplefttype = k.opcintype AND p.amoprighttype = k.opcintype
  JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
  JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
  WHERE k.opcdefault)
SELECT a.attrelid, a.attname::pg_catalog.text, a.atttypid, n.nspname::pg_catalog.text,
       t.typname::pg_catalog.text, a.atttypmod, a.attnotnull, a.atthasdef, a.attgenerated,
       a.attidentity, coalesce(e.schema, 'pg_catalog')::pg_catalog.text,
       coalesce(e.operator, '=')::pg_catalog.text,
       pg_catalog.format_type(b.base, CASE a.atttypmod WHEN -1 THEN b.modifier ELSE a.atttypmod END),
       a.atttypid <> b.base, t.typtype, CASE WHEN t.typlen = -1 THEN NULLIF(t.typelem, 0::pg_catalog.oid) END,
       m.typtype
FROM pg_catalog.pg_attribute a
JOIN base b ON b.oid = a.atttypid
JOIN pg_catalog.pg_type t ON t.oid = b.base
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type m ON m.oid = t.typelem
LEFT JOIN equality e ON e.type = b.base
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

const UNIQUE_KEYS: &str = "
SELECT i.indrelid, x.relname::pg_catalog.text, i.indisprimary, i.indisreplident, i.indimmediate,
       ARRAY(SELECT a.attname::pg_catalog.text
             FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indisvalid
  AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indrelid, i.indisprimary DESC, x.relname";

const TRIGGERS: &str = "
WITH RECURSIVE rows_of(root, oid) AS (
  SELECT o, o FROM pg_catalog.unnest($1::pg_catalog.oid[]) o
  UNION ALL
  SELECT r.root, c.oid FROM rows_of r
  JOIN pg_catalog.pg_inherits i ON i.inhparent = r.oid
  JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition)
SELECT r.root, pg_catalog.bool_or(g.tgenabled IN ('O', 'A') AND NOT g.tgisinternal),
       pg_catalog.bool_or(g.tgenabled IN ('R', 'A') AND NOT g.tgisinternal),
       pg_catalog.bool_or(k.oid IS NOT NULL)
FROM rows_of r
JOIN pg_catalog.pg_trigger g ON g.tgrelid = r.oid
LEFT JOIN pg_catalog.pg_constraint k ON k.oid = g.tgconstraint AND k.contype = 'f' AND k.confrelid = r.oid
GROUP BY r.root";

/// Describes the tables of these names; those that do not exist are left out.
///
/// # Errors
/// When a query fails.
pub async fn fetch_tables(
    client: &Client,
    names: &[QualifiedName],
) -> Result<Vec<Table>, CatalogError> {
    let schemas: Vec<&str> = names.iter().map(|n| n.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|n| n.name.as_str()).collect();
    let rows = client
        .query(TABLES, &[&schemas, &tables])
        .await
        .map_err(CatalogError::reading("tables"))?;
    let mut tables: Vec<Table> = rows.iter().map(table_of).collect();
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    // Asked at once: each answer takes longer to come than to be found.
    let reading = CatalogError::reading;
    let (columns, keys, triggers) = tokio::try_join!(
        async {
            client
                .query(COLUMNS, &[&oids])
                .await
                .map_err(reading("columns"))
        },
        async {
            client
                .query(UNIQUE_KEYS, &[&oids])
                .await
                .map_err(reading("unique keys"))
        },
        async {
            client
                .query(TRIGGERS, &[&oids])
                .await
                .map_err(reading("triggers"))
        },
    )?;
    let place: HashMap<u32, usize> = oids.iter().enumerate().map(|(i, oid)| (*oid, i)).collect();
    for row in &columns {
        if let Some(table) = place.get(&row.get(0)).and_then(|i| tables.get_mut(*i)) {
            table.columns.push(column_of(row));
        }
    }
    for row in &keys {
        if let Some(table) = place.get(&row.get(0)).and_then(|i| tables.get_mut(*i)) {
            table.unique_keys.push(unique_key_of(row));
        }
    }
    for row in &triggers {
        if let Some(table) = place.get(&row.get(0)).and_then(|i| tables.get_mut(*i)) {
            table.triggers = Triggers {
                ordinary: row.get(1),
                as_replica: row.get(2),
            };
            table.is_referred_to = row.get(3);
        }
    }
    Ok(tables)
}

fn letter(row: &Row, column: usize) -> u8 {
    row.get::<_, i8>(column).cast_unsigned()
}

fn table_of(row: &Row) -> Table {
    Table {
        oid: row.get(0),
        name: QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        kind: match letter(row, 3) {
            b'r' => TableKind::Ordinary,
            b'p' => TableKind::Partitioned,
            _ => TableKind::Other,
        },
        is_unlogged: letter(row, 4) == b'u',
        replica_identity: ReplicaIdentity::from_letter(letter(row, 5))
            .unwrap_or(ReplicaIdentity::Nothing),
        row_security: row.get(6),
        has_rules: row.get(7),
        is_referred_to: false,
        triggers: Triggers::default(),
        columns: Vec::new(),
        unique_keys: Vec::new(),
    }
}

fn column_of(row: &Row) -> TableColumn {
    let identity = match letter(row, 9) {
        b'a' => IdentityKind::Always,
        b'd' => IdentityKind::ByDefault,
        _ => IdentityKind::None,
    };
    let is_generated = letter(row, 8) != 0;
    TableColumn {
        name: row.get(1),
        type_oid: row.get(2),
        base_type: TypeName(QualifiedName::new(
            row.get::<_, String>(3),
            row.get::<_, String>(4),
        )),
        form: type_form_of(row),
        stored_as: row.get(12),
        equality: OperatorName::new(row.get::<_, String>(10), row.get::<_, String>(11)),
        type_modifier: row.get(5),
        not_null: row.get(6),
        has_default: (row.get::<_, bool>(7) && !is_generated) || identity != IdentityKind::None,
        is_generated,
        identity,
    }
}

fn type_form_of(row: &Row) -> TypeForm {
    let kind = |letter: i8| match letter.cast_unsigned() {
        b'b' => TypeKind::Base,
        b'e' => TypeKind::Enum,
        _ => TypeKind::Other,
    };
    let element: Option<u32> = row.get(15);
    TypeForm {
        is_domain: row.get(13),
        kind: kind(row.get(14)),
        element: element.zip(row.get::<_, Option<i8>>(16).map(kind)),
    }
}

fn unique_key_of(row: &Row) -> UniqueKey {
    UniqueKey {
        name: row.get(1),
        is_primary: row.get(2),
        is_replica_identity: row.get(3),
        is_immediate: row.get(4),
        columns: row.get(5),
    }
}

/// The names of PostgreSQL's own types.
///
/// # Errors
/// When the query fails.
pub async fn fetch_builtin_types(client: &Client) -> Result<TypeNames, CatalogError> {
    let sql = "SELECT t.oid, t.typname::pg_catalog.text FROM pg_catalog.pg_type t \
               JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
               WHERE n.nspname = 'pg_catalog' AND t.typtype IN ('b', 'r', 'm')";
    let rows = client.query(sql, &[]).await;
    let rows = rows.map_err(CatalogError::reading("types"))?;
    let name = |row: &Row| QualifiedName::new("pg_catalog", row.get::<_, String>(1));
    Ok(rows
        .iter()
        .map(|row| (row.get(0), TypeName(name(row))))
        .collect())
}

/// Main-fork sizes in bytes by object id, as the snapshot of the session sees the tables, of a partitioned
/// one those of its partitions; 0 for those that are locked even for readers.
///
/// # Errors
/// When the query fails.
pub async fn fetch_sizes(
    client: &Client,
    tables: &[u32],
) -> Result<HashMap<u32, u64>, CatalogError> {
    // The size of a table that somebody has locked would be waited for; it is not worth that.
    let sql = "WITH locked AS MATERIALIZED (SELECT l.relation FROM pg_catalog.pg_locks l \
                 WHERE l.relation IS NOT NULL AND l.granted AND l.mode = 'AccessExclusiveLock'), \
               kept AS (SELECT c.oid AS root, c.oid AS leaf FROM pg_catalog.pg_class c \
                 WHERE c.oid = ANY ($1) AND c.relkind = 'r' \
                 UNION ALL SELECT c.oid, p.relid FROM pg_catalog.pg_class c, pg_catalog.pg_partition_tree(c.oid) p \
                 WHERE c.oid = ANY ($1) AND c.relkind = 'p' AND p.isleaf) \
               SELECT root, pg_catalog.sum(CASE WHEN leaf NOT IN (SELECT relation FROM locked) \
                 THEN pg_catalog.pg_relation_size(leaf) END)::pg_catalog.int8 FROM kept GROUP BY root";
    let rows = client
        .query(sql, &[&tables])
        .await
        .map_err(CatalogError::reading("sizes"))?;
    Ok(rows
        .iter()
        .map(|row| {
            (
                row.get(0),
                row.get::<_, Option<i64>>(1).unwrap_or(0).unsigned_abs(),
            )
        })
        .collect())
}
