//! Names, and the one place where names and literals are quoted for SQL.
//!
//! Every name comes from somebody else's catalogue or stream and is untrusted:
//! CVE-2026-6638 and CVE-2026-6476 were names written into SQL unquoted.

use std::fmt;

/// An identifier, always quoted: `leads` becomes `"leads"`, `a"b` becomes `"a""b"`.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// A string literal, safe whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    // escape_literal puts a space before E'' so that it may follow a keyword.
    postgres_protocol::escape::escape_literal(text)
        .trim_start()
        .to_owned()
}

/// A table's name with its schema. `Display` is for people; SQL takes [`quoted`](Self::quoted).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct QualifiedName {
    /// The schema, as the catalogue spells it.
    pub schema: String,
    /// The name, as the catalogue spells it.
    pub name: String,
}

impl QualifiedName {
    /// A name in a schema, both as the catalogue spells them.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// `"schema"."name"`, ready for SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A type's name with its schema; the same shape as a table's, kept apart by type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TypeName(pub QualifiedName);

impl TypeName {
    /// `"schema"."type"`, without a modifier: quoted, `"bit"` does not become `bit(1)`.
    #[must_use]
    pub fn quoted(&self) -> String {
        self.0.quoted()
    }

    /// Whether the type is PostgreSQL's own and so means the same on every server.
    #[must_use]
    pub fn is_builtin(&self) -> bool {
        self.0.schema == "pg_catalog"
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_builtin() {
            f.write_str(&self.0.name)
        } else {
            self.0.fmt(f)
        }
    }
}

/// An operator with its schema.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OperatorName(QualifiedName);

impl OperatorName {
    /// An operator that a catalogue knows. Its name is made of symbols only, as PostgreSQL's
    /// lexer wants it, and so cannot be quoted.
    pub fn new(schema: impl Into<String>, symbols: impl Into<String>) -> Self {
        Self(QualifiedName::new(schema, symbols))
    }

    /// `=` as PostgreSQL's own types have it.
    #[must_use]
    pub fn builtin_equality() -> Self {
        Self::new("pg_catalog", "=")
    }

    /// `=`, or `OPERATOR("schema".=)` when it has to be found outside `pg_catalog`.
    #[must_use]
    pub fn written(&self) -> String {
        if self.0.schema == "pg_catalog" {
            self.0.name.clone()
        } else {
            format!("OPERATOR({}.{})", quote_ident(&self.0.schema), self.0.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_names() {
        assert_eq!(quote_ident("a\"b';--"), "\"a\"\"b';--\"");
        assert_eq!(
            QualifiedName::new("s.x", "t\n%").quoted(),
            "\"s.x\".\"t\n%\""
        );
        assert_eq!(OperatorName::builtin_equality().written(), "=");
        assert_eq!(
            OperatorName::new("ex\"t", "=").written(),
            "OPERATOR(\"ex\"\"t\".=)"
        );
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
