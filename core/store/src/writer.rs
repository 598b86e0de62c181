//! The writer thread: runs queued jobs one after another and commits them in groups. It alone writes and checkpoints.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};

use crate::{Seq, StoreError, WriteTxn, cache::Caches};

/// Jobs committed together at the most; one fsync serves them all.
const GROUP: usize = 256;

/// What a job does inside the open transaction: run, and return what to tell its caller once the fate is known.
pub(crate) type Job = Box<dyn FnOnce(&WriteTxn<'_>) -> Finished + Send>;

/// A job that ran: whether to keep its changes, and how to answer its caller after the commit.
pub(crate) struct Finished {
    pub(crate) keep: bool,
    pub(crate) answer: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// Runs until every sender is gone, then checkpoints and closes the file.
pub(crate) fn spawn(
    conn: Connection,
    caches: Arc<Caches>,
    mut jobs: mpsc::Receiver<Job>,
    committed: watch::Sender<Seq>,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("kith-store-writer".into()).spawn(move || {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(first) = jobs.blocking_recv() {
            group.push(first);
            while group.len() < GROUP {
                match jobs.try_recv() {
                    Ok(job) => group.push(job),
                    Err(_) => break,
                }
            }
            commit_group(&conn, &caches, &mut group, &committed);
        }
        // Readers never checkpoint, so the log is folded into the file here, once, on the way out.
        if let Err(error) = conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "final checkpoint failed; the log is replayed at the next start");
        }
    })
}

/// Runs the jobs in one transaction, each in a savepoint of its own, and answers them after the commit.
fn commit_group(conn: &Connection, caches: &Caches, group: &mut Vec<Job>, committed: &watch::Sender<Seq>) {
    let mut answers = Vec::with_capacity(group.len());
    let outcome = (|| {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        for job in group.drain(..) {
            answers.push(run_job(conn, caches, job)?);
        }
        let seq = WriteTxn::new(conn, caches).last_seq()?;
        conn.execute_batch("COMMIT")?;
        Ok::<_, StoreError>(seq)
    })();
    match outcome {
        Ok(seq) => {
            committed.send_if_modified(|last| std::mem::replace(last, seq) != seq);
            answers.into_iter().flatten().for_each(|answer| answer(Ok(())));
        }
        Err(error) => {
            tracing::error!(%error, "a commit failed; its jobs are undone");
            if !conn.is_autocommit()
                && let Err(error) = conn.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "rollback failed");
            }
            group.clear();
            let full = matches!(error, StoreError::Full);
            for answer in answers.into_iter().flatten() {
                answer(Err(if full { StoreError::Full } else { StoreError::Closed }));
            }
        }
    }
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Runs one job in its savepoint. A job that panics is undone; its caller sees its channel close.
fn run_job(conn: &Connection, caches: &Caches, job: Job) -> Result<Option<Answer>, StoreError> {
    conn.execute_batch("SAVEPOINT job")?;
    let finished = catch_unwind(AssertUnwindSafe(|| job(&WriteTxn::new(conn, caches))));
    if !matches!(&finished, Ok(finished) if finished.keep) {
        conn.execute_batch("ROLLBACK TO job")?;
    }
    conn.execute_batch("RELEASE job")?;
    if finished.is_err() {
        tracing::error!("a database job panicked and was undone");
    }
    Ok(finished.ok().map(|finished| finished.answer))
}
