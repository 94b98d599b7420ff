//! What becomes visible, and what does not.

use std::os::unix::fs::FileExt as _;

use millstream_agent::buffers::Arena;
use millstream_agent::piece::Served;
use millstream_agent::storage::io::faulty::{Fault, On};
use millstream_agent::storage::{OpenedDataset, SealError, WriteError};
use millstream_types::{Crc64, RunSet};

use crate::rig::{PIECE, Rig, Truth, content, sums};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_become_visible_shards_that_a_restart_trusts_without_reading() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[0, 1, PIECE, 3 * PIECE + 17]);
    assert_eq!(rig.open(&truth).await, OpenedDataset::default());
    let digest = truth.digest();
    rig.write(&truth, 0).await.unwrap();
    assert_eq!(rig.store().usage().partial_bytes, 1);
    let layout = truth.manifest.layout();
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 4);
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (layout.bytes(), 0));
    for piece in 0..layout.pieces() {
        let Served::File { file, offset, len, crc } = rig.store().read_piece(&digest, piece).await.unwrap() else {
            panic!("not from the file");
        };
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes == truth.bytes(piece) && crc == Crc64::of(&bytes));
    }

    rig.restart().await;
    assert_eq!(rig.store().usage().used_bytes, layout.bytes(), "also before it is opened");
    rig.engine.inject(On::Read, 0, 1000, Fault::Io);
    let opened = rig.open(&truth).await;
    rig.engine.heal();
    assert_eq!(opened.have, RunSet::from_range(0..layout.pieces()));
    assert_eq!(opened.sealed, RunSet::from_range(0..4));
    let crcs: Vec<Crc64> = (0..layout.pieces()).map(|p| Crc64::of(truth.bytes(p))).collect();
    assert_eq!(opened.crcs, [(0, crcs.clone())]);
    let from_origin: Vec<_> = (0..layout.pieces()).step_by(2).map(|p| (p, vec![crcs[p as usize]])).collect();
    assert_eq!(opened.origin_read, from_origin);
    let all: Vec<Crc64> = (0..4).flat_map(|shard| rig.store().sealed_crcs(&digest, shard).unwrap()).collect();
    assert_eq!(all, crcs);
    for shard in 0..4 {
        rig.store().verify_shard(&digest, shard).await.unwrap();
        let serving = rig.store().read_piece(&digest, layout.shard_pieces(shard).start).await;
        assert_eq!(serving.is_ok(), layout.shard_len(shard) > 0 || shard == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_do_not_fit_are_refused() {
    let rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE]);
    let crc = Crc64::of(truth.bytes(0));
    let not_open = rig.store().write(&truth.digest(), 0, rig.piece(truth.bytes(0)).await, crc, false).await;
    assert!(matches!(not_open, Err(WriteError::NotOpen(_))));
    rig.open(&truth).await;
    let short = rig.piece(&truth.bytes(0)[..100]).await;
    let short_crc = short.crc();
    for (piece, bytes, crc) in [(0, short.clone(), short_crc), (0, rig.piece(truth.bytes(0)).await, short_crc)] {
        let refused = rig.store().write(&truth.digest(), piece, bytes, crc, false).await;
        assert!(matches!(refused, Err(WriteError::WrongPiece { .. })), "{refused:?}");
    }
    let beyond = rig.store().write(&truth.digest(), 2, short, short_crc, false).await;
    assert!(matches!(beyond, Err(WriteError::WrongPiece { .. })));
    rig.write(&truth, 0).await.unwrap();
    rig.write(&truth, 0).await.unwrap();
    let other = rig.piece(&content(PIECE, 99)).await;
    let other_crc = other.crc();
    let conflict = rig.store().write(&truth.digest(), 0, other, other_crc, false).await;
    assert!(matches!(conflict, Err(WriteError::WrongPiece { .. })));
    let early = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
    assert!(matches!(early, Err(SealError::Incomplete { missing: 1, .. })));
    assert!(rig.store().read_piece(&truth.digest(), 1).await.is_err());
    assert!(rig.store().seal(&truth.digest(), 9, Crc64(0)).await.is_err());
    assert!(rig.check_visible(&truth).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_origin_says_becomes_visible() {
    for small_arena in [false, true] {
        let mut rig = Rig::new().await;
        if small_arena {
            // One slot: no reading ahead.
            rig.arena = Arena::new(1).unwrap();
            rig.restart().await;
        }
        let lens = [3 * PIECE + 5; 4];
        let good = Truth::with("d@good", &lens, |i, bytes| Some(sums(bytes)[i].clone()));
        let bad = Truth::with("d@bad", &lens, |i, bytes| Some(sums(&bytes[1..])[i].clone()));
        rig.fill(&good).await;
        assert_eq!(rig.check_visible(&good).len(), 4);
        rig.open(&bad).await;
        for shard in 0..4 {
            rig.write_shard(&bad, shard).await;
            let sealed = rig.store().seal(&bad.digest(), shard, bad.crc(shard)).await;
            let Err(SealError::Mismatch { expected, actual, .. }) = sealed else { panic!("{sealed:?}") };
            let entry = &bad.manifest.shards()[shard as usize];
            assert_eq!(expected, entry.checksum.as_ref().unwrap().to_string());
            assert_ne!(expected, actual);
            assert_eq!(expected.split(':').next(), actual.split(':').next());
        }
        assert!(rig.check_visible(&bad).is_empty());
        // A caller whose pieces are others.
        let told = rig.store().seal(&bad.digest(), 0, Crc64(1)).await;
        assert!(matches!(told, Err(SealError::Mismatch { .. })));
        // The origin's bytes are fetched again after the wrong ones were discarded.
        rig.store().discard_shard(&bad.digest(), 1).await.unwrap();
        assert!(rig.store().read_piece(&bad.digest(), bad.manifest.layout().shard_pieces(1).start).await.is_err());
        rig.write_shard(&bad, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_changes_bytes_is_caught_before_they_are_visible() {
    let rig = Rig::new().await;
    let truth = Truth::with("d@v1", &[3 * PIECE], |_, bytes| Some(sums(bytes)[2].clone()));
    rig.open(&truth).await;
    for fault in [Fault::FlipBit(7), Fault::Lost] {
        rig.engine.inject(On::Write, 1, 1, fault);
        rig.write_shard(&truth, 0).await;
        let sealed = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
        assert!(matches!(sealed, Err(SealError::Corrupt { piece: 1, .. })), "{sealed:?}");
        assert!(rig.check_visible(&truth).is_empty());
        rig.store().discard_shard(&truth.digest(), 0).await.unwrap();
    }
    for on in [On::Sync, On::Read] {
        rig.write_shard(&truth, 0).await;
        rig.engine.inject(on, 0, 1, Fault::Io);
        let sealed = rig.store().seal(&truth.digest(), 0, truth.crc(0)).await;
        assert!(matches!(sealed, Err(SealError::Disk { .. })), "{sealed:?}");
        assert!(rig.check_visible(&truth).is_empty());
    }
    rig.store().seal(&truth.digest(), 0, truth.crc(0)).await.unwrap();
    assert_eq!(rig.check_visible(&truth).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_the_piece_and_nothing_else() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE, PIECE]);
    rig.open(&truth).await;
    rig.write(&truth, 0).await.unwrap();
    rig.engine.inject(On::Write, 0, 1, Fault::NoSpace);
    let full = rig.write(&truth, 1).await.unwrap_err();
    assert!(full.is_no_space() && full.to_string().contains("dir 0/0000.tar"), "{full}");
    rig.engine.inject(On::Open, 0, 1, Fault::NoSpace);
    assert!(rig.write(&truth, 2).await.unwrap_err().is_no_space());
    rig.engine.inject(On::Write, 0, 1, Fault::Torn);
    assert!(!rig.write(&truth, 1).await.unwrap_err().is_no_space());
    assert_eq!(rig.store().usage().partial_bytes, PIECE);
    rig.restart().await;
    assert_eq!(rig.open(&truth).await.have, RunSet::from_range(0..1));
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 2);
}
