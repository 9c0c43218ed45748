//! Secondary indexes and foreign keys that are built after the first copy, and not lost by a crash.

use crate::support::{Daemon, Family, Scenario, run_verb};

static FAMILY: Family = Family::const_new();

const AFTER: &str = "[copy]\nindexes = \"after\"";
const TABLES: &str = "CREATE TABLE parent (id int PRIMARY KEY, code int NOT NULL UNIQUE, v text);
     CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, v text, w int, UNIQUE (w, id));
     CREATE INDEX child_v ON child (v);
     CREATE INDEX \"Child low\" ON child (lower(v) DESC) INCLUDE (w) WHERE w > 3;
     CREATE INDEX parent_v ON parent (v);
     COMMENT ON INDEX parent_v IS 'more than its definition';";
const ALL: [&str; 2] = ["SELECT * FROM parent", "SELECT * FROM child"];
/// What must be there before and after.
const DEFINED: &str = "
SELECT pg_get_indexdef(indexrelid) FROM pg_index
WHERE indrelid IN ('parent'::regclass, 'child'::regclass) AND indisvalid
UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
FROM pg_constraint WHERE conrelid IN ('parent'::regclass, 'child'::regclass) AND contype <> 'n'
ORDER BY 1";
/// Another number is another index.
const NUMBERS: &str = "SELECT string_agg(relname, ',' ORDER BY oid) FROM pg_class WHERE relkind = 'i'
     AND relname IN ('parent_pkey', 'parent_code_key', 'parent_v', 'child_pkey', 'child_w_id_key', 'child_v', 'Child low')";
const AS_MADE: &str =
    "parent_pkey,parent_code_key,child_pkey,child_w_id_key,child_v,Child low,parent_v";
/// All but the key that is referred to, and the one with a comment.
const BUILT_ANEW: &str = "SELECT 'child_v'::regclass::oid > 'parent_v'::regclass::oid
     AND '\"Child low\"'::regclass::oid > 'parent_v'::regclass::oid
     AND 'child_w_id_key'::regclass::oid > 'parent_v'::regclass::oid
     AND 'parent_code_key'::regclass::oid > 'parent_v'::regclass::oid
     AND 'child_pkey'::regclass::oid > 'parent_v'::regclass::oid
     AND 'parent_pkey'::regclass::oid < 'parent_v'::regclass::oid";
const IN_BOOKS: &str = "SELECT count(*) FROM pglockstep.set_aside";

async fn scenario(name: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(TABLES).await;
    s.on_source(
        "INSERT INTO parent SELECT g, -g, 'p' || g FROM generate_series(1, 500) g;
         INSERT INTO child SELECT g, 1 + g % 500, 'V' || g % 7, g % 11 FROM generate_series(1, 5000) g",
    )
    .await;
    s.publish_all().await;
    s
}

#[tokio::test]
async fn they_are_built_after_the_data() {
    let s = scenario("built_after").await;
    assert_eq!(s.replica_one(NUMBERS).await, AS_MADE);
    let before = s.replica_rows(DEFINED).await;
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_rows(DEFINED).await, before);
    assert_eq!(s.replica_one(BUILT_ANEW).await, "t");
    assert_eq!(s.replica_one(IN_BOOKS).await, "0");
    let analyzed = "SELECT reltuples FROM pg_class WHERE oid = 'child'::regclass";
    assert_eq!(s.replica_one(analyzed).await, "5000");
    // And they are used as ever.
    s.on_source("INSERT INTO parent VALUES (1000, 1000, 'n'); UPDATE child SET w = w + 1, v = 'z' WHERE id < 9")
        .await;
    s.in_step(&daemon, &ALL).await;
}

#[tokio::test]
async fn without_being_asked_they_stay() {
    let s = scenario("kept").await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_one(NUMBERS).await, AS_MADE);
}

#[tokio::test]
async fn rows_that_are_merged_into_keep_theirs() {
    let s = scenario("merged_into").await;
    s.on_replica(
        "INSERT INTO parent VALUES (1, -1, 'old'); INSERT INTO child VALUES (7, 1, 'old', 7)",
    )
    .await;
    let merge = format!("{AFTER}\nexisting_rows = \"merge\"");
    let daemon = s.start(&merge).await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_one(NUMBERS).await, AS_MADE);
}

/// Whatever a definition does not say would be lost.
#[tokio::test]
async fn keys_with_more_than_a_definition_stay() {
    let s = scenario("keys_that_stay").await;
    s.on_both(
        "CREATE TABLE viewed (id int PRIMARY KEY, v text); INSERT INTO viewed VALUES (1, 'v')",
    )
    .await;
    s.on_replica("DELETE FROM viewed").await;
    s.on_replica(
        "ALTER TABLE child DROP CONSTRAINT child_pkey, ADD PRIMARY KEY (id) WITH (fillfactor = 70);
         CREATE VIEW grouped AS SELECT id, v FROM viewed GROUP BY id",
    )
    .await;
    let options = "SELECT reloptions::text FROM pg_class WHERE relname = 'child_pkey'";
    let numbers = "SELECT 'child_pkey'::regclass::oid || ' ' || 'viewed_pkey'::regclass::oid";
    let before = s.replica_one(numbers).await;
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_one(options).await, "{fillfactor=70}");
    assert_eq!(s.replica_one(numbers).await, before);
}

/// Constraints of every kind come back as they were.
#[tokio::test]
async fn what_a_definition_says_comes_back() {
    let s = scenario("definitions").await;
    s.on_both(
        "CREATE TABLE kinds (id int NOT NULL, a int, b int, c text,
             CONSTRAINT kinds_pkey PRIMARY KEY (id) INCLUDE (c),
             CONSTRAINT late UNIQUE (a) DEFERRABLE INITIALLY DEFERRED,
             CONSTRAINT apart EXCLUDE USING btree (b WITH =) WHERE (b > 5));
         CREATE UNIQUE INDEX partly ON kinds (c COLLATE \"C\" DESC NULLS LAST) WHERE a > 3;
         CREATE INDEX filled ON kinds (b) WITH (fillfactor = 50);
         INSERT INTO kinds SELECT g, g, g, 'c' || g FROM generate_series(1, 50) g",
    )
    .await;
    s.on_replica("DELETE FROM kinds").await;
    let defined = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'kinds'::regclass \
        UNION ALL SELECT conname || pg_get_constraintdef(oid) || condeferrable || condeferred FROM pg_constraint \
        WHERE conrelid = 'kinds'::regclass \
        UNION ALL SELECT attname || attnotnull FROM pg_attribute WHERE attrelid = 'kinds'::regclass AND attnum > 0 \
        UNION ALL SELECT relreplident::text FROM pg_class WHERE oid = 'kinds'::regclass ORDER BY 1";
    let before = s.replica_rows(defined).await;
    killed(&s, "copy.range_committed").await;
    assert_ne!(s.replica_rows(defined).await, before);
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &["SELECT * FROM kinds"]).await;
    assert_eq!(s.replica_rows(defined).await, before);
}

/// What is planned before the copy goes on rests on the key that was set aside.
#[tokio::test]
async fn a_key_that_full_rows_are_found_by_is_back_before_anything_is_planned() {
    let s = scenario("full_key_away").await;
    s.on_source("CREATE TABLE whole (id bigint PRIMARY KEY, v text); ALTER TABLE whole REPLICA IDENTITY FULL; \
                 INSERT INTO whole SELECT g, 'v' || g FROM generate_series(1, 300) g").await;
    s.on_replica("CREATE TABLE whole (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)")
        .await;
    // Half copied too: its rows are its partitions'.
    s.on_source("CREATE TABLE parts (id int PRIMARY KEY)").await;
    s.on_replica(
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (500)",
    )
    .await;
    s.on_source("INSERT INTO parts SELECT generate_series(1, 400)")
        .await;
    killed(&s, "copy.range_committed").await;
    let key =
        "SELECT count(*) FROM pg_constraint WHERE conrelid = 'whole'::regclass AND contype = 'p'";
    assert_eq!(s.replica_one(key).await, "0");
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &["SELECT * FROM whole", "SELECT * FROM parts"])
        .await;
    assert_eq!(s.replica_one(key).await, "1");
    s.on_source("UPDATE whole SET v = 'new' WHERE id < 9; DELETE FROM whole WHERE id = 10")
        .await;
    s.in_step(&daemon, &["SELECT * FROM whole"]).await;
}

/// Rows that the key does not take stop the copy; mended on the source, it begins anew by itself.
#[tokio::test]
async fn rows_of_a_copy_that_failed_are_not_in_the_way_of_the_next() {
    let s = scenario("doubles").await;
    s.on_source(
        "CREATE TABLE doubles (id int, v text); ALTER TABLE doubles REPLICA IDENTITY FULL; \
                 INSERT INTO doubles VALUES (1, 'a'), (1, 'b'), (2, 'c')",
    )
    .await;
    s.on_replica("CREATE TABLE doubles (id int PRIMARY KEY, v text)")
        .await;
    let said = s.refused(AFTER).await;
    assert!(
        said.contains("doubles_pkey") && said.contains("23505"),
        "{said}"
    );
    s.on_source("DELETE FROM doubles WHERE v = 'b'").await;
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &["SELECT * FROM doubles"]).await;
    let key =
        "SELECT count(*) FROM pg_constraint WHERE conrelid = 'doubles'::regclass AND contype = 'p'";
    assert_eq!(s.replica_one(key).await, "1");
}

/// While it is away, nobody is told to make one.
#[tokio::test]
async fn a_key_that_is_set_aside_is_not_missed() {
    let s = scenario("key_away").await;
    killed(&s, "copy.range_committed").await;
    let said = run_verb(&s.config(AFTER), &["check"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("set aside until its copy ends"), "{said}");
    assert!(!said.contains("no index on its key"), "{said}");
}

async fn killed(s: &Scenario<'_>, point: &str) {
    let order = format!("{point}=kill");
    let mut daemon = Daemon::start_with(&s.config(AFTER), &[("PGLOCKSTEP_FAULTS", &order)]);
    daemon.until_said(&format!("fail point {point}:")).await;
    daemon.wait();
}

#[tokio::test]
async fn a_crash_loses_none() {
    let points = [
        "copy.begun",
        "copy.range_written",
        "copy.range_committed",
        "copy.table_finishing",
        "copy.table_marked",
    ];
    for (number, point) in points.into_iter().enumerate() {
        for (way, settings) in [("after", AFTER), ("keep", "")] {
            let s = scenario(&format!("crash_{number}_{way}")).await;
            let before = s.replica_rows(DEFINED).await;
            killed(&s, point).await;
            if point != "copy.table_marked" {
                assert_eq!(s.replica_one(IN_BOOKS).await, "5", "{point}");
                assert_ne!(s.replica_rows(DEFINED).await, before, "{point}");
            }
            let daemon = s.start(settings).await;
            s.in_step(&daemon, &ALL).await;
            assert_eq!(s.replica_rows(DEFINED).await, before, "{point}, then {way}");
            assert_eq!(s.replica_one(IN_BOOKS).await, "0", "{point}, then {way}");
        }
    }
}

#[tokio::test]
async fn who_leaves_after_a_crash_leaves_them_behind() {
    let s = scenario("crash_and_leave").await;
    let before = s.replica_rows(DEFINED).await;
    killed(&s, "copy.range_committed").await;
    assert_ne!(s.replica_rows(DEFINED).await, before);
    let done = run_verb(&s.config(AFTER), &["teardown", "--yes"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(s.replica_rows(DEFINED).await, before);
}

#[tokio::test]
async fn one_that_cannot_be_built_stops_it_by_name() {
    let s = scenario("unbuildable").await;
    s.on_replica("CREATE UNIQUE INDEX child_v_once ON child (v)")
        .await;
    let said = s.refused(AFTER).await;
    for word in ["child_v_once", "23505", "set_aside"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!said.contains("V1"), "a value was told:\n{said}");
    let kept = "SELECT name FROM pglockstep.set_aside WHERE name = 'child_v_once'";
    assert_eq!(s.replica_one(kept).await, "child_v_once");
    s.on_replica("DELETE FROM pglockstep.set_aside WHERE name = 'child_v_once'")
        .await;
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_one(IN_BOOKS).await, "0");
}

#[tokio::test]
async fn a_role_that_could_not_build_them_drops_none() {
    let mut s = scenario("not_owner").await;
    s.on_replica(
        "CREATE ROLE not_owner LOGIN; GRANT CREATE ON DATABASE not_owner TO not_owner;
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO not_owner",
    )
    .await;
    s.replica_role("not_owner");
    let said = s.refused(AFTER).await;
    assert!(said.contains("could drop but not build"), "{said}");
    assert_eq!(s.replica_one(NUMBERS).await, AS_MADE);
    // It owns the tables, and could drop; but may not create.
    s.on_replica(
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         ALTER TABLE parent OWNER TO not_owner; ALTER TABLE child OWNER TO not_owner",
    )
    .await;
    let said = s.refused(AFTER).await;
    assert!(said.contains("could drop but not build"), "{said}");
    assert_eq!(s.replica_one(NUMBERS).await, AS_MADE);
}

/// Where foreign keys fire they are dropped too, and decide in which order tables come in.
#[tokio::test]
async fn foreign_keys_that_fire_are_made_again() {
    let mut s = scenario("keys_after").await;
    s.on_replica(
        "CREATE ROLE keys_after LOGIN; GRANT CREATE ON DATABASE keys_after TO keys_after;
         GRANT CREATE ON SCHEMA public TO keys_after;
         ALTER TABLE parent OWNER TO keys_after; ALTER TABLE child OWNER TO keys_after",
    )
    .await;
    s.replica_role("keys_after");
    let before = s.replica_rows(DEFINED).await;
    let foreign = "SELECT oid FROM pg_constraint WHERE conname = 'child_parent_fkey'";
    let number = s.replica_one(foreign).await;
    killed(&s, "copy.range_committed").await;
    let in_books = format!("{IN_BOOKS} WHERE is_foreign_key");
    assert_eq!(s.replica_one(&in_books).await, "1");
    let daemon = s.start(AFTER).await;
    s.in_step(&daemon, &ALL).await;
    assert_eq!(s.replica_rows(DEFINED).await, before);
    assert_ne!(s.replica_one(foreign).await, number);
    assert_eq!(s.replica_one(IN_BOOKS).await, "0");
}
