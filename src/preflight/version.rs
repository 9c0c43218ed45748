//! Which server versions will do, and which have bugs that no client can repair; pure.
//!
//! From PostgreSQL's release notes, each under the minor that mended it; minors of one day carry
//! the same repairs, so that a bug is dated by the day it went. What only PostgreSQL's own
//! subscribers, prepared transactions or standbys of the source meet is left out.

use super::finding::Findings;
use crate::conn::Endpoint;
use crate::pg::Side;

/// The oldest major version that is supported.
pub(super) const MAJOR_MIN: u32 = 14;

/// Minors of one day, one a major.
type Minors = &'static [(u32, u32)];

const AUGUST_2024: Minors = &[(14, 13), (15, 8), (16, 4)];
const NOVEMBER_21_2024: Minors = &[(14, 15), (15, 10), (16, 6), (17, 2)];
const MAY_2025: Minors = &[(14, 18), (15, 13), (16, 9), (17, 5)];
const AUGUST_2025: Minors = &[(14, 19), (15, 14), (16, 10), (17, 6)];
const NOVEMBER_2025: Minors = &[(14, 20), (15, 15), (16, 11), (17, 7), (18, 1)];
const FEBRUARY_2026: Minors = &[(14, 21), (15, 16), (16, 12), (17, 8), (18, 2)];
const MAY_2026: Minors = &[(14, 23), (15, 18), (16, 14), (17, 10), (18, 4)];

/// A bug of the source's server. Majors that are not named never had it.
struct Bug {
    /// The first minors that had it; `None`: it was always there.
    since: Option<Minors>,
    /// The first minors that have it no more.
    mended: Minors,
    /// After "the source runs PostgreSQL x.y, ".
    what: &'static str,
    /// What helps until then; may be empty.
    meanwhile: &'static str,
}

const BUGS: [Bug; 9] = [
    // "Prevent incorrect initialization of logical replication slots" (14.13)
    Bug {
        since: None,
        mended: AUGUST_2024,
        what: "where a new slot can begin within a transaction, and decode it wrongly",
        meanwhile: "",
    },
    // "Fix cases where a logical replication slot's restart_lsn could go backwards" (17.2, 14.15)
    Bug {
        since: None,
        mended: NOVEMBER_21_2024,
        what: "where a slot can ask for log that the server has removed already",
        meanwhile: "`pglockstep rebase` where that has happened",
    },
    // The repair of May 2025, told in the notes of 17.6: stale catalogue data while decoding
    Bug {
        since: None,
        mended: MAY_2025,
        what: "which can lose rows of transactions that are open while a publication or table is altered",
        meanwhile: "alter them while nobody writes to the table",
    },
    // "Avoid re-distributing cache invalidation messages from other transactions" (17.6, 14.19)
    Bug {
        since: Some(MAY_2025),
        mended: AUGUST_2025,
        what: "whose logical decoding can exhaust the server's memory when tables are altered",
        meanwhile: "",
    },
    // "Avoid infinite wait in logical decoding when reading a partially-written WAL record" (17.6, 14.19)
    Bug {
        since: None,
        mended: AUGUST_2025,
        what: "where decoding can stand still after a crash until somebody writes",
        meanwhile: "after a crash, write something on the source if the stream does not move",
    },
    // "Avoid premature removal of old WAL during checkpoints" (17.6, 14.19)
    Bug {
        since: None,
        mended: AUGUST_2025,
        what: "where a checkpoint can remove log too early if a slot moves meanwhile, and a crash right after it cannot be recovered from",
        meanwhile: "",
    },
    // "Remove the unfinished slot state file after failing to write a … slot's state to disk" (17.7, 18.1, 14.20)
    Bug {
        since: None,
        mended: NOVEMBER_2025,
        what: "where a disk that was full once can keep the slot's state from ever being saved again",
        meanwhile: "after a full disk, look in the source's log for state.tmp, and remove that file",
    },
    // "Prevent invalidation of newly created … replication slots" and "Fix race condition in computing
    // a replication slot's required xmin" (17.8, 18.2, 14.21)
    Bug {
        since: None,
        mended: FEBRUARY_2026,
        what: "where a new slot can be lost to a checkpoint of the same moment, or its making fail (\"cannot build an initial slot snapshot\")",
        meanwhile: "begin again where that has happened; `pglockstep rebase` where the slot is lost",
    },
    // "Prevent indefinite wait in shutdown of a walsender process" (18.4, 14.23)
    Bug {
        since: None,
        mended: MAY_2026,
        what: "whose shutdown can wait for our walsender without end",
        meanwhile: "stop pglockstep before the source, or end its walsender",
    },
];

pub(super) fn check(endpoint: &Endpoint, version_num: u32, findings: &mut Findings) {
    let (major, minor) = (version_num / 10_000, version_num % 10_000);
    let side = endpoint.side;
    let object = endpoint.describe();
    if major < MAJOR_MIN {
        findings.error(
            format!("{side}.version"),
            object,
            format!("the {side} runs PostgreSQL {major}.{minor}, which is too old"),
            format!("upgrade the {side} server to PostgreSQL {MAJOR_MIN} or later"),
        );
        return;
    }
    if side != Side::Source {
        return;
    }
    for (mended, bug) in bugs(major, minor) {
        let until = match bug.meanwhile {
            "" => String::new(),
            meanwhile => format!("; until then: {meanwhile}"),
        };
        findings.warning(
            "source.version",
            &object,
            format!("the source runs PostgreSQL {major}.{minor}, {}", bug.what),
            format!(
                "upgrade the source server to PostgreSQL {major}.{mended} or later, best to the latest minor{until}"
            ),
        );
    }
}

/// What this version has, each with the minor that has it no more.
fn bugs(major: u32, minor: u32) -> impl Iterator<Item = (u32, &'static Bug)> {
    let of_major = move |minors: Minors| {
        let found = minors.iter().find(|(of, _)| *of == major);
        found.map(|(_, minor)| *minor)
    };
    BUGS.iter().filter_map(move |bug| {
        let mended = of_major(bug.mended)?;
        let since = bug.since.map_or(Some(0), of_major)?;
        (since <= minor && minor < mended).then_some((mended, bug))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnectionUrl;
    use crate::preflight::Finding;

    const BEGINS_WITHIN: &str = "within a transaction";
    const BACKWARDS: &str = "removed already";
    const LOSES: &str = "lose rows";
    const MEMORY: &str = "memory";
    const STANDS: &str = "stand still";
    const CHECKPOINT: &str = "too early";
    const STATE: &str = "full once";
    const NEW_SLOT: &str = "cannot build an initial slot snapshot";
    const SHUTDOWN: &str = "without end";
    /// What every version before August 2025 has besides.
    const UP_TO_2025: [&str; 5] = [STANDS, CHECKPOINT, STATE, NEW_SLOT, SHUTDOWN];

    #[test]
    fn each_bug_ends_with_its_minor() {
        let with = |first: &[&'static str], rest: &[&'static str]| [first, rest].concat();
        for (major, minor, expected) in [
            (
                14,
                12,
                with(&[BEGINS_WITHIN, BACKWARDS, LOSES], &UP_TO_2025),
            ),
            (16, 4, with(&[BACKWARDS, LOSES], &UP_TO_2025)),
            (17, 0, with(&[BACKWARDS, LOSES], &UP_TO_2025)),
            (17, 2, with(&[LOSES], &UP_TO_2025)),
            (15, 12, with(&[LOSES], &UP_TO_2025)),
            (14, 18, with(&[MEMORY], &UP_TO_2025)),
            (16, 9, with(&[MEMORY], &UP_TO_2025)),
            (17, 5, with(&[MEMORY], &UP_TO_2025)),
            (17, 6, vec![STATE, NEW_SLOT, SHUTDOWN]),
            (17, 7, vec![NEW_SLOT, SHUTDOWN]),
            (17, 8, vec![SHUTDOWN]),
            (17, 9, vec![SHUTDOWN]),
            (17, 10, vec![]),
            (18, 0, vec![STATE, NEW_SLOT, SHUTDOWN]),
            (18, 1, vec![NEW_SLOT, SHUTDOWN]),
            (18, 3, vec![SHUTDOWN]),
            (18, 4, vec![]),
            (14, 23, vec![]),
            (15, 18, vec![]),
            (16, 14, vec![]),
            (19, 0, vec![]),
        ] {
            let found: Vec<&str> = bugs(major, minor).map(|(_, bug)| bug.what).collect();
            assert_eq!(found.len(), expected.len(), "{major}.{minor}: {found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{major}.{minor}: {found}");
            }
        }
    }

    #[test]
    fn every_major_is_dated_that_had_the_bug() {
        for bug in &BUGS {
            let majors: Vec<u32> = bug.mended.iter().map(|(major, _)| *major).collect();
            let all: Vec<u32> = (MAJOR_MIN..).take(majors.len()).collect();
            assert_eq!(majors, all, "{}", bug.what);
        }
    }

    fn found(side: Side, version_num: u32) -> Vec<Finding> {
        let url = ConnectionUrl::parse(&"postgres://u@h:1/d".to_owned().into()).unwrap();
        let mut findings = Findings::default();
        check(&Endpoint::new(side, url, "a"), version_num, &mut findings);
        findings.into_vec()
    }

    #[test]
    fn both_versions_are_named() {
        let of_source = found(Side::Source, 170_008);
        assert_eq!(of_source.len(), 1, "{of_source:#?}");
        assert!(of_source[0].message.contains("PostgreSQL 17.8, whose"));
        assert!(of_source[0].remedy.contains("17.10 or later"));
        assert!(of_source[0].remedy.contains("until then: stop pglockstep"));
        assert_eq!(found(Side::Replica, 170_000), []);
        assert!(found(Side::Replica, 130_020)[0].message.contains("too old"));
    }
}
