//! Inviting. A user of another server is invited through that server, which signs the invitation too and keeps it for its
//! user; while it cannot be reached, the invitation waits for it.

use std::time::Duration;

use kith_engine::{CheckedPdu, Draft, Pdu, build_event, stripped_state, take_signature};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
};

use serde::{Deserialize, Serialize};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{Rooms, commit::signer, member::member_draft, state::room_of_member};
use crate::{
    Error,
    federation::client,
    network::{Limits, NetworkError},
};

/// The kind of EDU that carries an invitation which could not be handed over at once. Its content is that of the `invite`
/// request, with the room's and the event's id, which stand in that request's path.
pub(crate) const DELAYED_INVITE: &str = "org.kith.invite";

/// A person waits for the answer.
const LIMITS: Limits = Limits {
    deadline: Duration::from_secs(10),
    max_answer: 256 * 1024,
    bulk: false,
};

/// The content of a [`DELAYED_INVITE`].
#[derive(Debug, Serialize, Deserialize)]
pub struct DelayedInvite {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    room_version: RoomVersionId,
    event: Box<RawValue>,
    invite_room_state: Vec<RawStrippedState>,
}

impl From<DelayedInvite> for create_invite::v2::Request {
    fn from(invite: DelayedInvite) -> Self {
        Self::new(
            invite.room_id,
            invite.event_id,
            invite.room_version,
            invite.event,
            invite.invite_room_state,
        )
    }
}

/// Where a delayed invitation waits, so that it can be dropped when its user is turned away before.
pub(super) fn delayed_invite_slot(member_event: &Pdu) -> String {
    let user = member_event.state_key().unwrap_or_default();
    format!("invite {} {user}", member_event.room_id())
}

impl Rooms {
    /// Invites a user. `M_NOT_FOUND` for a user that this node should have and has not.
    pub async fn invite(
        &self,
        user: &UserId,
        room: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<(), Error> {
        if !self.ctx.is_local(target) {
            let draft = member_draft(
                user,
                target,
                &MembershipState::Invite,
                reason,
                CanonicalJsonObject::new(),
            );
            return self.invite_remote(room, draft).await;
        }
        let profile = self.member_profile(target).await?;
        let draft = member_draft(user, target, &MembershipState::Invite, reason, profile);
        let room = room.to_owned();
        self.commit(move |commit| {
            room_of_member(commit.txn, &room, &draft.sender)?;
            commit.set_state(&room, &draft)?;
            Ok(())
        })
        .await
    }

    /// Invites a user of another server: that server signs the event first, then it is kept and sent to all.
    pub(super) async fn invite_remote(&self, room: &RoomId, draft: Draft) -> Result<(), Error> {
        let target = draft.state_key.as_deref().unwrap_or_default();
        let target = UserId::parse(target).map_err(|_| Error::invalid_param("not a user id"))?;
        let server = target.server_name();
        let (event, state) = self.build_invitation(room, draft).await?;
        let request = create_invite::v2::Request::new(
            room.to_owned(),
            event.event_id().to_owned(),
            event.version().clone(),
            event.pdu().to_raw(),
            state.clone(),
        );
        let answer = match client::request_within(&self.ctx, server, request, LIMITS).await {
            Ok(answer) => answer,
            Err(Error::Network(NetworkError::Unreachable(_) | NetworkError::TimedOut(_))) => {
                return self.invite_later(server, event, state).await;
            }
            Err(error) => return Err(error.passed_on()),
        };
        let keys = self.server_keys.of_server(server).await?;
        let signed = take_signature(&event, answer.event.get(), server, |server, key, at| {
            keys.get(server, key, at)
        });
        let signed = signed.map_err(|error| NetworkError::Broken {
            server: server.to_owned(),
            reason: error.to_string(),
        })?;
        self.commit(move |commit| commit.accept(&signed).map(drop)).await
    }

    /// Invites a user whose server cannot be reached now: the invitation is kept without that server's signature, which no
    /// rule of the room asks for, and is sent with whatever else waits for the server.
    async fn invite_later(
        &self,
        server: &ServerName,
        event: CheckedPdu,
        state: Vec<RawStrippedState>,
    ) -> Result<(), Error> {
        let content = DelayedInvite {
            room_id: event.room_id().to_owned(),
            event_id: event.event_id().to_owned(),
            room_version: event.version().clone(),
            event: event.pdu().to_raw(),
            invite_room_state: state,
        };
        let edu = to_raw_value(&json!({"edu_type": DELAYED_INVITE, "content": content}))
            .map_err(|error| Error::Internal("an invite did not serialise", Some(Box::new(error))))?;
        let server = server.to_owned();
        self.commit(move |commit| {
            let pdu = commit.accept(&event)?;
            commit.enqueue_edu(&server, &delayed_invite_slot(&pdu), &edu)
        })
        .await
    }

    /// Makes an invitation without keeping it, with what is shown of the room to whom it invites.
    pub(super) async fn build_invitation(
        &self,
        room: &RoomId,
        draft: Draft,
    ) -> Result<(CheckedPdu, Vec<RawStrippedState>), Error> {
        let (ctx, room) = (self.ctx.clone(), room.to_owned());
        self.ctx
            .store
            .read(move |txn| {
                let current = room_of_member(txn, &room, &draft.sender)?;
                let event = build_event(txn, &room, &draft, signer(&ctx), ctx.world.now())?;
                let state = stripped_state(&current, Some(&draft.sender))?;
                let state = state.iter().map(|pdu| RawStrippedState::Pdu(pdu.to_raw())).collect();
                Ok((event, state))
            })
            .await
    }
}
