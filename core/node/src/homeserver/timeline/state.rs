//! `/state`, `/members` and `/joined_members`: what stands in a room, now or when the reader left it.

use std::collections::BTreeMap;

use kith_engine::{Pdu, RoomReader, StateId, membership_of};
use kith_store::{Direction, ReadTxn, Seq};
use ruma::{
    OwnedMxcUri, OwnedRoomId, OwnedUserId, UserId,
    api::client::{
        membership::{get_member_events, joined_members},
        state::{get_state_event_for_key, get_state_events},
    },
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Reading, Timeline, messages::place, sight::Access, state_events};
use crate::{Error, homeserver::Session};

impl Timeline {
    /// The whole state of a room.
    pub async fn state(
        &self,
        session: &Session,
        request: get_state_events::v3::Request,
    ) -> Result<get_state_events::v3::Response, Error> {
        let state = |reading: &mut Reading<'_>| {
            let events = reading.state_events(|_, _| true)?;
            let redaction = reading.sight.redaction();
            let told = events.iter().map(|pdu| reading.renderer.state_event(pdu, redaction));
            Ok(told.collect())
        };
        let state = self.read(session, request.room_id, state).await?;
        Ok(get_state_events::v3::Response::new(state))
    }

    /// One event of a room's state, or its content.
    pub async fn state_event(
        &self,
        session: &Session,
        request: get_state_event_for_key::v3::Request,
    ) -> Result<get_state_event_for_key::v3::Response, Error> {
        use get_state_event_for_key::v3::StateEventFormat;

        let key = (request.event_type, request.state_key);
        let whole = match request.format {
            StateEventFormat::Content => false,
            StateEventFormat::Event => true,
            _ => return Err(Error::invalid_param("the format is `content` or `event`")),
        };
        let entry = move |reading: &mut Reading<'_>| {
            let missing = || Error::not_found("there is no such state event");
            let pdu = reading.state_entry(&key)?.ok_or_else(missing)?;
            if whole {
                let event = reading
                    .renderer
                    .state_event::<ruma::events::AnyStateEvent>(&pdu, reading.sight.redaction());
                return Ok(event.into_json());
            }
            RawValue::from_string(pdu.content_json().to_owned())
                .map_err(|error| Error::Internal("stored content is no JSON", Some(Box::new(error))))
        };
        let json = self.read(session, request.room_id, entry).await?;
        Ok(get_state_event_for_key::v3::Response::new(json))
    }

    /// The membership events of a room.
    pub async fn members(
        &self,
        session: &Session,
        request: get_member_events::v3::Request,
    ) -> Result<get_member_events::v3::Response, Error> {
        let at = request.at.as_deref().map(place).transpose()?;
        let (wanted, unwanted) = (request.membership, request.not_membership);
        // "When specified alongside `not_membership`, the two parameters create an 'or' condition."
        let passes = move |membership: Option<MembershipState>| match (&wanted, &unwanted) {
            (None, None) => true,
            (Some(wanted), None) => membership.as_ref() == Some(wanted),
            (None, Some(unwanted)) => membership.as_ref() != Some(unwanted),
            (Some(wanted), Some(unwanted)) => {
                membership.as_ref() == Some(wanted) || membership.as_ref() != Some(unwanted)
            }
        };
        let members = move |reading: &mut Reading<'_>| {
            let is_member = |kind: &StateEventType, _: &str| *kind == StateEventType::RoomMember;
            let events = match reading.state_at(at)? {
                Some(state) => state_events(reading.txn, state, is_member)?,
                None => reading.state_events(is_member)?,
            };
            let redaction = reading.sight.redaction();
            let told = events.iter().filter(|pdu| passes(membership_of(pdu)));
            Ok(told.map(|pdu| reading.renderer.state_event(pdu, redaction)).collect())
        };
        let chunk = self.read(session, request.room_id, members).await?;
        Ok(get_member_events::v3::Response::new(chunk))
    }

    /// Who is joined to a room, with names and pictures there. Only for those who are joined themselves.
    pub async fn joined_members(
        &self,
        session: &Session,
        request: joined_members::v3::Request,
    ) -> Result<joined_members::v3::Response, Error> {
        let members = |reading: &mut Reading<'_>| {
            if reading.access != Access::Joined {
                return Err(Error::forbidden("you are not in this room"));
            }
            let events = reading.state_events(|kind, _| *kind == StateEventType::RoomMember)?;
            Ok(events.iter().filter_map(joined_member).collect())
        };
        let joined: BTreeMap<_, _> = self.read(session, request.room_id, members).await?;
        Ok(joined_members::v3::Response::new(joined))
    }

    /// The rooms that the caller and another user are both joined to.
    pub async fn mutual_rooms(&self, session: &Session, other: &UserId) -> Result<Vec<OwnedRoomId>, Error> {
        if session.user_id == *other {
            return Err(Error::invalid_param("you share every room with yourself"));
        }
        let (user, other) = (session.user_id.clone(), other.to_owned());
        let rooms = move |txn: &ReadTxn<'_>| Ok(txn.shared_rooms(&user, &other)?);
        self.ctx.store.read(rooms).await
    }
}

/// A user's name and picture in a room, from the membership event of one who is joined.
fn joined_member(pdu: &Pdu) -> Option<(OwnedUserId, joined_members::v3::RoomMember)> {
    /// Both are what anybody may have written; what has not the right shape is left out.
    #[derive(Deserialize)]
    struct Profile {
        displayname: Option<serde_json::Value>,
        avatar_url: Option<serde_json::Value>,
    }
    if membership_of(pdu) != Some(MembershipState::Join) {
        return None;
    }
    let user = UserId::parse(pdu.state_key()?).ok()?;
    let mut member = joined_members::v3::RoomMember::new();
    if let Ok(profile) = pdu.content_as::<Profile>() {
        let text = |value: Option<serde_json::Value>| value.and_then(|value| value.as_str().map(str::to_owned));
        member.display_name = text(profile.displayname);
        member.avatar_url = text(profile.avatar_url).map(OwnedMxcUri::from);
    }
    Some((user, member))
}

impl Reading<'_> {
    /// The events of the state that the reader may read: the current one, or that of the moment of leaving.
    fn state_events(&self, mut wanted: impl FnMut(&StateEventType, &str) -> bool) -> Result<Vec<Pdu>, Error> {
        match self.access {
            Access::Joined | Access::Peeking => {
                let room = self.sight.room();
                Ok(self.txn.current_state_events(room, |kind| wanted(kind, ""))?)
            }
            Access::Left { state: Some(state), .. } => state_events(self.txn, state, wanted),
            Access::Left { state: None, .. } => Ok(Vec::new()),
        }
    }

    fn state_entry(&self, key: &(StateEventType, String)) -> Result<Option<Pdu>, Error> {
        let room = self.sight.room();
        match self.access {
            Access::Joined | Access::Peeking => Ok(self.txn.current_state_event(room, &key.0, &key.1)?),
            Access::Left { state: Some(state), .. } => match self.txn.state_entry(state, key)? {
                Some(id) => Ok(self.txn.event(&id)?.map(|stored| stored.pdu)),
                None => Ok(None),
            },
            Access::Left { state: None, .. } => Ok(None),
        }
    }

    /// The state at a place that a client named; none for the one that the reader may read anyway. Who left sees no later
    /// one than that.
    fn state_at(&self, place: Option<i64>) -> Result<Option<StateId>, Error> {
        let Some(place) = place else {
            return Ok(None);
        };
        if let Access::Left { at, .. } = self.access
            && place >= at.0
        {
            return Ok(None);
        }
        // Before this node came to the room, its state is that of the first event that follows.
        let known = self.txn.state_at(self.sight.room(), Seq(place))?;
        Ok(known.or(self.first_state_after(place)?))
    }

    fn first_state_after(&self, place: i64) -> Result<Option<StateId>, Error> {
        let next = self
            .txn
            .timeline(self.sight.room(), Seq(place), Direction::Forward, 1)?;
        Ok(next.first().and_then(|event| event.state_before))
    }
}
