//! Sending into a room: message events, redactions and state. Repetitions of a request do nothing again.

use kith_engine::{Draft, json::parse_object};
use kith_store::ClientTxn;
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, RoomId, TransactionId, UserId,
    events::{MessageLikeEventType, StateEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Rooms,
    commit::Commit,
    state::{CurrentRoom, get_room, room_of_member},
};
use crate::{Error, homeserver::Session};

impl Rooms {
    /// Sends a message event. The same device, room, type and transaction id give the same event again.
    pub async fn send_event(
        &self,
        session: &Session,
        room: &RoomId,
        kind: MessageLikeEventType,
        txn_id: &TransactionId,
        content: &RawValue,
    ) -> Result<OwnedEventId, Error> {
        let draft = Draft {
            kind: kind.into(),
            state_key: None,
            content: parse_content(content)?,
            sender: session.user_id.clone(),
            redacts: None,
        };
        let scope = format!("send/{room}/{}", draft.kind);
        self.send_once(session, room, scope, txn_id, draft).await
    }

    /// Redacts an event, as often as [`Rooms::send_event`] sends one.
    pub async fn redact(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
        txn_id: &TransactionId,
        reason: Option<String>,
    ) -> Result<OwnedEventId, Error> {
        let draft = Draft::redaction(session.user_id.clone(), event.to_owned(), reason);
        let scope = format!("redact/{room}/{event}");
        self.send_once(session, room, scope, txn_id, draft).await
    }

    async fn send_once(
        &self,
        session: &Session,
        room: &RoomId,
        scope: String,
        txn_id: &TransactionId,
        draft: Draft,
    ) -> Result<OwnedEventId, Error> {
        let (session, room, txn_id) = (session.clone(), room.to_owned(), txn_id.to_owned());
        self.commit(move |commit| {
            let txn = ClientTxn {
                user_id: &session.user_id,
                device_id: &session.device_id,
                scope: &scope,
                txn_id: &txn_id,
            };
            if let Some(made) = commit.txn.client_txn_event(&txn)? {
                return Ok(made);
            }
            room_of_member(commit.txn, &room, &session.user_id)?;
            let event = commit.make(&room, &draft)?.event_id().to_owned();
            commit.txn.save_client_txn(&txn, &event, commit.now)?;
            Ok(event)
        })
        .await
    }

    /// Sets a state event. Setting what stands there already, by the same user, changes nothing and gives that event.
    pub async fn send_state(
        &self,
        user: &UserId,
        room: &RoomId,
        kind: StateEventType,
        state_key: String,
        content: &RawValue,
    ) -> Result<OwnedEventId, Error> {
        if kind == StateEventType::RoomCanonicalAlias && state_key.is_empty() {
            self.check_canonical_alias(room, content.get()).await?;
        }
        if kind == StateEventType::RoomMember
            && let Some(event) = self.send_member(user, room, &state_key, content).await?
        {
            return Ok(event);
        }
        let draft = Draft {
            kind: kind.into(),
            state_key: Some(state_key),
            content: parse_content(content)?,
            sender: user.to_owned(),
            redacts: None,
        };
        let room = room.to_owned();
        self.commit(move |commit| {
            room_of_member(commit.txn, &room, &draft.sender)?;
            commit.set_state(&room, &draft)
        })
        .await
    }

    /// Membership told as a state event, where more than the event is to be done for it: then this does all of it, and
    /// gives the event that stands there now. None: it is a state event like others.
    async fn send_member(
        &self,
        user: &UserId,
        room: &RoomId,
        state_key: &str,
        content: &RawValue,
    ) -> Result<Option<OwnedEventId>, Error> {
        #[derive(Deserialize)]
        struct Content {
            membership: MembershipState,
            #[serde(default)]
            reason: Option<String>,
        }
        let Content { membership, reason } =
            serde_json::from_str(content.get()).map_err(|error| Error::bad_json(error.to_string()))?;
        let target = UserId::parse(state_key).map_err(|_| Error::invalid_param("the state key is no user id"))?;
        match membership {
            MembershipState::Invite if !self.ctx.is_local(&target) => self.invite(user, room, &target, reason).await?,
            MembershipState::Join if target == user && !self.is_joined(user, room).await? => {
                self.join(user, room, Vec::new(), reason).await?;
            }
            MembershipState::Leave if target == user => self.leave(user, room, reason).await?,
            MembershipState::Knock if target == user => self.knock(user, room, Vec::new(), reason).await?,
            _ => return Ok(None),
        }
        let room = room.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                if let Some(outside) = txn.outside_membership(&target, &room)? {
                    return Ok(Some(outside.event_id));
                }
                let member = txn.member(&room, &target)?;
                member
                    .map(|member| Some(member.event_id))
                    .ok_or_else(|| Error::not_found("no such member"))
            })
            .await
    }
}

impl Commit<'_, '_> {
    /// Makes a state event, unless the same user has set the same before.
    pub(super) fn set_state(&mut self, room: &RoomId, draft: &Draft) -> Result<OwnedEventId, Error> {
        if let Some(state_key) = &draft.state_key {
            let kind = StateEventType::from(draft.kind.to_string());
            let stands = get_room(self.txn, room)?.event(kind, state_key)?;
            if let Some(stands) = stands
                && stands.sender() == draft.sender
                && serde_json::to_string(&draft.content).is_ok_and(|content| content == stands.content_json())
            {
                return Ok(stands.event_id().to_owned());
            }
        }
        Ok(self.make(room, draft)?.event_id().to_owned())
    }
}

/// A client's event content. Whatever canonical JSON cannot hold is 400 `M_BAD_JSON`.
pub(super) fn parse_content(content: &RawValue) -> Result<CanonicalJsonObject, Error> {
    parse_object(content.get()).map_err(|error| Error::bad_json(error.to_string()))
}

/// The content of an event of a room's state, with an empty state key.
pub(super) fn parse_content_of(
    room: &CurrentRoom<'_, '_>,
    kind: StateEventType,
) -> Result<Option<CanonicalJsonObject>, Error> {
    match room.event(kind, "")? {
        Some(event) => {
            Ok(Some(parse_object(event.content_json()).map_err(|error| {
                Error::Internal("a held event's content", Some(Box::new(error)))
            })?))
        }
        None => Ok(None),
    }
}
