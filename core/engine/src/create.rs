//! What a new room starts with. It only writes drafts, in the order in which they must be sent; it builds none.
//!
//! Client-server API, `POST /createRoom`.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedRoomAliasId, OwnedUserId, RoomVersionId,
    api::client::room::create_room::v3::RoomPreset,
    events::{StateEventType, TimelineEventType},
    room_version_rules::AuthorizationRules,
};

use crate::{
    Draft, PduError, StateKey,
    limits::{MAX_CREATE_INVITES, MAX_CREATE_STATE},
    pdu::{DEFAULT_VERSION, rules},
};

/// What somebody wants a new room to be.
#[derive(Debug, Clone)]
pub struct CreateRoom {
    /// Who creates it.
    pub creator: OwnedUserId,
    /// The creator's `m.room.member` content beside `membership`: display name and avatar.
    pub creator_profile: CanonicalJsonObject,
    /// The room's version.
    pub version: RoomVersionId,
    /// Which rules it starts with.
    pub preset: RoomPreset,
    /// Content of `m.room.create` beside what the server sets.
    pub creation_content: CanonicalJsonObject,
    /// Put on top of the `m.room.power_levels` that the preset makes.
    pub power_level_content_override: CanonicalJsonObject,
    /// State events that the client brings along: key and content.
    pub initial_state: Vec<(StateKey, CanonicalJsonObject)>,
    /// The room's canonical alias.
    pub alias: Option<OwnedRoomAliasId>,
    /// The room's name.
    pub name: Option<String>,
    /// What the room is about.
    pub topic: Option<String>,
    /// Whom to invite.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invited are told that it is a direct conversation.
    pub is_direct: bool,
}

impl CreateRoom {
    /// A private room of the default version with nobody else in it.
    pub fn new(creator: OwnedUserId) -> Self {
        Self {
            creator,
            creator_profile: CanonicalJsonObject::new(),
            version: DEFAULT_VERSION,
            preset: RoomPreset::PrivateChat,
            creation_content: CanonicalJsonObject::new(),
            power_level_content_override: CanonicalJsonObject::new(),
            initial_state: Vec::new(),
            alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
        }
    }
}

/// Why a room cannot be made like that.
#[derive(Debug, thiserror::Error)]
pub enum CreateRoomError {
    /// Rooms of this version cannot be made here (`M_UNSUPPORTED_ROOM_VERSION`).
    #[error("room version {0} is not supported")]
    UnsupportedVersion(RoomVersionId),
    /// The state asked for contradicts itself or the rules (`M_INVALID_ROOM_STATE`).
    #[error("{0}")]
    InvalidState(&'static str),
    /// More state events or invitations than one request may bring (`M_INVALID_PARAM`).
    #[error("at most {limit} {what} at once")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

/// The events that make the room, in order. The first is `m.room.create`, for [`build_create`](crate::build_create);
/// the others are for [`build_event`](crate::build_event), and the last ones are invitations, which users of other
/// servers must be sent before they count.
pub fn create_room(request: &CreateRoom) -> Result<Vec<Draft>, CreateRoomError> {
    let rules = match rules(&request.version) {
        Ok(rules) => rules.authorization,
        Err(PduError::UnsupportedVersion(version)) => return Err(CreateRoomError::UnsupportedVersion(version)),
        Err(_) => return Err(CreateRoomError::UnsupportedVersion(request.version.clone())),
    };
    check(request)?;
    let invited = invited(request);
    let mut drafts = Drafts {
        request,
        drafts: Vec::new(),
    };
    drafts.add(
        TimelineEventType::RoomCreate,
        "",
        create_content(request, &rules, &invited)?,
    );
    let mut join = request.creator_profile.clone();
    join.insert("membership".to_owned(), text("join"));
    drafts.add(TimelineEventType::RoomMember, request.creator.as_str(), join);
    drafts.add(
        TimelineEventType::RoomPowerLevels,
        "",
        power_levels_content(request, &rules, &invited)?,
    );
    if let Some(alias) = &request.alias {
        drafts.add(
            TimelineEventType::RoomCanonicalAlias,
            "",
            object([("alias", text(alias.as_str()))]),
        );
    }
    drafts.preset();
    drafts.initial_state();
    if let Some(name) = &request.name {
        drafts.add(TimelineEventType::RoomName, "", object([("name", text(name))]));
    }
    if let Some(topic) = &request.topic {
        drafts.add(TimelineEventType::RoomTopic, "", topic_content(topic));
    }
    for user in &invited {
        let mut content = object([("membership", text("invite"))]);
        if request.is_direct {
            content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
        }
        drafts.add(TimelineEventType::RoomMember, user.as_str(), content);
    }
    Ok(drafts.drafts)
}

fn check(request: &CreateRoom) -> Result<(), CreateRoomError> {
    if request.invite.len() > MAX_CREATE_INVITES {
        return Err(CreateRoomError::TooMany {
            what: "invitations",
            limit: MAX_CREATE_INVITES,
        });
    }
    if request.initial_state.len() > MAX_CREATE_STATE {
        return Err(CreateRoomError::TooMany {
            what: "state events",
            limit: MAX_CREATE_STATE,
        });
    }
    for ((kind, _), _) in &request.initial_state {
        match kind {
            StateEventType::RoomCreate => {
                return Err(CreateRoomError::InvalidState("initial_state cannot hold m.room.create"));
            }
            StateEventType::RoomMember => {
                return Err(CreateRoomError::InvalidState("initial_state cannot hold m.room.member"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whom to invite, each once and not the creator.
fn invited(request: &CreateRoom) -> Vec<OwnedUserId> {
    let mut invited = Vec::new();
    for user in &request.invite {
        if *user != request.creator && !invited.contains(user) {
            invited.push(user.clone());
        }
    }
    invited
}

fn create_content(
    request: &CreateRoom,
    rules: &AuthorizationRules,
    invited: &[OwnedUserId],
) -> Result<CanonicalJsonObject, CreateRoomError> {
    let mut content = request.creation_content.clone();
    content.insert("room_version".to_owned(), text(request.version.as_str()));
    content.remove("creator");
    if !rules.use_room_create_sender {
        content.insert("creator".to_owned(), text(request.creator.as_str()));
    }
    if rules.additional_room_creators && request.preset == RoomPreset::TrustedPrivateChat {
        let creators = content
            .entry("additional_creators".to_owned())
            .or_insert_with(|| CanonicalJsonValue::Array(Vec::new()));
        let CanonicalJsonValue::Array(creators) = creators else {
            return Err(CreateRoomError::InvalidState(
                "additional_creators must be a list of user ids",
            ));
        };
        for user in invited {
            let user = text(user.as_str());
            if !creators.contains(&user) {
                creators.push(user);
            }
        }
    }
    Ok(content)
}

fn power_levels_content(
    request: &CreateRoom,
    rules: &AuthorizationRules,
    invited: &[OwnedUserId],
) -> Result<CanonicalJsonObject, CreateRoomError> {
    let own = (StateEventType::RoomPowerLevels, String::new());
    if let Some((_, content)) = request.initial_state.iter().find(|(key, _)| *key == own) {
        let mut content = content.clone();
        content.extend(request.power_level_content_override.clone());
        return Ok(content);
    }
    // Creators stand above all levels where the rules privilege them, and must not be listed then.
    let mut users = CanonicalJsonObject::new();
    if !rules.explicitly_privilege_room_creators {
        users.insert(request.creator.to_string(), level(100));
        if request.preset == RoomPreset::TrustedPrivateChat {
            users.extend(invited.iter().map(|user| (user.to_string(), level(100))));
        }
    }
    let tombstone = if rules.explicitly_privilege_room_creators {
        150
    } else {
        100
    };
    let events = object([
        ("m.room.avatar", level(50)),
        ("m.room.canonical_alias", level(50)),
        ("m.room.encryption", level(100)),
        ("m.room.history_visibility", level(100)),
        ("m.room.name", level(50)),
        ("m.room.power_levels", level(100)),
        ("m.room.server_acl", level(100)),
        ("m.room.tombstone", level(tombstone)),
    ]);
    let mut content = object([
        ("ban", level(50)),
        ("events", CanonicalJsonValue::Object(events)),
        ("events_default", level(0)),
        (
            "invite",
            level(if request.preset == RoomPreset::PublicChat {
                50
            } else {
                0
            }),
        ),
        ("kick", level(50)),
        ("redact", level(50)),
        ("state_default", level(50)),
        ("users", CanonicalJsonValue::Object(users)),
        ("users_default", level(0)),
    ]);
    content.extend(request.power_level_content_override.clone());
    let lists_creator = content
        .get("users")
        .and_then(|users| users.as_object())
        .is_some_and(|users| users.contains_key(request.creator.as_str()));
    if rules.explicitly_privilege_room_creators && lists_creator {
        return Err(CreateRoomError::InvalidState(
            "the creator's power is fixed in this room version",
        ));
    }
    Ok(content)
}

/// A topic in both the old form and the extensible one, as the specification asks of servers.
fn topic_content(topic: &str) -> CanonicalJsonObject {
    let plain = object([("body", text(topic)), ("mimetype", text("text/plain"))]);
    let rich = object([(
        "m.text",
        CanonicalJsonValue::Array(vec![CanonicalJsonValue::Object(plain)]),
    )]);
    object([("topic", text(topic)), ("m.topic", CanonicalJsonValue::Object(rich))])
}

struct Drafts<'a> {
    request: &'a CreateRoom,
    drafts: Vec<Draft>,
}

impl Drafts<'_> {
    fn add(&mut self, kind: TimelineEventType, state_key: &str, content: CanonicalJsonObject) {
        self.drafts.push(Draft {
            kind,
            state_key: Some(state_key.to_owned()),
            content,
            sender: self.request.creator.clone(),
            redacts: None,
        });
    }

    /// What the preset sets, unless the client sets it in another way.
    fn preset(&mut self) {
        let public = self.request.preset == RoomPreset::PublicChat;
        let (join_rule, guest_access) = if public {
            ("public", "forbidden")
        } else {
            ("invite", "can_join")
        };
        for (kind, field, value) in [
            (StateEventType::RoomJoinRules, "join_rule", join_rule),
            (StateEventType::RoomHistoryVisibility, "history_visibility", "shared"),
            (StateEventType::RoomGuestAccess, "guest_access", guest_access),
        ] {
            if !self
                .request
                .initial_state
                .iter()
                .any(|((k, s), _)| *k == kind && s.is_empty())
            {
                self.add(kind.to_string().into(), "", object([(field, text(value))]));
            }
        }
    }

    fn initial_state(&mut self) {
        let request = self.request;
        for ((kind, state_key), content) in &request.initial_state {
            let overridden = state_key.is_empty()
                && match kind {
                    StateEventType::RoomPowerLevels => true,
                    StateEventType::RoomName => request.name.is_some(),
                    StateEventType::RoomTopic => request.topic.is_some(),
                    _ => false,
                };
            if !overridden {
                self.add(kind.to_string().into(), state_key, content.clone());
            }
        }
    }
}

fn object<const N: usize>(fields: [(&str, CanonicalJsonValue); N]) -> CanonicalJsonObject {
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn text(value: &str) -> CanonicalJsonValue {
    CanonicalJsonValue::String(value.to_owned())
}

fn level(value: i32) -> CanonicalJsonValue {
    CanonicalJsonValue::Integer(Int::from(value))
}
