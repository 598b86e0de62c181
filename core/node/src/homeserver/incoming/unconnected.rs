//! Events that were fetched but not yet connected with what is held. It keeps them in memory, within bounds, and fetches
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use kith_engine::{CheckedPdu, limits::MAX_UNCONNECTED, oldest_first};
use ruma::OwnedEventId;

/// Fetched events by id; at the most [`MAX_UNCONNECTED`].
#[derive(Default)]
pub(super) struct Unconnected(BTreeMap<OwnedEventId, CheckedPdu>);

impl Unconnected {
    /// Adds events, as far as there is room; returns how many of them are new.
    pub(super) fn add(&mut self, events: Vec<CheckedPdu>) -> usize {
        let before = self.0.len();
        for event in events {
            if self.0.len() < MAX_UNCONNECTED || self.0.contains_key(event.event_id()) {
                self.0.insert(event.event_id().to_owned(), event);
            }
        }
        self.0.len() - before
    }

    pub(super) fn remove(&mut self, id: &OwnedEventId) -> Option<CheckedPdu> {
        self.0.remove(id)
    }

    pub(super) fn contains(&self, id: &OwnedEventId) -> bool {
        self.0.contains_key(id)
    }

    /// The events that are named as coming before these and are not among them, each with those that name it.
    pub(super) fn named(&self) -> BTreeMap<OwnedEventId, Vec<OwnedEventId>> {
        let mut named: BTreeMap<OwnedEventId, Vec<OwnedEventId>> = BTreeMap::new();
        for (id, event) in &self.0 {
            for prev in event.pdu().prev_events().iter().filter(|prev| !self.contains(prev)) {
                named.entry(prev.clone()).or_default().push(id.clone());
            }
        }
        named
    }

    /// All of them, oldest first.
    pub(super) fn oldest_first(&self) -> Vec<CheckedPdu> {
        oldest_first(self.vouched_for_by(self.0.values()))
    }

    /// [`Unconnected::oldest_first`], where another event vouches for those that it builds upon.
    pub(super) fn oldest_first_before(&self, event: &CheckedPdu) -> Vec<CheckedPdu> {
        oldest_first(self.vouched_for_by([event]))
    }

    /// The events. Those that an event under a good key builds upon, directly or through others, it vouches for,
    /// whatever became of their author's key since; others that came along with them, nobody does.
    fn vouched_for_by<'a>(&self, events: impl IntoIterator<Item = &'a CheckedPdu>) -> Vec<CheckedPdu> {
        let mut vouched = BTreeSet::new();
        let good = events.into_iter().filter(|event| !event.revoked_key());
        let mut open: Vec<&OwnedEventId> = good.flat_map(|event| event.pdu().prev_events()).collect();
        while let Some(id) = open.pop() {
            if let Some((id, earlier)) = self.0.get_key_value(id)
                && vouched.insert(id)
            {
                open.extend(earlier.pdu().prev_events());
            }
        }
        let events = self.0.iter().map(|(id, earlier)| match vouched.contains(id) {
            true => earlier.clone().vouched_for(),
            false => earlier.clone(),
        });
        events.collect()
    }
}

/// Those of some events that are among others or named, directly or through each other, by them. An event's name is the hash of
/// what it is and names: nothing else than these can have been there.
pub(super) fn named_from(starts: &[OwnedEventId], told: Vec<CheckedPdu>) -> Vec<CheckedPdu> {
    let mut told: BTreeMap<OwnedEventId, CheckedPdu> = told
        .into_iter()
        .map(|event| (event.event_id().to_owned(), event))
        .collect();
    let mut open = starts.to_vec();
    let mut named = Vec::with_capacity(told.len());
    while let Some(id) = open.pop() {
        if let Some(event) = told.remove(&id) {
            open.extend(event.pdu().prev_events().iter().cloned());
            named.push(event);
        }
    }
    named
}
