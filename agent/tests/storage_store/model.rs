//! Everything at once: races, and a reference model with random steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use millstream_agent::piece::Served;
use millstream_types::checksum::PieceCombiner;
use millstream_types::{Crc64, PieceNo, ShardNo};
use proptest::prelude::*;

use crate::rig::{ENTRY, PIECE, Rig, Truth, sums};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_sealers_and_discarders_at_once_never_show_wrong_bytes() {
    let rig = Arc::new(Rig::new().await);
    let truth = Arc::new(Truth::new("d@v1", &[3 * PIECE, 2 * PIECE + 1, PIECE]));
    rig.open(&truth).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6u32 {
        let (rig, truth) = (rig.clone(), truth.clone());
        tasks.spawn(async move {
            for round in 0..30u32 {
                let shard = (task + round) % 3;
                match task {
                    0 => drop(rig.store().discard_shard(&truth.digest(), shard).await),
                    1 | 2 => drop(rig.store().seal(&truth.digest(), shard, truth.crc(shard)).await),
                    _ => {
                        for piece in truth.manifest.layout().shard_pieces(shard) {
                            rig.write(&truth, piece).await.unwrap();
                        }
                    }
                }
                rig.check_visible(&truth);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let opened = rig.open(&truth).await;
    assert_eq!(rig.check_visible(&truth), opened.sealed.iter().collect());
    for piece in opened.have.iter() {
        let Ok(Served::File { file, offset, len, .. }) = rig.store().read_piece(&truth.digest(), piece).await else {
            panic!("piece {piece} is said to be here");
        };
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes == truth.bytes(piece));
    }
    let layout = truth.manifest.layout();
    let have: u64 = opened.have.runs().iter().map(|r| layout.range_bytes(r.clone())).sum();
    let usage = rig.store().usage();
    assert_eq!(usage.used_bytes + usage.partial_bytes, have);
}

// ------------------------------------------------------------------ the model

#[derive(Clone, Debug)]
enum Op {
    Write(u32),
    WriteShard(u32),
    Seal(u32),
    Discard(u32),
    Verify(u32),
    Restart,
    /// A crash that loses the last entries of the journal.
    CutJournal(u16),
    /// A crash after which a piece of a partial file holds other bytes.
    FlipPartial(u32),
    /// Bit rot in a visible file that also changes its time.
    FlipSealed(u32),
    Evict,
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u32>();
    prop_oneof![
        8 => n.prop_map(Op::Write),
        4 => n.prop_map(Op::WriteShard),
        6 => n.prop_map(Op::Seal),
        2 => n.prop_map(Op::Discard),
        1 => n.prop_map(Op::Verify),
        2 => Just(Op::Restart),
        1 => any::<u16>().prop_map(Op::CutJournal),
        1 => n.prop_map(Op::FlipPartial),
        1 => n.prop_map(Op::FlipSealed),
        1 => Just(Op::Evict),
    ]
}

#[derive(Default)]
struct Model {
    have: BTreeSet<PieceNo>,
    sealed: BTreeSet<ShardNo>,
}

impl Model {
    fn lose_shard(&mut self, truth: &Truth, shard: ShardNo) {
        let pieces = truth.manifest.layout().shard_pieces(shard);
        self.have.retain(|piece| !pieces.contains(piece));
        self.sealed.remove(&shard);
    }

    fn is_complete(&self, truth: &Truth, shard: ShardNo) -> bool {
        truth.manifest.layout().shard_pieces(shard).all(|piece| self.have.contains(&piece))
    }
}

async fn step(rig: &mut Rig, truth: &Truth, model: &mut Model, op: Op) {
    let layout = truth.manifest.layout();
    let digest = truth.digest();
    let shard_of = |n: u32| n % layout.shards();
    match op {
        Op::Write(n) => {
            rig.write(truth, n % layout.pieces()).await.unwrap();
            model.have.insert(n % layout.pieces());
        }
        Op::WriteShard(n) => {
            rig.write_shard(truth, shard_of(n)).await;
            model.have.extend(layout.shard_pieces(shard_of(n)));
        }
        Op::Seal(n) => {
            let sealed = rig.store().seal(&digest, shard_of(n), truth.crc(shard_of(n))).await;
            assert_eq!(sealed.is_ok(), model.is_complete(truth, shard_of(n)), "{sealed:?}");
            sealed.is_ok().then(|| model.sealed.insert(shard_of(n)));
        }
        Op::Discard(n) => {
            rig.store().discard_shard(&digest, shard_of(n)).await.unwrap();
            model.lose_shard(truth, shard_of(n));
        }
        Op::Verify(n) => {
            let verified = rig.store().verify_shard(&digest, shard_of(n)).await;
            assert_eq!(verified.is_ok(), model.sealed.contains(&shard_of(n)), "{verified:?}");
        }
        Op::Restart => {
            rig.restart().await;
            rig.open(truth).await;
        }
        Op::CutJournal(n) => {
            rig.store = None;
            let path = rig.partial_path(truth, "journal");
            let journal = fs::read(&path).unwrap();
            let cut = journal.len() - usize::from(n) % (journal.len() + 1);
            fs::write(&path, &journal[..cut]).unwrap();
            // What entries the store has is its own affair: here only that it never claims too much.
            rig.restart().await;
            let have: BTreeSet<PieceNo> = rig.open(truth).await.have.iter().collect();
            assert!(have.is_subset(&model.have));
            let lost: Vec<_> = model.have.difference(&have).collect();
            assert!(lost.len() <= (journal.len() - cut).div_ceil(ENTRY), "{lost:?} for {cut}");
            assert!(lost.iter().all(|piece| !model.sealed.contains(&layout.shard_of(**piece))));
            model.have = have;
        }
        Op::FlipPartial(n) => {
            let piece = n % layout.pieces();
            let place = layout.place(piece);
            if model.sealed.contains(&place.shard) || !model.have.contains(&piece) {
                return;
            }
            rig.store = None;
            let path = rig.partial_path(truth, &place.shard.to_string());
            let at = place.offset + u64::from(n) % u64::from(place.len);
            let byte = truth.shards[place.shard as usize][at as usize];
            fs::File::options().write(true).open(path).unwrap().write_all_at(&[!byte], at).unwrap();
            rig.restart().await;
            rig.open(truth).await;
            model.have.remove(&piece);
        }
        Op::FlipSealed(n) => {
            let piece = n % layout.pieces();
            let place = layout.place(piece);
            if !model.sealed.contains(&place.shard) {
                return;
            }
            let path = rig.visible_path(truth, place.shard);
            rig.store = None;
            let at = place.offset + u64::from(n) % u64::from(place.len);
            let byte = truth.shards[place.shard as usize][at as usize];
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[!byte], at).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            rig.restart().await;
            rig.open(truth).await;
            model.have.remove(&piece);
            model.sealed.remove(&place.shard);
        }
        Op::Evict => {
            rig.store().evict(&digest).await.unwrap();
            *model = Model::default();
            rig.open(truth).await;
        }
    }
}

async fn check(rig: &Rig, truth: &Truth, model: &Model) {
    let layout = truth.manifest.layout();
    let opened = rig.open(truth).await;
    assert_eq!(opened.have.iter().collect::<BTreeSet<_>>(), model.have);
    assert_eq!(opened.sealed.iter().collect::<BTreeSet<_>>(), model.sealed);
    assert_eq!(rig.check_visible(truth), model.sealed, "exactly what is sealed is visible");
    let crcs: BTreeMap<PieceNo, Crc64> =
        opened.crcs.iter().flat_map(|(first, crcs)| (*first..).zip(crcs.iter().copied())).collect();
    assert_eq!(crcs, model.have.iter().map(|&p| (p, Crc64::of(truth.bytes(p)))).collect());
    let used: u64 = model.sealed.iter().map(|&s| layout.shard_len(s)).sum();
    let have: u64 = model.have.iter().map(|&p| u64::from(layout.place(p).len)).sum();
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (used, have - used));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn behaves_like_the_model(
        lens in proptest::collection::vec(prop_oneof![Just(0), 1..PIECE, Just(PIECE), PIECE..4 * PIECE], 1..5),
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let truth = Truth::with("d@v1", &lens, |i, bytes| sums(bytes).get(i).cloned());
        prop_assume!(truth.pieces() > 0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut rig = Rig::new().await;
            rig.open(&truth).await;
            let mut model = Model::default();
            for op in ops {
                step(&mut rig, &truth, &mut model, op).await;
                check(&rig, &truth, &model).await;
            }
        });
    }
}

#[test]
fn piece_checksums_of_the_tests_combine() {
    let truth = Truth::new("d@v1", &[3 * PIECE + 5]);
    let crcs = (0..truth.pieces()).map(|piece| Crc64::of(truth.bytes(piece)));
    assert_eq!(PieceCombiner::new(PIECE).shard(crcs, 3 * PIECE + 5), truth.crc(0));
}
