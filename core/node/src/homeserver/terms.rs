//! On what terms two servers speak of a room: both are in it, or one of them was until it left. It says nothing of users,
//! and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{Heads, RoomReader};
use kith_store::{Departure, Moment, ReadTxn};
use ruma::{OwnedEventId, RoomId, ServerName};

use super::rooms::state::find_room;
use crate::Error;

/// Events that are walked over to find what a server may know.
const MAX_WALKED: usize = 10_000;

/// How this server and another one stand to a room, by what is known here.
#[derive(Debug)]
pub(super) enum Terms {
    /// Both are in it.
    Members,
    /// The other one left: it may know the room as it was then, its own removal included, and nothing that came later.
    TheyLeft(Departure),
    /// This one left, and may tell those who were in it then what it knows.
    WeLeft(Departure),
}

impl Terms {
    /// None if a room is not to be spoken of with a server: because of who is and was in it, or because the room's access
    /// list keeps that server out.
    pub(super) fn between(
        txn: &ReadTxn<'_>,
        room: &RoomId,
        own: &ServerName,
        other: &ServerName,
    ) -> Result<Option<Self>, Error> {
        let terms = match (txn.is_server_joined(room, own)?, txn.is_server_joined(room, other)?) {
            (true, true) => Some(Self::Members),
            (true, false) => txn.departure(room, other)?.map(Self::TheyLeft),
            (false, true) => txn.departure(room, own)?.map(Self::WeLeft),
            (false, false) => None,
        };
        match (terms, find_room(txn, room)?) {
            (Some(terms), Some(view)) if view.allows_server(other)? => Ok(Some(terms)),
            _ => Ok(None),
        }
    }

    /// Until when the other server may know the room.
    pub(super) fn upto(&self) -> Moment {
        match self {
            Self::Members | Self::WeLeft(_) => Moment::NOW,
            Self::TheyLeft(departure) => departure.moment,
        }
    }

    /// The room's heads as the other server may know them.
    pub(super) fn heads(&self, txn: &ReadTxn<'_>, room: &RoomId) -> Result<Heads, Error> {
        let Self::TheyLeft(departure) = self else {
            return Ok(Heads::new(txn.forward_extremities(room)?, txn.head_depth(room)?));
        };
        let mut depth = 0;
        for head in &departure.heads {
            depth = depth.max(txn.event(head)?.map_or(0, |held| held.pdu.depth()));
        }
        Ok(Heads::new(departure.heads.clone(), depth))
    }

    /// Those of some events that the other server may know of: they are among the heads that it may know, or come before them.
    /// What lies further back than a walk over [`MAX_WALKED`] events reaches is left out.
    pub(super) fn known_of(
        &self,
        txn: &ReadTxn<'_>,
        room: &RoomId,
        events: &BTreeSet<OwnedEventId>,
    ) -> Result<BTreeSet<OwnedEventId>, Error> {
        let mut known = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open = BTreeMap::new();
        let mut next = self.heads(txn, room)?.events;
        while seen.len() < MAX_WALKED && known.len() < events.len() {
            for id in next.drain(..) {
                if seen.insert(id.clone())
                    && let Some(held) = txn.event(&id)?
                {
                    open.insert((held.pdu.depth(), id), held.pdu.prev_events().to_vec());
                }
            }
            let Some(((_, id), before)) = open.pop_last() else {
                break;
            };
            next = before;
            if events.contains(&id) {
                known.insert(id);
            }
        }
        Ok(known)
    }
}
