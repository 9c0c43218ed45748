//! Two daemons on one pipeline: one leads, the other stands by and takes over, whether the first
//! died, froze, or its host is gone.

use pglockstep::replication::end_dead_user;
use rustix::process::Signal;

use super::counter::{ALL, Load, counter_goes_on, counter_reaches, scenario};

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
    assert!(!ended.unwrap(), "it lives");
    let mut second = s.launch_beside("");
    s.until_state(&mut second, "standby").await;
    leader.signal(Signal::STOP);
    s.on_replica(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND database = (SELECT oid FROM pg_database WHERE datname = 'dead_leader')",
    )
    .await;
    s.until_state(&mut second, "streaming").await;
    assert!(
        second.stderr().contains("held the slot"),
        "{}",
        second.stderr()
    );
    s.on_source("INSERT INTO t VALUES (500, 'by the second')")
        .await;
    s.in_step(&second, &ALL).await;
    leader.signal(Signal::CONT);
    s.until_state(&mut leader, "standby").await;
}
