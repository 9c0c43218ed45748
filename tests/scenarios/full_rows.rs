//! Tables without a key: many rows found by one look at the table, whatever their columns are.

use crate::support::{Daemon, Family, Scenario, fetch_rows, row, samples};

static FAMILY: Family = Family::const_new();

const ALL: &str = "SELECT * FROM t";

/// A table on each side, filled on the source before the daemon copies it.
async fn with(
    name: &str,
    source: &str,
    replica: &str,
    fill: &str,
    more: &str,
) -> (Scenario<'static>, Daemon) {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_source(source).await;
    s.on_replica(replica).await;
    s.on_source("ALTER TABLE t REPLICA IDENTITY FULL").await;
    s.on_source(fill).await;
    s.publish_all().await;
    let daemon = s.start(more).await;
    (s, daemon)
}

/// How often the replica's tables were looked through; a session tells of it when it ends.
async fn looks_after_the_end(s: &Scenario<'_>, daemon: Daemon) -> u32 {
    s.end(daemon).await;
    let looks = s
        .replica_one("SELECT sum(seq_scan) FROM pg_stat_user_tables")
        .await;
    looks.parse().unwrap()
}

/// Every kind of column that makes a row hard to find, and rows that are there several times.
const ODD_COLUMNS: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN price AS numeric(9, 2);
    CREATE TABLE t (n numeric, j json, p point, x box, f float8, c char(4), v varchar(9), i int,
        at timestamptz, m mood, d price, a int[], y bytea, big text, u uuid, o xml, b bit(3), r int4range);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL";

const ODD_ROWS: &str = "INSERT INTO t SELECT
    (ARRAY['1.0', '1.00', NULL]::numeric[])[1 + g % 3],
    (ARRAY['{\"a\":1}', '{\"a\": 1}', NULL]::json[])[1 + g / 2 % 3],
    point(g % 2, 1), (ARRAY['(1,1),(0,0)', '(2,0.5),(0,0)']::box[])[1 + g % 2],
    (ARRAY['NaN', '-0', '0', NULL]::float8[])[1 + g % 4], (ARRAY['c', 'c ', ''])[1 + g % 3], 'v' || g % 2,
    nullif(g % 4, 3), '2026-01-01 12:00+00'::timestamptz + g % 2 * interval '1 us',
    (ARRAY['sad', 'ok', NULL]::mood[])[1 + g % 3], g % 2 / 3.0, ARRAY[g % 2, NULL], decode(repeat('0' || g % 2, 700), 'hex'),
    CASE g % 3 WHEN 0 THEN NULL WHEN 1 THEN repeat('b', 3000) ELSE repeat('c', 3000) END,
    md5((g % 2)::text)::uuid, '<o>&amp;</o>', '101', int4range(g % 2, 5) FROM generate_series(1, 120) g";

#[tokio::test]
async fn of_equal_rows_as_many_change_as_on_the_source() {
    let (s, mut daemon) = with("odd", ODD_COLUMNS, ODD_COLUMNS, ODD_ROWS, "").await;
    s.in_step(&daemon, &[ALL]).await;
    let any = "ctid = (SELECT ctid FROM t ORDER BY random() LIMIT 1)";
    let work = format!(
        "CASE i % 8
         WHEN 0 THEN UPDATE t SET n = 1.0, v = NULL WHERE {any};
         WHEN 1 THEN UPDATE t SET i = NULL, j = '{{\"a\": 1}}' WHERE {any};
         WHEN 2 THEN DELETE FROM t WHERE {any};
         WHEN 3 THEN UPDATE t SET f = '-0', c = 'c' WHERE {any};
         WHEN 4 THEN INSERT INTO t SELECT * FROM t WHERE {any};
         WHEN 5 THEN UPDATE t SET big = 'short' WHERE {any};
         WHEN 6 THEN UPDATE t SET v = v WHERE {any};
         ELSE INSERT INTO t SELECT * FROM t WHERE {any}; DELETE FROM t WHERE {any}; END CASE"
    );
    s.in_one_backlog(&mut daemon, 400, &work).await;
    s.in_step(&daemon, &[ALL]).await;
    let conflicts = samples(&daemon, "pglockstep_conflicts_total").await;
    assert_eq!(conflicts.values().sum::<f64>(), 0.0, "{conflicts:?}");
    let looks = looks_after_the_end(&s, daemon).await;
    assert!(looks < 50, "the table was looked through {looks} times");
}

#[tokio::test]
async fn rows_are_found_as_the_replica_keeps_them() {
    let source = "CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE t (n numeric, c text, at timestamptz, d numeric, e text, secret int)";
    let replica = "CREATE DOMAIN price AS numeric(8, 1); CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE t (own serial, n numeric(10, 2), c char(5), at timestamptz(0), d price, feeling mood,
            low text, seen timestamptz) PARTITION BY LIST (c);
        CREATE TABLE t_new PARTITION OF t FOR VALUES IN ('new'); CREATE TABLE t_rest PARTITION OF t DEFAULT";
    let fill = "INSERT INTO t SELECT g % 20 + 0.006, 'c' || g % 10, '2026-01-01 00:00:00.7+00', g % 20 / 7.0, 'OK', g
        FROM generate_series(1, 60) g";
    let more = r#"
        [[tables]]
        source = "public.t"
        exclude = ["secret", "e"]
        set = { feeling = "lower(e)::public.mood", low = "lower(c || coalesce(e, ''))", seen = "clock_timestamp()" }"#;
    let (s, mut daemon) = with("kept_rows", source, replica, fill, more).await;
    // Merged or not, an update keeps what only the replica has in its row.
    let twice =
        "UPDATE t SET n = n + 1 WHERE secret = i; UPDATE t SET n = n + 1 WHERE secret = i + 1";
    s.in_one_backlog(&mut daemon, 30, twice).await;
    let same = (
        "SELECT n::numeric(10, 2), c::char(5), at::timestamptz(0), d::numeric(8, 1), lower(e), lower(c || e) FROM t",
        "SELECT n, c, at, d, feeling, low FROM t",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    let own = s
        .replica_rows("SELECT count(DISTINCT own), max(own) FROM t")
        .await;
    assert_eq!(own, [row(["60", "60"])]);

    let any = "ctid = (SELECT ctid FROM t ORDER BY random() LIMIT 1)";
    let work = format!(
        "IF i % 3 = 0 THEN DELETE FROM t WHERE {any}; INSERT INTO t VALUES (i % 20, 'c', NULL, NULL, 'sad', i);
         ELSIF i % 3 = 1 THEN UPDATE t SET c = 'new', n = n + 1 WHERE {any};
         ELSE UPDATE t SET c = 'c7', e = 'Sad', secret = i WHERE {any}; END IF"
    );
    s.in_one_backlog(&mut daemon, 200, &work).await;
    s.in_step_mapped(&daemon, &[same]).await;
    let doubled = "SELECT own FROM t GROUP BY own HAVING count(*) > 1";
    assert_eq!(fetch_rows(&s.replica, doubled).await.len(), 0);
    // Of two partitions each.
    let looks = looks_after_the_end(&s, daemon).await;
    assert!(looks < 130, "the table was looked through {looks} times");
}

#[tokio::test]
async fn source_order_where_the_set_is_refused() {
    // Unique, and no key: it may be NULL. By way of NULL values go round in each transaction.
    let table = "CREATE TABLE t (id int, w int UNIQUE, v text)";
    let fill = "INSERT INTO t SELECT g, g, 'v' FROM generate_series(1, 30) g";
    let (s, mut daemon) = with("refused", table, table, fill, "").await;
    // A swap of two values, so that no order of the two rows' net effects would do.
    let exchange = "DECLARE a int; b int; BEGIN
                SELECT w INTO a FROM t WHERE id = 1; SELECT w INTO b FROM t WHERE id = 2;
                UPDATE t SET w = NULL WHERE id = 1; UPDATE t SET w = a WHERE id = 2;
                UPDATE t SET w = b WHERE id = 1; UPDATE t SET v = v || '!' WHERE id BETWEEN 3 AND 9; END";
    s.in_one_backlog(&mut daemon, 5, exchange).await;
    s.in_step(&daemon, &[ALL]).await;
    let logs = s.pair.logs();
    assert!(logs.contains("t_w_key"), "no swap was refused: {logs}");
}

#[tokio::test]
async fn rows_that_the_replica_lacks() {
    let table = "CREATE TABLE t (id int, v text)";
    let fill = "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 40) g";
    let (s, mut daemon) = with("lacks", table, table, fill, "").await;
    s.on_replica("DELETE FROM t WHERE id IN (3, 17)").await;
    s.in_one_backlog(
        &mut daemon,
        20,
        "DELETE FROM t WHERE id = i; UPDATE t SET v = v || i WHERE id > 30",
    )
    .await;
    s.in_step(&daemon, &[ALL]).await;
    let conflicts = samples(&daemon, "pglockstep_conflicts_total").await;
    assert_eq!(conflicts.values().sum::<f64>(), 2.0, "{conflicts:?}");

    // An update whose row is not there stops before anything of its transaction is written.
    s.on_replica("DELETE FROM t WHERE id = 35").await;
    s.on_source("UPDATE t SET v = 'last'").await;
    s.until_failed(&mut daemon, &["touched 0 rows", "public.t"])
        .await;
    assert_eq!(
        s.replica_rows("SELECT count(*) FROM t WHERE v = 'last'")
            .await,
        [row(["0"])]
    );
    s.on_replica("INSERT INTO t SELECT 35, v FROM t WHERE id = 36")
        .await;
    s.until_state(&mut daemon, "streaming").await;
    s.in_step(&daemon, &[ALL]).await;
}
