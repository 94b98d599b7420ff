//! How many assignments per second one core hands out, and what it remembers of them: 4,096 nodes whose fetches end
//! at once. Prints one JSON object. `cargo run --release -p millstream-coordinator-core --example assignments_per_s`

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement prints its result and needs a clock"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use millstream_coordinator_core::event::{Action, DatasetFacts, Event, NodeInfo, Placement, Source};
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_types::{Crc64, DatasetId, Layout, NodeId, RunSet, StageId, Time};

const NODES: u32 = 4096;
const PIECE: u64 = 4 << 20;

fn main() {
    let extents: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1024);
    let extent_bytes = 16 * PIECE;
    let Some(layout) = Layout::new(PIECE, &vec![extent_bytes; extents as usize]) else {
        return;
    };
    let layout = Arc::new(layout);
    let dataset = DatasetId(0);
    let mut core = Core::new(CoreConfig { extent_bytes: Some(extent_bytes), ..CoreConfig::default() });
    let mut now = Time(0);
    let facts = DatasetFacts {
        layout: Arc::clone(&layout),
        shard_checksums: vec![None; layout.shards() as usize].into(),
        known: Vec::new(),
        learned: Vec::new(),
    };
    core.handle_event(now, Event::DatasetAdded { dataset, facts });
    for node in (0..NODES).map(NodeId) {
        let info = NodeInfo { name: format!("n{node}"), ..NodeInfo::default() };
        core.handle_event(now, Event::NodeUp { node, info });
    }
    let begun = Instant::now();
    core.handle_event(
        now,
        Event::StageRequested {
            stage: StageId(1),
            dataset,
            nodes: (0..NODES).map(NodeId).collect(),
            placement: Placement::Replicate,
            priority: 0,
        },
    );
    let stage_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let mut orders = VecDeque::new();
    let mut memory_max = 0;
    loop {
        while let Some(action) = core.poll_action() {
            match action {
                Action::Attach { node, .. } => {
                    let (pieces, sealed) = (RunSet::new(), RunSet::new());
                    core.handle_event(now, Event::Inventory { node, dataset, pieces, sealed });
                }
                Action::Assign { node, assignment } => orders.push_back((node, assignment)),
                _ => {}
            }
        }
        let Some((node, assignment)) = orders.pop_front() else {
            break;
        };
        now = now + 5;
        if assignment.source == Source::Origin {
            memory_max = memory_max.max(core.memory_bytes());
            let crcs = assignment.pieces.clone().map(|p| Crc64(u64::from(p))).collect();
            core.handle_event(now, Event::PiecesRead { node, dataset, first: assignment.pieces.start, crcs });
        }
        let bytes = layout.range_bytes(assignment.pieces.clone());
        let done =
            Event::AssignmentDone { node, assignment: assignment.id, bytes, elapsed_us: 5, source: assignment.source };
        core.handle_event(now, done);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let counters = core.counters();
    let pairs = f64::from(NODES) * extents as f64;
    println!(
        "{{\"nodes\":{NODES},\"extents\":{extents},\"assignments\":{},\"done\":{},\"seconds\":{seconds:.3},\
         \"stage_seconds\":{stage_s:.3},\"assignments_per_s\":{:.0},\"memory_bytes\":{memory_max},\
         \"memory_bytes_per_node_extent\":{:.3}}}",
        counters.assignments,
        counters.done,
        counters.assignments as f64 / seconds,
        memory_max as f64 / pairs,
    );
}
