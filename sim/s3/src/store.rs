//! Buckets and what is in them: in memory, or the files below a directory.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use millstream_types::ShardKey;

use crate::object::Object;

/// Files that are being written, never listed.
const UPLOAD_PREFIX: &str = ".millstream-s3-upload-";

/// One line of a listing.
pub(crate) enum Listed {
    Object(String, Arc<Object>),
    Prefix(String),
}

/// A page of a listing.
pub(crate) struct Page {
    pub(crate) entries: Vec<Listed>,
    /// Where the next page begins (after this key).
    pub(crate) next: Option<String>,
}

#[derive(Default)]
struct Bucket {
    directory: Option<PathBuf>,
    objects: BTreeMap<String, Arc<Object>>,
    /// Versions that were replaced, by key and version id.
    old: HashMap<(String, String), Arc<Object>>,
}

/// A part's bytes and the hex of their MD5.
pub(crate) type Part = (Bytes, String);

struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, Part>,
}

/// All buckets.
#[derive(Default)]
pub(crate) struct Store {
    buckets: RwLock<HashMap<String, Bucket>>,
    uploads: Mutex<HashMap<String, Upload>>,
    versioned: bool,
    serial: std::sync::atomic::AtomicU64,
}

impl Store {
    pub(crate) fn new(versioned: bool) -> Store {
        Store { versioned, ..Store::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Bucket>> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Bucket>> {
        self.buckets.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_serial(&self) -> u64 {
        let order = std::sync::atomic::Ordering::Relaxed;
        self.serial.fetch_add(1, order) + 1
    }

    pub(crate) fn add_bucket(&self, name: &str, directory: Option<PathBuf>) -> io::Result<()> {
        let mut bucket = Bucket { directory, ..Bucket::default() };
        bucket.rescan()?;
        self.write().entry(name.to_owned()).or_insert(bucket);
        Ok(())
    }

    pub(crate) fn has_bucket(&self, name: &str) -> bool {
        self.read().contains_key(name)
    }

    pub(crate) fn bucket_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.read().keys().cloned().collect();
        names.sort();
        names
    }

    /// The object as it is now; files that were replaced behind our back are noticed.
    pub(crate) fn get(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        let (known, directory) = {
            let buckets = self.read();
            let bucket = buckets.get(bucket)?;
            (bucket.objects.get(key).cloned(), bucket.directory.clone())
        };
        let Some(directory) = directory else {
            return known;
        };
        if let Some(object) = known.filter(|object| object.is_current()) {
            return Some(object);
        }
        let fresh = file_of(&directory, key).and_then(|path| Object::from_file(&path).ok());
        let mut buckets = self.write();
        let objects = &mut buckets.get_mut(bucket)?.objects;
        match fresh.map(Arc::new) {
            Some(object) => {
                objects.insert(key.to_owned(), object.clone());
                Some(object)
            }
            None => {
                objects.remove(key);
                None
            }
        }
    }

    pub(crate) fn get_version(&self, bucket: &str, key: &str, version: &str) -> Option<Arc<Object>> {
        if let Some(object) = self.get(bucket, key)
            && object.version_id.as_deref() == Some(version)
        {
            return Some(object);
        }
        let buckets = self.read();
        let old = &buckets.get(bucket)?.old;
        old.get(&(key.to_owned(), version.to_owned())).cloned()
    }

    /// Puts an object into a bucket (made when it is not there yet); `bytes` go to its directory, if it has one.
    pub(crate) fn put(&self, bucket: &str, key: &str, mut object: Object) -> io::Result<()> {
        let directory = self.read().get(bucket).and_then(|b| b.directory.clone());
        if let (Some(directory), crate::object::Content::Memory(bytes)) = (directory, &object.content) {
            let path =
                file_of(&directory, key).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
            object = write_file(&path, bytes, self.next_serial())?;
        }
        if self.versioned {
            object.version_id = Some(format!("v{:08}", self.next_serial()));
        }
        let object = Arc::new(object);
        let mut buckets = self.write();
        let bucket = buckets.entry(bucket.to_owned()).or_default();
        let replaced = bucket.objects.insert(key.to_owned(), object);
        if let Some(replaced) = replaced
            && let Some(version) = replaced.version_id.clone()
        {
            bucket.old.insert((key.to_owned(), version), replaced);
        }
        Ok(())
    }

    pub(crate) fn delete(&self, bucket: &str, key: &str) {
        let mut buckets = self.write();
        let Some(bucket) = buckets.get_mut(bucket) else {
            return;
        };
        bucket.objects.remove(key);
        if let Some(path) = bucket.directory.as_ref().and_then(|d| file_of(d, key)) {
            let _ = fs::remove_file(path);
        }
    }

    /// Keys after `after`, below `prefix`, folded at `delimiter`.
    pub(crate) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: &str,
        after: Option<&str>,
        max: usize,
    ) -> Option<io::Result<Page>> {
        if after.is_none() {
            let mut buckets = self.write();
            if let Err(e) = buckets.get_mut(bucket)?.rescan() {
                return Some(Err(e));
            }
        }
        let buckets = self.read();
        let objects = &buckets.get(bucket)?.objects;
        Some(Ok(page(objects, prefix, delimiter, after, max)))
    }

    pub(crate) fn begin_upload(&self, bucket: &str, key: &str) -> String {
        let id = format!("upload-{}", self.next_serial());
        let upload = Upload { bucket: bucket.to_owned(), key: key.to_owned(), parts: BTreeMap::new() };
        self.uploads().insert(id.clone(), upload);
        id
    }

    pub(crate) fn put_part(&self, id: &str, number: i32, bytes: Bytes, etag: String) -> bool {
        let mut uploads = self.uploads();
        let upload = uploads.get_mut(id);
        upload.is_some_and(|u| {
            u.parts.insert(number, (bytes, etag));
            true
        })
    }

    /// The upload's bucket, key, bytes and the MD5s of its parts, in order. The upload is gone then.
    pub(crate) fn end_upload(&self, id: &str) -> Option<(String, String, Vec<Part>)> {
        let upload = self.uploads().remove(id)?;
        let parts = upload.parts.into_values().collect();
        Some((upload.bucket, upload.key, parts))
    }
}

fn page(
    objects: &BTreeMap<String, Arc<Object>>,
    prefix: &str,
    delimiter: &str,
    after: Option<&str>,
    max: usize,
) -> Page {
    let mut entries = Vec::new();
    let mut last: Option<String> = None;
    let mut from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
        _ => Bound::Included(prefix.to_owned()),
    };
    loop {
        let next = objects.range::<String, _>((from, Bound::Unbounded)).next();
        let Some((key, object)) = next.filter(|(key, _)| key.starts_with(prefix)) else {
            return Page { entries, next: None };
        };
        if entries.len() == max {
            return Page { entries, next: last };
        }
        let folded = match delimiter.is_empty() {
            true => None,
            false => {
                key[prefix.len()..].find(delimiter).map(|at| key[..prefix.len() + at + delimiter.len()].to_owned())
            }
        };
        match folded {
            Some(folded) => {
                // All keys below sort before this one.
                let end = format!("{folded}\u{10ffff}");
                if after.is_none_or(|after| after < folded.as_str()) {
                    entries.push(Listed::Prefix(folded));
                }
                last = Some(end.clone());
                from = Bound::Excluded(end);
            }
            None => {
                entries.push(Listed::Object(key.clone(), object.clone()));
                last = Some(key.clone());
                from = Bound::Excluded(key.clone());
            }
        }
    }
}

impl Bucket {
    /// Looks at the directory again: new files come in, lost ones go, changed ones are made anew.
    fn rescan(&mut self) -> io::Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let mut found = BTreeMap::new();
        let mut open = vec![directory.clone()];
        while let Some(at) = open.pop() {
            for entry in fs::read_dir(at)? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let key = path.strip_prefix(directory).ok().and_then(Path::to_str);
                let Some(key) = key.filter(|key| !key.contains(UPLOAD_PREFIX)) else {
                    continue;
                };
                let known = self.objects.get(key).filter(|object| object.is_current());
                let object = match known {
                    Some(object) => object.clone(),
                    None => match Object::from_file(&path) {
                        Ok(object) => Arc::new(object),
                        Err(_) => continue,
                    },
                };
                found.insert(key.to_owned(), object);
            }
        }
        self.objects = found;
        Ok(())
    }
}

/// The file behind a key; none for keys that would land elsewhere.
fn file_of(directory: &Path, key: &str) -> Option<PathBuf> {
    let key: ShardKey = key.parse().ok()?;
    Some(directory.join(key.as_str()))
}

fn write_file(path: &Path, bytes: &[u8], serial: u64) -> io::Result<Object> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let temporary = parent.join(format!("{UPLOAD_PREFIX}{}-{serial}", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)?;
    Object::from_file(path)
}
