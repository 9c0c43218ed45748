//! Thousands of tables: what is read for all of them at once stays fast enough to start, to be
//! scraped, and to see what joins. `PGLOCKSTEP_SOAK=1` only: making them takes longer than the rest.

use std::time::Instant;

use crate::support::{Daemon, Pair, PairOptions, Scenario, eventually, is_soak};

const TABLES: u32 = 10_000;
/// Says how long a step has taken.
fn took(what: &str, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    eprintln!("{TABLES} tables: {what} in {seconds:.1} s");
}

/// Waits until it says once more that it streams; however long that takes, while tables are copied.
/// Its metrics, asked for again and again, would be most of what it does.
async fn in_step(daemon: &Daemon, before: usize) -> usize {
    let evidence = || daemon.stderr().lines().rev().take(9).collect();
    let mut copied = 0;
    loop {
        let far = eventually("every table to be in step", evidence, async || {
            let said = daemon.stderr();
            let of = |words: &str| said.matches(words).count();
            assert!(!said.contains("has failed"), "{said}");
            let far = (of("table copied"), of("every table is in step"));
            (far.0 > copied || far.1 > before).then_some(far)
        })
        .await;
        if far.1 > before {
            return far.1;
        }
        copied = far.0;
    }
}

#[tokio::test]
async fn ten_thousand_tables_are_followed() {
    if !is_soak() {
        eprintln!("left out: PGLOCKSTEP_SOAK=1 runs it");
        return;
    }
    // With the locks that a server has by default: they are taken a few hundred tables at a time.
    let pair = Pair::start_with(PairOptions::default()).await;
    let s = Scenario::on_pair(&pair, "many_tables").await;
    let create = format!(
        "DO $$ BEGIN FOR n IN 1..{TABLES} LOOP
           EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', n);
           IF n % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$"
    );
    tokio::join!(s.on_source(&create), s.on_replica(&create));
    s.on_source("INSERT INTO t1 VALUES (1); INSERT INTO t10000 VALUES (1)")
        .await;
    s.publish_all().await;

    let since = Instant::now();
    let mut daemon = s.launch("");
    let streamed = in_step(&daemon, 0).await;
    took("streaming", since);

    let since = Instant::now();
    let metrics = daemon.http_get("/metrics").await.unwrap().body;
    took("/metrics", since);
    let last = "pglockstep_ledger_imbalance{table=\"public.t10000\"}";
    assert!(metrics.contains(last), "{} bytes", metrics.len());

    let changed = [
        "SELECT * FROM t1",
        "SELECT * FROM t5000",
        "SELECT * FROM t10000",
    ];
    let since = Instant::now();
    s.on_source("INSERT INTO t1 VALUES (2); INSERT INTO t5000 VALUES (2); DELETE FROM t10000")
        .await;
    s.in_step(&daemon, &changed).await;
    took("a change", since);

    // Nobody writes to it: only the look at the publication can find it.
    s.on_both("CREATE TABLE late (id int PRIMARY KEY)").await;
    let since = Instant::now();
    let copied =
        "SELECT count(*) FROM pglockstep.tables WHERE source_table = 'late' AND state = 'copied'";
    s.replica_eventually(copied, "1").await;
    in_step(&daemon, streamed).await;
    took("a table that joins", since);
    s.on_source("INSERT INTO late VALUES (1); INSERT INTO t5000 VALUES (3)")
        .await;
    s.in_step(&daemon, &["SELECT * FROM late", changed[1]])
        .await;
    assert!(daemon.terminate().success());
}
