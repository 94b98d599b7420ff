//! Random events against a model that knows what must never happen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const PIECES: u32 = 40;
const PEERS: u32 = 5;

/// Plays shell and coordinator, and remembers enough to object.
struct Model {
    rng: StdRng,
    core: AgentCore,
    now: Time,
    layout: Arc<Layout>,
    budget: u64,
    /// Fetch → (pieces, next, source, aborted).
    running: BTreeMap<FetchId, (std::ops::Range<u32>, u32, Source, bool)>,
    /// Pieces received that no verdict came for.
    undecided: BTreeMap<(FetchId, u32), (Crc64, Source)>,
    /// Writes that the disk has not answered, oldest first; false: dropped by a discard.
    writes: Vec<(u32, bool)>,
    written: BTreeSet<u32>,
    /// Checksums that the core may check against, and whether the manifest had them.
    valid: BTreeMap<u32, Crc64>,
    /// Those of them that the coordinator said.
    told: BTreeSet<u32>,
    seals: Vec<(u32, bool)>,
    sealed: BTreeSet<u32>,
    next_assignment: u64,
    /// Assignments that must still be answered, with the pieces that no later one took over.
    open: BTreeMap<AssignmentId, BTreeSet<u32>>,
    refused: bool,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut rng = StdRng::seed_from_u64(seed);
        let layout = layout(&[10 * P, 6 * P - 7, 0, P, 3, 13 * P, 9 * P - 1]);
        assert_eq!(layout.pieces(), PIECES);
        let budget = P * rng.random_range(6..40);
        let config = AgentConfig {
            buffer_bytes: budget,
            peer_pipeline_bytes: P * rng.random_range(1..12),
            origin_gets_max: rng.random_range(1..4),
            ..AgentConfig::default()
        };
        let mut model = Model {
            core: AgentCore::new(config),
            rng,
            now: Time(5),
            layout,
            budget,
            running: BTreeMap::new(),
            undecided: BTreeMap::new(),
            writes: Vec::new(),
            written: BTreeSet::new(),
            valid: BTreeMap::new(),
            told: BTreeSet::new(),
            seals: Vec::new(),
            sealed: BTreeSet::new(),
            next_assignment: 1,
            open: BTreeMap::new(),
            refused: false,
        };
        model.open();
        model
    }

    fn open(&mut self) {
        let event = Event::Opened {
            dataset: D,
            layout: self.layout.clone(),
            shard_checksums: origin_sums(&self.layout),
            known: vec![],
            have: self.written.iter().copied().collect(),
            sealed: self.sealed.iter().copied().collect(),
        };
        self.event(event);
    }

    fn event(&mut self, event: Event) {
        self.now = self.now + self.rng.random_range(0..2_000);
        self.core.handle_event(self.now, event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(action) = self.core.poll_action() {
            self.check(action);
        }
        let alone = self.core.in_flight_bytes() <= 4 * P;
        let waiting_for_disk: u64 = self.writes.len() as u64 * P;
        assert!(
            alone || self.core.in_flight_bytes() <= self.budget + waiting_for_disk,
            "{} in flight of {}",
            self.core.in_flight_bytes(),
            self.budget
        );
    }

    fn check(&mut self, action: Action) {
        match action {
            Action::Fetch { fetch, pieces, source, deadline_us, .. } => {
                assert!(!pieces.is_empty() && deadline_us > 0);
                assert!(self.core.in_flight_bytes() <= self.budget.max(4 * P));
                if source != Source::Origin {
                    assert_eq!(pieces.len(), 1);
                }
                let shard = self.layout.shard_of(pieces.start);
                assert_eq!(shard, self.layout.shard_of(pieces.end - 1));
                for p in pieces.clone() {
                    assert!(!self.written.contains(&p), "asks for what is on disk: {p}");
                }
                let first = pieces.start;
                let new = self.running.insert(fetch, (pieces, first, source, false));
                assert!(new.is_none());
            }
            Action::Abort { fetch } => {
                self.running.get_mut(&fetch).expect("aborts a running fetch").3 = true;
            }
            Action::Accept { fetch, piece, crc, from_origin, .. } => {
                let (actual, source) = self.undecided.remove(&(fetch, piece)).expect("one verdict");
                assert_eq!((actual, source == Source::Origin), (crc, from_origin));
                assert!(!self.written.contains(&piece) && !self.writes.contains(&(piece, true)));
                match self.valid.get(&piece) {
                    Some(expected) => assert_eq!(*expected, crc, "accepts wrong bytes"),
                    None => {
                        assert!(from_origin, "takes a peer's word");
                        self.valid.insert(piece, crc);
                    }
                }
                self.writes.push((piece, true));
            }
            Action::Reject { fetch, piece, .. } => {
                self.undecided.remove(&(fetch, piece)).expect("one verdict");
            }
            Action::Seal { shard, crc, .. } => {
                let pieces = self.layout.shard_pieces(shard);
                assert!(pieces.clone().all(|p| self.written.contains(&p)), "seals an incomplete shard");
                let whole: Vec<_> = pieces.map(|p| self.valid[&p]).collect();
                let len = self.layout.shard_len(shard);
                assert_eq!(crc, PieceCombiner::new(P).shard(whole, len));
                let sums = origin_sums(&self.layout);
                assert_eq!(sums[shard as usize], Some(OriginChecksum::Crc64Nvme(crc)), "seals a wrong shard");
                assert!(!self.sealed.contains(&shard) && !self.seals.contains(&(shard, true)));
                self.seals.push((shard, true));
            }
            Action::Discard { shard, .. } => self.forget_shard(shard),
            Action::Report(report) => self.check_report(report),
        }
    }

    fn forget_shard(&mut self, shard: u32) {
        let pieces = self.layout.shard_pieces(shard);
        self.written.retain(|p| !pieces.contains(p));
        for write in self.writes.iter_mut().filter(|w| pieces.contains(&w.0)) {
            write.1 = false;
        }
        for seal in self.seals.iter_mut().filter(|s| s.0 == shard) {
            seal.1 = false;
        }
        self.sealed.remove(&shard);
    }

    fn check_report(&mut self, report: Report) {
        match report {
            Report::Done { assignment, .. } => {
                let pieces = self.open.remove(&assignment).expect("one answer per assignment");
                assert!(pieces.is_subset(&self.written), "done, but lacks pieces");
            }
            Report::Failed { assignment, missing, .. } => {
                let pieces = self.open.remove(&assignment).expect("one answer per assignment");
                let lacking = pieces.difference(&self.written).copied();
                assert_eq!(missing, lacking.collect::<RunSet>());
            }
            Report::Refused { .. } => {
                assert!(!self.refused, "refuses once");
                self.refused = true;
                self.open.clear();
            }
            Report::PiecesRead { first, crcs, .. } => {
                for (p, crc) in (first..).zip(crcs) {
                    assert_eq!(self.valid.get(&p), Some(&crc));
                }
            }
            _ => {}
        }
    }

    fn range(&mut self) -> std::ops::Range<u32> {
        let start = self.rng.random_range(0..PIECES);
        start..(start + self.rng.random_range(1..12)).min(PIECES)
    }

    fn assign(&mut self, source: Source, pieces: std::ops::Range<u32>) {
        let id = AssignmentId(self.next_assignment);
        self.next_assignment += 1;
        self.refused = false;
        for taken in self.open.values_mut() {
            taken.retain(|p| !pieces.contains(p));
        }
        self.open.insert(id, pieces.clone().collect());
        let alternates = (0..self.rng.random_range(0..3)).map(PeerId).collect();
        let lease_us = self.rng.random_range(100_000..90_000_000);
        let priority = self.rng.random_range(0..3);
        self.event(Event::Assigned(Assignment { id, dataset: D, pieces, source, alternates, lease_us, priority }));
        // Those that lost everything to others end silently; those that were complete have been answered.
        self.open.retain(|other, pieces| *other == id || !pieces.is_empty());
    }

    fn receive(&mut self, good: bool) {
        let n = self.running.len();
        if n == 0 {
            return;
        }
        let nth = self.rng.random_range(0..n);
        let Some((&fetch, (pieces, next, source, _))) = self.running.iter_mut().nth(nth) else {
            return;
        };
        let source = *source;
        if *next == pieces.end {
            self.running.remove(&fetch);
            self.event(Event::FetchEnded { fetch, result: Ok(()) });
            return;
        }
        let piece = *next;
        *next += 1;
        let actual = if good { truth(piece) } else { Crc64(self.rng.random_range(1..50)) };
        self.undecided.insert((fetch, piece), (actual, source));
        let event = Event::PieceReceived { fetch, dataset: D, piece, actual, source };
        self.event(event.clone());
        if self.rng.random_ratio(1, 30) && !self.undecided.contains_key(&(fetch, piece)) {
            self.undecided.insert((fetch, piece), (actual, source));
            self.event(event);
            assert!(!self.undecided.contains_key(&(fetch, piece)), "a duplicate is rejected at once");
        }
    }

    fn end_fetch(&mut self) {
        let n = self.running.len();
        if n == 0 {
            return;
        }
        let nth = self.rng.random_range(0..n);
        let Some((&fetch, &(_, _, source, aborted))) = self.running.iter().nth(nth) else {
            return;
        };
        self.running.remove(&fetch);
        use FailureKind::*;
        let kinds = match source {
            _ if aborted => [Cancelled; 5],
            Source::Origin => [Throttled, OriginTransient, Timeout, OriginDenied, Unreachable],
            Source::Peer(_) => [Unreachable, Timeout, NotHave, Protocol, Cancelled],
        };
        let kind = kinds[self.rng.random_range(0..5)];
        let result = Err(failure(kind, source));
        self.event(Event::FetchEnded { fetch, result });
    }

    fn answer_write(&mut self, good: bool) {
        if self.writes.is_empty() {
            return;
        }
        // Any piece may be first, but the writes of one piece are answered in their order.
        let piece = self.writes[self.rng.random_range(0..self.writes.len())].0;
        let at = self.writes.iter().position(|w| w.0 == piece).unwrap();
        let (_, live) = self.writes.remove(at);
        let event = if good {
            if live {
                self.written.insert(piece);
            }
            Event::PieceWritten { dataset: D, piece }
        } else {
            let kind = if self.rng.random_ratio(1, 10) { FailureKind::NoSpace } else { FailureKind::Disk };
            Event::WriteFailed { dataset: D, piece, kind, detail: String::new() }
        };
        self.event(event);
    }

    fn answer_seal(&mut self, good: bool) {
        if self.seals.is_empty() {
            return;
        }
        let (shard, live) = self.seals.remove(0);
        let event = if good {
            if live {
                self.sealed.insert(shard);
            }
            Event::ShardSealed { dataset: D, shard }
        } else {
            Event::SealFailed { dataset: D, shard, detail: String::new() }
        };
        self.event(event);
    }

    fn tell(&mut self, range: std::ops::Range<u32>) {
        // The coordinator's word may differ from what a corrupt read made us believe: then the core drops the shard,
        // its own readings of it too.
        let wrong: BTreeSet<u32> = range
            .clone()
            .filter(|p| self.valid.get(p).is_some_and(|crc| *crc != truth(*p)))
            .filter(|p| self.written.contains(p) || self.writes.contains(&(*p, true)))
            .map(|p| self.layout.shard_of(p))
            .collect();
        for shard in wrong {
            for p in self.layout.shard_pieces(shard) {
                if !self.told.contains(&p) {
                    self.valid.remove(&p);
                }
            }
        }
        self.told.extend(range.clone());
        self.valid.extend(range.clone().map(|p| (p, truth(p))));
        let crcs = range.clone().map(truth).collect();
        self.event(Event::Checksums { dataset: D, first: range.start, crcs });
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..8 => {
                let n = self.rng.random_range(0..PEERS + 2);
                let source = if n < PEERS { peer(n) } else { Source::Origin };
                let range = self.range();
                self.assign(source, range);
            }
            8..10 => {
                let ids: Vec<_> = self.open.keys().copied().collect();
                if let Some(id) = ids.first() {
                    self.open.remove(id);
                    self.event(Event::Cancelled(*id));
                }
            }
            10..16 => {
                let range = self.range();
                self.tell(range);
            }
            16..52 => {
                let good = self.rng.random_ratio(9, 10);
                self.receive(good);
            }
            52..60 => self.end_fetch(),
            60..84 => {
                let good = self.rng.random_ratio(19, 20);
                self.answer_write(good);
            }
            84..90 => {
                let good = self.rng.random_ratio(4, 5);
                self.answer_seal(good);
            }
            90..97 => {
                if let Some(when) = self.core.poll_timeout() {
                    self.now = self.now.max(when);
                    self.core.handle_timeout(self.now);
                    self.drain();
                }
            }
            97 => {
                let shard = self.rng.random_range(0..self.layout.shards());
                for p in self.layout.shard_pieces(shard) {
                    self.valid.remove(&p);
                    self.told.remove(&p);
                }
                self.event(Event::DiscardShard { dataset: D, shard });
            }
            98 => {
                let shard = self.rng.random_range(0..self.layout.shards());
                if self.rng.random() {
                    // As the shell does it: nothing of a lost shard is in flight to the disk.
                    let pieces = self.layout.shard_pieces(shard);
                    if self.writes.iter().all(|w| !pieces.contains(&w.0)) && self.sealed.contains(&shard) {
                        self.forget_shard(shard);
                        let reason = "rot".to_owned();
                        self.event(Event::ShardLost { dataset: D, shard, reason });
                    }
                    return;
                }
                let bytes = self.rng.random_range(0..self.budget);
                self.event(Event::BuffersFree { bytes });
            }
            _ => self.reopen(),
        }
    }

    /// Fetches end, the version is closed and opened anew with what is on disk.
    fn reopen(&mut self) {
        if !self.rng.random_ratio(1, 4) {
            return;
        }
        self.event(Event::Closed { dataset: D });
        assert!(self.undecided.is_empty(), "closing decides everything");
        self.open.clear();
        self.refused = false;
        for fetch in std::mem::take(&mut self.running).into_keys() {
            let result = Err(failure(FailureKind::Cancelled, Source::Origin));
            self.event(Event::FetchEnded { fetch, result });
        }
        assert_eq!(self.core.in_flight_bytes(), 0);
        self.writes.clear();
        self.seals.clear();
        // Only what a right checksum is known for comes back from the journal.
        let valid = &self.valid;
        self.written.retain(|p| valid.get(p) == Some(&truth(*p)));
        self.sealed.retain(|s| self.layout.shard_pieces(*s).all(|p| self.written.contains(&p)));
        self.valid.clear();
        self.told.clear();
        self.open();
    }

    /// From now on everything goes well: all must end, with nothing left over.
    fn settle(&mut self) {
        let quota = self.budget;
        self.event(Event::BuffersFree { bytes: quota });
        self.tell(0..PIECES);
        let mut idle = 0;
        for _ in 0..20_000 {
            let before = (self.running.len(), self.writes.len(), self.seals.len());
            self.receive(true);
            self.answer_write(true);
            self.answer_seal(true);
            if before != (0, 0, 0) {
                idle = 0;
                continue;
            }
            if self.core.orders() > 0
                && let Some(when) = self.core.poll_timeout()
            {
                self.now = self.now.max(when);
                self.core.handle_timeout(self.now);
                self.drain();
            }
            idle += 1;
            if idle > 50 {
                break;
            }
        }
        assert_eq!(self.core.orders(), 0);
        assert_eq!(self.core.in_flight_bytes(), 0);
        assert!(self.undecided.is_empty());
        assert!(self.open.is_empty(), "no answer to {:?}", self.open);
        for shard in self.layout.shards().checked_sub(1).into_iter().flat_map(|last| 0..=last) {
            let whole = self.layout.shard_pieces(shard).all(|p| self.written.contains(&p));
            assert_eq!(whole, self.sealed.contains(&shard), "shard {shard}");
        }
    }
}

fn run(seed: u64) {
    let mut model = Model::new(seed);
    for _ in 0..600 {
        model.step();
    }
    model.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_forbidden_ever_happens(seed in any::<u64>()) {
        run(seed);
    }
}

#[test]
fn seeds_that_once_failed() {
    for seed in [382118805852060548, 5930494966824093053, 1435136316507845904, 11358512845794222852] {
        run(seed);
    }
}
