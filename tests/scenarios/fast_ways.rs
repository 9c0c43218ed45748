//! Each fast way to write is taken, and given up where it may not be taken: as the servers' logs tell.

use crate::support::{Line, Pair, PairOptions, Scenario, eventually, samples};
use crate::wire::authority::Authority;
use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use regex::Regex;
use std::ops::Range;

/// Servers that log every statement they are given.
async fn telling() -> Pair {
    let telling = || ClusterOptions::default().with("log_statement", "all");
    Pair::start_with(PairOptions {
        source: telling(),
        replica: telling(),
    })
    .await
}

/// What the first group of `pattern` has found in a log, in its order.
fn found(log: &str, pattern: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).unwrap();
    let all = pattern.captures_iter(log);
    all.map(|found| found[1].to_owned()).collect()
}

#[tokio::test]
async fn a_statement_gets_a_name_with_its_third_use() {
    let pair = telling().await;
    let s = Scenario::on_pair(&pair, "by_name").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v int)")
        .await;
    s.on_source("INSERT INTO t VALUES (1, 0)").await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let same = ("SELECT * FROM t", "SELECT * FROM t");
    let update = "UPDATE t SET v = v + 1";
    s.each_mapped(&daemon, &[update; 5], same).await;
    let names = || {
        found(
            &pair.replica.log(),
            r#"execute (\S+): WITH done AS \(UPDATE ONLY "public"\."t" AS t SET"#,
        )
    };
    let before = names();
    assert_eq!(before.len(), 5, "{before:?}");
    assert_eq!(before[..2], ["<unnamed>", "<unnamed>"]);
    assert!(before[2].starts_with('s'), "{before:?}");
    assert!(before[3..].iter().all(|name| *name == before[2]));
    // A table of another form has other statements.
    s.on_both("ALTER TABLE t ADD w int").await;
    s.each_mapped(&daemon, &["UPDATE t SET v = v + 1, w = id"; 3], same)
        .await;
    let after = names().split_off(5);
    assert_eq!(after[..2], ["<unnamed>", "<unnamed>"]);
    assert!(
        after[2].starts_with('s') && after[2] != before[2],
        "{after:?}"
    );
    s.end(daemon).await;
}

#[tokio::test]
async fn the_next_statements_of_a_batch_are_sent_before_an_answer() {
    let pair = telling().await;
    let mut s = Scenario::on_pair(&pair, "pipelined").await;
    let line = Line::start(pair.replica.port()).await;
    s.replica_by(line.url("pipelined"));
    s.on_both(
        "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v text)",
    )
    .await;
    s.on_source("INSERT INTO a VALUES (1, 0)").await;
    s.publish_all().await;
    let daemon = s.start("").await;
    // All that is asked about the tables has been answered.
    s.on_source("UPDATE a SET v = 5; INSERT INTO b VALUES (1, 'first')")
        .await;
    s.in_step(&daemon, &["SELECT * FROM a", "SELECT * FROM b"])
        .await;
    // Nothing answers the first.
    let other = pair.replica.connect("pipelined").await.unwrap();
    let lock = "BEGIN; LOCK a IN SHARE MODE";
    other.batch_execute(lock).await.unwrap();
    s.on_source("BEGIN; UPDATE a SET v = 1; INSERT INTO b VALUES (7, 'behind the lock'); COMMIT")
        .await;
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND datname = 'pipelined' AND query LIKE '%UPDATE ONLY \"public\".\"a\"%'";
    s.replica_eventually(blocked, "1").await;
    let is_sent = async || line.has_carried("behind the lock").then_some(());
    eventually("the second to be sent", || daemon.stderr(), is_sent).await;
    other.batch_execute("COMMIT").await.unwrap();
    s.in_step(&daemon, &["SELECT * FROM a", "SELECT * FROM b"])
        .await;
    // One that fails in the middle takes what was sent behind it along: all of it is done again.
    s.on_replica("INSERT INTO b VALUES (8, 'other')").await;
    s.on_source("BEGIN; UPDATE a SET v = 2; INSERT INTO b VALUES (8, 'third'); INSERT INTO a VALUES (2, 2); COMMIT")
        .await;
    s.in_step(&daemon, &["SELECT * FROM a", "SELECT * FROM b"])
        .await;
    let log = pair.replica.log();
    let (_, after) = log.rsplit_once("unique constraint \"b_pkey\"").unwrap();
    assert!(after.contains("statement: ROLLBACK"), "{after}");
    s.end(daemon).await;
}

/// The end of a transaction whose first statement waits for a lock: whether it is sent before that ends.
#[tokio::test]
async fn a_small_batch_goes_in_one_go_with_its_commit() {
    let pair = telling().await;
    let mut s = Scenario::on_pair(&pair, "one_go").await;
    let line = Line::start(pair.replica.port()).await;
    s.replica_by(line.url("one_go"));
    s.on_both("CREATE TABLE a (id int PRIMARY KEY, v int UNIQUE)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let all = ["SELECT * FROM a"];
    s.on_source("INSERT INTO a VALUES (1, 1)").await;
    s.in_step(&daemon, &all).await;
    let other = pair.replica.connect("one_go").await.unwrap();
    let commits = || line.times_carried("SET LOCAL synchronous_commit = off; COMMIT");
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND datname = 'one_go' AND query LIKE '%INSERT INTO \"public\".\"a\"%'";
    for (rows, is_sent_behind) in [("(2, 2), (3, 3)".to_owned(), true), (many(10..50), false)] {
        let before = commits();
        let lock = "BEGIN; LOCK a IN SHARE MODE";
        other.batch_execute(lock).await.unwrap();
        s.on_source(&format!("INSERT INTO a VALUES {rows}")).await;
        s.replica_eventually(blocked, "1").await;
        if is_sent_behind {
            let is_sent = async || (commits() > before).then_some(());
            eventually("COMMIT to be sent", || daemon.stderr(), is_sent).await;
        } else {
            assert_eq!(commits(), before, "its rows are counted first");
        }
        other.batch_execute("COMMIT").await.unwrap();
        s.in_step(&daemon, &all).await;
    }
    // What the server objects to has been rolled back, and goes the usual way: a value that moves
    // between rows, and rows that the replica lacks.
    for (on_replica, on_source) in [
        (
            "SELECT",
            "BEGIN; UPDATE a SET v = 99 WHERE id = 2; UPDATE a SET v = 2 WHERE id = 3; UPDATE a SET v = 3 WHERE id = 2; COMMIT",
        ),
        (
            "DELETE FROM a WHERE id = 1",
            "UPDATE a SET v = -1 WHERE id = 1",
        ),
        ("SELECT", "UPDATE a SET v = -2 WHERE id = 1"),
    ] {
        s.on_replica(on_replica).await;
        s.on_source(on_source).await;
        s.in_step(&daemon, &all).await;
    }
    let conflicts = "pglockstep_conflicts_total{table=\"public.a\",kind=\"update_missing\"}";
    assert_eq!(daemon.metric(conflicts).await, Some(1.0));
    s.end(daemon).await;
}

/// Somebody may cancel just this: what is on the wire behind it must not become transactions of its own.
#[tokio::test]
async fn what_follows_a_begin_that_fails_writes_nothing() {
    let pair = telling().await;
    let mut s = Scenario::on_pair(&pair, "no_begin").await;
    let line = Line::start(pair.replica.port()).await;
    s.replica_by(line.url("no_begin"));
    s.on_both("CREATE TABLE a (id int PRIMARY KEY, v int)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let all = ["SELECT * FROM a"];
    s.on_source("INSERT INTO a VALUES (1, 1)").await;
    s.in_step(&daemon, &all).await;
    // In one go, and the usual way. A COPY is never behind: it waits for what is before it.
    for rows in ["(2, 2), (3, 3)".to_owned(), many(10..50)] {
        let before = pair.replica.log().len();
        line.spoil(["BEGIN READ WRITE", "BEGIN READ WRONG"]);
        s.on_source(&format!(
            "BEGIN; INSERT INTO a VALUES {rows}; UPDATE a SET v = v + 1 WHERE id = 1; COMMIT"
        ))
        .await;
        s.in_step(&daemon, &all).await;
        assert!(line.has_spoiled());
        let log = pair.replica.log().split_off(before);
        let (_, behind) = log.split_once("BEGIN READ WRONG").unwrap();
        assert!(behind.contains("in a read-only transaction"), "{behind}");
    }
    let conflicts = samples(&daemon, "pglockstep_conflicts_total").await;
    let is_none = !conflicts.is_empty() && conflicts.values().all(|count| *count == 0.0);
    assert!(is_none, "{conflicts:?}");
    s.end(daemon).await;
}

fn many(ids: Range<u32>) -> String {
    let rows = ids.map(|id| format!("({id}, {id})"));
    rows.collect::<Vec<_>>().join(", ")
}

/// One table whose types are the same on both sides, and one that has another type on the replica.
async fn alike_and_other(s: &Scenario<'_>) {
    let table = "CREATE TABLE alike (id int PRIMARY KEY, v int)";
    s.on_both(table).await;
    let other = "CREATE TABLE other (id int PRIMARY KEY, v int)";
    s.on_source(other).await;
    s.on_replica(&other.replace("v int", "v bigint")).await;
}

#[tokio::test]
async fn many_rows_are_copied_where_types_are_alike_and_inserted_elsewhere() {
    let pair = telling().await;
    let s = Scenario::on_pair(&pair, "many_rows").await;
    alike_and_other(&s).await;
    s.publish_all().await;
    let daemon = s.start("").await;
    s.caught_up(&daemon).await;
    // What the first copy has sent.
    let before = pair.replica.log().len();
    s.on_source(
        "BEGIN; INSERT INTO alike SELECT g, g FROM generate_series(1, 500) g; \
         INSERT INTO other SELECT g, g FROM generate_series(1, 500) g; COMMIT",
    )
    .await;
    s.in_step(&daemon, &["SELECT * FROM alike", "SELECT * FROM other"])
        .await;
    let log = pair.replica.log().split_off(before);
    let copied = found(
        &log,
        r#"COPY "public"\."(\w+)" \(.*\) FROM STDIN \(FORMAT binary\)"#,
    );
    assert_eq!(copied, ["alike"]);
    // The first row of those that are copied is inserted: a table of another form refuses it.
    let mut inserted = found(&log, r#"INSERT INTO "public"\."(\w+)""#);
    inserted.sort();
    assert_eq!(inserted, ["alike", "other"]);
    s.end(daemon).await;
}

#[tokio::test]
async fn values_are_handed_on_where_types_are_alike_and_converted_elsewhere() {
    let pair = telling().await;
    let s = Scenario::on_pair(&pair, "handed_on").await;
    alike_and_other(&s).await;
    s.on_source("INSERT INTO alike VALUES (1, 1); INSERT INTO other VALUES (1, 1)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let all = ["SELECT * FROM alike", "SELECT * FROM other"];
    s.in_step(&daemon, &all).await;
    let copies = |log: &str, format: &str| {
        let pattern = format!(r#"COPY .*"public"\."(\w+)".*\(FORMAT {format}\)"#);
        found(log, &pattern)
    };
    for log in [pair.source.log(), pair.replica.log()] {
        assert_eq!(copies(&log, "binary"), ["alike"]);
        assert_eq!(copies(&log, "text"), ["other"]);
    }
    s.on_source("INSERT INTO alike VALUES (2, 2); UPDATE alike SET v = 3 WHERE id = 1")
        .await;
    s.on_source("INSERT INTO other VALUES (2, 2); UPDATE other SET v = 3 WHERE id = 1")
        .await;
    s.in_step(&daemon, &all).await;
    // An array of the table's own rows, or one of each column.
    let log = pair.replica.log();
    let writes = |array: &str| {
        let pattern =
            format!(r#"(?:INSERT INTO|UPDATE ONLY) "public"\."(\w+)".*unnest\(\$1::{array}"#);
        found(&log, &pattern)
    };
    assert_eq!(writes(r#""public"\."alike"\[\]"#), ["alike", "alike"]);
    assert_eq!(writes(r#""pg_catalog"\."int4"\[\]"#), ["other", "other"]);
    s.end(daemon).await;
}

#[tokio::test]
async fn a_large_table_is_copied_in_ranges_and_a_small_one_whole() {
    let pair = telling().await;
    let s = Scenario::on_pair(&pair, "ranges").await;
    s.on_both("CREATE TABLE large (id int PRIMARY KEY, v text); CREATE TABLE small (LIKE large INCLUDING ALL)")
        .await;
    s.on_source(
        "INSERT INTO large SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 25000) g; \
         INSERT INTO small SELECT * FROM large LIMIT 100; ANALYZE",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("[copy]\nsplit_from = \"8MiB\"\nworkers = 2").await;
    s.in_step(&daemon, &["SELECT * FROM large", "SELECT * FROM small"])
        .await;
    let source = pair.source.log();
    let ranges = found(
        &source,
        r#"COPY \(SELECT .* FROM ONLY "public"\."large" .*(ctid >= '\(\d+,0\)')"#,
    );
    assert!(ranges.len() > 4, "{ranges:?}\n{source}");
    let mut different = ranges.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), ranges.len());
    let sessions = found(&source, r#"\[(\d+)\].*COPY \(SELECT .*"large""#);
    assert!(sessions.iter().any(|id| *id != sessions[0]), "{sessions:?}");
    let small = found(&source, r#"(COPY \(SELECT .*"small".*)"#);
    assert!(small.len() == 1 && !small[0].contains("ctid"), "{small:?}");
    s.end(daemon).await;
}

/// How to reach it by TLS, with a certificate of its own.
async fn secured(cluster: &Cluster, database: &str) -> String {
    let (certificate, key) = Authority::self_signed("localhost");
    cluster.write_file("server.key", key.as_bytes()).unwrap();
    let root = cluster
        .write_file("server.crt", certificate.as_bytes())
        .unwrap();
    cluster.alter_system("ssl", "on").await.unwrap();
    format!(
        "postgresql://postgres@localhost:{}/{database}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}",
        cluster.port(),
        root.display()
    )
}

/// However it is cut into records, all of it comes.
#[tokio::test]
async fn a_busy_stream_comes_over_tls() {
    let pair = Pair::start_with(PairOptions::default()).await;
    let mut s = Scenario::on_pair(&pair, "busy_tls").await;
    s.source_by(secured(&pair.source, "busy_tls").await);
    s.replica_by(secured(&pair.replica, "busy_tls").await);
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
    )
    .await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.caught_up(&daemon).await;
    daemon.terminate();
    // Messages below and above a record's 16 KiB, then a backlog of small ones.
    s.on_source("INSERT INTO t SELECT g, repeat('x', g * 97) FROM generate_series(1, 600) g")
        .await;
    s.on_source(
        "DO $$ BEGIN FOR n IN 1..2000 LOOP \
         INSERT INTO t SELECT n * 1000 + g, 'row ' || g FROM generate_series(1, 25) g; COMMIT; \
         END LOOP; END $$",
    )
    .await;
    daemon = s.start("").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    // On it goes, one at a time and all at once.
    for rows in [1, 20_000, 1] {
        s.on_source(&format!(
            "UPDATE t SET v = v || '.' WHERE id IN (SELECT id FROM t ORDER BY id LIMIT {rows})"
        ))
        .await;
        s.in_step(&daemon, &["SELECT * FROM t"]).await;
    }
    let by_tls = "SELECT bool_and(ssl) AND count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                  WHERE datname = 'busy_tls' AND application_name LIKE '%pglockstep%'";
    assert_eq!(s.one(by_tls).await, "t");
    assert_eq!(s.replica_one(by_tls).await, "t");
    s.end(daemon).await;
}
