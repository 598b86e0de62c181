//! The writer: runs queued jobs one after another and commits them in groups. It alone writes and checkpoints.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use rusqlite::{Connection, config::DbConfig};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    Seq, StoreError, WriteTxn,
    cache::Caches,
    error::is_full,
    execution::{Disk, Execution, Work},
};

/// Jobs committed together at the most; one fsync serves them all.
const GROUP: usize = 256;
/// A group takes no further job once its jobs have run for this long: the first ones wait for their answer.
const GROUP_TIME: Duration = Duration::from_millis(10);
/// Pages in the log from which it is folded into the file, between two groups.
const FOLD_PAGES: i32 = 1_000;
/// Pages in the log from which folding waits for readers, so that the log cannot grow without bound.
const FOLD_PATIENTLY_PAGES: i32 = 16_000;

thread_local! {
    /// Pages in the log after the latest commit on this thread.
    static LOG_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// One piece of work.
pub(crate) trait Job: Send {
    /// Does it inside the open transaction. Says whether to keep what it wrote.
    fn run(&mut self, txn: &WriteTxn<'_>) -> bool;

    /// Tells its caller, once it is settled whether the work lasts.
    fn finish(self: Box<Self>, fate: Result<(), StoreError>);
}

/// Runs until every sender is gone, then checkpoints and closes the file.
pub(crate) fn spawn(
    conn: Connection,
    caches: Arc<Caches>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    committed: watch::Sender<Seq>,
    execution: &Execution,
) -> std::io::Result<Work> {
    let writer = Writer {
        conn,
        caches,
        jobs,
        committed,
        full: false,
        log_pages: 0,
    };
    match execution {
        Execution::Threads => thread::Builder::new()
            .name("kith-store-writer".into())
            .spawn(move || writer.run())
            .map(Work::Thread),
        Execution::InPlace(disk) => Ok(Work::Task(tokio::spawn(writer.run_in_place(Arc::clone(disk))))),
    }
}

struct Writer {
    conn: Connection,
    caches: Arc<Caches>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    committed: watch::Sender<Seq>,
    /// Whether the last commit found the disk full: told once, not with every attempt.
    full: bool,
    /// Pages in the log.
    log_pages: i32,
}

/// What a job's caller is told if the commit succeeds.
type Fate = Result<(), StoreError>;

/// A group of jobs that is settled, with what their callers are to be told.
struct Settled {
    jobs: Vec<(Box<dyn Job>, Fate)>,
    /// The position of the commit that holds them.
    committed: Option<Seq>,
}

/// The open transaction is gone, and with it everything that its jobs wrote.
struct Lost(rusqlite::Error);

impl From<rusqlite::Error> for Lost {
    fn from(error: rusqlite::Error) -> Self {
        Self(error)
    }
}

impl Writer {
    fn run(mut self) {
        self.watch_log();
        while let Some(first) = self.jobs.blocking_recv() {
            let settled = self.commit_group(first);
            self.tell(settled);
            self.fold_log();
        }
        self.close();
    }

    /// [`Writer::run`] as a task, on a disk that a simulation makes up. When that fails, nobody is told anything more.
    async fn run_in_place(mut self, disk: Arc<dyn Disk>) {
        self.watch_log();
        while let Some(first) = self.jobs.recv().await {
            if disk.before_commit().await.is_err() {
                return;
            }
            let settled = self.commit_group(first);
            if disk.after_commit().await.is_err() {
                return;
            }
            self.tell(settled);
            self.fold_log();
        }
        if disk.before_commit().await.is_ok() {
            self.close();
        }
    }

    fn watch_log(&self) {
        self.conn.wal_hook(Some(|_, pages| {
            LOG_PAGES.set(pages);
            Ok(())
        }));
    }

    /// Nobody else folds the log, so it is done here, once, on the way out.
    fn close(self) {
        if let Err(error) = self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "final checkpoint failed; the log is replayed at the next start");
            return;
        }
        // With nothing left in it, closing may remove the log.
        let _ = self
            .conn
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
    }

    /// Runs queued jobs in one transaction, each in a savepoint of its own.
    fn commit_group(&mut self, first: Box<dyn Job>) -> Settled {
        let mut ran = Vec::new();
        // Several writers may share a thread.
        LOG_PAGES.set(self.log_pages);
        let outcome = self.run_group(first, &mut ran);
        self.log_pages = LOG_PAGES.get();
        match outcome {
            Ok(seq) => {
                if std::mem::take(&mut self.full) {
                    tracing::warn!("the disk has room again; writing goes on");
                }
                Settled {
                    jobs: ran,
                    committed: Some(seq),
                }
            }
            Err(Lost(error)) => {
                self.report(&error, ran.len());
                if !self.conn.is_autocommit()
                    && let Err(error) = self.conn.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "rollback failed");
                }
                let error = Arc::new(error);
                let undone = |(job, fate): (_, Fate)| (job, fate.and_then(|()| Err(shared(&error))));
                Settled {
                    jobs: ran.into_iter().map(undone).collect(),
                    committed: None,
                }
            }
        }
    }

    fn report(&mut self, error: &rusqlite::Error, jobs: usize) {
        if !is_full(error) {
            tracing::error!(%error, jobs, "a commit failed; its jobs are undone");
        } else if !std::mem::replace(&mut self.full, true) {
            tracing::error!(%error, "the disk takes nothing more; reading goes on, and writing once there is room");
        }
    }

    /// Answers the jobs of a group.
    fn tell(&self, settled: Settled) {
        if let Some(seq) = settled.committed {
            self.committed
                .send_if_modified(|last| std::mem::replace(last, seq) != seq);
        }
        for (job, fate) in settled.jobs {
            job.finish(fate);
        }
    }

    /// All jobs that were started end up in `ran`, with what is to be told if the commit succeeds.
    fn run_group(&mut self, first: Box<dyn Job>, ran: &mut Vec<(Box<dyn Job>, Fate)>) -> Result<Seq, Lost> {
        let started = Instant::now();
        ran.push((first, Ok(())));
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        while let Some((job, fate)) = ran.last_mut() {
            *fate = run_job(&self.conn, &self.caches, &mut **job)?;
            if ran.len() >= GROUP || started.elapsed() >= GROUP_TIME {
                break;
            }
            match self.jobs.try_recv() {
                Ok(next) => ran.push((next, Ok(()))),
                Err(_) => break,
            }
        }
        let seq = self
            .conn
            .prepare_cached("SELECT seq FROM stream")?
            .query_row([], |row| row.get(0))?;
        self.conn.execute_batch("COMMIT")?;
        Ok(Seq(seq))
    }

    /// Folds the log into the file once it is long, after the callers have their answers.
    fn fold_log(&self) {
        let mode = match self.log_pages {
            FOLD_PATIENTLY_PAGES.. => "PRAGMA wal_checkpoint(RESTART)",
            FOLD_PAGES.. => "PRAGMA wal_checkpoint(PASSIVE)",
            _ => return,
        };
        if let Err(error) = self.conn.execute_batch(mode) {
            tracing::warn!(%error, "checkpoint failed; the log grows until one succeeds");
        }
    }
}

/// Runs one job in its savepoint. One that fails or panics is undone by itself.
fn run_job(conn: &Connection, caches: &Caches, job: &mut dyn Job) -> Result<Fate, Lost> {
    conn.execute_batch("SAVEPOINT job")?;
    let outcome = catch_unwind(AssertUnwindSafe(|| job.run(&WriteTxn::new(conn, caches))));
    if conn.is_autocommit() {
        // SQLite ends the whole transaction by itself on some errors, a full disk among them, whether or not the job
        // passed the error on.
        return Err(Lost(transaction_ended()));
    }
    if !matches!(outcome, Ok(true)) {
        conn.execute_batch("ROLLBACK TO job")?;
    }
    conn.execute_batch("RELEASE job")?;
    if outcome.is_err() {
        tracing::error!("a database job panicked and was undone");
        return Ok(Err(StoreError::Panicked));
    }
    Ok(Ok(()))
}

/// SQLite does not say why it ended a transaction. A disk that is full or fails is what makes it do so; either way, trying
/// again later is what a caller can do.
fn transaction_ended() -> rusqlite::Error {
    let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
    rusqlite::Error::SqliteFailure(full, Some("the transaction was ended by SQLite".to_owned()))
}

fn shared(error: &Arc<rusqlite::Error>) -> StoreError {
    if is_full(error) {
        StoreError::Full
    } else {
        StoreError::Commit(Arc::clone(error))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Store, StoreConfig, StoreError, WriteTxn};

    fn limit(txn: &WriteTxn<'_>, pages: u32) -> Result<(), StoreError> {
        Ok(txn.conn().pragma_update(None, "max_page_count", pages)?)
    }

    fn much(txn: &WriteTxn<'_>) -> Result<(), StoreError> {
        txn.set_setting("much", &"x".repeat(10_000_000))
    }

    /// SQLite reports a limit on pages exactly as it does a full disk.
    #[tokio::test]
    async fn a_full_disk_is_told_and_passes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(folder.path().join("kith.db"))).unwrap();
        store.write(|txn| txn.set_setting("before", "x")).await.unwrap();
        store.write(|txn| limit(txn, 500)).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(store.write(much).await, Err(StoreError::Full)));
            // One that hides the error is not believed.
            let hidden = store.write(|txn| {
                let _ = much(txn);
                txn.set_setting("hidden", "x")
            });
            let _ = hidden.await;
            // Small work still fits.
            store.write(|txn| txn.set_setting("small", "x")).await.unwrap();
        }
        let read = store.read(|txn| Ok::<_, StoreError>((txn.setting("before")?, txn.setting("much")?)));
        assert!(matches!(read.await.unwrap(), (Some(_), None)));
        store.write(|txn| limit(txn, 1_000_000)).await.unwrap();
        store.write(much).await.unwrap();
        store.close().await;
        assert!(crate::check(&folder.path().join("kith.db")).unwrap().is_sound());
    }

    /// What SQLite does to a transaction on a full disk, or when an interrupt hits a write: it ends it.
    #[tokio::test]
    async fn a_transaction_that_sqlite_ended_is_not_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(folder.path().join("kith.db"))).unwrap();
        let first = store.write(|txn| txn.set_setting("first", "x"));
        let ended = store.write(|txn| {
            txn.set_setting("ended", "x")?;
            txn.conn().execute_batch("ROLLBACK")?;
            Ok::<_, StoreError>(())
        });
        let (first, ended) = tokio::join!(first, ended);
        assert!(matches!(ended, Err(StoreError::Full)));
        let names = store.read(|txn| Ok::<_, StoreError>((txn.setting("first")?, txn.setting("ended")?)));
        let (first_kept, ended_kept) = names.await.unwrap();
        // Whether or not they shared a commit, what was told is what is so.
        assert_eq!(first_kept.is_some(), first.is_ok());
        assert!(ended_kept.is_none());
        store.write(|txn| txn.set_setting("next", "x")).await.unwrap();
    }

    #[tokio::test]
    async fn the_log_is_folded_while_running() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(folder.path().join("kith.db"))).unwrap();
        for _ in 0..40 {
            store
                .write(|txn| txn.set_setting("much", &"x".repeat(1_000_000)))
                .await
                .unwrap();
        }
        let log = std::fs::metadata(folder.path().join("kith.db-wal")).unwrap().len();
        assert!(log < 20_000_000, "{log}");
        store.close().await;
    }
}
