//! A mapping that renames, casts, filters and computes: beside the same changes unmapped.

use super::{Compared, Mapping, Workload, thousands, transactions};
use crate::arguments::Size;
use crate::contender::Contender;

const RULES: &str = r#"
[[tables]]
source = "public.person"
replica = "mapped.people"
columns = { full_name = "name" }
exclude = ["internal"]
set = { email_domain = "lower(split_part(email, '@', 2))" }
where = "kind <> 9"

[[tables]]
source = "public.sentinel"
replica = "mapped.sentinel"
"#;

pub fn people(size: Size) -> Workload {
    let count = size.of(12_000);
    let title = format!(
        "mapped: renames, casts, filter, expression, {} inserts and updates in 25-row transactions",
        thousands(u64::from(count) * 25)
    );
    let workload = Workload::new("mapped", title)
        .tables(
            "CREATE TABLE person (id bigint PRIMARY KEY, full_name text NOT NULL, email text NOT NULL, \
             score int NOT NULL, kind int NOT NULL, internal text, made timestamptz NOT NULL)",
        )
        .backlog(transactions(
            count,
            "INSERT INTO person SELECT i, 'Person Number ' || i, 'person' || i || '@Example' || i % 50 || '.org', \
             i % 1000, i % 10, 'private ' || i, '2024-01-01 00:00+00'::timestamptz + i * interval '1 second' \
             FROM generate_series((t - 1) * 15 + 1, t * 15) AS i; \
             UPDATE person SET score = score + 1, email = 'new' || id || '@elsewhere.org' \
             WHERE id BETWEEN (t - 1) * 15 + 1 AND (t - 1) * 15 + 10;",
        ));
    Workload {
        replica_schema:
            "CREATE SCHEMA mapped; \
             CREATE TABLE mapped.people (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, \
             score numeric(12, 2) NOT NULL, kind bigint NOT NULL, made timestamptz NOT NULL, \
             email_domain text); \
             CREATE TABLE mapped.sentinel (id int PRIMARY KEY, n int)"
                .to_owned(),
        contenders: vec![Contender::Native, Contender::Ours, Contender::Mapped],
        mapping: Some(Mapping {
            tables: RULES,
            compared: vec![
                Compared {
                    on_source:
                        "(SELECT id, full_name, email, score::numeric(12, 2), kind::bigint, made, \
                         lower(split_part(email, '@', 2)) FROM person WHERE kind <> 9)"
                            .to_owned(),
                    on_replica: "(SELECT id, name, email, score, kind, made, email_domain FROM mapped.people)"
                        .to_owned(),
                },
                Compared {
                    on_source: "public.sentinel".to_owned(),
                    on_replica: "mapped.sentinel".to_owned(),
                },
            ],
        }),
        ..workload
    }
}
