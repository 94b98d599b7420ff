use super::*;
use arrow::array::AsArray;
use arrow::ipc::reader::FileReader;
use millstream_types::limits::PIECE_BYTES_MIN;
use proptest::prelude::*;
use std::io::Cursor;

fn checksum() -> impl Strategy<Value = u8> {
    0u8..5
}

fn shard(no: usize, len: u64, kind: u8, etag: Option<String>, indexed: bool) -> ShardEntry {
    let data = vec![no as u8; len as usize];
    ShardEntry {
        key: format!("dir {no}/ü-{no}.tar").parse().unwrap(),
        len,
        version_id: etag.as_ref().map(|e| format!("v-{e}")),
        etag,
        checksum: match kind {
            0 => Some(OriginChecksum::Crc64Nvme(Crc64::of(&data))),
            1 => Some(OriginChecksum::Crc32c(len as u32)),
            2 => Some(OriginChecksum::Sha256([no as u8; 32])),
            3 => Some(OriginChecksum::Md5([no as u8; 16])),
            _ => None,
        },
        piece_crcs: indexed.then(|| {
            let pieces = data.chunks(PIECE_BYTES_MIN as usize);
            pieces.map(Crc64::of).collect()
        }),
    }
}

fn manifest_of(kind: DatasetKind, shards: Vec<ShardEntry>) -> Manifest {
    let name = "d@v1".parse().unwrap();
    Manifest::new(name, kind, "s3://b/p".into(), PIECE_BYTES_MIN, shards).unwrap()
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let one = (0u64..3 * PIECE_BYTES_MIN, checksum(), proptest::option::of("[\"a-f0-9-]{0,34}"), any::<bool>());
    let kind = prop_oneof![
        Just(DatasetKind::Dataset),
        ("[a-z ]{0,9}", any::<u64>()).prop_map(|(run, step)| DatasetKind::Checkpoint { run, step })
    ];
    (kind, proptest::collection::vec(one, 0..6)).prop_map(|(kind, parts)| {
        let shards = parts.into_iter().enumerate();
        let shards = shards.map(|(no, (len, kind, etag, indexed))| shard(no, len, kind, etag, indexed));
        manifest_of(kind, shards.collect())
    })
}

fn small() -> Manifest {
    let len = 2 * PIECE_BYTES_MIN + 5;
    let shards = (0..5).map(|no| shard(no, len, no as u8, Some("e".into()), no != 4));
    manifest_of(DatasetKind::Dataset, shards.collect())
}

#[test]
fn learned_checksums_are_written_and_counted() {
    let plain = manifest_of(DatasetKind::Dataset, vec![shard(0, 10, 4, None, false)]);
    let crc = Crc64::of(&[0; 10]);
    let bytes = encode(&plain, Some(&|_| Some(vec![crc]))).unwrap();
    let back = decode(&bytes).unwrap();
    assert_eq!(back.digest(), plain.digest());
    assert_eq!(back.shards()[0].piece_crcs, Some(vec![crc]));
    assert!(matches!(encode(&plain, Some(&|_| Some(vec![crc, crc]))), Err(ManifestEncodeError::PieceCount { .. })));
}

#[test]
fn any_arrow_reader_reads_it() {
    let bytes = encode(&small(), None).unwrap();
    let reader = FileReader::try_new(Cursor::new(bytes), None).unwrap();
    assert_eq!(reader.schema().metadata()["millstream.name"], "d");
    let batch = reader.into_iter().next().unwrap().unwrap();
    assert_eq!(batch.num_rows(), 5);
    assert_eq!(batch.column(0).as_string::<i32>().value(0), "dir 0/ü-0.tar");
}

#[test]
fn many_shards_take_several_batches() {
    let shards = (0..MANIFEST_BATCH_ROWS + 10).map(|no| shard(no, 1, 0, None, false));
    let manifest = manifest_of(DatasetKind::Dataset, shards.collect());
    let bytes = encode(&manifest, None).unwrap();
    assert_eq!(decode(&bytes).unwrap(), manifest);
    assert_eq!(encode(&manifest, None).unwrap(), bytes, "deterministic");
}

#[test]
fn the_stated_digest_must_be_the_computed_one() {
    let bytes = encode(&small(), None).unwrap();
    let digest = small().digest().to_string();
    let other = digest.chars().rev().collect::<String>();
    let mut forged = bytes.clone();
    let mut at = 0;
    while let Some(found) = find(&forged[at..], digest.as_bytes()) {
        forged[at + found..at + found + digest.len()].copy_from_slice(other.as_bytes());
        at += found + digest.len();
    }
    assert!(at > 0);
    assert!(matches!(decode(&forged), Err(ManifestDecodeError::Digest { .. })));
}

#[test]
fn a_flipped_bit_in_a_piece_checksum_shows() {
    let manifest = small();
    let bytes = encode(&manifest, None).unwrap();
    for shard in manifest.shards() {
        let Some(crcs) = &shard.piece_crcs else {
            continue;
        };
        let mut bad = bytes.clone();
        let at = find(&bad, &crcs[1].0.to_le_bytes()).unwrap();
        bad[at] ^= 1;
        assert!(decode(&bad).is_err(), "{}", shard.key);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Whatever decodes is the manifest that was written: nothing else passes for it.
fn check_damaged(bytes: &[u8], original: &Manifest) {
    match decode(bytes) {
        Ok(manifest) => assert_eq!(&manifest, original),
        Err(ManifestDecodeError::NotArrow(reason)) => {
            assert!(!reason.contains("gave up"), "arrow panicked");
        }
        Err(_) => {}
    }
}

#[test]
fn every_single_damaged_byte_is_survived() {
    let original = small();
    let bytes = encode(&original, None).unwrap();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            check_damaged(&bad, &original);
        }
    }
    for cut in 0..bytes.len() {
        assert!(decode(&bytes[..cut]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn manifests_survive_the_round_trip(manifest in manifests()) {
        let bytes = encode(&manifest, None).unwrap();
        prop_assert_eq!(decode(&bytes).unwrap(), manifest);
    }

    #[test]
    fn damage_in_many_places_is_survived(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>(), 1usize..8), 1..6),
    ) {
        let original = small();
        let mut bytes = encode(&original, None).unwrap();
        for (at, with, len) in edits {
            let at = at.index(bytes.len() - len);
            bytes[at..at + len].copy_from_slice(&with[..len]);
        }
        check_damaged(&bytes, &original);
    }

    #[test]
    fn arbitrary_bytes_are_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), footer in 0u32..300, magic in any::<bool>()) {
        if magic {
            bytes.extend(footer.to_le_bytes());
            bytes.extend(b"ARROW1");
        }
        prop_assert!(decode(&bytes).is_err());
    }
}
