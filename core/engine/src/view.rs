//! Reads one state of one room: who is in it, what they may do, what stands under a key. It never judges an event.

use std::collections::BTreeMap;

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    events::{
        StateEventType,
        room::{
            history_visibility::HistoryVisibility, join_rules::JoinRule, member::MembershipState,
            power_levels::RoomPowerLevels, server_acl::RoomServerAclEventContent,
        },
    },
    room_version_rules::RoomVersionRules,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    NewState, Pdu, RoomError, RoomReader, StateId, StateKey, StoredPdu,
    auth::{AuthState, creators, power_levels},
    pdu::rules,
};

/// One state of one room, stored or about to be.
#[derive(Debug)]
pub struct RoomView<'a, R: RoomReader> {
    reader: &'a R,
    room: OwnedRoomId,
    version: RoomVersionId,
    rules: RoomVersionRules,
    state: NewState,
}

impl<R: RoomReader> Clone for RoomView<'_, R> {
    fn clone(&self) -> Self {
        Self {
            reader: self.reader,
            room: self.room.clone(),
            version: self.version.clone(),
            rules: self.rules.clone(),
            state: self.state.clone(),
        }
    }
}

impl<'a, R: RoomReader> RoomView<'a, R> {
    /// The room's current state; none if nothing is held of the room.
    pub fn current(reader: &'a R, room: &RoomId) -> Result<Option<Self>, RoomError<R::Error>> {
        match reader.current_state(room)? {
            Some(state) => Self::of(reader, room, NewState::Same(state)),
            None => Ok(None),
        }
    }

    /// Some state of the room that the store has.
    pub fn at(reader: &'a R, room: &RoomId, state: StateId) -> Result<Option<Self>, RoomError<R::Error>> {
        Self::of(reader, room, NewState::Same(state))
    }

    pub(crate) fn of(reader: &'a R, room: &RoomId, state: NewState) -> Result<Option<Self>, RoomError<R::Error>> {
        let Some(version) = reader.room_version(room)? else {
            return Ok(None);
        };
        let rules = rules(&version).map_err(RoomError::Pdu)?;
        Ok(Some(Self {
            reader,
            room: room.to_owned(),
            version,
            rules,
            state,
        }))
    }

    /// The room.
    pub fn room_id(&self) -> &RoomId {
        &self.room
    }

    /// The room's version.
    pub fn version(&self) -> &RoomVersionId {
        &self.version
    }

    /// All that differs for that version.
    pub fn rules(&self) -> &RoomVersionRules {
        &self.rules
    }

    /// The id of the event under a key.
    pub fn entry(&self, key: &StateKey) -> Result<Option<OwnedEventId>, R::Error> {
        entry(self.reader, &self.state, key)
    }

    /// The event under a key.
    pub fn event(&self, kind: StateEventType, state_key: &str) -> Result<Option<Pdu>, RoomError<R::Error>> {
        Ok(self.stored(&(kind, state_key.to_owned()))?.map(|stored| stored.pdu))
    }

    /// The content of the event under a key as some type; none if there is no event, or none of that shape.
    pub fn content<T: DeserializeOwned>(
        &self,
        kind: StateEventType,
        state_key: &str,
    ) -> Result<Option<T>, RoomError<R::Error>> {
        Ok(self.event(kind, state_key)?.and_then(|pdu| pdu.content_as().ok()))
    }

    /// Every entry. Costs the state's size.
    pub fn entries(&self) -> Result<BTreeMap<StateKey, OwnedEventId>, R::Error> {
        entries(self.reader, &self.state)
    }

    /// A user's membership: `leave` for one who was never here.
    pub fn membership(&self, user: &UserId) -> Result<MembershipState, RoomError<R::Error>> {
        let event = self.event(StateEventType::RoomMember, user.as_str())?;
        Ok(event.as_ref().and_then(membership_of).unwrap_or(MembershipState::Leave))
    }

    /// Who may join, by the room's rules; by invitation only where nothing is said.
    pub fn join_rule(&self) -> Result<JoinRule, RoomError<R::Error>> {
        Ok(self
            .content(StateEventType::RoomJoinRules, "")?
            .unwrap_or(JoinRule::Invite))
    }

    /// Who may read what was said; `shared` where nothing, or nothing known, is said.
    ///
    /// Client-server API, "Room history visibility".
    pub fn history_visibility(&self) -> Result<HistoryVisibility, RoomError<R::Error>> {
        let event = self.event(StateEventType::RoomHistoryVisibility, "")?;
        Ok(event
            .as_ref()
            .and_then(visibility_of)
            .unwrap_or(HistoryVisibility::Shared))
    }

    /// Who may do what.
    pub fn power_levels(&self) -> Result<RoomPowerLevels, RoomError<R::Error>> {
        let create = self.event(StateEventType::RoomCreate, "")?;
        let levels = self.event(StateEventType::RoomPowerLevels, "")?;
        Ok(power_levels(
            &self.rules.authorization,
            create.as_ref(),
            levels.as_ref(),
        ))
    }

    /// Who created the room.
    pub fn creators(&self) -> Result<Vec<OwnedUserId>, RoomError<R::Error>> {
        let create = self.event(StateEventType::RoomCreate, "")?;
        Ok(creators(&self.rules.authorization, create.as_ref()))
    }

    /// Every member event, by user. Costs the state's size and one read for each member.
    pub fn members(&self) -> Result<Vec<(OwnedUserId, Pdu)>, RoomError<R::Error>> {
        let mut members = Vec::new();
        for ((kind, state_key), id) in self.entries()? {
            if kind == StateEventType::RoomMember
                && let Ok(user) = UserId::parse(&state_key)
            {
                let stored = self.reader.event(&id)?.ok_or(RoomError::Lost(id))?;
                members.push((user, stored.pdu));
            }
        }
        Ok(members)
    }

    /// Users with this membership. Costs what [`RoomView::members`] costs.
    pub fn users_with(&self, membership: &MembershipState) -> Result<Vec<OwnedUserId>, RoomError<R::Error>> {
        let members = self.members()?.into_iter();
        Ok(members
            .filter(|(_, pdu)| membership_of(pdu).as_ref() == Some(membership))
            .map(|(user, _)| user)
            .collect())
    }

    /// Users of one server with this membership. Costs the state's size and one read for each member of that server.
    pub fn users_of(
        &self,
        server: &ServerName,
        membership: &MembershipState,
    ) -> Result<Vec<OwnedUserId>, RoomError<R::Error>> {
        let mut users = Vec::new();
        for (kind, state_key) in self.entries()?.into_keys() {
            if kind == StateEventType::RoomMember
                && let Ok(user) = UserId::parse(&state_key)
                && user.server_name() == server
                && self.membership(&user)? == *membership
            {
                users.push(user);
            }
        }
        Ok(users)
    }

    /// Whether the room's access list lets a server take part. A request about the room from one that it does not is
    /// refused, and events that it sends are ignored.
    ///
    /// Server-server API, "Server Access Control Lists (ACLs)".
    pub fn allows_server(&self, server: &ServerName) -> Result<bool, RoomError<R::Error>> {
        let content: Option<RoomServerAclEventContent> = self.content(StateEventType::RoomServerAcl, "")?;
        Ok(content.is_none_or(|acl| acl.is_allowed(server)))
    }

    /// Servers with a joined user, sorted, each once. Costs what [`RoomView::members`] costs.
    pub fn joined_servers(&self) -> Result<Vec<OwnedServerName>, RoomError<R::Error>> {
        let joined = self.users_with(&MembershipState::Join)?;
        let mut servers: Vec<OwnedServerName> = joined.iter().map(|user| user.server_name().to_owned()).collect();
        servers.sort();
        servers.dedup();
        Ok(servers)
    }

    /// The state before an event; none for outliers and events that are not held.
    pub fn before(&self, pdu: &Pdu) -> Result<Option<Self>, RoomError<R::Error>> {
        match self.reader.state_before(pdu.event_id())? {
            Some(state) => Self::at(self.reader, &self.room, state),
            None => Ok(None),
        }
    }

    pub(crate) fn is_same_state(&self, other: &Self) -> bool {
        self.state == other.state
    }

    pub(crate) fn stored(&self, key: &StateKey) -> Result<Option<StoredPdu>, RoomError<R::Error>> {
        match self.entry(key)? {
            Some(id) => Ok(Some(self.reader.event(&id)?.ok_or(RoomError::Lost(id))?)),
            None => Ok(None),
        }
    }
}

/// The membership that a member event tells; none for other and malformed events.
pub fn membership_of(pdu: &Pdu) -> Option<MembershipState> {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    if *pdu.kind() != ruma::events::TimelineEventType::RoomMember {
        return None;
    }
    pdu.content_as::<Content>().ok().map(|content| content.membership)
}

/// The visibility that an `m.room.history_visibility` event tells; none for values that nobody knows.
pub(crate) fn visibility_of(pdu: &Pdu) -> Option<HistoryVisibility> {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    let visibility = pdu.content_as::<Content>().ok()?.history_visibility;
    use HistoryVisibility::{Invited, Joined, Shared, WorldReadable};
    matches!(visibility, Invited | Joined | Shared | WorldReadable).then_some(visibility)
}

/// One entry of a state that may not be stored yet.
pub(crate) fn entry<R: RoomReader>(
    reader: &R,
    state: &NewState,
    key: &StateKey,
) -> Result<Option<OwnedEventId>, R::Error> {
    match state {
        NewState::Same(id) => reader.state_entry(*id, key),
        NewState::Delta { base, set } => match set.get(key) {
            Some(event) => Ok(Some(event.clone())),
            None => reader.state_entry(*base, key),
        },
        NewState::Full(map) => Ok(map.get(key).cloned()),
    }
}

/// All entries of a state that may not be stored yet.
pub(crate) fn entries<R: RoomReader>(
    reader: &R,
    state: &NewState,
) -> Result<BTreeMap<StateKey, OwnedEventId>, R::Error> {
    Ok(match state {
        NewState::Same(id) => (*reader.full_state(*id)?).clone(),
        NewState::Delta { base, set } => {
            let mut entries = (*reader.full_state(*base)?).clone();
            entries.extend(set.iter().map(|(key, event)| (key.clone(), event.clone())));
            entries
        }
        NewState::Full(map) => map.clone(),
    })
}

/// The entries of a state that bear on an event, read with `event`, which may know some already.
pub(crate) fn auth_state<E: std::error::Error>(
    keys: &[StateKey],
    entry: impl Fn(&StateKey) -> Result<Option<OwnedEventId>, E>,
    event: impl Fn(&OwnedEventId) -> Result<Option<StoredPdu>, E>,
) -> Result<AuthState, RoomError<E>> {
    let mut state = AuthState::default();
    for key in keys {
        if let Some(id) = entry(key)? {
            let stored = event(&id)?.ok_or(RoomError::Lost(id))?;
            state.insert(key.clone(), stored);
        }
    }
    Ok(state)
}
