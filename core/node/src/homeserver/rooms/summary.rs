//! What somebody who is not in a room is told of it, and who is told at all. A room that nobody may know of looks like one
//! that is not there.

use std::time::Duration;

use kith_store::ReadTxn;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, RoomOrAliasId, ServerName, UInt, UserId,
    api::federation::space::get_hierarchy,
    directory::{PublicRoomsChunk, PublicRoomsChunkInit},
    events::{
        StateEventType,
        room::{
            avatar::RoomAvatarEventContent,
            canonical_alias::RoomCanonicalAliasEventContent,
            create::RoomCreateEventContent,
            encryption::RoomEncryptionEventContent,
            guest_access::{GuestAccess, RoomGuestAccessEventContent},
            member::MembershipState,
            name::RoomNameEventContent,
            topic::RoomTopicEventContent,
        },
    },
    room::{AllowRule, JoinRule, JoinRuleSummary, RoomSummary},
};

use super::{
    Rooms,
    member::standing,
    state::{CurrentRoom, find_room, is_world_readable},
};
use crate::{Error, federation::client, network::Limits};

/// A person waits for the answer.
const LIMITS: Limits = Limits {
    deadline: Duration::from_secs(10),
    max_answer: 4 * 1024 * 1024,
    bulk: false,
};
/// Servers asked about one room at the most.
const MAX_ASKED: usize = 3;

/// Who wants to know of a room.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker<'a> {
    /// A local user.
    User(&'a UserId),
    /// Another server, for any of its users.
    Server(&'a ServerName),
}

impl Rooms {
    /// What a room is, for somebody who thinks of joining it, with the user's own membership there. 404 `M_NOT_FOUND` for
    /// rooms that the user may not know of.
    ///
    /// Client-server API, `GET room_summary`.
    pub async fn summary(
        &self,
        user: &UserId,
        name: &RoomOrAliasId,
        via: Vec<OwnedServerName>,
    ) -> Result<(RoomSummary, MembershipState), Error> {
        let unknown = || Error::not_found("there is no such room, or you may not know of it");
        let (room, via) = self.locate(name, via).await?;
        let (own, asked, asking) = (self.ctx.server_name.clone(), room.clone(), user.to_owned());
        let (resident, held, membership) = self
            .ctx
            .store
            .read(move |txn| {
                let resident = txn.is_server_joined(&asked, &own)?;
                let held = match resident {
                    true => told_to(txn, &asked, Asker::User(&asking))?,
                    false => None,
                };
                let membership = standing(txn, &own, &asking, &asked)?.membership;
                Ok::<_, Error>((resident, held, membership))
            })
            .await?;
        let summary = match held {
            Some(summary) => summary,
            None if resident => return Err(unknown()),
            None => {
                let servers = self.ways_in(user, &room, via).await?;
                let told = self.ask_summary(&room, &servers, false).await.ok_or_else(unknown)?;
                let summary = told.room.summary;
                if !self.may_see_elsewhere(user, &summary).await? {
                    return Err(unknown());
                }
                summary
            }
        };
        Ok((summary, membership.unwrap_or(MembershipState::Leave)))
    }

    /// What other servers tell of a room that this node is not in, and of its children if it is a space.
    pub(super) async fn ask_summary(
        &self,
        room: &RoomId,
        servers: &[OwnedServerName],
        suggested_only: bool,
    ) -> Option<get_hierarchy::v1::Response> {
        for server in servers.iter().take(MAX_ASKED) {
            let mut request = get_hierarchy::v1::Request::new(room.to_owned());
            request.suggested_only = suggested_only;
            match client::request_within(&self.ctx, server, request, LIMITS).await {
                Ok(told) if told.room.summary.room_id == room => return Some(told),
                Ok(_) => tracing::info!(%server, %room, "a server told of another room than was asked for"),
                Err(error) => tracing::debug!(%error, %server, %room, "a server tells nothing of a room"),
            }
        }
        None
    }

    /// [`may_see`] for a user, of a room that only other servers tell of: they know what lets a user in, this node knows
    /// the user.
    pub(super) async fn may_see_elsewhere(&self, user: &UserId, room: &RoomSummary) -> Result<bool, Error> {
        let allowed: Vec<OwnedRoomId> = match &room.join_rule {
            _ if room.world_readable => return Ok(true),
            JoinRuleSummary::Public | JoinRuleSummary::Knock | JoinRuleSummary::KnockRestricted(_) => return Ok(true),
            JoinRuleSummary::Restricted(rule) => rule.allowed_room_ids.clone(),
            _ => Vec::new(),
        };
        let (own, user, room) = (self.ctx.server_name.clone(), user.to_owned(), room.room_id.clone());
        let read = self.ctx.store.read(move |txn| {
            let here = standing(txn, &own, &user, &room)?.membership;
            if matches!(
                here,
                Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock)
            ) {
                return Ok(true);
            }
            for room in allowed {
                if txn.membership(&room, &user)? == MembershipState::Join {
                    return Ok(true);
                }
            }
            Ok::<_, Error>(false)
        });
        read.await
    }
}

/// A room that this node is in, for somebody who may know of it.
pub(super) fn told_to(txn: &ReadTxn<'_>, room: &RoomId, asker: Asker<'_>) -> Result<Option<RoomSummary>, Error> {
    match find_room(txn, room)? {
        Some(current) if may_see(txn, &current, asker)? => summary_of(txn, &current).map(Some),
        _ => Ok(None),
    }
}

/// Whether somebody may know of a room: who is in it or invited, and everybody who could enter, ask to, or look in.
///
/// Client-server API, `GET hierarchy` and `GET room_summary`; server-server API, `GET hierarchy`.
fn may_see(txn: &ReadTxn<'_>, room: &CurrentRoom<'_, '_>, asker: Asker<'_>) -> Result<bool, Error> {
    if let Asker::Server(server) = asker
        && !room.allows_server(server)?
    {
        return Ok(false);
    }
    let rule = room.join_rule()?;
    if matches!(rule, JoinRule::Public | JoinRule::Knock | JoinRule::KnockRestricted(_)) || is_world_readable(room)? {
        return Ok(true);
    }
    let inside = match asker {
        Asker::User(user) => matches!(
            room.membership(user)?,
            MembershipState::Join | MembershipState::Invite | MembershipState::Knock
        ),
        Asker::Server(server) => {
            let waiting = [MembershipState::Invite, MembershipState::Knock];
            let mut waiting = txn.members(room.room_id(), &waiting)?.into_iter();
            txn.is_server_joined(room.room_id(), server)?
                || waiting.any(|member| member.user_id.server_name() == server)
        }
    };
    if inside {
        return Ok(true);
    }
    let JoinRule::Restricted(rule) = rule else {
        return Ok(false);
    };
    for allowed in rule.allow {
        let AllowRule::RoomMembership(allowed) = allowed else {
            continue;
        };
        let inside = match asker {
            Asker::User(user) => txn.membership(&allowed.room_id, user)? == MembershipState::Join,
            Asker::Server(server) => txn.is_server_joined(&allowed.room_id, server)?,
        };
        if inside {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Everything that a summary holds.
fn summary_of(txn: &ReadTxn<'_>, room: &CurrentRoom<'_, '_>) -> Result<RoomSummary, Error> {
    let mut summary = RoomSummary::from(listed(txn, room)?);
    summary.join_rule = room.join_rule()?.into();
    summary.room_version = Some(room.version().clone());
    summary.encryption = room
        .content::<RoomEncryptionEventContent>(StateEventType::RoomEncryption, "")?
        .map(|content| content.algorithm);
    Ok(summary)
}

/// What the public room list tells of a room.
pub(super) fn listed(txn: &ReadTxn<'_>, room: &CurrentRoom<'_, '_>) -> Result<PublicRoomsChunk, Error> {
    let joined = txn.member_count(room.room_id(), &MembershipState::Join)?;
    let guests = room.content::<RoomGuestAccessEventContent>(StateEventType::RoomGuestAccess, "")?;
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: UInt::new_saturating(joined),
        room_id: room.room_id().to_owned(),
        world_readable: is_world_readable(room)?,
        guest_can_join: guests.is_some_and(|guests| guests.guest_access == GuestAccess::CanJoin),
    });
    chunk.canonical_alias = room
        .content::<RoomCanonicalAliasEventContent>(StateEventType::RoomCanonicalAlias, "")?
        .and_then(|content| content.alias);
    chunk.name = room
        .content::<RoomNameEventContent>(StateEventType::RoomName, "")?
        .map(|content| content.name);
    chunk.topic = room
        .content::<RoomTopicEventContent>(StateEventType::RoomTopic, "")?
        .map(|content| content.topic);
    chunk.avatar_url = room
        .content::<RoomAvatarEventContent>(StateEventType::RoomAvatar, "")?
        .and_then(|content| content.url);
    chunk.join_rule = room.join_rule()?.kind();
    chunk.room_type = room
        .content::<RoomCreateEventContent>(StateEventType::RoomCreate, "")?
        .and_then(|content| content.room_type);
    Ok(chunk)
}
