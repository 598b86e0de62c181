//! Membership where the room's own state is at hand: removing, banning, forgetting, and what members show of themselves.
//! Whatever needs another server's help stands beside this.

use std::collections::BTreeSet;

use kith_engine::Draft;
use kith_store::{ReadTxn, Seq};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, RoomId, ServerName, UserId,
    api::error::ErrorKind,
    events::{TimelineEventType, room::member::MembershipState},
    exports::http::StatusCode,
    profile::UserProfile,
};

use super::{Rooms, state::room_of_member};
use crate::Error;

/// Where a local user stands with a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    /// The membership; none for a room that the user never had to do with.
    pub(super) membership: Option<MembershipState>,
    /// Whether this node is in the room, so that its state is up to date.
    pub(super) resident: bool,
}

impl Rooms {
    /// The rooms that a user is joined to.
    pub async fn joined_rooms(&self, user: &UserId) -> Result<Vec<OwnedRoomId>, Error> {
        let user = user.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                let rooms = txn.rooms_of(&user, &[MembershipState::Join])?;
                Ok(rooms.into_iter().map(|room| room.room_id).collect())
            })
            .await
    }

    /// Removes a user who is joined, invited or knocking.
    pub async fn kick(
        &self,
        user: &UserId,
        room: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<(), Error> {
        self.move_target(
            user,
            room,
            target,
            MembershipState::Leave,
            reason,
            |before| match before {
                MembershipState::Join | MembershipState::Invite | MembershipState::Knock => Ok(()),
                _ => Err(Error::forbidden("this user is not in the room")),
            },
        )
        .await
    }

    /// Removes a user for good.
    pub async fn ban(
        &self,
        user: &UserId,
        room: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<(), Error> {
        self.move_target(user, room, target, MembershipState::Ban, reason, |_| Ok(()))
            .await
    }

    /// Lets a banned user come back.
    pub async fn unban(
        &self,
        user: &UserId,
        room: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<(), Error> {
        self.move_target(
            user,
            room,
            target,
            MembershipState::Leave,
            reason,
            |before| match before {
                MembershipState::Ban => Ok(()),
                _ => Err(Error::refused(
                    StatusCode::FORBIDDEN,
                    ErrorKind::BadState,
                    "this user is not banned",
                )),
            },
        )
        .await
    }

    /// Sets another user's membership, if `may` agrees with what it was.
    async fn move_target(
        &self,
        user: &UserId,
        room: &RoomId,
        target: &UserId,
        membership: MembershipState,
        reason: Option<String>,
        may: impl FnOnce(MembershipState) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let draft = member_draft(user, target, &membership, reason, CanonicalJsonObject::new());
        let (user, room, target) = (user.to_owned(), room.to_owned(), target.to_owned());
        self.commit(move |commit| {
            may(room_of_member(commit.txn, &room, &user)?.membership(&target)?)?;
            commit.make(&room, &draft)?;
            Ok(())
        })
        .await
    }

    /// Hides a room that the user has left from the user's own view. 400 `M_UNKNOWN` while the user is in it.
    pub async fn forget(&self, user: &UserId, room: &RoomId) -> Result<(), Error> {
        let ctx = self.ctx.clone();
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx
            .store
            .write(
                move |txn| match standing(txn, &ctx.server_name, &user, &room)?.membership {
                    None => Err(Error::not_found("you were never in this room")),
                    Some(MembershipState::Leave | MembershipState::Ban) => Ok(txn.forget_room(&user, &room)?),
                    Some(_) => Err(Error::refused(
                        StatusCode::BAD_REQUEST,
                        ErrorKind::Unknown,
                        "leave the room before you forget it",
                    )),
                },
            )
            .await
    }

    /// Whether a user is joined to a room.
    pub(super) async fn is_joined(&self, user: &UserId, room: &RoomId) -> Result<bool, Error> {
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx
            .store
            .read(move |txn| Ok(txn.membership(&room, &user)? == MembershipState::Join))
            .await
    }

    /// Where a local user stands with a room.
    pub(super) async fn standing(&self, user: &UserId, room: &RoomId) -> Result<Standing, Error> {
        let own = self.ctx.server_name.clone();
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx.store.read(move |txn| standing(txn, &own, &user, &room)).await
    }

    /// What a local user's member events show of the user.
    pub(super) async fn member_profile(&self, user: &UserId) -> Result<CanonicalJsonObject, Error> {
        Ok(member_fields(&self.profiles.local_profile(user).await?))
    }

    /// Tells the rooms that a user is joined to what the user's profile is now. Rooms that refuse keep the old one.
    pub async fn announce_profile(&self, user: &UserId) -> Result<(), Error> {
        let profile = self.member_profile(user).await?;
        let user = user.to_owned();
        self.commit(move |commit| {
            for room in commit.txn.rooms_of(&user, &[MembershipState::Join])? {
                // Only the profile is said. What let the user in, above all, is not claimed again.
                let draft = member_draft(&user, &user, &MembershipState::Join, None, profile.clone());
                match commit.set_state(&room.room_id, &draft) {
                    Err(Error::Refused { message, .. }) => tracing::info!(%message, "a room keeps the old profile"),
                    other => drop(other?),
                }
            }
            Ok(())
        })
        .await
    }

    /// Takes a user out of every room, as when the account is closed. Rooms that cannot be left now are logged.
    pub async fn leave_all(&self, user: &UserId) -> Result<(), Error> {
        let own = user.to_owned();
        let rooms = self
            .ctx
            .store
            .read(move |txn| {
                let inside = [MembershipState::Join, MembershipState::Invite, MembershipState::Knock];
                let held = txn.rooms_of(&own, &inside)?.into_iter().map(|room| room.room_id);
                let outside = txn.outside_memberships_between(&own, Seq(0), txn.last_seq()?)?;
                let outside = outside
                    .into_iter()
                    .filter(|outside| outside.membership != MembershipState::Leave);
                Ok::<BTreeSet<OwnedRoomId>, Error>(held.chain(outside.map(|outside| outside.room_id)).collect())
            })
            .await?;
        for room in rooms {
            if let Err(error) = self.leave(user, &room, None).await {
                tracing::warn!(%error, %room, "a closed account stays in a room");
            }
        }
        Ok(())
    }
}

/// An `m.room.member` event.
pub(super) fn member_draft(
    sender: &UserId,
    target: &UserId,
    membership: &MembershipState,
    reason: Option<String>,
    profile: CanonicalJsonObject,
) -> Draft {
    let mut content = profile;
    content.insert("membership".to_owned(), text(membership.as_str()));
    content.extend(reason_field(reason));
    Draft {
        kind: TimelineEventType::RoomMember,
        state_key: Some(target.to_string()),
        content,
        sender: sender.to_owned(),
        redacts: None,
    }
}

/// The reason of a membership event, as its content holds it.
pub(super) fn reason_field(reason: Option<String>) -> impl Iterator<Item = (String, CanonicalJsonValue)> {
    reason.map(|reason| ("reason".to_owned(), text(reason))).into_iter()
}

fn text(text: impl Into<String>) -> CanonicalJsonValue {
    CanonicalJsonValue::String(text.into())
}

/// What member events show of a user.
fn member_fields(profile: &UserProfile) -> CanonicalJsonObject {
    let shown = ["displayname", "avatar_url"].into_iter();
    shown
        .filter_map(|name| Some((name.to_owned(), text(profile.get(name)?.as_str()?))))
        .collect()
}

/// Where a local user stands with a room: what the room says where this node is in it, else what other servers told
/// last.
pub(super) fn standing(txn: &ReadTxn<'_>, own: &ServerName, user: &UserId, room: &RoomId) -> Result<Standing, Error> {
    let resident = txn.is_server_joined(room, own)?;
    if !resident && let Some(outside) = txn.outside_membership(user, room)? {
        return Ok(Standing {
            membership: Some(outside.membership),
            resident,
        });
    }
    let membership = txn.member(room, user)?.map(|member| member.membership);
    Ok(Standing { membership, resident })
}
