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

/// The disk of a simulation: slow, or gone with its machine. An error from any of these means that the machine has stopped:
/// what is under way stays undone, or done and never answered, and the file is left as it is. How reads and writes fail is for
/// the file system to say, which a simulation can register with SQLite.
pub trait Disk: Send + Sync + 'static {
    /// Waits until a group of writes may begin.
    fn before_commit(&self) -> DiskFuture<'_, ()>;

    /// Waits, once a group is committed and before its callers are told.
    fn after_commit(&self) -> DiskFuture<'_, ()>;

    /// Waits until a read may begin.
    fn before_read(&self) -> DiskFuture<'_, ()>;
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

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{Mutex, PoisonError},
    };

    use super::*;
    use crate::{Store, StoreConfig};

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Moment {
        BeforeCommit,
        AfterCommit,
        BeforeRead,
    }

    /// A disk that notes what is asked of it, and is gone from a moment on.
    #[derive(Default)]
    struct Noted {
        moments: Mutex<Vec<Moment>>,
        stops: Option<Moment>,
    }

    impl Noted {
        fn note(&self, moment: Moment) -> DiskFuture<'_, ()> {
            self.moments.lock().unwrap_or_else(PoisonError::into_inner).push(moment);
            let stopped = self.stops == Some(moment);
            Box::pin(async move { if stopped { Err(StoreError::Closed) } else { Ok(()) } })
        }
    }

    impl Disk for Noted {
        fn before_commit(&self) -> DiskFuture<'_, ()> {
            self.note(Moment::BeforeCommit)
        }

        fn after_commit(&self) -> DiskFuture<'_, ()> {
            self.note(Moment::AfterCommit)
        }

        fn before_read(&self) -> DiskFuture<'_, ()> {
            self.note(Moment::BeforeRead)
        }
    }

    fn open(path: &Path, execution: Execution) -> Store {
        let mut config = StoreConfig::new(path);
        config.execution = execution;
        Store::open(&config).unwrap()
    }

    async fn put(store: &Store) -> Result<thread::ThreadId, StoreError> {
        let write = store.write(|txn| txn.set_setting("name", "x").map(|()| thread::current().id()));
        write.await
    }

    async fn is_there(store: &Store) -> Result<(bool, thread::ThreadId), StoreError> {
        let read = store.read(|txn| Ok((txn.setting("name")?.is_some(), thread::current().id())));
        read.await
    }

    #[tokio::test]
    async fn in_place_work_is_done_on_the_callers_thread_when_the_disk_lets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kith.db");
        let here = thread::current().id();
        let disk = Arc::new(Noted::default());
        let store = open(&path, Execution::InPlace(disk.clone()));
        assert_eq!(put(&store).await.unwrap(), here);
        assert_eq!(is_there(&store).await.unwrap(), (true, here));
        let moments = disk.moments.lock().unwrap().clone();
        assert_eq!(moments, [Moment::BeforeCommit, Moment::AfterCommit, Moment::BeforeRead]);
        store.close().await;
        let store = open(&path, Execution::Threads);
        assert_ne!(put(&store).await.unwrap(), here);
        assert_ne!(is_there(&store).await.unwrap().1, here);
        store.close().await;
    }

    #[tokio::test]
    async fn a_machine_that_stops_answers_nothing_and_keeps_what_was_committed() {
        for (stops, kept) in [(Moment::BeforeCommit, false), (Moment::AfterCommit, true)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("kith.db");
            let disk = Noted {
                stops: Some(stops),
                ..Noted::default()
            };
            let store = open(&path, Execution::InPlace(Arc::new(disk)));
            assert!(matches!(put(&store).await, Err(StoreError::Closed)), "{stops:?}");
            assert!(matches!(put(&store).await, Err(StoreError::Closed)), "{stops:?}");
            drop(store);
            let store = open(&path, Execution::Threads);
            assert_eq!(is_there(&store).await.unwrap().0, kept, "{stops:?}");
            store.close().await;
        }
    }

    #[tokio::test]
    async fn nothing_is_read_from_a_machine_that_has_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Noted {
            stops: Some(Moment::BeforeRead),
            ..Noted::default()
        };
        let store = open(&folder.path().join("kith.db"), Execution::InPlace(Arc::new(disk)));
        put(&store).await.unwrap();
        assert!(matches!(is_there(&store).await, Err(StoreError::Closed)));
    }
}
