//! D: transactions, as they come from the log: whole, in commit order, once.
//!
//! Protocol 1 is asked for, without streaming and without two-phase: what the source puts aside or
//! prepares is sent to nobody before its commit, and is a plain transaction then. So D2 and D3 try
//! that nothing is there too early and all of it once; there is no Stream or Prepare to be read.

use pglockstep::demo::cluster::StopMode;

use super::ground::{Ground, T, each, same};
use super::runner::{Case, case, pair};
use crate::support::{Daemon, Scenario, eventually};

pub const CASES: &[Case] = &[
    case!(d1_savepoints_a_thousand_deep),
    case!(d2_large_interleaved_and_partly_undone, Crossing),
    case!(d3_prepared_transactions, Crossing),
    case!(d3_prepared_over_a_crash_of_the_source),
    case!(d4_empty_transactions_move_the_slot, Each),
    case!(d5_messages_and_a_restart, Each),
    case!(d6_begun_first_and_committed_last),
    case!(d8_rows_that_came_from_elsewhere, Each),
];

async fn d1_savepoints_a_thousand_deep(g: Ground<'_>) {
    let step = |n: u32| format!("SAVEPOINT s{n}; INSERT INTO t VALUES ({n}, 'deep');");
    let nested: String = (1..=1000).map(step).collect();
    let beside: String = (2001..=3000)
        .map(|n| {
            let end = if n % 2 == 0 { "ROLLBACK TO" } else { "RELEASE" };
            format!("{} {end} s{n};", step(n))
        })
        .collect();
    g.follows(
        T,
        &[
            &format!("BEGIN; {nested} ROLLBACK TO s500; UPDATE t SET v = 'kept'; COMMIT"),
            &format!("BEGIN; DELETE FROM t; {nested} ROLLBACK"),
            &format!("BEGIN; {beside} COMMIT"),
            &format!("BEGIN; DELETE FROM t; {nested} RELEASE s1; COMMIT"),
        ],
    )
    .await;
}

/// Far more than the source keeps in memory, so that it spills them; DDL inside, undone.
async fn d2_large_interleaved_and_partly_undone(g: Ground<'_>) {
    let (s, daemon) = g.running(T, "").await;
    let other = g.pair.source.connect(g.name).await.unwrap();
    let beside = async |sql: &str| {
        let done = other.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    };
    s.on_source("BEGIN; INSERT INTO t SELECT g, repeat('a', 100) FROM generate_series(1, 3000) g")
        .await;
    s.on_source(
        "SAVEPOINT a; UPDATE t SET v = 'gone'; ALTER TABLE t ADD gone int DEFAULT 7;
         INSERT INTO t SELECT g, 'gone', g FROM generate_series(3001, 6000) g; ROLLBACK TO a",
    )
    .await;
    beside("BEGIN; INSERT INTO t SELECT g, 'other' FROM generate_series(10001, 13000) g").await;
    beside("SAVEPOINT b; DELETE FROM t; INSERT INTO t VALUES (10001, 'gone'); ROLLBACK TO b").await;
    s.on_source("INSERT INTO t VALUES (6001, 'last')").await;
    beside("UPDATE t SET v = v || '!' WHERE id % 7 = 0").await;
    // Nothing is there before its commit.
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "0");
    beside("COMMIT").await;
    s.replica_eventually("SELECT count(*) FROM t", "3000").await;
    s.on_source("COMMIT").await;
    same(&s, &daemon).await;
    s.on_source("BEGIN; UPDATE t SET v = 'undone'; DELETE FROM t; INSERT INTO t VALUES (1, 'undone'); ROLLBACK")
        .await;
    each(&s, &daemon, &["INSERT INTO t VALUES (0, 'after')"]).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "6002");
}

const PREPARED: [&str; 4] = [
    "BEGIN; INSERT INTO t VALUES (1, 'committed'); SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; PREPARE TRANSACTION '{}_kept'",
    "BEGIN; INSERT INTO t VALUES (2, 'rolled back'); PREPARE TRANSACTION '{}_gone'",
    "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{}_empty'",
    "INSERT INTO t VALUES (3, 'beside')",
];
const ENDED: [&str; 3] = [
    "COMMIT PREPARED '{}_kept'",
    "ROLLBACK PREPARED '{}_gone'",
    "COMMIT PREPARED '{}_empty'",
];

/// Identifiers of prepared transactions belong to the cluster.
async fn run_named(s: &Scenario<'_>, statements: &[&str]) {
    for sql in statements {
        s.on_source(&sql.replace("{}", &s.name)).await;
    }
}

async fn d3_prepared_transactions(g: Ground<'_>) {
    let (s, daemon) = g.running(T, "").await;
    run_named(&s, &PREPARED).await;
    s.replica_eventually("SELECT string_agg(v, ',' ORDER BY id) FROM t", "beside")
        .await;
    run_named(&s, &ENDED).await;
    same(&s, &daemon).await;
    let rows = s.replica_one("SELECT string_agg(v, ',' ORDER BY id) FROM t");
    assert_eq!(rows.await, "committed,beside");
}

async fn d3_prepared_over_a_crash_of_the_source(g: Ground<'_>) {
    // Its own source, since it crashes.
    let mut pair = pair(g.source, g.replica).await;
    let s = Scenario::on_pair(&pair, g.name).await;
    s.on_both(T).await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    run_named(&s, &PREPARED).await;
    same_query(&s, &daemon).await;
    daemon.kill9();
    drop(s);
    pair.source.stop(StopMode::Immediate).await.unwrap();
    pair.source.restart().await.unwrap();
    let s = Scenario::again(&pair, g.name).await;
    run_named(&s, &ENDED).await;
    let daemon = s.start("").await;
    same_query(&s, &daemon).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "2");
}

async fn same_query(s: &Scenario<'_>, daemon: &Daemon) {
    s.in_step(daemon, &["SELECT * FROM t"]).await;
}

async fn d4_empty_transactions_move_the_slot(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(T).await;
    s.on_source("CREATE TABLE unpublished (id int)").await;
    s.publish("FOR TABLE t").await;
    let daemon = s.start("").await;
    for _ in 0..20 {
        s.on_source("BEGIN; SELECT pg_current_xact_id(); COMMIT")
            .await;
        s.on_source("INSERT INTO unpublished VALUES (1)").await;
        s.on_source("BEGIN; CREATE TEMP TABLE x (id int); DROP TABLE x; COMMIT")
            .await;
    }
    let end = s.one("SELECT pg_current_wal_insert_lsn()").await;
    let confirmed = format!(
        "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'",
        s.slot()
    );
    eventually(
        "the slot to follow",
        || daemon.stderr(),
        async || (s.one(&confirmed).await == "t").then_some(()),
    )
    .await;
    s.on_source("INSERT INTO t VALUES (1, 'x')").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
}

async fn d5_messages_and_a_restart(g: Ground<'_>) {
    let (s, mut daemon) = g.running(T, "").await;
    let emit = |is_in: bool| {
        format!("SELECT pg_logical_emit_message({is_in}, 'app', repeat('x', 1000000))")
    };
    let (inside, outside) = (emit(true), emit(false));
    let statements = [
        inside.clone(),
        outside.clone(),
        format!(
            "BEGIN; INSERT INTO t VALUES (1, 'a'); {inside}; {outside}; INSERT INTO t VALUES (2, 'b'); COMMIT"
        ),
        format!("BEGIN; INSERT INTO t VALUES (3, 'gone'); {outside}; {inside}; ROLLBACK"),
        format!(
            "BEGIN; {inside}; SAVEPOINT a; {inside}; ROLLBACK TO a; INSERT INTO t VALUES (3, 'c'); COMMIT"
        ),
    ];
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    each(&s, &daemon, &statements).await;
    daemon.kill9();
    s.on_source(&outside).await;
    s.on_source(&format!(
        "BEGIN; {inside}; UPDATE t SET v = v || '!'; COMMIT"
    ))
    .await;
    let daemon = s.start("").await;
    same(&s, &daemon).await;
    assert_eq!(
        s.replica_one("SELECT string_agg(v, '' ORDER BY id) FROM t")
            .await,
        "a!b!c!"
    );
}

/// What was begun before the short ones is read from the log again after a restart; they are not.
async fn d6_begun_first_and_committed_last(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int, v text)";
    let (s, mut daemon) = g.running(both, "").await;
    let long = g.pair.source.connect(g.name).await.unwrap();
    long.batch_execute("BEGIN; INSERT INTO t SELECT g, 'long' FROM generate_series(1, 500) g")
        .await
        .unwrap();
    for round in 0..3 {
        for n in 0..20 {
            s.on_source(&format!("INSERT INTO t VALUES ({n}, 'short {round}')"))
                .await;
        }
        same(&s, &daemon).await;
        daemon.kill9();
        daemon = s.start("").await;
    }
    long.batch_execute("INSERT INTO t VALUES (0, 'long'); COMMIT")
        .await
        .unwrap();
    each(&s, &daemon, &["INSERT INTO t VALUES (99, 'after')"]).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "562");
}

async fn d8_rows_that_came_from_elsewhere(g: Ground<'_>) {
    let (s, daemon) = g.running(T, "").await;
    let origin = format!("{}_upstream", g.name);
    s.on_source(&format!(
        "SELECT pg_replication_origin_create('{origin}'), pg_replication_origin_session_setup('{origin}')"
    ))
    .await;
    s.on_source(
        "BEGIN; SELECT pg_replication_origin_xact_setup('0/ABCDEF', now() - interval '1 hour');
         INSERT INTO t VALUES (1, 'from upstream'), (2, 'from upstream'); COMMIT",
    )
    .await;
    s.on_source("SELECT pg_replication_origin_session_reset()")
        .await;
    each(
        &s,
        &daemon,
        &[
            "UPDATE t SET v = 'own' WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
        ],
    )
    .await;
    assert_eq!(s.replica_one("SELECT v FROM t").await, "own");
}
