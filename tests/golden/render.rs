//! Decoded messages as lines a reader can check, free of what differs from run to run.
//!
//! Transaction ids are numbered by appearance, relations and types go by name, positions
//! and times are checked and left out. So are transactions without content, which
//! PostgreSQL 14 sends, and the borders between segments of one transaction, which lie
//! where each version thinks that its memory is full.

use std::collections::HashMap;

use bytes::Bytes;
use pglockstep::pg::{Change, Lsn, OldTuple, Relation, Tuple, TupleValue};
use pglockstep::pgoutput::{Decoder, Message, Streaming};

/// Object ids below this are the same on every server.
const FIRST_USER_OID: u32 = 16384;
/// 2024-01-01 and 2100-01-01 in microseconds since 2000-01-01.
const PLAUSIBLE_TIMES_US: std::ops::Range<i64> = 757_382_400_000_000..3_155_760_000_000_000;

#[derive(Default)]
struct Renderer {
    relations: HashMap<u32, String>,
    types: HashMap<u32, String>,
    /// What BEGIN said of where its COMMIT is.
    final_lsn: Option<Lsn>,
    lines: Vec<String>,
}

/// Decodes one capture whole; panics on the first message that cannot be.
pub fn render(protocol_version: u8, streaming: Streaming, messages: &[Vec<u8>]) -> String {
    let mut decoder = Decoder::new(protocol_version, streaming);
    let mut renderer = Renderer::default();
    for (number, message) in messages.iter().enumerate() {
        let decoded = decoder.decode(Bytes::from(message.clone()));
        let decoded = decoded.unwrap_or_else(|error| panic!("message {number}: {error}"));
        renderer.message(&decoded);
    }
    numbered(&(without_borders(renderer.lines).join("\n") + "\n"))
}

/// A transaction id on its way to [`numbered`].
fn marked(xid: u32) -> String {
    format!("<{xid}>")
}

/// Marked ids become x1, x2, … by appearance among the lines that were kept.
fn numbered(text: &str) -> String {
    let mut numbers = HashMap::new();
    let mut parts = text.split('<');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (xid, rest) = part.split_once('>').unwrap();
        let next = numbers.len() + 1;
        let number = numbers.entry(xid).or_insert(next);
        out.push_str(&format!("x{number}{rest}"));
    }
    out
}

fn without_borders(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut segment_of = String::new();
    for line in lines {
        let last = kept.last().map(String::as_str);
        let begins_anew = line == format!("stream start {segment_of}");
        let is_empty_transaction = line == "commit" && last.is_some_and(|l| l.starts_with("begin"));
        if (begins_anew && last == Some("stream stop")) || is_empty_transaction {
            kept.pop();
            continue;
        }
        if let Some(xid) = line.strip_prefix("stream start ") {
            segment_of = xid.trim_end_matches(" (first)").to_owned();
        }
        kept.push(line);
    }
    kept
}

fn check_time(time_us: i64) {
    assert!(
        PLAUSIBLE_TIMES_US.contains(&time_us),
        "no plausible time: {time_us}"
    );
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    match text.chars().count() {
        0..60 => format!("'{text}'"),
        count => format!("'{}…' ({count})", text.chars().take(5).collect::<String>()),
    }
}

fn value(value: TupleValue<'_>) -> String {
    match value {
        TupleValue::Null => "NULL".to_owned(),
        TupleValue::UnchangedToast => "unchanged".to_owned(),
        TupleValue::Text(text) => shown(text),
        TupleValue::Binary(bytes) if bytes.len() > 60 => format!("binary ({})", bytes.len()),
        TupleValue::Binary(bytes) => format!("\\x{}", super::hex(bytes)),
    }
}

fn row(tuple: &Tuple) -> String {
    format!(
        "({})",
        tuple.values().map(value).collect::<Vec<_>>().join(", ")
    )
}

fn old(tuple: &OldTuple) -> String {
    match tuple {
        OldTuple::Key(tuple) => format!("key {}", row(tuple)),
        OldTuple::Full(tuple) => format!("full {}", row(tuple)),
    }
}

impl Renderer {
    /// ` of xN` inside a segment, nothing elsewhere.
    fn owner(xid: Option<u32>) -> String {
        xid.map_or_else(String::new, |xid| format!(" of {}", marked(xid)))
    }

    fn relation_name(&self, id: u32) -> &str {
        self.relations
            .get(&id)
            .unwrap_or_else(|| panic!("relation {id} was never described"))
    }

    /// What a relation's description looks like, and from here on its name.
    fn relation(&mut self, relation: &Relation) -> String {
        let column = |column: &pglockstep::pg::Column| {
            let user_type = self.types.get(&column.type_oid);
            let type_name = match user_type {
                Some(name) => name.clone(),
                None if column.type_oid < FIRST_USER_OID => column.type_oid.to_string(),
                None => panic!("type {} was never described", column.type_oid),
            };
            let key = if column.is_key { " key" } else { "" };
            format!(
                "{:?} {type_name}[{}]{key}",
                column.name, column.type_modifier
            )
        };
        let columns = relation
            .columns
            .iter()
            .map(column)
            .collect::<Vec<_>>()
            .join(", ");
        let name = relation.name.quoted();
        let text = format!("{name} {:?} ({columns})", relation.replica_identity);
        self.relations
            .insert(relation.id, relation.name.to_string());
        text
    }

    fn change(&self, change: &Change) -> String {
        match change {
            Change::Insert { relation, new } => {
                format!("insert {} {}", self.relation_name(*relation), row(new))
            }
            Change::Update {
                relation,
                old: before,
                new,
            } => {
                let before = before.as_ref().map_or("-".to_owned(), old);
                format!(
                    "update {} {before} to {}",
                    self.relation_name(*relation),
                    row(new)
                )
            }
            Change::Delete {
                relation,
                old: before,
            } => {
                format!("delete {} {}", self.relation_name(*relation), old(before))
            }
            Change::Truncate {
                relations,
                cascade,
                restart_identity,
            } => {
                let mut names: Vec<_> =
                    relations.iter().map(|id| self.relation_name(*id)).collect();
                names.sort_unstable();
                format!(
                    "truncate {} cascade={cascade} restart_identity={restart_identity}",
                    names.join(", ")
                )
            }
        }
    }

    fn message(&mut self, message: &Message) {
        let line = match message {
            Message::Begin {
                final_lsn,
                commit_time_us,
                xid,
            } => {
                check_time(*commit_time_us);
                self.final_lsn = Some(*final_lsn);
                format!("begin {}", marked(*xid))
            }
            Message::Commit {
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => {
                check_time(*commit_time_us);
                assert_eq!(self.final_lsn.take(), Some(*commit_lsn));
                assert!(commit_lsn < end_lsn);
                "commit".to_owned()
            }
            Message::Origin { commit_lsn, name } => format!("origin {name:?} {commit_lsn:?}"),
            Message::Relation { xid, relation } => {
                let owner = Self::owner(*xid);
                format!("relation{owner} {}", self.relation(relation))
            }
            Message::Type { xid, oid, name } => {
                self.types.insert(*oid, name.quoted());
                format!("type{} {}", Self::owner(*xid), name.quoted())
            }
            Message::Change { xid, change } => {
                let owner = Self::owner(*xid);
                format!("{}{owner}", self.change(change))
            }
            Message::Logical {
                xid,
                transactional,
                prefix,
                content,
                lsn: _,
            } => {
                let owner = Self::owner(*xid);
                let content = super::hex(&content.0);
                format!("message{owner} transactional={transactional} {prefix:?} \\x{content}")
            }
            other => Self::boundary(other),
        };
        self.lines.push(line);
    }

    fn boundary(message: &Message) -> String {
        match message {
            Message::StreamStart { xid, first_segment } => {
                let first = if *first_segment { " (first)" } else { "" };
                format!("stream start {}{first}", marked(*xid))
            }
            Message::StreamStop => "stream stop".to_owned(),
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => {
                check_time(*commit_time_us);
                assert!(commit_lsn < end_lsn);
                format!("stream commit {}", marked(*xid))
            }
            Message::StreamAbort {
                xid,
                subxid,
                abort_lsn,
                abort_time_us,
            } => {
                abort_time_us.iter().copied().for_each(check_time);
                assert_eq!(abort_lsn.is_some(), abort_time_us.is_some());
                let at = if abort_lsn.is_some() {
                    " with its place"
                } else {
                    ""
                };
                format!("stream abort {} of {}{at}", marked(*subxid), marked(*xid))
            }
            Message::BeginPrepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            } => {
                check_time(*prepare_time_us);
                assert!(prepare_lsn < end_lsn);
                format!("begin prepare {} {gid:?}", marked(*xid))
            }
            Message::Prepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            } => {
                check_time(*prepare_time_us);
                assert!(prepare_lsn < end_lsn);
                format!("prepare {} {gid:?}", marked(*xid))
            }
            Message::StreamPrepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            } => {
                check_time(*prepare_time_us);
                assert!(prepare_lsn < end_lsn);
                format!("stream prepare {} {gid:?}", marked(*xid))
            }
            Message::CommitPrepared {
                commit_lsn,
                end_lsn,
                commit_time_us,
                xid,
                gid,
            } => {
                check_time(*commit_time_us);
                assert!(commit_lsn < end_lsn);
                format!("commit prepared {} {gid:?}", marked(*xid))
            }
            Message::RollbackPrepared {
                prepare_end_lsn,
                rollback_end_lsn,
                prepare_time_us,
                rollback_time_us,
                xid,
                gid,
            } => {
                check_time(*prepare_time_us);
                assert!(prepare_time_us <= rollback_time_us && prepare_end_lsn < rollback_end_lsn);
                format!("rollback prepared {} {gid:?}", marked(*xid))
            }
            other => panic!("no boundary: {other:?}"),
        }
    }
}
