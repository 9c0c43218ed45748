//! Two daemons on one pipeline: one leads, the other stands by and takes over, whether the first
//! died, froze, or its host is gone.

use std::time::{Duration, Instant};

use pglockstep::replication::{SlotUser, end_dead_user};
use rustix::process::Signal;

use super::counter::{ALL, Load, counter_goes_on, counter_reaches, scenario};
use crate::support::{Daemon, Line, Scenario, eventually};

/// From the leader's death to the first transaction of the one who stood by: what is promised.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_second_daemon_stands_by_and_takes_over() {
    let s = scenario("standby").await;
    let load = Load::start(s.pair.source.url(&s.name));
    let mut first = s.start("").await;
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    let ready = second.http_get("/readyz").await.unwrap();
    assert!(
        ready.status == 503 && ready.body.contains("standby"),
        "{ready:?}"
    );
    assert_eq!(second.http_get("/health").await.unwrap().status, 200);
    first.kill9();
    s.until_state(&mut second, "streaming").await;
    counter_reaches(&s, 50).await;

    // Frozen, it loses its lock and does not know it; awake, it finds another in its place.
    let mut third = s.launch_beside("");
    s.until_state(&mut third, "standby").await;
    // A walsender that waits for room in the socket of a frozen client does not end when told to.
    load.stop().await;
    s.caught_up(&second).await;
    second.signal(Signal::STOP);
    s.on_source("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = 'standby'").await;
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = 'standby')",
    )
    .await;
    s.until_state(&mut third, "streaming").await;
    let load = Load::start(s.pair.source.url(&s.name));
    second.signal(Signal::CONT);
    s.until_state(&mut second, "standby").await;
    counter_goes_on(&s, 50).await;
    load.stop().await;
    s.in_step(&third, &ALL).await;
}

/// As when its host is gone: nothing ends its walsender, and nothing answers for it.
#[tokio::test]
async fn the_slot_of_a_dead_leader_is_freed_and_that_of_a_living_one_is_not() {
    let s = scenario("dead_leader").await;
    s.on_source("ALTER DATABASE dead_leader SET wal_sender_timeout = '1h'")
        .await;
    let mut leader = s.start("").await;
    s.in_step(&leader, &ALL).await;
    let slot = s.slot().parse().unwrap();
    let ended = end_dead_user(&s.source, &slot, "pglockstep_dead_leader").await;
    assert_eq!(ended.unwrap(), SlotUser::Alive);
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    leader.signal(Signal::STOP);
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = 'dead_leader')",
    )
    .await;
    s.until_state(&mut second, "streaming").await;
    second.until_said("held the slot").await;
    s.on_source("INSERT INTO t VALUES (500, 'by the second')")
        .await;
    s.in_step(&second, &ALL).await;
    leader.signal(Signal::CONT);
    s.until_state(&mut leader, "standby").await;
}

#[tokio::test]
async fn a_leader_that_was_killed_is_followed_within_15_seconds() {
    let s = scenario("killed_leader").await;
    let load = Load::start(s.pair.source.url(&s.name));
    let mut leader = s.start("").await;
    let second = standing_by(&s).await;
    counter_goes_on(&s, 50).await;
    let died = Instant::now();
    leader.kill9();
    takes_over(&s, &second, died).await;
    load.stop().await;
    s.in_step(&second, &ALL).await;
}

/// Its session waits on the replica for a lock, and would not notice by itself.
#[tokio::test]
async fn a_leader_that_died_while_it_waited_for_a_lock_is_followed() {
    let s = scenario("locked_leader").await;
    let mut leader = s.start("").await;
    s.in_step(&leader, &ALL).await;
    let second = standing_by(&s).await;
    let other = s.pair.replica.connect(&s.name).await.unwrap();
    let lock = "BEGIN; LOCK TABLE t IN SHARE MODE";
    other.batch_execute(lock).await.unwrap();
    s.on_source("INSERT INTO t VALUES (1, 'held')").await;
    let evidence = || second.stderr();
    eventually(
        "the standby to say what holds it up",
        evidence,
        async || {
            let reason = second.http_get("/healthz").await?.body;
            let is_told =
                reason.contains("(process ") && reason.contains("waits for Lock relation");
            is_told.then_some(())
        },
    )
    .await;
    let died = Instant::now();
    leader.kill9();
    let epoch = "SELECT epoch FROM pglockstep.pipelines";
    s.replica_eventually(epoch, "2").await;
    assert!(died.elapsed() <= TAKES_OVER_WITHIN, "{:?}", died.elapsed());
    other.batch_execute("ROLLBACK").await.unwrap();
    s.in_step(&second, &ALL).await;
}

/// Of whom nothing can be seen, it is not known whether he lives.
#[tokio::test]
async fn a_leader_that_cannot_be_seen_is_left_alone() {
    let mut s = scenario("hidden_leader").await;
    s.on_source(
        "CREATE ROLE hidden LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO hidden",
    )
    .await;
    let url = s.pair.source.url(&s.name);
    let url = url.replace("//postgres@", "//hidden@");
    s.source_by(url.clone());
    let leader = s.start("").await;
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let slot = s.slot().parse().unwrap();
    let look = async || end_dead_user(&client, &slot, "pglockstep_hidden_leader").await;
    assert_eq!(look().await.unwrap(), SlotUser::Hidden);
    s.on_source("GRANT pg_read_all_stats TO hidden").await;
    assert_eq!(look().await.unwrap(), SlotUser::Alive);
    s.in_step(&leader, &ALL).await;
    assert_eq!(reconnects(&leader).await, 0.0, "{}", leader.stderr());
}

async fn reconnects(daemon: &Daemon) -> f64 {
    let sample = "pglockstep_reconnects_total{side=\"source\"}";
    daemon.metric(sample).await.unwrap_or_default()
}

/// What the servers have to send to it: that decides how they find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    /// Nothing: they notice its silence.
    None,
    /// Something all the time: nothing is acknowledged.
    Steady,
    /// More than a socket takes: the walsender waits for room, and would not even say good-bye.
    Flood,
}

/// Its servers are not told, and nothing answers them.
#[tokio::test]
async fn a_leader_whose_host_died_is_followed_within_15_seconds() {
    for (name, traffic) in [
        ("dead_host_quiet", Traffic::None),
        ("dead_host_steady", Traffic::Steady),
        ("dead_host_flood", Traffic::Flood),
    ] {
        let mut s = scenario(name).await;
        let mut source = Line::start(s.pair.source.port()).await;
        let mut replica = Line::start(s.pair.replica.port()).await;
        let load = (traffic == Traffic::Steady).then(|| Load::start(s.pair.source.url(name)));
        s.source_by(source.url(name));
        s.replica_by(replica.url(name));
        let mut leader = s.start("").await;
        s.source_by(s.pair.source.url(name));
        s.replica_by(s.pair.replica.url(name));
        let second = standing_by(&s).await;
        match &load {
            Some(_) => counter_goes_on(&s, 50).await,
            None => s.caught_up(&leader).await,
        }
        let died = Instant::now();
        source.die().await;
        replica.die().await;
        leader.kill9();
        if traffic == Traffic::Flood {
            s.on_source(FLOOD).await;
        }
        takes_over(&s, &second, died).await;
        if let Some(load) = load {
            load.stop().await;
        }
        s.in_step(&second, &ALL).await;
    }
}

/// 20 MB.
const FLOOD: &str = "INSERT INTO t SELECT n, repeat('x', 100000) FROM generate_series(1, 200) n";

async fn standing_by(s: &Scenario<'_>) -> Daemon {
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    second
}

/// What is written on the source after the death can come from the second one alone.
async fn takes_over(s: &Scenario<'_>, second: &Daemon, died: Instant) {
    s.on_source("INSERT INTO t VALUES (-1, 'after the death')")
        .await;
    s.replica_eventually("SELECT count(*) FROM t WHERE id = -1", "1")
        .await;
    let took = died.elapsed();
    eprintln!("{}: taken over in {:.1} s", s.name, took.as_secs_f64());
    assert!(
        took <= TAKES_OVER_WITHIN,
        "taken over in {took:?}\n{}\n{}",
        second.stderr(),
        s.pair.logs()
    );
}
