//! What agents say, checked and turned into events of the core.
//!
//! Goals: nothing that an agent sends can name a piece, shard, version or node that does not exist; what cannot be
//! understood is counted and dropped, never acted on.

use std::sync::Arc;

use millstream_coordinator_core::ReaderReport;
use millstream_coordinator_core::event::{Event, Failure, FailureKind, Source};
use millstream_proto::convert::{self, ConvertError, WireSource};
use millstream_proto::v1;
use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_types::size::counted;
use millstream_types::{AssignmentId, Crc64, DatasetId, Manifest, NodeId, Time};

use super::State;
use crate::failure::ExitCode;
use crate::nodes::details::Details;
use crate::nodes::short;
use crate::observe::events::{Kind, Severity, Telling};

type Checked<T> = Result<T, ConvertError>;

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Checked<T> {
    Err(ConvertError { field, reason: reason.into() })
}

impl State {
    pub(super) fn take_message(&mut self, now: Time, node: NodeId, body: Body) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.last_seen = now;
        }
        if let Body::Batch(batch) = body {
            for body in batch.messages.into_iter().filter_map(|m| m.body) {
                self.take_one(now, node, body);
            }
            return;
        }
        self.take_one(now, node, body);
    }

    fn take_one(&mut self, now: Time, node: NodeId, body: Body) {
        if let Err(error) = self.understand(now, node, body) {
            self.counters.refused_messages += 1;
            tracing::warn!(node = self.nodes.name(node), %error, "dropped a message of an agent");
        }
    }

    fn understand(&mut self, now: Time, node: NodeId, body: Body) -> Checked<()> {
        let event = match body {
            Body::Heartbeat(heartbeat) => {
                self.take_heartbeat(now, node, heartbeat);
                return Ok(());
            }
            Body::Inventory(inventory) => return self.take_inventory(now, node, inventory),
            Body::Done(done) => {
                let source = self.source("source", done.source.as_ref())?;
                self.observed.links.moved(now, source, node, done.bytes);
                let assignment = AssignmentId(done.assignment);
                if let Some(dataset) = self.core.assigned_dataset(assignment, node) {
                    self.jobs.moved(dataset, node, done.bytes, source);
                }
                Event::AssignmentDone { node, assignment, bytes: done.bytes, elapsed_us: done.elapsed_us, source }
            }
            Body::Failed(failed) => {
                let event = self.assignment_failed(node, failed)?;
                if let Event::AssignmentFailed { assignment, ref failure, .. } = event
                    && let Some(dataset) = self.core.assigned_dataset(assignment, node)
                {
                    self.wrong_bytes(node, dataset, failure, "not taken; the coordinator has it fetched again");
                }
                event
            }
            Body::Checksums(checksums) => self.pieces_read(node, &checksums)?,
            Body::Sealed(sealed) => {
                let (dataset, manifest) = self.version(sealed.dataset)?;
                let runs = sealed.shards.unwrap_or_default();
                let shards = convert::runs_within(&runs, manifest.layout().shards())?;
                self.watchers.touch(dataset);
                self.jobs.touch(dataset);
                self.shards_sealed(now, node, dataset, shards);
                return Ok(());
            }
            Body::Lost(lost) => {
                let (dataset, shard) = self.shard(lost.dataset, lost.shard)?;
                let reason = short(&lost.reason);
                self.tell_shard(Kind::Lost, node, dataset, shard, &format!("lost: {reason}"));
                self.observed.lost(dataset, node, shard);
                self.on_disk(node, dataset, shard, &reason);
                Event::ShardLost { node, dataset, shard, reason }
            }
            Body::Problem(problem) => {
                let (dataset, shard) = self.shard(problem.dataset, problem.shard)?;
                let (expected, actual) = (short(&problem.expected), short(&problem.actual));
                self.not_whole(node, dataset, shard, [&expected, &actual]);
                Event::ShardMismatch { node, dataset, shard, expected, actual }
            }
            Body::Storage(storage) => self.storage_refused(node, storage)?,
            Body::SourceFailed(failed) => {
                let (dataset, _) = self.version(failed.dataset)?;
                let failure = self.failure(failed.failure.as_ref())?;
                self.wrong_bytes(node, dataset, &failure, "not taken; read from another source at once");
                Event::SourceFailed { node, dataset, failure }
            }
            Body::Verified(report) => {
                self.verify_report(node, report);
                return Ok(());
            }
            Body::Evicted(evicted) => {
                let Ok((dataset, _)) = self.version(evicted.dataset) else {
                    // Of a version that was removed: nobody waits for it.
                    return Ok(());
                };
                let gone = evicted.refused.is_empty();
                self.evicted(node, dataset, evicted);
                if gone { Event::Evicted { node, dataset } } else { Event::EvictionRefused { node, dataset } }
            }
            Body::Reader(moved) => self.reader_moved(node, moved)?,
            Body::ReaderGone(gone) => {
                let (dataset, _) = self.version(gone.dataset)?;
                Event::ReaderGone { node, dataset, reader: gone.reader }
            }
            Body::Dropped(answer) => {
                let (dataset, manifest) = self.version(answer.dataset)?;
                let shards = manifest.layout().shards();
                let dropped = convert::runs_within(&answer.dropped.unwrap_or_default(), shards)?;
                let kept = convert::runs_within(&answer.kept.unwrap_or_default(), shards)?;
                Event::ShardsDropped { node, dataset, dropped, kept }
            }
            Body::Leaving(_) => {
                self.leaving(now, node);
                return Ok(());
            }
            Body::Details(details) => {
                let details = Details::parse(details)?;
                if let Some(known) = self.nodes.get_mut(node) {
                    known.details = details;
                }
                return Ok(());
            }
            Body::Hello(_) => return refuse("hello", "a second greeting"),
            Body::Batch(_) => return refuse("batch", "a batch within a batch"),
        };
        self.core.handle_event(now, event);
        Ok(())
    }

    fn take_heartbeat(&mut self, now: Time, node: NodeId, heartbeat: v1::Heartbeat) {
        let (used_bytes, capacity_bytes) = (heartbeat.used_bytes, heartbeat.capacity_bytes);
        let sequence = heartbeat.sequence;
        let before = self.nodes.get(node).map(|n| n.report.moved());
        if let Some(known) = self.nodes.get_mut(node) {
            let fell_back = known.take_report(now, heartbeat);
            self.tell_fallbacks(node, fell_back);
        }
        let after = self.nodes.get(node).map(|n| n.report.moved());
        if let (Some(before), Some(after)) = (before, after)
            && after.checksum_failures > before.checksum_failures
        {
            let new = after.checksum_failures - before.checksum_failures;
            let name = self.nodes.name(node).to_owned();
            let text = format!("{name} received bytes that do not match their checksum ({})", counted(new, "time"));
            self.tell(Telling::new(Kind::Checksum, Severity::Error, text).node(name));
        }
        let speeds = self.nodes.get(node).map(|n| (n.report.link.bytes_per_s, n.report.disk.bytes_per_s));
        let (link_bytes_per_s, disk_bytes_per_s) = speeds.unwrap_or_default();
        self.core.handle_event(
            now,
            Event::Heartbeat { node, used_bytes, capacity_bytes, link_bytes_per_s, disk_bytes_per_s },
        );
        self.send(node, Order::HeartbeatAck(v1::HeartbeatAck { sequence }));
    }

    fn take_inventory(&mut self, now: Time, node: NodeId, inventory: v1::Inventory) -> Checked<()> {
        let digest = convert::digest("digest", &inventory.digest)?;
        if self.removed.contains_key(&digest) {
            return Ok(());
        }
        let (dataset, manifest) = self.version(inventory.dataset)?;
        if manifest.digest() != digest {
            return refuse("digest", format!("{digest} is not dataset {dataset}"));
        }
        let layout = manifest.layout();
        let pieces = convert::runs_within(&inventory.pieces.unwrap_or_default(), layout.pieces())?;
        let sealed = convert::runs_within(&inventory.sealed_shards.unwrap_or_default(), layout.shards())?;
        // What it read before we restarted comes first, so that its pieces are known when they are counted.
        for read in inventory.origin_read {
            let read = v1::PieceChecksums { dataset: inventory.dataset, ..read };
            let event = self.pieces_read(node, &read)?;
            self.core.handle_event(now, event);
        }
        self.watchers.touch(dataset);
        self.jobs.touch(dataset);
        let event = Event::Inventory { node, dataset, pieces, sealed };
        self.core.handle_event(now, event);
        Ok(())
    }

    fn pieces_read(&self, node: NodeId, read: &v1::PieceChecksums) -> Checked<Event> {
        let (dataset, manifest) = self.version(read.dataset)?;
        let (first, crcs) = convert::crcs_within(read, manifest.layout().pieces())?;
        Ok(Event::PiecesRead { node, dataset, first, crcs })
    }

    fn reader_moved(&self, node: NodeId, moved: v1::ReaderMoved) -> Checked<Event> {
        let (dataset, manifest) = self.version(moved.dataset)?;
        let shards = manifest.layout().shards();
        if let Some(shard) = moved.upcoming.iter().find(|&&s| s >= shards) {
            return refuse("upcoming", format!("{shard} is no shard of dataset {dataset}"));
        }
        let finished = convert::runs_within(&moved.finished.unwrap_or_default(), shards)?;
        let report = ReaderReport {
            reader: moved.reader,
            restart: moved.restart,
            upcoming: moved.upcoming,
            finished: finished.iter().collect(),
            room_bytes: moved.room_bytes,
            others: moved.others.iter().map(|other| (DatasetId(other.dataset), other.bytes)).collect(),
            open: moved.open,
        };
        Ok(Event::ReaderMoved { node, dataset, report })
    }

    fn assignment_failed(&self, node: NodeId, failed: v1::AssignmentFailed) -> Checked<Event> {
        // An assignment that is given back must be taken back, however odd its reason: it hangs otherwise.
        let failure = self.failure(failed.failure.as_ref());
        let failure = failure.unwrap_or_else(|error| {
            Failure::new(FailureKind::Cancelled, Source::Origin, format!("no usable reason ({error})"))
        });
        Ok(Event::AssignmentFailed {
            node,
            assignment: AssignmentId(failed.assignment),
            missing: convert::runs_to_set(&failed.missing.unwrap_or_default()).unwrap_or_default(),
            failure,
        })
    }

    fn storage_refused(&mut self, node: NodeId, storage: v1::StorageReport) -> Checked<Event> {
        let (dataset, _) = self.version(storage.dataset)?;
        let kind = match FailureKind::parse(&storage.state) {
            Some(kind @ (FailureKind::NoSpace | FailureKind::Disk)) => kind,
            // The node cannot, whatever it calls it.
            _ => FailureKind::Disk,
        };
        let reason = short(&storage.reason);
        let code = match kind {
            FailureKind::NoSpace => ExitCode::NoSpace,
            _ => ExitCode::Other,
        };
        let text = format!("{} cannot take {}: {reason}", self.nodes.name(node), self.dataset_name(dataset));
        let (name, of) = (self.nodes.name(node).to_owned(), self.dataset_name(dataset));
        self.tell(Telling::new(Kind::Refused, Severity::Error, text).dataset(of).node(name));
        self.refusals.insert((dataset, node), (code, reason.clone()));
        self.watchers.touch(dataset);
        Ok(Event::NodeRefused { node, dataset, kind, reason })
    }

    fn version(&self, wire: u32) -> Checked<(DatasetId, Arc<Manifest>)> {
        let id = DatasetId(wire);
        match self.datasets.get(id) {
            Some(dataset) => Ok((id, dataset.manifest.clone())),
            None => refuse("dataset", format!("{wire} is no version")),
        }
    }

    fn shard(&self, dataset: u32, shard: u32) -> Checked<(DatasetId, u32)> {
        let (id, manifest) = self.version(dataset)?;
        if shard < manifest.layout().shards() {
            return Ok((id, shard));
        }
        refuse("shard", format!("{shard} is no shard of dataset {dataset}"))
    }

    fn source(&self, field: &'static str, wire: Option<&v1::Source>) -> Checked<Source> {
        match convert::source(field, wire)? {
            WireSource::Origin => Ok(Source::Origin),
            WireSource::Peer { node, .. } => match self.nodes.find(&node) {
                Some(known) => Ok(Source::Peer(known.id)),
                None => refuse(field, format!("{node:?} is no node")),
            },
        }
    }

    fn failure(&self, wire: Option<&v1::Failure>) -> Checked<Failure> {
        let Some(wire) = wire else {
            return refuse("failure", "none");
        };
        let Some(kind) = FailureKind::parse(&wire.kind) else {
            return refuse("kind", format!("{:?} is no kind of failure", short(&wire.kind)));
        };
        Ok(Failure {
            kind,
            source: self.source("source", wire.source.as_ref())?,
            piece: wire.has_piece.then_some(wire.piece),
            expected: Crc64::parse(&wire.expected),
            actual: Crc64::parse(&wire.actual),
            detail: short(&wire.detail),
            asked_us: wire.asked_us,
        })
    }
}
