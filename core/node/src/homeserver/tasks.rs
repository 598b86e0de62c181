//! Background tasks of a service. They end with the service's last handle, or when told to; none outlives both.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A handle to a service's tasks. Dropping the last owning handle aborts them.
#[derive(Clone)]
pub(super) struct Tasks {
    inner: Weak<Inner>,
    /// None in what the tasks themselves hold: else they would keep each other alive.
    _owner: Option<Arc<Inner>>,
}

#[derive(Default)]
struct Inner {
    running: Mutex<JoinSet<()>>,
    closing: CancellationToken,
}

impl Tasks {
    /// An owner of no tasks yet.
    pub(super) fn new() -> Self {
        let inner = Arc::default();
        Self {
            inner: Arc::downgrade(&inner),
            _owner: Some(inner),
        }
    }

    /// A handle for a task to hold: it can start further tasks, and keeps none alive.
    pub(super) fn for_task(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            _owner: None,
        }
    }

    /// Starts a task, unless the service is closing.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(inner) = self.inner.upgrade() else { return };
        let closing = inner.closing.clone();
        let mut running = inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        if closing.is_cancelled() {
            return;
        }
        running.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends all tasks at their next pause and waits for them. None is started afterwards.
    pub(super) async fn shutdown(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.closing.cancel();
        let mut running = std::mem::take(&mut *inner.running.lock().unwrap_or_else(PoisonError::into_inner));
        while running.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::Tasks;

    #[tokio::test]
    async fn tasks_end_with_their_owner() {
        for told in [true, false] {
            let tasks = Tasks::new();
            let (sender, ended) = oneshot::channel::<()>();
            let held = tasks.for_task();
            tasks.spawn(async move {
                let _kept = (sender, held);
                pending::<()>().await;
            });
            let left = tasks.for_task();
            if told {
                tasks.shutdown().await;
            } else {
                drop(tasks);
            }
            // The task is gone when its end of the channel is.
            assert!(ended.await.is_err());
            let (sender, ended) = oneshot::channel::<()>();
            left.spawn(async move { drop(sender) });
            assert!(ended.await.is_err());
        }
    }
}
