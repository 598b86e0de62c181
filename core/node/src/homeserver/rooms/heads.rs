//! Keeps a room's forward extremities few: an event that does nothing else joins them. Clients never see it.

use kith_engine::{Draft, JOINS_HEADS, RoomReader, limits::MAX_EXTREMITIES};
use ruma::{CanonicalJsonObject, OwnedUserId, RoomId, events::room::member::MembershipState};

use super::Rooms;
use crate::Error;

/// Local users tried at the most: one may speak where another may not.
const MAX_TRIED: usize = 5;

impl Rooms {
    /// Joins a room's forward extremities until they are few, if they are too many still. 403 `M_FORBIDDEN` if no local user
    /// may speak there.
    pub async fn join_heads(&self, room: &RoomId) -> Result<(), Error> {
        while self.join_some_heads(room).await? > MAX_EXTREMITIES {}
        Ok(())
    }

    /// Joins as many as one event can, if they are too many. Returns how many there are then.
    async fn join_some_heads(&self, room: &RoomId) -> Result<usize, Error> {
        let room = room.to_owned();
        self.commit(move |commit| {
            let heads = commit.txn.forward_extremities(&room)?.len();
            if heads <= MAX_EXTREMITIES {
                return Ok(heads);
            }
            let mut refused = Ok(heads);
            for sender in self_members(commit, &room)? {
                let draft = Draft {
                    kind: JOINS_HEADS.into(),
                    state_key: None,
                    content: CanonicalJsonObject::new(),
                    sender,
                    redacts: None,
                };
                match commit.make(&room, &draft) {
                    Ok(joined) => return Ok(heads + 1 - joined.prev_events().len()),
                    Err(error @ (Error::Store(_) | Error::Internal(..))) => return Err(error),
                    Err(error) => refused = Err(error),
                }
            }
            refused
        })
        .await
    }
}

/// Local users in a room.
fn self_members(commit: &super::commit::Commit<'_, '_>, room: &RoomId) -> Result<Vec<OwnedUserId>, Error> {
    let members = commit.txn.members(room, &[MembershipState::Join])?;
    let local = members.into_iter().map(|member| member.user_id);
    Ok(local.filter(|user| commit.is_local(user)).take(MAX_TRIED).collect())
}
