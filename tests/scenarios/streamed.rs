//! Transactions that the source sends while they run: written at once, seen when they commit, and
//! gone when they roll back. The source keeps 64 kB of a transaction in memory, and sends the rest.
//! Each test has clusters of its own: a transaction that runs holds up the slots of all databases.

use tokio_postgres::Client;

use pglockstep::demo::cluster::ClusterOptions;

use crate::support::{Daemon, Pair, PairOptions, Scenario, digest, eventually, fetch_rows};

const ALL: [&str; 2] = ["SELECT * FROM t", "SELECT * FROM small"];
/// A transaction that runs has written to the replica's table.
const IS_WRITTEN: &str = "SELECT count(*) > 0 FROM pg_locks WHERE granted \
     AND relation = 't'::regclass AND mode IN ('RowExclusiveLock', 'AccessExclusiveLock')";

/// Two tables, a running pipeline, and a session of the source for what is large.
struct Streams<'a> {
    s: Scenario<'a>,
    daemon: Daemon,
    large: Client,
}

impl<'a> Streams<'a> {
    async fn start(pair: &'a Pair) -> Self {
        Self::with(pair, "").await
    }

    /// With more on the replica than the tables.
    async fn with(pair: &'a Pair, on_replica: &str) -> Self {
        let s = Scenario::on_pair(pair, "streamed").await;
        s.on_both(
            "CREATE TABLE t (id int PRIMARY KEY, v text);
             CREATE TABLE small (id int PRIMARY KEY, n int)",
        )
        .await;
        s.on_replica(on_replica).await;
        s.publish_all().await;
        let daemon = launch(&s).await;
        let large = s.pair.source.connect("streamed").await.unwrap();
        Self { s, daemon, large }
    }

    /// A statement of the large transaction.
    async fn run(&self, sql: &str) {
        let done = self.large.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    }

    /// How many ended so.
    async fn outcome(&self, outcome: &str) -> f64 {
        let sample = format!("pglockstep_streamed_transactions_total{{outcome=\"{outcome}\"}}");
        self.daemon.metric(&sample).await.unwrap()
    }

    async fn outcomes(&self) -> [f64; 3] {
        [
            self.outcome("committed").await,
            self.outcome("rolled_back").await,
            self.outcome("whole").await,
        ]
    }

    /// Waits until the transaction that runs was let go, to be taken whole.
    async fn until_whole(&self, why: &str) {
        self.daemon.until_said(why).await;
        eventually(
            "whole transactions",
            || self.daemon.stderr(),
            async || (self.outcome("whole").await > 0.0).then_some(()),
        )
        .await;
    }

    async fn in_step(&self) {
        self.s.in_step(&self.daemon, &ALL).await;
    }
}

async fn pair() -> Pair {
    let options = PairOptions {
        source: ClusterOptions::default().with("logical_decoding_work_mem", "64kB"),
        replica: ClusterOptions::default(),
    };
    Pair::start_with(options).await
}

/// One that waits half a second for locks, and streams.
async fn launch(s: &Scenario<'_>) -> Daemon {
    launch_with(s, "").await
}

async fn launch_with(s: &Scenario<'_>, more: &str) -> Daemon {
    let limits = [("PGLOCKSTEP_LIMITS", "apply.lock_wait_ms=500")];
    let mut daemon = Daemon::start_with(&s.config(more), &limits);
    s.until_state(&mut daemon, "streaming").await;
    daemon
}

fn insert(from: u32, to: u32, v: &str) -> String {
    format!("INSERT INTO t SELECT g, '{v}' || repeat('x', 40) FROM generate_series({from}, {to}) g")
}

#[tokio::test]
async fn it_is_written_while_it_runs_and_seen_when_it_commits() {
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    let s = &streams.s;
    let reader = s.pair.replica.connect(&s.name).await.unwrap();
    let (tell_done, is_done) = tokio::sync::watch::channel(false);
    let reading = tokio::spawn(async move {
        let mut seen = std::collections::BTreeSet::new();
        while !*is_done.borrow() {
            let sql = "SELECT count(*), count(*) FILTER (WHERE v LIKE 'changed%') FROM t";
            let row = fetch_rows(&reader, sql).await.remove(0);
            seen.insert((row[0].clone().unwrap(), row[1].clone().unwrap()));
        }
        seen
    });
    streams.run("BEGIN").await;
    streams.run(&insert(1, 10_000, "new")).await;
    s.replica_eventually(IS_WRITTEN, "t").await;
    // Others commit meanwhile, and it goes on with their rows.
    for id in 1..=20 {
        s.on_source(&format!("INSERT INTO small VALUES ({id}, 0)"))
            .await;
        streams
            .run(&format!("UPDATE small SET n = 1 WHERE id = {id}"))
            .await;
        streams
            .run(&insert(10_000 + id * 1_000, 10_999 + id * 1_000, "new"))
            .await;
    }
    s.replica_eventually("SELECT count(*) FROM small WHERE n = 0", "20")
        .await;
    streams
        .run("UPDATE t SET v = 'changed' || v WHERE id % 2 = 0")
        .await;
    streams.run("DELETE FROM t WHERE id % 1000 = 1").await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "0");
    streams.run("COMMIT").await;
    streams.in_step().await;
    tell_done.send_replace(true);
    let seen = reading.await.unwrap();
    let none = ("0".to_owned(), "0".to_owned());
    let count = |sql| s.replica_one(sql);
    let all = (
        count("SELECT count(*) FROM t").await,
        count("SELECT count(*) FROM t WHERE v LIKE 'changed%'").await,
    );
    assert!(seen.contains(&none), "{seen:?}");
    assert!(
        seen.iter().all(|state| *state == none || *state == all),
        "{seen:?}"
    );
    assert_eq!(streams.outcomes().await, [1.0, 0.0, 0.0]);
}

/// Where nobody has set a limit, segments are as small as we take them in: a server would hold 64 MB.
#[tokio::test]
async fn a_source_with_default_settings_sends_short_segments() {
    let pair = Pair::start_with(PairOptions::default()).await;
    let streams = Streams::start(&pair).await;
    streams.run("BEGIN").await;
    // Some 20 MB.
    streams.run(&insert(1, 80_000, "new")).await;
    streams.s.replica_eventually(IS_WRITTEN, "t").await;
    streams.run("COMMIT").await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [1.0, 0.0, 0.0]);
}

#[tokio::test]
async fn what_rolls_back_within_it_leaves_nothing() {
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    let s = &streams.s;
    // Large enough to be sent so itself.
    s.on_source(&insert(1, 1_000, "before")).await;
    streams.in_step().await;
    streams.run("BEGIN").await;
    for sql in [
        insert(1_001, 3_000, "kept").as_str(),
        "SAVEPOINT a",
        &insert(3_001, 6_000, "gone"),
        "UPDATE t SET v = 'gone' WHERE id <= 2000",
        "SAVEPOINT b",
        "DELETE FROM t WHERE id % 3 = 0",
        &insert(9_001, 12_000, "gone"),
        "RELEASE b",
        "UPDATE t SET id = id + 100000 WHERE id < 500",
        "ROLLBACK TO a",
        &insert(3_001, 6_000, "kept"),
        "RELEASE a",
        "SAVEPOINT c",
        "UPDATE t SET v = v || '!' WHERE id % 2 = 0",
        "SAVEPOINT d",
        &insert(6_001, 9_000, "gone"),
        "ROLLBACK TO d",
        &insert(6_001, 9_000, "kept"),
        "RELEASE c",
        "DELETE FROM t WHERE id % 7 = 0",
        // A block that catches its own errors, again and again.
        "DO $$ BEGIN FOR i IN 1..30 LOOP BEGIN
           INSERT INTO t SELECT 20000 + i * 100 + g, repeat('y', 90) FROM generate_series(1, 100) g;
           IF i % 3 = 0 THEN INSERT INTO t VALUES (1, 'twice'); END IF;
         EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$",
        "UPDATE t SET v = v || '?' WHERE id % 11 = 0",
    ] {
        streams.run(sql).await;
        // Small ones come in between.
        s.on_source("INSERT INTO small SELECT coalesce(max(id), 0) + 1, 0 FROM small")
            .await;
    }
    let mine = fetch_rows(
        &streams.large,
        "SELECT count(*) FROM t WHERE v LIKE 'gone%'",
    )
    .await;
    assert_eq!(mine[0][0].as_deref(), Some("0"));
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "1000");
    streams.run("COMMIT").await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [2.0, 0.0, 0.0]);
}

#[tokio::test]
async fn one_that_rolls_back_leaves_nothing() {
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    let s = &streams.s;
    s.on_source(&insert(1, 100, "before")).await;
    for _ in 0..2 {
        streams.run("BEGIN; UPDATE t SET v = 'gone'").await;
        streams.run(&insert(1_001, 9_000, "gone")).await;
        streams
            .run("SAVEPOINT a; DELETE FROM t WHERE id < 50; RELEASE a")
            .await;
        s.replica_eventually(IS_WRITTEN, "t").await;
        streams.run("ROLLBACK").await;
        // Its rows are free again.
        s.on_source("UPDATE t SET v = 'after' WHERE id <= 100")
            .await;
        streams.in_step().await;
    }
    assert_eq!(streams.outcomes().await, [0.0, 2.0, 0.0]);
}

#[tokio::test]
async fn killed_or_ended_amid_it_begins_it_again() {
    let pair = pair().await;
    let mut streams = Streams::start(&pair).await;
    for is_kill in [true, false] {
        streams.run("BEGIN; DELETE FROM t").await;
        streams.run(&insert(1, 8_000, "new")).await;
        streams.s.replica_eventually(IS_WRITTEN, "t").await;
        streams
            .s
            .on_source("INSERT INTO small SELECT count(*), 0 FROM small")
            .await;
        if is_kill {
            streams.daemon.kill9();
        } else {
            assert!(
                streams.daemon.terminate().success(),
                "{}",
                streams.daemon.stderr()
            );
        }
        streams.daemon = launch(&streams.s).await;
        streams.run(&insert(8_001, 16_000, "new")).await;
        streams.run("COMMIT").await;
        streams.in_step().await;
        assert_eq!(streams.outcomes().await, [1.0, 0.0, 0.0]);
    }
}

#[tokio::test]
async fn two_at_once_and_a_table_emptied_within() {
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    let s = &streams.s;
    s.on_source(&insert(1, 100, "before")).await;
    s.on_source("INSERT INTO small SELECT g, 0 FROM generate_series(1, 100) g")
        .await;
    let other = s.pair.source.connect(&s.name).await.unwrap();
    streams.run("BEGIN; TRUNCATE t").await;
    other
        .batch_execute("BEGIN; DELETE FROM small WHERE id < 50")
        .await
        .unwrap();
    for round in 0..8u32 {
        let (from, to) = (round * 2_000 + 1, round * 2_000 + 2_000);
        streams.run(&insert(from, to, "t")).await;
        let into_small =
            format!("INSERT INTO small SELECT 1000 + g, g FROM generate_series({from}, {to}) g");
        other.batch_execute(&into_small).await.unwrap();
        s.on_source(&format!("UPDATE small SET n = {round} WHERE id = 99"))
            .await;
    }
    s.replica_eventually(IS_WRITTEN, "t").await;
    s.replica_eventually(&IS_WRITTEN.replace("'t'", "'small'"), "t")
        .await;
    s.replica_eventually("SELECT n FROM small WHERE id = 99", "7")
        .await;
    other
        .batch_execute("DELETE FROM small WHERE id % 3 = 0; COMMIT")
        .await
        .unwrap();
    s.in_step(&streams.daemon, &[ALL[1]]).await;
    streams
        .run("UPDATE t SET v = v || '!' WHERE id % 5 = 0")
        .await;
    streams.run("COMMIT").await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [2.0, 0.0, 0.0]);
}

/// Each that is written while it runs has a session of the replica.
#[tokio::test]
async fn more_at_once_than_there_are_sessions_are_taken_whole() {
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    let s = &streams.s;
    let mut running = Vec::new();
    for number in 0..5u32 {
        let session = s.pair.source.connect(&s.name).await.unwrap();
        let (from, to) = (number * 5_000 + 1, number * 5_000 + 5_000);
        let begin = format!("BEGIN; {}", insert(from, to, "t"));
        session.batch_execute(&begin).await.unwrap();
        running.push(session);
    }
    streams.until_whole("in progress at once").await;
    for (number, session) in running.iter().enumerate() {
        let end = ["COMMIT", "ROLLBACK"][usize::from(number == 3)];
        session.batch_execute(end).await.unwrap();
    }
    streams.in_step().await;
    let rows = s.replica_one("SELECT count(*) FROM t").await;
    assert_eq!(rows, "20000");
    assert_eq!(streams.outcome("committed").await, 0.0);
}

#[tokio::test]
async fn where_others_wait_for_it_on_the_replica_it_is_taken_whole() {
    let pair = pair().await;
    let streams = Streams::with(&pair, "CREATE UNIQUE INDEX ON t (v)").await;
    let s = &streams.s;
    streams
        .run("BEGIN; INSERT INTO t VALUES (1, 'wanted')")
        .await;
    streams
        .run("INSERT INTO t SELECT g, repeat(md5(g::text), 3) FROM generate_series(10, 5000) g")
        .await;
    s.replica_eventually(IS_WRITTEN, "t").await;
    s.on_source("INSERT INTO t VALUES (2, 'wanted')").await;
    streams.until_whole("lock").await;
    s.replica_eventually("SELECT count(*) FROM t WHERE v = 'wanted'", "1")
        .await;
    streams
        .run("UPDATE t SET v = 'mine' WHERE id = 1; COMMIT")
        .await;
    streams.in_step().await;
    // And so are those that come after.
    streams.run("BEGIN").await;
    streams.run("DELETE FROM t WHERE id > 5; COMMIT").await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn one_that_changes_a_table_s_form_is_taken_whole() {
    let pair = pair().await;
    let streams = Streams::with(&pair, "ALTER TABLE t ADD w int").await;
    let s = &streams.s;
    streams.run("BEGIN").await;
    streams.run(&insert(1, 5_000, "new")).await;
    s.replica_eventually(IS_WRITTEN, "t").await;
    streams.run("ALTER TABLE t ADD w int DEFAULT 7").await;
    streams.run(&insert(5_001, 10_000, "new")).await;
    streams.until_whole("describes").await;
    s.on_source("INSERT INTO small VALUES (1, 1)").await;
    // A start on newer servers waits for the table's lock: seen on 18, not on 14 and 15.
    if s.one("SELECT current_setting('server_version_num')::int < 160000")
        .await
        == "t"
    {
        s.in_step(&streams.daemon, &[ALL[1]]).await;
    }
    streams.run("COMMIT").await;
    let later = "SELECT id, v, w FROM t WHERE id > 5000";
    s.in_step(&streams.daemon, &["SELECT id, v FROM t", later])
        .await;
    assert_eq!(streams.outcomes().await, [0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn one_that_cannot_be_applied_fails_when_it_has_committed() {
    let pair = pair().await;
    let mut streams = Streams::with(&pair, "ALTER TABLE t ADD CHECK (v <> 'bad')").await;
    streams.run("BEGIN; INSERT INTO t VALUES (1, 'bad')").await;
    streams.run(&insert(2, 5_000, "new")).await;
    streams.until_whole("check constraint").await;
    // It has done no harm, and may yet roll back.
    streams.run("ROLLBACK").await;
    let s = &streams.s;
    s.on_source("INSERT INTO small VALUES (1, 1)").await;
    streams.in_step().await;
    assert_eq!(
        streams.daemon.metric("pglockstep_open_errors").await,
        Some(0.0)
    );
    streams.run("BEGIN; INSERT INTO t VALUES (1, 'bad')").await;
    streams.run(&insert(2, 5_000, "new")).await;
    streams.run("COMMIT").await;
    s.until_failed(&mut streams.daemon, &["check constraint"])
        .await;
    s.on_replica("ALTER TABLE t DROP CONSTRAINT t_v_check")
        .await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn tables_that_no_rule_speaks_of_do_not_matter() {
    let pair = pair().await;
    let mut streams = Streams::start(&pair).await;
    assert!(streams.daemon.terminate().success());
    streams
        .s
        .on_source("CREATE TABLE other (id int PRIMARY KEY, v text)")
        .await;
    let rules = "[[tables]]\nsource = \"public.t\"\n\n[[tables]]\nsource = \"public.small\"\n";
    streams.daemon = launch_with(&streams.s, rules).await;
    let into_other = insert(1, 5_000, "mine").replace("INTO t", "INTO other");
    streams.run(&into_other).await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [0.0, 0.0, 0.0]);
    streams.run("BEGIN; UPDATE other SET v = v || '!'").await;
    streams.run(&insert(1, 5_000, "ours")).await;
    streams
        .run("SAVEPOINT a; DELETE FROM other; ROLLBACK TO a; COMMIT")
        .await;
    streams.in_step().await;
    assert_eq!(streams.outcomes().await, [1.0, 0.0, 0.0]);
}

#[tokio::test]
async fn memory_does_not_grow_with_it() {
    const RSS_BYTES_MAX: u64 = 64 << 20;
    let pair = pair().await;
    let streams = Streams::start(&pair).await;
    streams
        .run("BEGIN; INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 300000) g")
        .await;
    streams.run("UPDATE t SET v = v || 'x'; COMMIT").await;
    streams.s.caught_up(&streams.daemon).await;
    let digests = (
        digest(&streams.s.source, ALL[0]).await,
        digest(&streams.s.replica, ALL[0]).await,
    );
    assert_eq!(digests.0, digests.1);
    let rss = streams.daemon.rss_bytes_max();
    assert!(rss < RSS_BYTES_MAX, "{} MiB", rss >> 20);
    assert_eq!(streams.outcomes().await, [1.0, 0.0, 0.0]);
}
