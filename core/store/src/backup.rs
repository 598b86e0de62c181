//! Copies a database while it is in use. It never writes over a file.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, backup::Backup};

use crate::{
    OpenError, Store, StoreError,
    open::{beside, open_read_only, sync_folder},
};

/// Why no copy was made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is such a file already.
    #[error("{0} exists already; name a new file")]
    Exists(PathBuf),
    /// The database could not be opened for reading.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file system refused.
    #[error("cannot write {path}")]
    File {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot copy the database")]
    Sqlite(#[source] rusqlite::Error),
    /// The store is shut down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Copies everything that is committed now to a new file, which opens as a database of its own. Reading and
    /// writing go on meanwhile. The copy is on disk when this returns; it appears whole or not at all.
    pub async fn backup(&self, to: &Path) -> Result<(), BackupError> {
        let (from, to) = (self.path().to_owned(), to.to_owned());
        let copying = tokio::task::spawn_blocking(move || copy_to_new_file(&open_read_only(&from)?, &to));
        copying.await.map_err(|_| StoreError::Panicked)?
    }
}

/// Copies what a connection sees to a file that does not exist yet.
pub(crate) fn copy_to_new_file(from: &Connection, to: &Path) -> Result<(), BackupError> {
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let partial = beside(to, ".partial");
    let result = copy(from, &partial, to);
    // Gone already if all went well; an earlier attempt's remains go too.
    let _ = fs::remove_file(&partial);
    result
}

fn copy(from: &Connection, partial: &Path, to: &Path) -> Result<(), BackupError> {
    let file_error = |source| BackupError::File {
        path: to.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(partial).map_err(file_error)?;

    let mut copy = Connection::open(partial).map_err(BackupError::Sqlite)?;
    // A copy that is not finished is thrown away, so it needs no journal; it is made to last below.
    copy.pragma_update(None, "journal_mode", "OFF")
        .map_err(BackupError::Sqlite)?;
    copy.pragma_update(None, "synchronous", "OFF")
        .map_err(BackupError::Sqlite)?;
    let backup = Backup::new(from, &mut copy).map_err(BackupError::Sqlite)?;
    // All pages in one step: one snapshot, however much is written meanwhile.
    backup.step(-1).map_err(BackupError::Sqlite)?;
    drop(backup);
    drop(copy);
    File::open(partial)
        .and_then(|file| file.sync_all())
        .map_err(file_error)?;
    publish(partial, to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
        _ => file_error(error),
    })
}

/// Gives a finished file its name, without ever taking it from another one.
fn publish(partial: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(partial, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // File systems without hard links.
        Err(_) if !to.exists() => fs::rename(partial, to)?,
        Err(error) => return Err(error),
    }
    sync_folder(to)
}
