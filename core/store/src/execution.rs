//! Where a store's work runs: on threads, or in place for a simulation, in which one thread does everything in an order that
//! can be repeated. The work itself is the same.

use std::{fmt, pin::Pin, sync::Arc, thread};

use crate::StoreError;

/// Where a store's work runs.
#[derive(Clone, Default)]
pub enum Execution {
    /// Writes on a thread of their own, reads on tokio's threads for blocking work.
    #[default]
    Threads,
    /// Writes in one task of the runtime in which the store is opened, reads in their callers' tasks. Nothing happens at
    /// the same time as anything else, and how long it takes is for this disk to say.
    InPlace(Arc<dyn Disk>),
}

/// A future of a [`Disk`].
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The disk of a simulation: slow, full, or gone with its machine. An error from any of these means that the machine
/// has stopped: what is under way stays undone, or done and never answered, and the file is left as it is.
pub trait Disk: Send + Sync + 'static {
    /// Waits until a group of writes may begin, and says whether the file may grow.
    fn before_commit(&self) -> DiskFuture<'_, Room>;

    /// Waits, once a group is committed and before its callers are told.
    fn after_commit(&self) -> DiskFuture<'_, ()>;

    /// Waits until a read may begin.
    fn before_read(&self) -> DiskFuture<'_, ()>;
}

/// Room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// As much as is asked for.
    Some,
    /// None: a write that needs more of it fails with [`StoreError::Full`].
    None,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            Self::InPlace(_) => "InPlace",
        })
    }
}

/// The running writer.
pub(crate) enum Work {
    Thread(thread::JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

impl Work {
    /// Waits for its end; says whether it ended well.
    pub(crate) async fn ended(self) -> bool {
        match self {
            Self::Thread(thread) => {
                let joined = tokio::task::spawn_blocking(move || thread.join()).await;
                matches!(joined, Ok(Ok(())))
            }
            Self::Task(task) => task.await.is_ok(),
        }
    }
}
