//! Objects: where the bytes come from, the ETag, and the checksum that the server holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use millstream_types::checksum::Crc64Stream;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::limits::{CLAIMED_PART_BYTES, FRAME_BYTES, MD5_ETAG_FILE_BYTES_MAX};
use crate::seeded::Seeded;

/// Which checksum the server stores with an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredChecksum {
    /// What S3 stores for new objects.
    #[default]
    Crc64Nvme,
    /// CRC-32C of the whole.
    Crc32c,
    /// CRC-32C of the parts' checksums: says nothing about the whole.
    Crc32cComposite,
    /// SHA-256 of the whole.
    Sha256,
    /// None, as objects from before checksums were stored.
    None,
}

/// How the ETag is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EtagKind {
    /// MD5 of the bytes, as for single-part uploads.
    #[default]
    Md5,
    /// With a dash, as for multipart uploads: no checksum of the whole, and nothing to compute.
    Multipart,
}

/// What the server says about an object's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectOptions {
    /// The stored checksum.
    pub checksum: StoredChecksum,
    /// The ETag.
    pub etag: EtagKind,
    /// Claims that the object is encrypted with a KMS key: its ETag is then no MD5.
    pub kms: bool,
}

/// Where bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Memory(Bytes),
    File(PathBuf),
    Seeded(Seeded),
}

/// An open content: one per request.
pub(crate) enum Reader {
    Memory(Bytes),
    File(File),
    Seeded(Seeded),
}

impl Reader {
    /// Fills `out` from `offset` on; `Ok(0)` when a file has become shorter than it was.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Reader::Memory(bytes) => {
                let from = &bytes[(offset as usize).min(bytes.len())..];
                let n = from.len().min(out.len());
                out[..n].copy_from_slice(&from[..n]);
                Ok(n)
            }
            Reader::File(file) => file.read_at(out, offset),
            Reader::Seeded(seeded) => {
                seeded.fill(offset, out);
                Ok(out.len())
            }
        }
    }
}

/// The checksum header of an object, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChecksumHeader {
    Crc64Nvme(String),
    Crc32c { value: String, full: bool },
    Sha256(String),
}

/// One object, immutable: new content is a new object.
#[derive(Debug)]
pub struct Object {
    pub(crate) content: Content,
    pub(crate) len: u64,
    pub(crate) modified: SystemTime,
    pub(crate) options: ObjectOptions,
    pub(crate) version_id: Option<String>,
    /// (modification time in ns, inode) of a file, to notice that it was replaced.
    identity: (i128, u64),
    etag: OnceLock<String>,
    checksum: OnceLock<Option<ChecksumHeader>>,
}

impl Object {
    fn new(content: Content, len: u64, options: ObjectOptions) -> Object {
        Object {
            content,
            len,
            modified: SystemTime::now(),
            options,
            version_id: None,
            identity: (0, 0),
            etag: OnceLock::new(),
            checksum: OnceLock::new(),
        }
    }

    pub(crate) fn from_bytes(bytes: Bytes, options: ObjectOptions) -> Object {
        let len = bytes.len() as u64;
        Object::new(Content::Memory(bytes), len, options)
    }

    pub(crate) fn seeded(seed: u64, len: u64, options: ObjectOptions) -> Object {
        Object::new(Content::Seeded(Seeded::new(seed)), len, options)
    }

    /// A file as it is now.
    pub(crate) fn from_file(path: &Path) -> io::Result<Object> {
        let meta = std::fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "not a file"));
        }
        let etag = match meta.len() <= MD5_ETAG_FILE_BYTES_MAX {
            true => EtagKind::Md5,
            false => EtagKind::Multipart,
        };
        let options = ObjectOptions { etag, ..ObjectOptions::default() };
        let mut object = Object::new(Content::File(path.to_owned()), meta.len(), options);
        object.modified = meta.modified()?;
        object.identity = identity(&meta);
        Ok(object)
    }

    /// Is a file still what it was?
    pub(crate) fn is_current(&self) -> bool {
        match &self.content {
            Content::File(path) => {
                std::fs::metadata(path).is_ok_and(|meta| meta.len() == self.len && identity(&meta) == self.identity)
            }
            _ => true,
        }
    }

    pub(crate) fn with_etag(self, etag: String) -> Object {
        let _ = self.etag.set(etag);
        self
    }

    pub(crate) fn open(&self) -> io::Result<Reader> {
        Ok(match &self.content {
            Content::Memory(bytes) => Reader::Memory(bytes.clone()),
            Content::File(path) => Reader::File(File::open(path)?),
            Content::Seeded(seeded) => Reader::Seeded(seeded.clone()),
        })
    }

    /// The ETag without quotes; computed once. May read the whole object.
    pub fn etag(&self) -> io::Result<&str> {
        if let Some(etag) = self.etag.get() {
            return Ok(etag);
        }
        let made = match self.options.etag {
            EtagKind::Md5 => {
                let mut hash = Md5::new();
                self.for_each(|bytes| hash.update(bytes))?;
                hex::encode(hash.finalize())
            }
            EtagKind::Multipart => self.claimed_etag(),
        };
        Ok(self.etag.get_or_init(|| made))
    }

    fn claimed_etag(&self) -> String {
        let mut hash = Md5::new();
        hash.update(self.len.to_be_bytes());
        match &self.content {
            Content::Seeded(seeded) => hash.update(format!("{seeded:?}")),
            Content::Memory(bytes) => hash.update(bytes),
            Content::File(path) => {
                hash.update(path.as_os_str().as_encoded_bytes());
                hash.update(self.identity.0.to_be_bytes());
                hash.update(self.identity.1.to_be_bytes());
            }
        }
        let parts = self.len.div_ceil(CLAIMED_PART_BYTES).max(1);
        format!("{}-{parts}", hex::encode(hash.finalize()))
    }

    /// The stored checksum; computed once. May read the whole object.
    pub(crate) fn checksum(&self) -> io::Result<Option<ChecksumHeader>> {
        if let Some(checksum) = self.checksum.get() {
            return Ok(checksum.clone());
        }
        let made = match self.options.checksum {
            StoredChecksum::None => None,
            StoredChecksum::Crc64Nvme => {
                let mut crc = Crc64Stream::default();
                self.for_each(|bytes| crc.update(bytes))?;
                let value = STANDARD.encode(crc.value().0.to_be_bytes());
                Some(ChecksumHeader::Crc64Nvme(value))
            }
            StoredChecksum::Crc32c | StoredChecksum::Crc32cComposite => {
                let mut crc = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
                self.for_each(|bytes| crc.update(bytes))?;
                let crc = crc.finalize() as u32;
                let full = self.options.checksum == StoredChecksum::Crc32c;
                let value = match full {
                    true => STANDARD.encode(crc.to_be_bytes()),
                    // One part: the checksum of its checksum.
                    false => format!(
                        "{}-1",
                        STANDARD.encode(
                            (crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &crc.to_be_bytes()) as u32).to_be_bytes()
                        )
                    ),
                };
                Some(ChecksumHeader::Crc32c { value, full })
            }
            StoredChecksum::Sha256 => {
                let mut hash = Sha256::new();
                self.for_each(|bytes| hash.update(bytes))?;
                Some(ChecksumHeader::Sha256(STANDARD.encode(hash.finalize())))
            }
        };
        Ok(self.checksum.get_or_init(|| made).clone())
    }

    fn for_each(&self, mut f: impl FnMut(&[u8])) -> io::Result<()> {
        if let Content::Memory(bytes) = &self.content {
            f(bytes);
            return Ok(());
        }
        let reader = self.open()?;
        let mut buf = vec![0; FRAME_BYTES];
        let mut at = 0;
        while at < self.len {
            let want = (self.len - at).min(FRAME_BYTES as u64) as usize;
            let n = reader.read_at(at, &mut buf[..want])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            f(&buf[..n]);
            at += n as u64;
        }
        Ok(())
    }
}

fn identity(meta: &std::fs::Metadata) -> (i128, u64) {
    let ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    (ns, meta.ino())
}
