//! A new version: what is under a URL, pinned as a manifest.
//!
//! Participants: the client service asks; the origin answers; the driver decides about names. Goals: an index beside
//! the data spares the checksum requests and knows every piece; a stale one is told and left aside. Non-goals:
//! reading the objects' bytes.

use std::sync::Arc;

use millstream_origin::{ListedObject, Origin, OriginError, index};
use millstream_proto::{manifest, v1};
use millstream_types::{DatasetKind, DatasetName, DatasetRef, Layout, Manifest, ShardEntry, Version};
use tokio::sync::mpsc;

use crate::apart::{apart, blocking};
use crate::driver::DriverHandle;
use crate::failure::RequestError;
use crate::limits::URL_BYTES_MAX;

/// A request, checked.
#[derive(Clone, Debug)]
pub(crate) struct Addition {
    name: DatasetName,
    version: Option<Version>,
    kind: DatasetKind,
    url: String,
}

impl Addition {
    pub(crate) fn parse(request: &v1::AddDatasetRequest) -> Result<Addition, RequestError> {
        let usage = |field, reason: String| RequestError::Usage { field, reason };
        let version = match request.version.as_str() {
            "" => None,
            text => Some(text.parse()?),
        };
        let kind = match request.kind.as_str() {
            "" | "dataset" => DatasetKind::Dataset,
            "checkpoint" => {
                DatasetKind::Checkpoint { run: request.run.parse::<DatasetName>()?.to_string(), step: request.step }
            }
            other => return Err(usage("kind", format!("{other:?} is not dataset or checkpoint"))),
        };
        if request.url.len() > URL_BYTES_MAX {
            return Err(usage("url", format!("over {URL_BYTES_MAX} bytes")));
        }
        Ok(Addition { name: request.name.parse()?, version, kind, url: request.url.clone() })
    }
}

/// What was found at the origin.
struct Snapshot {
    piece_len: u64,
    shards: Vec<ShardEntry>,
    indexed: bool,
}

type Progress = mpsc::Sender<Result<v1::AddDatasetProgress, tonic::Status>>;

/// Registers what is under the URL, and tells the progress.
pub(crate) async fn add(
    driver: &DriverHandle,
    addition: Addition,
    progress: &Progress,
) -> Result<v1::AddDatasetProgress, RequestError> {
    let (url, steps, to_tell) = (addition.url.clone(), progress.clone(), driver.clone());
    let found = apart(move || async move {
        tokio::select! {
            found = snapshot(&to_tell, &url, &steps) => found,
            // A client that has gone wants no dataset that takes minutes to list.
            () = steps.closed() => Err(RequestError::Stopping),
        }
    });
    let snapshot = found.await??;
    let shards = snapshot.shards.len() as u64;
    let mut tries = 0;
    let (info, already_there) = loop {
        let answer = try_add(driver, &addition, &snapshot).await;
        tries += 1;
        match answer {
            // Somebody else took the version that we had chosen: choose again.
            Err(RequestError::VersionConflict { .. }) if addition.version.is_none() && tries < 5 => {}
            other => break other?,
        }
    };
    Ok(v1::AddDatasetProgress {
        objects_listed: shards,
        bytes_listed: info.bytes,
        checksums_read: shards,
        done: Some(info),
        already_there,
    })
}

async fn try_add(
    driver: &DriverHandle,
    addition: &Addition,
    snapshot: &Snapshot,
) -> Result<(v1::DatasetInfo, bool), RequestError> {
    let name = addition.name.clone();
    let plan = driver.call(move |state, _| state.plan(&name)).await??;
    // Without a version, the same bytes again are the version that is there: a second one would only fill disks.
    let latest = plan.latest.filter(|_| addition.version.is_none());
    let latest_version = latest.as_ref().map(|m| m.name().version.clone());
    let again = match &latest_version {
        Some(version) => {
            let same = build(addition, snapshot, version.clone()).await?;
            latest.is_some_and(|l| l.digest() == same.digest())
        }
        None => false,
    };
    let version = match (&addition.version, latest_version) {
        (Some(version), _) => version.clone(),
        (None, Some(version)) if again => version,
        _ => plan.version,
    };
    let manifest = Arc::new(build(addition, snapshot, version).await?);
    let to_encode = manifest.clone();
    let encoded = blocking(move || manifest::encode(&to_encode, None)).await??;
    let indexed = snapshot.indexed;
    let answer = driver.call(move |state, now| state.add_version(now, manifest, Arc::new(encoded), indexed));
    answer.await??.settle().await
}

async fn build(addition: &Addition, snapshot: &Snapshot, version: Version) -> Result<Manifest, RequestError> {
    let name = DatasetRef { name: addition.name.clone(), version };
    let (kind, url) = (addition.kind.clone(), addition.url.clone());
    let (piece_len, shards) = (snapshot.piece_len, snapshot.shards.clone());
    let built = blocking(move || Manifest::new(name, kind, url, piece_len, shards)).await?;
    built.map_err(|source| RequestError::Manifest { url: addition.url.clone(), source })
}

async fn snapshot(driver: &DriverHandle, url: &str, progress: &Progress) -> Result<Snapshot, RequestError> {
    let at_origin = |source: OriginError| RequestError::Origin { url: url.to_owned(), source };
    let origin = Origin::from_url(url).map_err(at_origin)?;
    // A slow client misses progress; nothing waits for it.
    let tell = |step: v1::AddDatasetProgress| drop(progress.try_send(Ok(step)));
    let listing = origin.list(|seen| {
        tell(v1::AddDatasetProgress { objects_listed: seen.objects, bytes_listed: seen.bytes, ..Default::default() });
    });
    let listing = listing.await.map_err(at_origin)?;
    if listing.objects.is_empty() {
        return Err(at_origin(OriginError::NotFound {
            key: String::new(),
            detail: "nothing is under that URL".into(),
        }));
    }
    let bytes_listed = listing.objects.iter().map(|o| o.len).sum();
    let index = match listing.has_index {
        true => from_index(&origin, &listing.objects).await.map_err(at_origin)?,
        false => None,
    };
    match index {
        Some(Ok(found)) => return Ok(found),
        Some(Err(why)) => {
            let url = url.to_owned();
            driver.call(move |state, _| state.index_left_aside(&url, &why)).await?;
        }
        None => {}
    }
    let objects_listed = listing.objects.len() as u64;
    let facts = origin.facts(&listing.objects, |checksums_read| {
        tell(v1::AddDatasetProgress { objects_listed, bytes_listed, checksums_read, ..Default::default() });
    });
    let facts = facts.await.map_err(at_origin)?;
    let shards = listing.objects.into_iter().zip(facts);
    let shards = shards.map(|(object, facts)| ShardEntry {
        key: object.key,
        len: object.len,
        etag: object.etag,
        version_id: facts.version_id.or(object.version_id),
        checksum: facts.checksum,
        piece_crcs: None,
    });
    Ok(Snapshot { piece_len: Layout::piece_len_for(bytes_listed), shards: shards.collect(), indexed: false })
}

/// Why an index was left aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// It speaks of other objects than there are.
    #[error("{0}")]
    Stale(OriginError),
    /// It cannot be decoded.
    #[error("it is damaged ({0}); write it anew: millstream dataset index")]
    Damaged(manifest::ManifestDecodeError),
}

/// The snapshot that the index beside the data describes, if it is of any use.
async fn from_index(
    origin: &Origin,
    objects: &[ListedObject],
) -> Result<Option<Result<Snapshot, Unusable>>, OriginError> {
    let Some(bytes) = index::read(origin).await? else {
        return Ok(None);
    };
    let decoded = match manifest::decode(&bytes) {
        Ok(decoded) => decoded,
        Err(error) => return Ok(Some(Err(Unusable::Damaged(error)))),
    };
    let piece_len = decoded.layout().piece_len();
    let matching = index::matching(&decoded, objects);
    Ok(Some(matching.map(|shards| Snapshot { piece_len, shards, indexed: true }).map_err(Unusable::Stale)))
}
