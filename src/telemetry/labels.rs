//! The words that labels take: fixed sets, so that no series can appear by accident.

/// An enum whose variants are label values: `ALL` in order, `as_str`, `Display`, `Serialize`.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every value, in order. A value's place here is its discriminant.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The value as labels, logs and JSON spell it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

labels! {
    /// What a pipeline is doing.
    PipelineState {
        /// Connecting and checking; nothing flows yet.
        Starting = "starting",
        /// The first copy of at least one table is under way.
        Copying = "copying",
        /// Streaming what happened during the copy or a pause.
        CatchingUp = "catching_up",
        /// In step: changes are applied as they come.
        Streaming = "streaming",
        /// An operator stopped it.
        Paused = "paused",
        /// Another daemon owns the pipeline; this one waits at the door.
        Standby = "standby",
        /// It stopped and needs somebody.
        Failed = "failed",
    }
}

labels! {
    /// What a change does to a row.
    Op {
        /// A new row.
        Insert = "insert",
        /// A row that changed.
        Update = "update",
        /// A row that went.
        Delete = "delete",
        /// All rows went.
        Truncate = "truncate",
    }
}

labels! {
    /// Where a table stands, as `table_state` tells it.
    TableStateLabel {
        /// Known, nothing done yet.
        Init = "init",
        /// Its first copy is under way.
        Copying = "copying",
        /// Copied; the stream has not reached the rest of the tables.
        CatchingUp = "catching_up",
        /// In step with the rest.
        Ready = "ready",
        /// Some of its changes are set aside.
        Quarantined = "quarantined",
        /// It stopped and needs somebody.
        Errored = "errored",
    }
}

labels! {
    /// What kind of thing went wrong.
    ErrorCategory {
        /// A server refused a statement.
        Database = "database",
        /// A value or a row did not fit.
        Validation = "validation",
        /// A server did not accept who we are, or what we may do.
        Authentication = "authentication",
        /// A connection broke or could not be made.
        Network = "network",
        /// A table or column has no place on the replica.
        Mapping = "mapping",
        /// The machine: disk, memory, clock, or a fault of our own.
        System = "system",
    }
}

labels! {
    /// What became of a transaction that the source sent while it ran.
    StreamedOutcome {
        /// It was on the replica when it committed.
        Committed = "committed",
        /// It rolled back, and so did what was written of it.
        RolledBack = "rolled_back",
        /// It was let go, to be taken when it has committed.
        Whole = "whole",
    }
}

labels! {
    /// How much an error matters.
    Severity {
        /// Gone by itself.
        Low = "low",
        /// Retried.
        Medium = "medium",
        /// A table is affected.
        High = "high",
        /// The pipeline stopped.
        Critical = "critical",
    }
}

labels! {
    /// A database session's state, for either side.
    ConnectionState {
        /// Not there yet, or being made again.
        Connecting = "connecting",
        /// There.
        Connected = "connected",
        /// The last attempt failed.
        Unreachable = "unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_discriminants() {
        for (place, state) in PipelineState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, place);
        }
        assert_eq!(PipelineState::ALL.len(), 7);
        assert_eq!(PipelineState::CatchingUp.to_string(), "catching_up");
        assert_eq!(
            serde_json::to_string(&TableStateLabel::CatchingUp).unwrap(),
            "\"catching_up\""
        );
    }
}
