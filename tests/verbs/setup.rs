//! `setup`: what it prints makes a pipeline of two roles that may do no more than they must.

use super::{REPLICA, SOURCE, Said, TABLES, as_roles, check, verb};
use crate::support::{DATABASE, Daemon, Pair};

/// Without the publication: that is for `setup` to make.
fn source_sql() -> String {
    let tables: Vec<&str> = SOURCE
        .split_inclusive(';')
        .filter(|sql| !sql.contains("PUBLICATION"))
        .collect();
    format!(
        "{} CREATE TABLE public.keyless (at int); \
         CREATE TABLE public.parts (id int, at int) PARTITION BY LIST (at); \
         CREATE TABLE public.part1 PARTITION OF public.parts FOR VALUES IN (1, 2);",
        tables.concat()
    )
}

async fn empty_pair() -> Pair {
    let pair = Pair::start().await;
    pair.on_source(&source_sql()).await;
    pair.on_replica(REPLICA).await;
    pair.on_replica(
        "CREATE TABLE crm.keyless (at int, no serial); CREATE TABLE crm.parts (id int, at int)",
    )
    .await;
    pair
}

/// Of the two roles that the daemon is to have; `setup` makes them.
fn daemons_config(pair: &Pair) -> String {
    as_roles(pair, &pair.config(TABLES), "src_daemon", "rep_daemon")
}

/// `setup` by who may do everything.
async fn setup_as_admin(pair: &Pair, config: &str, more: &[&str]) -> Said {
    let (source, replica) = (pair.source.url(DATABASE), pair.replica.url(DATABASE));
    let as_admin = [
        "setup",
        "--source-admin-url",
        &source,
        "--replica-admin-url",
        &replica,
    ];
    verb(config, &[&as_admin[..], more].concat()).await
}

async fn assert_runs(pair: &Pair, config: &str) {
    let (code, findings) = check(config).await;
    assert_eq!(code, 0, "{findings:#?}");
    let worse: Vec<_> = findings
        .iter()
        .filter(|f| f["severity"] != "info" && f["check"] != "replica.index")
        .collect();
    assert!(worse.is_empty(), "{worse:#?}");
    let daemon = Daemon::start(config);
    daemon.until_ready().await;
    pair.on_source(
        "UPDATE public.leads SET email = 'New' WHERE id = 1; DELETE FROM public.notes; \
         INSERT INTO public.keyless VALUES (1), (1); UPDATE public.keyless SET at = 2; \
         INSERT INTO public.parts VALUES (1, 1); UPDATE public.parts SET id = 2; \
         TRUNCATE public.notes; INSERT INTO public.notes VALUES (5, 'last')",
    )
    .await;
    pair.eventually_same_rows(
        "SELECT id, body FROM public.notes",
        "SELECT id, body FROM crm.notes",
    )
    .await;
    pair.eventually_same_rows(
        "SELECT at FROM public.keyless",
        "SELECT at FROM crm.keyless",
    )
    .await;
    pair.eventually_same_rows("SELECT * FROM public.parts", "SELECT * FROM crm.parts")
        .await;
    pair.eventually_same_rows(
        "SELECT id, lower(email), 'mine' FROM public.leads",
        "SELECT id, email, local FROM crm.leads",
    )
    .await;
}

#[tokio::test]
async fn the_printed_sql_is_enough() {
    let pair = empty_pair().await;
    let config = daemons_config(&pair);
    // Whoever cannot look is told who could.
    let said = verb(&config, &["setup"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("--source-admin-url"), "{said:?}");

    let said = setup_as_admin(&pair, &config, &[]).await;
    assert_eq!(said.code, 0, "{said:?}");
    super::assert_untouched(&pair).await;
    let (for_source, for_replica) = said.out.split_once("-- replica:").unwrap();
    assert!(for_source.contains("REPLICA IDENTITY FULL"), "{for_source}");
    assert!(
        said.out.contains("-- \\password \"src_daemon\""),
        "{}",
        said.out
    );
    pair.on_source(for_source).await;
    pair.on_replica(&format!("--{for_replica}")).await;
    assert_runs(&pair, &config).await;

    // A second time there is nothing to do, for the roles themselves too.
    let said = verb(&config, &["setup"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out.matches("nothing to do").count(), 2, "{}", said.out);
}

#[tokio::test]
async fn apply_does_it_all_or_nothing() {
    let pair = empty_pair().await;
    let config = daemons_config(&pair);
    let apply = || setup_as_admin(&pair, &config, &["--apply", "--json"]);

    // A statement in the middle is refused: the role before it is not left behind.
    pair.on_source(
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE insufficient_privilege; END'; \
         CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('CREATE PUBLICATION') EXECUTE FUNCTION no()",
    )
    .await;
    let said = apply().await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.err
            .contains("nothing was changed there: CREATE PUBLICATION"),
        "{said:?}"
    );
    let client = pair.source.connect(DATABASE).await.unwrap();
    let roles = "SELECT rolname FROM pg_roles WHERE rolname = 'src_daemon'";
    assert!(crate::support::fetch_rows(&client, roles).await.is_empty());
    pair.on_source("DROP EVENT TRIGGER no").await;

    let said = apply().await;
    assert_eq!(said.code, 0, "{said:?}");
    let answer: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(answer["applied"], true);
    assert!(
        answer["source"]["sql"].as_array().unwrap().len() > 3,
        "{answer:#}"
    );
    let said = apply().await;
    let answer: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    for side in ["source", "replica"] {
        assert_eq!(answer[side]["sql"], serde_json::json!([]), "{answer:#}");
    }
    assert_runs(&pair, &config).await;
}

#[tokio::test]
async fn the_oldest_and_the_newest_servers() {
    for (source, replica) in [(14, 18), (18, 14)] {
        let pair = Pair::start_majors(source, replica).await;
        pair.on_source(&source_sql()).await;
        pair.on_replica(REPLICA).await;
        pair.on_replica(
            "CREATE TABLE crm.keyless (at int); CREATE TABLE crm.parts (id int, at int)",
        )
        .await;
        let config = daemons_config(&pair);
        let said = setup_as_admin(&pair, &config, &["--apply"]).await;
        assert_eq!(said.code, 0, "{said:?}");
        let may_note = said.out.contains("before PostgreSQL 15 only a superuser");
        assert_eq!(may_note, replica == 14, "{}", said.out);
        let (code, findings) = check(&config).await;
        assert_eq!(code, 0, "{source} to {replica}: {findings:#?}");
        let fires = |f: &serde_json::Value| f["check"] == "replica.session_replication_role";
        assert_eq!(findings.iter().any(fires), replica == 14, "{findings:#?}");
    }
}
