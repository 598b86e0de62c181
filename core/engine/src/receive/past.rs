//! The state before an event: what it comes from, and whether that rests upon another server's word. It judges nothing.

use std::collections::BTreeSet;

use ruma::{EventId, OwnedEventId};

use super::Receipt;
use crate::{
    EventStatus, Extremity, Missing, NewState, RoomError, RoomReader, StateId, StateMap,
    limits::MAX_IMPORT_EVENTS,
    resolve::{Fork, resolve_forks},
};

/// What the state before an event comes from.
pub(super) struct PrevStates {
    states: States,
    /// Whether any of it rests upon another server's word.
    pub(super) told: bool,
}

enum States {
    /// The states after the events before it.
    Stored(BTreeSet<StateId>),
    /// One that another server told.
    Whole(StateMap),
}

impl<R: RoomReader> Receipt<'_, R> {
    /// The states after the events before this one, each once; or the state that another server told.
    pub(super) fn prev_states(
        &self,
        told: Option<&[OwnedEventId]>,
        extremities: &[Extremity],
        missing: &mut Missing,
    ) -> Result<PrevStates, RoomError<R::Error>> {
        if let Some(told) = told {
            let states = States::Whole(self.told_state(told, missing)?);
            return Ok(PrevStates { states, told: true });
        }
        let (mut states, mut rest_on_word) = (BTreeSet::new(), false);
        for prev in self.pdu.prev_events() {
            if let Some(state) = self.reader.state_after(prev)?
                && let Some(told) = self.is_told(prev, extremities)?
            {
                states.insert(state);
                rest_on_word |= told;
            } else {
                missing.prev.push(prev.clone());
            }
        }
        let (states, told) = (States::Stored(states), rest_on_word);
        Ok(PrevStates { states, told })
    }

    /// Whether the state of an event before this one rests upon another server's word; none if the event is not held, or is one
    /// of another room, whose state would be taken for this one's.
    fn is_told(&self, prev: &EventId, extremities: &[Extremity]) -> Result<Option<bool>, R::Error> {
        if let Some(extremity) = extremities.iter().find(|extremity| extremity.event == prev) {
            return Ok(Some(extremity.told));
        }
        let event = self.reader.event(prev)?;
        let of_this_room = event.filter(|event| event.pdu.room_id() == self.pdu.room_id());
        Ok(of_this_room.map(|event| event.told))
    }

    fn told_state(&self, told: &[OwnedEventId], missing: &mut Missing) -> Result<StateMap, RoomError<R::Error>> {
        let (mut state, mut instead) = (StateMap::new(), StateMap::new());
        for id in told.iter().take(MAX_IMPORT_EVENTS) {
            match self.reader.event(id)? {
                Some(stored) if stored.pdu.room_id() != self.pdu.room_id() => {}
                Some(stored) => match stored.pdu.state_entry() {
                    // What was refused left what stood there before it.
                    Some(key) if stored.status == EventStatus::Rejected => {
                        if let Some(before) = self.reader.state_before(id)?
                            && let Some(earlier) = self.reader.state_entry(before, &key)?
                        {
                            instead.insert(key, earlier);
                        }
                    }
                    Some(key) => {
                        state.insert(key, id.clone());
                    }
                    None => {}
                },
                None => missing.auth.push(id.clone()),
            }
        }
        for (key, earlier) in instead {
            state.entry(key).or_insert(earlier);
        }
        Ok(state)
    }

    pub(super) fn state_before(
        &self,
        states: PrevStates,
        extremities: &[Extremity],
        current: Option<StateId>,
    ) -> Result<NewState, RoomError<R::Error>> {
        let states = match states.states {
            States::Whole(state) => return Ok(NewState::Full(state)),
            States::Stored(states) => states,
        };
        let mut ids = states.iter();
        match (ids.next(), ids.next()) {
            (None, _) => return Ok(NewState::Full(StateMap::new())),
            (Some(only), None) => return Ok(NewState::Same(*only)),
            _ => {}
        }
        // An event built upon exactly what we would build upon: that resolution has been made already.
        let prev: BTreeSet<&OwnedEventId> = self.pdu.prev_events().iter().collect();
        if let Some(current) = current
            && prev.len() == extremities.len()
            && extremities.iter().all(|extremity| prev.contains(&extremity.event))
        {
            return Ok(NewState::Same(current));
        }
        let forks = states
            .into_iter()
            .map(|id| Fork::stored(self.reader, id))
            .collect::<Result<Vec<_>, _>>()?;
        resolve_forks(self.reader, &self.rules, &forks, None)
    }
}
