//! The works: tables, rows that are there before, and the backlog that is to be drained.

mod hard;
mod large;
mod mapped;
mod shapes;
mod transactions;

use crate::arguments::Size;
use crate::contender::Contender;

/// One work. Sizes are chosen so that a subscription takes seconds for it: a start, a tenth of one,
/// is part of every run.
pub struct Workload {
    pub name: &'static str,
    /// With its size, for people.
    pub title: String,
    /// How many times as fast as a subscription it has to be.
    pub at_least: Option<f64>,
    /// Tables of both sides.
    pub schema: String,
    /// What only the replica has.
    pub replica_schema: String,
    /// What is there before the slots are made.
    pub seed: Vec<Step>,
    pub backlog: Vec<Step>,
    pub contenders: Vec<Contender>,
    pub mapping: Option<Mapping>,
    /// Each contender does it once, whatever `--pairs` says.
    pub is_once: bool,
}

/// Something a client of the source does.
pub enum Step {
    /// Statements of one string are one transaction, but for a lone block that commits by itself.
    Sql(String),
    /// TPC-B, by each client that many times.
    Pgbench { clients: u32, transactions: u32 },
}

/// How one work's tables come to their places on the replica.
pub struct Mapping {
    /// Rules, as in the configuration.
    pub tables: &'static str,
    /// What has to be equal then.
    pub compared: Vec<Compared>,
}

/// Two sets of rows that have to be equal, each as what stands behind FROM.
#[derive(Clone, Debug)]
pub struct Compared {
    pub on_source: String,
    pub on_replica: String,
}

impl Compared {
    pub fn same(table: &str) -> Self {
        Self {
            on_source: table.to_owned(),
            on_replica: table.to_owned(),
        }
    }
}

impl Workload {
    fn new(name: &'static str, title: String) -> Self {
        Self {
            name,
            title,
            at_least: None,
            schema: String::new(),
            replica_schema: String::new(),
            seed: Vec::new(),
            backlog: Vec::new(),
            contenders: vec![Contender::Native, Contender::Ours],
            mapping: None,
            is_once: false,
        }
    }

    fn at_least(self, times: f64) -> Self {
        Self {
            at_least: Some(times),
            ..self
        }
    }

    fn tables(self, schema: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            ..self
        }
    }

    fn seed(mut self, sql: impl Into<String>) -> Self {
        self.seed.push(Step::Sql(sql.into()));
        self
    }

    fn backlog(mut self, sql: impl Into<String>) -> Self {
        self.backlog.push(Step::Sql(sql.into()));
        self
    }

    /// Rules of the mapping that a contender runs with.
    pub fn rules(&self, contender: Contender) -> &'static str {
        match (&self.mapping, contender) {
            (Some(mapping), Contender::Mapped) => mapping.tables,
            _ => "",
        }
    }
}

/// All of them, in the order of the table.
pub fn all(size: Size) -> Vec<Workload> {
    vec![
        transactions::insert25(size),
        transactions::insert1(size),
        transactions::tpcb(size),
        large::insert(size),
        large::update(size),
        large::delete(size),
        shapes::indexes(size),
        shapes::wide(size),
        shapes::toast(size),
        hard::tables(size),
        hard::adversarial(size),
        hard::full_identity(size),
        mapped::people(size),
        hard::startup(size),
        large::memory(size),
    ]
}

/// A block that runs `body` for each `t` from 1 to `count`, each time in a transaction of its own.
fn transactions(count: u32, body: &str) -> String {
    format!("DO $do$ BEGIN FOR t IN 1..{count} LOOP {body} COMMIT; END LOOP; END $do$")
}

/// 1234567 as 1,234,567.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
