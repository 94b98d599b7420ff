//! Finding out what is on disk of a version: what may be trusted by its attributes, what must be read again, and
//! what has to go.
//!
//! A sealed file whose attributes are those of its record is trusted. A file below `datasets/` that has no such
//! record is taken out of sight at once, and its pieces are read like those of partial files. A piece of a partial
//! file counts when the journal (or an old record) says what it sums to and the bytes do.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use futures::StreamExt as _;
use millstream_types::{Crc64, Digest, Manifest, PieceNo, RunSet, ShardNo};

use super::check::{ReadBack, read_expected};
use super::dir::Dir;
use super::io::{FileHandle, Purpose, run_blocking};
use super::journal::{self, Entry};
use super::log::AppendLog;
use super::records::{self, Attributes, Record};
use super::seal::Reseal;
use super::store::{Dirs, Store};
use super::version::{JOURNAL, Version, VersionState};
use crate::limits::RECHECK_PIECES_AT_ONCE;

/// What a piece is said to sum to, and whether this node read it from the origin.
type Claim = (Crc64, bool);

/// What the directories and logs say, before any data is read.
struct Found {
    partial: Dir,
    journal: AppendLog,
    records: AppendLog,
    /// Trusted by their attributes.
    trusted: Vec<Record>,
    /// Claims about pieces of files in `partial/`.
    claims: BTreeMap<PieceNo, Claim>,
    /// What the journal itself claims.
    journaled: BTreeMap<PieceNo, Claim>,
    /// Shards that were visible and are not trusted.
    reseal: Reseal,
}

/// Opens a version: returns it and the shards that were visible, are complete and must be sealed again.
pub(super) async fn open_version(store: &Store, manifest: Arc<Manifest>) -> io::Result<(Version, Reseal)> {
    let dirs = (store.dirs.datasets.clone(), store.dirs.partial.clone(), store.dirs.records.clone());
    let for_looking = manifest.clone();
    let found = run_blocking(move || {
        let (datasets, partial, records) = dirs;
        look(&for_looking, &datasets, &partial, &records)
    })
    .await?;
    let layout = manifest.layout();
    let mut state = VersionState::empty(layout);
    for record in &found.trusted {
        for (piece, &(crc, from_origin)) in layout.shard_pieces(record.shard).zip(&record.pieces) {
            state.add(piece, crc, from_origin);
        }
        state.sealed.insert(record.shard);
    }
    let Found { partial, journal, records, claims, journaled, mut reseal, .. } = found;
    let mut version = Version::new(manifest, partial, journal, records, state);
    recheck(store, &version, &claims).await?;
    keep_only_true_claims(&mut version, &claims, &journaled).await?;
    let state = version.state();
    let layout = version.layout();
    reseal.retain(|&shard| state.have.contains_range(layout.shard_pieces(shard)));
    drop(state);
    Ok((version, reseal))
}

fn look(manifest: &Manifest, datasets: &Dir, partials: &Dir, records_dir: &Dir) -> io::Result<Found> {
    let (digest, layout) = (manifest.digest(), manifest.layout());
    let name = digest.to_string();
    let (partial, _) = partials.make(&name)?;
    let journal_bytes = partial.read_file(JOURNAL)?.unwrap_or_default();
    let (entries, journal_len) = journal::parse(&journal_bytes, &digest);
    let records_bytes = records_dir.read_file(&name)?.unwrap_or_default();
    let (all_records, records_len) = records::parse(&records_bytes, &digest);
    // A shard may have been sealed several times; the last record counts.
    let fits = |r: &Record| {
        r.shard < layout.shards()
            && r.pieces.len() == layout.shard_pieces(r.shard).len()
            && r.attributes.len == layout.shard_len(r.shard)
    };
    let count = all_records.len();
    let latest: HashMap<ShardNo, Record> = all_records.into_iter().filter(fits).map(|r| (r.shard, r)).collect();

    let mut claims = BTreeMap::new();
    for (shard, record) in &latest {
        claims.extend(layout.shard_pieces(*shard).zip(record.pieces.iter().copied()));
    }
    let mut journaled = BTreeMap::new();
    for Entry { shard, piece, len, crc, from_origin } in entries {
        let place = layout.get(piece);
        if place.is_some_and(|place| place.shard == shard && place.len == len) {
            journaled.insert(piece, (crc, from_origin));
        }
    }
    claims.extend(journaled.iter().map(|(piece, claim)| (*piece, *claim)));
    let (trusted, reseal) = sort_out_visible(manifest, datasets, &partial, &latest)?;
    let sealed: RunSet = trusted.iter().map(|record| record.shard).collect();
    claims.retain(|&piece, _| !sealed.contains(layout.shard_of(piece)));
    let records = rewrite_records(records_dir, &name, &digest, &trusted, count, records_len)?;
    let journal = AppendLog::open(&partial, JOURNAL, journal_len)?;
    Ok(Found { partial, journal, records, trusted, claims, journaled, reseal })
}

/// Which visible files can be trusted; the others are taken out of sight, into the partial directory.
fn sort_out_visible(
    manifest: &Manifest,
    datasets: &Dir,
    partial: &Dir,
    records: &HashMap<ShardNo, Record>,
) -> io::Result<(Vec<Record>, Reseal)> {
    let mut trusted = Vec::new();
    let mut reseal = Reseal::new();
    for shard in 0..manifest.layout().shards() {
        let path = format!("{}/{}", manifest.name(), manifest.shards()[shard as usize].key);
        let Some(stat) = datasets.stat(&path)? else { continue };
        let found = Attributes::of(&stat);
        match (records.get(&shard), found) {
            (Some(record), Some(found)) if record.attributes == found => trusted.push(record.clone()),
            (_, Some(_)) => {
                let name = Version::partial_name(shard);
                datasets.move_out(&path, partial, &name)?;
                let file = partial.open_file(&name, rustix::fs::OFlags::RDONLY)?;
                rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
                reseal.insert(shard);
            }
            // Something that is not a file: a directory is left for a person, anything else goes.
            (_, None) => drop(datasets.unlink(&path)),
        }
    }
    Ok((trusted, reseal))
}

/// The record file for appending; rewritten when more of it is stale than not.
fn rewrite_records(
    dir: &Dir,
    name: &str,
    digest: &Digest,
    live: &[Record],
    count: usize,
    good_len: u64,
) -> io::Result<AppendLog> {
    if count <= live.len() * 2 {
        return AppendLog::open(dir, name, good_len);
    }
    let mut bytes = Vec::new();
    live.iter().for_each(|record| record.encode(digest, &mut bytes));
    dir.replace_file(name, &bytes)?;
    AppendLog::open(dir, name, bytes.len() as u64)
}

/// Reads every claimed piece of every partial file; those that are what was claimed count. Removes files of which
/// nothing counts.
async fn recheck(store: &Store, version: &Version, claims: &BTreeMap<PieceNo, Claim>) -> io::Result<()> {
    let partial = version.partial.clone();
    let names = run_blocking(move || partial.list()).await?;
    for name in names {
        if name == JOURNAL {
            continue;
        }
        let shard = name.parse::<ShardNo>().ok().filter(|&s| s < version.layout().shards() && s.to_string() == name);
        let good = match shard {
            Some(shard) => recheck_shard(store, version, shard, &name, claims).await?,
            None => 0,
        };
        if good == 0
            && let Err(error) = version.partial.unlink(&name)
        {
            tracing::warn!(digest = %version.digest, name, %error, "cannot remove what is of no use");
        }
    }
    Ok(())
}

/// How many pieces of a partial file are what was claimed. Those are added to the version.
async fn recheck_shard(
    store: &Store,
    version: &Version,
    shard: ShardNo,
    name: &str,
    claims: &BTreeMap<PieceNo, Claim>,
) -> io::Result<usize> {
    let layout = version.layout();
    let pieces = layout.shard_pieces(shard);
    if pieces.is_empty() || version.state().sealed.contains(shard) {
        return Ok(0);
    }
    let claimed: Vec<(PieceNo, Claim)> = claims.range(pieces).map(|(p, c)| (*p, *c)).collect();
    if claimed.is_empty() {
        return Ok(0);
    }
    // A truncated file gets its length back: what was cut off is zeros now, and does not sum to its claim.
    let purpose = Purpose::Write { len: layout.shard_len(shard) };
    let file: FileHandle = match store.engine.open(&version.partial, name, purpose).await {
        Ok(file) => file,
        Err(error) if super::error::is_no_space(&error) => return Err(error),
        Err(error) => {
            tracing::warn!(digest = %version.digest, shard, %error, "cannot open a partial file; its pieces are fetched again");
            return Ok(0);
        }
    };
    let checks = claimed.into_iter().map(|(piece, (crc, from_origin))| {
        let file = &file;
        async move {
            let slot = store.arena.slot(layout.place(piece).len as usize).await;
            let read = read_expected(store, version, file, piece, crc, slot).await;
            (piece, crc, from_origin, read.map(drop))
        }
    });
    let mut checks = futures::stream::iter(checks).buffer_unordered(RECHECK_PIECES_AT_ONCE);
    let mut good = 0;
    while let Some((piece, crc, from_origin, result)) = checks.next().await {
        match result {
            Ok(()) => {
                version.state().add(piece, crc, from_origin);
                good += 1;
            }
            Err(ReadBack::Bad { mismatch, .. }) => {
                tracing::warn!(digest = %version.digest, piece, %mismatch, "a piece was lost in the restart");
            }
            Err(ReadBack::Disk(error)) => {
                tracing::warn!(digest = %version.digest, piece, %error, "cannot read a piece; it is fetched again");
            }
        }
    }
    Ok(good)
}

/// Rewrites the journal when it claims anything but the pieces that turned out to be there.
async fn keep_only_true_claims(
    version: &mut Version,
    claims: &BTreeMap<PieceNo, Claim>,
    journaled: &BTreeMap<PieceNo, Claim>,
) -> io::Result<()> {
    let held: BTreeMap<PieceNo, Claim> = {
        let state = version.state();
        claims.iter().filter(|(piece, _)| state.have.contains(**piece)).map(|(p, c)| (*p, *c)).collect()
    };
    if held == *journaled {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(held.len() * journal::ENTRY_BYTES);
    for (&piece, &(crc, from_origin)) in &held {
        let place = version.layout().place(piece);
        Entry { shard: place.shard, piece, len: place.len, crc, from_origin }.encode(&version.digest, &mut bytes);
    }
    version.journal.replace(&version.partial, JOURNAL, bytes).await
}

/// Bytes that versions have on disk by their records and partial files, before they are opened. Blocks.
pub(super) fn left_behind(dirs: &Dirs) -> io::Result<Vec<(Digest, u64)>> {
    let mut held: BTreeMap<Digest, u64> = BTreeMap::new();
    for name in dirs.records.list()? {
        let Ok(digest) = name.parse::<Digest>() else { continue };
        let bytes = dirs.records.read_file(&name)?.unwrap_or_default();
        let (records, _) = records::parse(&bytes, &digest);
        let latest: HashMap<ShardNo, u64> = records.iter().map(|r| (r.shard, r.attributes.len)).collect();
        *held.entry(digest).or_default() += latest.values().sum::<u64>();
    }
    for name in dirs.partial.list()? {
        let Ok(digest) = name.parse::<Digest>() else { continue };
        let dir = dirs.partial.sub(&name)?;
        for file in dir.list()?.iter().filter(|file| *file != JOURNAL) {
            *held.entry(digest).or_default() += dir.stat(file)?.map_or(0, |stat| stat.st_size as u64);
        }
    }
    Ok(held.into_iter().collect())
}
