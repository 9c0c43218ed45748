//! What a piece of work did to the rows, so that it can be done again beside other work: as a
//! transaction's row versions stand beside those that others commit meanwhile.

use crate::apply::model::{ModelTables, Row};
use crate::pg::RelationId;

/// Rows that went and rows that came, table by table.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects(Vec<(RelationId, Vec<Row>, Vec<Row>)>);

impl Effects {
    /// What leads from one state to another.
    pub(super) fn between(before: &ModelTables, after: &ModelTables) -> Self {
        let of_table = |id: &RelationId| {
            let (gone, come) = (&before[id].rows, &after[id].rows);
            (*id, less(gone, come), less(come, gone))
        };
        let all = before.keys().map(of_table);
        Self(
            all.filter(|(_, gone, come)| !gone.is_empty() || !come.is_empty())
                .collect(),
        )
    }

    /// Does the same to another state. A row that is not there does not go.
    pub(super) fn add_to(&self, tables: &mut ModelTables) {
        for (id, gone, come) in &self.0 {
            let rows = &mut tables.get_mut(id).unwrap().rows;
            for row in gone {
                if let Some(place) = rows.iter().position(|other| other == row) {
                    rows.remove(place);
                }
            }
            rows.extend(come.iter().cloned());
        }
    }
}

/// Rows without others, each as often as it is there more often.
fn less(rows: &[Row], others: &[Row]) -> Vec<Row> {
    let mut left = rows.to_vec();
    for row in others {
        if let Some(place) = left.iter().position(|other| other == row) {
            left.swap_remove(place);
        }
    }
    left
}
