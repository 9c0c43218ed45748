//! K: names, and the bytes of text.

use super::ground::{Ground, each, same};
use super::runner::{Case, case};
use crate::support::{Daemon, Scenario, run_verb, verb};

pub const CASES: &[Case] = &[
    case!(k1_names_that_break_tools, Crossing),
    case!(k2_names_that_differ_in_case_only),
    case!(k6_from_latin1_to_utf8_and_back),
    case!(k7_from_sql_ascii),
    case!(k8_from_euc_jp),
    case!(k9_a_character_that_the_replica_lacks),
    case!(k10_other_collations),
];

const T: &str = "CREATE TABLE t (k text PRIMARY KEY, v text, vs text[])";

/// Databases of these encodings, `t` on both, its rows on the source, and a running pipeline.
async fn running_encoded<'a>(
    g: Ground<'a>,
    (source, replica): (&str, &str),
    rows: &str,
) -> (Scenario<'a>, Daemon) {
    let s = g.encoded(source, replica).await;
    s.on_both(T).await;
    s.on_source(rows).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    (s, daemon)
}

/// What `scenarios/names.rs` does with many names, on each version with the worst.
async fn k1_names_that_break_tools(g: Ground<'_>) {
    let (schema, table, key, value) = (
        "\"%s \"\"we'ird\n\\\"",
        format!("\"{}x\"", "👩".repeat(15) + "ä"),
        "\"SELECT\"",
        "\"a.b {}$1\"",
    );
    let name = format!("{schema}.{table}");
    g.follows(
        &format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {name} ({key} int PRIMARY KEY, {value} text)"
        ),
        &[
            &format!("INSERT INTO {name} SELECT g, 'v' FROM generate_series(1, 9) g"),
            &format!("UPDATE {name} SET {value} = 'new' WHERE {key} < 4"),
            &format!("UPDATE {name} SET {key} = {key} + 10 WHERE {key} = 9"),
            &format!(
                "ALTER TABLE {name} REPLICA IDENTITY FULL; DELETE FROM {name} WHERE {key} = 2"
            ),
            &format!("TRUNCATE {name}"),
        ],
    )
    .await;
}

async fn k2_names_that_differ_in_case_only(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text, \"V\" text, \"ID\" int);
         CREATE TABLE \"T\" (id int, v text, \"V\" text, \"ID\" int PRIMARY KEY);
         CREATE SCHEMA \"Public\"; CREATE TABLE \"Public\".t (\"Id\" int PRIMARY KEY);
         CREATE TYPE mood AS ENUM ('a'); CREATE TYPE \"Mood\" AS ENUM ('A');
         CREATE TABLE moods (a mood PRIMARY KEY, b \"Mood\")";
    g.follows(
        both,
        &[
            "INSERT INTO t VALUES (1, 'lower', 'UPPER', 10); INSERT INTO \"T\" VALUES (1, 'lower', 'UPPER', 10);
             INSERT INTO \"Public\".t VALUES (5); INSERT INTO moods VALUES ('a', 'A')",
            "UPDATE t SET v = 'x', \"ID\" = 11; UPDATE \"T\" SET \"V\" = 'X', id = 2",
            "UPDATE t SET id = 3; UPDATE \"T\" SET \"ID\" = 4; UPDATE moods SET b = NULL",
            "DELETE FROM t; TRUNCATE \"T\"; DELETE FROM moods",
        ],
    )
    .await;
}

/// Both servers write UTF8 for us, whatever they keep.
async fn k6_from_latin1_to_utf8_and_back(g: Ground<'_>) {
    for (source, replica) in [("LATIN1", "UTF8"), ("UTF8", "LATIN1")] {
        let s = g.encoded(source, replica).await;
        s.on_both("CREATE TABLE \"größe\" (\"é\" text PRIMARY KEY, v text); CREATE TYPE \"ü\" AS ENUM ('ß')")
            .await;
        s.on_both("CREATE TABLE e (v \"ü\" PRIMARY KEY)").await;
        s.on_both(T).await;
        s.on_source("INSERT INTO t VALUES ('é', 'copied ß', '{ä,NULL}')")
            .await;
        s.publish_all().await;
        let mut daemon = s.start("").await;
        each(
            &s,
            &daemon,
            &[
                "INSERT INTO t VALUES ('ÿ', 'streamed ÷', '{\"ü, ö\"}'); INSERT INTO \"größe\" VALUES ('¡', '¿'); INSERT INTO e VALUES ('ß')",
                "UPDATE t SET v = v || 'Ä' WHERE k = 'é'; UPDATE \"größe\" SET \"é\" = 'Ð'",
                "DELETE FROM t WHERE k = 'ÿ'; DELETE FROM e; INSERT INTO e VALUES ('ß')",
            ],
        )
        .await;
        assert!(daemon.terminate().success());
        let (code, said) = verb(&s, "", &["verify"]);
        assert_eq!(code, Some(0), "{said}");
        g.clear(s).await;
    }
}

/// Bytes that are UTF8 go through. Others cannot be sent, and no more than that is said of them.
async fn k7_from_sql_ascii(g: Ground<'_>) {
    let rows = "INSERT INTO t VALUES ('key', 'grüße 👩', '{ä}')";
    let (s, mut daemon) = running_encoded(g, ("SQL_ASCII", "UTF8"), rows).await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES ('ключ', 'streamed', NULL)",
            "UPDATE t SET v = 'é' WHERE k = 'ключ'",
        ],
    )
    .await;
    // A lone byte of LATIN1, by way of bytea.
    s.on_source("INSERT INTO t VALUES ('secret', convert_from('\\x736563726574e4'::bytea, 'SQL_ASCII'), NULL)")
        .await;
    let said = s.until_failed(&mut daemon, &["22021", "UTF8"]).await;
    assert!(!said.contains("secret") && !said.contains("0xe4"), "{said}");
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "2");
    drop(daemon);
    // The copy meets it, too, and knows where.
    let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
    assert!(torn_down.status.success(), "{torn_down:?}");
    s.on_replica("TRUNCATE t").await;
    let said = s.refused("").await;
    assert!(
        said.contains("public.t") && said.contains("22021"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
    s.on_source("DELETE FROM t WHERE k = 'secret'").await;
    let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
    assert!(torn_down.status.success(), "{torn_down:?}");
    let daemon = s.start("[copy]\nexisting_rows = \"merge\"").await;
    same(&s, &daemon).await;
}

async fn k8_from_euc_jp(g: Ground<'_>) {
    let rows = "INSERT INTO t VALUES ('鍵', 'コピー', '{日本}')";
    let (s, daemon) = running_encoded(g, ("EUC_JP", "UTF8"), rows).await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES ('表', '～', '{\"\\\\\"}')",
            "UPDATE t SET k = '予定' WHERE k = '表'",
            "DELETE FROM t WHERE k = '鍵'",
        ],
    )
    .await;
}

async fn k9_a_character_that_the_replica_lacks(g: Ground<'_>) {
    let (s, mut daemon) = running_encoded(g, ("UTF8", "LATIN1"), "").await;
    each(&s, &daemon, &["INSERT INTO t VALUES ('k', 'é', NULL)"]).await;
    s.on_source("BEGIN; INSERT INTO t VALUES ('before', 'x', NULL); INSERT INTO t VALUES ('secret', '5 €', NULL); COMMIT")
        .await;
    let said = s
        .until_failed(
            &mut daemon,
            &[
                "public.t",
                "does not exist in the database's encoding",
                "22P05",
            ],
        )
        .await;
    assert!(!said.contains("secret") && !said.contains('€'), "{said}");
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "1");
}

/// Rows are found by equality alone, never by their order.
async fn k10_other_collations(g: Ground<'_>) {
    let t = |collation: &str| {
        format!(
            "CREATE TABLE t (k text COLLATE {collation} PRIMARY KEY, n int);
             CREATE TABLE f (k text COLLATE {collation}, n int)"
        )
    };
    let source = t("\"C\"")
        + "; ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO t VALUES ('a', 1), ('B', 2), ('-b', 3)";
    let replica = t("ucs_basic") + "; ALTER TABLE t ALTER k TYPE text COLLATE \"default\"";
    let (s, daemon) = g.running_unlike(&source, &replica).await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t SELECT chr(g), g FROM generate_series(192, 260) g; INSERT INTO f SELECT * FROM t",
            "UPDATE t SET n = n + 1 WHERE k < 'z'; UPDATE f SET n = n + 1 WHERE k > 'z'",
            "UPDATE t SET k = k || k WHERE n % 3 = 0; DELETE FROM f WHERE n % 2 = 0",
            "DELETE FROM t WHERE n % 5 = 0",
        ],
    )
    .await;
}
