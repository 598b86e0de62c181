//! What the engine reads of the world, as one narrow trait. It never writes: changes are returned.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId, events::StateEventType};

use crate::Pdu;

/// The key of one entry of a room's state: event type and state key.
pub type StateKey = (StateEventType, String);

/// A whole room state: which event stands under each key. Ordered, so that walks are deterministic.
pub type StateMap = BTreeMap<StateKey, OwnedEventId>;

/// Names one immutable room state that the store keeps. Equal ids mean equal states; unequal ids mean nothing.
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
    pub pdu: Arc<Pdu>,
    /// What the checks made of it.
    pub status: EventStatus,
    /// An outlier is known only as part of another event's auth chain or state: the state before it is not known,
    /// and it stands in no timeline.
    pub outlier: bool,
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

    /// The room's current resolved state; none before the first event.
    fn current_state(&self, room: &RoomId) -> Result<Option<StateId>, Self::Error>;

    /// The state before an event; none for an outlier.
    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Self::Error>;

    /// The state after an event; none for an outlier. Differs from the state before only for accepted or soft-failed
    /// state events.
    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Self::Error>;

    /// One entry of a state.
    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Self::Error>;

    /// A whole state. Costs its size: for resolution, not for lookups.
    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Self::Error>;
}
