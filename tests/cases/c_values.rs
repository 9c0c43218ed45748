//! C: values, as text that means the same on both sides. The types one by one are in
//! `scenarios/types.rs`.

use super::ground::{Ground, each, fails_until};
use super::runner::{Case, case};
use crate::support::run_verb;

pub const CASES: &[Case] = &[
    case!(c3_settings_that_change_how_values_read),
    case!(c4_a_domain_that_looks_things_up),
    case!(c5_text_that_looks_like_something_else, Crossing),
];

/// Set for both databases, so that every session begins with them; then all sessions are cut.
async fn c3_settings_that_change_how_values_read(g: Ground<'_>) {
    let table = "CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, i interval,
                     f float8, r real, b bytea, m money, x xml, c regclass, w timetz, ds date[], fs float4[])";
    let (s, daemon) = g.running(table, "").await;
    let insert = "INSERT INTO t SELECT coalesce(max(id), 0) + 1, '2024-02-03', '2024-02-03 04:05:06.789',
         '2024-02-03 04:05:06.789+05:45', '-1 year 2 mons -3 days 04:05:06.7', 0.1 + 0.2, 1.1e-38,
         '\\x00ff5c27', 1234.56::money, xmlparse(content 'a<b/>'), 'pg_catalog.pg_class', '23:59:59.9-12:34:56',
         '{2024-12-31,infinity}', '{0.1,NaN}' FROM t";
    each(&s, &daemon, &[insert]).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for settings in [
        &[
            ["DateStyle", "'SQL, DMY'"],
            ["IntervalStyle", "'sql_standard'"],
            ["TimeZone", "'Asia/Kathmandu'"],
            ["extra_float_digits", "-15"],
            ["bytea_output", "'escape'"],
            ["xmloption", "'document'"],
            ["search_path", "'pg_temp, information_schema'"],
        ][..],
        &[
            ["DateStyle", "'German'"],
            ["IntervalStyle", "'iso_8601'"],
            ["client_encoding", "'LATIN1'"],
            ["standard_conforming_strings", "off"],
            ["array_nulls", "off"],
            ["transform_null_equals", "on"],
        ],
    ] {
        for [name, value] in settings {
            s.on_both(&format!("ALTER DATABASE {} SET {name} = {value}", s.name))
                .await;
        }
        s.on_both(cut).await;
        each(
            &s,
            &daemon,
            &[
                insert,
                "UPDATE t SET ts = ts + i, tz = tz + i, f = f / 3 WHERE id % 2 = 0",
            ],
        )
        .await;
    }
    // The first copy under all of them.
    drop(daemon);
    let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
    assert!(torn_down.status.success(), "{torn_down:?}");
    s.on_replica("TRUNCATE t").await;
    let daemon = s.start("").await;
    each(&s, &daemon, &["DELETE FROM t WHERE id < 3"]).await;
}

/// Our search_path is empty: what a type's check calls must find its own way.
async fn c4_a_domain_that_looks_things_up(g: Ground<'_>) {
    let both = "CREATE TABLE known (code text PRIMARY KEY);
         CREATE FUNCTION is_known(c text) RETURNS boolean LANGUAGE sql AS 'SELECT EXISTS (SELECT 1 FROM known WHERE code = c)';
         CREATE DOMAIN code AS text CHECK (is_known(VALUE));
         CREATE TABLE t (id int PRIMARY KEY, c code)";
    let (s, mut daemon) = g.running(both, "").await;
    each(&s, &daemon, &["INSERT INTO known VALUES ('a'), ('b')"]).await;
    fails_until(
        &s,
        &mut daemon,
        (
            "INSERT INTO t VALUES (1, 'a')",
            &["public.t", "known", "search_path"],
            "SELECT * FROM t",
        ),
        "ALTER FUNCTION is_known SET search_path = public",
    )
    .await;
    each(&s, &daemon, &["UPDATE t SET c = 'b'", "DELETE FROM t"]).await;
}

async fn c5_text_that_looks_like_something_else(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text, vs text[], c char(5), n \"char\")";
    g.follows_twice(
        both,
        &[
            r#"INSERT INTO t VALUES (1, '', '{}', '', ''), (2, NULL, NULL, NULL, NULL), (3, 'NULL', '{NULL,"NULL",""}', 'null', 'n'),
               (4, E'\\N', ARRAY[E'\\N', E'\\.', E'\\'], E'\\N', E'\\'), (5, E'\\.', ARRAY[E'{"a"}', E'a,b', E'"'], E'\\.', '.'),
               (6, E'\t\n\r\b\f\v\x01\x7f', ARRAY[E'\n', E'\t', ' '], E'\t', E'\x01'), (7, ' lead and trail ', '{" a "}', ' a ', ' '),
               (8, '{}', '{"{}"}', '{}', '{'), (9, E'👩\u200d👩 \u202e\ufeff\u00a0', ARRAY[repeat('ä', 300000)], 'ä', 'a'),
               (10, repeat('1 MB', 262144), NULL, 'x', 'z')"#,
            "UPDATE t SET v = vs::text, vs = ARRAY[v, v]",
            "UPDATE t SET id = id + 100 WHERE v LIKE '%NULL%'",
            "DELETE FROM t WHERE c = ' a'",
        ],
    )
    .await;
}
