//! J: what the replica's own tables do with the rows.

use super::ground::{Ground, T, each, fails_until, same};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(j1_triggers_by_their_mode, Crossing),
    case!(j3_triggers_that_swallow),
    case!(j4_foreign_keys_and_cascades),
    case!(j9_constraints_that_are_stricter),
    case!(j15_row_security),
    case!(j17_tables_of_another_owner),
];

/// What fires leaves a line: one for each change and in its order, though a batch holds several
/// of a row; over a restart too.
async fn j1_triggers_by_their_mode(g: Ground<'_>) {
    let s = g.scenario().await;
    s.on_both(T).await;
    s.on_replica(
        "CREATE TABLE fired (mode text, op text, id int, place int GENERATED ALWAYS AS IDENTITY);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.fired (mode, op, id) VALUES (TG_ARGV[0], TG_OP, coalesce(NEW.id, OLD.id)); RETURN NULL; END $$;
         CREATE TRIGGER origin AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note('origin');
         CREATE TRIGGER replica AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note('replica');
         CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note('always');
         ALTER TABLE t ENABLE REPLICA TRIGGER replica, ENABLE ALWAYS TRIGGER always",
    )
    .await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    s.on_source("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 200) g")
        .await;
    s.on_source(
        "BEGIN; UPDATE t SET v = 'new' WHERE id <= 100; \
         UPDATE t SET id = -id WHERE id <= 10; COMMIT",
    )
    .await;
    s.on_source(
        "BEGIN; INSERT INTO t VALUES (999, 'passing'); DELETE FROM t WHERE id = 999; COMMIT",
    )
    .await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    daemon.kill9();
    s.on_source("DELETE FROM t WHERE id > 150").await;
    let daemon = s.start("").await;
    s.in_step(&daemon, &["SELECT * FROM t"]).await;
    let fired = "SELECT string_agg(mode || ' ' || op || ' ' || n, ', ' ORDER BY mode, op)
         FROM (SELECT mode, op, count(*) AS n FROM fired GROUP BY mode, op) f";
    assert_eq!(
        s.replica_one(fired).await,
        "always DELETE 51, always INSERT 201, always UPDATE 110, \
         replica DELETE 51, replica INSERT 201, replica UPDATE 110"
    );
    let of_one = "SELECT string_agg(op || ' ' || id, ', ' ORDER BY place)
         FROM fired WHERE mode = 'always' AND abs(id) IN (5, 999)";
    assert_eq!(
        s.replica_one(of_one).await,
        "INSERT 5, UPDATE 5, UPDATE -5, INSERT 999, DELETE 999"
    );
}

/// One that catches its own errors is no matter of ours; one that swallows rows is.
async fn j3_triggers_that_swallow(g: Ground<'_>) {
    let (s, mut daemon) = g.running(T, "").await;
    s.on_replica(
        "CREATE FUNCTION careless() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           BEGIN PERFORM 1 / 0; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NEW; END $$;
         CREATE TRIGGER careless BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION careless();
         ALTER TABLE t ENABLE ALWAYS TRIGGER careless",
    )
    .await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
            "UPDATE t SET v = v || '!'",
        ],
    )
    .await;
    s.on_replica(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.id = 4 THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION swallow();
         ALTER TABLE t ENABLE ALWAYS TRIGGER swallow",
    )
    .await;
    fails_until(
        &s,
        &mut daemon,
        (
            "INSERT INTO t SELECT g, 'c' FROM generate_series(3, 5) g",
            &["public.t", "triggers"],
            "SELECT * FROM t",
        ),
        "DROP TRIGGER swallow ON t",
    )
    .await;
}

/// The source has cascaded already, and each row comes by itself; a local child is left alone.
async fn j4_foreign_keys_and_cascades(g: Ground<'_>) {
    let both = "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE loose (id int PRIMARY KEY, parent int DEFAULT 1 REFERENCES parent ON DELETE SET DEFAULT)";
    let (s, daemon) = g.running(both, "").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO parent SELECT generate_series(1, 9); INSERT INTO child SELECT g, g FROM generate_series(1, 9) g;
             INSERT INTO loose SELECT g, g FROM generate_series(1, 9) g",
            "DELETE FROM parent WHERE id = 5",
            "UPDATE child SET id = id + 10; DELETE FROM loose WHERE id = 6; UPDATE parent SET id = 60 WHERE id = 6",
        ],
    )
    .await;
    s.on_replica("CREATE TABLE local (parent int REFERENCES parent ON DELETE CASCADE); INSERT INTO local VALUES (2)")
        .await;
    each(
        &s,
        &daemon,
        &[
            "DELETE FROM loose WHERE id = 2",
            "DELETE FROM parent WHERE id = 2",
        ],
    )
    .await;
    assert_eq!(s.replica_one("SELECT count(*) FROM local").await, "1");
}

/// CHECK, exclusion and NOT NULL hold for us as for anybody.
async fn j9_constraints_that_are_stricter(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text, during int4range)";
    let (s, mut daemon) = g
        .running(
            both,
            "INSERT INTO t VALUES (1, 'ok', '[1,5)'), (2, 'ok', '[5,9)')",
        )
        .await;
    same(&s, &daemon).await;
    s.on_replica(
        "ALTER TABLE t ADD CONSTRAINT short CHECK (length(v) < 9),
                       ADD CONSTRAINT apart EXCLUDE USING gist (during WITH &&)",
    )
    .await;
    let all = "SELECT * FROM t";
    for (sql, words, remedy) in [
        (
            "BEGIN; INSERT INTO t VALUES (3, 'before', NULL); UPDATE t SET v = 'the long secret' WHERE id = 1; COMMIT",
            &["public.t", "constraint short", "stricter"],
            "ALTER TABLE t DROP CONSTRAINT short",
        ),
        (
            "INSERT INTO t VALUES (4, 'x', '[4,6)')",
            &["public.t", "constraint apart", "stricter"],
            "ALTER TABLE t DROP CONSTRAINT apart",
        ),
    ] {
        fails_until(&s, &mut daemon, (sql, words, all), remedy).await;
    }
    assert!(!daemon.stderr().contains("secret"), "{}", daemon.stderr());
    // An exclusion constraint that both sides have may be in the way from row to row.
    each(&s, &daemon, &["DELETE FROM t WHERE id = 4"]).await;
    s.on_both("ALTER TABLE t ADD CONSTRAINT apart EXCLUDE USING gist (during WITH &&)")
        .await;
    each(
        &s,
        &daemon,
        &[
            "BEGIN; UPDATE t SET during = '[20,25)' WHERE id = 1; UPDATE t SET during = '[1,9)' WHERE id = 2; COMMIT",
            "BEGIN; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (5, 'n', '[2,8)'); COMMIT",
        ],
    )
    .await;
}

/// A role to which rows are hidden must not believe that they are missing.
async fn j15_row_security(g: Ground<'_>) {
    let mut s = g.scenario().await;
    s.on_both(T).await;
    s.on_source("INSERT INTO t VALUES (1, 'x')").await;
    g.writer(&mut s, "t").await;
    s.on_replica(
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY odd ON t USING (id % 2 = 1)",
    )
    .await;
    s.publish_all().await;
    let said = s.refused("").await;
    assert!(
        said.contains("public.t") && said.to_lowercase().contains("row"),
        "{said}"
    );
    assert_eq!(s.replica_one("SELECT count(*) FROM t").await, "0");
    s.on_replica("ALTER TABLE t DISABLE ROW LEVEL SECURITY")
        .await;
    let mut daemon = s.start("").await;
    each(
        &s,
        &daemon,
        &["INSERT INTO t VALUES (2, 'even')", "UPDATE t SET v = 'y'"],
    )
    .await;
    // It appears while the daemon runs: a change that meets a hidden row stops.
    s.on_replica("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        .await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET v = 'hidden' WHERE id = 2",
            &["public.t"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t DISABLE ROW LEVEL SECURITY",
    )
    .await;
}

async fn j17_tables_of_another_owner(g: Ground<'_>) {
    let mut s = g.scenario().await;
    s.on_both(T).await;
    s.on_source("INSERT INTO t VALUES (1, 'x')").await;
    let owner = format!("{}_owner", g.name);
    s.on_replica(&format!(
        "CREATE ROLE {owner}; ALTER TABLE t OWNER TO {owner}"
    ))
    .await;
    let role = g.writer(&mut s, "t").await;
    s.publish_all().await;
    let mut daemon = s.start("").await;
    each(
        &s,
        &daemon,
        &[
            "INSERT INTO t VALUES (2, 'y')",
            "UPDATE t SET id = 3 WHERE id = 2",
            "TRUNCATE t",
            "INSERT INTO t VALUES (4, 'z')",
        ],
    )
    .await;
    s.on_replica(&format!("REVOKE UPDATE ON t FROM {role}"))
        .await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET v = 'new'",
            &["public.t", "grant"],
            "SELECT * FROM t",
        ),
        &format!("GRANT UPDATE ON t TO {role}"),
    )
    .await;
}
