//! The handle: owns the writer thread and the readers, and hands work to them. It knows no table.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    OpenError, ReadTxn, Seq, StoreError, WriteTxn,
    cache::Caches,
    execution::{Execution, Work},
    open::{damaged_or_sqlite, open_reader, open_writer},
    writer::{self, Job},
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
    /// Where its work runs.
    pub execution: Execution,
}

impl StoreConfig {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readers: 4,
            cache_kib: 2048,
            execution: Execution::Threads,
        }
    }
}

/// A handle to the one database file. Cheap to clone; the file closes after [`Store::close`] or with the last handle.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    writer: Mutex<Option<Work>>,
    execution: Execution,
    readers: Mutex<Vec<Connection>>,
    /// One permit for each reader.
    reading: Arc<Semaphore>,
    reader_count: usize,
    caches: Arc<Caches>,
    committed: watch::Receiver<Seq>,
}

impl Store {
    /// Opens or creates the file and brings its schema up to date. A file that is refused is left as it was.
    pub fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        let conn = open_writer(config)?;
        let (caches, seq) = read_counters(&conn).map_err(|error| damaged_or_sqlite(&config.path, error))?;
        let caches = Arc::new(caches);
        let readers = (0..config.readers.max(1))
            .map(|_| open_reader(config))
            .collect::<Result<Vec<_>, _>>()?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (committed_tx, committed) = watch::channel(seq);
        let writer = writer::spawn(conn, Arc::clone(&caches), queue, committed_tx, &config.execution)
            .map_err(OpenError::Threads)?;
        let inner = Inner {
            path: config.path.clone(),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(writer)),
            execution: config.execution.clone(),
            reading: Arc::new(Semaphore::new(readers.len())),
            reader_count: readers.len(),
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
        let job = WriteJob {
            work: Some(job),
            result: None,
            answer,
        };
        sender.send(Box::new(job)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `job` on a reader, in one consistent snapshot.
    pub async fn read<T, E>(&self, job: impl FnOnce(&ReadTxn<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let reading = Arc::clone(&inner.reading);
        let permit = reading.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let disk = match &inner.execution {
            Execution::Threads => None,
            Execution::InPlace(disk) => Some(Arc::clone(disk)),
        };
        let work = move || {
            // The job keeps the permit: it runs on although its caller may have gone away.
            let _permit = permit;
            let conn = lock(&inner.readers).pop().ok_or(StoreError::Closed)?;
            let result = catch_unwind(AssertUnwindSafe(|| snapshot(&conn, &inner.caches, job)));
            lock(&inner.readers).push(conn);
            result.unwrap_or_else(|_| Err(StoreError::Panicked.into()))
        };
        let Some(disk) = disk else {
            return tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| StoreError::Closed)?;
        };
        disk.before_read().await?;
        work()
    }

    /// The position of the last commit; changes wake whoever watches.
    pub fn committed(&self) -> watch::Receiver<Seq> {
        self.inner.committed.clone()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Finishes what is queued and what is being read, folds the log into the file and closes it. Later calls get
    /// [`StoreError::Closed`].
    pub async fn close(&self) {
        lock(&self.inner.jobs).take();
        // Readers go first, so that the writer finds nobody using the log.
        let permits = u32::try_from(self.inner.reader_count).unwrap_or(u32::MAX);
        let _all = self.inner.reading.acquire_many(permits).await;
        self.inner.reading.close();
        lock(&self.inner.readers).clear();
        let writer = lock(&self.inner.writer).take();
        if let Some(writer) = writer
            && !writer.ended().await
        {
            tracing::error!("the database writer ended abnormally");
        }
    }
}

/// A queued closure, and later its outcome.
struct WriteJob<F, T, E> {
    work: Option<F>,
    result: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for WriteJob<F, T, E>
where
    F: FnOnce(&WriteTxn<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run(&mut self, txn: &WriteTxn<'_>) -> bool {
        self.result = self.work.take().map(|work| work(txn));
        matches!(self.result, Some(Ok(_)))
    }

    fn finish(self: Box<Self>, fate: Result<(), StoreError>) {
        let result = match (self.result, fate) {
            // Its own failure says more than its group's.
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.into()),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(StoreError::Panicked.into()),
        };
        // The caller may have gone away; its work is kept all the same.
        let _ = self.answer.send(result);
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

/// Empty caches that give out numbers beyond those in the file, and the last position in it.
fn read_counters(conn: &Connection) -> rusqlite::Result<(Caches, Seq)> {
    let last = |sql| conn.query_row(sql, [], |row| row.get(0));
    let caches = Caches::new(
        last("SELECT ifnull(max(event), 0) FROM events")?,
        last("SELECT ifnull(max(state), 0) FROM states")?,
    );
    Ok((caches, Seq(last("SELECT seq FROM stream")?)))
}
