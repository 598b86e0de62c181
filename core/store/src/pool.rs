//! The handle: opens the file, owns the writer thread and the readers. It knows no table.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    OpenError, ReadTxn, Seq, StoreError, WriteTxn,
    cache::Caches,
    migrations::{MIGRATIONS, known_version},
    writer::{self, Finished, Job},
};

/// Write jobs waiting at the most; further callers wait for a place.
const QUEUE: usize = 1024;

/// Where the file is and how much it may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The database file; created if absent.
    pub path: PathBuf,
    /// Read-only connections kept open.
    pub readers: usize,
    /// SQLite page cache of each connection, in KiB.
    pub cache_kib: u32,
}

impl StoreConfig {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readers: 4,
            cache_kib: 2048,
        }
    }
}

/// A handle to the one database file. Cheap to clone; the file closes after [`Store::close`] or with the last handle.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    readers: Mutex<Vec<Connection>>,
    reading: Semaphore,
    caches: Arc<Caches>,
    committed: watch::Receiver<Seq>,
}

impl Store {
    /// Opens or creates the file and brings its schema up to date.
    pub fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: config.path.clone(),
            source,
        };
        let mut conn = Connection::open(&config.path).map_err(io)?;
        configure(&conn, config).map_err(|error| damaged_or_io(config, error))?;
        let found: usize = conn
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .map_err(|error| damaged_or_io(config, error))?
            .try_into()
            .unwrap_or(usize::MAX);
        if found > known_version() {
            return Err(OpenError::Newer {
                path: config.path.clone(),
                found,
                known: known_version(),
            });
        }
        MIGRATIONS.to_latest(&mut conn).map_err(|source| OpenError::Migration {
            path: config.path.clone(),
            source,
        })?;
        let damaged = |error: StoreError| OpenError::Damaged {
            path: config.path.clone(),
            reason: error.to_string(),
        };
        let caches = Arc::new(load_caches(&conn).map_err(|error| damaged(error.into()))?);
        let seq = ReadTxn::new(&conn, &caches).last_seq().map_err(damaged)?;

        let mut readers = Vec::with_capacity(config.readers);
        for _ in 0..config.readers {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let reader = Connection::open_with_flags(&config.path, flags).map_err(io)?;
            configure_cache(&reader, config).map_err(io)?;
            readers.push(reader);
        }
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (committed_tx, committed) = watch::channel(seq);
        let thread = writer::spawn(conn, Arc::clone(&caches), queue, committed_tx).map_err(OpenError::Threads)?;
        let inner = Inner {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            reading: Semaphore::new(readers.len()),
            readers: Mutex::new(readers),
            caches,
            committed,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs `job` on the writer and returns its value once the commit that holds it is on disk. An `Err` from the job
    /// undoes everything it wrote.
    pub async fn write<T, E>(&self, job: impl FnOnce(&WriteTxn<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let sender = lock(&self.inner.jobs).clone().ok_or(StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |txn| {
            let result = job(txn);
            Finished {
                keep: result.is_ok(),
                answer: Box::new(move |fate| {
                    // The caller may have gone away; its work is kept all the same.
                    let _ = answer.send(fate.map_err(E::from).and(result));
                }),
            }
        });
        sender.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `job` on a reader, in one consistent snapshot.
    pub async fn read<T, E>(&self, job: impl FnOnce(&ReadTxn<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let _place = self.inner.reading.acquire().await.map_err(|_| StoreError::Closed)?;
        let reading = tokio::task::spawn_blocking(move || {
            let conn = lock(&inner.readers).pop().ok_or(StoreError::Closed)?;
            let result = snapshot(&conn, &inner.caches, job);
            lock(&inner.readers).push(conn);
            result
        });
        reading.await.map_err(|_| StoreError::Closed)?
    }

    /// The position of the last commit; changes wake whoever watches.
    pub fn committed(&self) -> watch::Receiver<Seq> {
        self.inner.committed.clone()
    }

    /// Finishes what is queued, folds the log into the file and closes it. Later calls get [`StoreError::Closed`].
    pub async fn close(&self) {
        lock(&self.inner.jobs).take();
        self.inner.reading.close();
        let thread = lock(&self.inner.thread).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the database writer ended abnormally");
            }
        }
        lock(&self.inner.readers).clear();
    }
}

/// A poisoned lock only says that another thread panicked; what these locks guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn snapshot<T, E: From<StoreError>>(
    conn: &Connection,
    caches: &Caches,
    job: impl FnOnce(&ReadTxn<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let txn = conn.unchecked_transaction().map_err(StoreError::from)?;
    job(&ReadTxn::new(&txn, caches))
}

/// Empty caches that give out numbers beyond those in the file.
fn load_caches(conn: &Connection) -> rusqlite::Result<Caches> {
    let last = |sql| conn.query_row(sql, [], |row| row.get(0));
    Ok(Caches::new(
        last("SELECT ifnull(max(event), 0) FROM events")?,
        last("SELECT ifnull(max(state), 0) FROM states")?,
    ))
}

fn configure(conn: &Connection, config: &StoreConfig) -> rusqlite::Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    configure_cache(conn, config)
}

fn configure_cache(conn: &Connection, config: &StoreConfig) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(128);
    // Readers must never fold the log: SQLite before 3.51.3 can corrupt a WAL that two connections reset at once.
    conn.pragma_update(None, "cache_size", -i64::from(config.cache_kib))
}

fn damaged_or_io(config: &StoreConfig, error: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(NotADatabase | DatabaseCorrupt) => OpenError::Damaged {
            path: config.path.clone(),
            reason: error.to_string(),
        },
        _ => OpenError::Io {
            path: config.path.clone(),
            source: error,
        },
    }
}
