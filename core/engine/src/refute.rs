//! Events that were believed as part of a state that another server told, until their own past came and refuted them: what
//! the states that hold them yield from then on. It judges no event.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId, room_version_rules::RoomVersionRules};

use crate::{
    Applied, CurrentState, EventStatus, Extremity, RoomError, RoomReader, StateId, StateKey, StateMap, StoredPdu,
    extremities::resolved,
    resolve::{Fork, resolve_forks},
    view::{entries, entry},
};

/// An event that no state yields any more, whatever was kept when it was believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuted {
    /// The event.
    pub event: OwnedEventId,
    /// The key under which states hold it.
    pub key: StateKey,
    /// What they yield there instead: what stood there before it, since an event that is refused changes nothing. None: there
    /// was nothing, or it is not known.
    pub instead: Option<OwnedEventId>,
}

impl Refuted {
    /// Takes the event out of a state, if that holds it.
    pub fn correct(&self, state: &mut Arc<StateMap>) {
        if state.get(&self.key) != Some(&self.event) {
            return;
        }
        let state = Arc::make_mut(state);
        match &self.instead {
            Some(instead) => state.insert(self.key.clone(), instead.clone()),
            None => state.remove(&self.key),
        };
    }
}

/// Takes an event that was believed out of the states that hold it, if it has been rejected now. The current state is made anew
/// without it: it may have stood there, or have prevailed upon others.
pub(crate) fn refute<R: RoomReader>(
    reader: &R,
    rules: &RoomVersionRules,
    applied: &mut Applied,
) -> Result<(), RoomError<R::Error>> {
    let Some(key) = applied.pdu.state_entry() else {
        return Ok(());
    };
    if applied.status != EventStatus::Rejected {
        return Ok(());
    }
    let before = applied.state_before.as_ref();
    let instead = before.map(|before| entry(reader, before, &key)).transpose()?;
    let event = applied.event_id().to_owned();
    let refuted = Refuted {
        instead: instead.flatten().filter(|instead| *instead != event),
        event,
        key,
    };
    applied.current_state = current_without(reader, rules, applied, &refuted)?;
    applied.refuted = Some(refuted);
    Ok(())
}

fn current_without<R: RoomReader>(
    reader: &R,
    rules: &RoomVersionRules,
    applied: &Applied,
    refuted: &Refuted,
) -> Result<CurrentState, RoomError<R::Error>> {
    let room = applied.pdu.room_id();
    let Some(current) = reader.current_state(room)? else {
        return Ok(CurrentState::Unchanged);
    };
    let mut heads = reader.extremities(room)?;
    if let Some(change) = &applied.forward_extremities {
        heads.retain(|head| !change.gone.contains(&head.event));
    }
    let without = Without { reader, refuted };
    let chosen = resolved(&heads.iter().collect::<Vec<_>>());
    let states: BTreeSet<StateId> = chosen.into_iter().filter_map(|head| head.state).collect();
    let mut forks = Vec::with_capacity(states.len());
    for state in states {
        forks.push(Fork::stored(&without, state)?);
    }
    let new = resolve_forks(&without, rules, &forks, None)?;
    Ok(match entries(&without, &new)? == *reader.full_state(current)? {
        true => CurrentState::Unchanged,
        false => CurrentState::New(new),
    })
}

/// The store as it will be once an event that it holds is refuted.
struct Without<'a, R: RoomReader> {
    reader: &'a R,
    refuted: &'a Refuted,
}

impl<R: RoomReader> RoomReader for Without<'_, R> {
    type Error = R::Error;

    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, Self::Error> {
        self.reader.room_version(room)
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, Self::Error> {
        let mut stored = self.reader.event(id)?;
        if let Some(stored) = stored.as_mut().filter(|_| *id == self.refuted.event) {
            stored.status = EventStatus::Rejected;
            stored.outlier = false;
        }
        Ok(stored)
    }

    fn has_event(&self, id: &EventId) -> Result<bool, Self::Error> {
        self.reader.has_event(id)
    }

    fn forward_extremities(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, Self::Error> {
        self.reader.forward_extremities(room)
    }

    fn extremities(&self, room: &RoomId) -> Result<Vec<Extremity>, Self::Error> {
        self.reader.extremities(room)
    }

    fn has_successor(&self, id: &EventId) -> Result<bool, Self::Error> {
        self.reader.has_successor(id)
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, Self::Error> {
        self.reader.redactions_of(id)
    }

    fn current_state(&self, room: &RoomId) -> Result<Option<StateId>, Self::Error> {
        self.reader.current_state(room)
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Self::Error> {
        self.reader.state_before(id)
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Self::Error> {
        self.reader.state_after(id)
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Self::Error> {
        let entry = self.reader.state_entry(state, key)?;
        Ok(match entry {
            Some(id) if id == self.refuted.event => self.refuted.instead.clone(),
            entry => entry,
        })
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Self::Error> {
        let mut state = self.reader.full_state(state)?;
        self.refuted.correct(&mut state);
        Ok(state)
    }

    fn auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, Self::Error> {
        self.reader.auth_chain(of)
    }
}
