//! What of a room's state an answer tells beside the timeline, so that a client that had the state before has it after.
//!
//! Client-server API, "Syncing" and "Lazy-loading room members".

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{Pdu, RoomReader, StateId, StateKey};
use kith_store::{ReadTxn, Seq, TimelineEvent};
use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, UserId, events::StateEventType};

use crate::{
    Error,
    homeserver::timeline::{member_key, state_events},
};

/// The part of a room's past that an answer is about.
pub(super) struct Span<'t> {
    pub(super) txn: &'t ReadTxn<'t>,
    pub(super) room: &'t RoomId,
    /// Where the client's knowledge of the room ends, if it has any.
    pub(super) from: Option<Seq>,
    /// Whether the client needs the whole state, rather than what changed of it.
    pub(super) whole: bool,
    /// Where it will end.
    pub(super) upto: Seq,
    /// The state there.
    pub(super) state: StateId,
    /// Whether that is the room's current one, which the store finds faster.
    pub(super) is_current: bool,
    /// The events that the answer's timeline tells, oldest first.
    pub(super) timeline: &'t [TimelineEvent],
    /// Whether the client takes state from the state section alone (`use_state_after`), rather than from there and then
    /// from the timeline.
    pub(super) after: bool,
}

/// What changed of a state key over a span.
struct Change {
    before: Option<OwnedEventId>,
    after: Option<OwnedEventId>,
}

impl Span<'_> {
    /// The state to tell. `lazy`: members are left out of a whole state, as they are told only when they speak; but not
    /// those that changed, as the client may hold what they were.
    pub(super) fn events(&self, lazy: bool) -> Result<Vec<Pdu>, Error> {
        match self.from {
            Some(from) if !self.whole => self.changed(from, |_| true),
            Some(from) if lazy => {
                let mut events = self.whole(lazy)?;
                events.extend(self.changed(from, |kind| *kind == StateEventType::RoomMember)?);
                Ok(events)
            }
            _ => self.whole(lazy),
        }
    }

    /// Whether any key that the closure wants changed over the span; with a whole state to tell, all of them did.
    pub(super) fn touches(&self, wanted: impl Fn(&StateEventType) -> bool) -> Result<bool, Error> {
        let Some(from) = self.from.filter(|_| !self.whole) else {
            return Ok(true);
        };
        Ok(self.changes(from)?.keys().any(|key| wanted(&key.0)))
    }

    /// A user's membership event where the client will look for it when it shows the timeline.
    pub(super) fn member(&self, user: &UserId) -> Result<Option<OwnedEventId>, Error> {
        let key = member_key(user);
        let state = match self.timeline.first() {
            Some(first) if !self.after => first.state_before,
            _ => Some(self.state),
        };
        match state {
            Some(state) => Ok(self.txn.state_entry(state, &key)?),
            None => Ok(None),
        }
    }

    /// Users who sent events of the timeline.
    pub(super) fn senders(&self) -> BTreeSet<OwnedUserId> {
        self.timeline
            .iter()
            .map(|event| event.pdu.sender().to_owned())
            .collect()
    }

    fn whole(&self, lazy: bool) -> Result<Vec<Pdu>, Error> {
        let wanted = |kind: &StateEventType| !lazy || *kind != StateEventType::RoomMember;
        let events = match self.is_current {
            true => self.txn.current_state_events(self.room, wanted)?,
            false => state_events(self.txn, self.state, |kind, _| wanted(kind))?,
        };
        if self.after {
            return Ok(events);
        }
        let mut before = Vec::with_capacity(events.len());
        for pdu in events {
            if !self.tells(pdu.event_id()) {
                before.push(pdu);
            } else if let Some(key) = pdu.state_entry()
                && let Some(earlier) = self.entry_at_start(&key)?
            {
                before.extend(self.event(&earlier)?);
            }
        }
        Ok(before)
    }

    fn changed(&self, from: Seq, wanted: impl Fn(&StateEventType) -> bool) -> Result<Vec<Pdu>, Error> {
        let mut events = Vec::new();
        for (key, change) in self.changes(from)? {
            if !wanted(&key.0) {
                continue;
            }
            let Some(after) = change.after else {
                // Nothing stands there any more; there is no way to tell that.
                continue;
            };
            if self.after || !self.tells(&after) {
                events.extend(self.event(&after)?);
                continue;
            }
            // The timeline tells how it ended; what stood there when the timeline began may be news nevertheless.
            let earlier = self.entry_at_start(&key)?;
            if earlier != change.before
                && let Some(earlier) = earlier
            {
                events.extend(self.event(&earlier)?);
            }
        }
        Ok(events)
    }

    fn changes(&self, from: Seq) -> Result<BTreeMap<StateKey, Change>, Error> {
        let mut changes: BTreeMap<StateKey, Change> = BTreeMap::new();
        for step in self.txn.state_changes(self.room, from, self.upto)? {
            let (before, after) = (step.before, step.after);
            changes
                .entry(step.key)
                .and_modify(|change| change.after = after.clone())
                .or_insert(Change { before, after });
        }
        changes.retain(|_, change| change.before != change.after);
        Ok(changes)
    }

    /// What stood under a key where the timeline begins, unless the timeline itself tells it.
    fn entry_at_start(&self, key: &StateKey) -> Result<Option<OwnedEventId>, Error> {
        let Some(state) = self.timeline.first().and_then(|first| first.state_before) else {
            return Ok(None);
        };
        let entry = self.txn.state_entry(state, key)?;
        Ok(entry.filter(|id| !self.tells(id)))
    }

    fn tells(&self, id: &EventId) -> bool {
        self.timeline.iter().any(|event| event.pdu.event_id() == id)
    }

    fn event(&self, id: &EventId) -> Result<Option<Pdu>, Error> {
        Ok(self.txn.event(id)?.map(|stored| stored.pdu))
    }
}
