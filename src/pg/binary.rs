//! Which of PostgreSQL's own types mean the same in binary on every server.
//!
//! Binary values pass from source to replica byte by byte, so a type is listed here only if what
//! its send function writes holds no object ids and no setting of a server, and if every supported
//! major reads what every other one writes (`src/backend/utils/adt`: the types' `…send` and
//! `…recv`). The `reg…` types are object ids, `xml` carries an encoding, `aclitem` has no send
//! function in all majors, `tsqueryrecv` refuses some of what `tsquerysend` writes: they are not
//! listed, and neither are types of the server's inner life. `interval` is, with a caveat.

use super::TypeName;

/// How the values of a stream are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ValueFormat {
    /// By the types' output functions.
    #[default]
    Text,
    /// By the types' send functions.
    Binary,
}

/// Name of the type, and the object id of the array of it (`pg_type.dat`; these never change).
const PORTABLE: [(&str, u32); 52] = [
    ("bool", 1000),
    ("bytea", 1001),
    ("char", 1002),
    ("name", 1003),
    ("int2", 1005),
    ("int4", 1007),
    ("text", 1009),
    ("bpchar", 1014),
    ("varchar", 1015),
    ("int8", 1016),
    ("point", 1017),
    ("lseg", 1018),
    ("path", 1019),
    ("box", 1020),
    ("float4", 1021),
    ("float8", 1022),
    ("polygon", 1027),
    ("oid", 1028),
    ("json", 199),
    ("line", 629),
    ("cidr", 651),
    ("circle", 719),
    ("macaddr8", 775),
    ("money", 791),
    ("macaddr", 1040),
    ("inet", 1041),
    ("timestamp", 1115),
    ("date", 1182),
    ("time", 1183),
    ("timestamptz", 1185),
    ("interval", 1187),
    ("numeric", 1231),
    ("timetz", 1270),
    ("bit", 1561),
    ("varbit", 1563),
    ("uuid", 2951),
    ("pg_lsn", 3221),
    ("tsvector", 3643),
    ("jsonb", 3807),
    ("int4range", 3905),
    ("numrange", 3907),
    ("tsrange", 3909),
    ("tstzrange", 3911),
    ("daterange", 3913),
    ("int8range", 3927),
    ("int4multirange", 6150),
    ("nummultirange", 6151),
    ("tsmultirange", 6152),
    ("tstzmultirange", 6153),
    ("datemultirange", 6155),
    ("int8multirange", 6157),
    ("xid8", 271),
];

impl TypeName {
    /// Whether the type is PostgreSQL's own and its binary form means the same on every server;
    /// arrays of such types are such types.
    #[must_use]
    pub fn is_portable(&self) -> bool {
        let element = self.0.name.strip_prefix('_').unwrap_or(&self.0.name);
        self.is_builtin() && PORTABLE.iter().any(|(name, _)| *name == element)
    }

    /// An infinite interval, which there is from 17 on, is read as a length by servers before it.
    #[must_use]
    pub fn is_interval(&self) -> bool {
        self.is_builtin() && matches!(self.0.name.as_str(), "interval" | "_interval")
    }

    /// The object id of the array type of a [portable](Self::is_portable) type; `None` for arrays,
    /// of which there are no arrays.
    #[must_use]
    pub fn portable_array_oid(&self) -> Option<u32> {
        let known = PORTABLE.iter().find(|(name, _)| *name == self.0.name);
        known.filter(|_| self.is_builtin()).map(|(_, oid)| *oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;
    use tokio_postgres::types::{Kind, Type};

    fn builtin(name: &str) -> TypeName {
        TypeName(QualifiedName::new("pg_catalog", name))
    }

    #[test]
    fn object_ids_are_those_of_the_arrays() {
        for (name, oid) in PORTABLE {
            let array = Type::from_oid(oid).unwrap();
            let Kind::Array(element) = array.kind() else {
                unreachable!("{name} has no array {oid}");
            };
            assert_eq!(element.name(), name);
        }
    }

    #[test]
    fn what_holds_object_ids_or_settings_is_not_portable() {
        assert!(builtin("int8").is_portable());
        for array in ["_int8", "_uuid", "_tstzrange"] {
            assert!(builtin(array).is_portable(), "{array}");
        }
        assert_eq!(builtin("_int8").portable_array_oid(), None);
        for name in [
            "regclass", "xml", "aclitem", "record", "_regtype", "tsquery",
        ] {
            assert!(!builtin(name).is_portable(), "{name}");
        }
        let other = TypeName(QualifiedName::new("public", "int8"));
        assert!(!other.is_portable() && other.portable_array_oid().is_none());
    }
}
