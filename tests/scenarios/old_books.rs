//! Books that an older version has made, and a role on the replica that is no superuser: it
//! brings up what is its own; otherwise it says who can, and nothing is lost meanwhile.

use crate::support::{Family, Scenario, verb};

static FAMILY: Family = Family::const_new();

/// As the first version had them.
const OLD: &str = "DROP TABLE pglockstep.set_aside, pglockstep.kept_changes, pglockstep.errors; \
                   ALTER TABLE pglockstep.pipelines DROP given_up, DROP rebasing";
const NOTES: [&str; 1] = ["SELECT * FROM notes"];
const WHOLE: &str = "SELECT to_regclass('pglockstep.kept_changes') IS NOT NULL \
                     AND to_regclass('pglockstep.errors') IS NOT NULL AND count(*) = 2 \
                     FROM pg_attribute WHERE attrelid = to_regclass('pglockstep.pipelines') \
                     AND attname IN ('given_up', 'rebasing')";

/// A role that may write the tables, and what else is said.
async fn scenario(name: &str, grants: &str) -> Scenario<'static> {
    let s = Scenario::new(&FAMILY, name).await;
    s.on_both("CREATE TABLE notes (id int PRIMARY KEY, text text)")
        .await;
    s.on_source("INSERT INTO notes VALUES (1, 'first')").await;
    s.on_replica(&format!(
        "CREATE ROLE {name} LOGIN; {grants}; \
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON notes TO {name}"
    ))
    .await;
    s.publish_all().await;
    s
}

/// What comes while no daemon runs.
async fn work(s: &Scenario<'_>, id: u32) {
    s.on_source(&format!("INSERT INTO notes VALUES ({id}, 'meanwhile')"))
        .await;
}

async fn goes_on(s: &Scenario<'_>) {
    let mut daemon = s.start("").await;
    s.in_step(&daemon, &NOTES).await;
    assert_eq!(s.replica_one(WHOLE).await, "t");
    assert!(daemon.terminate().success());
}

/// The findings about the books.
fn findings(s: &Scenario<'_>) -> Vec<serde_json::Value> {
    let (_, said) = verb(s, "", &["check", "--json"]);
    let mut findings: Vec<serde_json::Value> =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    findings.retain(|finding| finding["check"] == "replica.bookkeeping");
    findings
}

/// The SQL of `setup` for the books, which an administrator then runs.
async fn administrator_runs_setup(s: &Scenario<'_>) {
    let replica = s.pair.replica.url(&s.name);
    let setup = ["setup", "--replica-admin-url", &replica];
    let (code, said) = verb(s, "", &setup);
    assert_eq!(code, Some(0), "{said}");
    let (_, sql) = said.split_once("-- replica:").unwrap();
    assert!(sql.contains("pglockstep"), "{said}");
    s.on_replica(&format!("--{sql}")).await;
    let (_, again) = verb(s, "", &setup);
    let (_, nothing) = again.split_once("-- replica:").unwrap();
    assert!(nothing.contains("nothing to do"), "{again}");
}

#[tokio::test]
async fn a_role_brings_its_own_books_up() {
    let name = "old_books_own";
    let mut s = scenario(
        name,
        "GRANT CREATE ON DATABASE old_books_own TO old_books_own",
    )
    .await;
    s.replica_role(name);
    goes_on(&s).await;
    s.on_replica(OLD).await;
    // Not even the right to make schemas is needed.
    s.on_replica("REVOKE CREATE ON DATABASE old_books_own FROM old_books_own")
        .await;
    let found = findings(&s);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["severity"], "info", "{found:?}");
    work(&s, 2).await;
    goes_on(&s).await;
    assert_eq!(findings(&s), Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn books_of_an_administrator_are_brought_up_by_one() {
    let name = "old_books_admin";
    let mut s = scenario(
        name,
        "GRANT CONNECT ON DATABASE old_books_admin TO old_books_admin",
    )
    .await;
    goes_on(&s).await;
    s.on_replica(OLD).await;
    s.replica_role(name);
    work(&s, 2).await;
    // Nothing of the schema, then all but what the owner alone may.
    let closed = s.refused("").await;
    assert!(
        closed.contains("permission denied for schema pglockstep"),
        "{closed}"
    );
    assert!(closed.contains("`pglockstep setup` prints"), "{closed}");
    assert_eq!(findings(&s).len(), 1, "{:?}", findings(&s));
    s.on_replica(
        "GRANT USAGE, CREATE ON SCHEMA pglockstep TO old_books_admin; \
         GRANT ALL ON ALL TABLES IN SCHEMA pglockstep TO old_books_admin",
    )
    .await;
    let said = s.refused("").await;
    assert!(
        said.contains("may not make or use the schema pglockstep, or its tables"),
        "{said}"
    );
    assert!(said.contains("must be owner of table"), "{said}");
    assert!(said.contains("`pglockstep setup` prints"), "{said}");
    // Refused as a whole: no half of the new books is there.
    let half = "SELECT to_regclass('pglockstep.errors') IS NULL";
    assert_eq!(s.replica_one(half).await, "t");
    let (code, said) = verb(&s, "", &["errors", "list"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("no daemon of this version has run yet"),
        "{said}"
    );
    let found = findings(&s);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]["remedy"]
            .as_str()
            .unwrap()
            .contains("pglockstep setup"),
        "{found:?}"
    );
    administrator_runs_setup(&s).await;
    assert_eq!(findings(&s), Vec::<serde_json::Value>::new());
    goes_on(&s).await;
}

#[tokio::test]
async fn books_of_an_administrator_may_be_used_by_a_role_that_owns_nothing() {
    let name = "whole_books";
    let mut s = scenario(name, "GRANT CONNECT ON DATABASE whole_books TO whole_books").await;
    goes_on(&s).await;
    s.on_replica(
        "GRANT USAGE, CREATE ON SCHEMA pglockstep TO whole_books; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pglockstep TO whole_books; \
         ALTER TABLE notes ALTER text TYPE varchar(10)",
    )
    .await;
    s.replica_role(name);
    assert_eq!(findings(&s), Vec::<serde_json::Value>::new());
    // Errors are noted and changes kept, too.
    let mut daemon = s.start("").await;
    s.on_source("INSERT INTO notes VALUES (2, 'far too long a text')")
        .await;
    s.until_failed(&mut daemon, &["22001"]).await;
    let (code, said) = verb(&s, "", &["errors", "skip", "1", "--reason", "a test"]);
    assert_eq!(code, Some(0), "{said}");
    s.until_state(&mut daemon, "streaming").await;
    s.caught_up(&daemon).await;
    let kept = "SELECT count(*) FROM pglockstep.kept_changes";
    assert_eq!(s.replica_one(kept).await, "1");
    assert!(daemon.terminate().success());
}
