//! The resident's side of joining, leaving and knocking: what this node does for users of other servers in rooms that it
//! is in.

use std::collections::BTreeSet;

use kith_engine::{
    CheckedPdu, HandshakeError, RoomError, RoomReader, UncheckedPdu, check_membership, membership_template,
    stripped_state,
};
use kith_store::ReadTxn;
use ruma::{
    EventId, OwnedEventId, OwnedUserId, RoomId, RoomVersionId, ServerName,
    api::{
        error::ErrorKind,
        federation::membership::{RawStrippedState, create_join_event::v2::RoomState},
    },
    events::room::member::MembershipState,
    exports::http::StatusCode,
};
use serde_json::value::RawValue;

use super::{
    Rooms,
    enter::incompatible,
    state::{CurrentRoom, get_room},
};
use crate::Error;

/// A membership event that another server wants to make or has made.
#[derive(Debug)]
pub struct Handshake<'a> {
    /// The asking server.
    pub peer: &'a ServerName,
    /// The room.
    pub room: &'a RoomId,
    /// What the user is to be.
    pub membership: MembershipState,
}

impl Rooms {
    /// An event for the asking server to complete and sign. `versions`: the room versions that it knows; none if the
    /// request has no place for them.
    ///
    /// Server-server API, `make_join`, `make_leave`, `make_knock`.
    pub async fn template(
        &self,
        handshake: Handshake<'_>,
        user: OwnedUserId,
        versions: Vec<RoomVersionId>,
    ) -> Result<(RoomVersionId, Box<RawValue>), Error> {
        if user.server_name() != handshake.peer {
            return Err(Error::forbidden("the user is another server's"));
        }
        let (peer, room, membership) = (
            handshake.peer.to_owned(),
            handshake.room.to_owned(),
            handshake.membership,
        );
        let ctx = self.ctx.clone();
        self.ctx
            .store
            .read(move |txn| {
                resident_room(txn, &room, &ctx.server_name, &peer)?;
                let now = ctx.world.now();
                let made = membership_template(txn, &room, &user, membership, &versions, &ctx.server_name, now);
                let (version, template) = made?;
                let json = serde_json::value::to_raw_value(&template)
                    .map_err(|error| Error::Internal("a template did not serialise", Some(Box::new(error))))?;
                Ok((version, json))
            })
            .await
    }

    /// Takes the completed event, keeps it and passes it on to the room's other servers. The same event again changes
    /// nothing.
    ///
    /// Server-server API, `send_join`, `send_leave`, `send_knock`.
    pub async fn accept(
        &self,
        handshake: Handshake<'_>,
        event_id: &EventId,
        json: Box<RawValue>,
    ) -> Result<OwnedEventId, Error> {
        let (peer, room, membership) = (
            handshake.peer.to_owned(),
            handshake.room.to_owned(),
            handshake.membership,
        );
        let version = {
            let (own, peer, room) = (self.ctx.server_name.clone(), peer.clone(), room.clone());
            let read = self
                .ctx
                .store
                .read(move |txn| Ok::<_, Error>(resident_room(txn, &room, &own, &peer)?.version().clone()));
            read.await?
        };
        let unchecked = UncheckedPdu::parse(json.get(), &version)?;
        if unchecked.event_id() != event_id {
            return Err(Error::invalid_param("the event has another id than the request says"));
        }
        if unchecked.pdu().sender().server_name() != peer {
            return Err(Error::invalid_param("the event is another server's"));
        }
        let keys = self.server_keys.load(&unchecked.required_keys()?, &peer).await?;
        let own = self.ctx.server_name.clone();
        self.commit(move |commit| {
            resident_room(commit.txn, &room, &own, &peer)?;
            let keys = |server: &ServerName, key: &str, at| keys.get(server, key, at);
            let txn: &ReadTxn<'_> = commit.txn;
            let checked = check_membership(txn, json.get(), &room, &membership, commit.signer(), keys)?;
            must_be_whole(&unchecked, &checked)?;
            let kept = commit.accept_from(&checked, Some(&peer))?;
            Ok(kept.event_id().to_owned())
        })
        .await
    }

    /// What a server that has joined must know: the state before its join and all that authorises it.
    pub async fn room_state_for_join(&self, join: &EventId) -> Result<RoomState, Error> {
        let join = join.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                let lost = || Error::Internal("an accepted join is not held", None);
                let event = txn.event(&join)?.ok_or_else(lost)?;
                let before = txn.state_before(&join)?.ok_or_else(lost)?;
                let state: Vec<OwnedEventId> = txn.full_state(before)?.values().cloned().collect();
                let authorised: Vec<OwnedEventId> = state.iter().chain(event.pdu.auth_events()).cloned().collect();
                let mut chain: BTreeSet<OwnedEventId> = txn.auth_chain(&authorised)?;
                chain.extend(event.pdu.auth_events().iter().cloned());
                let mut told = RoomState::new();
                told.state = jsons(txn, state.iter())?;
                told.auth_chain = jsons(txn, chain.iter())?;
                told.event = Some(event.pdu.to_raw());
                Ok(told)
            })
            .await
    }

    /// What somebody who knocks is shown of a room.
    pub async fn state_for_knock(&self, room: &RoomId) -> Result<Vec<RawStrippedState>, Error> {
        let room = room.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                let shown = stripped_state(&get_room(txn, &room)?, None)?;
                Ok(shown.iter().map(|pdu| RawStrippedState::Pdu(pdu.to_raw())).collect())
            })
            .await
    }
}

/// Refuses an event whose content does not match its hash. Among events that servers pass on to each other such a one
/// counts in its redacted form; who hands over an event of its own has no excuse.
pub(super) fn must_be_whole(sent: &UncheckedPdu, checked: &CheckedPdu) -> Result<(), Error> {
    if sent.pdu().content_json() == checked.pdu().content_json() {
        return Ok(());
    }
    Err(Error::invalid_param("the event's content does not match its hash"))
}

fn jsons<'a>(txn: &ReadTxn<'_>, ids: impl Iterator<Item = &'a OwnedEventId>) -> Result<Vec<Box<RawValue>>, Error> {
    let mut events = Vec::new();
    for id in ids {
        events.extend(txn.event(id)?.map(|stored| stored.pdu.to_raw()));
    }
    Ok(events)
}

/// A room that this node is in and that lets the asking server take part. 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
fn resident_room<'a, 't>(
    txn: &'a ReadTxn<'t>,
    room: &RoomId,
    own: &ServerName,
    peer: &ServerName,
) -> Result<CurrentRoom<'a, 't>, Error> {
    if !txn.is_server_joined(room, own)? {
        return Err(Error::not_found("this server is not in that room"));
    }
    let current = get_room(txn, room)?;
    if !current.allows_server(peer)? {
        return Err(Error::forbidden("the room does not let your server take part"));
    }
    Ok(current)
}

impl<E> From<HandshakeError<E>> for Error
where
    E: std::error::Error,
    RoomError<E>: Into<Error>,
{
    fn from(error: HandshakeError<E>) -> Self {
        let bad = |kind, message| Error::refused(StatusCode::BAD_REQUEST, kind, message);
        match error {
            HandshakeError::Forbidden(reason) => Error::forbidden(reason),
            HandshakeError::IncompatibleVersion(version) => incompatible(version),
            HandshakeError::UnableToAuthorise => bad(ErrorKind::UnableToAuthorizeJoin, error.to_string()),
            HandshakeError::UnableToGrant => bad(ErrorKind::UnableToGrantJoin, error.to_string()),
            HandshakeError::WrongEvent(reason) => Error::invalid_param(reason),
            HandshakeError::Pdu(error) => error.into(),
            HandshakeError::Room(error) => error.into(),
        }
    }
}
