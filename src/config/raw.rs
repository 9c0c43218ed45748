//! The file's shape: every key with its type, nothing more. Meaning is given by `validate`.

use super::problems::Report;
use super::reader::{ByteSize, Section};
use crate::apply::OnError;
use crate::mapping::{ExistingRows, ExtraRows};
use crate::snapshot::Indexes;
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::time::Duration;

/// The whole file.
pub(super) struct RawConfig {
    pub(super) name: Option<String>,
    pub(super) source: RawSource,
    pub(super) replica: RawReplica,
    pub(super) copy: RawCopy,
    pub(super) apply: RawApply,
    pub(super) http: RawHttp,
    pub(super) retry: RawRetry,
    pub(super) slot: RawSlot,
    pub(super) verify: RawVerify,
    pub(super) tables: Vec<RawTable>,
    /// Sections that are known and not done by this version.
    pub(super) has_tenants: bool,
}

/// Where a connection string is said to be.
pub(super) struct RawUrl {
    pub(super) url: Option<SecretString>,
    pub(super) url_file: Option<String>,
}

/// `[source]`
pub(super) struct RawSource {
    pub(super) url: RawUrl,
    pub(super) environment: Option<String>,
    pub(super) publication: Option<String>,
    pub(super) slot: Option<String>,
    pub(super) failover: Option<bool>,
}

/// `[replica]`
pub(super) struct RawReplica {
    pub(super) url: RawUrl,
    pub(super) environment: Option<String>,
    pub(super) accept_environments: Option<Vec<String>>,
    pub(super) pool_max: Option<i64>,
}

/// `[copy]`
pub(super) struct RawCopy {
    pub(super) workers: Option<i64>,
    pub(super) split_from: Option<u64>,
    pub(super) indexes: Option<Indexes>,
    pub(super) existing_rows: Option<ExistingRows>,
    pub(super) extra_rows: Option<ExtraRows>,
}

/// `[apply]`
pub(super) struct RawApply {
    pub(super) batch_changes_max: Option<i64>,
    pub(super) batch_bytes_max: Option<u64>,
    pub(super) memory_max: Option<u64>,
    pub(super) on_conflict: Option<String>,
    pub(super) on_error: Option<OnError>,
    pub(super) schema_changes: Option<SchemaChanges>,
}

/// What becomes of a change of a table's shape.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SchemaChanges {
    Apply,
    Pause,
    Ignore,
}

/// `[http]`
pub(super) struct RawHttp {
    pub(super) listen: Option<String>,
    pub(super) has_admin_token_file: bool,
    pub(super) ready_lag_seconds_max: Option<f64>,
    pub(super) ready_lag_bytes_max: Option<u64>,
}

/// `[retry]`
pub(super) struct RawRetry {
    pub(super) delay_min: Option<Duration>,
    pub(super) delay_max: Option<Duration>,
}

/// `[slot]`
pub(super) struct RawSlot {
    pub(super) warn_beyond: Option<u64>,
    pub(super) critical_beyond: Option<u64>,
    pub(super) drop_beyond: Option<u64>,
    pub(super) holdback: Option<Duration>,
}

/// `[verify]`
pub(super) struct RawVerify {
    pub(super) every: Option<Duration>,
    pub(super) counts_every: Option<Duration>,
    pub(super) budget: Option<Duration>,
    pub(super) slice: Option<u64>,
    pub(super) repair: Option<bool>,
}

/// `[[tables]]`
pub(super) struct RawTable {
    /// `tables[3]`: what its keys' names begin with.
    pub(super) path: String,
    pub(super) source: Option<String>,
    pub(super) replica: Option<String>,
    pub(super) columns: BTreeMap<String, String>,
    pub(super) exclude: Vec<String>,
    pub(super) set: BTreeMap<String, String>,
    pub(super) filter: Option<String>,
    pub(super) key: Option<Vec<String>>,
    pub(super) existing_rows: Option<ExistingRows>,
    pub(super) extra_rows: Option<ExtraRows>,
    pub(super) on_conflict: Option<String>,
    pub(super) priority: Option<i64>,
    pub(super) references: Vec<RawReference>,
    pub(super) unique: Vec<Vec<String>>,
}

/// One of `[[tables]] references`.
pub(super) struct RawReference {
    /// `tables[3].references[0]`
    pub(super) path: String,
    pub(super) columns: Vec<String>,
    pub(super) table: Option<String>,
    pub(super) to: Vec<String>,
}

const EXISTING_ROWS: [(&str, ExistingRows); 3] = [
    ("refuse", ExistingRows::Refuse),
    ("merge", ExistingRows::Merge),
    ("truncate", ExistingRows::Truncate),
];
const EXTRA_ROWS: [(&str, ExtraRows); 2] =
    [("keep", ExtraRows::Keep), ("delete", ExtraRows::Delete)];
const INDEXES: [(&str, Indexes); 2] = [("keep", Indexes::Keep), ("after", Indexes::After)];
const ON_ERROR: [(&str, OnError); 2] =
    [("stop", OnError::Stop), ("quarantine", OnError::Quarantine)];
const SCHEMA_CHANGES: [(&str, SchemaChanges); 3] = [
    ("apply", SchemaChanges::Apply),
    ("pause", SchemaChanges::Pause),
    ("ignore", SchemaChanges::Ignore),
];

impl RawConfig {
    pub(super) fn read(mut root: Section, report: &mut Report) -> Self {
        let name = root.take("name", report);
        let source = root.take_section("source", report);
        let replica = root.take_section("replica", report);
        let copy = root.take_section("copy", report);
        let apply = root.take_section("apply", report);
        let http = root.take_section("http", report);
        let retry = root.take_section("retry", report);
        let slot = root.take_section("slot", report);
        let verify = root.take_section("verify", report);
        let tables = root.take_sections("tables", report);
        let raw = Self {
            name,
            source: RawSource::read(source, report),
            replica: RawReplica::read(replica, report),
            copy: RawCopy::read(copy, report),
            apply: RawApply::read(apply, report),
            http: RawHttp::read(http, report),
            retry: RawRetry::read(retry, report),
            slot: RawSlot::read(slot, report),
            verify: RawVerify::read(verify, report),
            tables: tables
                .into_iter()
                .map(|table| RawTable::read(table, report))
                .collect(),
            has_tenants: root.take_presence("tenants"),
        };
        root.finish(report);
        raw
    }
}

impl RawUrl {
    fn read(section: &mut Section, report: &mut Report) -> Self {
        Self {
            url: section
                .take::<String>("url", report)
                .map(SecretString::from),
            url_file: section.take("url_file", report),
        }
    }
}

impl RawSource {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            url: RawUrl::read(&mut section, report),
            environment: section.take("environment", report),
            publication: section.take("publication", report),
            slot: section.take("slot", report),
            failover: section.take("failover", report),
        };
        section.finish(report);
        raw
    }
}

impl RawReplica {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            url: RawUrl::read(&mut section, report),
            environment: section.take("environment", report),
            accept_environments: section.take("accept_environments", report),
            pool_max: section.take("pool_max", report),
        };
        section.finish(report);
        raw
    }
}

impl RawCopy {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            workers: section.take("workers", report),
            split_from: take_bytes(&mut section, "split_from", report),
            indexes: section.take_choice("indexes", &INDEXES, report),
            existing_rows: section.take_choice("existing_rows", &EXISTING_ROWS, report),
            extra_rows: section.take_choice("extra_rows", &EXTRA_ROWS, report),
        };
        section.finish(report);
        raw
    }
}

impl RawApply {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            batch_changes_max: section.take("batch_changes_max", report),
            batch_bytes_max: take_bytes(&mut section, "batch_bytes_max", report),
            memory_max: take_bytes(&mut section, "memory_max", report),
            on_conflict: section.take("on_conflict", report),
            on_error: section.take_choice("on_error", &ON_ERROR, report),
            schema_changes: section.take_choice("schema_changes", &SCHEMA_CHANGES, report),
        };
        section.finish(report);
        raw
    }
}

impl RawHttp {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            listen: section.take("listen", report),
            has_admin_token_file: section.take_presence("admin_token_file"),
            ready_lag_seconds_max: section.take("ready_lag_seconds_max", report),
            ready_lag_bytes_max: take_bytes(&mut section, "ready_lag_bytes_max", report),
        };
        section.finish(report);
        raw
    }
}

impl RawRetry {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            delay_min: section.take("delay_min", report),
            delay_max: section.take("delay_max", report),
        };
        section.finish(report);
        raw
    }
}

impl RawSlot {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            warn_beyond: take_bytes(&mut section, "warn_beyond", report),
            critical_beyond: take_bytes(&mut section, "critical_beyond", report),
            drop_beyond: take_bytes(&mut section, "drop_beyond", report),
            holdback: section.take("holdback", report),
        };
        section.finish(report);
        raw
    }
}

impl RawVerify {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            every: section.take("every", report),
            counts_every: section.take("counts_every", report),
            budget: section.take("budget", report),
            slice: take_bytes(&mut section, "slice", report),
            repair: section.take("repair", report),
        };
        section.finish(report);
        raw
    }
}

impl RawTable {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let references = section.take_sections("references", report);
        let raw = Self {
            path: section.path().to_owned(),
            source: section.take("source", report),
            replica: section.take("replica", report),
            columns: section.take("columns", report).unwrap_or_default(),
            exclude: section.take("exclude", report).unwrap_or_default(),
            set: section.take("set", report).unwrap_or_default(),
            filter: section.take("where", report),
            key: section.take("key", report),
            existing_rows: section.take_choice("existing_rows", &EXISTING_ROWS, report),
            extra_rows: section.take_choice("extra_rows", &EXTRA_ROWS, report),
            on_conflict: section.take("on_conflict", report),
            priority: section.take("priority", report),
            references: references
                .into_iter()
                .map(|reference| RawReference::read(reference, report))
                .collect(),
            unique: section.take("unique", report).unwrap_or_default(),
        };
        section.finish(report);
        raw
    }
}

impl RawReference {
    fn read(mut section: Section, report: &mut Report) -> Self {
        let raw = Self {
            path: section.path().to_owned(),
            columns: section.take("columns", report).unwrap_or_default(),
            table: section.take("table", report),
            to: section.take("to", report).unwrap_or_default(),
        };
        section.finish(report);
        raw
    }
}

fn take_bytes(section: &mut Section, key: &'static str, report: &mut Report) -> Option<u64> {
    section.take::<ByteSize>(key, report).map(|size| size.0)
}
