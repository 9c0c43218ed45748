//! Bugs, planted one after the other: the simulation catches each.

use super::simulate;
use super::tables::Plan;
use crate::faults::{Bug, with_planted};
use std::rc::Rc;

/// Those that it can show; the others need real servers (tests/fail_points/planted.rs).
const SHOWN: [Bug; 13] = [
    Bug::AcknowledgeOneMore,
    Bug::AcknowledgeWithinTransaction,
    Bug::CommittedIsDurable,
    Bug::PositionApart,
    Bug::ResumeFromSlot,
    Bug::IgnoreGap,
    Bug::SkipEpochCheck,
    Bug::DropTruncate,
    Bug::ForgetTail,
    Bug::WantsOneLater,
    Bug::KeepFirstUpdate,
    Bug::NullForToast,
    Bug::IgnoreRowCount,
];
const SEEDS_MAX: u64 = 2_000;

#[test]
fn every_planted_bug_is_caught() {
    let plan = Rc::new(Plan::new());
    let mut missed = Vec::new();
    for bug in SHOWN {
        let caught = (1..=SEEDS_MAX).find_map(|seed| {
            let what = with_planted(Some(bug), || simulate(&plan, seed)).err()?;
            Some((seed, what))
        });
        match caught {
            Some((seed, what)) => {
                let first_line = what.lines().next().unwrap_or_default();
                eprintln!("{bug:?}: caught by seed {seed}: {first_line}");
                let without =
                    (1..=seed).find_map(|seed| Some((seed, simulate(&plan, seed).err()?)));
                assert_eq!(without, None, "without {bug:?}");
            }
            None => missed.push(bug),
        }
    }
    assert!(
        missed.is_empty(),
        "not caught by {SEEDS_MAX} seeds: {missed:?}"
    );
}
