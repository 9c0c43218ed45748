//! The catalogue: every case by its id, and where one is covered that is not written here.
//!
//! A line holds only if a case has its id, or its test elsewhere is there by that name, or it
//! says why nobody covers it.

use std::collections::BTreeSet;

/// One line of the catalogue.
struct Line {
    id: &'static str,
    what: &'static str,
    cover: Cover,
}

/// Who covers a line.
enum Cover {
    /// Cases here, whose names begin with the id.
    Here,
    /// Tests elsewhere, `file::function`; cases here may add to them.
    Elsewhere(&'static [&'static str]),
    /// Nobody, and why that is right.
    OutOfScope(&'static str),
}
use Cover::{Elsewhere, Here, OutOfScope};

const fn line(id: &'static str, what: &'static str, cover: Cover) -> Line {
    Line { id, what, cover }
}

/// How many lines each letter has: numbers without a gap.
const LETTERS: [(char, usize); 2] = [('A', 16), ('B', 8)];

#[rustfmt::skip]
const CATALOGUE: &[Line] = &[
    line("A1", "insert, update, delete; upsert, MERGE, COPY",
        Elsewhere(&["scenarios/follow.rs::every_kind_of_statement"])),
    line("A2", "one key inserted, updated, deleted, inserted, in one transaction and in one batch",
        Elsewhere(&["scenarios/follow.rs::transactions_in_one_batch_are_merged_by_key"])),
    line("A3", "a key that changes is found by its old value",
        Elsewhere(&["scenarios/identity.rs::every_identity_with_every_change"])),
    line("A4", "keys that shift and swap; deferrable on the replica, and not",
        Elsewhere(&["scenarios/identity.rs::keys_are_swapped"])),
    line("A5", "values of a second unique key that swap",
        Elsewhere(&["scenarios/identity.rs::unique_values_move_between_rows"])),
    line("A6", "equal rows, NULLs: exactly one row a change",
        Elsewhere(&["scenarios/identity.rs::of_equal_rows_exactly_one_changes"])),
    line("A7", "whole rows with types that have no equality",
        Elsewhere(&["scenarios/types.rs::every_type_by_its_whole_row"])),
    line("A8", "whole rows with types whose equality is not identity",
        Elsewhere(&["scenarios/identity.rs::of_equal_rows_exactly_one_changes", "scenarios/gaps.rs::a_whole_row_is_found_byte_by_byte"])),
    line("A9", "identity by index; switched, and dropped, under way",
        Elsewhere(&["scenarios/identity.rs::an_identity_changes_under_way"])),
    line("A10", "no identity: inserts only, the source refuses the rest",
        Elsewhere(&["scenarios/identity.rs::without_an_identity_only_inserts_come"])),
    line("A11", "keys of every type, equal without being the same",
        Elsewhere(&["scenarios/types.rs::every_type_by_its_key"])),
    line("A12", "a key in another order than its columns",
        Elsewhere(&["scenarios/identity.rs::every_identity_with_every_change"])),
    line("A13", "a row that the replica lacks",
        Elsewhere(&["scenarios/conflicts.rs::the_source_wins", "scenarios/conflicts.rs::any_conflict_stops",
            "scenarios/gaps.rs::rows_that_cannot_be_found_stop_it"])),
    line("A14", "updates that change nothing", Here),
    line("A15", "no columns, 1600 columns, keys of 8 kB", Here),
    line("A16", "WITHOUT OVERLAPS; key indexes that include columns", Here),

    line("B1", "an update that does not touch a TOASTed value",
        Elsewhere(&["scenarios/identity.rs::values_that_were_not_sent_are_kept"])),
    line("B2", "the same under REPLICA IDENTITY FULL",
        Elsewhere(&["scenarios/identity.rs::values_that_were_not_sent_are_kept"])),
    line("B3", "an unsent value and a new key in one update",
        Elsewhere(&["scenarios/identity.rs::values_that_were_not_sent_are_kept"])),
    line("B4", "changes merged, of which only the first holds the value",
        Elsewhere(&["scenarios/identity.rs::values_that_were_not_sent_are_kept"])),
    line("B5", "unsent values of every type that can be long", Here),
    line("B6", "a TOASTed key that does not change",
        Elsewhere(&["scenarios/identity.rs::toasted_keys_are_found"])),
    line("B7", "repair of a row with an unsent value", OutOfScope("`repair` is not there yet")),
    line("B8", "a filter that reads a TOASTed value",
        Elsewhere(&["scenarios/mapping.rs::rows_outside_the_filter_may_change_without_their_toasted_values"])),
];

/// Whether the file under `tests/` has a function of this name.
fn is_there(pointer: &str) -> bool {
    let (file, function) = pointer.split_once("::").unwrap();
    let text = std::fs::read_to_string(format!("tests/{file}")).unwrap_or_default();
    text.contains(&format!("fn {function}("))
}

#[test]
fn every_line_is_covered() {
    let cases: BTreeSet<String> = super::all().iter().map(|case| case.id()).collect();
    let mut wrong = Vec::new();
    for line in CATALOGUE {
        let has_case = cases.contains(line.id);
        match &line.cover {
            Here if !has_case => wrong.push(format!("{}: no case", line.id)),
            Elsewhere(pointers) => {
                let gone = pointers.iter().filter(|pointer| !is_there(pointer));
                wrong.extend(gone.map(|pointer| format!("{}: {pointer} is gone", line.id)));
            }
            OutOfScope(why) if has_case || why.is_empty() => {
                wrong.push(format!("{}: out of scope, and has a case", line.id));
            }
            Here | OutOfScope(_) => {}
        }
        if line.what.is_empty() {
            wrong.push(format!("{}: of what?", line.id));
        }
    }
    let ids: Vec<&str> = CATALOGUE.iter().map(|line| line.id).collect();
    let expected: Vec<String> = LETTERS
        .iter()
        .flat_map(|(letter, count)| (1..=*count).map(move |n| format!("{letter}{n}")))
        .collect();
    assert_eq!(ids, expected, "a line is missing, or there twice");
    wrong.extend(
        cases
            .iter()
            .filter(|id| !ids.contains(&id.as_str()))
            .map(|id| format!("{id}: not in the catalogue")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A function that nobody registered would look like a case, and never run.
#[test]
fn every_case_is_registered_once() {
    let names: Vec<&str> = super::all().iter().map(|case| case.name).collect();
    let databases: BTreeSet<&str> = super::all().iter().map(|case| case.database()).collect();
    assert_eq!(databases.len(), names.len(), "two cases of one name");
    let mut written = 0;
    for entry in std::fs::read_dir("tests/cases").unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let functions = text.lines().filter_map(|line| {
            line.strip_prefix("async fn ")?
                .split_once("(g: Ground<'_>)")
        });
        for (name, _) in functions {
            written += 1;
            assert!(names.contains(&name), "{name} is not registered");
        }
    }
    assert_eq!(written, names.len());
}
