//! `mapping explain`.

use super::{TABLES, pair, verb};

#[tokio::test]
async fn a_table_and_its_way() {
    let pair = pair().await;
    let config = pair.config(&format!("{TABLES}where = \"id > 0\"\n"));
    let said = verb(&config, &["mapping", "explain", "public.leads"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    for part in [
        "public.leads → crm.leads",
        "[[tables]] number 1",
        "key (id)",
        "left behind        secret",
        "the replica's own  local",
        "email           text       lower(email)",
        "COPY (SELECT",
        "INSERT INTO \"crm\".\"leads\"",
        "UPDATE ONLY \"crm\".\"leads\"",
        "DELETE FROM ONLY \"crm\".\"leads\"",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
    let said = verb(&config, &["mapping", "explain", "public.notes", "--json"]).await;
    let explained: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(explained["replica_table"], "crm.notes");
    assert_eq!(explained["filter"], "id > 0");
    assert_eq!(explained["columns"][0]["from"], "id");
    assert_eq!(explained["columns"][0]["is_key"], true);
    assert_eq!(explained["statements"].as_array().unwrap().len(), 3);

    let said = verb(&config, &["mapping", "explain", "public.none"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out.contains("not in the publication pglockstep_it"),
        "{said:?}"
    );
    let said = verb(&config, &["mapping", "explain", "leads"]).await;
    assert_eq!(said.code, 64, "{said:?}");
    pair.on_replica("ALTER TABLE crm.notes DROP COLUMN body")
        .await;
    let said = verb(&config, &["mapping", "explain", "public.notes"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("has no column body"), "{said:?}");
}
