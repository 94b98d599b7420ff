//! Readers on this node: what they told, passed on to the coordinator, and what it lets go behind them.
//!
//! A reader lives as long as its connection to the socket. What it announced is kept here, because each session with a
//! coordinator begins with it anew.

use millstream_agent_core::event::Event;
use millstream_proto::convert::{runs_within, set_to_runs};
use millstream_proto::v1::{self, agent_message::Body};
use millstream_types::{DatasetId, Digest, RunSet, ShardNo};

use super::Driver;
use crate::storage::Keeper;

/// What a reader says.
#[derive(Clone, Debug)]
pub(crate) struct ReaderMove {
    pub digest: Digest,
    pub reader: u64,
    /// The process, in words.
    pub by: String,
    /// What it announced before is void.
    pub restart: bool,
    pub upcoming: Vec<ShardNo>,
    pub finished: RunSet,
    /// How many shards it reads at a time; 0 for no news.
    pub open: u32,
}

/// What is known of a reader.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// As announced; those not in `left` any more it has read.
    order: Vec<ShardNo>,
    left: RunSet,
    /// Of those in `left`, there already when they were announced.
    there: RunSet,
    open: u32,
    pub(super) by: String,
}

impl Reader {
    /// Has it open, as far as is known?
    fn reads(&self, shard: ShardNo) -> bool {
        let open = if self.open == 0 { usize::MAX } else { self.open as usize };
        self.order.iter().filter(|&&s| self.left.contains(s)).take(open).any(|&s| s == shard)
    }
}

impl Driver {
    pub(super) fn reader_moved(&mut self, moved: ReaderMove) {
        let local = self.by_digest.get(&moved.digest).and_then(|&d| self.open(d)).map(|o| o.local.clone());
        let reader = self.readers.entry((moved.digest, moved.reader)).or_default();
        if moved.restart {
            *reader = Reader { by: moved.by.clone(), ..Reader::default() };
        }
        if moved.open > 0 {
            reader.open = moved.open;
        }
        for &shard in &moved.upcoming {
            if !reader.left.contains(shard) {
                reader.left.insert(shard);
                reader.order.push(shard);
                if local.as_ref().is_some_and(|l| l.progress.borrow().sealed.contains(shard)) {
                    reader.there.insert(shard);
                }
            }
        }
        if let Some(local) = &local {
            let layout = local.manifest.layout();
            let hits = moved.finished.iter().filter(|&s| reader.there.contains(s));
            self.parts.counters.local_hits.add(hits.map(|s| layout.shard_len(s)).sum());
        }
        reader.left.remove_all(&moved.finished);
        reader.there.remove_all(&moved.finished);
        let left = &reader.left;
        if reader.order.len() as u64 > 2 * left.len() + 16 {
            reader.order.retain(|&shard| left.contains(shard));
        }
        self.tell_reader(moved);
    }

    pub(super) fn reader_gone(&mut self, digest: Digest, reader: u64) {
        self.readers.remove(&(digest, reader));
        if let Some(dataset) = self.wire_of(&digest) {
            self.send(Body::ReaderGone(v1::ReaderGone { dataset, reader }));
        }
    }

    /// A session begins: the coordinator may never have heard of them.
    pub(super) fn announce_readers(&mut self, digest: Digest) {
        let of_version = self.readers.range((digest, 0)..=(digest, u64::MAX));
        let moves: Vec<ReaderMove> = of_version
            .map(|(&(digest, reader), state)| ReaderMove {
                digest,
                reader,
                by: state.by.clone(),
                restart: true,
                upcoming: state.order.iter().copied().filter(|&s| state.left.contains(s)).collect(),
                finished: RunSet::new(),
                open: state.open,
            })
            .collect();
        for moved in moves {
            self.tell_reader(moved);
        }
    }

    fn tell_reader(&mut self, moved: ReaderMove) {
        let Some(dataset) = self.wire_of(&moved.digest) else { return };
        let others = self.parts.store.others_bytes(&moved.digest).into_iter();
        let others =
            others.filter_map(|(digest, bytes)| Some(v1::VersionBytes { dataset: self.wire_of(&digest)?, bytes }));
        let others = others.collect();
        self.send(Body::Reader(v1::ReaderMoved {
            dataset,
            reader: moved.reader,
            restart: moved.restart,
            upcoming: moved.upcoming,
            finished: Some(set_to_runs(&moved.finished)),
            room_bytes: self.parts.store.room_bytes(&moved.digest),
            open: moved.open,
            others,
        }));
    }

    /// A version went or came: readers of the others may have more room, or less, and those that wait say nothing.
    pub(super) fn tell_room(&mut self) {
        let mut readers: Vec<(Digest, u64)> = self.readers.keys().copied().collect();
        readers.dedup_by_key(|(digest, _)| *digest);
        for (digest, reader) in readers {
            self.tell_reader(ReaderMove {
                digest,
                reader,
                by: String::new(),
                restart: false,
                upcoming: Vec::new(),
                finished: RunSet::new(),
                open: 0,
            });
        }
    }

    fn wire_of(&self, digest: &Digest) -> Option<u32> {
        self.to_wire.get(self.by_digest.get(digest)?).copied()
    }

    /// The coordinator lets shards go. What is being read here stays, and it is told so. (What a reader has that waits for
    /// its turn may go: else two of them could each hold what the other one lacks.)
    pub(super) fn drop_shards(&mut self, dataset: DatasetId, drop: v1::DropShards) {
        let Some((digest, local)) = self.open(dataset).map(|o| (o.digest, o.local.clone())) else { return };
        let layout = local.manifest.layout();
        let Ok(shards) = runs_within(&drop.shards.unwrap_or_default(), layout.shards()) else {
            tracing::warn!(%dataset, "order to drop shards that the version does not have; ignored");
            return;
        };
        let kept_whole = self.parts.store.keeper(&digest) != Keeper::Nobody;
        let mut kept = RunSet::new();
        for shard in shards.iter() {
            let mut readers = self.readers.range((digest, 0)..=(digest, u64::MAX));
            if kept_whole || readers.any(|((_, number), r)| !drop.waiting.contains(number) && r.reads(shard)) {
                kept.insert(shard);
            } else {
                self.dropping.insert((dataset, shard));
                self.handle(Event::DropShard { dataset, shard });
            }
        }
        if !kept.is_empty() {
            self.tell_dropped(dataset, RunSet::new(), kept);
        }
    }

    /// The bytes of a shard are off the disk.
    pub(super) fn dropped(&mut self, dataset: DatasetId, shard: ShardNo) {
        if self.dropping.remove(&(dataset, shard)) {
            self.parts.counters.eviction("window");
            self.tell_dropped(dataset, RunSet::from_range(shard..shard + 1), RunSet::new());
        }
    }

    fn tell_dropped(&mut self, dataset: DatasetId, dropped: RunSet, kept: RunSet) {
        let Some(&wire) = self.to_wire.get(&dataset) else { return };
        let (dropped, kept) = (Some(set_to_runs(&dropped)), Some(set_to_runs(&kept)));
        self.send(Body::Dropped(v1::ShardsDropped { dataset: wire, dropped, kept }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_has_the_first_of_its_order_open_that_it_has_not_read() {
        let mut reader =
            Reader { order: vec![4, 2, 7, 1], left: [4, 2, 7, 1].into_iter().collect(), ..Reader::default() };
        let open = |r: &Reader| (0..9).filter(|&s| r.reads(s)).collect::<Vec<_>>();
        // Until it says how many it reads at a time, it may be any.
        assert_eq!(open(&reader), [1, 2, 4, 7]);
        reader.open = 2;
        assert_eq!(open(&reader), [2, 4]);
        reader.left.remove_range(4..5);
        assert_eq!(open(&reader), [2, 7]);
    }
}
