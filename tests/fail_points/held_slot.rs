//! A slot waits for every transaction that was open before it: whose that is can be seen, the wait
//! ends, it is tried again, and no slot of a failed attempt is left.

use pglockstep::demo::cluster::ClusterOptions;

use crate::support::{Daemon, Pair, PairOptions, Scenario, eventually};

/// The first look at who holds it up comes after 5 s.
const SOON: [(&str, &str); 1] = [("PGLOCKSTEP_LIMITS", "slot.lock_timeout_ms=7000")];
const ALL: [&str; 2] = ["SELECT * FROM t", "SELECT * FROM late"];

/// What the state's reason is to be.
async fn until_reason(daemon: &Daemon, words: &[&str]) -> String {
    let evidence = || format!("{words:?} in: {}", daemon.stderr());
    eventually("its reason", evidence, async || {
        let status = daemon.http_get("/healthz").await?.body;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["state"], "starting", "{status:#}");
        let reason = status["reason"].as_str()?;
        let are_there = words.iter().all(|word| reason.contains(word));
        are_there.then(|| reason.to_owned())
    })
    .await
}

/// Whoever holds a slot up holds up all slots of its server: so this one is the test's own.
async fn pair() -> Pair {
    let source = ClusterOptions::default().with("max_prepared_transactions", "2");
    let options = PairOptions {
        source,
        ..PairOptions::default()
    };
    Pair::start_with(options).await
}

#[tokio::test]
async fn who_holds_up_a_slot_is_named_and_it_is_tried_until_it_is_made() {
    let pair = pair().await;
    let mut s = Scenario::on_pair(&pair, "held_slot").await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE late (id int PRIMARY KEY)",
    )
    .await;
    s.on_source("INSERT INTO t VALUES (1, 'before'); INSERT INTO late VALUES (1)")
        .await;
    s.publish("FOR TABLE t").await;
    // Of another database: it is waited for all the same.
    let other = pair.source.connect("postgres").await.unwrap();
    let row = other.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid = format!(
        "pid {} (postgres in postgres)",
        row.unwrap().get::<_, i32>(0)
    );
    let open = "BEGIN; SELECT pg_current_xact_id()";
    other.batch_execute(open).await.unwrap();
    let mut daemon = Daemon::start_with(&s.config(""), &SOON);
    let reason = until_reason(&daemon, &["waits until", &pid, "open for"]).await;
    assert!(reason.contains(&s.slot()), "{reason}");
    until_reason(&daemon, &["is not made before", &pid, "lock timeout"]).await;
    s.on_source("INSERT INTO t VALUES (2, 'between the attempts')")
        .await;
    // Again, and there is no other slot than the one that is being made.
    until_reason(&daemon, &["waits until", &pid]).await;
    let others = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name <> '{}' OR NOT active",
        s.slot()
    );
    assert_eq!(s.one(&others).await, "0");
    other.batch_execute("COMMIT").await.unwrap();
    s.until_state(&mut daemon, "streaming").await;
    s.on_source("INSERT INTO t VALUES (3, 'after')").await;
    s.in_step(&daemon, &ALL[..1]).await;
    assert!(daemon.terminate().success());

    // A slot for a copy of its own; and a role that is not shown how old others' transactions are.
    s.on_source(
        "CREATE ROLE held_reader LOGIN REPLICATION; GRANT SELECT ON t, late TO held_reader",
    )
    .await;
    s.source_by(
        pair.source
            .url(&s.name)
            .replace("//postgres@", "//held_reader@"),
    );
    other.batch_execute(open).await.unwrap();
    let add = format!("ALTER PUBLICATION {} ADD TABLE late", s.slot());
    s.on_source(&add).await;
    daemon = Daemon::start_with(&s.config(""), &SOON);
    let reason = until_reason(&daemon, &["waits until", &pid]).await;
    assert!(
        reason.contains("_copy_") && !reason.contains("open for"),
        "{reason}"
    );
    // One that no session has takes its place.
    s.on_source("BEGIN; INSERT INTO t VALUES (4, 'prepared'); PREPARE TRANSACTION 'held'")
        .await;
    until_reason(&daemon, &["is not made before", &pid]).await;
    other.batch_execute("COMMIT").await.unwrap();
    until_reason(&daemon, &["waits until", "prepared transaction \"held\""]).await;
    s.on_source("COMMIT PREPARED 'held'").await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &ALL).await;
    let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots";
    assert_eq!(s.one(slots).await, s.slot(), "nothing else is left");
    assert!(daemon.terminate().success());
}
