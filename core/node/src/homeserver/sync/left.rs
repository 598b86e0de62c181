//! A room that the user has left, as an answer tells it: up to the moment of leaving, and nothing of what came after.

use kith_engine::RoomReader;
use kith_store::SyncRoom;
use ruma::{
    api::client::sync::sync_events::v3::{LeftRoom, State, StateEvents},
    events::room::member::MembershipState,
};

use super::{answer::Snapshot, state::Span};
use crate::{
    Error,
    homeserver::timeline::{Access, RoomSight},
};

impl Snapshot<'_> {
    /// A room that the user left or was removed from; none if nothing of it may be told.
    pub(super) fn left_room(&mut self, room: &SyncRoom) -> Result<Option<LeftRoom>, Error> {
        let (txn, query, id) = (self.txn, self.query, &*room.room_id);
        let Some(mut sight) = RoomSight::new(txn, id, &query.session.user_id)? else {
            return Ok(None);
        };
        let Some(Access::Left { at, state }) = sight.access()? else {
            return self.never_joined(room, &mut sight);
        };
        let mut left = LeftRoom::new();
        left.account_data.events = self.room_account_data.remove(id).unwrap_or_default();
        let known = self.membership_then(id)? == Some(MembershipState::Join);
        let from = self.since.filter(|_| known);
        let told = self.timeline(&mut sight, at.0, from.map(|from| from.0))?;
        left.timeline = told.timeline;
        left.state = self.state_section(Vec::new());
        if let Some(state) = state {
            let span = Span {
                txn,
                room: id,
                from,
                whole: from.is_none(),
                upto: at,
                state,
                is_current: txn.current_state(id)? == Some(state),
                timeline: &told.events,
                after: query.use_state_after,
            };
            let events = self.state(&span, &[])?;
            let redaction = sight.redaction();
            let told_state = events.iter().map(|pdu| self.renderer.state_event(pdu, redaction));
            left.state = self.state_section(told_state.collect());
        }
        Ok(Some(left))
    }

    /// A room that the user was invited to or knocked on, and has not been in: only the event that ended that.
    fn never_joined(&self, room: &SyncRoom, sight: &mut RoomSight<'_>) -> Result<Option<LeftRoom>, Error> {
        let mut left = LeftRoom::new();
        if self.query.use_state_after {
            left.state = State::After(StateEvents::new());
        }
        let user = &self.query.session.user_id;
        let Some(member) = self.txn.member(&room.room_id, user)? else {
            return Ok(None);
        };
        if let Some(event) = self.txn.timeline_event(&member.event_id)? {
            let told = self.renderer.timeline_event(sight, &event, member.membership)?;
            left.timeline.events.push(told);
        }
        Ok(Some(left))
    }
}
