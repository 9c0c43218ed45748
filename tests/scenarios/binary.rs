//! Values in binary: rows of the replica table's own type, and arrays where the mapping makes
//! something else of them; and what makes the stream go back to text.

use crate::support::{Daemon, Family, Scenario, samples};

static FAMILY: Family = Family::const_new();

/// With this table on either side, a daemon that streams in binary, mapped as `more` says.
async fn streaming(
    name: &str,
    [source, replica]: [&str; 2],
    more: &str,
) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_source(source).await;
    s.on_replica(replica).await;
    s.publish_all().await;
    let daemon = s.start(more).await;
    let said = daemon.stderr();
    assert!(said.contains("values=Binary"), "{said}");
    (s, daemon)
}

fn assert_still_binary(daemon: &Daemon) {
    let said = daemon.stderr();
    assert!(!said.contains("values=Text"), "{said}");
}

fn assert_back_to_text(daemon: &Daemon) {
    let said = daemon.stderr();
    assert!(said.contains("read as text"), "{said}");
    assert!(said.contains("values=Text"), "{said}");
}

/// Few rows, so that they go as arrays, and many, so that they go by COPY; updates and deletes.
const EVERY_WAY: [&str; 6] = [
    "INSERT INTO t (id, v) VALUES (1, 'one'), (2, NULL)",
    "INSERT INTO t (id, v) SELECT g, 'many ' || g FROM generate_series(10, 300) g",
    "UPDATE t SET v = v || '.' WHERE id % 2 = 0",
    "UPDATE t SET id = id + 1000 WHERE id = 11",
    "DELETE FROM t WHERE id % 3 = 0",
    "UPDATE t SET v = NULL WHERE id = 1; INSERT INTO t (id, v) VALUES (5, '')",
];

async fn every_way(s: &Scenario<'_>, daemon: &Daemon) {
    for sql in EVERY_WAY {
        s.on_source(sql).await;
        s.in_step(daemon, &["SELECT id, v FROM t"]).await;
    }
}

#[tokio::test]
async fn rows_of_a_table_that_has_lost_columns_and_has_some_of_its_own() {
    let source = "CREATE TABLE t (v text, id bigint PRIMARY KEY)";
    let replica = "CREATE TABLE t (gone int, id bigint PRIMARY KEY, own text DEFAULT 'mine', \
                   v text, also_gone date, twice bigint GENERATED ALWAYS AS (id * 2) STORED); \
                   ALTER TABLE t DROP gone, DROP also_gone";
    let (s, daemon) = streaming("lost_columns", [source, replica], "").await;
    every_way(&s, &daemon).await;
    let odd = "SELECT count(*) FROM t WHERE own IS DISTINCT FROM 'mine' OR twice <> id * 2";
    assert_eq!(s.replica_one(odd).await, "0");
    assert_still_binary(&daemon);
}

#[tokio::test]
async fn columns_that_swap_their_names_on_the_replica() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, a text, b text)";
    let (s, daemon) = streaming("swapped", [table, table], "").await;
    s.on_source("INSERT INTO t VALUES (1, 'a', 'b'); UPDATE t SET a = 'A'")
        .await;
    s.in_step(&daemon, &["SELECT id, a, b FROM t"]).await;
    // The rows that are there go with the names.
    s.on_replica(
        "BEGIN; ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; \
         ALTER TABLE t RENAME c TO b; UPDATE t SET a = b, b = a; COMMIT",
    )
    .await;
    s.on_source("UPDATE t SET b = 'B' WHERE id = 1; INSERT INTO t VALUES (2, 'a2', 'b2')")
        .await;
    s.in_step(&daemon, &["SELECT id, a, b FROM t"]).await;
    s.on_source("INSERT INTO t SELECT g, 'a' || g, 'b' || g FROM generate_series(10, 200) g")
        .await;
    s.in_step(&daemon, &["SELECT id, a, b FROM t"]).await;
}

#[tokio::test]
async fn a_column_that_is_added_on_the_replica() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let (s, daemon) = streaming("added", [table, table], "").await;
    s.on_source("INSERT INTO t VALUES (-1, 'before')").await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    assert_still_binary(&daemon);
    s.on_replica("ALTER TABLE t ADD own int DEFAULT 7").await;
    every_way(&s, &daemon).await;
    assert_back_to_text(&daemon);
    let open = daemon.metric("pglockstep_open_errors").await;
    assert_eq!(open, Some(0.0), "it is no error of the table's");
}

#[tokio::test]
async fn what_the_mapping_makes_of_binary_values() {
    let source =
        "CREATE TABLE t (id bigint PRIMARY KEY, v text, n numeric, at timestamptz, secret text)";
    let replica = "CREATE TABLE t (id int PRIMARY KEY, v varchar(40), low text, n text, day date)";
    let more = r#"
        [[tables]]
        source = "public.t"
        columns = { at = "day" }
        exclude = ["secret"]
        set = { low = "lower(v)" }
        where = "n IS NULL OR n <> 3""#;
    let (s, daemon) = streaming("mapped_binary", [source, replica], more).await;
    let mapped = "SELECT id, v, lower(v), n::text, (at AT TIME ZONE 'UTC')::date FROM t \
                  WHERE n IS NULL OR n <> 3";
    for sql in [
        "INSERT INTO t SELECT g, 'Row ' || g, g % 5 + 0.50, '2026-01-01 12:00+00', 's' FROM generate_series(1, 200) g",
        "UPDATE t SET n = 3 WHERE id % 4 = 0",
        "UPDATE t SET n = NULL, v = upper(v) WHERE id % 8 = 0",
        "DELETE FROM t WHERE id % 7 = 0",
        "UPDATE t SET id = id + 1000 WHERE id % 9 = 1",
    ] {
        s.on_source(sql).await;
        s.in_step_mapped(&daemon, &[(mapped, "SELECT id, v, low, n, day FROM t")])
            .await;
    }
    assert_still_binary(&daemon);
}

#[tokio::test]
async fn a_source_that_has_no_binary_form_of_a_column_that_is_left_out() {
    let source = "CREATE TABLE t (id int PRIMARY KEY, v text, rights aclitem[] DEFAULT '{postgres=r/postgres}')";
    let replica = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let more = "[[tables]]\nsource = \"public.t\"\nexclude = [\"rights\"]";
    let (s, daemon) = streaming("no_send", [source, replica], more).await;
    every_way(&s, &daemon).await;
    assert_back_to_text(&daemon);
}

#[tokio::test]
async fn rules_of_the_replica_see_many_rows_as_they_see_one() {
    let source = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let replica = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE seen (id int);
        CREATE RULE see AS ON INSERT TO t DO ALSO INSERT INTO seen VALUES (NEW.id);
        ALTER TABLE t ENABLE ALWAYS RULE see";
    let (s, daemon) = streaming("rules", [source, replica], "").await;
    s.on_source("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 200) g")
        .await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM seen").await, "200");
    assert_still_binary(&daemon);
}

#[tokio::test]
async fn a_row_that_is_refused_is_told_of_by_the_text_it_came_in() {
    let source = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let replica = "CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'))";
    let (s, mut daemon) = streaming("refused_row", [source, replica], "").await;
    s.on_source("INSERT INTO t SELECT g, 'good' FROM generate_series(1, 100) g")
        .await;
    s.on_source("INSERT INTO t VALUES (200, 'bad')").await;
    s.until_failed(&mut daemon, &["t_v_check"]).await;
    assert_back_to_text(&daemon);
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "100");
    s.on_replica("ALTER TABLE t DROP CONSTRAINT t_v_check")
        .await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
}

/// A COPY behind a statement that is refused: the batch goes in source order, then row by row.
#[tokio::test]
async fn many_rows_behind_a_change_that_is_refused() {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE);
        CREATE TABLE many (id int PRIMARY KEY, v text)";
    let (s, daemon) = streaming("refused_before", [tables, tables], "").await;
    s.on_source("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await;
    let all = ["SELECT * FROM t", "SELECT * FROM many"];
    s.in_step(&daemon, &all).await;
    s.on_source(
        "BEGIN; UPDATE t SET v = 'c' WHERE id = 1; UPDATE t SET v = 'a' WHERE id = 2;
         UPDATE t SET v = 'b' WHERE id = 1;
         INSERT INTO many SELECT g, 'x' FROM generate_series(1, 200) g; COMMIT",
    )
    .await;
    s.in_step(&daemon, &all).await;
    assert_still_binary(&daemon);
    s.on_replica("INSERT INTO t VALUES (3, 'mine'); INSERT INTO many VALUES (300, 'mine')")
        .await;
    s.on_source(
        "BEGIN; INSERT INTO t VALUES (3, 'theirs');
         INSERT INTO many SELECT g, 'x' FROM generate_series(250, 350) g; COMMIT",
    )
    .await;
    s.in_step(&daemon, &all).await;
    assert_still_binary(&daemon);
    let conflicts = samples(&daemon, "pglockstep_conflicts_total").await;
    assert_eq!(conflicts.values().sum::<f64>(), 2.0, "{conflicts:?}");
}

/// Eight bytes of an int8 could be read as a numeric.
#[tokio::test]
async fn a_column_that_has_another_type_by_now_is_not_misread() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, v int8)";
    let (s, daemon) = streaming("retyped", [table, table], "").await;
    s.on_source("INSERT INTO t SELECT g, g FROM generate_series(1, 100) g")
        .await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    s.on_replica("ALTER TABLE t ALTER v TYPE numeric").await;
    s.on_source("INSERT INTO t SELECT g, g FROM generate_series(101, 300) g")
        .await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
    assert_back_to_text(&daemon);
}

/// Nothing remains to be done for rows that came and went.
#[tokio::test]
async fn rows_without_a_key_that_come_and_go_at_once() {
    let table = "CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL";
    let (s, daemon) = streaming("come_and_go", [table, table], "").await;
    s.on_source("BEGIN; INSERT INTO t VALUES (1, 'x'); DELETE FROM t; COMMIT")
        .await;
    s.on_source("INSERT INTO t VALUES (2, 'y')").await;
    s.in_step(&daemon, &["SELECT id, v FROM t"]).await;
}

/// A domain looks at the NULL that stands for a value which was not sent.
#[tokio::test]
async fn a_domain_that_takes_no_null() {
    let table =
        "CREATE DOMAIN body AS text NOT NULL; CREATE TABLE t (id int PRIMARY KEY, v text, b body);
        ALTER TABLE t ALTER b SET STORAGE EXTERNAL";
    let (s, daemon) = streaming("domain", [table, table], "").await;
    s.on_source("INSERT INTO t SELECT g, 'x', repeat('b', 9000) FROM generate_series(1, 100) g")
        .await;
    s.on_source("UPDATE t SET v = 'y' WHERE id < 50; DELETE FROM t WHERE id > 90")
        .await;
    s.in_step(&daemon, &["SELECT id, v, b::text FROM t"]).await;
    assert_still_binary(&daemon);
}

/// In binary an array says of which type it is, by a number of the server's own. That it is made
/// the replica's is held in `apply/row.rs`; here, that such arrays arrive.
#[tokio::test]
async fn arrays_of_an_enum_that_has_another_number_on_the_replica() {
    let source = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, v mood[], m mood)";
    let replica =
        format!("CREATE TYPE first AS ENUM ('a'); CREATE TYPE second AS ENUM ('b'); {source}");
    let (s, daemon) = streaming("enum_arrays", [source, &replica], "").await;
    let number = "SELECT 'mood'::regtype::oid";
    assert_ne!(s.one(number).await, s.replica_one(number).await);
    for sql in [
        "INSERT INTO t VALUES (1, '{sad,NULL}', 'ok'), (2, '{}', NULL), (3, NULL, 'sad')",
        "INSERT INTO t SELECT g, '{{ok,sad},{sad,ok}}', 'sad' FROM generate_series(10, 200) g",
        "UPDATE t SET v = v || ARRAY['ok', 'ok']::mood[] WHERE id = 1; UPDATE t SET m = 'ok'",
    ] {
        s.on_source(sql).await;
        s.in_step(&daemon, &["SELECT id, v, m FROM t"]).await;
    }
    assert_still_binary(&daemon);
}
