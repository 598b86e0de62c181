//! What the engine reads of the world, as one narrow trait. It never writes: changes are returned.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
    state_res::Event,
};
use serde_json::value::RawValue;

use crate::{Author, Extremity, Pdu};

/// The key of one entry of a room's state: event type and state key.
pub type StateKey = (StateEventType, String);

/// A whole room state: which event stands under each key. Ordered, so that walks are deterministic.
pub type StateMap = BTreeMap<StateKey, OwnedEventId>;

/// Names one room state that the store keeps. Equal ids mean equal states; unequal ids mean nothing. A state never changes, but
/// that all states that hold an event cease to when it is [`Refuted`](crate::Refuted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub i64);

/// What the checks on receipt made of an event.
///
/// Server-server API, "Checks performed on receipt of a PDU".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStatus {
    /// Passed every check.
    Accepted,
    /// Passed by its own history, refused by the room's current state: kept, not shown, and not built upon by us.
    SoftFailed,
    /// Refused by its auth events or by the state before it: kept so that it is not fetched again, never shown.
    Rejected,
}

/// An event as the store holds it.
#[derive(Debug, Clone)]
pub struct StoredPdu {
    /// The event.
    pub pdu: Pdu,
    /// What the checks made of it.
    pub status: EventStatus,
    /// An outlier is known only as part of another event's auth chain or state: the state before it is not known,
    /// and it stands in no timeline.
    pub outlier: bool,
    /// Whether the state before it rests upon another server's word: see [`Applied::told`](crate::Applied::told).
    pub told: bool,
}

/// A state that the engine wants kept, told as its difference to one that the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewState {
    /// Nothing differs.
    Same(StateId),
    /// `base` with these keys set.
    Delta {
        /// The state that this one is told against.
        base: StateId,
        /// Keys and the events that now stand there.
        set: StateMap,
    },
    /// A state of its own, for a room's first event, a join through another server, or a resolution.
    Full(StateMap),
}

impl ruma::state_res::Event for StoredPdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        Event::event_id(&self.pdu)
    }

    fn room_id(&self) -> Option<&RoomId> {
        Event::room_id(&self.pdu)
    }

    fn sender(&self) -> &UserId {
        self.pdu.sender()
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        let ts = self.pdu.origin_server_ts();
        #[cfg(feature = "testing")]
        if crate::testing::ties_are_flipped() {
            return MilliSecondsSinceUnixEpoch(ruma::UInt::MAX - ts.0);
        }
        ts
    }

    fn event_type(&self) -> &TimelineEventType {
        self.pdu.kind()
    }

    fn content(&self) -> &RawValue {
        self.pdu.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.pdu.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.pdu.prev_events().iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.pdu.auth_events().iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        None
    }

    fn rejected(&self) -> bool {
        self.status == EventStatus::Rejected
    }
}

/// Reads rooms. Implemented by the store's transactions, and in memory by tests.
pub trait RoomReader {
    /// Why a read failed; a failed read fails the whole transaction.
    type Error: std::error::Error;

    /// The room's version, or none for a room of which nothing is held.
    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, Self::Error>;

    /// One event of any status.
    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, Self::Error>;

    /// Whether an event of any status is held, without reading it.
    fn has_event(&self, id: &EventId) -> Result<bool, Self::Error>;

    /// Ids of the events that nothing held builds upon; new events of ours name them as `prev_events`.
    fn forward_extremities(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, Self::Error>;

    /// [`RoomReader::forward_extremities`] with what is needed to choose among them. All of them are held with their states.
    /// A store that can read that at once overrides this.
    fn extremities(&self, room: &RoomId) -> Result<Vec<Extremity>, Self::Error> {
        let mut extremities = Vec::new();
        for event in self.forward_extremities(room)? {
            if let Some(stored) = self.event(&event)? {
                extremities.push(Extremity {
                    state: self.state_after(&event)?,
                    author: Author::of(stored.pdu.sender().server_name()),
                    told: stored.told,
                    event,
                });
            }
        }
        Ok(extremities)
    }

    /// Whether an accepted event that is not an outlier names this one in its `prev_events`.
    fn has_successor(&self, id: &EventId) -> Result<bool, Self::Error>;

    /// Ids of the accepted `m.room.redaction` events that name this event and arrived before it.
    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, Self::Error>;

    /// The room's current resolved state; none before the first event.
    fn current_state(&self, room: &RoomId) -> Result<Option<StateId>, Self::Error>;

    /// The state before an event; none for an outlier.
    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Self::Error>;

    /// The state after an event; none for an outlier. Differs from the state before only for accepted or soft-failed
    /// state events.
    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Self::Error>;

    /// One entry of a state; never an event that was refuted.
    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Self::Error>;

    /// A whole state, without events that were refuted. Costs its size: for resolution, not for lookups.
    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Self::Error>;

    /// Ids of all events that these rest upon: their auth events, those of these, and so on, without the given ones
    /// unless another of them rests upon them. A store that keeps the edges apart from the events overrides this.
    fn auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, Self::Error> {
        let mut chain = BTreeSet::new();
        let mut open: Vec<OwnedEventId> = of.to_vec();
        let mut seen: BTreeSet<OwnedEventId> = of.iter().cloned().collect();
        while let Some(id) = open.pop() {
            let Some(stored) = self.event(&id)? else { continue };
            for auth in stored.pdu.auth_events() {
                chain.insert(auth.clone());
                if seen.insert(auth.clone()) {
                    open.push(auth.clone());
                }
            }
        }
        Ok(chain)
    }
}
