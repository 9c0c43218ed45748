//! Names that break tools: quotes, newlines, percent signs, emoji, 63 bytes, dots, spaces.

use crate::support::{Family, Scenario};

static FAMILY: Family = Family::const_new();

/// Schema, table, key column, value column.
const HOSTILE: [[&str; 4]; 7] = [
    ["we\"ird", "ta\"ble", "k\"ey", "v\"\"al"],
    ["it's", "o'clock'", "'", "a'b"],
    ["new\nline", "tab\tle", "k\r\ney", "v\n"],
    ["%s", "100%", "%1$s", "%%"],
    ["emoji 👩‍👩‍👧", "テーブル", "ключ", "größe"],
    ["Upper Case", "SELECT", "User", "ORDER"],
    ["a.b", "$1", "\\", "{}*"],
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test]
async fn hostile_names_on_both_sides() {
    let s = Scenario::new(&FAMILY, "hostile").await;
    let mut names: Vec<[String; 4]> = HOSTILE.iter().map(|row| row.map(str::to_owned)).collect();
    // Two tables whose names differ in the last of 63 bytes only.
    let long = |last: char| format!("{}{last}", "ä".repeat(31));
    names.push([long('s'), long('t'), long('k'), long('v')]);
    names.push([long('s'), long('u'), long('k'), long('v')]);
    let mut queries = Vec::new();
    for [schema, table, key, value] in &names {
        let [schema, table, key, value] = [schema, table, key, value].map(|name| quoted(name));
        s.on_both(&format!(
            "CREATE SCHEMA IF NOT EXISTS {schema};
             CREATE TABLE {schema}.{table} ({key} int PRIMARY KEY, {value} text);"
        ))
        .await;
        s.on_source(&format!(
            "INSERT INTO {schema}.{table} VALUES (1, 'copied'), (2, 'copied')"
        ))
        .await;
        queries.push(format!("SELECT {key}, {value} FROM {schema}.{table}"));
    }
    s.publish_all().await;
    let daemon = s.start("").await;
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    s.in_step(&daemon, &queries).await;
    for [schema, table, key, value] in &names {
        let [schema, table, key, value] = [schema, table, key, value].map(|name| quoted(name));
        let table = format!("{schema}.{table}");
        s.on_source(&format!(
            "INSERT INTO {table} SELECT g, g FROM generate_series(3, 9) g"
        ))
        .await;
        s.on_source(&format!(
            "UPDATE {table} SET {value} = 'new' WHERE {key} < 5"
        ))
        .await;
        s.on_source(&format!(
            "UPDATE {table} SET {key} = {key} + 10 WHERE {key} = 6"
        ))
        .await;
        s.on_source(&format!("DELETE FROM {table} WHERE {key} = 2"))
            .await;
    }
    s.in_step(&daemon, &queries).await;
    s.on_source(&format!(
        "TRUNCATE \"it's\".\"o'clock'\", {}.{}",
        quoted(&long('s')),
        quoted(&long('u'))
    ))
    .await;
    s.in_step(&daemon, &queries).await;
}

#[tokio::test]
async fn hostile_names_in_rules() {
    let s = Scenario::new(&FAMILY, "hostile_rules").await;
    s.on_source(
        "CREATE SCHEMA \"So.urce\";
         CREATE TABLE \"So.urce\".\"Le\"\"ads\" (\"Id\" int PRIMARY KEY, \"e mail\" text, \"%\" text, \"👩\" int);
         INSERT INTO \"So.urce\".\"Le\"\"ads\" VALUES (1, 'A', 'p', 1), (2, 'B', NULL, NULL)",
    )
    .await;
    s.on_replica(
        "CREATE SCHEMA \"re'plica\";
         CREATE TABLE \"re'plica\".\"le ads\" (\"Ident\" int PRIMARY KEY, \"E-Mail\" text, \"größe\" int)",
    )
    .await;
    s.publish_all().await;
    let daemon = s
        .start(
            r#"
            [[tables]]
            source = '"So.urce"."Le""ads"'
            replica = '''"re'plica"."le ads"'''
            columns = { Id = "Ident" }
            exclude = ["%", "👩", "e mail"]
            where = '''"%" IS DISTINCT FROM 'gone' '''
            [tables.set]
            "E-Mail" = '''lower("e mail") || '%s' '''
            "größe" = '"👩" * 2 /* "Id" */'
            "#,
        )
        .await;
    let same = (
        "SELECT \"Id\", lower(\"e mail\") || '%s', \"👩\" * 2 FROM \"So.urce\".\"Le\"\"ads\" \
         WHERE \"%\" IS DISTINCT FROM 'gone'",
        "SELECT \"Ident\", \"E-Mail\", \"größe\" FROM \"re'plica\".\"le ads\"",
    );
    s.in_step_mapped(&daemon, &[same]).await;
    let statements = [
        "INSERT INTO \"So.urce\".\"Le\"\"ads\" VALUES (3, 'C', 'gone', 3), (4, 'D', 'p', 4)",
        "UPDATE \"So.urce\".\"Le\"\"ads\" SET \"%\" = 'gone' WHERE \"Id\" = 1",
        "UPDATE \"So.urce\".\"Le\"\"ads\" SET \"%\" = 'back', \"👩\" = 9 WHERE \"Id\" = 3",
        "UPDATE \"So.urce\".\"Le\"\"ads\" SET \"Id\" = 50 WHERE \"Id\" = 4",
    ];
    s.each_mapped(&daemon, &statements, same).await;
}
