//! The report as Markdown; pure.

use super::{COUNTS, COUNTS_END, Counted, Report, TableLine};
use std::fmt::Write as _;

impl Report {
    /// The whole text.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let verdict = match (self.is_fine(), self.tables.is_empty()) {
            (_, true) => "no table takes part",
            (true, false) => "**everything is in step**",
            (false, false) => "**not everything is proven to be in step: see below**",
        };
        let [source, replica] = &self.endpoints;
        let _ = write!(
            text,
            "# {}: is the replica what the source is?\n\n\
             {verdict}\n\n\
             - made at {}\n- source: {source}\n- replica: {replica}\n- daemon: {}\n\n## Tables\n\n",
            self.pipeline, self.made_at, self.daemon
        );
        text.push_str(&self.tables_text());
        text.push_str("\n## Relationships\n\n");
        text.push_str(&self.relations_text());
        let _ = write!(
            text,
            "\nRows were compared at one position of the source's log, so a difference is no lag. Counts are of the \
             last look at each table.\n\n{}",
            self.counts_text()
        );
        text
    }

    fn tables_text(&self) -> String {
        let changes = match &self.before {
            Some(before) => {
                format!("changes on the source since {before} (inserted / updated / deleted)")
            }
            None => "changes on the source so far (inserted / updated / deleted)".to_owned(),
        };
        let mut text = format!(
            "| table | on the replica | rows: source | rows: replica | missing / extra / different | in step | {changes} |\n\
             | --- | --- | ---: | ---: | --- | --- | --- |\n"
        );
        for table in &self.tables {
            let rows = table.history.rows;
            let count = |rows: Option<u64>| rows.map_or("?".to_owned(), |rows| rows.to_string());
            let three = |of: Option<[u64; 3]>| {
                of.map_or("?".to_owned(), |[a, b, c]| format!("{a} / {b} / {c}"))
            };
            let changes = match self.before {
                Some(_) => table.changes,
                None => table.counted,
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                cell(&table.source),
                cell(&table.replica),
                count(rows.map(|rows| rows.0)),
                count(rows.map(|rows| rows.1)),
                three(table.history.drift),
                in_step(table),
                three(changes),
            );
        }
        text
    }

    fn relations_text(&self) -> String {
        if self.relations.is_empty() {
            return "No foreign key joins tables that take part.\n".to_owned();
        }
        let mut text = String::from(
            "| from | to | by | rows that refer to nothing |\n| --- | --- | --- | ---: |\n",
        );
        for relation in &self.relations {
            let orphans = match relation.orphans {
                Some(0) => "0, intact".to_owned(),
                Some(some) => format!("**{some}**"),
                None => "the role may not look".to_owned(),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {orphans} |",
                cell(&relation.child),
                cell(&relation.parent),
                cell(&relation.columns),
            );
        }
        text
    }

    fn counts_text(&self) -> String {
        let tables = self.tables.iter();
        let counted = Counted {
            made_at: self.made_at.clone(),
            tables: tables
                .filter_map(|table| Some((table.source.to_string(), table.counted?)))
                .collect(),
        };
        // A name may hold what ends a comment.
        let json = serde_json::to_string(&counted).unwrap_or_default();
        let json = json.replace('>', "\\u003e");
        format!("{COUNTS}{json}{COUNTS_END}\n")
    }
}

fn in_step(table: &TableLine) -> String {
    if !table.history.is_followed {
        return "**not followed**: `pglockstep status` says why".to_owned();
    }
    match (&table.history.in_step_since, &table.history.compared_at) {
        (Some(since), Some(compared)) if !table.history.is_recent => {
            format!("since {since}, but compared only {compared}")
        }
        (Some(since), Some(compared)) => format!("since {since}, compared {compared}"),
        (Some(since), None) => format!("since {since}"),
        (None, Some(compared)) => format!("**NO**, compared {compared}"),
        (None, None) => "never compared".to_owned(),
    }
}

/// Nothing of a name is Markdown.
fn cell(name: &impl ToString) -> String {
    name.to_string()
        .replace('|', "\\|")
        .replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::RelationFound;
    use crate::pg::QualifiedName;
    use crate::progress::TableHistory;

    fn report(tables: Vec<TableLine>, orphans: u64) -> Report {
        Report {
            pipeline: "crm".into(),
            made_at: "now".into(),
            endpoints: ["a/app".into(), "b/crm".into()],
            daemon: "streaming".into(),
            is_streaming: true,
            tables,
            relations: vec![RelationFound {
                child: QualifiedName::new("crm", "leads"),
                parent: QualifiedName::new("crm", "projects"),
                name: "leads_project_id_fkey".into(),
                columns: "project_id -> id".into(),
                orphans: Some(orphans),
            }],
            before: Some("then".into()),
        }
    }

    fn table(since: Option<&str>) -> TableLine {
        TableLine {
            source: QualifiedName::new("public", "le|ads"),
            replica: QualifiedName::new("crm", "leads"),
            history: TableHistory {
                rows: Some((14, 13)),
                rows_at: Some("t".into()),
                drift: Some([1, 0, 2]),
                compared_at: Some("t2".into()),
                in_step_since: since.map(str::to_owned),
                is_followed: true,
                is_recent: true,
            },
            counted: Some([20, 5, 6]),
            changes: Some([2, 0, 1]),
        }
    }

    #[test]
    fn what_is_wrong_is_seen_at_the_top_and_in_its_line() {
        let text = report(vec![table(None)], 0).markdown();
        assert!(text.contains("**not everything is proven"), "{text}");
        assert!(
            text.contains("| public.le\\|ads | crm.leads | 14 | 13 | 1 / 0 / 2 | **NO**, compared t2 | 2 / 0 / 1 |"),
            "{text}"
        );
        assert!(
            text.contains("| crm.leads | crm.projects | project_id -> id | 0, intact |"),
            "{text}"
        );
        let fine = report(vec![table(Some("monday"))], 0).markdown();
        assert!(
            fine.contains("**everything is in step**")
                && fine.contains("since monday, compared t2")
        );
        let mut old = table(Some("monday"));
        old.history.is_recent = false;
        assert!(report(vec![old], 0).markdown().contains("**not everything"));
        let mut quarantined = table(Some("monday"));
        quarantined.history.is_followed = false;
        assert!(
            report(vec![quarantined], 0)
                .markdown()
                .contains("**not followed**")
        );
        let orphaned = report(vec![table(Some("monday"))], 14).markdown();
        assert!(
            orphaned.contains("**not everything") && orphaned.contains("| **14** |"),
            "{orphaned}"
        );
    }

    #[test]
    fn the_next_report_reads_this_one() {
        let text = report(vec![table(None)], 0).markdown();
        let counted = super::super::counts_of(&text).unwrap();
        assert_eq!(counted.tables["public.le|ads"], [20, 5, 6]);
    }
}
