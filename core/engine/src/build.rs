//! Builds this server's own events: chooses what they build upon, authorises, hashes and signs them. It keeps nothing:
//! what it returns goes through [`receive`](crate::receive) like any other event.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId,
    RoomId, RoomVersionId, ServerName,
    canonical_json::{CanonicalJsonError, to_canonical_value},
    events::{StateEventType, TimelineEventType},
    room_version_rules::{RoomIdFormatVersion, RoomVersionRules},
    signatures::{JsonError, KeyPair, hash_and_sign_event},
    state_res::{auth_types_for_event, check_pdu_format, check_state_independent_auth_rules},
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    Author, CheckedPdu, Extremity, JOINS_HEADS, NewState, Pdu, PduError, RoomError, RoomReader, RoomView, StateId,
    StateKey, StoredPdu,
    auth::{AuthState, power_levels},
    extremities::to_build_upon,
    limits::{MAX_DEPTH, MAX_EVENT_BYTES, MAX_PREV_EVENTS, OWN_PREV_EVENTS},
    pdu::rules,
    resolve,
};

/// Why an event was not built. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: std::error::Error> {
    /// The room's rules refuse it. The text says which one.
    #[error("{0}")]
    Forbidden(String),
    /// An event that a redaction names is not held in its room.
    #[error("event {0} is not known in this room")]
    UnknownTarget(OwnedEventId),
    /// The event would be larger than events may be.
    #[error("an event of {0} bytes is larger than allowed")]
    TooLarge(usize),
    /// The content, or a template that another server sent, cannot become an event.
    #[error("{0}")]
    Malformed(String),
    /// The room could not be read, or is not known.
    #[error(transparent)]
    Room(#[from] RoomError<E>),
}

impl<E: std::error::Error> BuildError<E> {
    pub(crate) fn read(error: E) -> Self {
        Self::Room(RoomError::Read(error))
    }

    pub(crate) fn pdu(error: PduError) -> Self {
        match error {
            PduError::TooLarge(size) => Self::TooLarge(size),
            PduError::UnsupportedVersion(_) => Self::Room(RoomError::Pdu(error)),
            error => Self::Malformed(error.to_string()),
        }
    }
}

/// What signs this server's events.
#[derive(Debug)]
pub struct Signer<'a, K: KeyPair> {
    /// This server's name.
    pub server: &'a ServerName,
    /// The node's key.
    pub key: &'a K,
}

impl<K: KeyPair> Clone for Signer<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: KeyPair> Copy for Signer<'_, K> {}

/// What a user of this server wants to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The event type.
    pub kind: TimelineEventType,
    /// The state key, for a state event.
    pub state_key: Option<String>,
    /// The content. For an `m.room.redaction`, `redacts` is put where the room's version wants it.
    pub content: CanonicalJsonObject,
    /// Who sends it.
    pub sender: OwnedUserId,
    /// The event that an `m.room.redaction` names.
    pub redacts: Option<OwnedEventId>,
}

impl Draft {
    /// A message-like event. `content` is anything that serialises to an object.
    pub fn message(
        sender: OwnedUserId,
        kind: impl Into<TimelineEventType>,
        content: impl Serialize,
    ) -> Result<Self, CanonicalJsonError> {
        let content = match to_canonical_value(content)? {
            CanonicalJsonValue::Object(content) => content,
            other => return Err(CanonicalJsonError::InvalidType(format!("content {other:?}"))),
        };
        Ok(Self {
            kind: kind.into(),
            state_key: None,
            content,
            sender,
            redacts: None,
        })
    }

    /// A state event. `content` is anything that serialises to an object.
    pub fn state(
        sender: OwnedUserId,
        kind: impl Into<TimelineEventType>,
        state_key: impl Into<String>,
        content: impl Serialize,
    ) -> Result<Self, CanonicalJsonError> {
        Ok(Self {
            state_key: Some(state_key.into()),
            ..Self::message(sender, kind, content)?
        })
    }

    /// A redaction.
    pub fn redaction(sender: OwnedUserId, target: OwnedEventId, reason: Option<String>) -> Self {
        let content = reason.map(|reason| ("reason".to_owned(), CanonicalJsonValue::String(reason)));
        Self {
            kind: TimelineEventType::RoomRedaction,
            state_key: None,
            content: content.into_iter().collect(),
            sender,
            redacts: Some(target),
        }
    }

    /// The event that it names as redacted, wherever it says so.
    fn target(&self) -> Option<OwnedEventId> {
        if self.kind != TimelineEventType::RoomRedaction {
            return None;
        }
        let in_content = self.content.get("redacts").and_then(|id| id.as_str());
        self.redacts
            .clone()
            .or_else(|| in_content.and_then(|id| id.try_into().ok()))
    }
}

/// Builds an event on top of the room's forward extremities, authorised by the room's current state.
pub fn build_event<R: RoomReader, K: KeyPair>(
    reader: &R,
    room: &RoomId,
    draft: &Draft,
    signer: Signer<'_, K>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<CheckedPdu, BuildError<R::Error>> {
    let base = Base::of(reader, room, Some(signer.server), prev_events_of(draft))?;
    if draft.kind == TimelineEventType::RoomCreate {
        return Err(BuildError::Forbidden("the room has been created already".to_owned()));
    }
    base.check_redaction(draft)?;
    let (object, auth) = base.assemble(draft, now)?;
    let checked = sign(object, base.view.version(), signer)?;
    base.authorise(&checked.pdu, &auth)?;
    Ok(checked)
}

/// Builds the event that opens a room. From room version 12 on the room's id follows from it and `room_id` goes
/// unused; before, `room_id` is the id the new room is to have.
///
/// Two rooms that one user creates alike within a millisecond would be the same room: [`receive`](crate::receive) then
/// knows the event already, and it is to be built again with a later `now`.
pub fn build_create<K: KeyPair>(
    draft: &Draft,
    version: &RoomVersionId,
    room_id: Option<OwnedRoomId>,
    signer: Signer<'_, K>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<CheckedPdu, BuildError<std::convert::Infallible>> {
    let rules = rules(version).map_err(BuildError::pdu)?;
    let mut object = fields(draft, &rules, now, 1);
    match (rules.room_id_format == RoomIdFormatVersion::V2, room_id) {
        (true, _) => {}
        (false, Some(room_id)) => {
            object.insert("room_id".to_owned(), CanonicalJsonValue::String(room_id.to_string()));
        }
        (false, None) => return Err(BuildError::Malformed(format!("room version {version} wants a room id"))),
    }
    object.insert("prev_events".to_owned(), CanonicalJsonValue::Array(Vec::new()));
    object.insert("auth_events".to_owned(), CanonicalJsonValue::Array(Vec::new()));
    let checked = sign(object, version, signer)?;
    check_state_independent_auth_rules(&rules.authorization, &checked.pdu, |_| None::<StoredPdu>)
        .map_err(BuildError::Forbidden)?;
    Ok(checked)
}

/// An event without hashes and signatures, for a user of another server, who will add them.
///
/// Server-server API, `make_join`, `make_leave` and `make_knock`.
pub fn build_template<R: RoomReader>(
    reader: &R,
    room: &RoomId,
    draft: &Draft,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<CanonicalJsonObject, BuildError<R::Error>> {
    let base = Base::of(reader, room, None, prev_events_of(draft))?;
    let (object, auth) = base.assemble(draft, now)?;
    let pdu = Pdu::from_json(&object, base.view.version()).map_err(BuildError::pdu)?;
    base.authorise(&pdu, &auth)?;
    Ok(object)
}

/// Hashes, signs and checks the size and format of an event of this server.
pub(crate) fn sign<K: KeyPair, E: std::error::Error>(
    mut object: CanonicalJsonObject,
    version: &RoomVersionId,
    signer: Signer<'_, K>,
) -> Result<CheckedPdu, BuildError<E>> {
    let rules = rules(version).map_err(BuildError::pdu)?;
    let sender = object
        .get("sender")
        .and_then(|sender| sender.as_str())
        .unwrap_or_default();
    if <&ruma::UserId>::try_from(sender).is_ok_and(|sender| sender.server_name() != signer.server) {
        return Err(BuildError::Forbidden(format!("{sender} is not a user of this server")));
    }
    hash_and_sign_event(signer.server.as_str(), signer.key, &mut object, &rules.redaction).map_err(json_error)?;
    let size = serde_json::to_string(&object).map_or(usize::MAX, |json| json.len());
    if size > MAX_EVENT_BYTES {
        return Err(BuildError::TooLarge(size));
    }
    check_pdu_format(&object, &rules.event_format).map_err(BuildError::Malformed)?;
    let pdu = Pdu::from_json(&object, version).map_err(BuildError::pdu)?;
    Ok(CheckedPdu {
        pdu,
        version: version.clone(),
        revoked_key: false,
        made_here: true,
    })
}

fn json_error<E: std::error::Error>(error: JsonError) -> BuildError<E> {
    match error {
        JsonError::PduTooLarge => BuildError::TooLarge(MAX_EVENT_BYTES + 1),
        error => BuildError::Malformed(error.to_string()),
    }
}

/// The fields that do not depend on the room.
fn fields(draft: &Draft, rules: &RoomVersionRules, now: MilliSecondsSinceUnixEpoch, depth: u64) -> CanonicalJsonObject {
    let mut content = draft.content.clone();
    let mut object = CanonicalJsonObject::new();
    if let Some(target) = draft.target() {
        let target = CanonicalJsonValue::String(target.to_string());
        let into = if rules.redaction.content_field_redacts {
            &mut content
        } else {
            &mut object
        };
        into.insert("redacts".to_owned(), target);
    }
    object.insert("type".to_owned(), CanonicalJsonValue::String(draft.kind.to_string()));
    if let Some(state_key) = &draft.state_key {
        object.insert("state_key".to_owned(), CanonicalJsonValue::String(state_key.clone()));
    }
    object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    object.insert(
        "sender".to_owned(),
        CanonicalJsonValue::String(draft.sender.to_string()),
    );
    object.insert("origin_server_ts".to_owned(), now.get().into());
    let depth = ruma::UInt::try_from(depth.min(MAX_DEPTH)).unwrap_or(ruma::UInt::MAX);
    object.insert("depth".to_owned(), depth.into());
    object
}

fn ids(events: impl Iterator<Item = OwnedEventId>) -> CanonicalJsonValue {
    CanonicalJsonValue::Array(events.map(|id| CanonicalJsonValue::String(id.to_string())).collect())
}

/// What a new event builds upon.
struct Base<'a, R: RoomReader> {
    reader: &'a R,
    prev: Vec<StoredPdu>,
    /// The state before the new event.
    view: RoomView<'a, R>,
    /// The room's current state, which differs when not all extremities fit into one event.
    current: StateId,
}

impl<'a, R: RoomReader> Base<'a, R> {
    /// On top of the room's forward extremities, or of so many of them, those of the event's own server first.
    fn of(reader: &'a R, room: &RoomId, own: Option<&ServerName>, most: usize) -> Result<Self, BuildError<R::Error>> {
        let current = reader.current_state(room).map_err(BuildError::read)?;
        let current = current.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
        let extremities = reader.extremities(room).map_err(BuildError::read)?;
        let all: Vec<&Extremity> = extremities.iter().collect();
        let chosen = to_build_upon(&all, own.map(Author::of), most);
        let prev = held(reader, chosen.iter().map(|chosen| chosen.event.clone()).collect())?;
        if prev.len() < all.len() {
            return Self::on(reader, room, current, prev);
        }
        let view = RoomView::at(reader, room, current)?.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
        Ok(Self {
            reader,
            prev,
            view,
            current,
        })
    }

    /// On top of these events and no others.
    fn on(reader: &'a R, room: &RoomId, current: StateId, prev: Vec<StoredPdu>) -> Result<Self, BuildError<R::Error>> {
        let state = state_after_all(reader, room, &prev)?;
        let view = RoomView::of(reader, room, state)?.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
        Ok(Self {
            reader,
            prev,
            view,
            current,
        })
    }

    /// Writes the event, with the events that authorise it.
    fn assemble(
        &self,
        draft: &Draft,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(CanonicalJsonObject, AuthState), BuildError<R::Error>> {
        let depth = self
            .prev
            .iter()
            .map(|prev| prev.pdu.depth())
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        let rules = self.view.rules();
        let mut object = fields(draft, rules, now, depth);
        let content = raw(object.get("content")).map_err(|error| BuildError::Malformed(error.to_string()))?;
        let keys = auth_types_for_event(
            &draft.kind,
            &draft.sender,
            draft.state_key.as_deref(),
            &content,
            &rules.authorization,
        )
        .map_err(BuildError::Malformed)?;
        let mut auth = AuthState::default();
        let mut auth_ids = Vec::new();
        for key in keys {
            if let Some(stored) = self.view.stored(&key)? {
                auth_ids.push(stored.pdu.event_id().to_owned());
                auth.insert(key, stored);
            }
        }
        let create: StateKey = (StateEventType::RoomCreate, String::new());
        if auth.entry(&create.0, "").is_none()
            && let Some(stored) = self.view.stored(&create)?
        {
            auth.insert(create, stored);
        }
        object.insert(
            "room_id".to_owned(),
            CanonicalJsonValue::String(self.view.room_id().to_string()),
        );
        object.insert("auth_events".to_owned(), ids(auth_ids.into_iter()));
        object.insert(
            "prev_events".to_owned(),
            ids(self.prev.iter().map(|prev| prev.pdu.event_id().to_owned())),
        );
        Ok((object, auth))
    }

    /// Refuses what the rules would refuse on receipt: rejection and soft failure alike.
    fn authorise(&self, pdu: &Pdu, auth: &AuthState) -> Result<(), BuildError<R::Error>> {
        let rules = &self.view.rules().authorization;
        auth.check(rules, pdu).map_err(BuildError::Forbidden)?;
        let current = RoomView::at(self.reader, self.view.room_id(), self.current)?;
        if let Some(current) = current.filter(|current| !current.is_same_state(&self.view)) {
            let keys = crate::auth::auth_keys(rules, pdu).map_err(BuildError::Malformed)?;
            let mut auth = AuthState::default();
            for key in keys {
                if let Some(stored) = current.stored(&key)? {
                    auth.insert(key, stored);
                }
            }
            auth.check(rules, pdu).map_err(BuildError::Forbidden)?;
        }
        Ok(())
    }

    /// Since room version 3 the rules let every redaction pass and servers ignore those that do not apply; a user had
    /// better be told.
    fn check_redaction(&self, draft: &Draft) -> Result<(), BuildError<R::Error>> {
        if draft.kind != TimelineEventType::RoomRedaction {
            return Ok(());
        }
        let Some(id) = draft.target() else {
            return Err(BuildError::Malformed("a redaction must name an event".to_owned()));
        };
        let held = self.reader.event(&id).map_err(BuildError::read)?;
        let Some(held) = held.filter(|held| held.pdu.room_id() == self.view.room_id()) else {
            return Err(BuildError::UnknownTarget(id));
        };
        let create = self.view.event(StateEventType::RoomCreate, "")?;
        let levels = self.view.event(StateEventType::RoomPowerLevels, "")?;
        let levels = power_levels(&self.view.rules().authorization, create.as_ref(), levels.as_ref());
        // Other servers go by the redactor's server, not by the user; among users of one server, power decides.
        if held.pdu.sender() == draft.sender || levels.for_user(&draft.sender) >= levels.redact {
            return Ok(());
        }
        Err(BuildError::Forbidden(
            "sender does not have enough power to redact other users' events".to_owned(),
        ))
    }
}

fn raw(content: Option<&CanonicalJsonValue>) -> Result<Box<RawValue>, serde_json::Error> {
    to_raw_value(&content)
}

/// An event on top of any events held, signed but not authorised: what a server that breaks the rules might send.
#[cfg(feature = "testing")]
pub(crate) fn build_unauthorised<R: RoomReader, K: KeyPair>(
    reader: &R,
    room: &RoomId,
    prev: Vec<OwnedEventId>,
    draft: &Draft,
    signer: Signer<'_, K>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<CheckedPdu, BuildError<R::Error>> {
    let current = reader.current_state(room).map_err(BuildError::read)?;
    let current = current.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
    let base = Base::on(reader, room, current, held(reader, prev)?)?;
    let (object, _) = base.assemble(draft, now)?;
    sign(object, base.view.version(), signer)
}

fn held<R: RoomReader>(reader: &R, ids: Vec<OwnedEventId>) -> Result<Vec<StoredPdu>, BuildError<R::Error>> {
    let mut held = Vec::with_capacity(ids.len());
    for id in ids {
        held.push(
            reader
                .event(&id)
                .map_err(BuildError::read)?
                .ok_or(RoomError::Lost(id))?,
        );
    }
    Ok(held)
}

/// Forward extremities that an event names at the most.
fn prev_events_of(draft: &Draft) -> usize {
    if draft.kind.to_string() == JOINS_HEADS {
        MAX_PREV_EVENTS
    } else {
        OWN_PREV_EVENTS
    }
}

fn state_after_all<R: RoomReader>(
    reader: &R,
    room: &RoomId,
    prev: &[StoredPdu],
) -> Result<NewState, BuildError<R::Error>> {
    let mut states = Vec::new();
    for stored in prev {
        let id = stored.pdu.event_id();
        let state = reader.state_after(id).map_err(BuildError::read)?;
        states.push(state.ok_or_else(|| RoomError::Lost(id.to_owned()))?);
    }
    let version = reader.room_version(room).map_err(BuildError::read)?;
    let version = version.ok_or_else(|| RoomError::UnknownRoom(room.to_owned()))?;
    Ok(resolve(reader, &version, &states)?)
}
