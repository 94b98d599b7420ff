//! The node's care for what it holds: heartbeats, verify, scrub findings, pins, eviction.

use std::time::Instant;

use millstream_proto::v1::{self, agent_message::Body};
use millstream_types::{DatasetId, ShardNo};
use tokio::sync::oneshot;

use super::{Ask, Driver, Input};
use crate::verify;

impl Driver {
    pub(super) fn heartbeat(&mut self) {
        let c = &self.parts.counters;
        let usage = self.parts.store.usage();
        c.used_bytes.set(usage.used_bytes);
        c.pinned_bytes.set(usage.pinned_bytes);
        c.partial_bytes.set(usage.partial_bytes);
        let (mut ready, mut partial) = (0, 0);
        for version in self.parts.local.all() {
            let sealed = version.progress.borrow().sealed.len();
            ready += sealed;
            partial += u64::from(version.manifest.layout().shards()) - sealed;
        }
        c.shards_ready.set(ready);
        c.shards_partial.set(partial);
        let received = c.received_origin.get() + c.received_tcp.get() + c.received_rdma.get();
        let sent = c.sent_tcp.get() + c.sent_rdma.get();
        let now = Instant::now();
        let seconds = self.rates.at.map_or(f64::INFINITY, |at| (now - at).as_secs_f64()).max(1e-3);
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds) as u64;
        let (in_rate, out_rate) = (rate(received, self.rates.received), rate(sent, self.rates.sent));
        self.rates = super::Rates { at: Some(now), received, sent };
        if self.session.is_none() {
            return;
        }
        let c = &self.parts.counters;
        let errors = c.last_errors();
        let fallbacks = c.fallbacks().into_iter();
        let fallbacks = fallbacks.map(|((from, to, reason), count)| v1::Fallback { from, to, reason, count }).collect();
        let (written, arrived) = (self.parts.store.written(), self.parts.transport.arriving());
        let heartbeat = v1::Heartbeat {
            received_origin_bytes: c.received_origin.get(),
            received_tcp_bytes: c.received_tcp.get(),
            received_rdma_bytes: c.received_rdma.get(),
            sent_tcp_bytes: c.sent_tcp.get(),
            sent_rdma_bytes: c.sent_rdma.get(),
            in_bytes_per_s: in_rate,
            out_bytes_per_s: out_rate,
            used_bytes: usage.used_bytes,
            pinned_bytes: usage.pinned_bytes,
            partial_bytes: usage.partial_bytes,
            capacity_bytes: usage.capacity_bytes,
            fallbacks,
            checksum_failures: c.checksum_failures(),
            sequence: 0,
            last_error_counts: errors.iter().map(|(_, count)| *count).collect(),
            last_errors: errors.into_iter().map(|(text, _)| text).collect(),
            local_hit_bytes: c.local_hits.get(),
            written_bytes: written.bytes,
            writing_us: written.micros(),
            arrived_bytes: arrived.bytes,
            arriving_us: arrived.micros(),
        };
        self.send(Body::Heartbeat(heartbeat));
        self.tell_details();
    }

    pub(super) fn apply_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Reader(moved) => self.reader_moved(moved),
            Ask::ReaderGone { digest, reader } => self.reader_gone(digest, reader),
            Ask::Verify { digest, answer } => match self.by_digest.get(&digest) {
                Some(&dataset) => self.start_verify(dataset, 0, Some(answer)),
                None => drop(answer.send(v1::VerifyReport { done: true, ..Default::default() })),
            },
        }
    }

    /// Re-reads every sealed shard; what is bad is removed, reported and repaired like any missing shard.
    pub(super) fn start_verify(
        &mut self,
        dataset: DatasetId,
        request: u64,
        answer: Option<oneshot::Sender<v1::VerifyReport>>,
    ) {
        let Some(local) = self.open(dataset).map(|o| o.local.clone()) else { return };
        let wire = self.to_wire.get(&dataset).copied().unwrap_or_default();
        let (store, inputs, counters) = (self.parts.store.clone(), self.inputs.clone(), self.parts.counters.clone());
        self.parts.tasks.spawn(async move {
            let mut total = v1::VerifyReport { request, dataset: wire, ..Default::default() };
            let sealed = local.progress.borrow().sealed.clone();
            for shard in sealed.iter() {
                let finding = verify::check_shard(&store, &local.manifest, shard).await;
                if matches!(finding, Ok(false)) {
                    continue;
                }
                total.shards_checked += 1;
                total.bytes_checked += local.manifest.layout().shard_len(shard);
                if let Err(finding) = finding {
                    counters.checksum_failure("disk", "verify");
                    let reason = finding.detail.clone();
                    tracing::error!(dataset = %local.manifest.name(), shard, reason, "verify found a bad shard");
                    total.failures.push(finding);
                    let _ = inputs.send(Input::Lost { dataset, shard, reason }).await;
                }
            }
            total.done = true;
            match answer {
                Some(answer) => drop(answer.send(total)),
                None => drop(inputs.send(Input::Checked(total)).await),
            }
        });
    }

    /// A sealed shard is bad on disk: out of sight and off the disk first, then the core has it fetched again.
    pub(super) fn apply_lost(&mut self, dataset: DatasetId, shard: ShardNo, reason: String) {
        let Some(open) = self.open(dataset) else { return };
        if !open.local.progress.borrow().sealed.contains(shard) {
            return;
        }
        self.parts.counters.error(format!("shard {shard} of {}: {reason}", open.local.manifest.name()));
        self.start_discard(dataset, shard, Some(reason));
    }

    pub(super) fn set_pin(&mut self, dataset: DatasetId, pinned: bool) {
        let Some(digest) = self.open(dataset).map(|o| o.digest) else { return };
        if let Err(error) = self.parts.store.set_pin(&digest, pinned, "") {
            tracing::error!(%dataset, %error, "cannot keep the pin on disk");
            self.parts.counters.error(error.to_string());
        }
    }

    pub(super) fn start_evict(&mut self, dataset: DatasetId) {
        let Some(digest) = self.open(dataset).map(|o| o.digest) else { return };
        let (store, inputs) = (self.parts.store.clone(), self.inputs.clone());
        self.parts.tasks.spawn(async move {
            let result = store.evict(&digest).await.map_err(|e| e.to_string());
            let _ = inputs.send(Input::Evicted { dataset, result }).await;
        });
    }

    pub(super) fn apply_evicted(&mut self, dataset: DatasetId, result: Result<u64, String>) {
        let wire = self.to_wire.get(&dataset).copied();
        let (bytes, refused) = match &result {
            Ok(bytes) => {
                self.parts.counters.eviction("request");
                self.close(dataset);
                (*bytes, String::new())
            }
            Err(reason) => (0, reason.clone()),
        };
        if let Some(wire) = wire {
            self.send(Body::Evicted(v1::Evicted { dataset: wire, bytes, refused }));
        }
        self.tell_room();
    }
}
