//! Membership across servers: templates and their checks, invitations and their second signature, restricted joins.
//! It sends nothing; each function is one side's part of one request.
//!
//! Server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms".

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedUserId, RoomId, RoomVersionId,
    ServerName, UserId,
    canonical_json::redact,
    events::{
        TimelineEventType,
        room::{
            join_rules::{AllowRule, JoinRule},
            member::MembershipState,
        },
    },
    serde::Base64,
    signatures::{KeyPair, PublicKeyMap, PublicKeySet, sign_event, verify_json},
};

use crate::{
    BuildError, CheckedPdu, Draft, Pdu, PduError, RoomError, RoomReader, RoomView, Signer, UncheckedPdu, VerifyKey,
    build::sign, build_template, membership_of, pdu::rules,
};

/// Why one side's part of a handshake was refused.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError<E: std::error::Error> {
    /// The rules refuse it (403 `M_FORBIDDEN`).
    #[error("{0}")]
    Forbidden(String),
    /// The asking server does not know the room's version (400 `M_INCOMPATIBLE_ROOM_VERSION`).
    #[error("the room has version {0}, which the asking server does not support")]
    IncompatibleVersion(RoomVersionId),
    /// This server cannot see whether the join's conditions are met (400 `M_UNABLE_TO_AUTHORISE_JOIN`).
    #[error("this server is not in the rooms whose members may join")]
    UnableToAuthorise,
    /// The conditions are met, but nobody here may let the user in (400 `M_UNABLE_TO_GRANT_JOIN`).
    #[error("nobody on this server may let the user in; ask another one")]
    UnableToGrant,
    /// The event is not the one that this request is for (400 `M_BAD_JSON`).
    #[error("{0}")]
    WrongEvent(&'static str),
    /// The event is not an event, or not genuine.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// The room could not be read, or is not known.
    #[error(transparent)]
    Room(RoomError<E>),
}

impl<E: std::error::Error> From<RoomError<E>> for HandshakeError<E> {
    fn from(error: RoomError<E>) -> Self {
        Self::Room(error)
    }
}

impl<E: std::error::Error> From<BuildError<E>> for HandshakeError<E> {
    fn from(error: BuildError<E>) -> Self {
        match error {
            BuildError::Room(error) => Self::Room(error),
            error => Self::Forbidden(error.to_string()),
        }
    }
}

/// How a user may come into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinGrant {
    /// By themselves.
    Free,
    /// Because this user of this server, who may invite, lets them in.
    Through(OwnedUserId),
}

/// Whether a user may join, and through whom. `here` is this server.
///
/// Client-server API, "Restricted rooms"; server-server API, "Restricted rooms".
pub fn join_grant<R: RoomReader>(
    reader: &R,
    room: &RoomId,
    user: &UserId,
    here: &ServerName,
) -> Result<JoinGrant, HandshakeError<R::Error>> {
    let view = RoomView::current(reader, room)?.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
    match view.membership(user)? {
        MembershipState::Ban => return Err(HandshakeError::Forbidden(format!("{user} is banned from the room"))),
        MembershipState::Join | MembershipState::Invite => return Ok(JoinGrant::Free),
        _ => {}
    }
    let allow = match view.join_rule()? {
        JoinRule::Public => return Ok(JoinGrant::Free),
        JoinRule::Restricted(restricted) | JoinRule::KnockRestricted(restricted) => restricted.allow,
        _ => {
            return Err(HandshakeError::Forbidden(
                "the room can be joined by invitation only".to_owned(),
            ));
        }
    };
    let mut blind = false;
    for rule in allow {
        let AllowRule::RoomMembership(membership) = rule else {
            continue;
        };
        match user_is_in(reader, &membership.room_id, user, here)? {
            Some(true) => {
                return match inviter(&view, here)? {
                    Some(inviter) => Ok(JoinGrant::Through(inviter)),
                    None => Err(HandshakeError::UnableToGrant),
                };
            }
            Some(false) => {}
            None => blind = true,
        }
    }
    if blind {
        return Err(HandshakeError::UnableToAuthorise);
    }
    Err(HandshakeError::Forbidden(
        "the user is in none of the rooms whose members may join".to_owned(),
    ))
}

/// Whether the user is in that room; none if this server is not in it and so cannot tell.
fn user_is_in<R: RoomReader>(
    reader: &R,
    room: &RoomId,
    user: &UserId,
    here: &ServerName,
) -> Result<Option<bool>, RoomError<R::Error>> {
    let Some(view) = RoomView::current(reader, room)? else {
        return Ok(None);
    };
    if view.users_of(here, &MembershipState::Join)?.is_empty() {
        return Ok(None);
    }
    Ok(Some(view.membership(user)? == MembershipState::Join))
}

/// The user of this server with the most power among those who may invite.
fn inviter<R: RoomReader>(
    view: &RoomView<'_, R>,
    here: &ServerName,
) -> Result<Option<OwnedUserId>, RoomError<R::Error>> {
    let levels = view.power_levels()?;
    let mut able: Vec<OwnedUserId> = view.users_of(here, &MembershipState::Join)?;
    able.retain(|user| levels.user_can_invite(user));
    able.sort_by(|a, b| levels.for_user(b).cmp(&levels.for_user(a)).then_with(|| a.cmp(b)));
    Ok(able.into_iter().next())
}

/// The resident side of `make_join`, `make_leave` and `make_knock`: the event for the user's server to complete.
/// `versions` are those that the asking server knows; empty if the request names none.
pub fn membership_template<R: RoomReader>(
    reader: &R,
    room: &RoomId,
    user: &UserId,
    membership: MembershipState,
    versions: &[RoomVersionId],
    here: &ServerName,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(RoomVersionId, CanonicalJsonObject), HandshakeError<R::Error>> {
    let version = reader.room_version(room).map_err(RoomError::Read)?;
    let version = version.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
    if !versions.is_empty() && !versions.contains(&version) {
        return Err(HandshakeError::IncompatibleVersion(version));
    }
    let mut content = CanonicalJsonObject::new();
    if membership == MembershipState::Join
        && let JoinGrant::Through(inviter) = join_grant(reader, room, user, here)?
    {
        let inviter = CanonicalJsonValue::String(inviter.into());
        content.insert("join_authorised_via_users_server".to_owned(), inviter);
    }
    content.insert(
        "membership".to_owned(),
        CanonicalJsonValue::String(membership.to_string()),
    );
    let draft = Draft {
        kind: TimelineEventType::RoomMember,
        state_key: Some(user.to_string()),
        content,
        sender: user.to_owned(),
        redacts: None,
    };
    Ok((version, build_template(reader, room, &draft, now)?))
}

/// What a template that another server sent must be about.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// The user of this server.
    pub user: &'a UserId,
    /// What the user becomes.
    pub membership: MembershipState,
}

/// The joining, leaving or knocking side: makes an event of the template. Of the template's content only the user who
/// lets ours in is kept; `profile` adds what this server says: display name, avatar, reason.
pub fn build_on_template<K: KeyPair>(
    template: &CanonicalJsonObject,
    version: &RoomVersionId,
    expected: &Expected<'_>,
    profile: CanonicalJsonObject,
    signer: Signer<'_, K>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<CheckedPdu, BuildError<std::convert::Infallible>> {
    let text = |field: &str| template.get(field).and_then(|value| value.as_str());
    let told = template.get("content").and_then(|content| content.as_object());
    let told = |field: &str| {
        told.and_then(|content| content.get(field))
            .and_then(|value| value.as_str())
    };
    let asked = text("type") == Some("m.room.member")
        && text("room_id") == Some(expected.room.as_str())
        && text("sender") == Some(expected.user.as_str())
        && text("state_key") == Some(expected.user.as_str())
        && told("membership") == Some(expected.membership.as_str());
    if !asked {
        return Err(BuildError::Malformed(
            "the other server's template is not what was asked for".to_owned(),
        ));
    }
    let mut content = profile;
    content.insert(
        "membership".to_owned(),
        CanonicalJsonValue::String(expected.membership.to_string()),
    );
    if let (MembershipState::Join, Some(inviter)) = (&expected.membership, told("join_authorised_via_users_server")) {
        let inviter = CanonicalJsonValue::String(inviter.to_owned());
        content.insert("join_authorised_via_users_server".to_owned(), inviter);
    }
    let mut object = CanonicalJsonObject::new();
    for field in [
        "type",
        "room_id",
        "sender",
        "state_key",
        "prev_events",
        "auth_events",
        "depth",
    ] {
        if let Some(value) = template.get(field) {
            object.insert(field.to_owned(), value.clone());
        }
    }
    object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    object.insert("origin_server_ts".to_owned(), now.get().into());
    sign(object, version, signer)
}

/// The resident side of `send_join`, `send_leave` and `send_knock`: checks the completed event, and signs it too where
/// a user of this server lets the sender in. It is then for [`receive`](crate::receive).
pub fn check_membership<R: RoomReader, K: KeyPair>(
    reader: &R,
    json: &str,
    room: &RoomId,
    membership: &MembershipState,
    signer: Signer<'_, K>,
    keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
) -> Result<CheckedPdu, HandshakeError<R::Error>> {
    let version = reader.room_version(room).map_err(RoomError::Read)?;
    let version = version.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
    let unchecked = UncheckedPdu::parse(json, &version)?;
    let pdu = unchecked.pdu();
    if pdu.room_id() != room {
        return Err(HandshakeError::WrongEvent("the event belongs to another room"));
    }
    if membership_of(pdu).as_ref() != Some(membership) {
        return Err(HandshakeError::WrongEvent(
            "the event is not a membership of the kind that was asked for",
        ));
    }
    if pdu.state_key() != Some(pdu.sender().as_str()) {
        return Err(HandshakeError::WrongEvent(
            "the event is about somebody else than its sender",
        ));
    }
    let unchecked = match authorising_user(pdu) {
        Some(inviter) if *membership == MembershipState::Join && inviter.server_name() == signer.server => {
            // That the conditions hold is for us to say; whether this user may let others in, the rules will.
            join_grant(reader, room, pdu.sender(), signer.server)?;
            let object = with_signature(pdu, &version, signer)?;
            UncheckedPdu::from_object(object, &version)?
        }
        _ => unchecked,
    };
    Ok(unchecked.verify(keys)?)
}

fn authorising_user(pdu: &Pdu) -> Option<OwnedUserId> {
    #[derive(serde::Deserialize)]
    struct Content {
        join_authorised_via_users_server: Option<OwnedUserId>,
    }
    pdu.content_as::<Content>().ok()?.join_authorised_via_users_server
}

/// The invited side: checks an invitation for a user of this server, and signs it.
///
/// Nothing is held of the room, so that its rules cannot be checked; whoever invites in vain does so under their name.
pub fn accept_invite<K: KeyPair>(
    json: &str,
    room: &RoomId,
    version: &RoomVersionId,
    signer: Signer<'_, K>,
    keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
) -> Result<CheckedPdu, HandshakeError<std::convert::Infallible>> {
    let checked = UncheckedPdu::parse(json, version)?.verify(keys)?;
    if checked.room_id() != room {
        return Err(HandshakeError::WrongEvent("the event belongs to another room"));
    }
    if membership_of(checked.pdu()) != Some(MembershipState::Invite) {
        return Err(HandshakeError::WrongEvent("the event is not an invitation"));
    }
    // Such an invitation needs no signature of its sender's server, only one by a server of third-party ids.
    if checked
        .pdu()
        .content_as::<ThirdParty>()
        .is_ok_and(|content| content.third_party_invite.is_some())
    {
        return Err(HandshakeError::WrongEvent(
            "invitations through third-party ids are not taken",
        ));
    }
    let invited = checked
        .pdu()
        .state_key()
        .and_then(|user| <&UserId>::try_from(user).ok());
    if invited.is_none_or(|user| user.server_name() != signer.server) {
        return Err(HandshakeError::WrongEvent("the invited user is not of this server"));
    }
    let object = with_signature(checked.pdu(), version, signer)?;
    Ok(CheckedPdu {
        pdu: Pdu::from_json(&object, version)?,
        ..checked
    })
}

#[derive(serde::Deserialize)]
struct ThirdParty {
    third_party_invite: Option<serde::de::IgnoredAny>,
}

/// The inviting side: takes the invited server's signature from its answer into our own event. Anything else in the
/// answer is ignored.
pub fn take_signature(
    own: &CheckedPdu,
    answer: &str,
    server: &ServerName,
    keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
) -> Result<CheckedPdu, PduError> {
    let unchecked = UncheckedPdu::parse(answer, own.version())?;
    if unchecked.event_id() != own.event_id() {
        return Err(PduError::Malformed("the answer is another event".to_owned()));
    }
    let mut object = own.pdu().to_object()?;
    let signature = unchecked
        .pdu()
        .to_object()?
        .get("signatures")
        .and_then(|signatures| signatures.as_object()?.get(server.as_str()).cloned())
        .ok_or_else(|| PduError::Malformed(format!("the answer bears no signature of {server}")))?;
    let mut known = PublicKeySet::new();
    for key_id in signature.as_object().into_iter().flat_map(|keys| keys.keys()) {
        if let Some(key) = keys(server, key_id, own.pdu().origin_server_ts()) {
            known.insert(key_id.clone(), Base64::new(key.public_key.to_vec()));
        }
    }
    // An event's signatures cover what redaction leaves of it.
    let mut signed = redact(object.clone(), &rules(own.version())?.redaction, None)
        .map_err(|error| PduError::Malformed(error.to_string()))?;
    let only = CanonicalJsonObject::from([(server.to_string(), signature.clone())]);
    signed.insert("signatures".to_owned(), CanonicalJsonValue::Object(only));
    verify_json(&PublicKeyMap::from([(server.to_string(), known)]), &signed)?;
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
        signatures.insert(server.to_string(), signature);
    }
    Ok(CheckedPdu {
        pdu: Pdu::from_json(&object, own.version())?,
        ..own.clone()
    })
}

fn with_signature<K: KeyPair>(
    pdu: &Pdu,
    version: &RoomVersionId,
    signer: Signer<'_, K>,
) -> Result<CanonicalJsonObject, PduError> {
    let mut object = pdu.to_object()?;
    sign_event(
        signer.server.as_str(),
        signer.key,
        &mut object,
        &rules(version)?.redaction,
    )
    .map_err(|error| PduError::Malformed(error.to_string()))?;
    Ok(object)
}
