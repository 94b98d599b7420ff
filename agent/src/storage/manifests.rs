//! Manifests kept beside the data, so that a restarted agent serves before it finds a coordinator. Opaque bytes here.

use std::io;

use millstream_types::Digest;

use super::io::run_blocking;
use super::store::Store;

const SUFFIX: &str = ".arrow";

pub(super) fn file_name(digest: &Digest) -> String {
    format!("{digest}{SUFFIX}")
}

impl Store {
    /// Keeps a manifest's bytes; lasting when this returns.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn save_manifest(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let (dir, name, bytes) = (self.dirs.manifests.clone(), file_name(digest), bytes.to_vec());
        run_blocking(move || dir.replace_file(&name, &bytes)).await
    }

    /// A manifest's bytes, if they are here. They were written by us, and are not checked here.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn load_manifest(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        let (dir, name) = (self.dirs.manifests.clone(), file_name(digest));
        run_blocking(move || dir.read_file(&name)).await
    }

    /// The versions whose manifests are here, sorted: those that were open before a restart.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn datasets_on_disk(&self) -> io::Result<Vec<Digest>> {
        let dir = self.dirs.manifests.clone();
        let names = run_blocking(move || dir.list()).await?;
        let mut digests: Vec<Digest> =
            names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect();
        digests.sort_unstable();
        Ok(digests)
    }
}
