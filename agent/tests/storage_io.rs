//! One conformance suite for storage engines: two engines never mean two behaviours.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use millstream_agent::buffers::Arena;
use millstream_agent::piece::{Unverified, Verified};
use millstream_agent::storage::dir::Dir;
use millstream_agent::storage::io::blocking::BlockingEngine;
use millstream_agent::storage::io::faulty::{Fault, FaultyEngine, On};
use millstream_agent::storage::io::uring::UringEngine;
use millstream_agent::storage::io::{Engine, Mode, Purpose, probe};
use proptest::prelude::*;

const PIECE: u64 = 64 * 1024;

fn engines() -> Vec<Arc<dyn Engine>> {
    // Where containers refuse io_uring the suite says so; the agent itself then runs on the blocking engine, too.
    let mut all: Vec<Arc<dyn Engine>> =
        vec![Arc::new(BlockingEngine::new()), FaultyEngine::new(Arc::new(BlockingEngine::new()))];
    match UringEngine::start() {
        Ok(engine) => all.push(Arc::new(engine)),
        Err(e) => eprintln!("io_uring is refused here, so it is not tested: {e}"),
    }
    all
}

/// The usual file system, and one in memory: they differ in how they take O_DIRECT.
fn places() -> Vec<tempfile::TempDir> {
    let mut all = vec![tempfile::tempdir().unwrap()];
    all.extend(tempfile::tempdir_in("/dev/shm").ok());
    all
}

fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

async fn piece(arena: &Arc<Arena>, bytes: &[u8]) -> Verified {
    let mut slot = arena.slot(bytes.len()).await;
    slot.fill(0xee); // what was in the slot before must not reach the disk
    slot[..bytes.len()].copy_from_slice(bytes);
    Unverified::sum(slot, bytes.len() as u32).learn_from_origin().0
}

/// Writes every piece of `bytes` at once, in a scrambled order, and reads all of it back in two ways.
async fn round_trip(engine: &Arc<dyn Engine>, at: &Path, name: &str, bytes: &[u8], piece_len: usize) {
    let arena = Arena::new(16 << 20).unwrap();
    let dir = Dir::open(at).unwrap();
    let len = bytes.len() as u64;
    let file = engine.open(&dir, name, Purpose::Write { len }).await.unwrap();
    assert_eq!(std::fs::metadata(at.join(name)).unwrap().len(), len, "it has its length from the start");
    let mut writes = tokio::task::JoinSet::new();
    let chunks: Vec<_> = bytes.chunks(piece_len).enumerate().collect();
    for (i, chunk) in chunks.iter().rev().step_by(2).chain(chunks.iter().rev().skip(1).step_by(2)) {
        let verified = piece(&arena, chunk).await;
        let (engine, file, offset) = (engine.clone(), file.clone(), (i * piece_len) as u64);
        writes.spawn(async move { engine.write_piece(&file, offset, verified).await });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap().unwrap();
    }
    engine.sync(&file).await.unwrap();
    assert!(std::fs::read(at.join(name)).unwrap() == bytes, "{}: what is on disk", engine.name());
    let again = engine.open(&dir, name, Purpose::Read).await.unwrap();
    assert_eq!(again.len(), len);
    for file in [&file, &again] {
        for (i, chunk) in bytes.chunks(piece_len).enumerate() {
            let slot = arena.slot(chunk.len()).await;
            let slot = engine.read_into(file, (i * piece_len) as u64, chunk.len() as u32, slot).await.unwrap();
            assert!(&slot[..chunk.len()] == chunk, "{}: piece {i}", engine.name());
        }
    }
    drop(file);
    assert_eq!(arena.free_bytes(), arena.bytes(), "every slot came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_any_length_come_back() {
    let piece = PIECE as usize;
    for place in places() {
        for engine in engines() {
            for len in [0, 1, 511, 4095, 4096, 4097, piece - 1, piece, piece + 1, 5 * piece, 37 * piece + 12345] {
                round_trip(&engine, place.path(), &format!("f{len}"), &content(len, len as u64), piece).await;
                std::fs::remove_file(place.path().join(format!("f{len}"))).unwrap();
            }
            round_trip(&engine, place.path(), "large", &content(9 << 20, 7), 4 << 20).await;
            // Pieces that are no multiple of a block: direct writes would overwrite their neighbours.
            round_trip(&engine, place.path(), "odd", &content(100_000, 8), 3333).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_geometry_comes_back(len in 0usize..300_000, piece_len in 1usize..65_537, seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let place = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            for engine in engines() {
                let bytes = content(len, seed);
                round_trip(&engine, place.path(), "f", &bytes, piece_len.max(len / 200).max(1)).await;
                std::fs::remove_file(place.path().join("f")).unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_past_the_end_and_writes_past_it_are_refused() {
    for engine in engines() {
        let place = tempfile::tempdir().unwrap();
        let arena = Arena::new(1).unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let file = engine.open(&dir, "f", Purpose::Write { len: 5000 }).await.unwrap();
        let kind = |r: io::Result<()>| r.unwrap_err().kind();
        let past = engine.read_into(&file, 4096, 905, arena.slot(905).await).await.map(drop);
        assert_eq!(kind(past), io::ErrorKind::UnexpectedEof, "{}", engine.name());
        let past = engine.read_into(&file, 8192, 1, arena.slot(1).await).await.map(drop);
        assert_eq!(kind(past), io::ErrorKind::UnexpectedEof);
        let past = engine.write_piece(&file, 4096, piece(&arena, &[1; 905]).await).await;
        assert_eq!(kind(past), io::ErrorKind::InvalidInput);
        let past = engine.write_piece(&file, u64::MAX - 10, piece(&arena, &[1; 905]).await).await;
        assert_eq!(kind(past), io::ErrorKind::InvalidInput);
        let short = engine.read_into(&file, 0, 100_000, arena.slot(1).await).await.map(drop);
        assert_eq!(kind(short), io::ErrorKind::InvalidInput, "a slot of 64 KiB for 100,000 bytes");
        engine.write_piece(&file, 4096, piece(&arena, &[1; 904]).await).await.unwrap();
        assert_eq!(std::fs::metadata(place.path().join("f")).unwrap().len(), 5000);
        assert_eq!(arena.free_bytes(), arena.bytes());
        let missing = engine.open(&dir, "nope", Purpose::Read).await.map(drop);
        assert_eq!(kind(missing), io::ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_the_buffer_with_the_operation() {
    for engine in engines() {
        let place = tempfile::tempdir().unwrap();
        let arena = Arena::new(4 << 20).unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let bytes = content(16 * PIECE as usize, 3);
        let file = engine.open(&dir, "f", Purpose::Write { len: bytes.len() as u64 }).await.unwrap();
        for (i, chunk) in bytes.chunks(PIECE as usize).enumerate() {
            let write = engine.write_piece(&file, i as u64 * PIECE, piece(&arena, chunk).await);
            let read = engine.read_into(&file, i as u64 * PIECE, 10, arena.slot(1).await);
            // Polled once, then dropped: started or not, the slots come back and nobody writes to them afterwards.
            tokio::select! { biased; _ = write => {}, _ = read => {}, () = std::future::ready(()) => {} }
        }
        // All slots at once: they can only be had when every operation is over.
        drop(arena.slot(4 << 20).await);
        let (write, len) = (piece(&arena, &bytes[..PIECE as usize]).await, PIECE as u32);
        engine.write_piece(&file, 0, write).await.unwrap();
        let back = engine.read_into(&file, 0, len, arena.slot(len as usize).await).await.unwrap();
        assert!(back[..len as usize] == bytes[..len as usize]);
    }
}

/// A file system of 1 MiB; needs root. Unmounted when dropped.
struct TinyDisk(PathBuf, #[allow(dead_code)] tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Option<TinyDisk> {
        let tmp = tempfile::tempdir().unwrap();
        let at = tmp.path().join("tiny");
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tiny"]).arg(&at).status();
        mounted.is_ok_and(|s| s.success()).then_some(TinyDisk(at, tmp))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_when_the_file_is_opened() {
    let Some(disk) = TinyDisk::mount() else {
        eprintln!("cannot mount a small file system without root; the faulty engine covers the agent's side");
        return;
    };
    for engine in engines() {
        let dir = Dir::open(&disk.0).unwrap();
        let full = engine.open(&dir, "f", Purpose::Write { len: 2 << 20 }).await.map(drop).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{}", engine.name());
        dir.unlink("f").unwrap();
        round_trip(&engine, &disk.0, "g", &content(300_000, 1), PIECE as usize).await;
        dir.unlink("g").unwrap();
    }
}

#[tokio::test]
async fn the_faulty_engine_does_what_its_script_says() {
    let place = tempfile::tempdir().unwrap();
    let arena = Arena::new(1).unwrap();
    let dir = Dir::open(place.path()).unwrap();
    let engine = FaultyEngine::new(Arc::new(BlockingEngine::new()));
    let file = engine.open(&dir, "f", Purpose::Write { len: 100 }).await.unwrap();
    engine.inject(On::Write, 1, 1, Fault::NoSpace);
    engine.inject(On::Write, 0, 1, Fault::FlipBit(150));
    let bytes = piece(&arena, &[0; 100]).await;
    engine.write_piece(&file, 0, bytes.clone()).await.unwrap();
    let full = engine.write_piece(&file, 0, bytes.clone()).await.unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    engine.write_piece(&file, 0, bytes.clone()).await.unwrap();
    let on_disk = std::fs::read(place.path().join("f")).unwrap();
    assert_eq!((on_disk[50], on_disk.iter().filter(|&&b| b != 0).count()), (0x10, 1));
    engine.inject(On::Sync, 0, 1, Fault::Io);
    assert!(engine.sync(&file).await.is_err());
    engine.sync(&file).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_chooses_and_gives_its_reasons() {
    let place = tempfile::tempdir().unwrap();
    let arena = Arena::new(1).unwrap();
    let (engine, choice) = probe(Mode::Blocking, place.path(), &arena).await.unwrap();
    assert_eq!((engine.name(), choice.engine, choice.fallback), ("blocking", "blocking", None));
    let (engine, choice) = probe(Mode::Auto, place.path(), &arena).await.unwrap();
    assert_eq!(engine.name(), choice.engine);
    assert_eq!(choice.engine == "blocking", choice.fallback.is_some(), "a fallback has a reason");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left behind");
    assert!(probe(Mode::Auto, &place.path().join("nope"), &arena).await.is_err());
    assert_eq!(arena.free_bytes(), arena.bytes());
}
