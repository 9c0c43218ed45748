//! What a case stands on: a database on each side, and the few steps most cases consist of.

use rustix::process::Signal;

use crate::support::{Daemon, Pair, Scenario, eventually, fetch_rows, run_verb};

/// Where a case runs. Nothing is made before the case asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    pub pair: &'a Pair,
    /// Of the database on both sides; the case's own.
    pub name: &'static str,
    /// Major version of the source.
    pub source: u32,
    /// Major version of the replica.
    pub replica: u32,
}

/// The table of a case that needs no other, and rows for it.
pub const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
pub const FILL: &str = "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 9) g";

/// Every table of a database but ours, with its columns as a list.
const TABLES: &str = "SELECT format('SELECT %s FROM %s%I.%I', \
         string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname COLLATE \"C\"), \
         CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, n.nspname, c.relname) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pglockstep') \
     GROUP BY c.oid, c.relkind, n.nspname, c.relname";

impl<'a> Ground<'a> {
    /// Two empty databases.
    pub async fn scenario(&self) -> Scenario<'a> {
        Scenario::on_pair(self.pair, self.name).await
    }

    /// Two empty databases of other encodings than UTF8.
    pub async fn encoded(&self, source: &str, replica: &str) -> Scenario<'a> {
        for (cluster, encoding) in [(&self.pair.source, source), (&self.pair.replica, replica)] {
            let sql = format!(
                "CREATE DATABASE {} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
                self.name
            );
            cluster.execute("postgres", &sql).await.unwrap();
        }
        Scenario::again(self.pair, self.name).await
    }

    /// Lets the daemon log in to the replica as a role that owns nothing, and may write these
    /// tables. Its name.
    pub async fn writer(&self, s: &mut Scenario<'a>, tables: &str) -> String {
        let role = format!("{}_role", self.name);
        s.on_replica(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON {tables} TO {role}",
            self.name
        ))
        .await;
        s.replica_role(&role);
        role
    }

    /// Takes slot and databases away, so that the case can have others of their name.
    pub async fn clear(&self, s: Scenario<'a>) {
        let torn_down = run_verb(&s.config(""), &["teardown", "--yes"]);
        assert!(torn_down.status.success(), "{torn_down:?}");
        drop(s);
        for cluster in [&self.pair.source, &self.pair.replica] {
            let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
            cluster.execute("postgres", &sql).await.unwrap();
        }
    }

    /// The same tables on both sides, more on the source, all published, a running pipeline.
    pub async fn running(&self, both: &str, source: &str) -> (Scenario<'a>, Daemon) {
        let s = self.scenario().await;
        s.on_both(both).await;
        s.on_source(source).await;
        s.publish_all().await;
        let daemon = s.start("").await;
        (s, daemon)
    }

    /// As `running`, where the tables of the replica are others.
    pub async fn running_unlike(&self, source: &str, replica: &str) -> (Scenario<'a>, Daemon) {
        let s = self.scenario().await;
        s.on_source(source).await;
        s.on_replica(replica).await;
        s.publish_all().await;
        let daemon = s.start("").await;
        (s, daemon)
    }

    /// The same tables on both sides; each statement alone, and all tables compared after it.
    pub async fn follows(&self, both: &str, statements: &[&str]) -> (Scenario<'a>, Daemon) {
        let (s, daemon) = self.running(both, "").await;
        each(&s, &daemon, statements).await;
        (s, daemon)
    }

    /// As `follows`, then all of it again as one batch. The statements begin with an insert.
    pub async fn follows_twice(&self, both: &str, statements: &[&str]) -> (Scenario<'a>, Daemon) {
        let (s, mut daemon) = self.follows(both, statements).await;
        s.on_source("DELETE FROM t").await;
        at_once(&s, &mut daemon, statements).await;
        (s, daemon)
    }
}

/// Each statement alone, and all tables compared after it.
pub async fn each(s: &Scenario<'_>, daemon: &Daemon, statements: &[&str]) {
    same(s, daemon).await;
    for sql in statements {
        s.on_source(sql).await;
        same(s, daemon).await;
    }
}

/// All of them while the daemon stands still: it gets them in one batch.
pub async fn at_once(s: &Scenario<'_>, daemon: &mut Daemon, statements: &[&str]) {
    daemon.signal(Signal::STOP);
    for sql in statements {
        s.on_source(sql).await;
    }
    daemon.signal(Signal::CONT);
    same(s, daemon).await;
}

/// Waits until all is applied, then compares every table of the source under the same name.
pub async fn same(s: &Scenario<'_>, daemon: &Daemon) {
    let tables = fetch_rows(&s.source, TABLES).await;
    let queries: Vec<String> = tables
        .into_iter()
        .flat_map(|mut row| row.swap_remove(0))
        .collect();
    assert!(!queries.is_empty(), "nothing to compare");
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    s.in_step(daemon, &queries).await;
}

/// The pipeline fails with these words; what the query on the replica yields has not changed.
/// Then the remedy on the replica, and it goes on with nothing lost.
pub async fn fails_until(
    s: &Scenario<'_>,
    daemon: &mut Daemon,
    (sql, words, kept): (&str, &[&str], &str),
    remedy: &str,
) {
    let before = s.replica_rows(kept).await;
    s.on_source(sql).await;
    s.until_failed(daemon, words).await;
    assert_eq!(s.replica_rows(kept).await, before, "after {sql}");
    s.on_replica(remedy).await;
    s.until_state(daemon, "streaming").await;
    same(s, daemon).await;
}

/// The first copy holds at its first table until `release`: the snapshot is taken, and all other
/// tables are still to be copied by it.
pub async fn hold_copy(s: &Scenario<'_>) -> Daemon {
    hold_copy_by(s, HELD).await
}

/// The same with these rules.
pub async fn hold_copy_by(s: &Scenario<'_>, rules: &str) -> Daemon {
    s.on_both("CREATE TABLE gated (id int PRIMARY KEY, n int)")
        .await;
    s.on_source(
        "CREATE FUNCTION gate(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_advisory_lock_shared(42), pg_advisory_unlock_shared(42); RETURN n; END $$;
         INSERT INTO gated VALUES (1, 1); SELECT pg_advisory_lock(42)",
    )
    .await;
    s.on_replica("CREATE FUNCTION gate(n int) RETURNS int LANGUAGE sql AS 'SELECT n'")
        .await;
    s.publish_all().await;
    let daemon = s.launch(rules);
    until_held(s, &daemon).await;
    daemon
}

pub const HELD: &str = "[copy]\nworkers = 1\n
     [[tables]]\nsource = \"public.gated\"\npriority = 9\nset = { n = \"public.gate(n)\" }\n
     [[tables]]\nsource = \"public.*\"\n";

/// Waits until the copy stands at the gate.
pub async fn until_held(s: &Scenario<'_>, daemon: &Daemon) {
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually(
        "the copy to reach the gate",
        || daemon.stderr(),
        async || (s.one(waits).await == "1").then_some(()),
    )
    .await;
}

/// Lets the copy go on, and compares all when it is over.
pub async fn release(s: &Scenario<'_>, daemon: &mut Daemon) {
    s.on_source("SELECT pg_advisory_unlock(42)").await;
    s.until_state(daemon, "streaming").await;
    same(s, daemon).await;
}
