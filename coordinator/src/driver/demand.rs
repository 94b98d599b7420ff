//! What nodes ask for themselves: a reader there waits for shards that no stage brings.

use millstream_coordinator_core::event::Event;
use millstream_proto::v1;
use millstream_types::size::format_size;
use millstream_types::{RunSet, Time};

use super::State;
use super::requests::Asked;
use crate::failure::RequestError;
use crate::limits::WANTED_KEYS_MAX;

impl State {
    /// Has shards brought to a node, or with none only the version opened there. Asked again, it says whether they still
    /// will be.
    pub(crate) fn want(&mut self, now: Time, request: &v1::WantRequest) -> Asked<v1::WantReply> {
        let unknown = || RequestError::UnknownNodes { names: vec![crate::nodes::short(&request.node)] };
        let node = self.nodes.find(&request.node).filter(|n| n.session.is_some()).ok_or_else(unknown)?.id;
        if request.keys.len() > WANTED_KEYS_MAX {
            return Err(RequestError::TooMany { what: "keys in one request", limit: WANTED_KEYS_MAX });
        }
        let version = self.select(&request.dataset)?;
        let (dataset, name) = (version.id, version.record.name.to_string());
        let mut shards = RunSet::new();
        for key in &request.keys {
            let Some((shard, _)) = version.manifest.find(key) else {
                return Err(RequestError::UnknownKey { dataset: name, key: crate::nodes::short(key) });
            };
            shards.insert(shard);
        }
        let will_not_come = |problem| RequestError::WillNotCome(Box::new(problem));
        if let Some(failed) = self.core.failures(dataset).into_iter().find(|f| shards.contains(f.shard)) {
            return Err(will_not_come(self.shard_problem(dataset, node, &failed)));
        }
        let none = || RequestError::UnknownDataset { selector: name.clone(), hint: String::new() };
        let demand = self.core.demand(dataset, node, &shards).ok_or_else(none)?;
        // What a stage wanted and the node refused takes another stage. Else asking anew is trying anew.
        if demand.refused.is_some() || request.again {
            if let Some(problem) = self.node_problem(dataset, node) {
                return Err(will_not_come(problem));
            }
        } else {
            self.refusals.remove(&(dataset, node));
        }
        if let Some(reason) = demand.refused {
            return Err(RequestError::Conflict {
                reason: format!("{} takes nothing of {name}: {reason}", request.node),
                next: format!("see `millstream status {name}`; stage it there again once that is mended"),
            });
        }
        if let Some((needed, free)) = demand.no_room {
            let what = format!("what a reader of {name} has open at a time");
            return Err(RequestError::NoRoom { what, node: request.node.clone(), needed, free });
        }
        if request.announced && !request.again && demand.bytes_more > 0 {
            // The question overtook what the node's session says of its readers: it will come within their room.
            let wanted_bytes = demand.bytes_wanted - demand.bytes_more;
            return Ok(v1::WantReply { dataset: name, wanted_bytes, waits_for: String::new() });
        }
        if demand.bytes_more > request.free_bytes {
            return Err(RequestError::NoRoom {
                what: format!("{:?} of {name}", request.keys.first().map_or("", String::as_str)),
                node: request.node.clone(),
                needed: demand.bytes_more,
                free: request.free_bytes,
            });
        }
        self.event(now, Event::ShardsDemanded { node, dataset, shards });
        let turn = |(open, room): (u64, u64)| {
            let (open, room) = (format_size(open), format_size(room));
            format!("its reader waits for its turn: those before it have {open} open, of {room} for readers there")
        };
        let waits_for = demand.turn.map(turn).unwrap_or_default();
        Ok(v1::WantReply { dataset: name, wanted_bytes: demand.bytes_wanted, waits_for })
    }
}
