//! The replica's own integrity, as `diagnose` sees it.

use serde_json::Value;

use crate::support::{Family, Scenario, eventually, run_verb, until_metric};

static FAMILY: Family = Family::const_new();

fn diagnosed(s: &Scenario<'_>, more: &str) -> (Option<i32>, Vec<Value>) {
    let output = run_verb(&s.config(more), &["diagnose", "--json"]);
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), findings)
}

/// Check, object and message of each, without those of roles: the family has roles of other tests.
fn told(findings: &[Value]) -> Vec<String> {
    let of = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let mut told: Vec<String> = findings
        .iter()
        .filter(|finding| finding["check"] != "diagnose.writers")
        .map(|finding| format!("{}: {}", of(finding, "check"), of(finding, "message")))
        .collect();
    told.sort();
    told
}

#[tokio::test]
async fn a_sound_replica_has_nothing_to_tell() {
    let s = Scenario::new(&FAMILY, "sound").await;
    s.on_both(
        "CREATE TABLE projects (id int PRIMARY KEY, code text NOT NULL UNIQUE);
         CREATE TABLE leads (id int PRIMARY KEY, project_id int REFERENCES projects, v text);
         CREATE INDEX ON leads (project_id)",
    )
    .await;
    s.publish_all().await;
    let (code, findings) = diagnosed(&s, "");
    assert!(told(&findings).is_empty(), "{findings:?}");
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
}

#[tokio::test]
async fn rows_of_a_table_of_the_replicas_own_are_orphans_too() {
    let s = Scenario::new(&FAMILY, "own_child").await;
    s.on_both("CREATE TABLE projects (id int PRIMARY KEY)")
        .await;
    // What inherits is not bound by the key.
    s.on_replica(
        "CREATE TABLE own (id int PRIMARY KEY, project_id int REFERENCES projects);
         CREATE TABLE heir () INHERITS (own); INSERT INTO heir VALUES (3, 77)",
    )
    .await;
    s.on_source("INSERT INTO projects VALUES (1), (2)").await;
    s.publish_all().await;
    let daemon = s.start("[verify]\nevery = \"10s\"").await;
    s.in_step(&daemon, &["SELECT * FROM projects"]).await;
    s.on_replica("INSERT INTO own VALUES (1, 1), (2, 2)").await;
    // Foreign keys keep still while it is applied.
    s.on_source("DELETE FROM projects WHERE id = 2").await;
    s.in_step(&daemon, &["SELECT * FROM projects"]).await;
    let (code, findings) = diagnosed(&s, "");
    assert_eq!(code, Some(1));
    let expected = "diagnose.orphans: 1 rows of public.own, which is not replicated, refer to rows of \
                    public.projects that are not there (project_id -> id, own_project_id_fkey)";
    assert_eq!(told(&findings), [expected]);
    let metric = "pglockstep_foreign_key_orphans{constraint=\"public.own.own_project_id_fkey\"}";
    until_metric(&daemon, metric, 1.0).await;
    // It is nobody's but the replica's.
    let output = run_verb(&s.config(""), &["cleanup", "orphans", "--apply"]);
    assert_eq!(
        s.replica_one("SELECT count(*) FROM own").await,
        "3",
        "{output:?}"
    );
    s.end(daemon).await;
}

#[tokio::test]
async fn a_row_that_refers_by_half_is_an_orphan_where_all_has_to_match() {
    let s = Scenario::new(&FAMILY, "by_half").await;
    let tables = "CREATE TABLE towns (land int, id int, PRIMARY KEY (land, id));
        CREATE TABLE simple (id int PRIMARY KEY, land int, town int);
        CREATE TABLE whole (LIKE simple INCLUDING ALL);
        CREATE INDEX ON simple (land, town); CREATE INDEX ON whole (land, town);
        ALTER TABLE simple ADD CONSTRAINT by_simple FOREIGN KEY (land, town) REFERENCES towns";
    s.on_both(tables).await;
    let whole = "ALTER TABLE whole ADD CONSTRAINT by_whole FOREIGN KEY (land, town) REFERENCES towns MATCH FULL";
    s.on_source(whole).await;
    s.publish_all().await;
    s.on_replica(
        "SET session_replication_role = replica; INSERT INTO towns VALUES (1, 1);
         INSERT INTO simple VALUES (1, 1, 1), (2, NULL, NULL), (3, 1, NULL), (4, NULL, 7), (5, 1, 2);
         INSERT INTO whole SELECT * FROM simple; RESET session_replication_role",
    )
    .await;
    let orphans = |table: &str, rows: u32| {
        format!(
            "diagnose.orphans: {rows} rows of public.{table} refer to rows of public.towns that are not there \
             (land, town -> land, id, by_{table})"
        )
    };
    let (_, findings) = diagnosed(&s, "");
    let told = told(&findings);
    assert!(told.contains(&orphans("simple", 1)), "{told:?}");
    assert!(told.contains(&orphans("whole", 3)), "{told:?}");
    // What the source alone declares is declared alike.
    let is_key = |finding: &&Value| finding["check"] == "diagnose.foreign_key";
    let remedy = findings.iter().find(is_key).unwrap()["remedy"].as_str();
    s.on_replica(remedy.unwrap()).await;
    let alike = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'by_whole'";
    let is = "FOREIGN KEY (land, town) REFERENCES towns(land, id) MATCH FULL NOT VALID";
    assert_eq!(s.replica_one(alike).await, is);
    let (_, findings) = diagnosed(&s, "");
    assert!(self::told(&findings).contains(&orphans("whole", 3)));
}

#[tokio::test]
async fn orphans_of_declared_and_of_mapped_foreign_keys_are_counted() {
    let s = Scenario::new(&FAMILY, "orphans").await;
    s.on_source(
        "CREATE TABLE projects (id int PRIMARY KEY, code text NOT NULL UNIQUE);
         CREATE TABLE leads (id int PRIMARY KEY, current_project_id int REFERENCES projects);
         CREATE TABLE notes (id int PRIMARY KEY, lead_id int, part int, FOREIGN KEY (lead_id) REFERENCES leads)",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA crm; CREATE TABLE crm.projects (id int PRIMARY KEY, code text);
         CREATE TABLE crm.leads (id int PRIMARY KEY, project_id int);
         CREATE TABLE crm.notes (id int PRIMARY KEY, lead_id int CONSTRAINT notes_lead REFERENCES crm.leads, part int);
         CREATE INDEX ON crm.notes (lead_id)",
    )
    .await;
    s.publish_all().await;
    s.on_replica(
        "SET session_replication_role = replica;
         INSERT INTO crm.projects VALUES (1, 'a'), (2, 'a'), (3, NULL), (4, NULL);
         INSERT INTO crm.leads SELECT g, CASE WHEN g > 10 THEN 1 END FROM generate_series(1, 14) g;
         INSERT INTO crm.leads VALUES (20, 99), (21, 98);
         INSERT INTO crm.notes VALUES (1, 1, 1), (2, 77, 1), (3, NULL, 1); RESET session_replication_role",
    )
    .await;
    let rules = "[[tables]]\nsource = \"public.*\"\nreplica = \"crm.*\"\n\
        [[tables]]\nsource = \"public.leads\"\nreplica = \"crm.leads\"\n\
        columns = { current_project_id = \"project_id\" }";
    let (code, findings) = diagnosed(&s, rules);
    assert_eq!(code, Some(1));
    let told = told(&findings);
    let expected = [
        "diagnose.duplicates: 1 values of (code) are held by more than one row of crm.projects, and by one on the source",
        "diagnose.foreign_key: the source's foreign key leads_current_project_id_fkey (project_id -> id) is not declared on the replica",
        "diagnose.foreign_key_index: no index of crm.leads begins with the columns of leads_current_project_id_fkey: whoever deletes from crm.projects, or joins, scans it",
        "diagnose.not_null: NOT NULL on the source and not on crm.projects: code",
        "diagnose.orphans: 1 rows of crm.notes refer to rows of crm.leads that are not there (lead_id -> id, notes_lead)",
        "diagnose.orphans: 2 rows of crm.leads refer to rows of crm.projects that are not there (project_id -> id, leads_current_project_id_fkey)",
    ];
    assert_eq!(told, expected);
    // A remedy that is SQL is right.
    let remedy = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check);
        finding.unwrap()["remedy"].as_str().unwrap().to_owned()
    };
    s.on_replica("DELETE FROM crm.leads WHERE id >= 20; DELETE FROM crm.projects WHERE id > 1")
        .await;
    for check in [
        "diagnose.foreign_key",
        "diagnose.foreign_key_index",
        "diagnose.not_null",
    ] {
        s.on_replica(&remedy(check)).await;
    }
    let (_, findings) = diagnosed(&s, rules);
    let told = self::told(&findings);
    assert!(
        told.iter()
            .any(|line| line.starts_with("diagnose.not_valid: the constraint leads_current")),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|line| line.starts_with("diagnose.unique: (code) is unique on the source")),
        "{told:?}"
    );
    assert!(
        !told
            .iter()
            .any(|line| line.contains("foreign_key:") || line.contains("_index:")),
        "{told:?}"
    );
}

#[tokio::test]
async fn writers_triggers_sequences_and_open_rows_are_told() {
    let s = Scenario::new(&FAMILY, "access").await;
    s.on_both(
        "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY, v text)",
    )
    .await;
    s.on_source("ALTER TABLE t ENABLE ROW LEVEL SECURITY").await;
    s.on_replica(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER always BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
         ALTER TABLE t ENABLE ALWAYS TRIGGER always; INSERT INTO t VALUES (1, 500, 'x');
         CREATE ROLE an_app LOGIN; GRANT INSERT ON t TO an_app;
         CREATE ROLE a_reader LOGIN; GRANT SELECT ON t TO a_reader;
         CREATE ROLE a_clerk LOGIN; GRANT UPDATE (v) ON t TO a_clerk;
         CREATE ROLE an_operator LOGIN NOINHERIT; GRANT an_app TO an_operator;
         CREATE UNIQUE INDEX broken ON t (v); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass",
    )
    .await;
    s.publish_all().await;
    let (code, findings) = diagnosed(&s, "");
    assert_eq!(code, Some(1));
    let lines = told(&findings).join("\n");
    for words in [
        "triggers of public.t fire",
        "row security is enabled on the source's public.t",
        "public.t_n_seq stands at 1, and public.t.n is at 500",
        "the index public.broken is invalid",
    ] {
        assert!(lines.contains(words), "{lines}");
    }
    let writers: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["check"] == "diagnose.writers")
        .map(|finding| finding["object"].as_str().unwrap())
        .collect();
    for role in ["an_app", "a_clerk", "an_operator"] {
        assert!(writers.contains(&role), "{role}: {writers:?}");
    }
    assert!(!writers.contains(&"a_reader"), "{writers:?}");
}

#[tokio::test]
async fn checks_exclusions_and_indexes_that_only_the_source_has_are_told() {
    let s = Scenario::new(&FAMILY, "shape").await;
    s.on_both("CREATE TABLE rooms (id int PRIMARY KEY, seats int, name text, kind text, spare text, span int4range)")
        .await;
    s.on_source(
        "ALTER TABLE rooms ADD CONSTRAINT some_seats CHECK (seats > 0), ADD CONSTRAINT a_kind CHECK (kind <> ''),
           ADD CONSTRAINT no_overlap EXCLUDE USING gist (span WITH &&);
         CREATE INDEX by_name ON rooms (name, seats); CREATE INDEX by_kind ON rooms (kind);
         CREATE INDEX by_lower ON rooms (lower(name)); CREATE UNIQUE INDEX one_open ON rooms (kind) WHERE seats > 5;
         CREATE INDEX by_spare ON rooms (spare)",
    )
    .await;
    s.on_replica(
        "ALTER TABLE rooms RENAME kind TO sort; ALTER TABLE rooms DROP spare;
         ALTER TABLE rooms ADD CHECK (sort <> ''); CREATE INDEX ON rooms (sort, id); CREATE INDEX ON rooms (name)",
    )
    .await;
    s.publish_all().await;
    let rules = "[[tables]]\nsource = \"public.rooms\"\ncolumns = { kind = \"sort\" }\nexclude = [\"spare\"]";
    let (_, findings) = diagnosed(&s, rules);
    let lacks = |what: &str| {
        format!("the source's {what} of public.rooms has none like it on public.rooms")
    };
    let expected = [
        format!("diagnose.constraint: {}", lacks("constraint no_overlap")),
        format!("diagnose.constraint: {}", lacks("constraint some_seats")),
        format!("diagnose.index: {}", lacks("index by_lower")),
        format!("diagnose.index: {}", lacks("index by_name")),
        format!("diagnose.index: {}", lacks("index one_open")),
    ];
    assert_eq!(told(&findings), expected);
    for finding in &findings {
        let remedy = finding["remedy"].as_str().unwrap();
        let sql = remedy.strip_prefix("as on the source: ").unwrap_or(remedy);
        // What is named differently here is for a person to write.
        if finding["message"].as_str().unwrap().contains("rooms has") && !sql.contains("kind") {
            s.on_replica(sql).await;
        }
    }
    let (_, findings) = diagnosed(&s, rules);
    assert_eq!(told(&findings), expected[4..]);
}

/// For a person, once a day.
#[tokio::test]
async fn the_report_tells_counts_drift_relationships_and_changes() {
    let s = Scenario::new(&FAMILY, "report").await;
    s.on_both(
        "CREATE TABLE projects (id int PRIMARY KEY); \
         CREATE TABLE leads (id int PRIMARY KEY, project_id int REFERENCES projects, v text)",
    )
    .await;
    s.on_source("INSERT INTO projects VALUES (1); INSERT INTO leads SELECT g, 1, 'v' FROM generate_series(1, 14) g")
        .await;
    s.publish_all().await;
    let often = "[verify]\nevery = \"10s\"\ncounts_every = \"10s\"";
    let daemon = s.start(often).await;
    for table in ["projects", "leads"] {
        let in_sync = format!("pglockstep_in_sync{{table=\"public.{table}\"}}");
        until_metric(&daemon, &in_sync, 1.0).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.md");
    let write = |more: &str| {
        let listen = s.config(more);
        let output = run_verb(&listen, &["status", "--report", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code(),
            said,
            std::fs::read_to_string(&file).unwrap_or_default(),
        )
    };
    let (code, said, report) = write(often);
    assert_eq!(code, Some(0), "{said}{report}");
    assert!(report.contains("everything is in step"), "{report}");
    assert!(
        report.contains("| public.leads | public.leads | 14 | 14 | 0 / 0 / 0 | since 20"),
        "{report}"
    );
    assert!(
        report.contains("| public.leads | public.projects | project_id -> id | 0, intact |"),
        "{report}"
    );
    s.on_source(
        "INSERT INTO leads VALUES (20, 1, 'x'), (21, 1, 'y'); DELETE FROM leads WHERE id = 3",
    )
    .await;
    s.caught_up(&daemon).await;
    s.on_replica("SET session_replication_role = replica; DELETE FROM projects; RESET session_replication_role").await;
    // Counts may find it first, and do not tell which rows.
    let missing = "pglockstep_drift_rows{table=\"public.projects\",kind=\"missing\"}";
    until_metric(&daemon, missing, 1.0).await;
    // The source's counters come a little later than what they count.
    let told = async || {
        let (code, _, report) = write(often);
        (code == Some(1) && report.contains("2 / 0 / 1")).then_some(report)
    };
    let report = eventually("a report with the changes", || daemon.stderr(), told).await;
    assert!(report.contains("**15**"), "{report}");
    assert!(
        report.contains("| public.projects | public.projects | 1 | 0 | 1 / 0 / 0 | **NO**"),
        "{report}"
    );
}
