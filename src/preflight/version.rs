//! Which server versions will do, and which have bugs that no client can repair; pure.
//!
//! From PostgreSQL's release notes: while decoding, a transaction that was open during
//! `ALTER PUBLICATION … ADD TABLE` or a table's DDL could be read with a stale catalogue
//! and lose rows. The first repair, in the minors of May 2025, could exhaust the server's
//! memory; those of August 2025 are sound.

use super::finding::Findings;
use crate::conn::Endpoint;
use crate::pg::Side;

/// The oldest major version that is supported.
pub(super) const MAJOR_MIN: u32 = 14;

/// Major version and its first sound minor; later majors are sound from the start.
const SOUND_FROM: [(u32, u32); 4] = [(14, 19), (15, 14), (16, 10), (17, 6)];

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
    if let (Side::Source, Some((sound, why))) = (side, unsound(major, minor)) {
        findings.warning(
            "source.version",
            object,
            format!("the source runs PostgreSQL {major}.{minor}, {why}"),
            format!("upgrade the source server to PostgreSQL {major}.{sound} or later"),
        );
    }
}

/// The first sound minor and what is wrong with this one; `None` for a sound one.
fn unsound(major: u32, minor: u32) -> Option<(u32, &'static str)> {
    let (_, sound) = SOUND_FROM.iter().find(|(of, _)| *of == major)?;
    if minor >= *sound {
        None
    } else if minor + 1 == *sound {
        Some((
            *sound,
            "whose logical decoding can exhaust the server's memory when tables are altered",
        ))
    } else {
        Some((
            *sound,
            "which can lose rows of transactions that are open while a publication or table is altered",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_minors() {
        for (major, minor, expected) in [
            (14, 18, Some("memory")),
            (14, 19, None),
            (15, 12, Some("lose rows")),
            (15, 18, None),
            (16, 9, Some("memory")),
            (17, 5, Some("memory")),
            (17, 4, Some("lose rows")),
            (17, 6, None),
            (18, 0, None),
            (19, 0, None),
        ] {
            let found = unsound(major, minor).map(|(_, why)| why);
            match expected {
                None => assert_eq!(found, None, "{major}.{minor}"),
                Some(part) => assert!(found.unwrap().contains(part), "{major}.{minor}"),
            }
        }
    }
}
