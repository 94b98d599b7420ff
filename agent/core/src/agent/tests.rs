//! The core alone: cases by hand here, random events against a model in `model`.

mod model;

use std::sync::Arc;

use millstream_types::{AssignmentId, Crc64, DatasetId, Layout, OriginChecksum, PieceCombiner, RunSet, Time};

use super::AgentCore;
use crate::config::AgentConfig;
use crate::event::*;

const P: u64 = 64 * 1024;
const D: DatasetId = DatasetId(3);

fn truth(piece: u32) -> Crc64 {
    Crc64(0x1111_0000_0000 + u64::from(piece) * 7919)
}

fn layout(shards: &[u64]) -> Arc<Layout> {
    Arc::new(Layout::new(P, shards).unwrap())
}

fn origin_sums(layout: &Layout) -> Arc<[Option<OriginChecksum>]> {
    let combiner = PieceCombiner::new(P);
    (0..layout.shards())
        .map(|s| {
            let crcs = layout.shard_pieces(s).map(truth);
            let whole = combiner.shard(crcs, layout.shard_len(s));
            Some(OriginChecksum::Crc64Nvme(whole))
        })
        .collect()
}

fn opened(layout: &Arc<Layout>, known: Vec<(u32, Vec<Crc64>)>) -> Event {
    Event::Opened {
        dataset: D,
        layout: layout.clone(),
        shard_checksums: origin_sums(layout),
        known,
        have: RunSet::new(),
        sealed: RunSet::new(),
    }
}

fn all_known(layout: &Layout) -> Vec<(u32, Vec<Crc64>)> {
    vec![(0, (0..layout.pieces()).map(truth).collect())]
}

fn assign(id: u64, pieces: std::ops::Range<u32>, source: Source, alternates: &[u32]) -> Event {
    Event::Assigned(Assignment {
        id: AssignmentId(id),
        dataset: D,
        pieces,
        source,
        alternates: alternates.iter().copied().map(PeerId).collect(),
        lease_us: 60_000_000,
        priority: 0,
    })
}

fn peer(n: u32) -> Source {
    Source::Peer(PeerId(n))
}

fn failure(kind: FailureKind, source: Source) -> Failure {
    Failure::new(kind, source, String::new())
}

/// A core and what it ordered so far and was not looked at.
struct Bench {
    core: AgentCore,
    now: Time,
}

impl Bench {
    fn new(config: AgentConfig) -> Bench {
        Bench { core: AgentCore::new(config), now: Time(1_000_000) }
    }

    fn open(layout: &Arc<Layout>, known: bool) -> Bench {
        let mut bench = Bench::new(AgentConfig::default());
        let known = if known { all_known(layout) } else { vec![] };
        bench.event(opened(layout, known));
        bench
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.now = self.now + 10;
        self.core.handle_event(self.now, event);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    /// Lets time pass until the core wants to be called.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.core.poll_timeout().expect("nothing is waited for");
        self.core.handle_timeout(self.now);
        self.drain()
    }

    fn receive(&mut self, fetch: FetchId, piece: u32, actual: Crc64, source: Source) -> Vec<Action> {
        self.event(Event::PieceReceived { fetch, dataset: D, piece, actual, source })
    }

    fn end(&mut self, fetch: FetchId, result: Result<(), Failure>) -> Vec<Action> {
        self.event(Event::FetchEnded { fetch, result })
    }

    fn written(&mut self, piece: u32) -> Vec<Action> {
        self.event(Event::PieceWritten { dataset: D, piece })
    }
}

fn fetches(actions: &[Action]) -> Vec<(FetchId, std::ops::Range<u32>, Source)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Fetch { fetch, pieces, source, .. } => Some((*fetch, pieces.clone(), *source)),
            _ => None,
        })
        .collect()
}

fn accepts(actions: &[Action]) -> Vec<u32> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Accept { piece, .. } => Some(*piece),
            _ => None,
        })
        .collect()
}

fn rejects(actions: &[Action]) -> Vec<u32> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Reject { piece, .. } => Some(*piece),
            _ => None,
        })
        .collect()
}

fn reports(actions: &[Action]) -> Vec<&Report> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Report(report) => Some(report),
            _ => None,
        })
        .collect()
}

#[test]
fn reads_the_origin_shard_by_shard_learns_reports_and_seals() {
    let layout = layout(&[2 * P, P + 5, 0]);
    let mut b = Bench::new(AgentConfig::default());
    let actions = b.event(opened(&layout, vec![]));
    assert!(
        matches!(actions[..], [Action::Seal { shard: 2, crc: Crc64(0), .. }]),
        "an empty shard is sealed at once: {actions:?}"
    );
    let asked = fetches(&b.event(assign(1, 0..4, Source::Origin, &[])));
    let ranges: Vec<_> = asked.iter().map(|(_, r, s)| (r.clone(), *s)).collect();
    assert_eq!(ranges, [(0..2, Source::Origin), (2..4, Source::Origin)]);
    for p in 0..2 {
        b.core.handle_event(
            b.now,
            Event::PieceReceived { fetch: asked[0].0, dataset: D, piece: p, actual: truth(p), source: Source::Origin },
        );
    }
    let actions = b.drain();
    assert_eq!(accepts(&actions), [0, 1]);
    assert_eq!(
        reports(&actions),
        [&Report::PiecesRead { dataset: D, first: 0, crcs: vec![truth(0), truth(1)] }],
        "consecutive pieces make one report"
    );
    b.end(asked[0].0, Ok(()));
    b.written(0);
    let sealing = b.written(1);
    assert!(matches!(sealing[..], [Action::Seal { shard: 0, .. }]));
    b.receive(asked[1].0, 2, truth(2), Source::Origin);
    b.receive(asked[1].0, 3, truth(3), Source::Origin);
    b.written(2);
    let done = b.written(3);
    assert!(matches!(
        reports(&done)[..],
        [Report::Done { assignment: AssignmentId(1), bytes, source: Source::Origin, .. }] if *bytes == layout.bytes()
    ));
    assert_eq!(b.core.orders(), 0);
    let sealed = b.event(Event::ShardSealed { dataset: D, shard: 0 });
    assert_eq!(reports(&sealed).len(), 1);
}

#[test]
fn bytes_from_a_peer_wait_for_their_checksum() {
    let layout = layout(&[4 * P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..2, peer(1), &[])));
    assert_eq!(asked.len(), 2, "one request per piece");
    assert!(b.receive(asked[0].0, 0, truth(0), peer(1)).is_empty());
    assert!(b.receive(asked[1].0, 1, Crc64(666), peer(1)).is_empty());
    let actions = b.event(Event::Checksums { dataset: D, first: 0, crcs: vec![truth(0), truth(1)] });
    assert_eq!((accepts(&actions), rejects(&actions)), (vec![0], vec![1]));
    assert!(matches!(
        reports(&actions)[..],
        [Report::SourceFailed { failure: Failure { kind: FailureKind::Checksum, piece: Some(1), .. }, .. }]
    ));
}

#[test]
fn a_corrupt_source_is_replaced_by_the_next_alternate() {
    let layout = layout(&[3 * P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..3, peer(1), &[2])));
    let actions = b.receive(asked[0].0, 0, Crc64(1), peer(1));
    assert_eq!(rejects(&actions), [0]);
    let again: Vec<_> = fetches(&actions).into_iter().map(|(_, r, s)| (r, s)).collect();
    assert_eq!(again, [(0..1, peer(2)), (1..2, peer(2)), (2..3, peer(2))]);
    let aborted = actions.iter().filter(|a| matches!(a, Action::Abort { .. }));
    assert_eq!(aborted.count(), 3);
    // A right piece of the aborted source is still welcome.
    assert_eq!(accepts(&b.receive(asked[1].0, 1, truth(1), peer(1))), [1]);
}

#[test]
fn a_new_order_changes_the_source_and_keeps_what_is_here() {
    let layout = layout(&[4 * P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..4, peer(1), &[])));
    b.receive(asked[0].0, 0, truth(0), peer(1));
    let actions = b.event(assign(2, 0..4, peer(2), &[]));
    let again: Vec<_> = fetches(&actions).into_iter().map(|(_, r, s)| (r, s)).collect();
    assert_eq!(again, [(1..2, peer(2)), (2..3, peer(2)), (3..4, peer(2))]);
    assert!(reports(&actions).is_empty(), "superseded without a word");
    assert_eq!(b.core.orders(), 1);
    // The same source goes on.
    let actions = b.event(assign(3, 1..4, peer(2), &[]));
    assert!(actions.is_empty(), "{actions:?}");
}

#[test]
fn an_order_for_what_is_here_is_done_at_once() {
    let layout = layout(&[2 * P]);
    let mut b = Bench::new(AgentConfig::default());
    b.event(Event::Opened {
        dataset: D,
        layout: layout.clone(),
        shard_checksums: origin_sums(&layout),
        known: all_known(&layout),
        have: RunSet::from_range(0..2),
        sealed: RunSet::from_range(0..1),
    });
    let actions = b.event(assign(1, 0..2, peer(1), &[]));
    assert!(matches!(reports(&actions)[..], [Report::Done { bytes: 0, elapsed_us: 0, .. }]));
}

#[test]
fn a_failing_origin_is_retried_with_pauses_and_given_back_in_the_end() {
    let layout = layout(&[2 * P]);
    let mut b = Bench::open(&layout, false);
    let mut asked = fetches(&b.event(assign(1, 0..2, Source::Origin, &[])));
    let mut rounds = 0;
    loop {
        let f = failure(FailureKind::Throttled, Source::Origin);
        let actions = b.end(asked[0].0, Err(f));
        if let [Report::Failed { missing, .. }] = reports(&actions)[..] {
            assert_eq!(*missing, RunSet::from_range(0..2));
            break;
        }
        assert!(fetches(&actions).is_empty(), "it waits first");
        let before = b.now;
        asked = fetches(&b.wait());
        assert_eq!(asked.len(), 1);
        assert!(b.now > before);
        rounds += 1;
    }
    assert_eq!(rounds, crate::limits::ORIGIN_RETRIES_MAX);
}

#[test]
fn a_changed_object_is_given_back_at_once() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..1, Source::Origin, &[])));
    let f = failure(FailureKind::OriginChanged, Source::Origin);
    let actions = b.end(asked[0].0, Err(f.clone()));
    let f = Failure { asked_us: 10, ..f };
    assert!(matches!(reports(&actions)[..], [Report::Failed { failure, .. }] if *failure == f));
}

#[test]
fn a_lease_that_runs_out_ends_the_order() {
    let layout = layout(&[2 * P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..2, Source::Origin, &[])));
    b.receive(asked[0].0, 0, truth(0), Source::Origin);
    let actions = b.wait();
    assert!(actions.contains(&Action::Abort { fetch: asked[0].0 }));
    assert!(reports(&actions).is_empty(), "it waits for the disk");
    let actions = b.written(0);
    assert!(matches!(
        reports(&actions)[..],
        [Report::Failed { missing, failure: Failure { kind: FailureKind::Timeout, .. }, .. }]
            if *missing == RunSet::from_range(1..2)
    ));
}

#[test]
fn a_parent_that_knows_nothing_yet_is_asked_again() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..1, peer(1), &[2])));
    let f = failure(FailureKind::NotHave, peer(1));
    assert!(b.end(asked[0].0, Err(f)).is_empty());
    let again = fetches(&b.wait());
    assert_eq!(again[0].2, peer(1));
    // The coordinator hears of the second time: it knows whether the parent should have it.
    let actions = b.end(again[0].0, Err(failure(FailureKind::NotHave, peer(1))));
    assert!(matches!(reports(&actions)[..], [Report::SourceFailed { .. }]));
    let again = fetches(&b.wait());
    assert_eq!(again[0].2, peer(1));
}

#[test]
fn a_parent_that_has_waited_itself_is_not_asked_again() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..1, peer(1), &[2])));
    b.now = b.now + crate::limits::NOT_HAVE_WAITED_US;
    let actions = b.end(asked[0].0, Err(failure(FailureKind::NotHave, peer(1))));
    assert_eq!(fetches(&actions)[0].2, peer(2));
}

#[test]
fn wrong_bytes_of_the_origin_are_read_once_more() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..1, Source::Origin, &[])));
    let actions = b.receive(asked[0].0, 0, Crc64(5), Source::Origin);
    let again = fetches(&actions);
    assert_eq!((rejects(&actions), again.len()), (vec![0], 1));
    let actions = b.receive(again[0].0, 0, Crc64(5), Source::Origin);
    assert!(matches!(
        reports(&actions)[..],
        [Report::Failed { failure: Failure { kind: FailureKind::Checksum, expected: Some(_), .. }, .. }]
    ));
}

#[test]
fn a_whole_that_is_not_the_origins_is_not_sealed_and_can_be_read_again() {
    let layout = layout(&[2 * P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..2, Source::Origin, &[])));
    b.receive(asked[0].0, 0, truth(0), Source::Origin);
    b.receive(asked[0].0, 1, Crc64(9), Source::Origin);
    b.end(asked[0].0, Ok(()));
    b.written(0);
    let actions = b.written(1);
    assert!(!actions.iter().any(|a| matches!(a, Action::Seal { .. })));
    assert!(matches!(reports(&actions)[..], [Report::Done { .. }, Report::Mismatch { .. }]));
    let actions = b.event(Event::DiscardShard { dataset: D, shard: 0 });
    assert_eq!(actions, [Action::Discard { dataset: D, shard: 0 }]);
    let asked = fetches(&b.event(assign(2, 0..2, peer(4), &[])));
    assert_eq!(asked.len(), 2);
    assert!(b.receive(asked[1].0, 1, Crc64(9), peer(4)).is_empty(), "the old checksum is forgotten");
}

#[test]
fn the_coordinators_word_wins_over_what_was_read() {
    let layout = layout(&[2 * P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..1, Source::Origin, &[])));
    b.receive(asked[0].0, 0, Crc64(9), Source::Origin);
    b.end(asked[0].0, Ok(()));
    b.written(0);
    let actions = b.event(Event::Checksums { dataset: D, first: 0, crcs: vec![truth(0)] });
    assert_eq!(actions[0], Action::Discard { dataset: D, shard: 0 });
    assert!(matches!(reports(&actions)[..], [Report::Lost { .. }]));
    assert_eq!(b.core.expected(D, 0), Some(truth(0)));
}

#[test]
fn answers_for_dropped_bytes_do_not_count() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..1, Source::Origin, &[])));
    b.receive(asked[0].0, 0, truth(0), Source::Origin);
    b.event(Event::DiscardShard { dataset: D, shard: 0 });
    let again = fetches(&b.event(assign(2, 0..1, Source::Origin, &[])));
    b.receive(again[0].0, 0, truth(0), Source::Origin);
    assert!(b.written(0).is_empty(), "that was the first write");
    assert!(matches!(reports(&b.written(0))[..], [Report::Done { .. }]));
}

#[test]
fn a_full_disk_stops_the_version_until_asked_again() {
    let layout = layout(&[4 * P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..4, peer(1), &[])));
    b.receive(asked[0].0, 0, truth(0), peer(1));
    let actions =
        b.event(Event::WriteFailed { dataset: D, piece: 0, kind: FailureKind::NoSpace, detail: "full".into() });
    assert!(matches!(reports(&actions)[..], [Report::Refused { kind: FailureKind::NoSpace, .. }]));
    assert!(fetches(&actions).is_empty());
    assert_eq!(b.core.orders(), 0);
    assert_eq!(fetches(&b.event(assign(2, 0..4, peer(1), &[]))).len(), 4);
}

#[test]
fn buffers_bound_what_is_asked_and_leave_room_for_the_origin() {
    let layout = layout(&[64 * P, 64 * P]);
    let config = AgentConfig { buffer_bytes: 16 * P, peer_pipeline_bytes: 8 * P, ..AgentConfig::default() };
    let mut b = Bench::new(config);
    b.event(opened(&layout, all_known(&layout)));
    let mut asked = 0;
    for n in 0..4u32 {
        let range = n * 16..(n + 1) * 16;
        asked += fetches(&b.event(assign(u64::from(n), range, peer(n), &[]))).len();
    }
    assert_eq!(asked, 12, "three quarters of the buffers");
    assert_eq!(fetches(&b.event(assign(9, 64..128, Source::Origin, &[]))).len(), 1);
    assert!(b.core.in_flight_bytes() <= 16 * P);
}

#[test]
fn what_comes_before_the_version_is_open_is_kept() {
    let layout = layout(&[P]);
    let mut b = Bench::new(AgentConfig::default());
    b.event(assign(1, 0..1, peer(1), &[]));
    assert!(b.core.is_expecting(D, 0));
    b.event(Event::Checksums { dataset: D, first: 0, crcs: vec![truth(0)] });
    let asked = fetches(&b.event(opened(&layout, vec![])));
    assert_eq!(accepts(&b.receive(asked[0].0, 0, truth(0), peer(1))), [0]);
}

#[test]
fn bytes_that_wait_for_a_checksum_give_way_to_an_order_to_read_the_origin() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, false);
    let asked = fetches(&b.event(assign(1, 0..1, peer(1), &[])));
    assert!(b.receive(asked[0].0, 0, truth(0), peer(1)).is_empty());
    let actions = b.event(assign(2, 0..1, Source::Origin, &[]));
    assert_eq!(rejects(&actions), [0]);
    assert_eq!(fetches(&actions).len(), 1);
}

#[test]
fn readings_of_the_origin_are_always_reported() {
    let layout = layout(&[P]);
    let mut b = Bench::open(&layout, true);
    let asked = fetches(&b.event(assign(1, 0..1, Source::Origin, &[])));
    let actions = b.receive(asked[0].0, 0, truth(0), Source::Origin);
    assert!(matches!(reports(&actions)[..], [Report::PiecesRead { first: 0, .. }]));
}
