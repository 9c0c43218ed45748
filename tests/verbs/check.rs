//! `check` on one pair: what is wrong with tables, rules and privileges.

use super::{TABLES, as_roles, assert_finding, assert_untouched, check, finding, pair, verb};
use crate::support::Daemon;

/// Each row: break it, the finding's check, object, severity, parts of message and remedy, mend it.
struct Case {
    source: &'static str,
    replica: &'static str,
    check: &'static str,
    object: &'static str,
    severity: &'static str,
    message: &'static str,
    remedy: &'static str,
    mend_source: &'static str,
    mend_replica: &'static str,
}

const SAME: Case = Case {
    source: "",
    replica: "",
    check: "",
    object: "",
    severity: "error",
    message: "",
    remedy: "",
    mend_source: "",
    mend_replica: "",
};

const CASES: [Case; 16] = [
    Case {
        source: "ALTER PUBLICATION pglockstep_it RENAME TO other",
        check: "source.publication",
        object: "pglockstep_it",
        message: "no publication pglockstep_it",
        remedy: "CREATE PUBLICATION \"pglockstep_it\" FOR TABLE \"public\".\"leads\", \"public\".\"notes\"",
        mend_source: "ALTER PUBLICATION other RENAME TO pglockstep_it",
        ..SAME
    },
    Case {
        source: "ALTER PUBLICATION pglockstep_it SET (publish = 'insert, update')",
        check: "source.publication",
        object: "pglockstep_it",
        message: "leaves out DELETE, TRUNCATE",
        remedy: "SET (publish = 'insert, update, delete, truncate')",
        mend_source: "ALTER PUBLICATION pglockstep_it SET (publish = 'insert, update, delete, truncate')",
        ..SAME
    },
    Case {
        source: "ALTER PUBLICATION pglockstep_it DROP TABLE public.leads",
        check: "mapping",
        object: "public.leads",
        message: "public.leads is not in the publication pglockstep_it",
        remedy: "ALTER PUBLICATION \"pglockstep_it\" ADD TABLE \"public\".\"leads\"",
        mend_source: "ALTER PUBLICATION pglockstep_it ADD TABLE public.leads",
        ..SAME
    },
    Case {
        replica: "ALTER TABLE crm.notes RENAME TO gone",
        check: "mapping",
        object: "public.notes",
        message: "crm.notes, which does not exist",
        remedy: "create crm.notes",
        mend_replica: "ALTER TABLE crm.gone RENAME TO notes",
        ..SAME
    },
    Case {
        replica: "ALTER TABLE crm.notes RENAME body TO gone",
        check: "mapping",
        object: "public.notes",
        message: "the replica table has no column body",
        remedy: "list it in `exclude`",
        mend_replica: "ALTER TABLE crm.notes RENAME gone TO body",
        ..SAME
    },
    Case {
        source: "REVOKE SELECT ON public.notes FROM reader",
        check: "source.privileges",
        object: "public.notes",
        message: "role reader may not SELECT from public.notes",
        remedy: "GRANT SELECT ON TABLE \"public\".\"notes\" TO \"reader\"",
        mend_source: "GRANT SELECT ON public.notes TO reader",
        ..SAME
    },
    Case {
        source: "ALTER ROLE reader NOREPLICATION",
        check: "source.role",
        object: "reader",
        message: "reader may not replicate",
        remedy: "ALTER ROLE \"reader\" REPLICATION",
        mend_source: "ALTER ROLE reader REPLICATION",
        ..SAME
    },
    Case {
        source: "ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY",
        check: "source.row_security",
        object: "public.notes",
        message: "hides rows from the source's role reader",
        remedy: "ALTER ROLE \"reader\" BYPASSRLS",
        mend_source: "ALTER TABLE public.notes DISABLE ROW LEVEL SECURITY",
        ..SAME
    },
    Case {
        source: "ALTER TABLE public.notes REPLICA IDENTITY NOTHING",
        check: "source.replica_identity",
        object: "public.notes",
        severity: "warning",
        message: "the SOURCE will refuse UPDATE and DELETE",
        remedy: "ALTER TABLE \"public\".\"notes\" REPLICA IDENTITY DEFAULT",
        mend_source: "ALTER TABLE public.notes REPLICA IDENTITY DEFAULT",
        ..SAME
    },
    Case {
        source: "CREATE TABLE public.extra (id int PRIMARY KEY); GRANT SELECT ON public.extra TO reader; ALTER PUBLICATION pglockstep_it ADD TABLE public.extra",
        check: "mapping",
        object: "public.extra",
        message: "crm.extra, which does not exist",
        mend_source: "DROP TABLE public.extra",
        ..SAME
    },
    Case {
        replica: "REVOKE UPDATE, DELETE ON crm.leads FROM writer",
        check: "replica.privileges",
        object: "crm.leads",
        message: "writer lacks UPDATE, DELETE on crm.leads",
        remedy: "GRANT UPDATE, DELETE ON TABLE \"crm\".\"leads\" TO \"writer\"",
        mend_replica: "GRANT UPDATE, DELETE ON crm.leads TO writer",
        ..SAME
    },
    Case {
        replica: "INSERT INTO crm.notes VALUES (9)",
        check: "replica.existing_rows",
        object: "crm.notes",
        message: "already holds rows",
        remedy: "existing_rows = \"merge\"",
        mend_replica: "TRUNCATE crm.notes",
        ..SAME
    },
    Case {
        replica: "ALTER TABLE crm.notes DROP CONSTRAINT notes_pkey",
        check: "replica.index",
        object: "crm.notes",
        severity: "warning",
        message: "no index on its key (id)",
        remedy: "CREATE INDEX CONCURRENTLY ON \"crm\".\"notes\" (\"id\")",
        mend_replica: "ALTER TABLE crm.notes ADD PRIMARY KEY (id)",
        ..SAME
    },
    Case {
        source: "REVOKE pg_read_all_stats FROM reader",
        check: "source.statistics",
        object: "reader",
        severity: "warning",
        message: "waits for wal_sender_timeout",
        remedy: "GRANT pg_read_all_stats TO \"reader\"",
        mend_source: "GRANT pg_read_all_stats TO reader",
        ..SAME
    },
    Case {
        replica: "ALTER TABLE crm.notes ADD UNIQUE (body)",
        check: "replica.unique",
        object: "crm.notes",
        severity: "warning",
        message: "notes_body_key (body) is not unique on the source",
        remedy: "ADD UNIQUE (\"body\")",
        mend_replica: "ALTER TABLE crm.notes DROP CONSTRAINT notes_body_key",
        ..SAME
    },
    Case {
        replica: "REVOKE CREATE ON DATABASE app FROM writer",
        check: "replica.bookkeeping",
        object: "pglockstep",
        message: "may not create it",
        remedy: "CREATE SCHEMA \"pglockstep\" AUTHORIZATION \"writer\"",
        mend_replica: "GRANT CREATE ON DATABASE app TO writer",
        ..SAME
    },
];

#[tokio::test]
async fn each_finding_names_the_thing_and_its_remedy() {
    let pair = pair().await;
    pair.on_source(
        "CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON public.leads, public.notes TO reader; \
         GRANT pg_read_all_stats TO reader",
    )
    .await;
    pair.on_replica(
        "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA crm TO writer; \
         GRANT ALL ON ALL TABLES IN SCHEMA crm TO writer; GRANT CREATE ON DATABASE app TO writer; \
         GRANT SET ON PARAMETER session_replication_role TO writer",
    )
    .await;
    let config = as_roles(&pair, &pair.config(TABLES), "reader", "writer");
    for case in &CASES {
        pair.on_source(case.source).await;
        pair.on_replica(case.replica).await;
        let (code, findings) = check(&config).await;
        let found = finding(&findings, case.check, case.object);
        assert_finding(found, case.severity, case.message, case.remedy);
        assert_eq!(code, i32::from(case.severity == "error"), "{findings:#?}");
        pair.on_source(case.mend_source).await;
        pair.on_replica(case.mend_replica).await;
    }
    let (code, findings) = check(&config).await;
    let worse: Vec<_> = findings
        .iter()
        .filter(|f| f["severity"] != "info")
        .collect();
    assert!(worse.is_empty(), "{worse:#?}");
    assert_eq!(code, 0);
    let said = verb(&config, &["check"]).await;
    assert!(said.out.contains("ready to run (0 warnings"), "{said:?}");
    assert_untouched(&pair).await;
}

#[tokio::test]
async fn a_role_that_fires_triggers_hears_of_each() {
    let pair = pair().await;
    pair.on_replica(
        "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA crm TO writer; \
         GRANT ALL ON ALL TABLES IN SCHEMA crm TO writer; GRANT CREATE ON DATABASE app TO writer; \
         ALTER TABLE crm.notes ADD CONSTRAINT to_leads FOREIGN KEY (id) REFERENCES crm.leads; \
         CREATE FUNCTION crm.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER t BEFORE INSERT ON crm.leads FOR EACH ROW EXECUTE FUNCTION crm.f()",
    )
    .await;
    let config = as_roles(&pair, &pair.config(TABLES), "postgres", "writer");
    let (code, findings) = check(&config).await;
    assert_eq!(code, 0, "{findings:#?}");
    assert_finding(
        finding(&findings, "replica.session_replication_role", "writer"),
        "warning",
        "may not set session_replication_role",
        "GRANT SET ON PARAMETER session_replication_role TO \"writer\"",
    );
    let triggers = finding(&findings, "replica.triggers", "crm.leads");
    assert_finding(
        triggers,
        "warning",
        "triggers of crm.leads",
        "DISABLE TRIGGER",
    );
    // One that is to fire for replicated changes is no mistake.
    pair.on_replica("ALTER TABLE crm.leads ENABLE ALWAYS TRIGGER t")
        .await;
    let (_, quiet) = check(&pair.config(TABLES)).await;
    let always = finding(&quiet, "replica.triggers", "crm.leads");
    assert_finding(always, "info", "written one by one", "");
    let keys = finding(&findings, "replica.foreign_keys", "crm.notes");
    assert_finding(
        keys,
        "warning",
        "to_leads",
        "ALTER CONSTRAINT \"to_leads\" DEFERRABLE",
    );
}

#[tokio::test]
async fn expressions_are_tried_on_both_servers() {
    let pair = pair().await;
    let wrong = TABLES.replace("lower(email)", "lowr(email)");
    let (code, findings) = check(&pair.config(&wrong)).await;
    assert_eq!(code, 1);
    let found = finding(&findings, "mapping.expression", "public.leads");
    assert_finding(
        found,
        "error",
        "function lowr(text) does not exist",
        "`set`",
    );
    // Known to the source alone: the replica has no such function.
    pair.on_source("CREATE FUNCTION public.lowr(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
        .await;
    let wrong = TABLES.replace("lower(email)", "public.lowr(email)");
    let (code, findings) = check(&pair.config(&wrong)).await;
    assert_eq!(code, 1);
    let found = finding(&findings, "mapping.expression", "public.leads");
    assert_finding(found, "error", "public.lowr(text) does not exist", "");
    assert_untouched(&pair).await;
}

#[tokio::test]
async fn a_pipeline_that_runs_and_a_slot_that_is_not_ours() {
    let pair = pair().await;
    let config = pair.config(TABLES);
    let slot = "SELECT pg_create_logical_replication_slot('pglockstep_it', 'pgoutput')";
    pair.on_source(slot).await;
    let (code, findings) = check(&config).await;
    assert_eq!(code, 1);
    let found = finding(&findings, "source.slot", "pglockstep_it");
    assert_finding(
        found,
        "error",
        "knows nothing of",
        "pg_drop_replication_slot('pglockstep_it')",
    );
    pair.on_source("SELECT pg_drop_replication_slot('pglockstep_it')")
        .await;

    let mut daemon = Daemon::start(&config);
    daemon.until_ready().await;
    // Both sides are told as connected.
    let status = verb(&config, &["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    for side in ["source", "replica"] {
        assert_eq!(status[side]["connection"], "connected", "{status:#}");
    }
    let (code, findings) = check(&config).await;
    assert_eq!(code, 0, "{findings:#?}");
    assert_finding(
        finding(&findings, "source.slot", "pglockstep_it"),
        "info",
        "in use",
        "",
    );

    // The slot goes behind the replica's back.
    daemon.terminate();
    pair.on_source("SELECT pg_drop_replication_slot('pglockstep_it')")
        .await;
    let (code, findings) = check(&config).await;
    assert_eq!(code, 1);
    assert_finding(
        finding(&findings, "source.slot", "pglockstep_it"),
        "error",
        "is gone",
        "rebase",
    );
}
