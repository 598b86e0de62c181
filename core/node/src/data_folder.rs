//! The data folder: made private, and held by one process at a time. What is in it is other modules' business.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Why a data folder cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// Another process holds it.
    #[error("{0} is locked by another node; stop it first")]
    Locked(PathBuf),
    /// It cannot be made or written.
    #[error("cannot use the data folder {path}")]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A data folder that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// The lock ends with the file, however the process ends.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if need be, for this user only, and takes hold of it.
    pub fn hold(path: &Path) -> Result<Self, DataFolderError> {
        let unusable = |source| DataFolderError::Unusable {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unusable)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(path.join("kith.lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(DataFolderError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database in a data folder.
    pub fn database(path: &Path) -> PathBuf {
        path.join("kith.db")
    }

    /// The folder of the media files in a data folder.
    pub fn media(path: &Path) -> PathBuf {
        path.join("media")
    }

    /// The socket on which a running node answers commands.
    pub fn socket(path: &Path) -> PathBuf {
        path.join("kith.sock")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/data");
        let held = DataFolder::hold(&path).unwrap();
        assert!(matches!(DataFolder::hold(&path), Err(DataFolderError::Locked(locked)) if locked == path));
        drop(held);
        DataFolder::hold(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_no_folder_is_said_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("below")] {
            let error = DataFolder::hold(&path).unwrap_err();
            assert!(matches!(error, DataFolderError::Unusable { .. }), "{error}");
        }
    }
}
