//! Which rooms an answer tells of, and as what: joined, invited, knocked on or left.

use std::collections::BTreeSet;

use kith_engine::membership_of;
use kith_store::{Seq, SyncRoom};
use ruma::{
    OwnedRoomId, RoomId,
    api::client::sync::sync_events::v3::Rooms,
    events::{StateEventType, room::member::MembershipState},
};

use super::answer::Snapshot;
use crate::Error;

/// What a client has of a room, up to where its knowledge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Its state and timeline.
    Everything,
    /// Both, but the user left since and came back, so that state may have changed unseen.
    Past,
    /// Nothing that counts: the user was not in it.
    Nothing,
}

impl Snapshot<'_> {
    /// The rooms that there is anything to tell of, and which joined ones among them the client did not have.
    pub(super) fn rooms(&mut self) -> Result<(Rooms, Vec<OwnedRoomId>), Error> {
        let mut rooms = Rooms::new();
        let mut new = Vec::new();
        let user = self.query.session.user_id.clone();
        let forgotten: BTreeSet<OwnedRoomId> = self.txn.forgotten_rooms(&user)?.into_iter().collect();
        let outside = self.outside_rooms(&mut rooms)?;
        let left_after = match self.since {
            Some(since) => since,
            None if self.query.filter.include_leave => Seq(0),
            None => Seq(i64::MAX),
        };
        for room in self.txn.sync_rooms(&user, left_after)? {
            let id = &room.room_id;
            let changed = self.since.is_none_or(|since| room.member_seq > since);
            // A client that has a room is told that the user left it, even if it was forgotten since.
            let forgotten = forgotten.contains(id) && !(changed && self.since.is_some());
            if !self.query.filter.rooms.contains(id) || forgotten || outside.contains(id) {
                continue;
            }
            match room.membership {
                MembershipState::Join => {
                    let held = match changed {
                        true => self.held(&room)?,
                        false => Held::Everything,
                    };
                    if held == Held::Nothing {
                        new.push(id.clone());
                    }
                    if let Some(joined) = self.joined_room(&room, held)? {
                        rooms.join.insert(id.clone(), joined);
                    }
                }
                MembershipState::Invite if changed => {
                    if let Some(invited) = self.invited_room(id)? {
                        rooms.invite.insert(id.clone(), invited);
                    }
                }
                MembershipState::Knock if changed => {
                    rooms.knock.insert(id.clone(), self.knocked_room(id)?);
                }
                MembershipState::Leave | MembershipState::Ban => {
                    if let Some(left) = self.left_room(&room)? {
                        rooms.leave.insert(id.clone(), left);
                    }
                }
                _ => {}
            }
        }
        Ok((rooms, new))
    }

    /// What a client has of a joined room whose membership changed.
    fn held(&self, room: &SyncRoom) -> Result<Held, Error> {
        let Some(since) = self.since else {
            return Ok(Held::Nothing);
        };
        let user = self.query.session.user_id.as_str();
        let mut held = None;
        for change in self.txn.state_changes(&room.room_id, since, self.upto)? {
            if change.key.0 != StateEventType::RoomMember || change.key.1 != user {
                continue;
            }
            let joined = self.membership_of(change.before.as_deref())? == Some(MembershipState::Join);
            held = Some(match (held, joined) {
                (None, true) => Held::Everything,
                (None, false) => Held::Nothing,
                (Some(Held::Everything), false) => Held::Past,
                (Some(held), _) => held,
            });
        }
        Ok(held.unwrap_or(Held::Everything))
    }

    /// The membership that the user had when the client last asked; none before the first.
    pub(super) fn membership_then(&self, room: &RoomId) -> Result<Option<MembershipState>, Error> {
        let Some(since) = self.since else {
            return Ok(None);
        };
        let user = self.query.session.user_id.as_str();
        let changes = self.txn.state_changes(room, since, self.upto)?;
        let mut own = changes
            .iter()
            .filter(|change| change.key.0 == StateEventType::RoomMember && change.key.1 == user);
        match own.next() {
            Some(first) => self.membership_of(first.before.as_deref()),
            None => Ok(Some(self.txn.membership(room, &self.query.session.user_id)?)),
        }
    }

    fn membership_of(&self, event: Option<&ruma::EventId>) -> Result<Option<MembershipState>, Error> {
        use kith_engine::RoomReader;

        let stored = event.map(|id| self.txn.event(id)).transpose()?.flatten();
        Ok(stored.and_then(|stored| membership_of(&stored.pdu)))
    }
}
