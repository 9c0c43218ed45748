//! Following: what commits on the source is committed on the replica, whole and in order.

use futures_util::SinkExt;

use crate::support::{Family, Scenario, digest, eventually, fetch_rows, row};

static FAMILY: Family = Family::const_new();

const ALL: &str = "SELECT * FROM t";

/// A running pipeline over an empty table `t (id, v)`.
async fn with_table(name: &str) -> (Scenario<'static>, crate::support::Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    (s, daemon)
}

#[tokio::test]
async fn every_kind_of_statement() {
    let (s, daemon) = with_table("kinds").await;
    s.on_source("INSERT INTO t VALUES (1, 'one')").await;
    s.on_source("INSERT INTO t SELECT g, g::text FROM generate_series(2, 500) g")
        .await;
    s.in_step(&daemon, &[ALL]).await;

    s.on_source("UPDATE t SET v = v || '!' WHERE id % 3 = 0")
        .await;
    s.on_source("UPDATE t SET v = NULL WHERE id % 5 = 0").await;
    s.on_source("DELETE FROM t WHERE id % 7 = 0").await;
    s.on_source(
        "INSERT INTO t SELECT g, 'upsert ' || g FROM generate_series(400, 600) g
         ON CONFLICT (id) DO UPDATE SET v = excluded.v || ' over ' || coalesce(t.v, 'NULL')",
    )
    .await;
    s.on_source(
        "WITH gone AS (DELETE FROM t WHERE id < 20 RETURNING *)
         INSERT INTO t SELECT id + 1000, v FROM gone",
    )
    .await;
    let sink = s
        .source
        .copy_in::<_, bytes::Bytes>("COPY t FROM STDIN")
        .await
        .unwrap();
    let mut sink = std::pin::pin!(sink);
    let lines = (2000..4000).map(|id| format!("{id}\ttab\\there \\\\ {id}\n"));
    sink.send(lines.collect::<String>().into()).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 2000);
    s.in_step(&daemon, &[ALL]).await;
    assert_eq!(s.replica_one("SELECT count(*) > 2400 FROM t").await, "t");
}

#[tokio::test]
async fn transactions_that_leave_nothing_or_a_part() {
    let (s, daemon) = with_table("parts").await;
    s.on_source("INSERT INTO t VALUES (1, 'kept')").await;
    let (source, run) = (&s.source, async |sql: &str| s.on_source(sql).await);
    // What is rolled back never arrives, at whatever depth.
    run("BEGIN; INSERT INTO t VALUES (2, 'gone'); UPDATE t SET v = 'gone'; ROLLBACK").await;
    run("BEGIN; SAVEPOINT a; INSERT INTO t VALUES (3, 'gone'); ROLLBACK TO a; COMMIT").await;
    run("BEGIN; INSERT INTO t VALUES (4, 'kept');
         SAVEPOINT a; INSERT INTO t VALUES (5, 'gone'); DELETE FROM t WHERE id = 4;
         SAVEPOINT b; INSERT INTO t VALUES (6, 'gone'); RELEASE b;
         ROLLBACK TO a; INSERT INTO t VALUES (5, 'kept');
         SAVEPOINT c; INSERT INTO t VALUES (7, 'kept'); RELEASE c; COMMIT")
    .await;
    // A block that catches its own error is a savepoint, too.
    run("DO $$ BEGIN INSERT INTO t VALUES (8, 'kept');
           BEGIN INSERT INTO t VALUES (9, 'gone'); INSERT INTO t VALUES (8, 'twice');
           EXCEPTION WHEN unique_violation THEN NULL; END; END $$")
    .await;
    // Nothing for us: no change, a message, a table made and dropped, another's sequence.
    run("BEGIN; SELECT txid_current(); COMMIT").await;
    run("SELECT pg_logical_emit_message(true, 'app', 'in'), pg_logical_emit_message(false, 'app', 'out')").await;
    run("BEGIN; CREATE TABLE short (id int); DROP TABLE short; COMMIT").await;
    run("BEGIN; INSERT INTO t VALUES (10, 'kept');
         SELECT pg_logical_emit_message(true, 'app', repeat('x', 100000));
         INSERT INTO t VALUES (11, 'kept'); COMMIT")
    .await;
    s.in_step(&daemon, &[ALL]).await;
    let rows = s.replica_rows("SELECT v, count(*) FROM t GROUP BY v").await;
    assert_eq!(rows, [row(["kept", "7"])]);
    assert_eq!(
        fetch_rows(source, "SELECT 1 FROM t WHERE v <> 'kept'")
            .await
            .len(),
        0
    );
}

#[tokio::test]
async fn transactions_in_one_batch_are_merged_by_key() {
    let (s, daemon) = with_table("batches").await;
    s.on_source("INSERT INTO t SELECT g, 'first' FROM generate_series(1, 100) g")
        .await;
    s.in_step(&daemon, &[ALL]).await;
    let transactions = "pglockstep_transactions_applied_total";
    let batches = "pglockstep_apply_batch_seconds_count";
    let transactions_before = daemon.metric(transactions).await.unwrap();
    let batches_before = daemon.metric(batches).await.unwrap();

    // While a lock holds it up, changes pile up: every pair of kinds for some key.
    let other = s.pair.replica.connect(&s.name).await.unwrap();
    other
        .batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE")
        .await
        .unwrap();
    let kinds = [
        "INSERT INTO t VALUES (k, n)",
        "UPDATE t SET v = n WHERE id = k",
        "DELETE FROM t WHERE id = k",
        "UPDATE t SET id = k + 1000, v = n WHERE id = k",
        "UPDATE t SET id = k WHERE id = k + 1000",
    ];
    let mut state = 7u32;
    for number in 0..400 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let kind = kinds[(state >> 16) as usize % kinds.len()];
        let key = (state >> 8) % 12 + 95;
        let sql = kind
            .replace('n', &format!("'{number}'"))
            .replace('k', &key.to_string());
        // Some fail on a key that is there: they are rolled back and leave nothing.
        let _ = s.source.batch_execute(&sql).await;
    }
    let end = s.one("SELECT pg_current_wal_insert_lsn() - '0/0'").await;
    let end: f64 = end.parse().unwrap();
    s.on_source("INSERT INTO t VALUES (5000, 'beyond it')")
        .await;
    let evidence = || daemon.stderr();
    eventually("all to be received", evidence, async || {
        let received = daemon.metric("pglockstep_received_lsn").await?;
        (received > end).then_some(())
    })
    .await;
    other.batch_execute("ROLLBACK").await.unwrap();
    s.in_step(&daemon, &[ALL]).await;
    let transactions = daemon.metric(transactions).await.unwrap() - transactions_before;
    let batches = daemon.metric(batches).await.unwrap() - batches_before;
    assert!(transactions > 100.0, "{transactions}");
    assert!(
        batches * 5.0 < transactions,
        "{batches} batches for {transactions} transactions"
    );
}

#[tokio::test]
async fn truncate_in_every_company() {
    let s = Scenario::new(&FAMILY, "truncate").await;
    s.on_both(
        "CREATE TABLE parent (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
         CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent);
         CREATE TABLE grandchild (id int PRIMARY KEY, child int NOT NULL REFERENCES child);
         CREATE TABLE other (id int PRIMARY KEY, v text);",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;
    let all = [
        "SELECT * FROM parent",
        "SELECT * FROM child",
        "SELECT * FROM grandchild",
        "SELECT * FROM other",
    ];
    let fill = "INSERT INTO parent SELECT g, 'p' FROM generate_series(1, 10) g;
                INSERT INTO child SELECT g, g FROM generate_series(1, 10) g;
                INSERT INTO grandchild SELECT g, g FROM generate_series(1, 10) g;
                INSERT INTO other SELECT g, 'o' FROM generate_series(1, 10) g;";
    let empties = async |sql: &str, left: [&str; 4]| {
        s.on_source(
            "DELETE FROM grandchild; DELETE FROM child; DELETE FROM parent; DELETE FROM other",
        )
        .await;
        s.on_source(fill).await;
        s.in_step(&daemon, &all).await;
        s.on_source(sql).await;
        s.in_step(&daemon, &all).await;
        let counts = "SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child), \
                      (SELECT count(*) FROM grandchild), (SELECT count(*) FROM other)";
        assert_eq!(s.replica_rows(counts).await, [row(left)], "{sql}");
    };
    empties("TRUNCATE other", ["10", "10", "10", "0"]).await;
    empties("TRUNCATE grandchild, other", ["10", "10", "0", "0"]).await;
    empties("TRUNCATE child, grandchild, parent", ["0", "0", "0", "10"]).await;
    empties("TRUNCATE parent CASCADE", ["0", "0", "0", "10"]).await;
    empties(
        "BEGIN; INSERT INTO other VALUES (11, 'gone'); TRUNCATE other;
         INSERT INTO other VALUES (11, 'kept'), (1, 'again'); UPDATE other SET v = v || '!';
         TRUNCATE grandchild; INSERT INTO grandchild VALUES (1, 1); COMMIT",
        ["10", "10", "1", "2"],
    )
    .await;
    empties(
        "BEGIN; SAVEPOINT a; TRUNCATE other; ROLLBACK TO a; COMMIT",
        ["10", "10", "10", "10"],
    )
    .await;

    // The replica's own sequence starts again only when the source said so.
    let next = "SELECT nextval('parent_id_seq')";
    for _ in 0..3 {
        s.replica_one(next).await;
    }
    s.on_source("TRUNCATE parent CASCADE").await;
    s.caught_up(&daemon).await;
    assert_eq!(s.replica_one(next).await, "4");
    s.on_source("TRUNCATE parent RESTART IDENTITY CASCADE")
        .await;
    s.caught_up(&daemon).await;
    assert_eq!(s.replica_one(next).await, "1");
}

#[tokio::test]
async fn a_transaction_larger_than_a_batch_arrives_whole() {
    let s = Scenario::new(&FAMILY, "large").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE DEFERRABLE)")
        .await;
    s.publish_all().await;
    let daemon = s.start("[apply]\nbatch_changes_max = 1000").await;
    s.on_source("INSERT INTO t SELECT g, 'small', -g FROM generate_series(-50, -1) g")
        .await;
    let partly = tokio::spawn(watch_for(s.pair.replica.connect(&s.name).await.unwrap()));
    s.on_source(
        "BEGIN;
         INSERT INTO t SELECT g, g::text, g + 100 FROM generate_series(1, 200000) g;
         SAVEPOINT a;
         INSERT INTO t SELECT g, g::text, g + 100 FROM generate_series(200001, 205000) g;
         ROLLBACK TO a;
         UPDATE t SET v = 'updated' WHERE id % 100 = 0;
         -- Beyond any one part: a unique value is there twice until the end.
         SET CONSTRAINTS ALL DEFERRED;
         UPDATE t SET u = u + 1 WHERE id BETWEEN 1 AND 5000;
         UPDATE t SET u = 101 WHERE id = 5001;
         DELETE FROM t WHERE id % 1000 = 0;
         COMMIT",
    )
    .await;
    s.on_source("INSERT INTO t VALUES (0, 'after', 0)").await;
    s.caught_up(&daemon).await;
    assert_eq!(digest(&s.source, ALL).await, digest(&s.replica, ALL).await);
    assert_eq!(
        partly.await.unwrap(),
        199_850,
        "readers see none or all of it"
    );
}

/// Reads the count of rows until it leaves the first 50, and returns what it is then.
async fn watch_for(replica: tokio_postgres::Client) -> i64 {
    loop {
        let count: i64 = replica
            .query_one("SELECT count(*) FROM t WHERE id <> 0", &[])
            .await
            .unwrap()
            .get(0);
        if count > 50 {
            return count;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A batch is full by the bytes that arrived though none of them is ours.
#[tokio::test]
async fn a_large_transaction_of_which_little_is_ours() {
    let s = Scenario::new(&FAMILY, "little").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await;
    s.on_source("CREATE TABLE others (id int PRIMARY KEY, v text)")
        .await;
    s.publish_all().await;
    let rule = "[apply]\nbatch_bytes_max = \"64KiB\"\n[[tables]]\nsource = \"public.t\"\n";
    let daemon = s.start(rule).await;
    let others = "INSERT INTO others SELECT coalesce(max(id), 0) + g, repeat('x', 1000) \
                  FROM others, generate_series(1, 2000) g GROUP BY g";
    s.on_source("INSERT INTO others VALUES (0, 'first')").await;
    for id in [1, 3] {
        s.on_source(&format!(
            "BEGIN; {others}; INSERT INTO t VALUES ({id}, 'ours'); {others}; INSERT INTO t VALUES ({id} + 1, 'ours'); COMMIT"
        ))
        .await;
        s.in_step(&daemon, &[ALL]).await;
    }
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "4");
}

#[tokio::test]
async fn memory_does_not_grow_with_a_transaction() {
    const RSS_BYTES_MAX: u64 = 64 << 20;
    let (s, daemon) = with_table("memory").await;
    s.on_source(
        "INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 300000) g",
    )
    .await;
    s.caught_up(&daemon).await;
    s.on_source("UPDATE t SET v = v || 'x'").await;
    s.caught_up(&daemon).await;
    assert_eq!(digest(&s.source, ALL).await, digest(&s.replica, ALL).await);
    let rss = daemon.rss_bytes_max();
    assert!(rss < RSS_BYTES_MAX, "{} MiB", rss >> 20);
}

#[tokio::test]
async fn readers_never_see_half_a_transaction() {
    const ACCOUNTS: u32 = 50;
    let s = Scenario::new(&FAMILY, "bank").await;
    s.on_both(
        "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
         CREATE TABLE transfer (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
                                giver int NOT NULL, taker int NOT NULL, amount int NOT NULL);",
    )
    .await;
    s.on_source(&format!(
        "INSERT INTO account SELECT g, 1000 FROM generate_series(1, {ACCOUNTS}) g"
    ))
    .await;
    s.publish_all().await;
    let daemon = s.start("").await;

    let (tell_done, mut is_done) = tokio::sync::watch::channel(false);
    let (tell_seen, states_seen) = tokio::sync::watch::channel(0);
    let reader = s.pair.replica.connect(&s.name).await.unwrap();
    let reading = tokio::spawn(async move {
        // Each account is where its transfers have brought it, and none is missing in between.
        let sql = "SELECT (SELECT sum(balance) FROM account),
                          (SELECT count(*) FROM account a WHERE balance <> 1000
                             - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE giver = a.id)
                             + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE taker = a.id)),
                          (SELECT count(*) FROM transfer)";
        let mut seen = std::collections::BTreeSet::new();
        while !*is_done.borrow_and_update() {
            let rows = fetch_rows(&reader, sql).await;
            assert_eq!(rows[0][..2], row(["50000", "0"])[..]);
            seen.insert(rows[0][2].clone());
            tell_seen.send_replace(seen.len());
        }
    });
    let mut load = tokio::task::JoinSet::new();
    for seed in 1..=3u32 {
        let client = s.pair.source.connect(&s.name).await.unwrap();
        let states_seen = states_seen.clone();
        load.spawn(async move {
            let mut state = seed;
            let mut transfers = 0;
            // Until the reader has met enough states in between, however slow it is.
            while transfers < 400 || *states_seen.borrow() <= 5 {
                transfers += 1;
                assert!(transfers < 50_000, "the reader meets no states in between");
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (a, b) = ((state >> 8) % ACCOUNTS + 1, (state >> 16) % ACCOUNTS + 1);
                let (first, second) = (a.min(b), a.max(b));
                // Locked in one order, so that no two wait for each other.
                let sql = format!(
                    "BEGIN; SELECT 1 FROM account WHERE id IN ({first}, {second}) ORDER BY id FOR UPDATE;
                     UPDATE account SET balance = balance - 7 WHERE id = {a};
                     UPDATE account SET balance = balance + 7 WHERE id = {b};
                     INSERT INTO transfer (giver, taker, amount) VALUES ({a}, {b}, 7); COMMIT"
                );
                client.batch_execute(&sql).await.unwrap();
            }
        });
    }
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    s.in_step(
        &daemon,
        &["SELECT * FROM account", "SELECT * FROM transfer"],
    )
    .await;
    tell_done.send_replace(true);
    reading.await.unwrap();
}
