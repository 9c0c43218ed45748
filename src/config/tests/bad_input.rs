//! One wrong thing at a time, and the one message that comes of it.

use super::{LEAST, parse, problems};

/// Lines that follow `LEAST`, from line 7 on, and what comes of them.
const BAD_ADDITIONS: &[(&str, &str)] = &[
    (
        "[copy]\nworker = 3",
        "line 8, copy.worker: unknown key; did you mean workers?",
    ),
    ("[cpoy]", "line 7, cpoy: unknown key; did you mean copy?"),
    (
        "[copy]\nworkers = \"3\"",
        "line 8, copy.workers: expected a whole number, found other text",
    ),
    (
        "[copy]\nworkers = 1.9",
        "line 8, copy.workers: expected a whole number, found a number with a fraction",
    ),
    (
        "[copy]\nworkers = 0",
        "line 8, copy.workers: 0 is not between 1 and 64",
    ),
    (
        "[copy]\nexisting_rows = \"mrege\"",
        "line 8, copy.existing_rows: \"mrege\" is not one of refuse, merge, truncate",
    ),
    (
        "[copy]\nindexes = \"later\"",
        "line 8, copy.indexes: \"later\" is not one of keep, after",
    ),
    (
        "[copy]\nextra_rows = \"delete\"",
        "line 8, copy.extra_rows: delete has no effect unless existing_rows is merge",
    ),
    (
        "[apply]\nbatch_bytes_max = \"16 M\"",
        "line 8, apply.batch_bytes_max: expected a size such as 65536, \"500kB\" or \"16MiB\", found other text",
    ),
    (
        "[apply]\nbatch_bytes_max = \"1KiB\"",
        "line 8, apply.batch_bytes_max: expected at least 64KiB",
    ),
    (
        "[apply]\nmemory_max = \"1MiB\"",
        "line 8, apply.memory_max: memory_max (1048576 bytes) must hold at least one batch of batch_bytes_max (16777216 bytes)",
    ),
    (
        "[apply]\non_conflict = \"newest\"",
        "line 8, apply.on_conflict: expected source_wins, replica_wins, newest_wins(COLUMN) or stop",
    ),
    (
        "[apply]\non_error = \"skip\"",
        "line 8, apply.on_error: \"skip\" is not one of stop, quarantine",
    ),
    (
        "[apply]\nschema_changes = \"ignore\"",
        "line 8, apply.schema_changes: only pause is supported yet by this version: a change of a table's shape that does not fit stops the pipeline",
    ),
    (
        "[slot]\nwarn_beyond = \"2GiB\"\ncritical_beyond = \"1GiB\"",
        "line 9, slot.critical_beyond: must not be below warn_beyond",
    ),
    (
        "[slot]\ndrop_beyond = \"1GiB\"",
        "line 8, slot.drop_beyond: must not be below warn_beyond: nobody would be told before the slot goes",
    ),
    (
        "[verify]\nrepair = \"yes\"",
        "line 8, verify.repair: expected true or false, found other text",
    ),
    (
        "[verify]\nevery = \"1ms\"",
        "line 8, verify.every: expected 10s to 366 days, or 0s for never",
    ),
    (
        "[verify]\ncounts_every = \"9999y\"",
        "line 8, verify.counts_every: expected 10s to 366 days, or 0s for never",
    ),
    (
        "[tenants]\ncolumn = \"t\"",
        "line 7, tenants: not supported yet by this version; remove it",
    ),
    (
        "[http]\nadmin_token_file = \"/x\"",
        "line 8, http.admin_token_file: not supported yet by this version; remove it",
    ),
    (
        "[http]\nlisten = \"localhost:9808\"",
        "line 8, http.listen: expected ADDRESS:PORT in numbers, as in 127.0.0.1:9808",
    ),
    (
        "[http]\nready_lag_seconds_max = -1",
        "line 8, http.ready_lag_seconds_max: must not be below 0",
    ),
    (
        "[http]\nready_lag_seconds_max = nan",
        "line 8, http.ready_lag_seconds_max: expected a number, found a number with a fraction",
    ),
    (
        "[retry]\ndelay_min = \"soon\"",
        "line 8, retry.delay_min: expected a time such as \"200ms\", \"30s\" or \"1h\", found other text",
    ),
    (
        "[retry]\ndelay_min = \"0s\"",
        "line 8, retry.delay_min: must be above 0: servers would be hammered",
    ),
    (
        "[retry]\ndelay_max = \"1ms\"",
        "line 8, retry.delay_max: delay_max must not be below delay_min",
    ),
    (
        "tables = 3",
        "line 7, replica.tables: unknown key; known here: url, url_file, environment, accept_environments, pool_max",
    ),
    (
        "pool_max = 5",
        "line 7, replica.pool_max: 5 is not between 6 and 1000",
    ),
    (
        "url_file = \"/x\"",
        "line 6, replica.url: give url or url_file, not both",
    ),
    (
        "environment = \"production\"",
        "line 7, replica.environment: a replica of environment \"production\" is not fed from a source with no label; if that is meant, label the source with source.environment and list it in replica.accept_environments",
    ),
    (
        "accept_environments = \"all\"",
        "line 7, replica.accept_environments: expected a list of texts, as in [\"a\", \"b\"], found other text",
    ),
    (
        "[[tables]]\nreplica = \"a.b\"",
        "line 7, tables[0].source: missing; expected schema.table or a pattern such as public.*",
    ),
    (
        "[[tables]]\nsource = \"leads\"",
        "line 8, tables[0].source: expected schema.table, where * stands for any characters and \"double quotes\" keep dots",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nreplica = \"a.*\"",
        "line 9, tables[0].replica: * in the table stands for nothing: the source has none there",
    ),
    (
        "[[tables]]\nsource = \"a.*\"\nreplica = \"a.b\"",
        "line 9, tables[0].replica: every table that a.* matches would become a.b; keep the *",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\n[[tables]]\nsource = \"a.b\"",
        "line 10, tables[1].source: a.b has a rule already, further up",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = 1 }",
        "line 9, tables[0].columns: expected names and texts, as in { a = \"b\" }, found a section",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\", y = \"z\" }",
        "line 9, tables[0].columns: two columns would become z",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\" }\nset = { z = \"1\" }",
        "line 10, tables[0].set: z is filled by columns already",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\ncolumns = { x = \"z\" }\nexclude = [\"x\"]",
        "line 10, tables[0].exclude: x is renamed by columns and excluded",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nexclude = [\"id\"]\nkey = [\"id\"]",
        "line 10, tables[0].key: id is excluded and so cannot identify a row",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nkey = []",
        "line 9, tables[0].key: empty; leave it out to use the primary key",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nwhere = \" \"",
        "line 9, tables[0].where: empty; leave it out to replicate every row",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nset = { z = \"\" }",
        "line 9, tables[0].set: z has an empty expression",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\nextra_rows = \"delete\"",
        "line 9, tables[0].extra_rows: delete has no effect unless existing_rows is merge",
    ),
    (
        "[[tables]]\nsource = \"a.b\"\npriority = 9999999999",
        "line 9, tables[0].priority: too large a number",
    ),
];

#[test]
fn each_bad_input_has_its_message() {
    for (addition, expected) in BAD_ADDITIONS {
        let text = format!("{}{addition}\n", &LEAST);
        assert_eq!(problems(parse(&text)), [*expected], "{addition}");
    }
}

#[test]
fn what_is_missing_or_wrong_at_the_root() {
    for (text, expected) in [
        (
            LEAST.replace("name = \"crm\"", ""),
            "name: missing; the slot and the publication are named after it",
        ),
        (
            LEAST.replace("\"crm\"", "\"CRM!\""),
            "line 2, name: expected 1 to 40 of the letters a to z, digits and underscores",
        ),
        (
            LEAST.replace("\"crm\"", "7"),
            "line 2, name: expected text in quotes, found a whole number",
        ),
        (
            LEAST.replace("b/crm", "b/crm?sslmode=loud"),
            "line 6, replica.url: connection parameter \"sslmode\" must be one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            LEAST.replace("b/crm", "b/crm?sslmod=disable"),
            "line 6, replica.url: unknown connection parameter \"sslmod\"",
        ),
        (
            LEAST.replace("pglockstep:hunter3@b/crm", "other@a:5432/app"),
            "line 6, replica.url: the same database as the source: it would be copied onto itself",
        ),
        (
            LEAST.replace("hunter3@b/crm", "hunter2@a/app"),
            "line 6, replica.url: the same database as the source: it would be copied onto itself",
        ),
        (
            LEAST.replace("postgres://pglockstep:hunter3", "enc:v1:hunter3"),
            "line 6, replica.url: encrypted connection strings (enc:v1:) are not supported yet by this version",
        ),
        (
            LEAST.replace("\"postgres://pglockstep:hunter3@b/crm\"", "\"\""),
            "line 6, replica.url: the connection string cannot be read: it is empty",
        ),
        (
            LEAST.replace("[replica]\nurl", "#"),
            "replica.url: missing; expected postgres://user@host:port/database, here or in the file named by url_file",
        ),
        (
            LEAST.replace("[replica]", "slot = \"Slot\"\n[replica]"),
            "line 5, source.slot: expected 1 to 63 of the letters a to z, digits and underscores",
        ),
        (
            LEAST.replace("[replica]", "publication = \"\"\n[replica]"),
            "line 5, source.publication: expected a name of 1 to 63 bytes",
        ),
        (
            LEAST.replace(
                "[replica]\nurl",
                "[replica]\nurl_file = \"/does/not/exist\"\n#",
            ),
            "line 6, replica.url_file: cannot read /does/not/exist: No such file or directory (os error 2)",
        ),
    ] {
        assert_eq!(problems(parse(&text)), [expected], "{text}");
    }
}
