//! The simulated tables, the same on both sides, and what the pipeline has to know of them.

use crate::apply::model::{ModelTable, ModelTables};
use crate::catalog::{IdentityKind, Table, TableColumn, TableKind, UniqueKey};
use crate::conn::{ConnectionUrl, Endpoint, Session};
use crate::mapping::{Settings, compile, resolve};
use crate::pg::{
    Lsn, OperatorName, QualifiedName, RelationId, ReplicaIdentity, Side, TypeName, TypeNames,
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

fn catalogue(kind: &Kind) -> Table {
    let column = |name: &&str| TableColumn {
        name: (*name).to_owned(),
        type_oid: TEXT,
        base_type: text(),
        stored_as: "text".into(),
        equality: OperatorName::builtin_equality(),
        type_modifier: -1,
        not_null: false,
        has_default: false,
        is_generated: false,
        identity: IdentityKind::None,
    };
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
        fires_triggers: false,
        columns: kind.columns.iter().map(column).collect(),
        unique_keys: is_keyed.then_some(primary).into_iter().collect(),
    }
}

fn planned(kind: &Kind, types: &TypeNames) -> PlannedTable {
    let table = catalogue(kind);
    let resolved = resolve(&Settings::default(), &table.name).unwrap();
    let relation = relation_of(&table, None);
    let mapping = compile(&relation, types, &resolved, &table).unwrap();
    PlannedTable {
        mapping: Arc::new(mapping),
        resolved,
        published: PublishedTable {
            oid: kind.id,
            name: table.name.clone(),
            columns: None,
            row_filter: None,
            published_by: None,
        },
        source: table.clone(),
        replica: table,
        bytes: 0,
    }
}

/// Planned once, and lent to every start.
pub(super) struct Plan {
    pub(super) tables: BTreeMap<RelationId, PlannedTable>,
    types: TypeNames,
    config: PipelineConfig,
    pub(super) telemetry: Telemetry,
}

impl Plan {
    pub(super) fn new() -> Self {
        let types: TypeNames = HashMap::from([(TEXT, text())]);
        let endpoint = |side| {
            Endpoint::new(
                side,
                ConnectionUrl::parse(&"postgres://nobody@127.0.0.1:1/none".into()).unwrap(),
                "",
            )
        };
        let tables = KINDS.iter().map(|kind| (kind.id, planned(kind, &types)));
        Self {
            tables: tables.collect(),
            types,
            config: PipelineConfig {
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
            },
            telemetry: Telemetry::new("simulated"),
        }
    }

    /// As a start has them; the pools are never asked.
    pub(super) fn relations(
        &self,
        resumed_at: Lsn,
        copied_at: impl Fn(RelationId) -> Lsn,
    ) -> Relations {
        let pool = |endpoint: &Endpoint, session| endpoint.pool(session, 1).unwrap();
        let pools = (
            pool(&self.config.source, Session::SourceRead),
            pool(&self.config.replica, Session::ReplicaWrite),
        );
        let mut relations = Relations::new(&self.config, self.types.clone(), pools, resumed_at);
        for (id, table) in &self.tables {
            let state = TableState::Copied { at: copied_at(*id) };
            let telemetry = self
                .telemetry
                .table(&table.source.name, &table.replica.name);
            relations.add(table, state, telemetry);
        }
        relations
    }
}
