//! Leaving a room, refusing an invite, taking a knock back.

use ruma::{CanonicalJsonObject, RoomId, UserId, events::room::member::MembershipState};

use super::{Rooms, member::member_draft};
use crate::Error;

impl Rooms {
    /// Leaves a room, refuses an invite to it or takes a knock at it back. Once more changes nothing.
    pub async fn leave(&self, user: &UserId, room: &RoomId, reason: Option<String>) -> Result<(), Error> {
        let standing = self.standing(user, room).await?;
        if !standing.resident && self.take_back_entry(user, room, reason.clone()).await? {
            return Ok(());
        }
        match (&standing.membership, standing.resident) {
            (Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock), true) => {
                let draft = member_draft(user, user, &MembershipState::Leave, reason, CanonicalJsonObject::new());
                let room = room.to_owned();
                self.commit(move |commit| commit.make(&room, &draft).map(drop)).await
            }
            (Some(MembershipState::Invite | MembershipState::Knock), false) => {
                let servers = self.ways_in(user, room, Vec::new()).await?;
                self.leave_through(user, room, servers, reason).await
            }
            (Some(MembershipState::Leave), _) => Ok(()),
            (Some(MembershipState::Ban), _) => Err(Error::forbidden("you are banned from this room")),
            (None, true) => Err(Error::forbidden("you are not in this room")),
            _ => Err(Error::not_found("this room is not known here")),
        }
    }
}
