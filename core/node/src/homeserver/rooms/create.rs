//! Making rooms: everything that a new room starts with in one commit, then invitations to users of other servers.

use futures::{StreamExt, stream};
use kith_engine::{
    BuildError, CheckedPdu, CreateRoom, CreateRoomError, DEFAULT_VERSION, Draft, RoomReader, build_create, create_room,
    rules,
};
use kith_store::StoreError;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId,
    RoomVersionId, UserId,
    api::{
        client::room::{Visibility, create_room::v3 as api, create_room::v3::RoomPreset},
        error::ErrorKind,
    },
    events::{StateEventType, TimelineEventType},
    exports::http::StatusCode,
    room_version_rules::RoomIdFormatVersion,
    serde::Raw,
    uint,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Rooms,
    commit::{Commit, unsupported_version},
    send::parse_content,
};
use crate::Error;

/// Users of other servers whom a new room invites at the same time.
const INVITED_AT_ONCE: usize = 8;

/// A room that is to be made, its request understood.
pub(super) struct NewRoom {
    pub(super) room: CreateRoom,
    pub(super) published: bool,
}

impl Rooms {
    /// Makes a room. Nothing is kept if any of its events is refused. An invitation that another server refuses leaves
    /// the room without that member.
    pub async fn create_room(&self, user: &UserId, request: api::Request) -> Result<OwnedRoomId, Error> {
        let new = self.understand(user, request).await?;
        self.make_room(new, |_, _| Ok(())).await
    }

    /// Makes a room, runs `also` in the same commit and invites users of other servers afterwards.
    pub(super) async fn make_room(
        &self,
        new: NewRoom,
        also: impl FnOnce(&mut Commit<'_, '_>, &RoomId) -> Result<(), Error> + Send + 'static,
    ) -> Result<OwnedRoomId, Error> {
        let drafts = create_room(&new.room)?;
        let (mut drafts, invites): (Vec<_>, Vec<_>) = drafts.into_iter().partition(|draft| !is_invite(draft));
        let mut remote = Vec::new();
        for mut invite in invites {
            let target = invited_user(&invite)?;
            if self.ctx.is_local(&target) {
                self.fill_profile(&mut invite, &target).await?;
                drafts.push(invite);
            } else {
                remote.push(invite);
            }
        }
        let own = self.ctx.server_name.clone();
        let local_part = self.ctx.world.random_token();
        let room_id = self
            .commit(move |commit| {
                let room_id = commit.open_room(&new.room, drafts, &format!("!{local_part}:{own}"))?;
                if let Some(alias) = &new.room.alias
                    && !commit.txn.add_alias(alias, &room_id, &new.room.creator)?
                {
                    return Err(in_use(alias));
                }
                if new.published {
                    commit.txn.set_published(&room_id, true)?;
                }
                also(commit, &room_id)?;
                Ok(room_id)
            })
            .await?;
        // The room is there; an invitation that another server refuses leaves it without that member.
        let room = &room_id;
        stream::iter(remote)
            .for_each_concurrent(INVITED_AT_ONCE, |invite| async move {
                if let Err(error) = self.invite_remote(room, invite).await {
                    tracing::warn!(%error, %room, "an invitation to a new room failed");
                }
            })
            .await;
        Ok(room_id)
    }

    /// Turns a client's request into what the engine makes rooms of.
    async fn understand(&self, user: &UserId, request: api::Request) -> Result<NewRoom, Error> {
        if !request.invite_3pid.is_empty() {
            return Err(Error::refused(
                StatusCode::FORBIDDEN,
                ErrorKind::ThreepidDenied,
                "this node knows no identity server; invite by user id",
            ));
        }
        let published = match request.visibility {
            Visibility::Public => true,
            Visibility::Private => false,
            _ => return Err(Error::invalid_param("a room is `public` or `private`")),
        };
        let mut room = CreateRoom::new(user.to_owned());
        room.version = request.room_version.unwrap_or(DEFAULT_VERSION);
        room.preset = match request.preset {
            None if published => RoomPreset::PublicChat,
            None => RoomPreset::PrivateChat,
            Some(preset @ (RoomPreset::PrivateChat | RoomPreset::PublicChat | RoomPreset::TrustedPrivateChat)) => {
                preset
            }
            Some(_) => return Err(Error::invalid_param("no such preset")),
        };
        room.creation_content = optional_object(request.creation_content.as_ref().map(Raw::json))?;
        room.power_level_content_override =
            optional_object(request.power_level_content_override.as_ref().map(Raw::json))?;
        room.initial_state = request
            .initial_state
            .iter()
            .map(|event| initial_event(event.json()))
            .collect::<Result<_, _>>()?;
        room.alias = request.room_alias_name.map(|name| self.new_alias(&name)).transpose()?;
        room.name = request.name;
        room.topic = request.topic;
        room.invite = request.invite;
        room.is_direct = request.is_direct;
        room.creator_profile = self.member_profile(user).await?;
        if let Some(alias) = room.alias.clone() {
            self.must_be_free(alias).await?;
        }
        Ok(NewRoom { room, published })
    }

    fn new_alias(&self, name: &str) -> Result<OwnedRoomAliasId, Error> {
        RoomAliasId::parse(format!("#{name}:{}", self.ctx.server_name))
            .map_err(|error| Error::invalid_param(format!("no room can be called that: {error}")))
    }

    /// Refuses a taken alias before any event is made; the commit looks again.
    async fn must_be_free(&self, alias: OwnedRoomAliasId) -> Result<(), Error> {
        self.ctx
            .store
            .read(move |txn| match txn.alias(&alias)? {
                Some(_) => Err(in_use(&alias)),
                None => Ok(()),
            })
            .await
    }

    async fn fill_profile(&self, invite: &mut Draft, target: &UserId) -> Result<(), Error> {
        let profile = self.member_profile(target).await?;
        invite.content.extend(profile);
        Ok(())
    }
}

impl Commit<'_, '_> {
    /// Makes a room's first event and all that follow. What its rules refuse is 400 `M_INVALID_ROOM_STATE`.
    fn open_room(&mut self, room: &CreateRoom, drafts: Vec<Draft>, room_id: &str) -> Result<OwnedRoomId, Error> {
        let mut drafts = drafts.into_iter();
        let Some(first) = drafts.next() else {
            return Err(Error::Internal("a room of no events", None));
        };
        let named = match rules(&room.version)?.room_id_format {
            RoomIdFormatVersion::V1 => Some(
                RoomId::parse(room_id)
                    .map_err(|error| Error::Internal("a room id of our own", Some(Box::new(error))))?,
            ),
            _ => None,
        };
        let create = self.build_create(&first, &room.version, named)?;
        self.accept(&create)?;
        let room_id = create.room_id().to_owned();
        for draft in drafts {
            self.make(&room_id, &draft).map_err(|error| match error {
                Error::Refused { kind, message, .. } if matches!(*kind, ErrorKind::Forbidden) => {
                    invalid_state(&message)
                }
                error => error,
            })?;
        }
        Ok(room_id)
    }

    /// Makes the event that opens a room. From room version 12 on the room's id is the event's hash, so that a user's two
    /// rooms of one millisecond would be one room: the second is made a little later then.
    fn build_create(
        &mut self,
        draft: &Draft,
        version: &RoomVersionId,
        room_id: Option<OwnedRoomId>,
    ) -> Result<CheckedPdu, Error> {
        loop {
            let create = build_create(draft, version, room_id.clone(), self.signer(), self.now);
            let create = create.map_err(|error| match error {
                BuildError::Forbidden(reason) | BuildError::Malformed(reason) => invalid_state(&reason),
                BuildError::TooLarge(size) => BuildError::<StoreError>::TooLarge(size).into(),
                error => Error::Internal("a room could not be opened", Some(Box::new(error))),
            })?;
            if self.txn.room_version(create.room_id())?.is_none() {
                return Ok(create);
            }
            self.now = MilliSecondsSinceUnixEpoch(self.now.get().saturating_add(uint!(1)));
        }
    }
}

impl From<CreateRoomError> for Error {
    fn from(error: CreateRoomError) -> Self {
        match error {
            CreateRoomError::UnsupportedVersion(_) => unsupported_version(&error.to_string()),
            CreateRoomError::InvalidState(_) => invalid_state(&error.to_string()),
            CreateRoomError::TooMany { .. } => Error::invalid_param(error.to_string()),
        }
    }
}

/// 400 `M_INVALID_ROOM_STATE`.
fn invalid_state(message: &str) -> Error {
    Error::refused(StatusCode::BAD_REQUEST, ErrorKind::InvalidRoomState, message)
}

/// 400 `M_ROOM_IN_USE`.
fn in_use(alias: &RoomAliasId) -> Error {
    Error::refused(
        StatusCode::BAD_REQUEST,
        ErrorKind::RoomInUse,
        format!("{alias} exists already"),
    )
}

fn is_invite(draft: &Draft) -> bool {
    let membership = draft
        .content
        .get("membership")
        .and_then(|membership| membership.as_str());
    draft.kind == TimelineEventType::RoomMember && membership == Some("invite")
}

fn invited_user(invite: &Draft) -> Result<OwnedUserId, Error> {
    let target = invite.state_key.as_deref().unwrap_or_default();
    UserId::parse(target).map_err(|_| Error::Internal("an invitation of nobody", None))
}

fn optional_object(json: Option<&RawValue>) -> Result<CanonicalJsonObject, Error> {
    json.map_or_else(|| Ok(CanonicalJsonObject::new()), parse_content)
}

/// One event of `initial_state`: its key and content.
fn initial_event(json: &RawValue) -> Result<((StateEventType, String), CanonicalJsonObject), Error> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(rename = "type")]
        kind: StateEventType,
        #[serde(default)]
        state_key: String,
        content: Box<RawValue>,
    }
    let event: Event = serde_json::from_str(json.get()).map_err(|error| Error::bad_json(error.to_string()))?;
    Ok(((event.kind, event.state_key), parse_content(&event.content)?))
}
