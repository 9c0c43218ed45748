//! Whether to try again: the disposition of an error, and of an SQLSTATE.
//!
//! Source: the manual's appendix "PostgreSQL Error Codes".

/// Whether trying the same thing again can help. Every error of ours knows its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The server, the network or a competitor was in the way; the same work may pass later.
    Transient,
    /// The same work will fail again until somebody changes something.
    Definite,
}

/// Classifies a five-letter SQLSTATE.
#[must_use]
pub fn sqlstate_disposition(code: &str) -> Disposition {
    match code {
        // Within otherwise definite classes:
        "55006" // object_in_use: a slot still active, a database being dropped
        | "55P03" // lock_not_available
        | "25006" // read_only_sql_transaction: a failover in progress
        | "25P03" | "25P04" // idle-in-transaction and transaction time-outs
        => Disposition::Transient,
        _ => match code.get(..2) {
            Some(
                "08" // connection exception
                | "40" // serialization failure, deadlock
                | "53" // insufficient resources: disk full, too many connections
                | "57" // operator intervention: shutdown, crash, cancel, statement time-out
                | "58", // system error: I/O
            ) => Disposition::Transient,
            _ => Disposition::Definite,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes() {
        for code in [
            "08006", "40P01", "53100", "57P01", "58030", "55006", "25006",
        ] {
            assert_eq!(sqlstate_disposition(code), Disposition::Transient, "{code}");
        }
        for code in [
            "23505", "42501", "22001", "28P01", "3D000", "55000", "", "é",
        ] {
            assert_eq!(sqlstate_disposition(code), Disposition::Definite, "{code}");
        }
    }
}
