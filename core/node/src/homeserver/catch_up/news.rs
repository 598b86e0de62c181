//! What the services that keep and send events tell the one that catches up: heads that moved, and who is known to hold
//! them. It decides nothing, and reads no clock, since it is told from the writer's thread too.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kith_engine::{Applied, limits::MAX_HEADS};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName};
use tokio::sync::Notify;

/// News of holders that wait to be taken up; the oldest make room, at the cost of telling somebody twice.
const MAX_WAITING: usize = 10_000;

/// The way there. Cheap to clone.
#[derive(Clone, Default)]
pub struct News {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

/// All news since they were last taken.
#[derive(Default)]
pub(super) struct Waiting {
    /// The rooms whose heads moved: with which event, and the heads since then, if they are few.
    pub(super) moved: BTreeMap<OwnedRoomId, (OwnedEventId, Option<Vec<OwnedEventId>>)>,
    /// Servers that hold an event; whether it is theirs and they sent it here.
    pub(super) holders: VecDeque<(OwnedEventId, OwnedServerName, bool)>,
}

impl News {
    /// An event is about to be kept. That it is not in the end does no harm.
    pub(crate) fn note_kept(&self, applied: &Applied) {
        let Some(heads) = &applied.forward_extremities else {
            return;
        };
        let (room, id) = (applied.pdu.room_id().to_owned(), applied.event_id().to_owned());
        let heads = (heads.len() <= MAX_HEADS).then(|| heads.clone());
        self.lock().moved.insert(room, (id, heads));
        self.inner.arrived.notify_one();
    }

    /// A server is known to hold these events. `author`: it made them, and sent them here itself.
    pub(crate) fn note_holder(&self, events: impl IntoIterator<Item = (OwnedEventId, bool)>, server: &OwnedServerName) {
        let mut waiting = self.lock();
        for (event, author) in events {
            waiting.holders.push_back((event, server.clone(), author));
            if waiting.holders.len() > MAX_WAITING {
                waiting.holders.pop_front();
            }
        }
        self.inner.arrived.notify_one();
    }

    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    pub(super) async fn arrived(&self) {
        self.inner.arrived.notified().await;
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.moved.is_empty() && waiting.holders.is_empty()
    }

    /// A poisoned lock only says that another thread panicked; the lists are whole at every step.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
