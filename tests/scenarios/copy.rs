//! The first copy: one consistent point, whatever goes on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio_postgres::Client;

use crate::cases::ground::{HELD, hold_copy_by};
use crate::support::{Daemon, Family, Scenario, digest, samples};

static FAMILY: Family = Family::const_new();

async fn scenario(name: &str) -> Scenario<'static> {
    Scenario::new(&FAMILY, name).await
}

/// More than two ranges of blocks.
const BIG_ROWS: u32 = 110_000;

#[tokio::test]
async fn large_small_and_empty_tables_while_the_source_writes() {
    let s = scenario("seam").await;
    s.on_both(
        "CREATE TABLE big (id int PRIMARY KEY, v text); ALTER TABLE big ALTER v SET STORAGE PLAIN;
         CREATE TABLE keyless (n int, v text);
         CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE no_columns ();",
    )
    .await;
    s.on_source("ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO no_columns DEFAULT VALUES")
        .await;
    s.on_source(&format!(
        "INSERT INTO big SELECT g, repeat('x', 700) FROM generate_series(1, {BIG_ROWS}) g;
         INSERT INTO keyless SELECT 0, 'counter';",
    ))
    .await;
    s.publish_all().await;
    assert_eq!(
        s.one("SELECT pg_relation_size('big') > 64 << 20").await,
        "t"
    );

    let written = Arc::new(AtomicU32::new(0));
    let is_done = Arc::new(AtomicBool::new(false));
    let client = s.pair.source.connect(&s.name).await.unwrap();
    let writer = tokio::spawn(write_until(
        client,
        Arc::clone(&written),
        Arc::clone(&is_done),
    ));
    let daemon = s.start("[copy]\nworkers = 3\nsplit_from = \"64MiB\"").await;
    let while_copying = written.load(Ordering::Relaxed);
    is_done.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(
        while_copying > 20,
        "only {while_copying} transactions met the copy"
    );

    s.in_step(
        &daemon,
        &[
            "SELECT * FROM keyless",
            "SELECT * FROM empty",
            "SELECT count(*) FROM no_columns",
            "SELECT id, left(v, 10) FROM big WHERE id % 100 = 0",
        ],
    )
    .await;
    let all = "SELECT * FROM big";
    assert_eq!(digest(&s.source, all).await, digest(&s.replica, all).await);
    // In at least two ranges, each row once.
    let copied = samples(&daemon, "pglockstep_copy_rows_total").await;
    assert_eq!(copied["table=\"public.empty\""], 0.0);
    assert_eq!(copied["table=\"public.no_columns\""], 1.0);
    let copied = copied["table=\"public.big\""];
    assert!(
        (f64::from(BIG_ROWS) * 0.9..=f64::from(BIG_ROWS) * 1.1).contains(&copied),
        "{copied}"
    );
}

/// Changes rows at both ends of the table, and counts in a table without a key.
async fn write_until(client: Client, written: Arc<AtomicU32>, is_done: Arc<AtomicBool>) {
    let mut n = 0;
    while !is_done.load(Ordering::Relaxed) {
        n += 1;
        let (low, high) = (n, BIG_ROWS - n);
        let sql = format!(
            "BEGIN; UPDATE keyless SET n = n + 1 WHERE v = 'counter'; INSERT INTO keyless VALUES ({n}, 'new');
             UPDATE big SET v = 'updated {n}' WHERE id IN ({low}, {high}, {});
             DELETE FROM big WHERE id = {} + 1000; INSERT INTO big VALUES ({n} + 10000000, 'inserted'); COMMIT",
            BIG_ROWS / 2 + n,
            high - 2000,
        );
        client.batch_execute(&sql).await.unwrap();
        written.store(n, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn higher_priority_is_copied_first() {
    let s = scenario("priority").await;
    for table in ["a", "b", "c", "d"] {
        s.on_both(&format!("CREATE TABLE {table} (id int PRIMARY KEY)"))
            .await;
    }
    s.on_source("INSERT INTO b SELECT generate_series(1, 20000); INSERT INTO d SELECT generate_series(1, 5000)")
        .await;
    s.publish_all().await;
    let rule = |table: &str, priority: i32| {
        format!("[[tables]]\nsource = \"public.{table}\"\npriority = {priority}\n")
    };
    let rules = rule("a", 5) + &rule("c", -1) + "[[tables]]\nsource = \"public.*\"\n";
    let daemon = s.start(&format!("[copy]\nworkers = 1\n{rules}")).await;
    let said = daemon.stderr();
    let order: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("table copied"))
        .filter_map(|line| line.split("table=public.").nth(1)?.split(' ').next())
        .collect();
    assert_eq!(order, ["a", "b", "d", "c"], "priority, then size:\n{said}");
}

#[tokio::test]
async fn what_the_publication_leaves_out_stays_out() {
    let s = scenario("published").await;
    if !s.pair.has(15) {
        return;
    }
    s.on_source(
        "CREATE TABLE t (id int PRIMARY KEY, v text, secret text); CREATE TABLE other (id int)",
    )
    .await;
    s.on_source("INSERT INTO t SELECT g, g, 's' FROM generate_series(1, 20) g; INSERT INTO other VALUES (1)")
        .await;
    s.on_replica("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.publish("FOR TABLE t (id, v) WHERE (id % 2 = 0)").await;
    let daemon = s.start("").await;
    let same = ("SELECT id, v FROM t WHERE id % 2 = 0", "SELECT * FROM t");
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "INSERT INTO t VALUES (30, 'a', 'b'), (31, 'a', 'b')",
        "UPDATE t SET v = 'n', secret = 'n'",
        "UPDATE t SET id = id + 1 WHERE id > 10 AND id % 3 = 0 AND id < 20 AND id + 1 NOT IN (SELECT id FROM t)",
        "DELETE FROM t WHERE id IN (2, 3)",
        "UPDATE t SET id = 101 WHERE id = 4",
        "UPDATE t SET id = 102 WHERE id = 5",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}

const PARTITIONED: &str = "CREATE TABLE p (id int, day int NOT NULL, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
     CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (10);
     CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (10) TO (1000);";

async fn partitions_change(s: &Scenario<'_>, daemon: &Daemon, same: (&str, &str)) {
    s.in_step_mapped(daemon, &[same]).await;
    for sql in [
        "INSERT INTO p SELECT g, g % 20, 'later' FROM generate_series(101, 140) g",
        "UPDATE p SET v = 'changed' WHERE id % 2 = 0",
        "UPDATE p SET day = 19 - day WHERE id < 10 AND day BETWEEN 0 AND 19",
        "DELETE FROM p WHERE id % 5 = 0",
        "UPDATE p SET id = id + 1000, day = day + 7 WHERE id % 7 = 0",
    ] {
        s.on_source(sql).await;
        s.in_step_mapped(daemon, &[same]).await;
    }
}

#[tokio::test]
async fn partitioned_tables_on_either_side() {
    let fill = "INSERT INTO p SELECT g, g % 20, 'copied' FROM generate_series(1, 100) g";
    let same = ("SELECT * FROM p", "SELECT * FROM p");
    for (name, replica, publication) in [
        ("root_to_plain", "CREATE TABLE p (id int, day int, v text, PRIMARY KEY (id, day))",
            "FOR TABLE p WITH (publish_via_partition_root)"),
        ("root_to_other",
            "CREATE TABLE p (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY HASH (id);
             CREATE TABLE p_a PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE p_b PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1);",
            "FOR ALL TABLES WITH (publish_via_partition_root)"),
        ("leaves", PARTITIONED, "FOR TABLE p"),
    ] {
        let s = scenario(name).await;
        s.on_source(PARTITIONED).await;
        s.on_replica(replica).await;
        s.on_source(fill).await;
        s.publish(publication).await;
        let daemon = s.start("").await;
        partitions_change(&s, &daemon, same).await;
    }
    // A plain table into a partitioned one.
    let s = scenario("plain_to_parts").await;
    s.on_source("CREATE TABLE p (id int, day int, v text, PRIMARY KEY (id, day))")
        .await;
    s.on_replica(PARTITIONED).await;
    s.on_source(fill).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    partitions_change(&s, &daemon, same).await;
    s.on_source("TRUNCATE p").await;
    s.in_step_mapped(&daemon, &[same]).await;
}

#[tokio::test]
async fn children_by_inheritance_are_tables_of_their_own() {
    let s = scenario("inheritance").await;
    s.on_both(
        "CREATE TABLE parent (id int PRIMARY KEY, v text);
               CREATE TABLE child (PRIMARY KEY (id), extra text) INHERITS (parent)",
    )
    .await;
    s.on_source(
        "INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (1, 'c', 'e'), (2, 'c', 'e')",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let all = [
        "SELECT * FROM ONLY parent",
        "SELECT * FROM child",
        "SELECT * FROM parent",
    ];
    s.in_step(&daemon, &all).await;
    s.on_source("UPDATE parent SET v = v || '!'; DELETE FROM ONLY parent; INSERT INTO parent VALUES (1, 'again')")
        .await;
    s.in_step(&daemon, &all).await;
}

/// A copy may take hours: nobody on the source waits for the tables that it is done with.
#[tokio::test]
async fn what_is_copied_is_not_locked_any_more() {
    let s = Scenario::new(&FAMILY, "unlocked").await;
    s.on_both("CREATE TABLE done (id int PRIMARY KEY)").await;
    s.on_source("INSERT INTO done VALUES (1)").await;
    let last = HELD.replace("priority = 9", "priority = 0").replace(
        "source = \"public.*\"",
        "source = \"public.*\"\npriority = 1",
    );
    let mut daemon = hold_copy_by(&s, &last).await;
    let copied = "SELECT state FROM pglockstep.tables WHERE source_table = 'done'";
    s.replica_eventually(copied, "copied").await;
    s.on_source("BEGIN; LOCK TABLE done IN ACCESS EXCLUSIVE MODE NOWAIT; COMMIT")
        .await;
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &["SELECT * FROM done", "SELECT * FROM gated"])
        .await;
}

#[tokio::test]
async fn tables_join_while_it_runs() {
    let s = scenario("joining").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO t VALUES (1, 'first')").await;
    s.publish("FOR TABLE t").await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;

    // Its rows from before it was published come by copy, its later ones by the stream.
    s.on_both("CREATE TABLE late (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("INSERT INTO late SELECT g, 'before' FROM generate_series(1, 1000) g")
        .await;
    s.on_source(&format!("ALTER PUBLICATION {} ADD TABLE late", s.slot()))
        .await;
    for n in 0..40 {
        s.on_source(&format!(
            "BEGIN; INSERT INTO t VALUES ({n} + 10, 'beside'); INSERT INTO late VALUES ({n} + 2000, 'after');
             UPDATE late SET v = 'updated' WHERE id = {n}; COMMIT"
        ))
        .await;
    }
    s.replica_eventually("SELECT count(*) FROM late", "1040")
        .await;
    s.in_step(&daemon, &["SELECT * FROM t", "SELECT * FROM late"])
        .await;

    // One that leaves is left alone; coming back it would not fit, so nothing is touched.
    s.on_source(&format!("ALTER PUBLICATION {} DROP TABLE late", s.slot()))
        .await;
    s.on_source("INSERT INTO late VALUES (9999, 'unpublished')")
        .await;
    s.on_source("INSERT INTO t VALUES (9999, 'published')")
        .await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM late").await, "1040");
}

#[tokio::test]
async fn a_new_table_that_the_replica_lacks_stops_until_it_is_there() {
    let s = scenario("lacking").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.on_source(
        "CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh SELECT generate_series(1, 10)",
    )
    .await;
    s.on_source("INSERT INTO t VALUES (1)").await;
    s.until_failed(&mut daemon, &["public.fresh"]).await;
    s.on_source("INSERT INTO fresh VALUES (11); INSERT INTO t VALUES (2)")
        .await;
    s.on_replica("CREATE TABLE fresh (id int PRIMARY KEY)")
        .await;
    s.replica_eventually("SELECT count(*) FROM fresh", "11")
        .await;
    s.in_step(&daemon, &["SELECT * FROM t", "SELECT * FROM fresh"])
        .await;
}

#[tokio::test]
async fn what_would_drift_unseen_is_refused() {
    let s = Scenario::new(&FAMILY, "drift").await;
    s.on_source("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.on_replica("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)")
        .await;
    s.publish_all().await;
    let said = s.refused("").await;
    assert!(
        said.contains("UNLOGGED") && said.contains("SET LOGGED"),
        "{said}"
    );
    s.on_replica("ALTER TABLE t SET LOGGED").await;
    let publication = s.slot();
    s.on_source(&format!(
        "ALTER PUBLICATION {publication} SET (publish = 'insert, truncate')"
    ))
    .await;
    let said = s.refused("").await;
    assert!(
        said.contains("UPDATE, DELETE") && said.contains("ALTER PUBLICATION"),
        "{said}"
    );
    assert_eq!(
        s.one("SELECT count(*) FROM pg_replication_slots WHERE database = 'drift'")
            .await,
        "0"
    );
}

/// Rows are passed on without being taken apart: what ends a copy half-way is told all the same.
#[tokio::test]
async fn what_ends_a_copy_half_way_is_told() {
    let s = scenario("half_way").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, n int, v text)")
        .await;
    s.on_source("INSERT INTO t SELECT g, CASE g WHEN 150000 THEN 0 ELSE g END, 'value ' || g FROM generate_series(1, 200000) g")
        .await;
    s.on_replica("ALTER TABLE t ADD CONSTRAINT not_zero CHECK (n <> 0)")
        .await;
    s.publish_all().await;
    let said = s.refused("").await;
    let is_told = |said: &str, words: &[&str]| words.iter().all(|word| said.contains(word));
    let words = ["cannot copy into public.t", "23514", "not_zero"];
    assert!(is_told(&said, &words), "{said}");
    assert!(!said.contains("value 1"), "a value was told:\n{said}");
    s.on_replica("ALTER TABLE t DROP CONSTRAINT not_zero").await;
    let divides =
        "[[tables]]\nsource = \"public.t\"\nset = { n = \"(1000 / n)::int4\" }\n".to_owned();
    let said = s.refused(&divides).await;
    let words = ["cannot copy out of public.t", "22012"];
    assert!(is_told(&said, &words), "{said}");
    // Triggers that fire for the daemon may say what they like, and rows may be large.
    s.on_replica(
        "CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE NOTICE 'row % %', NEW.id, repeat('x', 200); RETURN NEW; END $$;
         CREATE TRIGGER talks BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION talk();
         ALTER TABLE t ENABLE ALWAYS TRIGGER talks",
    )
    .await;
    s.on_source("UPDATE t SET v = repeat('large', 2000000) WHERE id IN (1, 100000)")
        .await;
    let daemon = s.start("").await;
    let all = "SELECT id, n, md5(v) FROM t";
    s.caught_up(&daemon).await;
    assert_eq!(digest(&s.source, all).await, digest(&s.replica, all).await);
    assert_eq!(
        samples(&daemon, "pglockstep_copy_rows_total").await["table=\"public.t\""],
        200_000.0
    );
}
