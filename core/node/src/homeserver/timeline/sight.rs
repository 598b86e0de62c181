//! What one user may read of one room, judged event by event within one snapshot. It renders nothing.

use std::collections::HashMap;

use kith_engine::{Pdu, RoomReader, RoomView, Standing, StateId, is_visible, membership_of};
use kith_store::{ReadTxn, Seq, TimelineEvent};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{
        StateEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
    room_version_rules::RedactionRules,
};

use crate::Error;

/// Own memberships looked back through to find out until when a user was joined. Longer histories end in refusal to
/// read what was shared before, never in showing more.
const MAX_MEMBERSHIPS: usize = 64;

/// How a user stands to a room as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Joined: the room's current state may be read.
    Joined,
    /// Was joined until this place: the state of that moment may be read, if it is known.
    Left {
        /// Where the user's timeline ends; that place is part of it.
        at: Seq,
        /// The state then.
        state: Option<StateId>,
    },
    /// Never joined, but everybody may look in.
    Peeking,
}

/// One user's view of one room.
pub(crate) struct RoomSight<'t> {
    txn: &'t ReadTxn<'t>,
    room: OwnedRoomId,
    user: OwnedUserId,
    redaction: RedactionRules,
    joined_until: JoinedUntil,
    standings: HashMap<StateId, Standing>,
    unknown: Option<Standing>,
}

/// Until when a user was joined, whatever the membership now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JoinedUntil {
    Never,
    Place(Seq),
    Now,
}

impl<'t> RoomSight<'t> {
    /// A user's view of a room; none if nothing is held of the room.
    pub(crate) fn new(txn: &'t ReadTxn<'t>, room: &RoomId, user: &UserId) -> Result<Option<Self>, Error> {
        let Some(view) = RoomView::current(txn, room)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            txn,
            room: room.to_owned(),
            user: user.to_owned(),
            redaction: view.rules().redaction.clone(),
            joined_until: joined_until(txn, room, user)?,
            standings: HashMap::new(),
            unknown: None,
        }))
    }

    /// A user's view of a room whose past or present the user may read; `M_FORBIDDEN` otherwise, for rooms that do not
    /// exist as for those that may not be read, so that nobody learns which is which.
    pub(crate) fn of_reader(txn: &'t ReadTxn<'t>, room: &RoomId, user: &UserId) -> Result<(Self, Access), Error> {
        let refused = || Error::forbidden("you are not in this room");
        let sight = Self::new(txn, room, user)?.ok_or_else(refused)?;
        if txn.is_forgotten(user, room)? {
            return Err(refused());
        }
        let access = sight.access()?.ok_or_else(refused)?;
        Ok((sight, access))
    }

    /// The room.
    pub(crate) fn room(&self) -> &RoomId {
        &self.room
    }

    /// How the room's version redacts.
    pub(crate) fn redaction(&self) -> &RedactionRules {
        &self.redaction
    }

    /// How the user stands to the room; none if it may not be read at all.
    pub(crate) fn access(&self) -> Result<Option<Access>, Error> {
        match self.joined_until {
            JoinedUntil::Now => Ok(Some(Access::Joined)),
            JoinedUntil::Place(at) => Ok(Some(Access::Left {
                at,
                state: self.txn.state_at(&self.room, at)?,
            })),
            JoinedUntil::Never => {
                let view = RoomView::current(self.txn, &self.room)?;
                let visibility = view.map(|view| view.history_visibility()).transpose()?;
                Ok((visibility == Some(HistoryVisibility::WorldReadable)).then_some(Access::Peeking))
            }
        }
    }

    /// The user's membership at an event, or none if the user may not read it.
    pub(crate) fn membership_at(&mut self, event: &TimelineEvent) -> Result<Option<MembershipState>, Error> {
        let before = self.standing(event.state_before)?;
        let after = self.standing(event.state_after)?;
        let joined_later = match self.joined_until {
            JoinedUntil::Never => false,
            JoinedUntil::Place(place) => event.stream < place,
            JoinedUntil::Now => true,
        };
        let visible = is_visible(&event.pdu, &self.user, &before, &after, joined_later);
        Ok(visible.then_some(after.membership))
    }

    fn standing(&mut self, state: Option<StateId>) -> Result<Standing, Error> {
        let Some(state) = state else {
            return self.unknown_standing();
        };
        if let Some(known) = self.standings.get(&state) {
            return Ok(known.clone());
        }
        let standing = Standing::of(self.txn, &self.room, state, &self.user)?
            .ok_or(Error::Internal("a room with a state has no version", None))?;
        self.standings.insert(state, standing.clone());
        Ok(standing)
    }

    /// For history whose state nobody could tell: as the room is now, to somebody who was not there.
    fn unknown_standing(&mut self) -> Result<Standing, Error> {
        if let Some(known) = &self.unknown {
            return Ok(known.clone());
        }
        let view = RoomView::current(self.txn, &self.room)?;
        let visibility = view.map(|view| view.history_visibility()).transpose()?;
        let standing = Standing {
            visibility: visibility.unwrap_or(HistoryVisibility::Joined),
            membership: MembershipState::Leave,
        };
        Ok(self.unknown.insert(standing).clone())
    }
}

/// Walks back through a user's memberships to the last time that they were joined.
fn joined_until(txn: &ReadTxn<'_>, room: &RoomId, user: &UserId) -> Result<JoinedUntil, Error> {
    let Some(member) = txn.member(room, user)? else {
        return Ok(JoinedUntil::Never);
    };
    if member.membership == MembershipState::Join {
        return Ok(JoinedUntil::Now);
    }
    // A membership event without a place in the timeline took hold when the state said so.
    let mut place = txn.stream_of(&member.event_id)?.unwrap_or(member.seq);
    let mut at = member.event_id;
    let key = member_key(user);
    for _ in 0..MAX_MEMBERSHIPS {
        let Some(state) = txn.state_before(&at)? else {
            break;
        };
        let Some(earlier) = txn.state_entry(state, &key)? else {
            break;
        };
        let Some(stored) = txn.event(&earlier)? else {
            break;
        };
        if membership_of(&stored.pdu) == Some(MembershipState::Join) {
            return Ok(JoinedUntil::Place(place));
        }
        place = txn.stream_of(&earlier)?.unwrap_or(place);
        at = earlier;
    }
    Ok(JoinedUntil::Never)
}

/// The events of a state whose keys are wanted. Costs the state's size.
pub(crate) fn state_events(
    txn: &ReadTxn<'_>,
    state: StateId,
    mut wanted: impl FnMut(&StateEventType, &str) -> bool,
) -> Result<Vec<Pdu>, Error> {
    let mut events = Vec::new();
    for ((kind, state_key), id) in txn.full_state(state)?.iter() {
        if wanted(kind, state_key) {
            let stored = txn
                .event(id)?
                .ok_or(Error::Internal("a state names an event that is not held", None))?;
            events.push(stored.pdu);
        }
    }
    Ok(events)
}

/// The key of a user's membership in a room's state.
pub(crate) fn member_key(user: &UserId) -> (StateEventType, String) {
    (StateEventType::RoomMember, user.to_string())
}
