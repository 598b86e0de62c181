//! Rooms in memory: the plainest thing that answers what the store must answer. It reads and writes no file.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
};

use kith_engine::{
    Applied, CurrentState, EventStatus, NewState, Refuted, RoomReader, StateId, StateKey, StateMap, StoredPdu, rules,
};
use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId};

/// Every event and state of one room.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) events: BTreeMap<OwnedEventId, Kept>,
    pub(crate) states: Vec<Arc<StateMap>>,
    pub(crate) extremities: Vec<OwnedEventId>,
    pub(crate) current: Option<StateId>,
    pub(crate) timeline: Vec<OwnedEventId>,
    early_redactions: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    refuted: Vec<Refuted>,
}

#[derive(Debug)]
pub(crate) struct Kept {
    stored: StoredPdu,
    before: Option<StateId>,
    after: Option<StateId>,
    pub(crate) redacted_by: Option<OwnedEventId>,
}

impl Model {
    fn state(&mut self, map: StateMap) -> StateId {
        self.states.push(Arc::new(map));
        StateId(self.states.len() as i64 - 1)
    }

    fn new_state(&mut self, state: &NewState) -> StateId {
        match state {
            NewState::Same(id) => *id,
            NewState::Delta { base, set } => {
                let Ok(base) = self.full_state(*base);
                let mut map = (*base).clone();
                map.extend(set.clone());
                self.state(map)
            }
            NewState::Full(map) => self.state(map.clone()),
        }
    }

    /// Saves what an event changes.
    pub(crate) fn save(&mut self, applied: &Applied) {
        let id = applied.event_id().to_owned();
        let before = applied.state_before.as_ref().map(|state| self.new_state(state));
        let after = match (before, &applied.sets) {
            (Some(before), Some(key)) => Some(self.new_state(&NewState::Delta {
                base: before,
                set: StateMap::from([(key.clone(), id.clone())]),
            })),
            (before, _) => before,
        };
        let stored = StoredPdu {
            pdu: applied.pdu.clone(),
            status: applied.status,
            outlier: applied.outlier,
            told: applied.told,
        };
        let redacted_by = self.events.get(&id).and_then(|kept| kept.redacted_by.clone());
        let early = applied.pdu.redacts(&rules(&applied.version).unwrap().redaction);
        if let Some(target) = early
            && applied.status == EventStatus::Accepted
            && !applied.outlier
            && self.events.get(&target).is_none_or(|target| target.stored.outlier)
        {
            self.early_redactions.entry(target).or_default().push(id.clone());
        }
        self.events.insert(
            id.clone(),
            Kept {
                stored,
                before,
                after,
                redacted_by,
            },
        );
        if applied.is_shown() {
            let place = if applied.history { 0 } else { self.timeline.len() };
            self.timeline.insert(place, id);
        }
        for redaction in &applied.redactions {
            if !self.timeline.contains(&redaction.by) {
                let place = if applied.history { 0 } else { self.timeline.len() };
                self.timeline.insert(place, redaction.by.clone());
            }
            if let Some(target) = self.events.get_mut(&redaction.target) {
                target.redacted_by.get_or_insert(redaction.by.clone());
            }
        }
        if let Some(change) = &applied.forward_extremities {
            self.extremities.retain(|extremity| !change.gone.contains(extremity));
            self.extremities
                .extend(change.added.then(|| applied.event_id().to_owned()));
        }
        if let Some(refuted) = &applied.refuted {
            for earlier in self.refuted.iter_mut() {
                if earlier.instead.as_ref() == Some(&refuted.event) {
                    earlier.instead = refuted.instead.clone();
                }
            }
            self.refuted.push(refuted.clone());
        }
        match &applied.current_state {
            CurrentState::Unchanged => {}
            CurrentState::AfterEvent => self.current = after,
            CurrentState::New(state) => self.current = Some(self.new_state(state)),
        }
    }
}

impl RoomReader for Model {
    type Error = Infallible;

    fn room_version(&self, _: &RoomId) -> Result<Option<RoomVersionId>, Infallible> {
        Ok((!self.events.is_empty()).then_some(RoomVersionId::V12))
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, Infallible> {
        Ok(self.events.get(id).map(|kept| kept.stored.clone()))
    }

    fn has_event(&self, id: &EventId) -> Result<bool, Infallible> {
        Ok(self.events.contains_key(id))
    }

    fn forward_extremities(&self, _: &RoomId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(self.extremities.clone())
    }

    fn has_successor(&self, id: &EventId) -> Result<bool, Infallible> {
        Ok(self.events.values().any(|Kept { stored, .. }| {
            stored.status == EventStatus::Accepted
                && !stored.outlier
                && stored.pdu.prev_events().iter().any(|prev| prev == id)
        }))
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(self.early_redactions.get(id).cloned().unwrap_or_default())
    }

    fn current_state(&self, _: &RoomId) -> Result<Option<StateId>, Infallible> {
        Ok(self.current)
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, Infallible> {
        Ok(self.events.get(id).and_then(|kept| kept.before))
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, Infallible> {
        Ok(self.events.get(id).and_then(|kept| kept.after))
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, Infallible> {
        Ok(self.full_state(state)?.get(key).cloned())
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, Infallible> {
        let mut state = Arc::clone(&self.states[state.0 as usize]);
        for refuted in &self.refuted {
            refuted.correct(&mut state);
        }
        Ok(state)
    }

    fn auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, Infallible> {
        let mut chain = BTreeSet::new();
        let mut open = of.to_vec();
        while let Some(id) = open.pop() {
            for auth in self
                .events
                .get(&id)
                .iter()
                .flat_map(|kept| kept.stored.pdu.auth_events())
            {
                if chain.insert(auth.clone()) {
                    open.push(auth.clone());
                }
            }
        }
        Ok(chain)
    }
}
