//! Bugs, planted one after the other: the simulation catches each that it can show; the others need
//! real servers (tests/fail_points/planted.rs).

use super::simulate;
use super::tables::Plan;
use crate::faults::{Bug, Caught, with_planted};
use std::rc::Rc;

const SEEDS_MAX: u64 = 2_000;

#[test]
fn every_planted_bug_is_caught() {
    let plan = Rc::new(Plan::new());
    let mut missed = Vec::new();
    let shown = |bug: &Bug| bug.caught().contains(&Caught::InSimulation);
    for bug in Bug::ALL.iter().copied().filter(shown) {
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
