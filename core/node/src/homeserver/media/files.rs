//! The files: written under a made-up name, then renamed to their hash. A file under its hash is always whole.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use kith_store::{MediaHash, StoreError};
use ruma::{api::error::ErrorKind, exports::http::StatusCode};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
};

use super::{media_id, too_large};
use crate::{Error, clock::World};

/// How long an uploader may fall silent.
const SILENCE: Duration = Duration::from_secs(60);

/// The folder of all files.
pub(super) struct Files {
    root: PathBuf,
    world: World,
}

/// A file that is on disk under a made-up name. Dropped without being named, it is removed.
pub(super) struct Written {
    pub(super) hash: MediaHash,
    pub(super) size: u64,
    temporary: Temporary,
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After renaming there is nothing here any more, and nothing else to be done if this fails.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Files {
    pub(super) fn new(root: PathBuf, world: World) -> Self {
        Self { root, world }
    }

    /// Where the file of a hash is, or would be.
    pub(super) fn path(&self, hash: &MediaHash) -> PathBuf {
        let name = media_id(hash);
        self.root.join(name.get(..2).unwrap_or_default()).join(name)
    }

    /// Writes a stream to disk, hashing it on the way; refuses once it is over `limit` bytes.
    pub(super) async fn write<E>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<Written, Error> {
        let (mut file, temporary) = self.create().await?;
        let mut body = pin!(body);
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0_u64);
        loop {
            let chunk = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(_))) | Err(_) => return Err(cut_short()),
            };
            size += chunk.len() as u64;
            if size > limit {
                return Err(too_large(limit));
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(io_failed)?;
        }
        file.flush().await.map_err(io_failed)?;
        file.sync_all().await.map_err(io_failed)?;
        Ok(Written {
            hash: *hasher.finalize().as_bytes(),
            size,
            temporary,
        })
    }

    /// Writes bytes that are all here.
    pub(super) async fn write_whole(&self, bytes: Bytes) -> Result<Written, Error> {
        let limit = bytes.len() as u64;
        let body = futures::stream::iter([Ok::<_, io::Error>(bytes)]);
        self.write(body, limit).await
    }

    /// Gives a file its hash for a name. It replaces one of that name, which held the same bytes.
    pub(super) async fn name(&self, written: Written) -> Result<(), Error> {
        let path = self.path(&written.hash);
        let folder = path.parent().unwrap_or(&self.root).to_owned();
        fs::create_dir_all(&folder).await.map_err(io_failed)?;
        fs::rename(&written.temporary.0, &path).await.map_err(io_failed)?;
        // The rename itself must be on disk before a row speaks of it.
        for folder in [folder.as_path(), &self.root] {
            sync_folder(folder).await.map_err(io_failed)?;
        }
        Ok(())
    }

    /// Removes files that nothing speaks of any more.
    pub(super) async fn remove(&self, hashes: &[MediaHash]) {
        for hash in hashes {
            let path = self.path(hash);
            if let Err(error) = fs::remove_file(&path).await
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a media file could not be removed");
            }
        }
    }

    /// Removes what a crash left half-written.
    pub(super) async fn clear_unfinished(&self) -> Result<(), Error> {
        let folder = self.unfinished();
        let cleared = self.world.compute(move || std::fs::remove_dir_all(folder)).await;
        match cleared.map_err(io::Error::from) {
            Ok(Err(error)) | Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_failed(error)),
            _ => Ok(()),
        }
    }

    async fn create(&self) -> Result<(File, Temporary), Error> {
        let folder = self.unfinished();
        fs::create_dir_all(&folder).await.map_err(io_failed)?;
        let path = folder.join(self.world.random_token());
        let file = File::create_new(&path).await.map_err(io_failed)?;
        Ok((file, Temporary(path)))
    }

    fn unfinished(&self) -> PathBuf {
        self.root.join("unfinished")
    }
}

#[cfg(unix)]
async fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).await?.sync_all().await
}

/// Elsewhere folders cannot be opened; the system keeps their order itself.
#[cfg(not(unix))]
async fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

fn cut_short() -> Error {
    Error::refused(
        StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Unknown,
        "the upload was cut short",
    )
}

fn io_failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Store(StoreError::Full),
        _ => Error::Internal("a media file could not be kept", Some(Box::new(error))),
    }
}
