//! At every step between bytes read and position confirmed, and of the first copy, the daemon
//! meets an error, is killed, or waits: nothing is lost, and nothing comes twice.
//!
//! ```text
//!  a run:  empty replica ─▶ load on ─▶ daemon with one order ─▶ the point is hit ─▶ (killed: started
//!          again) ─▶ load off ─▶ caught up ─▶ compare;   beside it: confirmed ≤ stored position, always
//! ```
//!
//! `cargo test` draws a share of the runs by a seed, which is printed; `PGLOCKSTEP_SEED` repeats
//! them, and `PGLOCKSTEP_SOAK=1` does all. `PGLOCKSTEP_RUN="apply.begun=kill@2"` does one.

mod held_slot;
mod lane;
mod load;
mod panics;
mod planted;
mod skips;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use crate::support::{Random, is_soak, seed};
use lane::Lane;

/// Where a point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// Once in a first start.
    AtFirst,
    /// Once in a later start.
    Later,
    /// Once in a start after one whose copy was interrupted.
    AfterHalfACopy,
    /// Again and again.
    Often,
}

const POINTS: [(&str, Passed); 34] = [
    ("start.locked", Passed::AtFirst),
    ("start.claimed", Passed::AtFirst),
    ("start.resumed", Passed::Later),
    ("slot.intended", Passed::AtFirst),
    ("slot.made", Passed::AtFirst),
    ("slot.recorded", Passed::AtFirst),
    ("copy.slot_made", Passed::AfterHalfACopy),
    ("copy.begun", Passed::AtFirst),
    ("copy.range_begun", Passed::AtFirst),
    ("copy.range_written", Passed::AtFirst),
    ("copy.range_committed", Passed::AtFirst),
    ("copy.table_finishing", Passed::AtFirst),
    ("copy.table_marked", Passed::AtFirst),
    ("copy.done", Passed::AtFirst),
    ("stream.asked", Passed::AtFirst),
    ("stream.started", Passed::AtFirst),
    ("receive.read", Passed::Often),
    ("receive.decoded", Passed::Often),
    ("receive.queued", Passed::Often),
    ("receive.status_due", Passed::Often),
    ("receive.status_sent", Passed::Often),
    ("follow.taken", Passed::Often),
    ("follow.part_written", Passed::Often),
    ("follow.committed", Passed::Often),
    ("follow.told", Passed::Often),
    ("follow.flush_asked", Passed::Often),
    ("follow.flushed", Passed::Often),
    // Every 10 s.
    ("follow.settled", Passed::AtFirst),
    ("streamed.part_written", Passed::Often),
    ("streamed.committed", Passed::Often),
    ("apply.begun", Passed::Often),
    ("apply.written", Passed::Often),
    ("apply.position_moved", Passed::Often),
    ("apply.commit_sent", Passed::Often),
];
const ACTS: [&str; 3] = ["error", "kill", "delay(1s)"];
/// Of all runs, one in this many.
const SHARE: usize = 2;
/// Runs at a time, each on databases of its own.
const LANES: usize = 3;

/// One point, told once.
#[derive(Clone, Debug)]
struct Run {
    point: String,
    act: String,
    passage: u32,
    passed: Passed,
}

impl Run {
    /// As `PGLOCKSTEP_FAULTS` takes it.
    fn order(&self) -> String {
        let Self {
            point,
            act,
            passage,
            ..
        } = self;
        match (point.as_str(), act.as_str()) {
            // What was sent is to be under way before the end.
            ("apply.commit_sent", "kill") => {
                format!("{point}=delay(20ms)@{passage};{point}=kill@{passage}")
            }
            _ => format!("{point}={act}@{passage}"),
        }
    }

    /// As `PGLOCKSTEP_RUN` names it.
    fn named(text: &str) -> Self {
        let (point, act) = text.split_once('=').unwrap();
        let (act, passage) = act.split_once('@').unwrap_or((act, "1"));
        let (_, passed) = POINTS.iter().find(|(known, _)| *known == point).unwrap();
        Self {
            point: point.to_owned(),
            act: act.to_owned(),
            passage: passage.parse().unwrap(),
            passed: *passed,
        }
    }
}

/// All runs in random order, or the share that the seed draws.
fn draw(random: &mut Random) -> Vec<Run> {
    if let Ok(named) = std::env::var("PGLOCKSTEP_RUN") {
        return vec![Run::named(&named)];
    }
    let mut runs = Vec::new();
    for (point, passed) in POINTS {
        for act in ACTS {
            let passage = if passed == Passed::Often {
                1 + random.below(12)
            } else {
                1
            };
            runs.push(Run {
                point: point.to_owned(),
                act: act.to_owned(),
                passage,
                passed,
            });
        }
    }
    for last in (1..runs.len()).rev() {
        let other = random.below(u32::try_from(last + 1).unwrap());
        runs.swap(last, other as usize);
    }
    if !is_soak() {
        runs.truncate(runs.len() / SHARE);
    }
    runs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_step_it_may_fail_die_or_wait() {
    let seed = seed();
    let runs = draw(&mut Random::new(seed));
    let wanted = runs.len();
    eprintln!("{wanted} runs, PGLOCKSTEP_SEED={seed}");
    let queue = Mutex::new(runs);
    let next = || queue.lock().unwrap().pop();
    let work = async |number: usize| {
        let lane = Lane::new(&format!("lane_{number}")).await;
        let mut done = 0;
        while let Some(run) = next() {
            lane.run(&run, None).await;
            done += 1;
        }
        done
    };
    let done: (usize, usize, usize) = tokio::join!(work(0), work(1), work(2));
    assert_eq!(LANES, 3);
    assert_eq!(done.0 + done.1 + done.2, wanted);
}

#[test]
fn every_point_of_the_source_is_tried() {
    let mut named = BTreeSet::new();
    points_in(Path::new("src"), &mut named);
    let tried: BTreeSet<String> = POINTS
        .iter()
        .map(|(point, _)| (*point).to_owned())
        .collect();
    assert_eq!(named, tried);
}

fn points_in(folder: &Path, named: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            points_in(&path, named);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (at, call) in text.match_indices("faults::at(\"") {
            let rest = &text[at + call.len()..];
            let point = rest.split('"').next().unwrap().to_owned();
            assert!(named.insert(point.clone()), "{point} stands at two places");
        }
    }
}
