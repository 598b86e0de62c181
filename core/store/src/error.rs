//! Why the store could not do what it was asked.

use std::{io, path::PathBuf, sync::Arc};

use rusqlite::{ErrorCode, ffi};

use crate::BackupError;

/// Why a database file cannot be opened. The file is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file was written by a newer version.
    #[error(
        "{path} was written by a newer version of Kith (schema {found}, this version knows up to {known}); update Kith to open it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        found: usize,
        /// The newest schema version known here.
        known: usize,
    },
    /// The file is not a Kith database, or is damaged.
    #[error("{path} is damaged or not a Kith database: {reason}; restore a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said of it.
        reason: String,
    },
    /// A migration failed; the file is as before it.
    #[error("migrating {path} failed and was undone")]
    Migration {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite_migration::Error,
    },
    /// There is no such file.
    #[error("there is no database at {0}")]
    Missing(PathBuf),
    /// The copy that is made before a migration could not be made; the file is as before.
    #[error("cannot make a copy before migrating")]
    Backup {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<BackupError>,
    },
    /// The file system refused.
    #[error("cannot open {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot open {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the database threads")]
    Threads(#[source] std::io::Error),
}

/// Why a read or a write failed. A failed write changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk takes nothing more: it is full, a quota is used up, or it fails. Reading goes on, and writing works again once
    /// that is mended.
    #[error("the disk is full")]
    Full,
    /// SQLite refused.
    #[error("database error")]
    Sqlite(#[source] rusqlite::Error),
    /// A stored value does not parse as what it should be.
    #[error("stored {what} does not parse: {reason}")]
    Corrupt {
        /// What the value is.
        what: &'static str,
        /// Why it does not parse.
        reason: String,
    },
    /// The commit that this was part of failed, though this itself had not.
    #[error("the commit failed")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// The job panicked.
    #[error("a database job panicked")]
    Panicked,
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else {
            Self::Sqlite(error)
        }
    }
}

/// SQLite tells only `ENOSPC` apart: a quota that is used up (`EDQUOT`) looks to it like any write that fails. The last one is
/// of the log's index, which could not be made longer.
const WRITES_REFUSED: [i32; 5] = [
    ffi::SQLITE_IOERR_WRITE,
    ffi::SQLITE_IOERR_FSYNC,
    ffi::SQLITE_IOERR_DIR_FSYNC,
    ffi::SQLITE_IOERR_TRUNCATE,
    ffi::SQLITE_IOERR_SHMSIZE,
];

/// Whether an error says that the disk takes nothing more.
pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            failure.code == ErrorCode::DiskFull || WRITES_REFUSED.contains(&failure.extended_code)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_each_of_its_signs() {
        let cases = [
            (ffi::SQLITE_FULL, true),
            (ffi::SQLITE_IOERR_SHMSIZE, true),
            (ffi::SQLITE_IOERR_WRITE, true),
            (ffi::SQLITE_IOERR_FSYNC, true),
            (ffi::SQLITE_IOERR_READ, false),
            (ffi::SQLITE_CORRUPT, false),
        ];
        for (code, expected) in cases {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert_eq!(matches!(StoreError::from(error), StoreError::Full), expected, "{code}");
        }
    }
}
