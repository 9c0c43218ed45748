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
const LETTERS: [(char, usize); 11] = [
    ('A', 16),
    ('B', 8),
    ('C', 9),
    ('D', 10),
    ('E', 11),
    ('F', 28),
    ('G', 12),
    ('H', 12),
    ('I', 10),
    ('J', 18),
    ('K', 10),
];

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
    line("B7", "an unsent value among what is kept of a table set aside; with a new key, too",
        Elsewhere(&["scenarios/quarantine.rs::values_that_were_not_sent_survive_being_set_aside"])),
    line("B8", "a filter that reads a TOASTed value",
        Elsewhere(&["scenarios/mapping.rs::rows_outside_the_filter_may_change_without_their_toasted_values"])),

    line("C1", "every type through copy, insert, update and delete; as a key where it can be one",
        Elsewhere(&["scenarios/types.rs::every_type_by_its_key", "scenarios/types.rs::every_type_by_its_whole_row",
            "scenarios/types.rs::every_type_from_major_to_major"])),
    line("C2", "arrays of them: empty, NULLs, dimensions, odd lower bounds",
        Elsewhere(&["scenarios/types.rs::every_type_by_its_key"])),
    line("C3", "settings of the databases that change how values read", Here),
    line("C4", "a domain whose CHECK depends on the search_path", Here),
    line("C5", "text that looks like NULL, an end, an array; control characters; 1 MB", Here),
    line("C6", "an enum's value that is added under way",
        Elsewhere(&["cases/f_types_and_keys.rs::f14_an_enum_gets_a_value"])),
    line("C7", "types in other schemas, under other object ids",
        Elsewhere(&["scenarios/mapping.rs::types_of_the_same_name_live_in_other_schemas"])),
    line("C8", "extensions' types",
        Elsewhere(&["scenarios/types.rs::every_type_by_its_key"])),
    line("C9", "binary values, types without send or receive", OutOfScope("text is asked for, always")),

    line("D1", "savepoints kept, undone, a thousand deep; all undone",
        Elsewhere(&["scenarios/follow.rs::transactions_that_leave_nothing_or_a_part"])),
    // Protocol 1, so none is sent before its commit: neither streamed in progress, nor at PREPARE.
    line("D2", "large ones, interleaved, partly undone, DDL inside; never streamed, so each comes whole at its commit", Here),
    line("D3", "prepared: committed, rolled back, empty, over a crash; never two-phase, so each comes plain at COMMIT PREPARED", Here),
    line("D4", "empty transactions", Here),
    line("D5", "logical messages, in and out of transactions, 1 MB; a restart", Here),
    line("D6", "begun before and committed after many short ones; a restart", Here),
    line("D7", "bounded memory whatever the transaction's size",
        Elsewhere(&["scenarios/follow.rs::memory_does_not_grow_with_a_transaction",
            "scenarios/follow.rs::a_transaction_larger_than_a_batch_arrives_whole"])),
    line("D8", "rows that another replication wrote on the source", Here),
    line("D9", "readers see a committed prefix only",
        Elsewhere(&["scenarios/follow.rs::readers_never_see_half_a_transaction", "kills/mod.rs::the_daemon_is_killed"])),
    line("D10", "a source that lost what the replica has",
        Elsewhere(&["scenarios/timelines.rs::the_same_history_goes_on_and_another_does_not"])),

    line("E1", "one table", Here),
    line("E2", "several tables in one message",
        Elsewhere(&["scenarios/follow.rs::truncate_in_every_company"])),
    line("E3", "CASCADE", Elsewhere(&["scenarios/follow.rs::truncate_in_every_company"])),
    line("E4", "RESTART IDENTITY, by the sequence's owner and by another",
        Elsewhere(&["scenarios/follow.rs::truncate_in_every_company"])),
    line("E5", "a publication without truncate: refused, and told with its remedy", Here),
    line("E6", "a foreign key from a table that is not mapped", Here),
    line("E7", "a partition alone, and its root, published either way", Here),
    line("E8", "partitioned on the replica only",
        Elsewhere(&["scenarios/copy.rs::partitioned_tables_on_either_side"])),
    line("E9", "between the copy and the stream", Here),
    line("E10", "with inserts in one transaction",
        Elsewhere(&["scenarios/follow.rs::truncate_in_every_company"])),
    line("E11", "a policy for TRUNCATE", OutOfScope("the configuration has none: it is always followed")),

    line("F1", "a new column; the replica has it before, or lacks it",
        Elsewhere(&["scenarios/identity.rs::columns_are_added_and_dropped_under_way"])),
    line("F2", "a new column whose default no row holds", Here),
    line("F3", "a table that is rewritten: volatile default, another type", Here),
    line("F4", "a column is dropped", Here),
    line("F5", "two columns are dropped, one after the other",
        Elsewhere(&["cases/f_columns.rs::f4_columns_are_dropped_one_after_the_other"])),
    line("F6", "a column is renamed, the key's too", Here),
    line("F7", "two columns of a type swap their names", Here),
    line("F8", "a table is renamed",
        Elsewhere(&["scenarios/gaps.rs::a_renamed_table_is_followed_by_its_new_name",
            "scenarios/gaps.rs::a_table_that_was_copied_elsewhere_in_between_has_missed_changes"])),
    line("F9", "a schema is renamed within a transaction", Here),
    line("F10", "a table moves to another schema",
        Elsewhere(&["cases/f_tables.rs::f9_a_schema_is_renamed_in_a_transaction"])),
    line("F11", "a table is dropped", Here),
    line("F12", "a table is dropped and made again under its name",
        Elsewhere(&["scenarios/gaps.rs::a_table_made_anew_under_its_name_is_another"])),
    line("F13", "types change", Here),
    line("F14", "an enum gets a value, which is used", Here),
    line("F15", "NOT NULL and defaults come and go", Here),
    line("F16", "the primary key goes, comes, moves", Here),
    line("F17", "the replica identity changes",
        Elsewhere(&["scenarios/identity.rs::an_identity_changes_under_way"])),
    line("F18", "what the publication's list or filter names changes",
        Elsewhere(&["scenarios/gaps.rs::a_wider_filter_brings_the_rows_it_kept_out"])),
    line("F19", "a shape that is gone from the catalogue when its rows are read", Here),
    line("F20", "shape, rows, shape, in one transaction", Here),
    line("F21", "shapes that are undone", Here),
    line("F22", "published while a transaction on it is open", Here),
    line("F23", "a table joins and leaves the publication",
        Elsewhere(&["scenarios/copy.rs::tables_join_while_it_runs",
            "scenarios/gaps.rs::a_table_that_left_and_came_back_is_not_believed"])),
    line("F24", "the publication is renamed or dropped, and comes back", Here),
    line("F25", "VACUUM FULL, CLUSTER, REINDEX", Here),
    line("F26", "materialized views", Here),
    line("F27", "another order of columns", Here),
    line("F28", "holes that dropped columns leave",
        Elsewhere(&["cases/f_columns.rs::f27_other_orders_and_holes"])),

    line("G1", "published by the leaves and by the root",
        Elsewhere(&["scenarios/copy.rs::partitioned_tables_on_either_side"])),
    line("G2", "a row moves to another partition",
        Elsewhere(&["cases/g_partitions.rs::g1_rows_move_between_partitions"])),
    line("G3", "a partition is made and attached", Here),
    line("G4", "a partition is detached",
        Elsewhere(&["cases/g_partitions.rs::g3_partitions_come_and_go"])),
    line("G5", "a new partition under a published root",
        Elsewhere(&["cases/g_partitions.rs::g3_partitions_come_and_go"])),
    line("G6", "several levels", Here),
    line("G7", "several ancestors published", Here),
    line("G8", "a leaf with an identity of its own", Here),
    line("G9", "another layout on the replica, and BRIN",
        Elsewhere(&["scenarios/copy.rs::partitioned_tables_on_either_side"])),
    line("G10", "children by inheritance",
        Elsewhere(&["scenarios/copy.rs::children_by_inheritance_are_tables_of_their_own"])),
    line("G11", "unlogged, temporary, foreign tables, views, sequences", Here),
    line("G12", "extensions that store tables their own way", OutOfScope("TimescaleDB and Citus are not supported")),

    line("H1", "rows move into the publication's filter and out of it", Here),
    line("H2", "a filter that is NULL",
        Elsewhere(&["cases/h_filters.rs::h1_rows_move_into_the_filter_and_out"])),
    line("H3", "several publications of one table", Here),
    line("H4", "the copy goes by the same filter",
        Elsewhere(&["scenarios/copy.rs::what_the_publication_leaves_out_stays_out"])),
    line("H5", "a filter that fails", Here),
    line("H6", "lists of columns", Here),
    line("H7", "lists that differ between publications", OutOfScope("a pipeline reads one publication")),
    line("H8", "generated columns on either side, published and not",
        Elsewhere(&["scenarios/mapping.rs::local_generated_and_identity_columns"])),
    line("H9", "whole rows with a generated column", Here),
    line("H10", "identity columns on the replica",
        Elsewhere(&["scenarios/mapping.rs::local_generated_and_identity_columns"])),
    line("H11", "a new value for an identity column",
        Elsewhere(&["cases/h_filters.rs::h10_identity_columns"])),
    line("H12", "sequences", OutOfScope("not in the stream; the README says so")),

    line("I1", "writes while it copies",
        Elsewhere(&["scenarios/copy.rs::large_small_and_empty_tables_while_the_source_writes"])),
    line("I2", "killed while it copies",
        Elsewhere(&["scenarios/existing_rows.rs::an_interrupted_copy_keeps_whole_tables_and_begins_partial_ones_again",
            "scenarios/existing_rows.rs::a_slot_whose_birth_was_not_noted_is_made_anew", "kills/mod.rs::the_daemon_is_killed"])),
    line("I3", "the exported snapshot dies", Here),
    line("I4", "the replica has rows", Elsewhere(&["scenarios/existing_rows.rs::refuse_merge_and_truncate"])),
    line("I5", "empty tables, dead pages, single rows",
        Elsewhere(&["scenarios/copy.rs::large_small_and_empty_tables_while_the_source_writes"])),
    line("I6", "tables that join, leave, and join again",
        Elsewhere(&["scenarios/copy.rs::tables_join_while_it_runs",
            "scenarios/gaps.rs::a_table_that_left_and_came_back_is_not_believed"])),
    line("I7", "DDL while it copies", Here),
    line("I8", "a transaction holds up the slot: it is named, and waited for again and again",
        Elsewhere(&["scenarios/gaps.rs::a_form_that_changes_while_the_slot_is_made_is_read_again",
            "fail_points/held_slot.rs::who_holds_up_a_slot_is_named_and_it_is_tried_until_it_is_made"])),
    line("I9", "the source gives up the slot's log",
        Elsewhere(&["scenarios/slots.rs::a_slot_that_goes_while_it_runs_makes_it_fail_for_all_to_see"])),
    line("I10", "foreign keys and triggers on the replica",
        Elsewhere(&["scenarios/plain_role.rs::parents_come_first", "scenarios/plain_role.rs::rows_that_are_there_go_children_first"])),

    line("J1", "triggers of origin do not fire", Here),
    line("J2", "triggers REPLICA and ALWAYS fire once a row",
        Elsewhere(&["cases/j_replica.rs::j1_triggers_by_their_mode"])),
    line("J3", "triggers that swallow errors, and rows", Here),
    line("J4", "foreign keys and cascades have done their work on the source", Here),
    line("J5", "the replica's own children of a parent that goes",
        Elsewhere(&["cases/j_replica.rs::j4_foreign_keys_and_cascades"])),
    line("J6", "a role that may not switch foreign keys off",
        Elsewhere(&["scenarios/plain_role.rs::parents_come_first"])),
    line("J7", "ON DELETE CASCADE fires there, and takes rows before their own DELETE",
        Elsewhere(&["scenarios/plain_role.rs::parents_come_first"])),
    line("J8", "deferrable unique keys",
        Elsewhere(&["scenarios/identity.rs::unique_values_move_between_rows"])),
    line("J9", "exclusion constraints", Here),
    line("J10", "a CHECK that is stricter",
        Elsewhere(&["cases/j_replica.rs::j9_constraints_that_are_stricter"])),
    line("J11", "a NOT NULL that is stricter",
        Elsewhere(&["cases/f_types_and_keys.rs::f15_null_becomes_allowed"])),
    line("J12", "more columns", Elsewhere(&["scenarios/mapping.rs::local_generated_and_identity_columns"])),
    line("J13", "fewer columns",
        Elsewhere(&["scenarios/mapping.rs::what_does_not_fit_is_refused_before_anything_changes"])),
    line("J14", "other types",
        Elsewhere(&["scenarios/mapping.rs::values_are_cast_to_the_replica_s_types", "cases/f_types_and_keys.rs::f13_types_change"])),
    line("J15", "row security", Here),
    line("J16", "an unlogged table",
        Elsewhere(&["scenarios/copy.rs::what_would_drift_unseen_is_refused"])),
    line("J17", "a table of another owner; a privilege that is taken away", Here),
    line("J18", "somebody writes to the replica",
        Elsewhere(&["scenarios/conflicts.rs::the_source_wins", "scenarios/conflicts.rs::the_replica_wins"])),

    line("K1", "quotes, newlines, %, emoji, 63 bytes, reserved words",
        Elsewhere(&["scenarios/names.rs::hostile_names_on_both_sides", "scenarios/names.rs::hostile_names_in_rules"])),
    line("K2", "names that differ in case only", Here),
    line("K3", "two names that differ in the last of 63 bytes",
        Elsewhere(&["scenarios/names.rs::hostile_names_on_both_sides"])),
    line("K4", "names of slots, too long with what goes before them", OutOfScope("a pipeline's name has at most 40 characters, and config/tests.rs holds it")),
    line("K5", "another pipeline's slot, whose name differs in a _",
        Elsewhere(&["scenarios/slots.rs::somebody_else_s_slot_is_left_alone"])),
    line("K6", "LATIN1 on either side", Here),
    line("K7", "SQL_ASCII on the source", Here),
    line("K8", "EUC_JP on the source", Here),
    line("K9", "a character that the replica's encoding lacks", Here),
    line("K10", "other collations", Here),
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
