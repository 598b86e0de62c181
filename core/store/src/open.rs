//! Opens database files: looks before it touches, refuses what it must not open, migrates, and sets connections up. It
//! never writes to a file that it refuses.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::{
    OpenError, StoreConfig,
    backup::copy_to_new_file,
    migrations::{MIGRATIONS, known_version},
};

/// "Kith" in ASCII, in the header of every file of ours.
const APPLICATION_ID: i64 = 0x4B69_7468;
/// What every SQLite file begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes that the log keeps after it was folded into the file; beyond, it shrinks back.
const LOG_BYTES_KEPT: i64 = 4 * 1024 * 1024;
/// Bytes of the log that are written anew at once.
const PIECE: usize = 64 * 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;

/// What a look at a file finds.
pub(crate) enum Found {
    /// No file, or an empty one.
    Nothing,
    /// A database of ours, with this schema version.
    Schema(usize),
}

/// The fields of the file's header that say how long it is (SQLite, "Database File Format").
struct Header {
    page_bytes: u64,
    /// None if the header does not say.
    pages: Option<u64>,
}

/// Looks at a file without writing a byte. Refuses what is not ours, newer than we are, or visibly damaged.
pub(crate) fn look(path: &Path) -> Result<Found, OpenError> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(file_error(path, error)),
    };
    if length == 0 {
        return Ok(Found::Nothing);
    }
    let header = read_header(path)?;
    if !has_log(path)
        && let Some(pages) = header.pages
        && length < pages * header.page_bytes
    {
        return Err(damaged(path, "it is cut short"));
    }
    // What was committed last may stand in the log, which only SQLite can read.
    let conn = open_to_look(path)?;
    let number = |sql| conn.query_row(sql, [], |row| row.get::<_, i64>(0));
    let numbers = || {
        let version = number("PRAGMA user_version")?;
        let application = number("PRAGMA application_id")?;
        // Reads the whole schema, so that damage there shows.
        Ok((version, application, number("SELECT count(*) FROM sqlite_schema")?))
    };
    let (version, application, tables) = numbers().map_err(|error| damaged_or_sqlite(path, error))?;
    // Ours is marked with the first commit, and before that it has no table.
    if application != APPLICATION_ID && (version, application, tables) != (0, 0, 0) {
        return Err(damaged(path, "it belongs to another program"));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > known_version() {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: version,
            known: known_version(),
        });
    }
    Ok(Found::Schema(version))
}

/// Opens a file for writing, and creates or migrates it where that is needed. The connection neither folds the log by
/// itself nor when it closes: the writer does, when it chooses to.
pub(crate) fn open_writer(config: &StoreConfig) -> Result<Connection, OpenError> {
    let path = &config.path;
    let found = look(path)?;
    match found {
        Found::Nothing => create_private(path).map_err(|error| file_error(path, error))?,
        Found::Schema(_) => {
            make_private(path).map_err(|error| file_error(path, error))?;
            match make_log_last(path) {
                // A full disk keeps no node from starting.
                Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(file_error(path, error)),
                _ => {}
            }
        }
    }
    let mut conn = Connection::open(path).map_err(|error| sqlite_error(path, error))?;
    set_up_writer(&conn, config).map_err(|error| damaged_or_sqlite(path, error))?;
    migrate(path, &mut conn, &found)?;
    conn.pragma_update(None, "foreign_keys", true)
        .map_err(|error| sqlite_error(path, error))?;
    Ok(conn)
}

/// Opens a file that is ready, for reading only.
pub(crate) fn open_reader(config: &StoreConfig) -> Result<Connection, OpenError> {
    let conn = open_read_only(&config.path)?;
    let set_up = || {
        // SQLite before 3.51.3 can corrupt a log that two connections reset at once: only the writer ever folds it.
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        set_up_cache(&conn, config)
    };
    set_up().map_err(|error| sqlite_error(&config.path, error))?;
    Ok(conn)
}

/// A connection that cannot write. A log beside the file is read with it.
pub(crate) fn open_read_only(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(|error| sqlite_error(path, error))
}

/// A connection that leaves nothing beside the file. Where there is a log, somebody may be writing, and it is read too.
pub(crate) fn open_to_look(path: &Path) -> Result<Connection, OpenError> {
    if has_log(path) {
        return open_read_only(path);
    }
    let mut uri = String::from("file:");
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags).map_err(|error| sqlite_error(path, error))
}

/// Whether there is a log with something in it beside a file.
fn has_log(path: &Path) -> bool {
    fs::metadata(beside(path, "-wal")).is_ok_and(|metadata| metadata.len() > 0)
}

/// The path of a file that stands beside another one.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Creates an empty file that only its owner may read. SQLite gives its log the same mode.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.sync_all()?;
    make_private(path)?;
    sync_folder(path)
}

/// Makes the names in a file's folder last.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Writes the log once more as it reads now, and syncs it. A sync that fails leaves the system showing what the disk does not
/// hold, of which later syncs say nothing. SQLite believes a log that it finds, up to the last whole commit: one that was never
/// acknowledged because it could not be synced would be built upon, and be missing after a loss of power, with all that
/// followed it. While a connection stands this cannot happen: it writes over what it could not sync.
fn make_log_last(path: &Path) -> io::Result<()> {
    let log = beside(path, "-wal");
    let mut options = OpenOptions::new();
    let mut file = match options.read(true).write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut piece = vec![0; PIECE];
    loop {
        let at = file.stream_position()?;
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&piece[..read])?;
    }
    file.sync_all()
}

/// Takes the file, and what SQLite keeps beside it, from everybody but its owner.
#[cfg(unix)]
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for path in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_private(_: &Path) -> io::Result<()> {
    Ok(())
}

fn set_up_writer(conn: &Connection, config: &StoreConfig) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    set_up_cache(conn, config)
}

fn set_up_cache(conn: &Connection, config: &StoreConfig) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.pragma_update(None, "cache_size", -i64::from(config.cache_kib))?;
    conn.pragma_update(None, "temp_store", "MEMORY")
}

/// Brings the schema up to date in one transaction: an interrupted migration leaves the file as before and is done
/// again at the next start. Before a schema with data in it changes, the file is copied.
fn migrate(path: &Path, conn: &mut Connection, found: &Found) -> Result<(), OpenError> {
    if let Found::Schema(version @ 1..) = found
        && *version < known_version()
    {
        let copy = beside(path, &format!(".schema-{version}.backup"));
        // One from an interrupted attempt is as good: nothing was written since.
        if !copy.exists() {
            copy_to_new_file(conn, &copy).map_err(|source| OpenError::Backup {
                path: copy.clone(),
                source: Box::new(source),
            })?;
        }
    }
    MIGRATIONS.to_latest(conn).map_err(|source| OpenError::Migration {
        path: path.to_owned(),
        source,
    })
}

fn read_header(path: &Path) -> Result<Header, OpenError> {
    let mut bytes = [0; 100];
    let mut file = File::open(path).map_err(|error| file_error(path, error))?;
    match file.read_exact(&mut bytes) {
        Ok(()) if bytes.starts_with(MAGIC) => {}
        Ok(()) => return Err(damaged(path, "it is not an SQLite file")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(path, "it is not an SQLite file"));
        }
        Err(error) => return Err(file_error(path, error)),
    }
    let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let page_bytes = match u16::from_be_bytes([bytes[16], bytes[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    Ok(Header {
        page_bytes,
        // The count holds only if it was written together with the change counter.
        pages: (number(24) == number(92)).then(|| u64::from(number(28))),
    })
}

fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn file_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::File {
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn sqlite_error(path: &Path, source: rusqlite::Error) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn damaged_or_sqlite(path: &Path, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(NotADatabase | DatabaseCorrupt) => damaged(path, &error.to_string()),
        _ => sqlite_error(path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    /// A file that some earlier version left, with something in it.
    fn older(path: &Path, version: usize) {
        create_private(path).unwrap();
        let mut conn = Connection::open(path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        MIGRATIONS.to_version(&mut conn, version).unwrap();
        conn.execute_batch("UPDATE stream SET seq = 41").unwrap();
    }

    #[tokio::test]
    async fn every_older_schema_is_copied_and_then_migrated() {
        for version in 1..known_version() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("kith.db");
            older(&path, version);
            let store = Store::open(&StoreConfig::new(&path)).unwrap();
            assert_eq!(store.read(|txn| txn.last_seq()).await.unwrap().0, 41);
            store.close().await;
            let copy = beside(&path, &format!(".schema-{version}.backup"));
            assert!(matches!(look(&copy), Ok(Found::Schema(found)) if found == version));
            assert!(matches!(look(&path), Ok(Found::Schema(found)) if found == known_version()));
        }
    }

    #[tokio::test]
    async fn an_interrupted_migration_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kith.db");
        older(&path, 1);
        let copy = beside(&path, ".schema-1.backup");
        {
            // As far as an earlier attempt came: the copy is made, and nothing of the migration is committed.
            let mut conn = Connection::open(&path).unwrap();
            copy_to_new_file(&conn, &copy).unwrap();
            let txn = conn.transaction().unwrap();
            txn.execute_batch("CREATE TABLE servers (x); PRAGMA user_version = 2")
                .unwrap();
            // Dropped without a commit, as a crash would.
        }
        let store = Store::open(&StoreConfig::new(&path)).unwrap();
        assert_eq!(store.read(|txn| txn.last_seq()).await.unwrap().0, 41);
        store.close().await;
    }

    #[tokio::test]
    async fn without_a_copy_there_is_no_migration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kith.db");
        older(&path, 1);
        // Nothing can be written under this name.
        fs::create_dir(beside(&path, ".schema-1.backup.partial")).unwrap();
        let before = fs::read(&path).unwrap();
        let refused = Store::open(&StoreConfig::new(&path));
        assert!(matches!(refused.err(), Some(OpenError::Backup { .. })));
        assert!(matches!(look(&path), Ok(Found::Schema(1))));
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::remove_dir(beside(&path, ".schema-1.backup.partial")).unwrap();
        let store = Store::open(&StoreConfig::new(&path)).unwrap();
        store.write(|txn| txn.next_seq()).await.unwrap();
    }

    #[test]
    fn migrations_are_well_formed() {
        MIGRATIONS.validate().unwrap();
    }
}
