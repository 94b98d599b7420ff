//! What the core orders, carried out: messages to agents, changes to the store, words for people.

use millstream_coordinator_core::event::{Action, Assignment, Event, NodeState, Note, ShardFailure, Source};
use millstream_proto::convert::{self, WireSource};
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, CoordinatorMessage};
use millstream_types::{Crc64, DatasetId, NodeId, PieceNo, Time};

use super::State;
use crate::limits::BATCH_MESSAGES_MAX;
use crate::observe::events::{Kind, Severity, Telling};

/// Checksums in one batch: keeps a batch below the largest gRPC message (8 bytes each).
const BATCH_CHECKSUMS_MAX: usize = 1 << 20;

impl State {
    /// Drains the core and sends what has gathered: one message per node.
    pub(super) fn carry_out(&mut self, now: Time) {
        self.drain();
        // A session that overflows makes the core act, and its orders gather for others.
        while let Some(node) = self.unsent.pop_first() {
            if !self.flush(node) {
                self.counters.overflows += 1;
                if let Some(known) = self.nodes.get_mut(node) {
                    known.session = None;
                }
                self.lost(now, node, "it does not read its orders fast enough");
                // The orders in its queue are lost with it, and nobody knows which: all of its work is handed out anew.
                self.event(now, Event::NodeGone { node });
                self.drain();
            }
        }
    }

    pub(super) fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            self.carry_out_one(action);
        }
    }

    /// Takes only what the core tells people, and drops its orders: nobody is there to take them.
    pub(crate) fn take_notes(&mut self) {
        while let Some(action) = self.core.poll_action() {
            if let Action::Note(note) = action {
                self.take_note(note);
            }
        }
    }

    /// Queues an order for the end of the round.
    pub(super) fn send(&mut self, node: NodeId, order: Order) {
        if self.nodes.get_mut(node).is_some_and(|n| n.send(order)) {
            self.unsent.insert(node);
        }
    }

    fn flush(&mut self, node: NodeId) -> bool {
        let Some(known) = self.nodes.get_mut(node) else {
            return true;
        };
        let Some(session) = &mut known.session else {
            return true;
        };
        let mut pending = std::mem::take(&mut session.pending);
        if pending.len() == 1 {
            return pending.pop().is_none_or(|only| known.push(only));
        }
        let mut rest = pending.into_iter().peekable();
        while rest.peek().is_some() {
            let mut messages = Vec::new();
            let mut checksums = 0;
            while messages.len() < BATCH_MESSAGES_MAX && checksums < BATCH_CHECKSUMS_MAX {
                let Some(message) = rest.next() else { break };
                if let Some(Order::Checksums(c)) = &message.body {
                    checksums += c.crcs.len();
                }
                messages.push(message);
            }
            let batch = Order::Batch(v1::CoordinatorBatch { messages });
            if !known.push(CoordinatorMessage { body: Some(batch) }) {
                return false;
            }
        }
        true
    }

    fn carry_out_one(&mut self, action: Action) {
        match action {
            Action::Attach { node, dataset, wanted_bytes } => self.attach(node, dataset, Some(wanted_bytes)),
            Action::Assign { node, assignment } => self.assign(node, &assignment),
            Action::Cancel { node, assignment } => {
                let assignment = assignment.0;
                self.send(node, Order::Cancel(v1::CancelAssignment { assignment }));
            }
            Action::Checksums { to, dataset, first, crcs } => self.send_checksums(&to, dataset, first, &crcs),
            Action::PersistChecksums { dataset, first, crcs } => {
                if let Some(known) = self.datasets.get(dataset) {
                    self.store.learn(known.manifest.digest(), first, &crcs);
                }
            }
            Action::DiscardShard { to, dataset, shard, reason, fatal } => {
                self.discard(&to, dataset, shard, reason, fatal)
            }
            Action::DropShards { node, dataset, shards, waiting } => {
                let (dataset, shards) = (dataset.0, Some(convert::set_to_runs(&shards)));
                self.send(node, Order::Drop(v1::DropShards { dataset, shards, waiting }));
            }
            Action::AskOrigin { dataset, shards } => self.ask_origin(dataset, shards),
            Action::Evict { node, dataset } => self.detach(node, dataset),
            Action::Note(note) => self.take_note(note),
        }
    }

    /// Attaches a version to a node; `wanted_bytes`: a stage wants it there.
    pub(super) fn attach(&mut self, node: NodeId, dataset: DatasetId, wanted_bytes: Option<u64>) {
        let Some(version) = self.datasets.get(dataset) else {
            return;
        };
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        let Some(session) = &mut known.session else {
            return;
        };
        let again = !session.attached.insert(dataset);
        if again && wanted_bytes.is_none() {
            return;
        }
        let attach = v1::Attach {
            dataset: dataset.0,
            digest: version.manifest.digest().0.to_vec(),
            name: version.record.name.to_string(),
            wanted: wanted_bytes.is_some_and(|bytes| bytes > 0),
            wanted_bytes: wanted_bytes.unwrap_or(0),
            pinned: version.pins.contains_key(&known.name),
        };
        self.send(node, Order::Attach(attach));
    }

    /// Tells a node to remove a version from its disk.
    pub(super) fn detach(&mut self, node: NodeId, dataset: DatasetId) {
        let session = self.nodes.get_mut(node).and_then(|n| n.session.as_mut());
        if let Some(session) = session {
            session.attached.remove(&dataset);
        }
        let dataset = dataset.0;
        let evict = true;
        self.send(node, Order::Detach(v1::Detach { dataset, evict }));
    }

    fn assign(&mut self, node: NodeId, assignment: &Assignment) {
        let alternates = assignment.alternates.iter().filter_map(|&peer| self.wire_source(Source::Peer(peer)));
        let alternates: Vec<_> = alternates.collect();
        // A source that has no address was never here; the core hears of it when the agent gives the order back.
        let source = self.wire_source(assignment.source);
        let order = v1::Assign {
            assignment: assignment.id.0,
            dataset: assignment.dataset.0,
            first: assignment.pieces.start,
            pieces: assignment.pieces.end - assignment.pieces.start,
            source,
            alternates,
            lease_ms: u32::try_from(assignment.lease_us / 1_000).unwrap_or(u32::MAX),
            priority: assignment.priority,
        };
        self.send(node, Order::Assign(order));
    }

    fn wire_source(&self, source: Source) -> Option<v1::Source> {
        match source {
            Source::Origin => Some(WireSource::Origin.into()),
            Source::Peer(peer) => {
                let peer = self.nodes.get(peer)?;
                let (node, address) = (peer.name.clone(), peer.address().to_owned());
                (!address.is_empty()).then(|| WireSource::Peer { node, address }.into())
            }
        }
    }

    fn send_checksums(&mut self, to: &[NodeId], dataset: DatasetId, first: PieceNo, crcs: &[Crc64]) {
        for (part, crcs) in crcs.chunks(BATCH_CHECKSUMS_MAX).enumerate() {
            let message = v1::PieceChecksums {
                dataset: dataset.0,
                first: first + (part * BATCH_CHECKSUMS_MAX) as PieceNo,
                crcs: convert::crcs_to_wire(crcs),
            };
            for &node in to {
                self.send(node, Order::Checksums(message.clone()));
            }
        }
    }

    fn discard(&mut self, to: &[NodeId], dataset: DatasetId, shard: u32, reason: String, fatal: bool) {
        if let Some(known) = self.datasets.get(dataset)
            && shard < known.manifest.layout().shards()
        {
            let pieces = known.manifest.layout().shard_pieces(shard);
            self.store.forget(known.manifest.digest(), pieces);
        }
        if let Some(&node) = to.first() {
            let what = if fatal { "given up" } else { "discarded and read again" };
            let kind = if fatal { Kind::ShardFailed } else { Kind::Discarded };
            self.tell_shard(kind, node, dataset, shard, &format!("{what}: {reason}"));
        }
        for &node in to {
            let order = v1::DiscardShard { dataset: dataset.0, shard, reason: reason.clone(), fatal };
            self.send(node, Order::Discard(order));
        }
    }

    fn take_note(&mut self, note: Note) {
        match note {
            Note::StageFinished { stage, ok } => {
                let Some(known) = self.stages.get(&stage) else {
                    return;
                };
                let dataset = known.dataset;
                self.watchers.touch(dataset);
                let state = if ok { "is ready" } else { "failed" };
                let name = self.dataset_name(dataset);
                let text = format!("stage {stage} of {name} {state}");
                let (kind, severity) =
                    if ok { (Kind::StageDone, Severity::Info) } else { (Kind::StageFailed, Severity::Error) };
                self.tell(Telling::new(kind, severity, text).dataset(name));
            }
            Note::ShardFailed { dataset, failure } => {
                self.watchers.touch(dataset);
                let text = self.shard_failure_words(dataset, &failure);
                let name = self.dataset_name(dataset);
                self.tell(Telling::new(Kind::ShardFailed, Severity::Error, text).dataset(name));
            }
            Note::Quarantined { node, kind, for_us } => {
                let text = format!(
                    "{} is avoided as a source for {} s ({})",
                    self.nodes.name(node),
                    for_us / 1_000_000,
                    kind.as_str()
                );
                let name = self.nodes.name(node).to_owned();
                self.tell(Telling::new(Kind::Quarantined, Severity::Warning, text).node(name));
            }
            Note::LeaseExpired { node, dataset, pieces } => {
                let which = match pieces.len() {
                    1 => format!("piece {}", pieces.start),
                    _ => format!("pieces {} to {}", pieces.start, pieces.end.saturating_sub(1)),
                };
                let (name, dataset_name) = (self.nodes.name(node), self.dataset_name(dataset));
                let text = format!("{name} did not read {which} of {dataset_name} in time; another node does");
                let telling = Telling::new(Kind::LeaseExpired, Severity::Warning, text);
                let (name, node) = (self.dataset_name(dataset), self.nodes.name(node).to_owned());
                self.tell(telling.dataset(name).node(node));
            }
            Note::GoDirect { dataset, direct, reason } => {
                let how = if direct { "the origin directly" } else { "peers" };
                let text = format!("{} is read from {how}: {reason}", self.dataset_name(dataset));
                let name = self.dataset_name(dataset);
                self.tell(Telling::new(Kind::WentDirect, Severity::Info, text).dataset(name));
            }
            Note::NodeState { node, state } => self.node_state(node, state),
        }
    }

    fn node_state(&mut self, node: NodeId, state: NodeState) {
        if state == NodeState::Down
            && let Some(known) = self.nodes.get_mut(node)
        {
            // Its work was handed to others: should it only have been silent, it must begin anew with an inventory.
            known.session = None;
        }
        let (kind, severity) = match state {
            NodeState::Up => (Kind::NodeUp, Severity::Info),
            NodeState::Suspect => (Kind::NodeSuspect, Severity::Warning),
            NodeState::Down => (Kind::NodeDown, Severity::Warning),
        };
        let name = self.nodes.name(node).to_owned();
        self.tell(Telling::new(kind, severity, format!("{name} is {}", state.as_str())).node(name));
    }

    pub(super) fn tell_shard(&mut self, kind: Kind, node: NodeId, dataset: DatasetId, shard: u32, what: &str) {
        let text = format!(
            "shard {:?} of {} on {}: {what}",
            self.shard_key(dataset, shard),
            self.dataset_name(dataset),
            self.nodes.name(node)
        );
        let (name, node) = (self.dataset_name(dataset), self.nodes.name(node).to_owned());
        let severity = if kind == Kind::Repaired { Severity::Info } else { Severity::Error };
        self.tell(Telling::new(kind, severity, text).dataset(name).node(node));
    }

    /// `name@version` of a number, for people.
    pub(crate) fn dataset_name(&self, dataset: DatasetId) -> String {
        match self.datasets.get(dataset) {
            Some(known) => known.record.name.to_string(),
            None => format!("dataset {dataset}"),
        }
    }

    /// The key of a shard, for people.
    pub(crate) fn shard_key(&self, dataset: DatasetId, shard: u32) -> String {
        let known = self.datasets.get(dataset);
        let entry = known.and_then(|d| d.manifest.shards().get(shard as usize));
        entry.map_or_else(|| format!("#{shard}"), |s| s.key.to_string())
    }

    /// `origin`, or the peer's name.
    pub(crate) fn source_name(&self, source: Source) -> String {
        match source {
            Source::Origin => "origin".into(),
            Source::Peer(node) => self.nodes.name(node).to_owned(),
        }
    }

    /// A failed shard in one sentence: key, piece, expected, actual, source.
    pub(crate) fn shard_failure_words(&self, dataset: DatasetId, failure: &ShardFailure) -> String {
        let mut text = format!(
            "shard {:?} of {} failed: {}",
            self.shard_key(dataset, failure.shard),
            self.dataset_name(dataset),
            failure.detail
        );
        if let Some(piece) = failure.piece {
            text.push_str(&format!("; piece {piece}"));
        }
        if !failure.expected.is_empty() {
            text.push_str(&format!("; expected {}, got {}", failure.expected, failure.actual));
        }
        text.push_str(&format!("; source {}", self.source_name(failure.source)));
        text
    }

    /// Feeds the core and carries nothing out yet.
    pub(crate) fn event(&mut self, now: Time, event: Event) {
        self.core.handle_event(now, event);
    }
}
