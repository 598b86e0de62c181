//! Enters a room through another server: what its `send_join` told becomes events held here. It trusts that server for
//! the state, as Matrix does, and for nothing else: every event is authorised by itself.
//!
//! Server-server API, "Joining Rooms", `send_join`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId, events::TimelineEventType};

use crate::{
    Applied, CheckedPdu, CurrentState, EventStatus, ExtremityChange, Outcome, RoomError, RoomReader, StateId, StateKey,
    StateMap, StoredPdu, limits::MAX_IMPORT_EVENTS, receive::receive_with_state, receive_outlier,
};

/// Why a room could not be entered. Nothing changes.
#[derive(Debug, thiserror::Error)]
pub enum ImportError<E: std::error::Error> {
    /// More events than a room may bring at once.
    #[error("the room's state has {0} events, more than can be taken in")]
    TooMany(usize),
    /// The state or the auth chain is not complete.
    #[error("the other server left out event {0}")]
    Incomplete(OwnedEventId),
    /// By the room's own rules and the state told, the join is not allowed.
    #[error("the room refuses the join: {0}")]
    Refused(String),
    /// The room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError<E>),
}

/// Everything to save, in order: the room's state and its auth chain as outliers, then the join, which becomes the
/// room's one forward extremity, and the state after it the current one.
///
/// `state` is the state before the join. Both lists may hold events of any status and in any order, as the other
/// server sent them; those whose signatures do not hold must have been left out. `apart` are forward extremities of the
/// room, from when this server was in it, that the other server did not hold when it made the join: they stay, since the join
/// does not build upon them, and the current state is resolved with theirs. A removal that the other server has not heard of
/// so stays one.
pub fn import_room<R: RoomReader>(
    reader: &R,
    state: &[CheckedPdu],
    auth_chain: &[CheckedPdu],
    join: &CheckedPdu,
    apart: &[OwnedEventId],
) -> Result<Vec<Applied>, ImportError<R::Error>> {
    let told = state.len() + auth_chain.len();
    if told > MAX_IMPORT_EVENTS {
        return Err(ImportError::TooMany(told));
    }
    let entered = Entered::new(reader, join, heads_apart(reader, state, auth_chain, join, apart)?);
    let mut applied = Vec::with_capacity(told + 1);
    let events = state
        .iter()
        .chain(auth_chain)
        .filter(|event| event.room_id() == join.room_id());
    for event in oldest_first(events.cloned().collect()) {
        // One that rests upon an event left out cannot be judged; if the join needs it, that will show below.
        if let Outcome::Applied(outlier) = receive_outlier(&entered, &event)? {
            entered.add(&outlier);
            applied.push(*outlier);
        }
    }
    let ids: Vec<OwnedEventId> = state.iter().map(|event| event.event_id().to_owned()).collect();
    let held: Vec<OwnedEventId> = {
        let mut held = Vec::with_capacity(ids.len());
        for id in ids {
            if entered.has_event(&id).map_err(RoomError::Read)? {
                held.push(id);
            }
        }
        held
    };
    let mut joined = match receive_with_state(&entered, join, &held)? {
        Outcome::Applied(joined) => *joined,
        Outcome::Known => return Ok(applied),
        Outcome::Missing(missing) => {
            let lacking = missing.auth.into_iter().chain(missing.prev).next();
            return Err(ImportError::Incomplete(
                lacking.unwrap_or_else(|| join.event_id().to_owned()),
            ));
        }
    };
    if joined.status != EventStatus::Accepted {
        return Err(ImportError::Refused(joined.reason.unwrap_or_default()));
    }
    // Whoever lets one in is believed: all else is judged by that.
    joined.told = false;
    if entered.apart.is_empty() {
        joined.current_state = CurrentState::AfterEvent;
    }
    let mut gone = reader.forward_extremities(join.room_id()).map_err(RoomError::Read)?;
    gone.retain(|head| !entered.apart.contains(head));
    joined.forward_extremities = Some(ExtremityChange { gone, added: true });
    applied.push(joined);
    Ok(applied)
}

/// Those of some extremities that the join may indeed not build upon: what it rests upon, or the state before it, it does.
fn heads_apart<R: RoomReader>(
    reader: &R,
    state: &[CheckedPdu],
    auth_chain: &[CheckedPdu],
    join: &CheckedPdu,
    apart: &[OwnedEventId],
) -> Result<Vec<OwnedEventId>, RoomError<R::Error>> {
    let told = state.iter().chain(auth_chain).map(CheckedPdu::event_id);
    let covered: HashSet<&EventId> = told.chain(join.pdu().prev_events().iter().map(|id| &**id)).collect();
    let mut heads = reader.forward_extremities(join.room_id()).map_err(RoomError::Read)?;
    heads.retain(|head| apart.contains(head) && !covered.contains(&**head));
    Ok(heads)
}

/// Sorts events so that each comes after those of them that it names, whether as previous or as authorising. Among
/// unrelated ones the less deep comes first, then the lesser id. Doubles are dropped.
pub fn oldest_first(events: Vec<CheckedPdu>) -> Vec<CheckedPdu> {
    let mut waiting: HashMap<OwnedEventId, usize> = HashMap::new();
    let mut followers: HashMap<OwnedEventId, Vec<OwnedEventId>> = HashMap::new();
    let by_id: BTreeMap<OwnedEventId, CheckedPdu> = events
        .into_iter()
        .map(|event| (event.event_id().to_owned(), event))
        .collect();
    for (id, event) in &by_id {
        let named: BTreeSet<&OwnedEventId> = event
            .pdu()
            .prev_events()
            .iter()
            .chain(event.pdu().auth_events())
            .collect();
        let mut known = 0;
        for earlier in named.into_iter().filter(|earlier| by_id.contains_key(*earlier)) {
            followers.entry(earlier.clone()).or_default().push(id.clone());
            known += 1;
        }
        waiting.insert(id.clone(), known);
    }
    let mut ready: BTreeSet<(u64, OwnedEventId)> = by_id
        .values()
        .filter(|event| waiting.get(event.event_id()) == Some(&0))
        .map(|event| (rank(event), event.event_id().to_owned()))
        .collect();
    let mut sorted = Vec::with_capacity(by_id.len());
    while let Some((_, id)) = ready.pop_first() {
        for follower in followers.remove(&id).unwrap_or_default() {
            if let (Some(count), Some(event)) = (waiting.get_mut(&follower), by_id.get(&follower)) {
                *count -= 1;
                if *count == 0 {
                    ready.insert((rank(event), follower));
                }
            }
        }
        sorted.extend(by_id.get(&id).cloned());
    }
    sorted
}

/// From room version 12 on nothing names `m.room.create`, which everything rests upon nevertheless.
fn rank(event: &CheckedPdu) -> u64 {
    if *event.pdu().kind() == TimelineEventType::RoomCreate {
        0
    } else {
        event.pdu().depth().saturating_add(1)
    }
}

/// The store as it will be once the outliers so far are saved. The room's past here, if there is any, is set aside:
/// its extremities, but for those that the join does not build upon, and its current state are from before this server left.
struct Entered<'a, R: RoomReader> {
    reader: &'a R,
    room: &'a RoomId,
    version: &'a RoomVersionId,
    apart: Vec<OwnedEventId>,
    events: RefCell<HashMap<OwnedEventId, StoredPdu>>,
    opened: RefCell<bool>,
}

impl<'a, R: RoomReader> Entered<'a, R> {
    fn new(reader: &'a R, join: &'a CheckedPdu, apart: Vec<OwnedEventId>) -> Self {
        Self {
            reader,
            room: join.room_id(),
            version: join.version(),
            apart,
            events: RefCell::default(),
            opened: RefCell::new(false),
        }
    }

    fn add(&self, applied: &Applied) {
        *self.opened.borrow_mut() = true;
        let stored = StoredPdu {
            pdu: applied.pdu.clone(),
            status: applied.status,
            outlier: true,
            told: false,
        };
        self.events.borrow_mut().insert(applied.event_id().to_owned(), stored);
    }
}

impl<R: RoomReader> RoomReader for Entered<'_, R> {
    type Error = R::Error;

    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, Self::Error> {
        if room == self.room && *self.opened.borrow() {
            return Ok(Some(self.version.clone()));
        }
        self.reader.room_version(room)
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, Self::Error> {
        match self.events.borrow().get(id) {
            Some(stored) => Ok(Some(stored.clone())),
            None => self.reader.event(id),
        }
    }

    fn has_event(&self, id: &EventId) -> Result<bool, Self::Error> {
        Ok(self.events.borrow().contains_key(id) || self.reader.has_event(id)?)
    }

    fn forward_extremities(&self, _room: &RoomId) -> Result<Vec<OwnedEventId>, Self::Error> {
        Ok(self.apart.clone())
    }

    fn has_successor(&self, _id: &EventId) -> Result<bool, Self::Error> {
        Ok(false)
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, Self::Error> {
        self.reader.redactions_of(id)
    }

    fn current_state(&self, _room: &RoomId) -> Result<Option<StateId>, Self::Error> {
        Ok(None)
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Self::Error> {
        self.reader.state_before(id)
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Self::Error> {
        self.reader.state_after(id)
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Self::Error> {
        self.reader.state_entry(state, key)
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Self::Error> {
        self.reader.full_state(state)
    }
}
