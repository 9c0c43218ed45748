//! B: values that the source did not send because they have not changed.

use super::ground::{Ground, at_once, each};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(b1_unsent_values_are_kept, Crossing),
    case!(b5_unsent_values_of_every_kind),
    case!(b8_a_filter_reads_an_unsent_value, Ends, since 15),
];

/// Default and full identity, alone and merged with the changes before them.
async fn b1_unsent_values_are_kept(g: Ground<'_>) {
    let columns = "(id int PRIMARY KEY, n int, big text)";
    let (s, mut daemon) = g
        .running(
            &format!("CREATE TABLE t {columns}; CREATE TABLE f {columns}"),
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER big SET STORAGE EXTERNAL;
             ALTER TABLE f REPLICA IDENTITY FULL",
        )
        .await;
    let statements = [
        "INSERT INTO t SELECT g, 0, g || repeat('b', 5000) FROM generate_series(1, 6) g; INSERT INTO f SELECT * FROM t",
        "UPDATE t SET n = 1 WHERE id < 4; UPDATE f SET n = 1 WHERE id < 4",
        "UPDATE t SET id = id + 10, n = 2 WHERE id > 4; UPDATE f SET id = id + 10, n = 2 WHERE id > 4",
        "BEGIN; UPDATE t SET big = repeat('c', 5000) WHERE id = 1; UPDATE t SET n = 3 WHERE id = 1;
         UPDATE f SET big = NULL WHERE id = 1; UPDATE f SET n = 3 WHERE id = 1; COMMIT",
        "BEGIN; INSERT INTO t VALUES (30, 0, repeat('d', 5000)); UPDATE t SET n = 4 WHERE id = 30;
         UPDATE t SET id = 31 WHERE id = 30; UPDATE t SET n = 5 WHERE id = 31; COMMIT",
        "DELETE FROM t WHERE id = 2; DELETE FROM f WHERE id = 15",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("TRUNCATE t, f").await;
    at_once(&s, &mut daemon, &statements).await;
}

/// Each type that can be long enough to be put out of line.
async fn b5_unsent_values_of_every_kind(g: Ground<'_>) {
    let values = [
        ("text", "repeat('ä', 5000)"),
        ("varchar", "repeat('v', 5000)"),
        ("char(5000)", "'c'"),
        ("bytea", "decode(repeat('00ff5c27', 2000), 'hex')"),
        ("numeric", "repeat('7', 20000)::numeric"),
        ("bit varying", "repeat('10', 20000)::varbit"),
        (
            "json",
            "(SELECT json_agg(g) FROM generate_series(1, 3000) g)",
        ),
        (
            "jsonb",
            "(SELECT jsonb_object_agg(g, g) FROM generate_series(1, 1000) g)",
        ),
        (
            "xml",
            "xmlparse(content '<a>' || repeat('x', 5000) || '</a>')",
        ),
        (
            "tsvector",
            "(SELECT string_agg('w' || g, ' ') FROM generate_series(1, 2000) g)::tsvector",
        ),
        ("path", "('[' || repeat('(1,2),', 999) || '(3,4)]')::path"),
        (
            "hstore",
            "(SELECT hstore(array_agg(g::text), array_agg(g::text)) FROM generate_series(1, 1000) g)",
        ),
        (
            "int[]",
            "(SELECT array_agg(g) FROM generate_series(1, 3000) g)",
        ),
        (
            "bigint[]",
            "(SELECT array_agg(g::bigint) FROM generate_series(1, 3000) g)",
        ),
        (
            "text[]",
            "(SELECT array_agg('t' || g) FROM generate_series(1, 3000) g)",
        ),
        (
            "bytea[]",
            "(SELECT array_agg(decode('00ff', 'hex')) FROM generate_series(1, 3000) g)",
        ),
        (
            "date[]",
            "(SELECT array_agg(DATE '2024-02-29' + g) FROM generate_series(1, 3000) g)",
        ),
        (
            "uuid[]",
            "(SELECT array_agg(md5(g::text)::uuid) FROM generate_series(1, 1000) g)",
        ),
        (
            "jsonb[]",
            "(SELECT array_agg(to_jsonb(g)) FROM generate_series(1, 1000) g)",
        ),
        ("row_type", "ROW(1, repeat('r', 5000))::row_type"),
        (
            "int4multirange",
            "(SELECT range_agg(int4range(2 * g, 2 * g + 1)) FROM generate_series(1, 2000) g)",
        ),
    ];
    let mut both = "CREATE EXTENSION hstore; CREATE TYPE row_type AS (a int, b text);
                    CREATE TABLE t (id int PRIMARY KEY, n int"
        .to_owned();
    let mut external = String::new();
    let mut insert = "INSERT INTO t SELECT g, 0".to_owned();
    for (number, (type_name, value)) in values.iter().enumerate() {
        both += &format!(", c{number} {type_name}");
        external += &format!("ALTER TABLE t ALTER c{number} SET STORAGE EXTERNAL;");
        insert += &format!(", {value}");
    }
    both += ")";
    insert += " FROM generate_series(1, 3) g";
    let (s, mut daemon) = g.running(&both, &external).await;
    let statements = [
        insert.as_str(),
        "UPDATE t SET n = n + 1",
        "UPDATE t SET id = id + 10 WHERE id = 2",
        "UPDATE t SET c0 = 'short', c12 = NULL WHERE id = 3",
        "UPDATE t SET n = n + 1",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("DELETE FROM t; ALTER TABLE t REPLICA IDENTITY FULL")
        .await;
    at_once(&s, &mut daemon, &statements).await;
    each(&s, &daemon, &["DELETE FROM t WHERE id = 1"]).await;
}

/// The publication's own filter; the source has the value.
async fn b8_a_filter_reads_an_unsent_value(g: Ground<'_>) {
    let s = g.scenario().await;
    let table = "CREATE TABLE t (id int, big text, n int, PRIMARY KEY (id, big))";
    s.on_both(table).await;
    s.on_source(
        "ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t SELECT g, CASE g % 2 WHEN 0 THEN repeat('in', 1200) ELSE 'out' END, 0
         FROM generate_series(1, 8) g",
    )
    .await;
    s.publish("FOR TABLE t WHERE (big LIKE 'in%')").await;
    let daemon = s.start("").await;
    let same = ("SELECT * FROM t WHERE big LIKE 'in%'", "SELECT * FROM t");
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "UPDATE t SET n = n + 1",
        "UPDATE t SET id = id + 10, n = 5 WHERE id < 5",
        "UPDATE t SET big = repeat('in', 1300) WHERE id = 5",
        "UPDATE t SET big = 'out', n = 9 WHERE id = 6",
        "DELETE FROM t WHERE id IN (8, 11)",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}
