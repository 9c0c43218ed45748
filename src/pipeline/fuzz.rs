//! Golden streams, damaged, through the decoder and the real `Follower`: what cannot be is
//! refused, and nothing panics.
//!
//! ```text
//!  golden ─▶ one message less, twice, too early; or at random ─▶ Decoder ─▶ Follower ─▶ plans
//! ```
//!
//! The tables are those of which the stream has told before; nothing is written, but every
//! statement is planned. A table that comes in a new form ends a stream: nobody is there to be
//! asked for the replica's.

use super::follow::{Follower, Streams};
use super::receive::{Chunk, Event, Inbox};
use super::relations::Relations;
use super::simulation::tables::{config, planned, pools, table_of};
use super::watch::Watch;
use super::{PipelineConfig, PipelineError};
use crate::apply::{ApplyError, Batch, ReplicaWriter, Written, model};
use crate::faults::random::{for_seeds, is_soak, seed};
use crate::pg::{Change, Lsn, QualifiedName, Relation, RelationId, TypeName, TypeNames};
use crate::pgoutput::encode::{Value, encode, tuple};
use crate::pgoutput::fuzz::{Corpus, Damaged, judged};
use crate::pgoutput::{Decoder, Message, Payload, Streaming};
use crate::progress::{Durability, Positions, TableState};
use crate::replication::ReplicationError;
use crate::telemetry::Telemetry;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const SECONDS: u64 = 3;
const SOAK_SECONDS: u64 = 600;

/// Plans what it is given.
struct Planner {
    /// Bytes of the stream: no batch may claim more.
    received: usize,
}

impl ReplicaWriter for Planner {
    type Flush = std::future::Ready<Result<(), ApplyError>>;

    async fn write(&mut self, batch: &Batch) -> Result<Vec<Written>, ApplyError> {
        assert!(!batch.is_empty(), "an empty batch is written");
        let most = self.received + 512 * batch.len();
        assert!(batch.bytes <= most, "{} of {most} bytes", batch.bytes);
        model::plan(batch).map(|_| Vec::new())
    }

    async fn commit(&mut self, _: Lsn, _: Durability) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn await_position(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn rollback(&mut self) {}

    async fn sibling(&self) -> Result<Self, ApplyError> {
        let received = self.received;
        Ok(Self { received })
    }

    async fn limit_lock_waits(&mut self, _: bool) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn savepoint(&mut self, _: u32) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn release_savepoint(&mut self, _: u32) -> Result<(), ApplyError> {
        Ok(())
    }

    async fn rollback_to(&mut self, _: u32) -> Result<(), ApplyError> {
        Ok(())
    }

    fn has_witness(&self) -> bool {
        true
    }

    fn flush(&self) -> Option<Self::Flush> {
        Some(std::future::ready(Ok(())))
    }
}

/// What a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It could have been sent so.
    Taken,
    /// The decoder refused a message.
    NotDecoded,
    /// A message had no place where it stood: why.
    OutOfOrder(&'static str),
    /// No statement can be made of it.
    NotPlanned,
    /// A table came in a new form.
    NewForm,
    /// A transaction that runs cannot be applied before it commits.
    TakenWhole,
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    config: PipelineConfig,
    telemetry: Telemetry,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            runtime,
            config: config(),
            telemetry: Telemetry::new("fuzzed"),
        }
    }

    /// The tables as the stream has described them so far.
    fn relations(&self, told: &[Message]) -> Relations {
        let mut forms: BTreeMap<RelationId, &Relation> = BTreeMap::new();
        let mut types = TypeNames::new();
        for message in told {
            match message {
                Message::Relation { relation, .. } => {
                    forms.insert(relation.id, relation);
                }
                Message::Type { oid, name, .. } => {
                    types.insert(*oid, name.clone());
                }
                _ => {}
            }
        }
        for column in forms.values().flat_map(|relation| &relation.columns) {
            let text = || TypeName(QualifiedName::new("pg_catalog", "text"));
            types.entry(column.type_oid).or_insert_with(text);
        }
        let start = Lsn::from_wire(1).unwrap();
        let mut relations = Relations::new(&self.config, types.clone(), pools(&self.config), start);
        for relation in forms.values() {
            let table = planned(table_of(relation), relation, &types).unwrap();
            let telemetry = self.telemetry.table(&relation.name, &relation.name);
            relations.add(&table, TableState::Copied { at: start }, telemetry);
        }
        relations
    }

    fn follow(&self, told: &[Message], decoder: Decoder, wires: &[Bytes]) -> Outcome {
        self.runtime.block_on(self.follow_it(told, decoder, wires))
    }

    async fn follow_it(&self, told: &[Message], mut decoder: Decoder, wires: &[Bytes]) -> Outcome {
        let mut events = Vec::new();
        let mut is_decoded = true;
        for wire in wires {
            match judged(&mut decoder, wire) {
                Some(message) => events.push(Event::Message(message)),
                None => {
                    is_decoded = false;
                    break;
                }
            }
        }
        let received = wires.iter().map(Bytes::len).sum();
        let start = Positions::resumed_at(Lsn::from_wire(1).unwrap());
        let (sender, chunks) = mpsc::channel(1);
        let chunk = Chunk::unbounded(events, received);
        assert!(sender.try_send(chunk).is_ok());
        drop(sender);
        let task = tokio::spawn(async { Err(ReplicationError::Ended.into()) });
        let stop = CancellationToken::new();
        let streams = Streams {
            inbox: Inbox::of_channels(chunks, watch::channel(start).0, task, stop),
            applier: Planner { received },
            relations: self.relations(told),
            watch: Watch::new(),
            books: None,
            in_progress_max: 2,
        };
        let at = Lsn::from_wire(1).unwrap();
        let follower = Follower::new(streams, at, &self.config.apply, &self.telemetry);
        let ended =
            Box::pin(follower.run(&CancellationToken::new(), &mut crate::pipeline::cuts().1)).await;
        match ended.unwrap_err() {
            PipelineError::Replication(ReplicationError::Ended) if is_decoded => Outcome::Taken,
            PipelineError::Replication(ReplicationError::Ended) => Outcome::NotDecoded,
            PipelineError::OutOfOrder(why) => Outcome::OutOfOrder(why),
            PipelineError::Definite { .. } | PipelineError::Apply { .. } => Outcome::NotPlanned,
            PipelineError::Conn(_) | PipelineError::Mapping { .. } => Outcome::NewForm,
            PipelineError::TakeWhole(_) => Outcome::TakenWhole,
            other => panic!("{other:?}"),
        }
    }
}

fn is_begin(message: &Message) -> bool {
    matches!(message, Message::Begin { .. })
}

fn begins(message: &Message) -> bool {
    let starts = |message: &Message| {
        matches!(
            message,
            Message::StreamStart {
                first_segment: true,
                ..
            }
        )
    };
    is_begin(message) || starts(message)
}

/// Streams of whole transactions.
fn corpus() -> Corpus {
    Corpus::new(|capture| capture.protocol_version == 1)
}

/// The messages of a stream before one of them.
fn told(corpus: &Corpus, stream: usize, before: usize) -> Vec<Message> {
    let steps = corpus.steps(stream);
    let steps = &steps[..before.min(steps.len())];
    steps
        .iter()
        .map(|(_, _, message)| message.clone())
        .collect()
}

/// What must come of a message that is left out, or comes twice.
fn must_be_refused(message: &Message) -> bool {
    matches!(message, Message::Begin { .. } | Message::Commit { .. })
}

#[test]
fn two_transactions_with_one_message_less_twice_or_too_early() {
    let (bench, corpus) = (Bench::new(), corpus());
    let mut outcomes: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    for stream in 0..corpus.len() {
        let steps = corpus.steps(stream);
        let begins: Vec<usize> = (0..steps.len())
            .filter(|at| is_begin(&steps[*at].2))
            .collect();
        for (number, begin) in begins.iter().enumerate() {
            let end = begins.get(number + 2).copied().unwrap_or(steps.len());
            // New forms within are known beforehand, unless there are several.
            let told = told(&corpus, stream, end);
            let wires: Vec<Bytes> = steps[*begin..end].iter().map(|s| s.1.clone()).collect();
            let follow = |wires: &[Bytes]| bench.follow(&told, steps[*begin].0.clone(), wires);
            let whole = follow(&wires);
            *outcomes.entry(("whole", whole)).or_default() += 1;
            if whole != Outcome::Taken {
                let is_told_otherwise = matches!(whole, Outcome::NewForm | Outcome::NotPlanned);
                assert!(is_told_otherwise, "undamaged: {whole:?}");
                continue;
            }
            for at in 0..wires.len() {
                let message = &steps[begin + at].2;
                let mut less = wires.clone();
                less.remove(at);
                let mut twice = wires.clone();
                twice.insert(at, wires[at].clone());
                let mut early = wires.clone();
                early.swap(at, at.saturating_sub(1));
                // What ends a stream may be missing.
                let is_last = !steps[begin + at..end].iter().any(|step| is_begin(&step.2));
                for (how, wires) in [("less", less), ("twice", twice), ("early", early)] {
                    let outcome = follow(&wires);
                    let must =
                        must_be_refused(message) && how != "early" && !(is_last && how == "less");
                    assert!(
                        !must || matches!(outcome, Outcome::OutOfOrder(_)),
                        "{how}: {message:?}: {outcome:?}"
                    );
                    *outcomes.entry((how, outcome)).or_default() += 1;
                }
            }
        }
    }
    eprintln!("{outcomes:?}");
    for how in ["less", "twice", "early"] {
        let is_refused = |known: &&str, outcome: &Outcome| {
            *known == how && matches!(outcome, Outcome::OutOfOrder(_))
        };
        let refused = outcomes
            .iter()
            .filter(|((known, outcome), _)| is_refused(known, outcome));
        assert!(refused.map(|(_, count)| count).sum::<u64>() > 100, "{how}");
        assert!(outcomes[&(how, Outcome::Taken)] > 100, "{how}");
    }
}

#[test]
fn transactions_damaged_at_random() {
    // As the pipeline asks for them, those that run among them.
    let corpus = Corpus::new(|capture| {
        capture.protocol_version == 1 || capture.protocol_version == 2 && capture.streaming == "on"
    });
    let bench = Bench::new();
    let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
    let time = Duration::from_secs(if is_soak() { SOAK_SECONDS } else { SECONDS });
    let seeds = for_seeds(time, |mut random| {
        let Damaged {
            from,
            decoder,
            messages,
        } = corpus.damaged(&mut random, begins);
        let told = told(&corpus, from.0, from.1 + messages.len());
        *outcomes
            .entry(bench.follow(&told, decoder, &messages))
            .or_default() += 1;
    });
    eprintln!("{seeds} streams: {outcomes:?}");
    assert!(
        seed().is_some() || outcomes.len() > 8,
        "not every outcome: {outcomes:?}"
    );
}

/// One whole transaction of a server, with nothing but a row, and what was told before it.
fn transaction(corpus: &Corpus) -> (Vec<Message>, [Message; 3]) {
    let steps = corpus.steps(0);
    let of = |is_it: fn(&Message) -> bool| {
        let at = steps.iter().position(|step| is_it(&step.2)).unwrap();
        (at, steps[at].2.clone())
    };
    let (insert_at, insert) = of(|message| matches!(message, Message::Change { .. }));
    let (_, begin) = of(is_begin);
    let (_, commit) = of(|message| matches!(message, Message::Commit { .. }));
    (told(corpus, 0, insert_at), [begin, insert, commit])
}

/// A row of one column.
fn insert_into(relation: RelationId) -> Message {
    let new = tuple(&[Value::Null]);
    let change = Change::Insert { relation, new };
    Message::Change { xid: None, change }
}

fn truncate(relation: RelationId) -> Message {
    let change = Change::Truncate {
        relations: vec![relation],
        cascade: false,
        restart_identity: false,
    };
    Message::Change { xid: None, change }
}

fn logical(transactional: bool, lsn: Lsn) -> Message {
    Message::Logical {
        xid: None,
        transactional,
        lsn,
        prefix: "p".into(),
        content: Payload(Bytes::new()),
    }
}

#[test]
fn what_makes_no_sense_where_it_is_said() {
    let (bench, corpus) = (Bench::new(), corpus());
    let (told, [begin, insert, commit]) = transaction(&corpus);
    let Message::Commit {
        commit_lsn: at,
        end_lsn: end,
        commit_time_us,
    } = commit
    else {
        unreachable!()
    };
    let commit_at = |commit_lsn, end_lsn| Message::Commit {
        commit_lsn,
        end_lsn,
        commit_time_us,
    };
    let a_byte_later = Lsn::from_wire(at.as_u64() + 1).unwrap();
    let truncate = truncate(1);
    let Message::Relation { relation, .. } = told
        .iter()
        .rfind(|message| matches!(message, Message::Relation { .. }))
        .unwrap()
    else {
        unreachable!()
    };
    let form = Message::Relation {
        xid: None,
        relation: relation.clone(),
    };
    let origin = Message::Origin {
        commit_lsn: None,
        name: "elsewhere".into(),
    };
    let logical = |transactional| logical(transactional, end);
    let outside = "what belongs to a transaction came outside of one";
    let another = "a commit that is not the one its transaction began with";
    let unknown = "a change of an unknown table";
    let back = "a transaction that was committed before the end of the one before it";
    let narrow = "a row has another number of columns than its table";
    for (messages, why) in [
        (vec![&begin, &insert, &commit], None),
        (vec![&begin, &form, &insert, &commit, &logical(false)], None),
        (vec![&insert], Some("a change outside a transaction")),
        (
            vec![&begin, &begin],
            Some("a transaction begins within another"),
        ),
        (vec![&commit], Some("a commit without a transaction")),
        (
            vec![&begin, &commit, &commit],
            Some("a commit without a transaction"),
        ),
        (
            vec![&begin, &insert, &commit_at(a_byte_later, end)],
            Some(another),
        ),
        (vec![&begin, &insert, &commit_at(at, at)], Some(another)),
        (vec![&begin, &insert, &commit, &begin], Some(back)),
        (vec![&begin, &insert_into(1)], Some(unknown)),
        (vec![&begin, &truncate], Some(unknown)),
        (vec![&begin, &insert_into(relation.id)], Some(narrow)),
        (vec![&form], Some(outside)),
        (vec![&origin], Some(outside)),
        (vec![&logical(true)], Some(outside)),
    ] {
        let wires: Vec<Bytes> = messages.iter().map(|message| encode(message)).collect();
        let outcome = bench.follow(&told, Decoder::new(1, Streaming::Off), &wires);
        let expected = why.map_or(Outcome::Taken, Outcome::OutOfOrder);
        assert_eq!(outcome, expected, "{messages:?}");
    }
}
