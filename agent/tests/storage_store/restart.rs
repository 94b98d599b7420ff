//! Journals, partial and sealed files that a stopped agent left, whole or not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use millstream_agent::storage::OpenedDataset;
use millstream_agent::storage::io::faulty::{Fault, On};
use millstream_types::{PieceNo, RunSet};

use crate::rig::{ENTRY, PIECE, Rig, Truth};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_may_be_cut_anywhere() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
    rig.open(&truth).await;
    let order: Vec<PieceNo> = vec![2, 0, 3, 1];
    for &piece in &order {
        rig.write(&truth, piece).await.unwrap();
    }
    let journal = rig.partial_path(&truth, "journal");
    let whole = fs::read(&journal).unwrap();
    assert_eq!(whole.len(), order.len() * ENTRY);
    let saved: Vec<Vec<u8>> = (0..2).map(|s| fs::read(rig.partial_path(&truth, &s.to_string())).unwrap()).collect();
    for cut in 0..=whole.len() {
        rig.store = None;
        fs::write(&journal, &whole[..cut]).unwrap();
        for (shard, bytes) in saved.iter().enumerate() {
            fs::write(rig.partial_path(&truth, &shard.to_string()), bytes).unwrap();
        }
        rig.restart().await;
        let expected: RunSet = order[..cut / ENTRY].iter().copied().collect();
        assert_eq!(rig.open(&truth).await.have, expected, "cut at {cut}");
        // What comes after a torn tail is found again, too.
        if cut % 16 == 5 {
            rig.write(&truth, order[cut / ENTRY]).await.unwrap();
            rig.restart().await;
            let expected: RunSet = order[..=cut / ENTRY].iter().copied().collect();
            assert_eq!(rig.open(&truth).await.have, expected, "cut at {cut}, and one more");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_partial_files_cost_the_damaged_pieces() {
    type Damage = fn(&PathBuf);
    let damages: [(Damage, &[PieceNo]); 4] = [
        (|path| fs::File::options().write(true).open(path).unwrap().set_len(PIECE + 10).unwrap(), &[0]),
        (|path| fs::File::options().write(true).open(path).unwrap().write_all_at(b"!", 5).unwrap(), &[1, 2]),
        (|path| fs::remove_file(path).unwrap(), &[]),
        (
            |path| {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
            },
            &[],
        ),
    ];
    for (damage, left) in damages {
        let mut rig = Rig::new().await;
        let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
        rig.open(&truth).await;
        for piece in 0..truth.pieces() {
            rig.write(&truth, piece).await.unwrap();
        }
        rig.store = None;
        damage(&rig.partial_path(&truth, "0"));
        rig.restart().await;
        let expected: RunSet = left.iter().copied().chain([3]).collect();
        assert_eq!(rig.open(&truth).await.have, expected);
        rig.fill(&truth).await;
        assert_eq!(rig.check_visible(&truth).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_file_that_was_touched_is_checked_again() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE, PIECE, PIECE]);
    rig.fill(&truth).await;
    let path = |shard| rig.visible_path(&truth, shard);
    let open = |shard| fs::File::options().write(true).open(path(shard)).unwrap();
    let (touched, bitten, gone) = (path(0), path(1), path(2));
    open(0).set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    open(1).write_all_at(b"??", 100).unwrap();
    fs::remove_file(&gone).unwrap();
    let before = fs::metadata(&touched).unwrap().ino();
    rig.restart().await;
    let opened = rig.open(&truth).await;
    assert_eq!(opened.sealed, [0, 3].into_iter().collect::<RunSet>());
    let place = truth.manifest.layout().shard_pieces(3).start;
    assert_eq!(opened.have, [0, 1, 2, place].into_iter().collect::<RunSet>());
    assert_eq!(rig.check_visible(&truth), BTreeSet::from([0, 3]));
    assert_eq!(fs::metadata(&touched).unwrap().ino(), before, "the same file");
    assert!(!bitten.exists());
    let usage = rig.store().usage();
    assert_eq!((usage.used_bytes, usage.partial_bytes), (3 * PIECE + 9, 0));
    rig.fill(&truth).await;
    assert_eq!(rig.check_visible(&truth).len(), 4);
    rig.restart().await;
    rig.engine.inject(On::Read, 0, 1000, Fault::Io);
    assert_eq!(rig.open(&truth).await.sealed.len(), 4, "trusted again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_records_are_made_up_for_by_the_journal() {
    let mut rig = Rig::new().await;
    let truth = Truth::new("d@v1", &[2 * PIECE + 9, PIECE]);
    rig.fill(&truth).await;
    let records = rig.tmp.path().join("records").join(truth.digest().to_string());
    let whole = fs::read(&records).unwrap();
    fs::write(&records, &whole[..whole.len() - 1]).unwrap();
    rig.restart().await;
    assert_eq!(rig.open(&truth).await.sealed.len(), 2);
    assert_eq!(rig.check_visible(&truth).len(), 2);
    // Without either, nobody knows what the bytes should be: they are not visible any more.
    rig.store = None;
    fs::remove_file(&records).unwrap();
    fs::write(rig.partial_path(&truth, "journal"), b"").unwrap();
    rig.restart().await;
    assert_eq!(rig.open(&truth).await, OpenedDataset::default());
    assert!(rig.check_visible(&truth).is_empty());
}
