//! Every type through copy, insert, update and delete; as a key where it can be one; and
//! from one major version to another.

use pglockstep::demo::cluster::installed_majors;

use crate::support::{
    Daemon, Family, Pair, Scenario, TYPES_SETUP_SQL, TypeCase, fetch_rows, row_differences,
    type_cases,
};

static FAMILY: Family = Family::const_new();

/// Compares every table, and tells of all that differ, not only of the first; how many values.
async fn all_in_step(s: &Scenario<'_>, daemon: &Daemon, cases: &[TypeCase], after: &str) -> usize {
    s.caught_up(daemon).await;
    let mut wrong = String::new();
    let mut values = 0;
    for sql in cases.iter().flat_map(TypeCase::select_sql) {
        let (source, replica) = (
            fetch_rows(&s.source, &sql).await,
            fetch_rows(&s.replica, &sql).await,
        );
        values += source.iter().map(Vec::len).sum::<usize>();
        if let Some(differences) = row_differences(&source, &replica) {
            wrong += &format!("after {after}: {sql}: {differences}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    values
}

/// All tables of the cases through everything that can happen to a row.
async fn every_change(s: &Scenario<'_>, cases: &[TypeCase], table_end: impl Fn(&str) -> String) {
    every_change_by(s, cases, async || s.start("").await, table_end).await;
}

/// By the daemon that `start` yields, which is given back.
async fn every_change_by(
    s: &Scenario<'_>,
    cases: &[TypeCase],
    start: impl AsyncFnOnce() -> Daemon,
    table_end: impl Fn(&str) -> String,
) -> Daemon {
    let all = |sql: fn(&TypeCase) -> String| cases.iter().map(sql).collect::<String>();
    for client in [&s.source, &s.replica] {
        client.batch_execute(TYPES_SETUP_SQL).await.unwrap();
    }
    s.on_both(&table_end(&all(TypeCase::create_sql))).await;
    s.on_source(&all(TypeCase::insert_sql)).await;
    s.publish_all().await;
    let daemon = start().await;
    let mut values = all_in_step(s, &daemon, cases, "the copy").await;
    let mut tables = Vec::new();
    for case in cases {
        tables.push(format!("types.{}", case.name));
        tables.extend(case.is_key.then(|| format!("types.{}_key", case.name)));
    }
    s.on_source(&format!("TRUNCATE {}", tables.join(", ")))
        .await;
    s.on_source(&all(TypeCase::insert_sql)).await;
    values += all_in_step(s, &daemon, cases, "inserts").await;
    s.on_source(&all(TypeCase::update_sql)).await;
    values += all_in_step(s, &daemon, cases, "updates").await;
    s.on_source(&all(TypeCase::delete_sql)).await;
    values += all_in_step(s, &daemon, cases, "deletes").await;
    eprintln!(
        "{}: {} types, {values} values compared: equal",
        s.name,
        cases.len()
    );
    assert_eq!(
        s.replica_one("SELECT count(*) > 0 FROM types.t_int4").await,
        "t"
    );
    assert_eq!(
        s.replica_one("SELECT count(*) FROM types.t_int4_key").await,
        "0"
    );
    daemon
}

#[tokio::test]
async fn every_type_by_its_key() {
    let s = Scenario::new(&FAMILY, "by_key").await;
    every_change(&s, &type_cases(s.pair.major()), str::to_owned).await;
}

#[tokio::test]
async fn every_type_by_its_whole_row() {
    let s = Scenario::new(&FAMILY, "by_row").await;
    let keyless = |sql: &str| {
        let identity: String = sql
            .lines()
            .filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split(' ').next())
            .map(|table| format!("ALTER TABLE {table} REPLICA IDENTITY FULL;\n"))
            .collect();
        sql.replace(" PRIMARY KEY", "") + &identity
    };
    every_change(&s, &type_cases(s.pair.major()), keyless).await;
}

#[tokio::test]
async fn every_type_from_major_to_major() {
    for (from, to) in [(14, 18), (18, 14), (16, 17)] {
        let majors = installed_majors();
        assert!(
            majors.contains(&from) && majors.contains(&to),
            "PostgreSQL {from} or {to} is missing: run tests/install-postgres.sh"
        );
        let pair = Pair::start_majors(from, to).await;
        let s = Scenario::on_pair(&pair, "majors").await;
        every_change(&s, &type_cases(from.min(to)), str::to_owned).await;
    }
}

/// The types of which every table of a publication must be for the stream to be binary.
fn binary_cases(major: u32) -> Vec<TypeCase> {
    let mut cases = type_cases(major);
    cases.retain(TypeCase::travels_binary);
    assert!(cases.len() > 100, "{} types", cases.len());
    cases
}

/// As [`every_change`], and nothing of it went as text.
async fn every_change_in_binary(
    s: &Scenario<'_>,
    cases: &[TypeCase],
    (limits, more): (&str, &str),
    table_end: impl Fn(&str) -> String,
) {
    let limits = [("PGLOCKSTEP_LIMITS", limits)];
    let start = async || {
        let mut daemon = Daemon::start_with(&s.config(more), &limits);
        s.until_state(&mut daemon, "streaming").await;
        daemon
    };
    let daemon = every_change_by(s, cases, start, table_end).await;
    let said = daemon.stderr();
    assert!(said.contains("values=Binary"), "{said}");
    assert!(!said.contains("values=Text"), "{said}");
}

#[tokio::test]
async fn every_type_in_binary() {
    for (name, from, to) in [("binary", None, None), ("binary_up", Some(14), Some(18))] {
        match (from, to) {
            (Some(from), Some(to)) => {
                let pair = Pair::start_majors(from, to).await;
                let s = Scenario::on_pair(&pair, name).await;
                let cases = binary_cases(from);
                every_change_in_binary(&s, &cases, ("", ""), str::to_owned).await;
            }
            _ => {
                let s = Scenario::new(&FAMILY, name).await;
                let cases = binary_cases(s.pair.major());
                every_change_in_binary(&s, &cases, ("", ""), str::to_owned).await;
            }
        }
    }
}

#[tokio::test]
async fn every_type_in_binary_by_copy() {
    let s = Scenario::new(&FAMILY, "binary_copy").await;
    let cases = binary_cases(s.pair.major());
    // By names, and by more of them than are remembered.
    let limits = "apply.copy_from_rows=1;apply.whole_first=0;apply.known_max=2";
    every_change_in_binary(&s, &cases, (limits, ""), str::to_owned).await;
}
