//! Rooms that this node is not in, as other servers tell of them: invites that arrive, invites that are taken back, and
//! what to do when nobody else is there to ask. What they tell is shown as hearsay and never becomes room state.

use kith_engine::{
    Pdu, RoomReader, SUPPORTED_VERSIONS, UncheckedPdu, accept_invite, membership_of, prune_stripped_state, rules,
    stripped_event,
};
use kith_store::{Entry, NewOutsideMembership, OutsideMembership, ReadTxn, WriteTxn};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId,
    RoomVersionId, ServerName, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
    room_version_rules::RoomIdFormatVersion,
};
use serde_json::value::{RawValue, to_raw_value};

use super::{Rooms, commit::signer, enter::incompatible, resident::must_be_whole, state::get_room};
use crate::Error;

/// Invitations by strangers that a user gets within a day.
const STRANGERS_INVITES: u64 = 10;
/// A day, in milliseconds.
const DAY: u32 = 86_400_000;

impl Rooms {
    /// Takes an invite of a local user from the inviting server, and gives it back signed.
    ///
    /// Server-server API, `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`.
    pub async fn handle_invite(
        &self,
        peer: &ServerName,
        request: create_invite::v2::Request,
    ) -> Result<Box<RawValue>, Error> {
        let (room, version) = (request.room_id, request.room_version);
        if !SUPPORTED_VERSIONS.contains(&version) {
            return Err(incompatible(version));
        }
        let hashed = rules(&version)?.room_id_format == RoomIdFormatVersion::V2;
        if hashed != room.server_name().is_none() {
            return Err(Error::invalid_param("the room's id is none of that version"));
        }
        let unchecked = UncheckedPdu::parse(request.event.get(), &version)?;
        if unchecked.event_id() != request.event_id {
            return Err(Error::invalid_param("the event has another id than the request says"));
        }
        if unchecked.pdu().sender().server_name() != peer {
            return Err(Error::invalid_param("the event is another server's"));
        }
        let keys = self.server_keys.load(&unchecked.required_keys()?, peer).await?;
        let keys = |server: &ServerName, key: &str, at| keys.get(server, key, at);
        let invite = accept_invite(request.event.get(), &room, &version, signer(&self.ctx), keys)?;
        must_be_whole(&unchecked, &invite)?;
        let told = stripped(&request.invite_room_state)?;
        let mut state = prune_stripped_state(&told, &room, &version)?;
        state.push(stripped_event(invite.pdu()));
        let target = invite.pdu().state_key().and_then(|user| UserId::parse(user).ok());
        let target = target.ok_or_else(|| Error::invalid_param("the invited user is not of this server"))?;
        self.must_take_invites(&target).await?;

        let (own, peer, json) = (self.ctx.server_name.clone(), peer.to_owned(), invite.pdu().to_raw());
        let (kept, now) = (json.clone(), self.ctx.world.now());
        self.ctx
            .store
            .write(move |txn| {
                let resident = txn.is_server_joined(&room, &own)?;
                if resident && !get_room(txn, &room)?.allows_server(&peer)? {
                    return Err(Error::forbidden("the room does not let your server take part"));
                }
                // In a room that this node is in, the invite arrives as an event too, and that one counts. But one that
                // builds upon what is not held may tell that the node is in the room no more.
                if !resident || !is_grounded(txn, invite.pdu())? {
                    let known = txn.outside_membership(&target, &room)?;
                    if known.is_none_or(|known| known.event_id != invite.event_id()) {
                        limit_strangers(txn, &peer, &target, now)?;
                    }
                    txn.settle_leave(&target, &room)?;
                    txn.set_outside_membership(&NewOutsideMembership {
                        user_id: &target,
                        room_id: &room,
                        membership: &MembershipState::Invite,
                        via: &peer,
                        version: &version,
                        event_id: invite.event_id(),
                        event: &kept,
                        state: &state,
                    })?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(json)
    }

    /// 403 `M_FORBIDDEN` for an invite of nobody, or of somebody who closed the account.
    async fn must_take_invites(&self, user: &UserId) -> Result<(), Error> {
        let user = user.to_owned();
        self.ctx
            .store
            .read(move |txn| match txn.user(&user)? {
                Some(account) if !account.deactivated => Ok(()),
                _ => Err(Error::forbidden("there is no such user here")),
            })
            .await
    }

    /// Takes an event of a room that this node is not in: the end of an invite or a knock of a local user, or of the user's
    /// way in. Everything else is 404 `M_NOT_FOUND`.
    pub async fn handle_outside_member(&self, peer: &ServerName, json: &RawValue) -> Result<(), Error> {
        let (user, room) = who_and_where(json).ok_or_else(not_in)?;
        let read = {
            let (user, room) = (user.clone(), room.clone());
            let read = self.ctx.store.read(move |txn| Outside::read(txn, &user, &room));
            read.await?
        };
        let unchecked = UncheckedPdu::parse(json.get(), read.version().ok_or_else(not_in)?)?;
        let keys = self.server_keys.load(&unchecked.required_keys()?, peer).await?;
        let event = unchecked.verify(|server, key, at| keys.get(server, key, at))?;
        if !read.is_ended_by(event.pdu()) {
            return Err(not_in());
        }
        self.ctx
            .store
            .write(move |txn| {
                let now = Outside::read(txn, &user, &room)?;
                if !now.is_ended_by(event.pdu()) {
                    return Ok(());
                }
                txn.end_entry(&user, &room)?;
                if let Some(standing) = now.standing {
                    txn.set_outside_membership(&NewOutsideMembership {
                        user_id: &user,
                        room_id: &room,
                        membership: &MembershipState::Leave,
                        via: &standing.via,
                        version: &standing.version,
                        event_id: event.event_id(),
                        event: &event.pdu().to_raw(),
                        state: &[],
                    })?;
                }
                Ok(())
            })
            .await
    }
}

/// What is known of a local user in a room that this node is not in.
struct Outside {
    standing: Option<OutsideMembership>,
    entry: Option<Entry>,
}

impl Outside {
    fn read(txn: &ReadTxn<'_>, user: &UserId, room: &RoomId) -> Result<Self, Error> {
        Ok(Self {
            standing: txn.outside_membership(user, room)?,
            entry: txn.entry(user, room)?,
        })
    }

    fn version(&self) -> Option<&RoomVersionId> {
        let entry = self.entry.as_ref().map(|entry| &entry.version);
        entry.or(self.standing.as_ref().map(|standing| &standing.version))
    }

    /// Whether an event of this user in this room ends what the user waits for. Its authority cannot be checked from
    /// outside; that it names the invite, or the join, among the events that authorise it shows that its author knows the
    /// room.
    fn is_ended_by(&self, event: &Pdu) -> bool {
        let over = matches!(
            membership_of(event),
            Some(MembershipState::Leave | MembershipState::Ban)
        );
        let waiting = self
            .standing
            .iter()
            .filter(|standing| matches!(standing.membership, MembershipState::Invite | MembershipState::Knock));
        let waiting = waiting.map(|standing| &standing.event_id);
        let mut waiting = waiting.chain(self.entry.iter().map(|entry| &entry.event_id));
        over && waiting.any(|id| event.auth_events().contains(id))
    }
}

/// Whether all that authorises an event is held.
fn is_grounded(txn: &WriteTxn<'_>, event: &Pdu) -> Result<bool, Error> {
    for id in event.auth_events() {
        if !txn.has_event(id)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Counts an invitation by a server that is neither a contact nor in a room with the invited user. 403 `M_FORBIDDEN` when
/// there have been enough of them for a day.
fn limit_strangers(
    txn: &WriteTxn<'_>,
    peer: &ServerName,
    target: &UserId,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    let is_peer = |server: &OwnedServerName| server == peer;
    if txn.contacts(u32::MAX)?.iter().any(is_peer) || txn.servers_sharing_a_room(target)?.iter().any(is_peer) {
        return Ok(());
    }
    let day_before = MilliSecondsSinceUnixEpoch(now.0.saturating_sub(DAY.into()));
    if txn.strangers_invites(target, day_before)? >= STRANGERS_INVITES {
        return Err(Error::forbidden(
            "this user takes no more invitations from strangers today",
        ));
    }
    txn.count_strangers_invite(target, now, day_before)?;
    Ok(())
}

/// 404 `M_NOT_FOUND`.
fn not_in() -> Error {
    Error::not_found("this server is not in that room")
}

/// Whose membership an event is about, and in which room.
fn who_and_where(json: &RawValue) -> Option<(ruma::OwnedUserId, ruma::OwnedRoomId)> {
    #[derive(serde::Deserialize)]
    struct Event {
        room_id: ruma::OwnedRoomId,
        state_key: ruma::OwnedUserId,
    }
    let event: Event = serde_json::from_str(json.get()).ok()?;
    Some((event.state_key, event.room_id))
}

/// Stripped state as it came, whichever of its two shapes it has.
pub(super) fn stripped(state: &[RawStrippedState]) -> Result<Vec<Box<RawValue>>, Error> {
    let raw = state.iter().map(to_raw_value).collect::<Result<_, _>>();
    raw.map_err(|error| Error::Internal("stripped state did not serialise", Some(Box::new(error))))
}

/// The version of a room and the event that last told of a user in it, for a leave that no server helps with.
pub(super) fn last_word(
    txn: &ReadTxn<'_>,
    user: &UserId,
    room: &RoomId,
) -> Result<(RoomVersionId, OwnedEventId), Error> {
    if let Some(outside) = txn.outside_membership(user, room)? {
        return Ok((outside.version, outside.event_id));
    }
    match (txn.room_version(room)?, txn.member(room, user)?) {
        (Some(version), Some(member)) => Ok((version, member.event_id)),
        _ => Err(Error::not_found("you have nothing to do with this room")),
    }
}

/// A template like another server's, for an event that only our own user will ever see.
pub(super) fn lone_template(
    user: &UserId,
    room: &RoomId,
    membership: &MembershipState,
    before: OwnedEventId,
) -> CanonicalJsonObject {
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    let before = CanonicalJsonValue::Array(vec![text(before.as_str())]);
    let content = CanonicalJsonObject::from([("membership".to_owned(), text(membership.as_str()))]);
    CanonicalJsonObject::from([
        ("type".to_owned(), text("m.room.member")),
        ("room_id".to_owned(), text(room.as_str())),
        ("sender".to_owned(), text(user.as_str())),
        ("state_key".to_owned(), text(user.as_str())),
        ("content".to_owned(), CanonicalJsonValue::Object(content)),
        ("prev_events".to_owned(), before.clone()),
        ("auth_events".to_owned(), before),
        ("depth".to_owned(), ruma::Int::from(1).into()),
    ])
}
