//! From shape to meaning: defaults, bounds, and what cannot be true together.

use super::problems::Report;
use super::raw::{
    RawApply, RawConfig, RawCopy, RawHttp, RawReplica, RawRetry, RawSlot, RawSource, RawUrl,
    RawVerify, SchemaChanges,
};
use super::tables::{parse_policy, validate_tables};
use super::{Config, ReplicaConfig, SourceConfig, UrlSource, derived_name};
use crate::telemetry::{Chain, ReadyBounds};
use crate::verify::SliceSize;
use crate::{apply, http, mapping, pipeline, snapshot, upkeep};
use std::time::Duration;

const PRODUCTION: &str = "production";
/// Names on a server are cut after so many bytes, silently.
const NAME_BYTES_MAX: usize = 63;
const UNSUPPORTED: &str = "not supported yet by this version; remove it";

/// The configuration, or `None` when the report says why not.
pub(super) fn validate(raw: RawConfig, report: &mut Report) -> Option<Config> {
    refuse_unsupported(&raw, report);
    let name = validate_name(raw.name.as_deref(), report);
    let urls = validate_urls(&raw.source.url, &raw.replica.url, report);
    check_environments(&raw.source, &raw.replica, report);
    let snapshot = validate_copy(&raw.copy, report);
    let apply = validate_apply(&raw.apply, report);
    let pool_max = validate_pool(&raw.replica, snapshot.workers, report);
    let retry = validate_retry(&raw.retry, report);
    let http = validate_http(&raw.http, report);
    let slot_budget = validate_slot(&raw.slot, report);
    let upkeep = validate_verify(&raw.verify, report);
    let defaults = mapping::Settings {
        rules: Vec::new(),
        existing_rows: raw.copy.existing_rows.unwrap_or_default(),
        extra_rows: raw.copy.extra_rows.unwrap_or_default(),
        on_conflict: parse_policy(
            raw.apply.on_conflict.as_deref(),
            "apply.on_conflict",
            report,
        )
        .unwrap_or_default(),
    };
    let mapping = validate_tables(raw.tables, defaults, report);
    // Without a name the derived ones mean nothing, and the report already says so.
    let (name, (source_url, replica_url)) = (name?, urls?);
    let (publication, slot) = validate_names(&raw.source, &name, report);
    let source = SourceConfig {
        url: source_url,
        environment: raw.source.environment,
        publication,
        slot,
        failover: raw.source.failover.unwrap_or(false),
    };
    let replica = ReplicaConfig {
        url: replica_url,
        environment: raw.replica.environment,
        pool_max,
    };
    Some(Config {
        name,
        source,
        replica,
        snapshot,
        apply,
        retry,
        slot_budget,
        holdback: raw.slot.holdback.unwrap_or_default(),
        upkeep,
        http,
        mapping,
    })
}

/// What the file may say one day. Until it is done, saying it is a problem: nothing is ignored.
fn refuse_unsupported(raw: &RawConfig, report: &mut Report) {
    let schema_changes = raw.apply.schema_changes;
    for (key, found) in [
        ("tenants", raw.has_tenants),
        ("http.admin_token_file", raw.http.has_admin_token_file),
    ] {
        if found {
            report.add(key, UNSUPPORTED);
        }
    }
    if schema_changes.is_some_and(|policy| policy != SchemaChanges::Pause) {
        let message = "only pause is supported yet by this version: a change of a table's shape \
                       that does not fit stops the pipeline";
        report.add("apply.schema_changes", message);
    }
}

fn validate_name(name: Option<&str>, report: &mut Report) -> Option<String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match name {
        Some(name) if (1..=40).contains(&name.len()) && name.chars().all(allowed) => {
            Some(name.to_owned())
        }
        Some(_) => {
            report.add(
                "name",
                "expected 1 to 40 of the letters a to z, digits and underscores",
            );
            None
        }
        None => {
            if !report.is_broken("name") {
                report.add(
                    "name",
                    "missing; the slot and the publication are named after it",
                );
            }
            None
        }
    }
}

/// Publication and slot: what the file says, or after the pipeline.
fn validate_names(source: &RawSource, name: &str, report: &mut Report) -> (String, String) {
    let or_derived = |given: &Option<String>| given.clone().unwrap_or_else(|| derived_name(name));
    let (publication, slot) = (or_derived(&source.publication), or_derived(&source.slot));
    if publication.is_empty() || publication.len() > NAME_BYTES_MAX {
        report.add(
            "source.publication",
            format!("expected a name of 1 to {NAME_BYTES_MAX} bytes"),
        );
    }
    // ReplicationSlotValidateName: anything else is refused by the server.
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !(1..=NAME_BYTES_MAX).contains(&slot.len()) || !slot.chars().all(allowed) {
        let message =
            format!("expected 1 to {NAME_BYTES_MAX} of the letters a to z, digits and underscores");
        report.add("source.slot", message);
    }
    (publication, slot)
}

fn validate_urls(
    source: &RawUrl,
    replica: &RawUrl,
    report: &mut Report,
) -> Option<(UrlSource, UrlSource)> {
    let source = validate_url(source, "source", report);
    let replica = validate_url(replica, "replica", report);
    let (source, replica) = (source?, replica?);
    if let (Ok(from), Ok(to)) = (source.read(), replica.read())
        && from.describe() == to.describe()
    {
        // Other names of the same server are found out when connected, by its system identifier.
        let message = "the same database as the source: it would be copied onto itself";
        report.add("replica.url", message);
    }
    Some((source, replica))
}

fn validate_url(raw: &RawUrl, side: &str, report: &mut Report) -> Option<UrlSource> {
    let (url_key, file_key) = (format!("{side}.url"), format!("{side}.url_file"));
    let (key, url) = match (&raw.url, &raw.url_file) {
        (Some(_), Some(_)) => {
            report.add(&url_key, "give url or url_file, not both");
            return None;
        }
        (Some(url), None) => (url_key, UrlSource::Inline(url.clone())),
        (None, Some(path)) => (file_key, UrlSource::File(path.into())),
        (None, None) => {
            if !report.is_broken(&url_key) && !report.is_broken(&file_key) {
                let message = "missing; expected postgres://user@host:port/database, here or in \
                               the file named by url_file";
                report.add(&url_key, message);
            }
            return None;
        }
    };
    match url.read() {
        Ok(_) => Some(url),
        // `status` is for everybody, the secret is not: whoever connects will be told.
        Err(error) if error.is_denied() => Some(url),
        Err(error) => {
            report.add(&key, Chain(&error).to_string());
            None
        }
    }
}

/// A replica labelled production is fed from production only, unless told otherwise; and a
/// replica that lists what it accepts accepts nothing else.
fn check_environments(source: &RawSource, replica: &RawReplica, report: &mut Report) {
    let (from, to) = (
        source.environment.as_deref(),
        replica.environment.as_deref(),
    );
    let is_production =
        |label: Option<&str>| label.is_some_and(|label| label.eq_ignore_ascii_case(PRODUCTION));
    let listed = |list: &Vec<String>| from.is_some_and(|from| list.iter().any(|it| it == from));
    let accepted = match &replica.accept_environments {
        Some(list) => listed(list) || (from.is_some() && from == to),
        None => !is_production(to) || is_production(from),
    };
    if !accepted {
        let from = from.map_or("no label".to_owned(), |from| format!("{from:?}"));
        let to = to.map_or(String::new(), |to| format!(" of environment {to:?}"));
        let message = format!(
            "a replica{to} is not fed from a source with {from}; if that is meant, label the \
             source with source.environment and list it in replica.accept_environments"
        );
        report.add("replica.environment", message);
    }
}

fn validate_copy(raw: &RawCopy, report: &mut Report) -> snapshot::Settings {
    let default = snapshot::Settings::default();
    snapshot::Settings {
        workers: bounded(raw.workers, default.workers, 1, 64, "copy.workers", report),
        split_from: raw.split_from.unwrap_or(default.split_from),
        indexes: raw.indexes.unwrap_or(default.indexes),
    }
}

fn validate_pool(raw: &RawReplica, workers: usize, report: &mut Report) -> usize {
    // One session for each copy worker; apply, its witness, the books and the catalogue need their own.
    let least = workers + 2;
    let default = workers + 5;
    bounded(
        raw.pool_max,
        default,
        least,
        1000,
        "replica.pool_max",
        report,
    )
}

fn validate_apply(raw: &RawApply, report: &mut Report) -> apply::Settings {
    let default = apply::Settings::default();
    let bytes = |given: Option<u64>, default| match given {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        None => default,
    };
    let settings = apply::Settings {
        batch_changes_max: match raw.batch_changes_max {
            None => default.batch_changes_max,
            given => apply::ChangesMax::Exactly(bounded(
                given,
                1,
                1,
                1_000_000,
                "apply.batch_changes_max",
                report,
            )),
        },
        batch_bytes_max: bytes(raw.batch_bytes_max, default.batch_bytes_max),
        memory_max: bytes(raw.memory_max, default.memory_max),
        on_error: raw.on_error.unwrap_or_default(),
    };
    const LEAST_BYTES: usize = 64 << 10;
    if settings.batch_bytes_max < LEAST_BYTES {
        report.add("apply.batch_bytes_max", "expected at least 64KiB");
    }
    if settings.memory_max < settings.batch_bytes_max {
        let key = if raw.memory_max.is_some() {
            "memory_max"
        } else {
            "batch_bytes_max"
        };
        let message = format!(
            "memory_max ({} bytes) must hold at least one batch of batch_bytes_max ({} bytes)",
            settings.memory_max, settings.batch_bytes_max
        );
        report.add(&format!("apply.{key}"), message);
    }
    settings
}

fn validate_retry(raw: &RawRetry, report: &mut Report) -> pipeline::RetrySettings {
    let default = pipeline::RetrySettings::default();
    let settings = pipeline::RetrySettings {
        delay_min: raw.delay_min.unwrap_or(default.delay_min),
        delay_max: raw.delay_max.unwrap_or(default.delay_max),
    };
    if settings.delay_min.is_zero() {
        report.add(
            "retry.delay_min",
            "must be above 0: servers would be hammered",
        );
    }
    if settings.delay_max < settings.delay_min {
        let key = if raw.delay_max.is_some() {
            "retry.delay_max"
        } else {
            "retry.delay_min"
        };
        report.add(key, "delay_max must not be below delay_min");
    }
    settings
}

fn validate_slot(raw: &RawSlot, report: &mut Report) -> pipeline::SlotBudget {
    let default = pipeline::SlotBudget::default();
    let warning_bytes = raw.warn_beyond.unwrap_or(default.warning_bytes);
    let budget = pipeline::SlotBudget {
        warning_bytes,
        critical_bytes: raw
            .critical_beyond
            .unwrap_or(default.critical_bytes.max(warning_bytes)),
        drop_bytes: raw.drop_beyond,
    };
    if budget.critical_bytes < budget.warning_bytes {
        report.add("slot.critical_beyond", "must not be below warn_beyond");
    }
    if budget
        .drop_bytes
        .is_some_and(|bytes| bytes < budget.warning_bytes)
    {
        let message = "must not be below warn_beyond: nobody would be told before the slot goes";
        report.add("slot.drop_beyond", message);
    }
    budget
}

/// Zero is never, and a time so short would do nothing else.
fn validate_verify(raw: &RawVerify, report: &mut Report) -> upkeep::Settings {
    const LEAST: Duration = Duration::from_secs(10);
    const MOST: Duration = Duration::from_secs(366 * 24 * 3600);
    let default = upkeep::Settings::default();
    let mut time = |given: Option<Duration>, default, key| {
        let time = given.unwrap_or(default);
        if !time.is_zero() && !(LEAST..=MOST).contains(&time) {
            report.add(key, "expected 10s to 366 days, or 0s for never");
        }
        time
    };
    upkeep::Settings {
        every: time(raw.every, default.every, "verify.every"),
        counts_every: time(
            raw.counts_every,
            default.counts_every,
            "verify.counts_every",
        ),
        budget: raw.budget.unwrap_or(default.budget),
        slice: validate_slice(raw.slice, report),
        repair: raw.repair.unwrap_or(default.repair),
    }
}

fn validate_slice(given: Option<u64>, report: &mut Report) -> SliceSize {
    const LEAST: u64 = 64 << 10;
    if given.is_some_and(|bytes| bytes < LEAST) {
        report.add("verify.slice", "expected 64KiB or more");
    }
    given.map_or_else(SliceSize::default, SliceSize)
}

fn validate_http(raw: &RawHttp, report: &mut Report) -> http::Settings {
    let default = http::Settings::default();
    let listen = raw.listen.as_deref().map(|listen| listen.trim().parse());
    if matches!(listen, Some(Err(_))) {
        report.add(
            "http.listen",
            "expected ADDRESS:PORT in numbers, as in 127.0.0.1:9808",
        );
    }
    if raw
        .ready_lag_seconds_max
        .is_some_and(|seconds| seconds < 0.0)
    {
        report.add("http.ready_lag_seconds_max", "must not be below 0");
    }
    http::Settings {
        listen: listen.and_then(Result::ok).unwrap_or(default.listen),
        ready: ReadyBounds {
            lag_seconds_max: raw.ready_lag_seconds_max.or(default.ready.lag_seconds_max),
            lag_bytes_max: raw.ready_lag_bytes_max.or(default.ready.lag_bytes_max),
        },
    }
}

/// A whole number within bounds, or the default.
fn bounded(
    given: Option<i64>,
    default: usize,
    least: usize,
    greatest: usize,
    key: &str,
    report: &mut Report,
) -> usize {
    let Some(given) = given else { return default };
    match usize::try_from(given) {
        Ok(number) if (least..=greatest).contains(&number) => number,
        _ => {
            report.add(
                key,
                format!("{given} is not between {least} and {greatest}"),
            );
            default
        }
    }
}
