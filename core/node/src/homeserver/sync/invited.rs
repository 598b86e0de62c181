//! Invites and knocks as an answer tells them: stripped state, of rooms that the user cannot read yet. Rooms that this
//! node is not in are told as other servers told of them.

use std::collections::BTreeSet;

use kith_engine::{Pdu, RoomReader, Unsigned, client_event, rules, stripped_event};
use kith_store::{OutsideMembership, Seq};
use ruma::{
    OwnedRoomId, RoomId, RoomVersionId,
    api::client::sync::sync_events::v3::{InvitedRoom, KnockedRoom, LeftRoom, Rooms, State, StateEvents},
    events::{AnyStrippedStateEvent, StateEventType, room::member::MembershipState},
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::Snapshot;
use crate::Error;

/// What is told of a room to those outside.
///
/// Client-server API, "Stripped state": these "should be included".
const STRIPPED: [StateEventType; 8] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
    StateEventType::RoomTombstone,
];

impl Snapshot<'_> {
    /// A room of this node that the user is invited to; none if the inviter is ignored.
    pub(super) fn invited_room(&self, room: &RoomId) -> Result<Option<InvitedRoom>, Error> {
        let user = &self.query.session.user_id;
        let own = self
            .txn
            .current_state_event(room, &StateEventType::RoomMember, user.as_str())?;
        // "Servers must not send room invites from ignored users to clients."
        if own.is_some_and(|own| self.renderer.ignored.iter().any(|ignored| ignored == own.sender())) {
            return Ok(None);
        }
        let mut invited = InvitedRoom::new();
        invited.invite_state.events = self.stripped_state(room)?;
        Ok(Some(invited))
    }

    /// A room of this node that the user has knocked on.
    pub(super) fn knocked_room(&self, room: &RoomId) -> Result<KnockedRoom, Error> {
        let mut knocked = KnockedRoom::new();
        knocked.knock_state.events = self.stripped_state(room)?;
        Ok(knocked)
    }

    /// Stripped state with the user's own membership, and who sent it.
    fn stripped_state(&self, room: &RoomId) -> Result<Vec<Raw<AnyStrippedStateEvent>>, Error> {
        let mut events = Vec::new();
        for kind in &STRIPPED {
            events.extend(self.txn.current_state_event(room, kind, "")?);
        }
        let user = &self.query.session.user_id;
        let member = |user: &str| self.txn.current_state_event(room, &StateEventType::RoomMember, user);
        if let (Some(own), Some(version)) = (member(user.as_str())?, self.txn.room_version(room)?) {
            if own.sender() != user {
                events.extend(member(own.sender().as_str())?);
            }
            let whole = self.whole_event(&own, &version).unwrap_or_else(|| stripped_event(&own));
            let stripped = events.iter().map(stripped_event);
            return Ok(stripped.chain([whole]).map(Raw::from_json).collect());
        }
        Ok(events.iter().map(|pdu| Raw::from_json(stripped_event(pdu))).collect())
    }

    /// The user's own membership as clients see it anywhere else: they read from it when they were invited, which
    /// stripped state does not tell.
    /// `None` if the room's version is not known here.
    fn whole_event(&self, own: &Pdu, version: &RoomVersionId) -> Option<Box<RawValue>> {
        let rules = rules(version).ok()?;
        let unsigned = Unsigned::aged(own, self.renderer.now);
        Some(client_event(own, &unsigned, self.renderer.format, &rules.redaction))
    }

    /// What another server told of a room, with the user's own membership as this node holds it.
    fn outside_state(&self, standing: &OutsideMembership) -> Vec<Raw<AnyStrippedStateEvent>> {
        #[derive(Deserialize)]
        struct Key {
            #[serde(rename = "type")]
            kind: String,
            state_key: String,
        }
        let is_own = |event: &RawValue| {
            let key = serde_json::from_str::<Key>(event.get());
            key.is_ok_and(|key| key.kind == "m.room.member" && key.state_key == standing.user_id.as_str())
        };
        let (id, room) = (standing.event_id.clone(), standing.room_id.clone());
        let mut events = standing.state.clone();
        if let Ok(own) = Pdu::from_stored(id, room, standing.event.get()) {
            events.retain(|event| !is_own(event));
            let whole = self.whole_event(&own, &standing.version);
            events.push(whole.unwrap_or_else(|| stripped_event(&own)));
        }
        events.into_iter().map(Raw::from_json).collect()
    }

    /// Tells of invites to, knocks on and refusals by rooms that this node is not in, and returns which rooms these are.
    pub(super) fn outside_rooms(&self, rooms: &mut Rooms) -> Result<BTreeSet<OwnedRoomId>, Error> {
        let user = &self.query.session.user_id;
        let since = self.since.unwrap_or(Seq(0));
        let mut outside = BTreeSet::new();
        for standing in self.txn.outside_memberships_between(user, Seq(0), self.upto)? {
            let room = standing.room_id.clone();
            let member = self.txn.member(&room, user)?;
            // What this node itself knows of its user counts, until it hears that the user is in the room no more.
            let joined = member
                .as_ref()
                .is_some_and(|member| member.membership == MembershipState::Join);
            let told = member.map_or(standing.seq, |member| standing.seq.max(member.seq));
            if joined || told <= since || !self.query.filter.rooms.contains(&room) {
                continue;
            }
            outside.insert(room.clone());
            match standing.membership {
                MembershipState::Invite if !self.is_from_ignored(&standing) => {
                    let mut invited = InvitedRoom::new();
                    invited.invite_state.events = self.outside_state(&standing);
                    rooms.invite.insert(room, invited);
                }
                MembershipState::Knock => {
                    let mut knocked = KnockedRoom::new();
                    knocked.knock_state.events = self.outside_state(&standing);
                    rooms.knock.insert(room, knocked);
                }
                // A client that starts has not heard of the invite either.
                MembershipState::Leave | MembershipState::Ban
                    if self.since.is_some() || self.query.filter.include_leave =>
                {
                    rooms.leave.insert(room, self.outside_left(&standing)?);
                }
                _ => {}
            }
        }
        Ok(outside)
    }

    fn is_from_ignored(&self, standing: &OutsideMembership) -> bool {
        #[derive(Deserialize)]
        struct Sender {
            sender: String,
        }
        let sender = serde_json::from_str::<Sender>(standing.event.get());
        sender.is_ok_and(|event| self.renderer.ignored.iter().any(|user| *user == event.sender))
    }

    /// A room that the user is not invited to any more: only the event that says so.
    fn outside_left(&self, standing: &OutsideMembership) -> Result<LeftRoom, Error> {
        let mut left = LeftRoom::new();
        if self.query.use_state_after {
            left.state = State::After(StateEvents::new());
        }
        let (id, room, json) = (&standing.event_id, &standing.room_id, standing.event.get());
        // What another server told need not be a whole event; then the room is only listed.
        if let Ok(pdu) = Pdu::from_stored(id.clone(), room.clone(), json) {
            let event = self.whole_event(&pdu, &standing.version);
            left.timeline.events.extend(event.map(Raw::from_json));
        }
        Ok(left)
    }
}
