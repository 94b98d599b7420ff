//! Nodes by shards, bucketed to what fits on a screen.

use std::ops::Range;

use millstream_coordinator_core::holdings::StateCounts;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::usage;
use super::{Counts, Picture, add};
use crate::failure::RequestError;
use crate::limits::{LIST_OFFSET_MAX, MAP_SIDE_MAX};

/// Which part of the map, and how finely.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MapQuery {
    /// Rows at most.
    #[param(minimum = 1, maximum = 512)]
    pub(crate) rows: Option<u32>,
    /// Columns at most.
    #[param(minimum = 1, maximum = 512)]
    pub(crate) columns: Option<u32>,
    /// The first node, by its place in the order of names.
    #[param(maximum = 1_000_000_000)]
    pub(crate) first_node: Option<u32>,
    /// How many nodes from there on.
    #[param(minimum = 1, maximum = 1_000_000_000)]
    pub(crate) nodes: Option<u32>,
    /// The first shard, by number.
    #[param(maximum = 4_294_967_295_i64)]
    pub(crate) first_shard: Option<u32>,
    /// How many shards from there on.
    #[param(minimum = 1, maximum = 4_294_967_295_i64)]
    pub(crate) shards: Option<u32>,
}

impl MapQuery {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let side = |v: Option<u32>| v.is_some_and(|v| v == 0 || v > MAP_SIDE_MAX);
        for (field, value) in [("rows", self.rows), ("columns", self.columns)] {
            if side(value) {
                return Err(usage(field, format!("must be between 1 and {MAP_SIDE_MAX}")));
            }
        }
        for (field, value) in [("first_node", self.first_node), ("nodes", self.nodes)] {
            if value.is_some_and(|v| v > LIST_OFFSET_MAX) {
                return Err(usage(field, format!("must be at most {LIST_OFFSET_MAX}")));
            }
        }
        for (field, value) in [("nodes", self.nodes), ("shards", self.shards)] {
            if value == Some(0) {
                return Err(usage(field, "must be at least 1".into()));
            }
        }
        Ok(())
    }
}

/// Nodes by shards.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Map {
    dataset: String,
    /// Nodes that have or shall have something of it.
    nodes_total: u32,
    shards_total: u32,
    /// The part that is shown.
    first_node: u32,
    nodes: u32,
    first_shard: u32,
    shards: u32,
    /// One row shows so many nodes (fewer in the last).
    nodes_per_row: u32,
    /// One column shows so many shards (fewer in the last).
    shards_per_column: u32,
    /// Only every n-th shard was looked at; 1 is all of them.
    sampled_every: u32,
    /// Keys of the first shard of each column.
    columns: Vec<String>,
    rows: Vec<MapRow>,
    /// All pairs that are shown.
    totals: Counts,
}

/// Some nodes (or one) in the map.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MapRow {
    /// The node, or the first and the last.
    label: String,
    nodes: u32,
    /// Of those, given up for now.
    down: u32,
    /// Two characters for each cell. The letter: `b` something is bad; `o` all ready; `r` something is being received;
    /// `v` being verified; `q` queued; `m` missing (beside what is ready). The digit: tenths that are ready, rounded
    /// down, 9 for all.
    cells: String,
    counts: Counts,
}

impl Picture {
    pub(crate) fn map(&self, query: &MapQuery) -> Map {
        let layout = &self.sample.holdings.layout;
        let members = window(query.first_node, query.nodes, self.sample.names.len());
        let shards = window(query.first_shard, query.shards, layout.shards() as usize);
        let looked_at = |at: usize| at.div_ceil(self.step as usize);
        let indices = looked_at(shards.start)..looked_at(shards.end);
        let (rows, columns) = (query.rows.unwrap_or(64) as usize, query.columns.unwrap_or(128) as usize);
        let grid = self.states.grid(members.clone(), indices.clone(), rows, columns);
        let key = |i: usize| self.key(self.states.shards()[i]);
        let mut totals = [0; 6];
        let rows = (0..grid.rows).map(|row| {
            let first = members.start + row * grid.members_per_row;
            let of_row = first..(first + grid.members_per_row).min(members.end);
            let cells = &grid.cells[row * grid.columns..(row + 1) * grid.columns];
            let mut counts = [0; 6];
            cells.iter().for_each(|&c| add(&mut counts, c));
            add(&mut totals, counts);
            self.map_row(of_row, cells, counts)
        });
        let rows = rows.collect();
        Map {
            dataset: self.sample.dataset.dataset.clone(),
            nodes_total: self.sample.names.len() as u32,
            shards_total: layout.shards(),
            first_node: members.start as u32,
            nodes: members.len() as u32,
            first_shard: shards.start as u32,
            shards: shards.len() as u32,
            nodes_per_row: grid.members_per_row as u32,
            shards_per_column: grid.shards_per_column as u32 * self.step,
            sampled_every: self.step,
            columns: (0..grid.columns).map(|c| key(indices.start + c * grid.shards_per_column)).collect(),
            rows,
            totals: totals.into(),
        }
    }

    fn map_row(&self, members: Range<usize>, cells: &[StateCounts], counts: StateCounts) -> MapRow {
        let names = &self.sample.names[members.clone()];
        let label = match names {
            [only] => only.clone(),
            [first, .., last] => format!("{first} … {last}"),
            [] => String::new(),
        };
        MapRow {
            label,
            nodes: names.len() as u32,
            down: self.sample.down[members].iter().filter(|&&d| d).count() as u32,
            cells: cells.iter().flat_map(|c| cell(*c)).collect(),
            counts: counts.into(),
        }
    }
}

/// Two characters for one cell; see [`MapRow::cells`].
fn cell(counts: StateCounts) -> [char; 2] {
    let [_, queued, receiving, verifying, ready, bad] = counts;
    let all: u32 = counts.iter().sum();
    let letter = match () {
        () if bad > 0 => 'b',
        () if ready == all && all > 0 => 'o',
        () if receiving > 0 => 'r',
        () if verifying > 0 => 'v',
        () if queued > 0 => 'q',
        () => 'm',
    };
    let tenths = if ready == all { 9 } else { (u64::from(ready) * 10 / u64::from(all.max(1))).min(8) };
    [letter, char::from_digit(tenths as u32, 10).unwrap_or('0')]
}

fn window(first: Option<u32>, count: Option<u32>, all: usize) -> Range<usize> {
    let first = (first.unwrap_or(0) as usize).min(all);
    first..first.saturating_add(count.map_or(all, |c| c as usize)).min(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_the_worst_and_how_much_is_ready() {
        let text = |c: StateCounts| cell(c).iter().collect::<String>();
        assert_eq!(text([0, 0, 0, 0, 5, 0]), "o9");
        assert_eq!(text([0, 0, 0, 0, 5, 1]), "b8");
        assert_eq!(text([0, 9, 0, 0, 1, 0]), "q1");
        assert_eq!(text([0, 1, 1, 1, 97, 0]), "r8", "never all before all");
        assert_eq!(text([0, 1, 0, 1, 0, 0]), "v0");
        assert_eq!(text([3, 0, 0, 0, 1, 0]), "m2");
        assert_eq!(text([3, 0, 0, 0, 0, 0]), "m0");
    }

    #[test]
    fn windows_stay_inside() {
        assert_eq!(window(None, None, 7), 0..7);
        assert_eq!(window(Some(5), Some(9), 7), 5..7);
        assert_eq!(window(Some(9), Some(u32::MAX), 7), 7..7);
    }
}
