//! The values, by family. Laid out by hand: a type a line, or a few.

use super::{TypeCase, case};

pub(super) fn numbers() -> Vec<TypeCase> {
    vec![
        case("bool", "bool", true, &["t", "f"]),
        case("int2", "int2", true, &["-32768", "-1", "0", "32767"]),
        case("int4", "int4", true, &["-2147483648", "0", "2147483647"]),
        case("int8", "int8", true, &["-9223372036854775808", "0", "9223372036854775807"]),
        case("numeric", "numeric", true, &["0", "-0.000", "1.0", "1.00", "100", "1e-1000", "NaN",
            "Infinity", "-Infinity",
            "-123456789012345678901234567890.000000000000000000000000000001"]).huge(&["repeat('9', 131072)::numeric",
            "('-0.' || repeat('1', 16383))::numeric",
            "(repeat('8', 131072) || '.' || repeat('7', 16383))::numeric"]),
        case("numeric_scaled", "numeric(10,3)", true, &["0", "-9999999.999", "0.1"]),
        case("numeric_rounded", "numeric(3,-2)", true, &["12345", "-99900"]).since(15),
        case("float4", "float4", true, &["NaN", "Infinity", "-Infinity", "-0", "0", "1e-45",
            "3.4028235e38", "0.1", "16777217"]),
        case("float8", "float8", true, &["NaN", "Infinity", "-Infinity", "-0", "0", "4.9e-324",
            "1.7976931348623157e308", "0.1", "0.30000000000000004", "9007199254740993",
            "2.2250738585072011e-308"]),
        case("money", "money", true, &["-92233720368547758.08", "0", "92233720368547758.07"]),
    ]
}

pub(super) fn texts() -> Vec<TypeCase> {
    let hostile = [
        "", " ", "\\N", "\\.", "NULL", "null", "{}", "{a,b}", "a\tb\nc\r\nd\u{b}", "\\",
        "\\\\x41", "'\"`$$", "%s%n", "ä€𝄞👩‍👩‍👧", "\u{feff}bom", "e\u{301}", "(1,2)", "a,b",
        "  both  ", "\u{1}\u{7f}",
    ];
    vec![
        case("text", "text", true, &hostile).huge(&[
            "repeat('long 𝄞', 150000)",
            // Does not compress, so it is stored out of line as it is.
            "(SELECT string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, 30000) i)",
        ]),
        case("varchar", "varchar", true, &hostile),
        case("varchar_3", "varchar(3)", true, &["", "abc", "ä€𝄞", "   "]),
        case("char_5", "char(5)", true, &["", "a", "a    ", "abcde", "ä€𝄞"]),
        case("bpchar", "bpchar", true, &["", "a", "abc  "]),
        case("internal_char", "\"char\"", true, &["", "a", "'", "\\"]),
        case("name", "name", true, &["", "a \"b\"",
            "0123456789012345678901234567890123456789012345678901234567890äb"]),
        case(
            "bytea",
            "bytea",
            true,
            &["", "\\x00", "\\x5c4e", "\\xdeadbeef", "\\x275c22"],
        )
        .huge(&[
            "(SELECT string_agg(set_byte('\\x00', 0, i % 256), '' ORDER BY i) \
              FROM generate_series(0, 1048575) i)",
        ]),
        case("citext", "types.citext", true, &["", "MiXed", "ÄÖ"]),
    ]
}

pub(super) fn times() -> Vec<TypeCase> {
    vec![
        case("date", "date", true, &["infinity", "-infinity", "4714-11-24 BC", "0044-03-15 BC",
            "0001-12-31 BC", "2000-02-29", "5874897-12-31"]),
        case("time", "time", true, &["00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001"]),
        case("time_0", "time(0)", true, &["23:59:59.4", "12:00"]),
        case("timetz", "timetz", true, &["24:00:00+00", "00:00:00+15:59:59", "24:00:00-15:59:59",
            "12:00:00.5+05:45"]),
        case("timestamp", "timestamp", true, &["infinity", "-infinity", "4714-11-24 00:00:00 BC",
            "0044-03-15 12:00:00.000001 BC", "294276-12-31 23:59:59.999999",
            "2000-01-01 00:00:00"]),
        case("timestamptz", "timestamptz", true, &["infinity", "-infinity",
            "4714-11-24 00:00:00+00 BC", "0044-03-15 12:00:00+00:19:32 BC",
            "294276-12-31 23:59:59.999999+00", "2024-10-27 02:30:00+02", "2024-10-27 02:30:00+01",
            "1883-11-18 12:03:58-04:56:02"]),
        case("timestamptz_3", "timestamptz(3)", true, &["2024-01-01 00:00:00.9996+00"]),
        case("interval", "interval", true, &["0", "1 year 2 mons 3 days 04:05:06.789",
            "-1 year -2 mons +3 days -04:05:06.789", "1 mon -1 day", "178000000 years",
            "-178000000 years", "2147483647 days", "2147483647:59:59.999999", "-00:00:00.000001"]),
        case("interval_infinite", "interval", true, &["infinity", "-infinity"]).since(17),
        case("interval_day", "interval day to minute", true, &["3 days 04:05:06"]),
    ]
}

pub(super) fn networks_and_bits() -> Vec<TypeCase> {
    vec![
        case("uuid", "uuid", true, &["00000000-0000-0000-0000-000000000000",
            "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"]),
        case("inet", "inet", true, &["0.0.0.0/0", "192.168.1.5/24", "192.168.1.5", "::/0",
            "fe80::1/64", "::ffff:1.2.3.4"]),
        case("cidr", "cidr", true, &["10", "0.0.0.0/0", "2001:db8::/32", "::1"]),
        case("macaddr", "macaddr", true, &["00:00:00:00:00:00", "ff-ff-ff-ff-ff-ff"]),
        case("macaddr8", "macaddr8", true, &["08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"]),
        case("bit_1", "bit", true, &["0", "1"]),
        case("bit_70", "bit(70)", true,
            &["1010101010101010101010101010101010101010101010101010101010101010101011"]),
        case("varbit", "varbit", true, &["", "1", "101010101", "0000000000"]),
        case("varbit_3", "varbit(3)", true, &["", "111"]),
    ]
}

pub(super) fn documents() -> Vec<TypeCase> {
    let documents = [
        "null", "\"\"", "0", "-0.0", "1.000", "1e3", "{}", "[]",
        " { \"b\" : 1,\n \"a\":[ 1,null,\"\\u00e4\" ] } ", "{\"k\": 1, \"k\": 2}",
        "\"quote \\\" backslash \\\\ slash \\/ \\ud834\\udd1e\"",
        "123456789012345678901234567890.000000000000000000001",
    ];
    let mut json: Vec<&str> = documents.to_vec();
    // Legal as json, refused as jsonb.
    json.push("\"\\u0000\"");
    vec![
        case("json", "json", false,
            &json).huge(&["'[' || repeat('{\"a\": [1, 2]},', 50000) || '0]'"]),
        case("jsonb", "jsonb", true,
            &documents).huge(&["'[' || repeat('{\"a\": [1, 2]},', 50000) || '0]'"]),
        case("jsonpath", "jsonpath", false, &["$",
            "strict $.a[*] ? (@.b > 1 && @.c like_regex \"^x\")", "$.\"it's\""]),
        case("tsvector", "tsvector", true, &["", "a:1A,2B 'it''s':3 'back\\\\slash'", "b a a"]),
        case("tsquery", "tsquery", true, &["", "'it''s' & !b:*AB <3> c", "a | (b & c)"]),
        case("hstore", "types.hstore", true, &["", "a=>1, b=>NULL", "\"q\\\"=>\"=>\"\\\\\"",
            "\"\"=>\"\""]),
        case("ltree", "types.ltree", true, &["", "Top.Science.Astronomy"]),
        case("lquery", "types.lquery", false, &["*.Astro*@%.!a|b{1,2}"]),
    ]
}

pub(super) fn geometry() -> Vec<TypeCase> {
    vec![
        case("point", "point", false, &["(0,0)", "(-0,1e-300)", "(NaN,Infinity)",
            "(-Infinity,1.7976931348623157e308)"]),
        case("line", "line", false, &["{1,-1,0}", "{0,1,-0.1}"]),
        case("lseg", "lseg", false, &["[(0,0),(1,1)]", "[(1,1),(1,1)]"]),
        // An array of boxes is the one that is parted by semicolons.
        case("box", "box", false, &["(1,1),(0,0)", "(NaN,1),(0,-0)"]),
        case("path", "path", false, &["[(0,0),(1,1)]", "((0,0),(1,1),(1,0))"]),
        case("polygon", "polygon", false, &["((0,0))", "((0,0),(1,1),(1,0))"]),
        case("circle", "circle", false, &["<(0,0),0>", "<(1.5,-2),Infinity>"]),
    ]
}

pub(super) fn ranges() -> Vec<TypeCase> {
    vec![
        case("int4range", "int4range", true, &["empty", "(,)", "[1,)", "[1,2]", "(,-2147483648]"]),
        case("int8range", "int8range", true, &["empty",
            "[-9223372036854775808,9223372036854775807)"]),
        case("numrange", "numrange", true, &["[1.00,1.0000]", "[NaN,NaN]", "(,Infinity)", "empty"]),
        case("tsrange", "tsrange", true, &["[-infinity,infinity]", "[0044-03-15 BC,2000-01-01)",
            "empty"]),
        case("tstzrange", "tstzrange", true, &["[-infinity,infinity]", "[2000-01-01 00:00+00,)",
            "empty"]),
        case("daterange", "daterange", true, &["[-infinity,infinity]", "[2000-01-01,2000-01-01]",
            "empty"]),
        case("int4multirange", "int4multirange", true, &["{}", "{(,)}", "{[1,2),[5,)}",
            "{[1,2),[2,3)}"]),
        case("int8multirange", "int8multirange", true, &["{}", "{[1,2),[5,)}"]),
        case("nummultirange", "nummultirange", true, &["{}", "{[1.00,1.0000],(2,)}"]),
        case("tsmultirange", "tsmultirange", true, &["{}",
            "{[2000-01-01,2000-01-02),[2001-01-01,infinity]}"]),
        case("tstzmultirange", "tstzmultirange", true, &["{}",
            "{[2000-01-01 00:00+00,2000-01-02 00:00+00)}"]),
        case("datemultirange", "datemultirange", true, &["{}",
            "{[2000-01-01,2000-01-02),[2001-01-01,)}"]),
        case("float_range", "types.float_range", true, &["empty", "[-0,NaN]",
            "(-Infinity,Infinity)"]),
        case("float_multirange", "types.float_multirange", true, &["{}",
            "{[0.1,0.30000000000000004]}"]),
        case("text_range", "types.text_range", true, &["empty", "[\"\",\"a,b)\"]",
            "[a,\"q\"\"\\\\\")"]),
    ]
}

pub(super) fn system_types() -> Vec<TypeCase> {
    vec![
        case("oid", "oid", true, &["0", "4294967295"]),
        case("xid", "xid", false, &["0", "4294967295"]),
        case("xid8", "xid8", true, &["0", "18446744073709551615"]),
        case("cid", "cid", false, &["0", "4294967295"]),
        case("tid", "tid", true, &["(0,1)", "(4294967295,65535)"]),
        case("pg_lsn", "pg_lsn", true, &["0/0", "FFFFFFFF/FFFFFFFF"]),
        case("pg_snapshot", "pg_snapshot", false, &["10:20:10,14,15", "1:1:"]),
        case("txid_snapshot", "txid_snapshot", false, &["10:20:10,14,15", "1:1:"]),
        case("int2vector", "int2vector", false, &["", "1 -2 3"]),
        case("oidvector", "oidvector", true, &["", "1 4294967295"]),
        case("refcursor", "refcursor", false, &["", "a cursor"]),
        // Has no binary form: comes as text even where binary was asked for.
        case("aclitem", "aclitem", false, &["postgres=arwdDxt/postgres", "=r*/postgres"])
            .without_binary(),
        // Built-in objects only: others need not exist on the replica.
        case("regclass", "regclass", true, &["pg_class", "0"]),
        case("regtype", "regtype", true, &["int4", "timestamptz[]"]),
        case("regproc", "regproc", true, &["now", "-"]),
        case("regprocedure", "regprocedure", true, &["abs(numeric)"]),
        case("regoper", "regoper", true, &["||/"]),
        case("regoperator", "regoperator", true, &["*(int4,int4)"]),
        case("regrole", "regrole", true, &["postgres"]),
        case("regnamespace", "regnamespace", true, &["pg_catalog"]),
        case("regconfig", "regconfig", true, &["simple"]),
        case("regdictionary", "regdictionary", true, &["simple"]),
        case("regcollation", "regcollation", true, &["\"C\"", "\"POSIX\""]),
    ]
}

pub(super) fn user_types() -> Vec<TypeCase> {
    vec![
        case("mood", "types.mood", true, &["sad", "it's \"ok\"", "", "with, comma", "{}", "NULL",
            "sixty-three bytes: 0123456789012345678901234567890123456789abc"]),
        case("positive", "types.positive", true, &["0.01", "9999999.99"]),
        case("tiny", "types.tiny", true, &["0.01", "9.99"]),
        case("few", "types.few", true, &["{}", "{1,NULL,-3}", "[0:1]={1,2}"]),
        case("inner_row", "types.inner_row", true, &["(,)", "(1,\"\")",
            "(-1,\"a,\\\"b\\\\\\\\(\")"]),
        case("outer_row", "types.outer_row", true, &["(,,)",
            "(\"(1,\"\"x y\"\")\",\"{\"\"(2,)\"\",NULL}\",\"with, comma\")"]),
    ]
}
