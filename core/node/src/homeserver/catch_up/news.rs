//! What the services that keep and send events tell the one that catches up: heads that moved, and who is known to hold
//! them. It decides nothing, and reads no clock, since it is told from the writer's thread too.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kith_engine::{Applied, CheckedPdu, limits::FEW_HEADS};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
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
    /// The rooms whose heads moved.
    pub(super) moved: BTreeMap<OwnedRoomId, Moved>,
    /// Events that removed servers from a room.
    pub(super) removals: VecDeque<Removal>,
    /// Servers that hold an event; whether it is theirs and they sent it here.
    pub(super) holders: VecDeque<(OwnedEventId, OwnedServerName, bool)>,
    /// Members whose heads, and secrets of topics, are to be compared with.
    pub(super) to_compare: BTreeSet<(OwnedServerName, OwnedRoomId)>,
    /// Events that went over their room's topic.
    pub(super) by_topic: VecDeque<OwnedEventId>,
    /// Events that a server sent before what comes before them could be had: to be pulled.
    pub(super) unconnected: VecDeque<Unconnected>,
}

/// How a room's heads moved last.
pub(super) struct Moved {
    /// With which event.
    pub(super) event: OwnedEventId,
    /// Whose it is.
    pub(super) author: OwnedServerName,
    /// Heads that are none any more, as far as there is room: what is left out is found when the room is looked at.
    pub(super) gone: Vec<OwnedEventId>,
}

/// What became of the servers whose last user an event of others removed.
pub(super) struct Removal {
    pub(super) room: OwnedRoomId,
    pub(super) event: OwnedEventId,
    /// Whose event it is.
    pub(super) author: OwnedServerName,
    /// The servers that are in the room no more.
    pub(super) servers: Vec<OwnedServerName>,
}

/// An event that could not be kept yet.
pub(super) struct Unconnected {
    pub(super) room: OwnedRoomId,
    pub(super) event: OwnedEventId,
    pub(super) depth: u64,
    /// Who sent it.
    pub(super) from: OwnedServerName,
}

impl News {
    /// An event is about to be kept. That it is not in the end does no harm.
    pub(crate) fn note_kept(&self, applied: &Applied) {
        let Some(change) = &applied.forward_extremities else {
            return;
        };
        let mut waiting = self.lock();
        let before = waiting.moved.remove(applied.pdu.room_id());
        let mut gone = before.map(|before| before.gone).unwrap_or_default();
        gone.extend(change.gone.iter().take(FEW_HEADS.saturating_sub(gone.len())).cloned());
        let moved = Moved {
            event: applied.event_id().to_owned(),
            author: applied.pdu.sender().server_name().to_owned(),
            gone,
        };
        waiting.moved.insert(applied.pdu.room_id().to_owned(), moved);
        drop(waiting);
        self.inner.arrived.notify_one();
    }

    /// An event removed servers from its room: they must hear of it.
    pub(crate) fn note_removed(&self, applied: &Applied, servers: Vec<OwnedServerName>) {
        let removal = Removal {
            room: applied.pdu.room_id().to_owned(),
            event: applied.event_id().to_owned(),
            author: applied.pdu.sender().server_name().to_owned(),
            servers,
        };
        let mut waiting = self.lock();
        waiting.removals.push_back(removal);
        if waiting.removals.len() > MAX_WAITING {
            waiting.removals.pop_front();
        }
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

    /// Events came over their room's topic, or were told there: most members have them.
    pub(crate) fn note_by_topic(&self, events: impl IntoIterator<Item = OwnedEventId>) {
        let mut waiting = self.lock();
        for event in events {
            waiting.by_topic.push_back(event);
            if waiting.by_topic.len() > MAX_WAITING {
                waiting.by_topic.pop_front();
            }
        }
        self.inner.arrived.notify_one();
    }

    /// These members of a room may lack what came to be known here.
    pub(crate) fn note_to_compare(&self, room: &RoomId, servers: impl IntoIterator<Item = OwnedServerName>) {
        let mut waiting = self.lock();
        for server in servers {
            if waiting.to_compare.len() < MAX_WAITING {
                waiting.to_compare.insert((server, room.to_owned()));
            }
        }
        self.inner.arrived.notify_one();
    }

    /// An event was sent here, but what comes before it could not be had from its sender now.
    pub(crate) fn note_unconnected(&self, event: &CheckedPdu, from: &ServerName) {
        let unconnected = Unconnected {
            room: event.room_id().to_owned(),
            event: event.event_id().to_owned(),
            depth: event.pdu().depth(),
            from: from.to_owned(),
        };
        let mut waiting = self.lock();
        waiting.unconnected.push_back(unconnected);
        if waiting.unconnected.len() > FEW_HEADS {
            waiting.unconnected.pop_front();
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
        waiting.moved.is_empty() && waiting.holders.is_empty() && waiting.unconnected.is_empty()
    }

    /// A poisoned lock only says that another thread panicked; the lists are whole at every step.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
