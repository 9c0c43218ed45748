//! The simulated tables, the same on both sides, and what the pipeline has to know of them.

use crate::apply::model::{ModelTable, ModelTables};
use crate::catalog::{IdentityKind, Table, TableColumn, TableKind, Triggers, TypeForm, UniqueKey};
use crate::conn::{ConnectionUrl, Endpoint, Pool, Session};
use crate::mapping::{MappingError, Settings, compile, resolve};
use crate::pg::{
    Lsn, OperatorName, QualifiedName, Relation, RelationId, ReplicaIdentity, Side, TypeName,
    TypeNames,
};
use crate::pipeline::relations::Relations;
use crate::pipeline::tables::relation_of;
use crate::pipeline::{PipelineConfig, PlannedTable};
use crate::progress::TableState;
use crate::replication::PublishedTable;
use crate::telemetry::Telemetry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const TEXT: u32 = 25;

/// What a table is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) id: RelationId,
    pub(super) columns: &'static [&'static str],
    /// Empty: the whole old row is logged.
    pub(super) key: &'static [usize],
    pub(super) unique: Option<usize>,
    /// Its values are stored apart, and not sent when an update leaves them alone.
    pub(super) toast: Option<usize>,
    /// It joined later: its copy is newer than the pipeline's position.
    pub(super) joins_later: bool,
}

pub(super) const LEADS: RelationId = 1;
pub(super) const TICKETS: RelationId = 2;
pub(super) const JOURNAL: RelationId = 3;
pub(super) const PAIRS: RelationId = 4;

pub(super) const KINDS: [Kind; 4] = [
    Kind {
        id: LEADS,
        columns: &["id", "name", "note"],
        key: &[0],
        unique: None,
        toast: Some(2),
        joins_later: false,
    },
    Kind {
        id: TICKETS,
        columns: &["id", "code", "note"],
        key: &[0],
        unique: Some(1),
        toast: Some(2),
        joins_later: true,
    },
    Kind {
        id: JOURNAL,
        columns: &["n", "note"],
        key: &[],
        unique: None,
        toast: Some(1),
        joins_later: false,
    },
    Kind {
        id: PAIRS,
        columns: &["a", "v", "b"],
        key: &[0, 2],
        unique: None,
        toast: None,
        joins_later: true,
    },
];

pub(super) fn kind(id: RelationId) -> &'static Kind {
    KINDS.iter().find(|kind| kind.id == id).unwrap()
}

/// All tables, empty.
pub(super) fn empty() -> ModelTables {
    let table = |kind: &Kind| ModelTable {
        rows: Vec::new(),
        unique: kind.unique.into_iter().collect(),
    };
    KINDS.iter().map(|kind| (kind.id, table(kind))).collect()
}

fn text() -> TypeName {
    TypeName(QualifiedName::new("pg_catalog", "text"))
}

fn column(name: &str) -> TableColumn {
    TableColumn {
        name: name.to_owned(),
        type_oid: TEXT,
        base_type: text(),
        form: TypeForm::default(),
        stored_as: "text".into(),
        equality: OperatorName::builtin_equality(),
        type_modifier: -1,
        not_null: false,
        has_default: false,
        is_generated: false,
        identity: IdentityKind::None,
    }
}

/// The table that a relation of a stream may be of, as far as the stream tells.
pub(in crate::pipeline) fn table_of(relation: &Relation) -> Table {
    let key: Vec<String> = relation
        .columns
        .iter()
        .filter(|column| column.is_key)
        .map(|column| column.name.clone())
        .collect();
    let is_keyed = !key.is_empty() && relation.replica_identity != ReplicaIdentity::Full;
    let key = UniqueKey {
        name: "key".into(),
        columns: key,
        is_primary: true,
        is_replica_identity: relation.replica_identity == ReplicaIdentity::Index,
        is_immediate: true,
    };
    Table {
        oid: relation.id,
        name: relation.name.clone(),
        kind: TableKind::Ordinary,
        is_unlogged: false,
        replica_identity: relation.replica_identity,
        row_security: false,
        has_rules: false,
        is_referred_to: false,
        triggers: Triggers::default(),
        columns: relation.columns.iter().map(|c| column(&c.name)).collect(),
        unique_keys: is_keyed.then_some(key).into_iter().collect(),
    }
}

fn catalogue(kind: &Kind) -> Table {
    let primary = UniqueKey {
        name: "pkey".into(),
        columns: kind
            .key
            .iter()
            .map(|p| kind.columns[*p].to_owned())
            .collect(),
        is_primary: true,
        is_replica_identity: false,
        is_immediate: true,
    };
    let is_keyed = !kind.key.is_empty();
    Table {
        oid: kind.id,
        name: QualifiedName::new("public", format!("t{}", kind.id)),
        kind: TableKind::Ordinary,
        is_unlogged: false,
        replica_identity: if is_keyed {
            ReplicaIdentity::Default
        } else {
            ReplicaIdentity::Full
        },
        row_security: false,
        has_rules: false,
        is_referred_to: false,
        triggers: Triggers::default(),
        columns: kind.columns.iter().map(|name| column(name)).collect(),
        unique_keys: is_keyed.then_some(primary).into_iter().collect(),
    }
}

/// To a table just like it.
pub(in crate::pipeline) fn planned(
    table: Table,
    relation: &Relation,
    types: &TypeNames,
) -> Result<PlannedTable, MappingError> {
    let resolved = resolve(&Settings::default(), &table.name).unwrap();
    let mapping = compile(relation, types, &resolved, &table)?;
    Ok(PlannedTable {
        mapping: Arc::new(mapping),
        resolved,
        published: PublishedTable {
            oid: table.oid,
            name: table.name.clone(),
            columns: None,
            row_filter: None,
            published_by: None,
        },
        source: table.clone(),
        replica: table,
        bytes: 0,
    })
}

/// Of a pipeline between two databases that nobody can reach.
pub(in crate::pipeline) fn config() -> PipelineConfig {
    let endpoint = |side| {
        Endpoint::new(
            side,
            ConnectionUrl::parse(&"postgres://nobody@127.0.0.1:1/none".into()).unwrap(),
            "",
        )
    };
    PipelineConfig {
        name: "simulated".into(),
        source: endpoint(Side::Source),
        replica: endpoint(Side::Replica),
        publication: "p".into(),
        slot: "s".into(),
        failover: false,
        replica_pool_max: 1,
        slot_lock_timeout_ms: 0,
        mapping: Settings::default(),
        copy: crate::snapshot::Settings::default(),
        apply: crate::apply::Settings::default(),
        retry: crate::pipeline::RetrySettings::default(),
        slot_budget: crate::pipeline::SlotBudget::default(),
        holdback: std::time::Duration::ZERO,
    }
}

/// Its pools; they are opened when they are asked.
pub(in crate::pipeline) fn pools(config: &PipelineConfig) -> (Pool, Pool) {
    let pool = |endpoint: &Endpoint, session| endpoint.pool(session, 1).unwrap();
    (
        pool(&config.source, Session::SourceRead),
        pool(&config.replica, Session::ReplicaWrite),
    )
}

/// Planned once, and lent to every start.
pub(in crate::pipeline) struct Plan {
    pub(in crate::pipeline) tables: BTreeMap<RelationId, PlannedTable>,
    types: TypeNames,
    config: PipelineConfig,
}

impl Plan {
    pub(in crate::pipeline) fn new() -> Self {
        let types: TypeNames = HashMap::from([(TEXT, text())]);
        let plan = |kind: &Kind| {
            let table = catalogue(kind);
            let relation = relation_of(&table, None);
            (kind.id, planned(table, &relation, &types).unwrap())
        };
        let tables = KINDS.iter().map(plan);
        Self {
            tables: tables.collect(),
            types,
            config: config(),
        }
    }

    /// As a start has them; the pools are never asked.
    pub(super) fn relations(
        &self,
        resumed_at: Lsn,
        copied_at: impl Fn(RelationId) -> Lsn,
        telemetry: &Telemetry,
    ) -> Relations {
        let pools = pools(&self.config);
        let mut relations = Relations::new(&self.config, self.types.clone(), pools, resumed_at);
        for (id, table) in &self.tables {
            let state = TableState::Copied { at: copied_at(*id) };
            let of_table = telemetry.table(&table.source.name, &table.replica.name);
            relations.add(table, state, of_table);
        }
        relations
    }
}
