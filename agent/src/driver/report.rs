//! The core's reports, put into wire messages.

use millstream_agent_core::event::{Failure, FailureKind, Report, Source};
use millstream_proto::v1::{self, agent_message::Body, source::From as WireSource};
use millstream_types::{DatasetId, RunSet};

use super::Driver;
use super::versions::on_disk_words;
use crate::transport::Transport as _;

impl Driver {
    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::PiecesRead { dataset, first, crcs } => {
                let Some(&wire) = self.to_wire.get(&dataset) else { return };
                let crcs = crcs.into_iter().map(|c| c.0).collect();
                self.send(Body::Checksums(v1::PieceChecksums { dataset: wire, first, crcs }));
            }
            Report::Done { assignment, bytes, elapsed_us, source } => {
                self.parts.counters.extent_duration(elapsed_us as f64 / 1e6);
                let source = Some(self.wire_source(source));
                self.send(Body::Done(v1::AssignmentDone { assignment: assignment.0, bytes, elapsed_us, source }));
            }
            Report::Failed { assignment, dataset, missing, failure } => {
                self.note(&failure, "assignment given back");
                let failure = Some(self.wire_failure(dataset, &failure));
                let missing = Some(millstream_proto::convert::set_to_runs(&missing));
                self.send(Body::Failed(v1::AssignmentFailed { assignment: assignment.0, failure, missing }));
            }
            Report::SourceFailed { dataset, failure } => {
                self.note(&failure, "a source failed; its pieces are asked for again");
                let Some(&wire) = self.to_wire.get(&dataset) else { return };
                let failure = self.wire_failure(dataset, &failure);
                self.send(Body::SourceFailed(v1::SourceFailed { dataset: wire, failure: Some(failure) }));
            }
            Report::Sealed { dataset, shard } => {
                let Some(&wire) = self.to_wire.get(&dataset) else { return };
                let shards = millstream_proto::convert::set_to_runs(&RunSet::from_range(shard..shard + 1));
                self.send(Body::Sealed(v1::ShardsSealed { dataset: wire, shards: Some(shards) }));
            }
            Report::Mismatch { dataset, shard, expected, actual } => {
                self.parts.counters.checksum_failure("origin", "whole-shard");
                let Some(&wire) = self.to_wire.get(&dataset) else { return };
                self.send(Body::Problem(v1::ShardProblem { dataset: wire, shard, expected, actual }));
            }
            Report::Lost { dataset, shard, reason } => {
                let Some(&wire) = self.to_wire.get(&dataset) else { return };
                self.send(Body::Lost(v1::ShardLost { dataset: wire, shard, reason, failure: None }));
            }
            Report::Refused { dataset, kind, reason } => {
                self.refuse(dataset, kind, &on_disk_words(&self.parts.store, &reason));
            }
        }
    }

    /// Says that this node cannot take a version.
    pub(super) fn refuse(&mut self, dataset: DatasetId, kind: FailureKind, reason: &str) {
        tracing::error!(%dataset, reason, "this node cannot take the version");
        self.parts.counters.error(reason.to_owned());
        if let Some(open) = self.open(dataset) {
            let code = if kind == FailureKind::NoSpace { 7 } else { 1 };
            open.local.progress.send_modify(|p| p.failed = Some((code, reason.to_owned())));
        }
        let Some(&wire) = self.to_wire.get(&dataset) else { return };
        self.send(Body::Storage(v1::StorageReport {
            dataset: wire,
            state: kind.as_str().into(),
            reason: reason.to_owned(),
            needed_bytes: 0,
            free_bytes: 0,
        }));
    }

    fn note(&mut self, failure: &Failure, what: &str) {
        let source = match failure.source {
            Source::Origin => "origin".to_owned(),
            Source::Peer(peer) => self.peers.get(peer.0 as usize).map(|p| p.node.clone()).unwrap_or_default(),
        };
        if failure.kind == FailureKind::Checksum {
            let carrier = self.rejected_by.take().unwrap_or(self.parts.transport.carrier());
            let from = if failure.source == Source::Origin { "origin" } else { carrier.as_str() };
            self.parts.counters.checksum_failure(from, "piece");
        }
        let kind = failure.kind.as_str();
        if failure.kind != FailureKind::Cancelled {
            tracing::warn!(source, kind, piece = failure.piece, detail = failure.detail, "{what}");
            self.parts.counters.error(format!("{kind} from {source}: {}", failure.detail));
        }
    }

    fn wire_source(&self, source: Source) -> v1::Source {
        let from = match source {
            Source::Origin => WireSource::Origin(true),
            Source::Peer(peer) => {
                let peer = self.peers.get(peer.0 as usize);
                WireSource::Peer(v1::PeerSource {
                    node: peer.map(|p| p.node.clone()).unwrap_or_default(),
                    address: peer.map(|p| p.address.to_string()).unwrap_or_default(),
                })
            }
        };
        v1::Source { from: Some(from) }
    }

    fn wire_failure(&self, dataset: DatasetId, failure: &Failure) -> v1::Failure {
        let key = failure.piece.and_then(|piece| {
            let manifest = &self.open(dataset)?.local.manifest;
            let place = manifest.layout().get(piece)?;
            Some(manifest.shards()[place.shard as usize].key.to_string())
        });
        v1::Failure {
            kind: failure.kind.as_str().into(),
            source: Some(self.wire_source(failure.source)),
            piece: failure.piece.unwrap_or_default(),
            has_piece: failure.piece.is_some(),
            expected: failure.expected.map(|c| c.to_string()).unwrap_or_default(),
            actual: failure.actual.map(|c| c.to_string()).unwrap_or_default(),
            detail: failure.detail.clone(),
            key: key.unwrap_or_default(),
            asked_us: failure.asked_us,
        }
    }
}
