//! Mapping: the replica's own names, columns, types and rows.

use rustix::process::Signal;

use crate::support::{Daemon, Family, Scenario, row};

static FAMILY: Family = Family::const_new();

async fn scenario(name: &str) -> Scenario<'static> {
    Scenario::new(&FAMILY, name).await
}

#[tokio::test]
async fn names_by_rule_and_by_pattern() {
    let s = scenario("names").await;
    s.on_source(
        "CREATE SCHEMA app_eu; CREATE SCHEMA app_us; CREATE SCHEMA other;
         CREATE TABLE app_eu.t_lead (id int PRIMARY KEY, email text, secret text, project int);
         CREATE TABLE app_us.t_lead (id int PRIMARY KEY, email text, secret text);
         CREATE TABLE app_us.t_note (id int PRIMARY KEY, text text);
         CREATE TABLE other.left_alone (id int PRIMARY KEY, v text);",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA crm;
         CREATE TABLE crm.contact (id int PRIMARY KEY, mail text, project_id int, kind text);
         CREATE SCHEMA crm_us; CREATE SCHEMA crm_eu;
         CREATE TABLE crm_us.lead_of (id int PRIMARY KEY, email text);
         CREATE TABLE crm_us.note_of (id int PRIMARY KEY, text text);",
    )
    .await;
    s.publish_all().await;
    s.on_source("INSERT INTO app_eu.t_lead VALUES (1, 'A@x', 's', 7), (2, 'b@x', 's', NULL)")
        .await;
    let daemon = s
        .start(
            r#"
            [[tables]]
            source = "app_*.t_*"
            replica = "crm_*.*_of"
            exclude = ["secret"]
            [[tables]]
            source = "app_eu.t_lead"
            replica = "crm.contact"
            columns = { project = "project_id" }
            exclude = ["secret", "email"]
            set = { kind = "'lead'", mail = "lower(email)" }"#,
        )
        .await;
    for sql in [
        "INSERT INTO app_eu.t_lead VALUES (3, 'C@x', 's', 9), (4, NULL, 's', 9)",
        "INSERT INTO app_us.t_lead VALUES (1, 'US', 's'), (2, 'us', 's')",
        "INSERT INTO app_us.t_note VALUES (1, 'n')",
        "INSERT INTO other.left_alone VALUES (1, 'x')",
        "UPDATE app_eu.t_lead SET email = 'NEW@X', secret = 't' WHERE id = 2",
        "UPDATE app_us.t_lead SET id = id + 10",
        "DELETE FROM app_eu.t_lead WHERE id = 1",
        "TRUNCATE other.left_alone, app_us.t_note",
    ] {
        s.on_source(sql).await;
    }
    s.in_step_mapped(
        &daemon,
        &[
            (
                "SELECT id, lower(email), project, 'lead' FROM app_eu.t_lead",
                "SELECT id, mail, project_id, kind FROM crm.contact",
            ),
            (
                "SELECT id, email FROM app_us.t_lead",
                "SELECT * FROM crm_us.lead_of",
            ),
            (
                "SELECT * FROM app_us.t_note",
                "SELECT * FROM crm_us.note_of",
            ),
        ],
    )
    .await;
}

const DOCUMENT: &str = "CREATE TABLE doc (id int PRIMARY KEY, title text, body text, secret text);
     ALTER TABLE doc ALTER body SET STORAGE EXTERNAL, ALTER secret SET STORAGE EXTERNAL;
     INSERT INTO doc SELECT g, 't' || g, g || repeat('b', 9000), g || repeat('s', 9000)
     FROM generate_series(1, 8) g;";

#[tokio::test]
async fn expressions_read_what_is_excluded_and_what_was_not_sent() {
    let s = scenario("expressions").await;
    s.on_source(DOCUMENT).await;
    s.on_replica(
        "CREATE TABLE doc (id int PRIMARY KEY, title text, body text, teaser text, label text,
                           fingerprint text)",
    )
    .await;
    s.publish_all().await;
    let daemon = s
        .start(
            r#"
            [[tables]]
            source = "public.doc"
            exclude = ["secret"]
            [tables.set]
            teaser = "upper(left(body, 5))"
            label = "title || ':' || left(body, 3) -- kept, so it can be read there"
            fingerprint = "md5(secret)""#,
        )
        .await;
    let same = (
        "SELECT id, title, body, upper(left(body, 5)), title || ':' || left(body, 3), md5(secret) FROM doc",
        "SELECT id, title, body, teaser, label, fingerprint FROM doc",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "UPDATE doc SET title = 'changed' WHERE id <= 2",
        "UPDATE doc SET body = 'short' WHERE id = 3",
        "UPDATE doc SET secret = 'new' || repeat('n', 9000) WHERE id = 4",
        "UPDATE doc SET body = NULL, secret = NULL WHERE id = 5",
        "UPDATE doc SET id = id + 100 WHERE id = 6",
        "BEGIN; UPDATE doc SET body = repeat('c', 9000) WHERE id = 7; \
         UPDATE doc SET title = 'after' WHERE id = 7; COMMIT",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}

#[tokio::test]
async fn an_expression_without_its_input_stops_and_replica_identity_full_brings_it() {
    let s = scenario("unsent").await;
    s.on_source(DOCUMENT).await;
    s.on_replica("CREATE TABLE doc (id int PRIMARY KEY, wide text)")
        .await;
    s.publish_all().await;
    let rule = r#"
        [[tables]]
        source = "public.doc"
        exclude = ["title", "body", "secret"]
        set = { wide = "title || left(secret, 5)" }"#;
    let mut daemon = s.start(rule).await;
    s.on_source("ALTER TABLE doc REPLICA IDENTITY FULL").await;
    s.on_source("UPDATE doc SET title = 'full' WHERE id = 1")
        .await;
    let same = (
        "SELECT id, title || left(secret, 5) FROM doc",
        "SELECT * FROM doc",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    s.on_source("ALTER TABLE doc REPLICA IDENTITY DEFAULT")
        .await;
    s.on_source("UPDATE doc SET title = 'lacking' WHERE id = 2")
        .await;
    s.until_failed(&mut daemon, &["public.doc", "reads secret"])
        .await;
    assert_eq!(
        s.replica_one("SELECT wide FROM doc WHERE id = 2").await,
        "t22ssss"
    );
    assert_eq!(daemon.http_get("/health").await.unwrap().status, 503);
}

/// Rows of the source that belong on the replica, for a table filtered by `state`.
const VISIBLE: (&str, &str) = (
    "SELECT id, state, v FROM f WHERE state = 'in'",
    "SELECT id, state, v FROM f",
);
const FILTER: &str = "[[tables]]\nsource = \"public.f\"\nwhere = \"state = 'in'\"";

async fn filtered(name: &str, key: &str) -> (Scenario<'static>, Daemon) {
    let s = scenario(name).await;
    s.on_both(
        "CREATE TABLE f (id int, state text, v text); ALTER TABLE f ALTER v SET STORAGE EXTERNAL",
    )
    .await;
    s.on_both(key).await;
    s.on_source(
        "INSERT INTO f SELECT g, (ARRAY['in', 'out', NULL])[g % 3 + 1], g::text
         FROM generate_series(1, 30) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start(FILTER).await;
    s.in_step_mapped(&daemon, &[VISIBLE]).await;
    (s, daemon)
}

/// Every transition of a row, with and without its key.
const TRANSITIONS: [&str; 9] = [
    "UPDATE f SET v = v || '+' WHERE id IN (3, 4, 5)",
    "UPDATE f SET state = 'in' WHERE id IN (6, 7, 8)",
    "UPDATE f SET state = 'out' WHERE id IN (9, 10, 11)",
    "UPDATE f SET state = NULL WHERE id IN (12, 13, 14)",
    "UPDATE f SET id = id + 100 WHERE id IN (15, 16, 17)",
    "UPDATE f SET id = id + 100, state = 'in' WHERE id IN (18, 19, 20)",
    "UPDATE f SET id = id + 100, state = 'out' WHERE id IN (21, 22, 23)",
    "DELETE FROM f WHERE id IN (24, 25, 26)",
    "INSERT INTO f VALUES (200, 'in', 'new'), (201, 'out', 'new'), (202, NULL, NULL)",
];

#[tokio::test]
async fn rows_move_into_the_filter_and_out_of_it() {
    for (name, key) in [
        ("filter_key", "ALTER TABLE f ADD PRIMARY KEY (id)"),
        (
            "filter_full",
            "ALTER TABLE f ADD PRIMARY KEY (id), REPLICA IDENTITY FULL",
        ),
        ("filter_keyless", "ALTER TABLE f REPLICA IDENTITY FULL"),
    ] {
        let (s, mut daemon) = filtered(name, key).await;
        for sql in TRANSITIONS {
            s.on_source(sql).await;
            s.in_step_mapped(&daemon, &[VISIBLE]).await;
        }
        // And many of them in one batch, where only the net effect of each key is written.
        daemon.signal(Signal::STOP);
        let mut state = 3u32;
        for number in 0..300 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (key, to) = (
                (state >> 8) % 8,
                ["'in'", "'out'", "NULL"][(state >> 16) as usize % 3],
            );
            let sql = match (state >> 20) % 4 {
                0 => format!(
                    "INSERT INTO f SELECT {key}, {to}, '{number}' \
                              WHERE NOT EXISTS (SELECT 1 FROM f WHERE id = {key})"
                ),
                1 => format!("UPDATE f SET state = {to}, v = '{number}' WHERE id = {key}"),
                2 => format!(
                    "UPDATE f SET id = {key} + 8, state = {to} WHERE id = {key} \
                              AND NOT EXISTS (SELECT 1 FROM f WHERE id = {key} + 8)"
                ),
                _ => format!("DELETE FROM f WHERE id IN ({key}, {key} + 8)"),
            };
            s.on_source(&sql).await;
        }
        daemon.signal(Signal::CONT);
        s.in_step_mapped(&daemon, &[VISIBLE]).await;
        let conflicts = crate::support::samples(&daemon, "pglockstep_conflicts_total").await;
        assert_eq!(
            conflicts.values().sum::<f64>(),
            0.0,
            "a filter is no conflict: {conflicts:?}"
        );
    }
}

#[tokio::test]
async fn rows_outside_the_filter_may_change_without_their_toasted_values() {
    let (s, mut daemon) = filtered("filter_toast", "ALTER TABLE f ADD PRIMARY KEY (id)").await;
    s.on_source("UPDATE f SET v = repeat('long', 3000)").await;
    for sql in [
        "UPDATE f SET state = 'other' WHERE state = 'out'",
        "UPDATE f SET id = id + 500 WHERE state = 'other'",
        "UPDATE f SET id = id + 500 WHERE state = 'in'",
        "UPDATE f SET state = 'out' WHERE state = 'in' AND id % 2 = 0",
        "UPDATE f SET state = state",
        "UPDATE f SET id = id + 1000, state = 'out' WHERE state = 'in' AND id % 5 = 0",
    ] {
        s.on_source(sql).await;
        s.in_step_mapped(&daemon, &[VISIBLE]).await;
    }
    // One that comes in is needed whole, and half of it must not be written.
    let before = s.replica_rows("SELECT * FROM f").await;
    s.on_source("UPDATE f SET state = 'in' WHERE id = (SELECT min(id) FROM f WHERE state = 'out')")
        .await;
    s.until_failed(&mut daemon, &["REPLICA IDENTITY FULL", "public.f"])
        .await;
    assert_eq!(s.replica_rows("SELECT * FROM f").await, before);
}

#[tokio::test]
async fn values_are_cast_to_the_replica_s_types() {
    let s = scenario("casts").await;
    s.on_source(
        "CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"', 'happy');
         CREATE TABLE c (id int PRIMARY KEY, a int, b text, m mood, d timestamp, j text, n numeric,
                         ms mood[], big bigint, ts timestamptz);
         INSERT INTO c VALUES
           (1, -5, ' 17 ', 'it''s \"ok\"', '2024-02-29 23:59:59.9', ' {\"a\" : 1}', 7.0, '{sad,NULL}', 9,
            '2024-06-01 00:30+00'),
           (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    )
    .await;
    s.on_replica(
        "CREATE TABLE c (id text PRIMARY KEY, a text, b int, m text, d date, j jsonb, n int,
                         ms text[], big int, ts timestamp)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let same = (
        "SELECT id, a, b::int, m, d::date, j::jsonb, n::int, ms, big, ts AT TIME ZONE 'UTC' FROM c",
        "SELECT * FROM c",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "INSERT INTO c SELECT 3, 3, '-3', 'sad', 'infinity', '[]', 2.5, ARRAY['happy', 'sad']::mood[], -1, now()",
        "UPDATE c SET a = 8, b = '009', m = 'happy', d = '0044-03-15 BC', j = 'null', ms = '{}' WHERE id = 1",
        "UPDATE c SET id = 20, n = 1e3, ts = '-infinity' WHERE id = 2",
        "DELETE FROM c WHERE id = 3",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}

#[tokio::test]
async fn types_of_the_same_name_live_in_other_schemas() {
    let s = scenario("enums").await;
    let types = |schema: &str| {
        format!(
            "CREATE SCHEMA {schema};
             CREATE TYPE {schema}.mood AS ENUM ('sad', 'a, b', 'happy');
             CREATE DOMAIN {schema}.pos AS int CHECK (VALUE > 0);
             CREATE TYPE {schema}.pair AS (a {schema}.mood, b int);
             CREATE TABLE {schema}.e (m {schema}.mood PRIMARY KEY, ms {schema}.mood[],
                                      p {schema}.pos, r {schema}.pair, rs {schema}.pair[]);"
        )
    };
    s.on_source(&types("app")).await;
    // Other object ids, and another order of labels that changes nothing.
    s.on_replica("CREATE TYPE filler AS (x int); CREATE TABLE filler2 (x int)")
        .await;
    s.on_replica(&types("crm")).await;
    s.on_source("INSERT INTO app.e VALUES ('a, b', '{sad,NULL}', 5, '(happy,1)', '{}')")
        .await;
    s.publish_all().await;
    let daemon = s
        .start("[[tables]]\nsource = \"app.*\"\nreplica = \"crm.*\"")
        .await;
    let same = ("SELECT * FROM app.e", "SELECT * FROM crm.e");
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        r#"INSERT INTO app.e VALUES ('sad', NULL, NULL, NULL, '{"(\"a, b\",2)",NULL}')"#,
        "UPDATE app.e SET ms = '{{happy,happy},{sad,sad}}', p = 7, r = '(,)' WHERE m = 'a, b'",
        "UPDATE app.e SET m = 'happy' WHERE m = 'sad'",
        "DELETE FROM app.e WHERE m = 'a, b'",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}

#[tokio::test]
async fn local_generated_and_identity_columns() {
    let s = scenario("columns").await;
    s.on_source(
        "CREATE TABLE l (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,
                         twice int GENERATED ALWAYS AS (a * 2) STORED, b int);
         INSERT INTO l (a, b) SELECT g, g FROM generate_series(1, 5) g;",
    )
    .await;
    s.on_replica(
        "CREATE TABLE l (note text DEFAULT 'local', id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                         seen timestamptz NOT NULL DEFAULT 'epoch', a int,
                         b int GENERATED ALWAYS AS (a * 3) STORED)",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let same = (
        "SELECT 'local', id, a, a * 3 FROM l WHERE id <> 2
         UNION ALL SELECT 'mine', id, a, a * 3 FROM l WHERE id = 2",
        "SELECT note, id, a, b FROM l",
    );
    s.caught_up(&daemon).await;
    s.on_replica("UPDATE l SET note = 'mine', seen = 'infinity' WHERE id = 2")
        .await;
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "UPDATE l SET a = a * 10",
        "INSERT INTO l (a) VALUES (60), (NULL)",
        "DELETE FROM l WHERE id = 4",
        "UPDATE l SET a = 1, b = 9 WHERE id = 2",
    ];
    s.each_mapped(&daemon, &statements, same).await;
    assert_eq!(
        s.replica_one("SELECT seen FROM l WHERE id = 2").await,
        "infinity"
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_changes() {
    let s = scenario("misfits").await;
    s.on_source(
        "CREATE TABLE a (id int PRIMARY KEY, v text, d timestamp); CREATE TABLE b (id int PRIMARY KEY);
         CREATE TABLE c (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x', now());",
    )
    .await;
    s.on_replica(
        "CREATE TABLE a (id int PRIMARY KEY, v text, d timestamp, must text NOT NULL DEFAULT '');
         CREATE TABLE b (id int PRIMARY KEY, must text NOT NULL);
         CREATE TABLE typed (id int PRIMARY KEY, v text, d boolean);",
    )
    .await;
    s.publish_all().await;
    let a = |more: &str| format!("[[tables]]\nsource = \"public.a\"\n{more}");
    for (rules, words) in [
        (
            String::new(),
            &["column must", "NOT NULL", "public.c", "does not exist"][..],
        ),
        (
            a("columns = { nope = \"v\" }\nexclude = [\"neither\"]"),
            &["nope", "neither"],
        ),
        (a("set = { nowhere = \"1\" }"), &["nowhere"]),
        (a("set = { v = \"lower(nope)\" }"), &["public.a", "nope"]),
        (a("set = { v = \"lower(\" }"), &["public.a", "syntax"]),
        (a("set = { d = \"v\" }\nwhere = \"id\""), &["public.a"]),
        (a("where = \"v > 5\""), &["public.a", "operator"]),
        (a("where = \"v = (SELECT 'x'\""), &["public.a"]),
        (a("replica = \"public.typed\""), &["public.a", "boolean"]),
        (a("key = [\"v\"]"), &["`key`", "REPLICA IDENTITY FULL"]),
        (a("exclude = [\"id\"]"), &["id"]),
        (
            a("on_conflict = \"newest_wins(updated_at)\""),
            &["updated_at"],
        ),
        (
            a("[[tables]]\nsource = \"public.b\"\nreplica = \"public.a\""),
            &["public.a", "public.b"],
        ),
        (
            "[[tables]]\nsource = \"public.none\"".to_owned(),
            &["public.none", "does not exist"],
        ),
        (
            "[[tables]]\nsource = \"none.*\"".to_owned(),
            &["no table takes part"],
        ),
    ] {
        let said = s.refused(&rules).await;
        for word in words {
            assert!(
                said.contains(word),
                "{word:?} is missing in: {said}\n{rules}"
            );
        }
    }
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'misfits'")
            .await,
        "0"
    );
    let made = "SELECT (SELECT count(*) FROM a), to_regnamespace('pglockstep')";
    assert_eq!(s.replica_rows(made).await, [row(["0", "NULL"])]);
}
