//! Every type a column can have, with the values that break replication tools.
//!
//! A [`TypeCase`] is one table `types.NAME (id int PRIMARY KEY, v TYPE)` and, where the type can
//! be one, a keyed table `types.NAME_key (v TYPE PRIMARY KEY, n int)`. Row 0 holds NULL. For each
//! scalar there is an array: empty, with all values, NULLs in two dimensions, odd lower bounds.

#[rustfmt::skip]
mod values;

/// One type and its values, as SQL expressions.
#[derive(Clone, Debug)]
pub struct TypeCase {
    /// The table's name, `t_` and plain enough to stand unquoted.
    pub name: String,
    /// The type as a column definition writes it.
    pub type_sql: String,
    /// Expressions of the type.
    pub values: Vec<String>,
    /// Expressions whose values are too long for an index or for arrays of them.
    pub huge: Vec<String>,
    /// Whether the type can be a primary key.
    pub is_key: bool,
    /// Whether the type has a binary form. An array of one that has none, asked for in
    /// binary, ends the stream with an error of the source.
    pub has_binary: bool,
    /// The first major version that has the type and all of its values.
    pub since: u32,
}

impl TypeCase {
    /// What both sides need.
    pub fn create_sql(&self) -> String {
        let Self { name, type_sql, .. } = self;
        let mut sql = format!("CREATE TABLE types.{name} (id int PRIMARY KEY, v {type_sql});\n");
        if self.is_key {
            sql += &format!("CREATE TABLE types.{name}_key (v {type_sql} PRIMARY KEY, n int);\n");
        }
        sql
    }

    /// Fills the tables on the source.
    pub fn insert_sql(&self) -> String {
        let Self { name, type_sql, .. } = self;
        let mut sql = format!("INSERT INTO types.{name} VALUES (0, NULL);\n");
        for (id, value) in (1..).zip(self.values.iter().chain(&self.huge)) {
            sql += &format!("INSERT INTO types.{name} VALUES ({id}, ({value})::{type_sql});\n");
        }
        if self.is_key {
            // Values that are equal without being the same, such as 1.0 and 1.00, are one key.
            for value in &self.values {
                sql += &format!(
                    "INSERT INTO types.{name}_key VALUES (({value})::{type_sql}, 0) \
                     ON CONFLICT DO NOTHING;\n"
                );
            }
        }
        sql
    }

    /// Moves each value to the row before it, NULL to the last; touches every keyed row, too.
    pub fn update_sql(&self) -> String {
        let Self { name, .. } = self;
        let mut sql = format!(
            "UPDATE types.{name} t SET v = (SELECT o.v FROM types.{name} o WHERE o.id = t.id + 1);\n"
        );
        if self.is_key {
            sql += &format!("UPDATE types.{name}_key SET n = n + 1;\n");
        }
        sql
    }

    /// Deletes the rows with an even id and every keyed row.
    pub fn delete_sql(&self) -> String {
        let Self { name, .. } = self;
        let mut sql = format!("DELETE FROM types.{name} WHERE id % 2 = 0;\n");
        if self.is_key {
            sql += &format!("DELETE FROM types.{name}_key;\n");
        }
        sql
    }

    /// Queries, one for each table, whose rows must be the same on both sides.
    pub fn select_sql(&self) -> Vec<String> {
        let Self { name, .. } = self;
        let mut queries = vec![format!("SELECT id, v FROM types.{name}")];
        if self.is_key {
            queries.push(format!("SELECT v, n FROM types.{name}_key"));
        }
        queries
    }

    /// Whether the daemon takes values of the type in binary: their bytes hold no object ids of the
    /// source's, and mean the same to every server.
    pub fn travels_binary(&self) -> bool {
        const AS_TEXT: [&str; 17] = [
            "t_few",
            "t_tsquery",
            "t_jsonpath",
            "t_reg",
            "t_tid",
            "t_xid",
            "t_cid",
            "t_int2vector",
            "t_oidvector",
            "t_refcursor",
            "t_aclitem",
            "t_txid_snapshot",
            "t_pg_snapshot",
            "t_inner_row",
            "t_outer_row",
            "t_float_",
            "t_text_range",
        ];
        // An array of a domain is one of the domain's object id.
        const DOMAINS: [&str; 3] = ["t_positive_array", "t_tiny_array", "t_few_array"];
        let begins = |name: &&str| {
            let type_name = self.name.trim_end_matches("_array");
            type_name == *name || (type_name.starts_with(name) && name.ends_with(['_', 'g']))
        };
        !AS_TEXT.iter().any(begins) && !DOMAINS.contains(&self.name.as_str())
    }

    /// The same type as an array.
    fn array(&self) -> Self {
        let Self {
            name,
            type_sql,
            values,
            ..
        } = self;
        let all = values.join(&format!(")::{type_sql}, ("));
        let first = format!("({})::{type_sql}", values[0]);
        let last = format!("({})::{type_sql}", values[values.len() - 1]);
        Self {
            name: format!("{name}_array"),
            type_sql: format!("{type_sql}[]"),
            values: vec![
                "'{}'".to_owned(),
                format!("ARRAY[({all})::{type_sql}]"),
                format!("ARRAY[NULL::{type_sql}]"),
                format!("ARRAY[[{first}, NULL], [NULL, {last}]]"),
                format!("array_fill({first}, ARRAY[2], ARRAY[0])"),
                format!("array_fill({last}, ARRAY[2, 1, 2], ARRAY[-1, 5, 1])"),
            ],
            huge: Vec::new(),
            is_key: false,
            has_binary: self.has_binary,
            since: self.since,
        }
    }
}

/// What stands before the tables on both sides: extensions, user types.
pub const TYPES_SETUP_SQL: &str = r#"
CREATE SCHEMA types;
CREATE EXTENSION hstore SCHEMA types;
CREATE EXTENSION citext SCHEMA types;
CREATE EXTENSION ltree SCHEMA types;
CREATE TYPE types.mood AS ENUM ('sad', 'it''s "ok"', '', 'with, comma', '{}', 'NULL',
    'sixty-three bytes: 0123456789012345678901234567890123456789abc');
CREATE DOMAIN types.positive AS numeric(9, 2) CHECK (VALUE > 0);
CREATE DOMAIN types.tiny AS types.positive CHECK (VALUE < 10);
CREATE DOMAIN types.few AS int[] CHECK (cardinality(VALUE) < 4);
CREATE TYPE types.inner_row AS (a int, b text);
CREATE TYPE types.outer_row AS ("odd ""name" types.inner_row, list types.inner_row[], m types.mood);
CREATE TYPE types.float_range AS RANGE (subtype = float8);
CREATE TYPE types.text_range AS RANGE (subtype = text, collation = "C");
"#;

/// Every case that servers of this major version and newer have.
pub fn type_cases(major: u32) -> Vec<TypeCase> {
    let mut cases = Vec::new();
    cases.extend(values::numbers());
    cases.extend(values::texts());
    cases.extend(values::times());
    cases.extend(values::networks_and_bits());
    cases.extend(values::documents());
    cases.extend(values::geometry());
    cases.extend(values::ranges());
    cases.extend(values::system_types());
    cases.extend(values::user_types());
    cases.retain(|case| case.since <= major);
    let arrays: Vec<_> = cases.iter().map(TypeCase::array).collect();
    cases.extend(arrays);
    cases
}

/// Text, then whether it can be a key, then literals: each is quoted here.
fn case(name: &str, type_sql: &str, is_key: bool, literals: &[&str]) -> TypeCase {
    let quoted = |literal: &&str| format!("'{}'", literal.replace('\'', "''"));
    TypeCase {
        name: format!("t_{name}"),
        type_sql: type_sql.to_owned(),
        values: literals.iter().map(quoted).collect(),
        huge: Vec::new(),
        is_key,
        has_binary: true,
        since: 14,
    }
}

impl TypeCase {
    fn huge(mut self, expressions: &[&str]) -> Self {
        self.huge
            .extend(expressions.iter().map(|&expression| expression.to_owned()));
        self
    }

    fn without_binary(mut self) -> Self {
        self.has_binary = false;
        self
    }

    fn since(mut self, major: u32) -> Self {
        self.since = major;
        self
    }
}
