//! Carries the core's actions out: starts fetches, turns verdicts into verified bytes, writes, seals, discards.
//!
//! Every task started here owns the buffers of its operation and answers with exactly the inputs that the core
//! expects; stopping one (dropping its `oneshot`) makes it answer, not vanish.

use std::sync::Arc;
use std::time::Duration;

use millstream_agent_core::event::{Action, Event, Failure, FailureKind, FetchId, Report, Source};
use millstream_types::{Crc64, DatasetId, Digest, PieceNo, PieceRange, ShardNo};

use super::{Driver, Input, Inputs, Parts, PieceToWrite, Slot};
use crate::buffers::Arena;
use crate::crew::Crew;
use crate::limits::{FETCHES_MAX, WRITES_MAX};
use crate::origin::{ExtentRead, read_extent};
use crate::reply;
use crate::storage::{SealError, WriteError};
use crate::transport::select::SelectTransport;
use crate::transport::{Carrier, FetchError, PieceRequest, Transport as _};

impl Driver {
    pub(super) fn carry(&mut self, action: Action) {
        match action {
            Action::Fetch { fetch, dataset, pieces, source, deadline_us } => {
                self.start_fetch(fetch, dataset, pieces, source, Duration::from_micros(deadline_us));
            }
            Action::Abort { fetch } => drop(self.fetches.remove(&fetch)),
            Action::Accept { fetch, dataset, piece, crc, from_origin } => {
                self.accept(fetch, dataset, piece, crc, from_origin);
            }
            Action::Reject { fetch, piece, .. } => {
                self.rejected_by = self.held.remove(&(fetch, piece)).map(|bytes| bytes.carrier());
            }
            Action::Seal { dataset, shard, crc } => self.start_seal(dataset, shard, crc),
            Action::Discard { dataset, shard } => self.start_discard(dataset, shard, None),
            Action::Report(report) => {
                if let Report::Failed { dataset, missing, .. } = &report
                    && let Some(open) = self.open(*dataset)
                {
                    // These pieces will not come: whoever waits for them here is told no.
                    self.parts.table.give_up(&open.digest, missing);
                }
                self.report(report);
            }
        }
    }

    fn start_fetch(
        &mut self,
        fetch: FetchId,
        dataset: DatasetId,
        pieces: PieceRange,
        source: Source,
        deadline: Duration,
    ) {
        let (stop, stopped) = self.stops.pair();
        let inputs = self.inputs.clone();
        let Some((digest, manifest)) = self.open(dataset).map(|o| (o.digest, o.local.manifest.clone())) else {
            let failure = failure(FailureKind::Cancelled, source, None, "the version is closed here".into());
            let ended = Input::FetchEnded { fetch, result: Err(failure) };
            self.parts.tasks.spawn(async move { inputs.send(ended).await });
            return;
        };
        self.fetches.insert(fetch, stop);
        match source {
            Source::Origin => {
                let arena = self.parts.arena.clone();
                let origin = self.origin_of(dataset);
                self.parts.tasks.spawn(async move {
                    let read = ExtentRead { fetch, dataset, manifest, pieces, deadline };
                    let result = tokio::select! {
                        result = read_extent(read, origin, &arena, &inputs) => result,
                        _ = stopped => Err(failure(FailureKind::Cancelled, source, None, "stopped".into())),
                    };
                    let _ = inputs.send(Input::FetchEnded { fetch, result }).await;
                });
            }
            Source::Peer(peer) => {
                let Some(address) = self.peers.get(peer.0 as usize).map(|p| p.address.clone()) else { return };
                let piece = pieces.start;
                let request = PieceRequest { digest, piece, len: manifest.layout().place(piece).len };
                self.from_peers.give(PeerFetch { fetch, dataset, source, address, request, deadline, stopped });
            }
        }
    }

    fn accept(&mut self, fetch: FetchId, dataset: DatasetId, piece: PieceNo, crc: Crc64, from_origin: bool) {
        let Some(bytes) = self.held.remove(&(fetch, piece)) else {
            tracing::error!(%dataset, piece, "the core accepted a piece that is not held");
            return;
        };
        // The verdict was on the number; the type changes only where the bytes' own sum is compared once more.
        let carrier = bytes.carrier();
        let verified = match bytes.verify(crc) {
            Ok(verified) => verified,
            Err((mismatch, _slot)) => {
                tracing::error!(%dataset, piece, %mismatch, "the core accepted a piece that does not match");
                return;
            }
        };
        let counters = &self.parts.counters;
        counters.verified_pieces.add(1);
        let received = match (from_origin, carrier) {
            (true, _) => &counters.received_origin,
            (false, Carrier::Tcp) => &counters.received_tcp,
            (false, Carrier::Rdma) => &counters.received_rdma,
        };
        received.add(u64::from(verified.len()));
        self.start_write(dataset, PieceToWrite { piece, bytes: verified, crc, from_origin });
    }

    /// Peers are served from memory at once; the disk waits while older bytes of the shard are being removed.
    fn start_write(&mut self, dataset: DatasetId, write: PieceToWrite) {
        let Some((digest, local)) = self.open(dataset).map(|o| (o.digest, o.local.clone())) else { return };
        self.parts.table.verified(&digest, write.piece, write.bytes.clone());
        let shard = local.manifest.layout().shard_of(write.piece);
        if let Some(waiting) = self.discarding.get_mut(&(dataset, shard)) {
            waiting.push(write);
            return;
        }
        self.to_disk.give(Write { dataset, digest, write });
    }

    pub(super) fn apply_written(&mut self, dataset: DatasetId, piece: PieceNo, result: Result<(), WriteError>) {
        let Some(digest) = self.open(dataset).map(|o| o.digest) else { return };
        match result {
            Ok(()) => {
                self.parts.table.written(&digest, piece);
                if let Some(open) = self.open(dataset) {
                    let len = u64::from(open.local.manifest.layout().place(piece).len);
                    open.local.progress.send_modify(|p| p.bytes_ready += len);
                }
                self.handle(Event::PieceWritten { dataset, piece });
            }
            Err(error) => {
                self.parts.table.remove(&digest, piece..piece + 1);
                let kind = if error.is_no_space() { FailureKind::NoSpace } else { FailureKind::Disk };
                self.parts.counters.error(error.to_string());
                self.handle(Event::WriteFailed { dataset, piece, kind, detail: error.to_string() });
            }
        }
    }

    fn start_seal(&mut self, dataset: DatasetId, shard: ShardNo, crc: Crc64) {
        let Some(digest) = self.open(dataset).map(|o| o.digest) else { return };
        let (store, inputs) = (self.parts.store.clone(), self.inputs.clone());
        self.parts.tasks.spawn(async move {
            let result = store.seal(&digest, shard, crc).await;
            let _ = inputs.send(Input::Sealed { dataset, shard, result }).await;
        });
    }

    pub(super) fn apply_sealed(&mut self, dataset: DatasetId, shard: ShardNo, result: Result<(), SealError>) {
        match result {
            Ok(()) => {
                if let Some(open) = self.open(dataset) {
                    open.local.progress.send_modify(|p| p.sealed.insert(shard));
                    if open.local.is_ready() {
                        tracing::info!(dataset = %open.local.manifest.name(), "all shards are verified and visible");
                    }
                }
                self.handle(Event::ShardSealed { dataset, shard });
            }
            Err(SealError::Mismatch { expected, actual, .. }) => {
                self.handle(Event::SealMismatch { dataset, shard, expected, actual });
            }
            Err(error) => {
                self.parts.counters.error(error.to_string());
                self.handle(Event::SealFailed { dataset, shard, detail: error.to_string() });
            }
        }
    }

    /// Takes a shard's bytes away: from the eyes of peers and trainers at once, from the disk as soon as it can.
    /// `lost`: the shell found them bad, and the core is told once they are gone.
    pub(super) fn start_discard(&mut self, dataset: DatasetId, shard: ShardNo, lost: Option<String>) {
        let Some((digest, local)) = self.open(dataset).map(|o| (o.digest, o.local.clone())) else { return };
        let pieces = local.manifest.layout().shard_pieces(shard);
        self.parts.table.remove(&digest, pieces.clone());
        local.progress.send_modify(|p| p.sealed.remove_range(shard..shard + 1));
        if let Some(Slot::Open(open)) = self.versions.get_mut(&dataset) {
            let beside = |first: PieceNo, len: usize| first >= pieces.end || first + len as PieceNo <= pieces.start;
            open.origin_read.retain(|(first, crcs)| beside(*first, crcs.len()));
        }
        self.discarding.entry((dataset, shard)).or_default();
        let (store, inputs) = (self.parts.store.clone(), self.inputs.clone());
        self.parts.tasks.spawn(async move {
            if let Err(error) = store.discard_shard(&digest, shard).await {
                tracing::error!(shard, %error, "cannot remove a discarded shard");
            }
            let _ = inputs.send(Input::Discarded { dataset, shard, lost }).await;
        });
    }

    pub(super) fn apply_discarded(&mut self, dataset: DatasetId, shard: ShardNo, lost: Option<String>) {
        let waiting = self.discarding.remove(&(dataset, shard)).unwrap_or_default();
        for write in waiting {
            self.start_write(dataset, write);
        }
        self.dropped(dataset, shard);
        if let Some(reason) = lost {
            self.handle(Event::ShardLost { dataset, shard, reason });
        }
        let Some(local) = self.open(dataset).map(|o| o.local.clone()) else { return };
        let have = self.core.inventory(dataset).map(|(have, _)| have).unwrap_or_default();
        let layout = local.manifest.layout();
        local.progress.send_modify(|p| {
            p.bytes_ready = have.runs().iter().map(|r| layout.range_bytes(r.clone())).sum();
        });
    }
}

/// One piece to be fetched from a peer.
pub(super) struct PeerFetch {
    fetch: FetchId,
    dataset: DatasetId,
    source: Source,
    address: Arc<str>,
    request: PieceRequest,
    deadline: Duration,
    stopped: reply::Receiver<()>,
}

/// Those who fetch from peers.
pub(super) fn peer_fetches(parts: &Parts, inputs: &Inputs) -> Crew<PeerFetch> {
    let (arena, transport, inputs) = (parts.arena.clone(), parts.transport.clone(), inputs.clone());
    Crew::new(parts.tasks.clone(), FETCHES_MAX, move |job| {
        fetch_from_peer(job, arena.clone(), transport.clone(), inputs.clone())
    })
}

async fn fetch_from_peer(job: PeerFetch, arena: Arc<Arena>, transport: Arc<SelectTransport>, inputs: Inputs) {
    let PeerFetch { fetch, dataset, source, address, request, deadline, stopped } = job;
    let fetched = async {
        let slot = arena.slot(request.len as usize).await;
        transport.fetch(&address, request, slot, deadline).await
    };
    let result = tokio::select! {
        result = fetched => result,
        _ = stopped => Err(FetchError::Cancelled),
    };
    let piece = request.piece;
    let result = match result {
        Ok(bytes) => {
            let _ = inputs.send(Input::Received { fetch, dataset, piece, source, bytes }).await;
            Ok(())
        }
        Err(error) => Err(peer_failure(source, piece, &error)),
    };
    let _ = inputs.send(Input::FetchEnded { fetch, result }).await;
}

/// One piece to be written.
pub(super) struct Write {
    dataset: DatasetId,
    digest: Digest,
    write: PieceToWrite,
}

/// Those who write.
pub(super) fn writes(parts: &Parts, inputs: &Inputs) -> Crew<Write> {
    let (store, inputs) = (parts.store.clone(), inputs.clone());
    Crew::new(parts.tasks.clone(), WRITES_MAX, move |Write { dataset, digest, write }| {
        let (store, inputs) = (store.clone(), inputs.clone());
        async move {
            let PieceToWrite { piece, bytes, crc, from_origin } = write;
            let result = store.write(&digest, piece, bytes, crc, from_origin).await;
            let _ = inputs.send(Input::Written { dataset, piece, result }).await;
        }
    })
}

/// A failure in the core's words.
pub(crate) fn failure(kind: FailureKind, source: Source, piece: Option<PieceNo>, detail: String) -> Failure {
    Failure { piece, ..Failure::new(kind, source, detail) }
}

fn peer_failure(source: Source, piece: PieceNo, error: &FetchError) -> Failure {
    let kind = match error {
        FetchError::Unreachable { .. } => FailureKind::Unreachable,
        FetchError::Timeout { .. } => FailureKind::Timeout,
        FetchError::NotHave { .. } | FetchError::NotYet { .. } => FailureKind::NotHave,
        FetchError::Protocol { .. } => FailureKind::Protocol,
        FetchError::Cancelled => FailureKind::Cancelled,
    };
    failure(kind, source, Some(piece), error.to_string())
}
