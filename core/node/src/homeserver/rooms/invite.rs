//! Inviting. A user of another server must be invited through that server, which signs the invitation too and keeps it
//! for its user.

use kith_engine::{CheckedPdu, Draft, build_event, stripped_state, take_signature};
use ruma::{
    CanonicalJsonObject, RoomId, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
};

use super::{Rooms, commit::signer, member::member_draft, state::room_of_member};
use crate::{Error, federation::client, network::NetworkError};

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
            state,
        );
        let answer = client::request(&self.ctx, server, request)
            .await
            .map_err(Error::passed_on)?;
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
