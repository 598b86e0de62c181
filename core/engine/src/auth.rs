//! Authorisation: ruma's rules, fed from some state. It decides nothing by itself and never falls back to allowing.

use ruma::{
    OwnedEventId, OwnedUserId, RoomId, UserId,
    events::{
        StateEventType,
        room::power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
    },
    room_version_rules::{AuthorizationRules, RoomVersionRules},
    state_res::{auth_types_for_event, check_state_dependent_auth_rules, events::RoomCreateEvent},
};

use crate::{Pdu, StateKey, StoredPdu};

/// The few entries of a state that bear on one event, each with the event that stands there.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthState(Vec<(StateKey, StoredPdu)>);

impl AuthState {
    /// Adds an entry; an older one under the same key gives way.
    pub(crate) fn insert(&mut self, key: StateKey, event: StoredPdu) {
        self.0.retain(|(held, _)| *held != key);
        self.0.push((key, event));
    }

    /// The event under this key.
    pub(crate) fn entry(&self, kind: &StateEventType, state_key: &str) -> Option<&StoredPdu> {
        self.0
            .iter()
            .find(|((k, s), _)| k == kind && s == state_key)
            .map(|(_, event)| event)
    }

    /// Whether two hold the same events, so that a check of one answers for the other.
    pub(crate) fn same_events(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .all(|((k, s), event)| other.entry(k, s).is_some_and(|held| held.pdu == event.pdu))
    }

    /// Checks the rules that depend on state. The error says in words which one refuses.
    pub(crate) fn check(&self, rules: &AuthorizationRules, pdu: &Pdu) -> Result<(), String> {
        check_state_dependent_auth_rules(rules, pdu, |kind, key| self.entry(kind, key))
    }
}

/// The entries of a state that bear on this event: those of the specification's auth events selection, and the
/// `m.room.create`, which newer versions leave out of `auth_events`.
///
/// The error says in words why the event's content is malformed.
pub(crate) fn auth_keys(rules: &AuthorizationRules, pdu: &Pdu) -> Result<Vec<StateKey>, String> {
    let mut keys = auth_types_for_event(pdu.kind(), pdu.sender(), pdu.state_key(), pdu.content(), rules)?;
    let create = (StateEventType::RoomCreate, String::new());
    if !keys.contains(&create) && *pdu.kind() != ruma::events::TimelineEventType::RoomCreate {
        keys.push(create);
    }
    Ok(keys)
}

/// The `m.room.create` of a room whose id is that event's hash; none for older versions' ids.
pub(crate) fn implied_create(rules: &RoomVersionRules, room: &RoomId) -> Option<OwnedEventId> {
    if !rules.authorization.room_create_event_id_as_room_id {
        return None;
    }
    OwnedEventId::try_from(format!("${}", room.strip_sigil())).ok()
}

/// Who created the room: those that its rules privilege, or, under older versions, its one creator.
pub(crate) fn creators(rules: &AuthorizationRules, create: Option<&Pdu>) -> Vec<OwnedUserId> {
    let Some(create) = create else { return Vec::new() };
    RoomCreateEvent::new(create)
        .creators(rules)
        .map(Vec::from_iter)
        .unwrap_or_default()
}

/// The power levels that these two events make. Content that the rules let pass but that is not well-formed counts as
/// absent.
pub(crate) fn power_levels(
    rules: &AuthorizationRules,
    create: Option<&Pdu>,
    power_levels: Option<&Pdu>,
) -> RoomPowerLevels {
    let content = power_levels.and_then(|pdu| pdu.content_as::<RoomPowerLevelsEventContent>().ok());
    RoomPowerLevels::new(RoomPowerLevelsSource::from(content), rules, creators(rules, create))
}

/// Whether a redaction by this user applies to this event.
///
/// Room version 3, "Handling redactions".
pub(crate) fn may_redact(levels: &RoomPowerLevels, redactor: &UserId, target: &Pdu) -> bool {
    levels.for_user(redactor) >= levels.redact || redactor.server_name() == target.sender().server_name()
}
