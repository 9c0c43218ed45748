//! Huge tables are compared slice by slice, in several turns if need be; here the slices are tiny.

use crate::support::{
    Daemon, Family, Scenario, drift_of, eventually, reported, until_metric, verb,
};
use std::cell::Cell;

static FAMILY: Family = Family::const_new();

/// The key's columns have other names on the replica, and another order than the table's.
const MAPPED: &str = "[verify]\nevery = \"0s\"\ncounts_every = \"0s\"\nslice = \"64KiB\"
    [[tables]]\nsource = \"public.events\"\nreplica = \"public.happenings\"
    columns = { tenant = \"tenant_id\", id = \"event_id\" }\nset = { loud = \"upper(note)\" }
    where = \"n % 10 <> 9\"
    [[tables]]\nsource = \"public.*\"";
const TURNS: &str =
    "[verify]\nevery = \"10s\"\ncounts_every = \"0s\"\nbudget = \"1ms\"\nslice = \"96KiB\"";
const SLICED: &str = "[verify]\nevery = \"0s\"\ncounts_every = \"0s\"\nslice = \"64KiB\"";
const ROWS: u32 = 20_000;
const LEADS: u32 = 3_400;

async fn events(name: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_source(
        "CREATE TABLE events (n int NOT NULL, id uuid, tenant int, at timestamptz, note text, PRIMARY KEY (tenant, id));
         CREATE TABLE log (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE log_low PARTITION OF log FOR VALUES FROM (MINVALUE) TO (3000000);
         CREATE TABLE log_high PARTITION OF log FOR VALUES FROM (3000000) TO (MAXVALUE)",
    )
    .await;
    s.on_replica(
        "CREATE TABLE happenings (loud text, event_id uuid, n int, at timestamptz, note text, tenant_id int, \
           PRIMARY KEY (tenant_id, event_id));
         CREATE TABLE log (id bigint PRIMARY KEY, v text)",
    )
    .await;
    s.on_source(&format!(
        "INSERT INTO events SELECT g, md5(g::text)::uuid, g % 11 - 5, '2026-01-01 00:00+00'::timestamptz + g * interval '1 h', \
           repeat('n', g % 90) FROM generate_series(1, {ROWS}) g;
         INSERT INTO log SELECT g * 1000 - 10000000, repeat('v', g % 120) FROM generate_series(1, {ROWS}) g"
    ))
    .await;
    s.publish("FOR ALL TABLES WITH (publish_via_partition_root)")
        .await;
    let daemon = s.start(MAPPED).await;
    (s, daemon)
}

/// Rows come, go, change and get other keys in all slices, until told to stop; those that are planted
/// as differences (`n` and `id` ending in 1 to 3) are let be.
async fn work(s: &Scenario<'_>, is_done: &Cell<bool>) -> u32 {
    let mut rounds = 0;
    while !is_done.get() {
        rounds += 1;
        s.on_source(&format!(
            "BEGIN; UPDATE events SET note = 'round {rounds}' WHERE n % 40 = 4 AND n % 31 = {rounds} % 31;
             UPDATE events SET tenant = 10 - tenant WHERE n % 40 = 5 AND n % 29 = {rounds} % 29;
             INSERT INTO events SELECT 40 * g, md5('r' || {rounds} || g)::uuid, g % 11 - 5, now(), 'new' FROM generate_series(1, 30) g;
             DELETE FROM events WHERE note = 'new' AND at < now() - interval '1 s'; COMMIT;
             UPDATE log SET id = id + 7 WHERE id % 40000 = 0 AND id < 10000000 AND v <> '{rounds}'; UPDATE log SET id = id - 7 WHERE id % 40000 = 7"
        ))
        .await;
    }
    rounds
}

#[tokio::test]
async fn under_load_all_is_found_and_nothing_invented_wherever_slices_end() {
    let (s, daemon) = events("sliced").await;
    s.caught_up(&daemon).await;
    let is_done = Cell::new(false);
    let work = work(&s, &is_done);
    let look = async {
        for _ in 0..3 {
            let (code, report) = reported(&s, MAPPED, &["verify"]).await;
            assert_eq!(code, Some(0), "{report}");
            assert_eq!(report["tables"].as_array().unwrap().len(), 2);
        }
        let count = async |sql: &str| s.replica_one(sql).await.parse::<u64>().unwrap();
        let missing = count("SELECT count(*) FROM happenings WHERE n % 400 = 1").await;
        let different = count("SELECT count(*) FROM happenings WHERE n % 400 = 2").await;
        let nulls = count("SELECT count(*) FROM log WHERE id % 1000000 = 1000").await;
        // The first, the last, and some of all slices; beyond both ends as well.
        s.on_replica(
            "DELETE FROM happenings WHERE n % 400 = 1; UPDATE happenings SET loud = loud || '!' WHERE n % 400 = 2;
             INSERT INTO happenings SELECT NULL, md5('x' || g)::uuid, 3, NULL, 'ours', g FROM generate_series(-30, 30) g;
             DELETE FROM log WHERE id = (SELECT min(id) FROM log) OR id = (SELECT max(id) FROM log);
             INSERT INTO log SELECT g, 'ours' FROM unnest('{-90000000001,1,20001,90000000001}'::int8[]) g;
             UPDATE log SET v = NULL WHERE id % 1000000 = 1000",
        )
        .await;
        for _ in 0..3 {
            let (code, report) = reported(&s, MAPPED, &["verify"]).await;
            assert_eq!(code, Some(1), "{report}");
            let expected = [missing, 61, different];
            assert_eq!(drift_of(&report, "public.events"), expected, "{report}");
            assert_eq!(drift_of(&report, "public.log"), [2, 4, nulls], "{report}");
        }
        is_done.set(true);
    };
    let (rounds, ()) = tokio::join!(work, look);
    assert!(rounds > 3, "{rounds}");
    let (code, said) = verb(&s, MAPPED, &["repair", "--apply", "--delete-extra"]);
    assert_eq!(code, Some(0), "{said}");
    s.end(daemon).await;
    let (code, said) = verb(&s, MAPPED, &["verify"]);
    assert_eq!(code, Some(0), "{said}");
    // Of a table that is read at once nothing is told before it is done.
    for table in ["comparing public.events", "comparing public.log"] {
        assert!(said.matches(table).count() > 1, "{said}");
    }
}

#[tokio::test]
async fn a_huge_table_is_compared_in_turns_and_what_is_proven_outlives_a_restart() {
    let s = Scenario::new(&FAMILY, "turns").await;
    s.on_both("CREATE TABLE leads (id bigint PRIMARY KEY, v text)")
        .await;
    s.on_source(&format!(
        "INSERT INTO leads SELECT g, repeat('v', 100) FROM generate_series(1, {LEADS}) g"
    ))
    .await;
    s.publish_all().await;
    let daemon = s.start(TURNS).await;
    s.caught_up(&daemon).await;
    s.on_replica(&format!(
        "UPDATE leads SET v = 'ours' WHERE id IN (1, {LEADS})"
    ))
    .await;
    let of = |metric: &str| format!("pglockstep_{metric}{{table=\"public.leads\"}}");
    let part = of("verified_part_ratio");
    // What is found in a part is told at once.
    daemon
        .until_said("a part of the replica table is not")
        .await;
    until_metric(&daemon, &of("in_sync"), 0.0).await;
    let different = "pglockstep_drift_rows{table=\"public.leads\",kind=\"different\"}";
    assert_eq!(daemon.metric(different).await, Some(1.0));
    let further = async || daemon.metric(&part).await.filter(|share| *share > 0.3);
    let share = eventually("a third is compared", || daemon.stderr(), further).await;
    s.end(daemon).await;
    let kept = "SELECT upto[1]::int8 || ' ' || source_rows FROM pglockstep.proof_parts WHERE different = 1";
    let kept = s.replica_one(kept).await;
    let (upto, rows) = kept.split_once(' ').unwrap();
    assert_eq!(upto, rows, "ids are dense");
    assert!(upto.parse::<u32>().unwrap() < LEADS, "{kept}");
    let daemon = s.start(TURNS).await;
    let known = async || daemon.metric(&part).await;
    let known = eventually("what was known", || daemon.stderr(), known).await;
    assert!(known >= share, "{known}, and {share} before");
    // One pass over all: each row once.
    let proof = "SELECT source_rows || ' ' || replica_rows || ' ' || different || ' ' || in_sync FROM pglockstep.proofs \
                 WHERE NOT counts_only ORDER BY id DESC LIMIT 1";
    let whole = format!("{LEADS} {LEADS} 2 false");
    s.replica_eventually(&format!("SELECT COALESCE(({proof}), '')"), &whole)
        .await;
    s.on_replica("UPDATE leads SET v = repeat('v', 100) WHERE v = 'ours'")
        .await;
    s.on_source("UPDATE leads SET v = 'new' WHERE id % 100 = 0")
        .await;
    until_metric(&daemon, &of("in_sync"), 1.0).await;
    assert_eq!(daemon.metric(different).await, Some(0.0));
    assert_eq!(
        s.replica_one(proof).await,
        format!("{LEADS} {LEADS} 0 true")
    );
}

/// A key that is ordered by a collation has no slices, and a table with one is compared all the same.
#[tokio::test]
async fn what_has_no_slices_is_compared_at_once() {
    let s = Scenario::new(&FAMILY, "at_once").await;
    s.on_both(
        "CREATE TABLE named (name text PRIMARY KEY, v text); CREATE TABLE loose (id int UNIQUE, v text); \
         ALTER TABLE loose REPLICA IDENTITY FULL",
    )
    .await;
    s.on_source(
        "INSERT INTO named SELECT 'Name' || g, repeat('v', 100) FROM generate_series(1, 5000) g;
         INSERT INTO loose SELECT NULLIF(g, 7), repeat('v', 100) FROM generate_series(1, 5000) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start(SLICED).await;
    s.caught_up(&daemon).await;
    s.on_replica(
        "DELETE FROM loose WHERE id IS NULL; UPDATE named SET v = '' WHERE name = 'Name5000'",
    )
    .await;
    let (code, report) = reported(&s, SLICED, &["verify"]).await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(drift_of(&report, "public.named"), [0, 0, 1]);
    assert_eq!(drift_of(&report, "public.loose"), [1, 0, 0]);
}
