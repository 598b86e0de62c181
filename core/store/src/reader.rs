//! The engine's view of the store: [`RoomReader`] over a transaction. It only forwards to the table families.

use std::{collections::BTreeSet, sync::Arc};

use kith_engine::{Extremity, RoomReader, StateId, StateKey, StateMap, StoredPdu};
use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId};

use crate::{ReadTxn, StoreError};

impl RoomReader for ReadTxn<'_> {
    type Error = StoreError;

    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, StoreError> {
        self.read_room_version(room)
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, StoreError> {
        self.event_row(id)?.map(|row| self.stored_pdu(&row)).transpose()
    }

    fn has_event(&self, id: &EventId) -> Result<bool, StoreError> {
        Ok(self.event_no(id)?.is_some())
    }

    fn forward_extremities(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.read_forward_extremities(room)
    }

    fn extremities(&self, room: &RoomId) -> Result<Vec<Extremity>, StoreError> {
        self.read_extremities(room)
    }

    fn has_successor(&self, id: &EventId) -> Result<bool, StoreError> {
        self.read_has_successor(id)
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.read_early_redactions(id)
    }

    fn current_state(&self, room: &RoomId) -> Result<Option<StateId>, StoreError> {
        self.read_current_state(room)
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, StoreError> {
        Ok(self.event_row(id)?.and_then(|row| row.state_before).map(StateId))
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, StoreError> {
        Ok(self.event_row(id)?.and_then(|row| row.state_after).map(StateId))
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, StoreError> {
        self.read_state_entry(state, key)
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, StoreError> {
        self.read_full_state(state)
    }

    fn auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, StoreError> {
        self.read_auth_chain(of)
    }
}
