//! State resolution over what the store holds: ruma's algorithm, with the events it asks for. It never changes a state.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, RoomVersionId,
    room_version_rules::RoomVersionRules,
    state_res::{self, StateMap as RumaStateMap, utils::event_id_set::EventIdSet},
};

use crate::{EventStatus, NewState, RoomError, RoomReader, StateId, StateMap, StoredPdu, pdu::rules};

/// One of the states to resolve.
#[derive(Debug, Clone)]
pub(crate) struct Fork {
    /// Its id, if the store has it.
    pub(crate) id: Option<StateId>,
    /// Its entries.
    pub(crate) entries: Arc<StateMap>,
}

impl Fork {
    /// A state that the store has.
    pub(crate) fn stored<R: RoomReader>(reader: &R, id: StateId) -> Result<Self, R::Error> {
        Ok(Self {
            id: Some(id),
            entries: reader.full_state(id)?,
        })
    }
}

/// Resolves states that the store holds into one.
///
/// Room version 2 and 12, "State resolution". Equal states cost nothing; unequal ones cost their size.
pub fn resolve<R: RoomReader>(
    reader: &R,
    version: &RoomVersionId,
    states: &[StateId],
) -> Result<NewState, RoomError<R::Error>> {
    let unique: BTreeSet<StateId> = states.iter().copied().collect();
    if let (1, Some(only)) = (unique.len(), unique.first()) {
        return Ok(NewState::Same(*only));
    }
    let forks = unique
        .into_iter()
        .map(|id| Fork::stored(reader, id))
        .collect::<Result<Vec<_>, _>>()?;
    resolve_forks(reader, &rules(version).map_err(RoomError::Pdu)?, &forks, None)
}

/// [`resolve`] for states of which some are not stored yet, and which may hold one event that is not stored either.
pub(crate) fn resolve_forks<R: RoomReader>(
    reader: &R,
    rules: &RoomVersionRules,
    forks: &[Fork],
    new_event: Option<StoredPdu>,
) -> Result<NewState, RoomError<R::Error>> {
    let conflicts = Conflicts::of(forks);
    let resolved = if conflicts.keys.is_empty() {
        forks.first().map(|fork| (*fork.entries).clone()).unwrap_or_default()
    } else {
        run(&EventCache::new(reader, new_event), rules, forks, &conflicts)?
    };
    Ok(as_new_state(resolved, forks))
}

/// What the states disagree about.
struct Conflicts {
    /// For each fork, the events that it has under keys on which the forks differ.
    events: Vec<BTreeSet<OwnedEventId>>,
    /// Those keys.
    keys: BTreeSet<crate::StateKey>,
}

impl Conflicts {
    fn of(forks: &[Fork]) -> Self {
        let mut keys = BTreeSet::new();
        if let Some((first, others)) = forks.split_first() {
            for other in others {
                for (key, event) in first.entries.iter() {
                    if other.entries.get(key) != Some(event) {
                        keys.insert(key.clone());
                    }
                }
                keys.extend(
                    other
                        .entries
                        .keys()
                        .filter(|key| !first.entries.contains_key(*key))
                        .cloned(),
                );
            }
        }
        let events = forks
            .iter()
            .map(|fork| keys.iter().filter_map(|key| fork.entries.get(key).cloned()).collect())
            .collect();
        Self { events, keys }
    }
}

fn run<R: RoomReader>(
    events: &EventCache<'_, R>,
    rules: &RoomVersionRules,
    forks: &[Fork],
    conflicts: &Conflicts,
) -> Result<StateMap, RoomError<R::Error>> {
    let maps: Vec<RumaStateMap<OwnedEventId>> = forks
        .iter()
        .map(|fork| fork.entries.iter().map(|(key, id)| (key.clone(), id.clone())).collect())
        .collect();
    let chains = auth_chains(events, forks, conflicts)?;
    let Some(v2_rules) = rules.state_res.v2_rules() else {
        return Err(RoomError::Resolution(
            state_res::Error::FetchConflictedStateSubgraphFailed,
        ));
    };
    let resolved = state_res::resolve(
        &rules.authorization,
        v2_rules,
        &maps,
        chains,
        |id| events.fetch(id),
        |conflicted| conflicted_subgraph(events, conflicted.values().flatten()),
    );
    events.finish()?;
    Ok(resolved.map_err(RoomError::Resolution)?.into_iter().collect())
}

/// The auth chains of the forks, as far as they tell them apart.
///
/// The algorithm looks only for events that are in some chains and not in all. What an undisputed entry rests upon is
/// in all of them, so it is taken out of all instead of being added to all; and if the disputed entries' chains are
/// equal, the undisputed ones, which in a large room are nearly everything, are not walked at all.
fn auth_chains<R: RoomReader>(
    events: &EventCache<'_, R>,
    forks: &[Fork],
    conflicts: &Conflicts,
) -> Result<Vec<EventIdSet<OwnedEventId>>, RoomError<R::Error>> {
    let mut chains = Vec::with_capacity(forks.len());
    for disputed in &conflicts.events {
        chains.push(events.auth_chain(disputed)?);
    }
    if chains.windows(2).any(|pair| pair[0] != pair[1])
        && let Some(fork) = forks.first()
    {
        let undisputed: Vec<OwnedEventId> = fork
            .entries
            .iter()
            .filter(|(key, _)| !conflicts.keys.contains(*key))
            .map(|(_, id)| id.clone())
            .collect();
        let common = events.reader.auth_chain(&undisputed)?;
        for chain in &mut chains {
            chain.retain(|id| !common.contains(id));
        }
    }
    events.drop_refused(&mut chains);
    Ok(chains.into_iter().map(|chain| chain.into_iter().collect()).collect())
}

/// Every event on a path of `auth_events` from one disputed event to another, both included.
///
/// Room version 12, "State resolution", "Conflicted state subgraph". None if an event on the way is not held.
fn conflicted_subgraph<'a, R: RoomReader>(
    events: &EventCache<'_, R>,
    conflicted: impl Iterator<Item = &'a OwnedEventId>,
) -> Option<EventIdSet<OwnedEventId>> {
    let conflicted: HashSet<&OwnedEventId> = conflicted.collect();
    // For each event reached from a disputed one: whether a disputed one is reached from it. Auth events come before
    // those they authorise, and cycles are impossible because an id is a hash over the ids it names, so a walk that
    // settles an event after its auth events visits each once.
    let mut leads: HashMap<OwnedEventId, bool> = HashMap::new();
    let mut open: Vec<(OwnedEventId, bool)> = conflicted.iter().map(|id| ((*id).clone(), false)).collect();
    while let Some((id, auth_settled)) = open.pop() {
        if leads.contains_key(&id) {
            continue;
        }
        let event = events.fetch(&id)?;
        if auth_settled {
            let leads_on = event
                .pdu
                .auth_events()
                .iter()
                .any(|auth| conflicted.contains(auth) || leads.get(auth).copied().unwrap_or(false));
            leads.insert(id, leads_on);
        } else {
            open.push((id, true));
            let auth = event.pdu.auth_events().iter();
            open.extend(
                auth.filter(|auth| !leads.contains_key(*auth))
                    .map(|auth| (auth.clone(), false)),
            );
        }
    }
    let mut subgraph: EventIdSet<OwnedEventId> = leads
        .iter()
        .filter(|(id, leads_on)| **leads_on && !events.is_refused(id))
        .map(|(id, _)| id.clone())
        .collect();
    // The far ends of the paths; one that nothing disputed leads to changes nothing, being disputed anyway.
    subgraph.extend(conflicted.into_iter().cloned());
    Some(subgraph)
}

/// The result as the smallest difference to one of the states it came from.
fn as_new_state(resolved: StateMap, forks: &[Fork]) -> NewState {
    let mut best: Option<(StateId, StateMap)> = None;
    for fork in forks {
        let Some(id) = fork.id else { continue };
        // A difference can set keys and not take any away.
        if fork.entries.keys().any(|key| !resolved.contains_key(key)) {
            continue;
        }
        let set: StateMap = resolved
            .iter()
            .filter(|(key, event)| fork.entries.get(*key) != Some(*event))
            .map(|(key, event)| (key.clone(), event.clone()))
            .collect();
        if set.is_empty() {
            return NewState::Same(id);
        }
        if best.as_ref().is_none_or(|(_, least)| set.len() < least.len()) {
            best = Some((id, set));
        }
    }
    match best {
        Some((base, set)) => NewState::Delta { base, set },
        None => NewState::Full(resolved),
    }
}

/// Events read once for one resolution, which asks for each some thirty times.
struct EventCache<'a, R: RoomReader> {
    reader: &'a R,
    /// The event being received, which the store does not have yet.
    new_event: Option<StoredPdu>,
    events: RefCell<BTreeMap<OwnedEventId, Option<StoredPdu>>>,
    failure: RefCell<Option<R::Error>>,
}

impl<'a, R: RoomReader> EventCache<'a, R> {
    fn new(reader: &'a R, new_event: Option<StoredPdu>) -> Self {
        let events = new_event
            .iter()
            .map(|new| (new.pdu.event_id().to_owned(), Some(new.clone())));
        Self {
            reader,
            events: RefCell::new(events.collect()),
            new_event,
            failure: RefCell::new(None),
        }
    }

    fn fetch(&self, id: &EventId) -> Option<StoredPdu> {
        if let Some(known) = self.events.borrow().get(id) {
            return known.clone();
        }
        let event = match self.reader.event(id) {
            Ok(event) => event,
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
                None
            }
        };
        self.events.borrow_mut().insert(id.to_owned(), event.clone());
        event
    }

    fn auth_chain(&self, of: &BTreeSet<OwnedEventId>) -> Result<BTreeSet<OwnedEventId>, R::Error> {
        let mut stored: Vec<OwnedEventId> = of.iter().cloned().collect();
        let mut named = &[][..];
        if let Some(new) = &self.new_event
            && of.contains(new.pdu.event_id())
        {
            named = new.pdu.auth_events();
            stored.retain(|id| id != new.pdu.event_id());
            stored.extend(named.iter().cloned());
        }
        let mut chain = self.reader.auth_chain(&stored)?;
        chain.extend(named.iter().cloned());
        Ok(chain)
    }

    fn is_refused(&self, id: &EventId) -> bool {
        self.fetch(id)
            .is_some_and(|event| event.status == EventStatus::Rejected)
    }

    /// Takes events that were rejected out of what tells these chains apart. None that is accepted rests upon one, unless that
    /// was believed once; and then the rules alone would not keep it out of the resolved state.
    fn drop_refused(&self, chains: &mut [BTreeSet<OwnedEventId>]) {
        let Some((first, others)) = chains.split_first() else {
            return;
        };
        let mut differing: BTreeSet<OwnedEventId> = BTreeSet::new();
        for other in others {
            differing.extend(first.symmetric_difference(other).cloned());
        }
        differing.retain(|id| self.is_refused(id));
        for chain in chains.iter_mut().filter(|_| !differing.is_empty()) {
            chain.retain(|id| !differing.contains(id));
        }
    }

    /// The first failed read, if any: its absence would have passed for a missing event.
    fn finish(&self) -> Result<(), R::Error> {
        match self.failure.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use ruma::api::client::room::create_room::v3::RoomPreset;
    use serde_json::json;

    use super::*;
    use crate::{
        CreateRoom, Draft,
        testing::{MemoryRooms, TestServer, at},
    };

    /// A topic that only one fork has rests upon power levels that everybody rests upon: that tells no forks apart.
    #[test]
    fn what_undisputed_entries_rest_upon_is_no_difference() {
        for version in crate::SUPPORTED_VERSIONS {
            let server = TestServer::new("alice.example");
            let (alice, bob) = (server.user("alice"), server.user("bob"));
            let mut rooms = MemoryRooms::default();
            let request = CreateRoom {
                version: version.clone(),
                preset: RoomPreset::PublicChat,
                ..CreateRoom::new(alice.clone())
            };
            let (room, _) = rooms.create(&server, &request);
            let join = Draft::state(
                bob.clone(),
                "m.room.member",
                bob.as_str(),
                json!({"membership": "join"}),
            )
            .unwrap();
            rooms.send(&server, &room, &join, at(1_000)).unwrap();
            let without = rooms.state_of(&room);
            let topic = Draft::state(alice.clone(), "m.room.topic", "", json!({"topic": "tea"})).unwrap();
            let topic = rooms.send(&server, &room, &topic, at(1_001)).unwrap();
            let with = rooms.state_of(&room);
            let forks = [without, with].map(|entries| Fork {
                id: None,
                entries: entries.into(),
            });
            let conflicts = Conflicts::of(&forks);
            assert_eq!(conflicts.events[1], BTreeSet::from([topic.event_id().to_owned()]));
            let chains = auth_chains(&EventCache::new(&rooms, None), &forks, &conflicts).unwrap();
            assert!(
                chains.iter().all(|chain| chain.iter().next().is_none()),
                "{version}: {chains:?}"
            );
        }
    }
}
