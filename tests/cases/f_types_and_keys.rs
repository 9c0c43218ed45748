//! F: columns change their types and what they allow, and the key moves to others. What the replica
//! cannot take stops the pipeline until its own table is changed.

use super::ground::{FILL, Ground, at_once, each, fails_until};
use super::runner::{Case, case};

pub const CASES: &[Case] = &[
    case!(f13_types_change),
    case!(f14_an_enum_gets_a_value),
    case!(f15_null_becomes_allowed),
    case!(f16_the_primary_key_moves),
];

async fn f13_types_change(g: Ground<'_>) {
    let both = "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE t (id int PRIMARY KEY, n int, s varchar(2), d numeric(4, 1), m text)";
    let fill = "INSERT INTO t SELECT g, g, 's', 1.5, 'sad' FROM generate_series(1, 5) g";
    let (s, mut daemon) = g.running(both, fill).await;
    for (change, words, remedy) in [
        (
            "ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 5000000000 WHERE id = 1",
            &["public.t", "out of range", "widen"],
            "ALTER TABLE t ALTER n TYPE bigint",
        ),
        (
            "ALTER TABLE t ALTER s TYPE varchar(20); UPDATE t SET s = 'longer' WHERE id = 2",
            &["public.t", "too long", "widen"],
            "ALTER TABLE t ALTER s TYPE varchar(20)",
        ),
        (
            "ALTER TABLE t ALTER d TYPE numeric(9, 3); INSERT INTO t VALUES (6, 6, 's', 12345.678, 'ok')",
            &["public.t", "out of range", "widen"],
            "ALTER TABLE t ALTER d TYPE numeric(9, 3)",
        ),
    ] {
        fails_until(&s, &mut daemon, (change, words, "SELECT * FROM t"), remedy).await;
        let said = daemon.stderr();
        for secret in ["5000000000", "longer", "12345.678"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
    // The replica's text takes what the enum says; then it is one, too.
    each(
        &s,
        &daemon,
        &["ALTER TABLE t ALTER m TYPE mood USING m::mood; UPDATE t SET m = 'ok' WHERE id < 3"],
    )
    .await;
    s.on_replica("ALTER TABLE t ALTER m TYPE mood USING m::mood")
        .await;
    each(&s, &daemon, &["UPDATE t SET m = 'sad' WHERE id = 1"]).await;
}

async fn f14_an_enum_gets_a_value(g: Ground<'_>) {
    let both =
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (m mood PRIMARY KEY, ms mood[])";
    let (s, mut daemon) = g
        .running(both, "INSERT INTO t VALUES ('sad', '{ok}')")
        .await;
    s.on_both("ALTER TYPE mood ADD VALUE 'between' BEFORE 'ok'")
        .await;
    each(
        &s,
        &daemon,
        &["INSERT INTO t VALUES ('between', '{between,sad}')"],
    )
    .await;
    s.on_source("ALTER TYPE mood ADD VALUE 'unheard of'").await;
    fails_until(
        &s,
        &mut daemon,
        (
            "UPDATE t SET m = 'unheard of' WHERE m = 'between'",
            &["public.t", "does not have the form its type needs"],
            "SELECT * FROM t",
        ),
        "ALTER TYPE mood ADD VALUE 'unheard of'",
    )
    .await;
    assert!(!daemon.stderr().contains("unheard"), "{}", daemon.stderr());
}

async fn f15_null_becomes_allowed(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)";
    let (s, mut daemon) = g.running(both, FILL).await;
    fails_until(
        &s,
        &mut daemon,
        (
            "ALTER TABLE t ALTER v DROP NOT NULL; INSERT INTO t VALUES (10, NULL)",
            &["public.t", "NULL", "column v", "stricter"],
            "SELECT * FROM t",
        ),
        "ALTER TABLE t ALTER v DROP NOT NULL",
    )
    .await;
    each(
        &s,
        &daemon,
        &[
            "UPDATE t SET v = '' WHERE v IS NULL; ALTER TABLE t ALTER v SET NOT NULL, ALTER v SET DEFAULT 'd'",
            "INSERT INTO t VALUES (11)",
            "ALTER TABLE t ALTER v DROP DEFAULT; DELETE FROM t WHERE v = 'd'",
        ],
    )
    .await;
}

async fn f16_the_primary_key_moves(g: Ground<'_>) {
    let both = "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL, v text)";
    let (s, mut daemon) = g
        .running(
            both,
            "INSERT INTO t SELECT g, -g, 'v' FROM generate_series(1, 9) g",
        )
        .await;
    let statements = [
        "UPDATE t SET id = id + 100, v = 'by id' WHERE id = 1",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "INSERT INTO t VALUES (10, -10, 'no key')",
        "ALTER TABLE t ADD PRIMARY KEY (other)",
        "UPDATE t SET other = other - 100, v = 'by other' WHERE id = 2; DELETE FROM t WHERE id = 3",
        "UPDATE t SET id = id + 1000 WHERE other = -10",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, other)",
        "UPDATE t SET other = 7 WHERE id = 4; DELETE FROM t WHERE id = 5",
    ];
    each(&s, &daemon, &statements).await;
    s.on_source("TRUNCATE t; ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)")
        .await;
    s.on_source("INSERT INTO t SELECT g, -g, 'v' FROM generate_series(1, 9) g")
        .await;
    at_once(&s, &mut daemon, &statements).await;
}
