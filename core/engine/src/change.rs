//! What receiving an event changes, as values that the store saves in one commit. It changes nothing itself.

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomVersionId, state_res};

use crate::{EventStatus, NewState, Pdu, PduError, Refuted, StateKey};

/// What became of an event.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is held already; nothing changes.
    Known,
    /// It cannot be judged before these events are held; nothing changes. Fetch them and try again.
    Missing(Missing),
    /// It was judged: save this.
    Applied(Box<Applied>),
}

impl Outcome {
    /// The changes, if there are any.
    pub fn applied(self) -> Option<Applied> {
        match self {
            Self::Applied(applied) => Some(*applied),
            Self::Known | Self::Missing(_) => None,
        }
    }
}

/// The events without which another cannot be judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Events before it that are not held, or held as outliers, so that the state after them is not known.
    pub prev: Vec<OwnedEventId>,
    /// Events that authorise it and are not held at all.
    pub auth: Vec<OwnedEventId>,
}

impl Missing {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.prev.is_empty() && self.auth.is_empty()
    }
}

/// Everything that one event changes. The state after the event is the state before it with the event itself under
/// [`Applied::sets`]; the store saves the state before, then the state after, then the current state.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The event.
    pub pdu: Pdu,
    /// The version of its room, for the row that a room's first event makes.
    pub version: RoomVersionId,
    /// What the checks made of it.
    pub status: EventStatus,
    /// Why it was rejected or soft-failed, in words.
    pub reason: Option<String>,
    /// Whether it is held only as part of another event's state or auth chain. If it was held as an outlier before
    /// and this is false, it joins the timeline now and its row changes.
    pub outlier: bool,
    /// Whether it is history: older than what the timeline began with, so that it is placed before it.
    pub history: bool,
    /// Whether clients are not shown it although it was accepted: a redaction whose target is not held yet, or to which
    /// it does not apply. A later event whose [`Applied::redactions`] name it as `by` lifts this.
    pub withheld: bool,
    /// The state before the event; none for an outlier, and for history whose state nobody could tell.
    pub state_before: Option<NewState>,
    /// Whether that state rests upon another server's word: it was told, or a state from which it comes was.
    pub told: bool,
    /// The key that the event takes in the state after it: for state events that were not rejected and whose state is
    /// known. None: the state after is the state before.
    pub sets: Option<StateKey>,
    /// What the room's current state becomes.
    pub current_state: CurrentState,
    /// How the room's forward extremities move; none if they stay.
    pub forward_extremities: Option<ExtremityChange>,
    /// Redactions that take hold with this event.
    pub redactions: Vec<Redaction>,
    /// That the event was believed, as part of a state that another server told, and is no more. Save this before the current
    /// state, which is made of what states yield then.
    pub refuted: Option<Refuted>,
}

impl Applied {
    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        self.pdu.event_id()
    }

    /// Whether clients may see it in the timeline: accepted, no outlier, and not withheld.
    pub fn is_shown(&self) -> bool {
        self.status == EventStatus::Accepted && !self.outlier && !self.withheld
    }
}

/// How a room's forward extremities move with an event. Told as a difference, since there may be thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtremityChange {
    /// Those that are none any more.
    pub gone: Vec<OwnedEventId>,
    /// Whether the event becomes one.
    pub added: bool,
}

/// What a room's current state becomes with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CurrentState {
    /// It stays.
    Unchanged,
    /// It is the state after the event.
    AfterEvent,
    /// It is this one, resolved from the states after all forward extremities.
    New(NewState),
}

/// An event that is shown only without its content from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redaction {
    /// The event that is redacted.
    pub target: OwnedEventId,
    /// The `m.room.redaction` event that did it.
    pub by: OwnedEventId,
}

/// Why an event could not be judged. Nothing changes.
#[derive(Debug, thiserror::Error)]
pub enum RoomError<E: std::error::Error> {
    /// Reading the room failed.
    #[error(transparent)]
    Read(#[from] E),
    /// Nothing is held of the event's room.
    #[error("room {0} is not known here")]
    UnknownRoom(OwnedRoomId),
    /// The event was checked under another version than its room has.
    #[error("room {room} has version {expected}, not {found}")]
    WrongVersion {
        /// The room.
        room: OwnedRoomId,
        /// The version it has.
        expected: RoomVersionId,
        /// The version the event was checked under.
        found: RoomVersionId,
    },
    /// An event that should be held, since another one that is held rests upon it, is not.
    #[error("event {0} should be held, but is not")]
    Lost(OwnedEventId),
    /// An event is not well-formed, or its room's version is not supported.
    #[error("{0}")]
    Pdu(#[source] PduError),
    /// The states before an event could not be resolved.
    #[error("state resolution failed: {0}")]
    Resolution(#[source] state_res::Error),
}
