//! Unique values that move between rows that stay, and keys that change: rows that are deleted and
//! inserted anew where that leaves what an update leaves, and updated one by one elsewhere.

use crate::support::{Daemon, Family, Scenario};

static FAMILY: Family = Family::const_new();

const SEATS: &str = "CREATE TABLE t (id int PRIMARY KEY, place int NOT NULL UNIQUE, note text);
    ALTER TABLE t ALTER note SET STORAGE EXTERNAL";
const ALL: &str = "SELECT id, place, note FROM t";

/// Two hundred seats on both sides; the last one's note is too long to be sent with each change.
async fn seats(name: &str, on_replica: &str, more: &str) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both(SEATS).await;
    s.on_replica(on_replica).await;
    s.on_source(
        "INSERT INTO t SELECT g, g, repeat('n' || g, CASE g WHEN 200 THEN 3000 ELSE 1 END)
         FROM generate_series(1, 200) g",
    )
    .await;
    s.publish_all().await;
    let daemon = s.start(more).await;
    s.in_step(&daemon, &[ALL]).await;
    (s, daemon)
}

/// Seats `a` and `b` change places.
fn swap(a: &str, b: &str) -> String {
    format!(
        "DECLARE p int; q int; BEGIN
         SELECT place INTO p FROM t WHERE id = {a}; SELECT place INTO q FROM t WHERE id = {b};
         UPDATE t SET place = -1 WHERE id = {a}; UPDATE t SET place = p WHERE id = {b};
         UPDATE t SET place = q WHERE id = {a}; END"
    )
}

/// Rows that the apply's session updated and deleted; it tells of them when it ends.
async fn updated_and_deleted(s: &Scenario<'_>, daemon: Daemon) -> (u32, u32) {
    s.end(daemon).await;
    let count = async |column: &str| {
        let sql = format!("SELECT {column} FROM pg_stat_user_tables WHERE relname = 't'");
        s.replica_one(&sql).await.parse().unwrap()
    };
    (count("n_tup_upd").await, count("n_tup_del").await)
}

#[tokio::test]
async fn swaps_and_changes_of_key_pass_as_sets() {
    let (s, mut daemon) = seats("sets", "", "").await;
    let swap = swap("1 + i % 97", "99 + i % 100");
    s.in_one_backlog(&mut daemon, 200, &swap).await;
    s.in_step(&daemon, &[ALL]).await;
    // A note of which the stream says nothing goes along with its row.
    s.in_one_backlog(&mut daemon, 40, "UPDATE t SET id = id + 1000 WHERE id = i")
        .await;
    s.in_one_backlog(
        &mut daemon,
        40,
        "UPDATE t SET id = -id; UPDATE t SET id = -id, note = note || '!' WHERE id % 2 = 0",
    )
    .await;
    s.in_step(&daemon, &[ALL]).await;
    let (updated, deleted) = updated_and_deleted(&s, daemon).await;
    assert!(deleted > 0, "no row was deleted and inserted");
    // One by one: 600 of the swaps, and more than 10,000 changes of key.
    assert!(updated < 500, "{updated} rows were updated");
}

#[tokio::test]
async fn what_only_the_replica_has_stays_with_its_row() {
    let (s, mut daemon) = seats("own", "ALTER TABLE t ADD own text", "").await;
    s.on_replica("UPDATE t SET own = 'of ' || id").await;
    s.in_one_backlog(&mut daemon, 20, &swap("1 + i % 97", "99 + i % 100"))
        .await;
    s.in_step(&daemon, &[ALL]).await;
    let own = s
        .replica_one("SELECT count(*) FROM t WHERE own = 'of ' || id")
        .await;
    assert_eq!(own, "200");
    s.on_source("UPDATE t SET id = id + 1000").await;
    s.in_step(&daemon, &[ALL]).await;
    let own = s
        .replica_one("SELECT count(*) FROM t WHERE own = 'of ' || id - 1000")
        .await;
    assert_eq!(own, "200");
    let (_, deleted) = updated_and_deleted(&s, daemon).await;
    assert_eq!(deleted, 0);
}

#[tokio::test]
async fn a_column_that_the_replica_was_given_since_keeps_its_values() {
    let (s, mut daemon) = seats("since", "", "").await;
    let swap = swap("1 + i % 97", "99 + i % 100");
    s.in_one_backlog(&mut daemon, 20, &swap).await;
    s.in_step(&daemon, &[ALL]).await;
    s.on_replica("ALTER TABLE t ADD own text; UPDATE t SET own = 'of ' || id")
        .await;
    s.in_one_backlog(&mut daemon, 20, &swap).await;
    s.in_step(&daemon, &[ALL]).await;
    let own = s
        .replica_one("SELECT count(*) FROM t WHERE own = 'of ' || id")
        .await;
    assert_eq!(own, "200");
}

/// It would act upon the DELETE where it was told to fire under every role, and an application's new
/// child would find its parent gone.
#[tokio::test]
async fn no_foreign_key_takes_it_for_a_delete() {
    let children = "CREATE TABLE c (id int PRIMARY KEY, seat int REFERENCES t ON DELETE CASCADE);
        DO $$ DECLARE name text; BEGIN FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 't'::regclass
        LOOP EXECUTE format('ALTER TABLE t ENABLE ALWAYS TRIGGER %I', name); END LOOP; END $$";
    let (s, mut daemon) = seats("cascade", children, "").await;
    s.on_replica("INSERT INTO c SELECT g, g FROM generate_series(1, 200) g")
        .await;
    s.in_one_backlog(&mut daemon, 20, &swap("1 + i % 97", "99 + i % 100"))
        .await;
    s.in_step(&daemon, &[ALL]).await;
    assert_eq!(s.replica_one("SELECT count(*) FROM c").await, "200");
    let (_, deleted) = updated_and_deleted(&s, daemon).await;
    assert_eq!(deleted, 0);
}

/// Parts of a transaction that is larger than a batch, each behind a savepoint.
#[tokio::test]
async fn swaps_in_parts_of_one_transaction() {
    let (s, daemon) = seats("parts", "", "[apply]\nbatch_changes_max = 100").await;
    let swap = swap("1 + i % 97", "99 + i % 100");
    s.on_source(&format!(
        "DO $$ BEGIN FOR i IN 1..400 LOOP {swap}; END LOOP; END $$"
    ))
    .await;
    s.in_step(&daemon, &[ALL]).await;
    let (_, deleted) = updated_and_deleted(&s, daemon).await;
    assert!(deleted > 0, "no row was deleted and inserted");
}

/// What needs the source's order is written in small batches.
#[tokio::test]
async fn batches_stay_small_while_the_order_is_needed() {
    let (s, mut daemon) = seats("small", "ALTER TABLE t ADD own text", "").await;
    let swap = swap("1 + i % 97", "99 + i % 100");
    s.in_one_backlog(&mut daemon, 10, &swap).await;
    s.in_step(&daemon, &[ALL]).await;
    let batches = async |daemon: &Daemon| {
        let count = "pglockstep_apply_batch_seconds_count";
        daemon.metric(count).await.unwrap_or_default()
    };
    let before = batches(&daemon).await;
    s.in_one_backlog(&mut daemon, 2_000, &swap).await;
    s.in_step(&daemon, &[ALL]).await;
    let more = batches(&daemon).await - before;
    // 6,000 changes, of which no batch takes many more than 256.
    assert!(more >= 20.0, "{more} batches");
}
