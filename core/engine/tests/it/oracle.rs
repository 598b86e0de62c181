//! The engine's resolution against ruma's fed in the plainest way: whole auth chains, every path walked.
//!
//! The engine leaves out what cannot matter and starts from what it has resolved before. Neither may show.

use std::collections::{BTreeSet, HashMap};

use kith_engine::{CheckedPdu, Outcome, RoomReader, StateMap, StoredPdu, testing::MemoryRooms};
use proptest::{collection::vec, prelude::*};
use ruma::{OwnedEventId, RoomVersionId, state_res};

use crate::convergence::{random_room, step, versions};

/// Every event that these rest upon, walked one by one.
fn chain(rooms: &MemoryRooms, of: &OwnedEventId, into: &mut BTreeSet<OwnedEventId>) {
    for auth in rooms.event(of).unwrap().unwrap().pdu.auth_events() {
        if into.insert(auth.clone()) {
            chain(rooms, auth, into);
        }
    }
}

/// Every event on a path from one of these to another, each path walked.
fn paths(
    rooms: &MemoryRooms,
    ends: &BTreeSet<OwnedEventId>,
    path: &mut Vec<OwnedEventId>,
    found: &mut BTreeSet<OwnedEventId>,
) {
    let last = path.last().unwrap().clone();
    if path.len() > 1 && ends.contains(&last) {
        found.extend(path.iter().cloned());
    }
    for auth in rooms.event(&last).unwrap().unwrap().pdu.auth_events() {
        path.push(auth.clone());
        paths(rooms, ends, path, found);
        path.pop();
    }
}

fn resolved(rooms: &MemoryRooms, version: &RoomVersionId, states: &[StateMap]) -> StateMap {
    let rules = version.rules().unwrap();
    let maps: Vec<HashMap<_, _>> = states.iter().map(|state| state.clone().into_iter().collect()).collect();
    let chains = states.iter().map(|state| {
        let mut full = BTreeSet::new();
        for event in state.values() {
            chain(rooms, event, &mut full);
        }
        full.into_iter().collect()
    });
    let fetch = |id: &ruma::EventId| -> Option<StoredPdu> { rooms.event(id).unwrap() };
    let resolved = state_res::resolve(
        &rules.authorization,
        rules.state_res.v2_rules().unwrap(),
        &maps,
        chains.collect(),
        fetch,
        |conflicted| {
            let ends: BTreeSet<OwnedEventId> = conflicted.values().flatten().cloned().collect();
            let mut found = BTreeSet::new();
            for end in &ends {
                paths(rooms, &ends, &mut vec![end.clone()], &mut found);
            }
            Some(found.into_iter().collect())
        },
    );
    resolved.unwrap().into_iter().collect()
}

fn states_after(rooms: &MemoryRooms, events: &[OwnedEventId]) -> Vec<StateMap> {
    let mut states: Vec<StateMap> = events
        .iter()
        .map(|id| (*rooms.full_state(rooms.state_after(id).unwrap().unwrap()).unwrap()).clone())
        .collect();
    states.sort();
    states.dedup();
    states
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_is_what_the_plain_algorithm_makes_of_it(
        version in versions(),
        steps in vec(step(), 1..24),
        order in vec(any::<u32>(), 40),
    ) {
        let events = random_room(&version, &steps);
        let room = events[0].room_id().to_owned();
        let mut ranked: Vec<(u32, &CheckedPdu)> = order.iter().cycle().copied().zip(&events[1..]).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut waiting: Vec<&CheckedPdu> = ranked.into_iter().map(|(_, event)| event).collect();
        let mut rooms = MemoryRooms::default();
        rooms.accept(&events[0]);
        while !waiting.is_empty() {
            let mut still = Vec::new();
            for event in waiting {
                let Outcome::Applied(applied) = rooms.receive(event).unwrap() else {
                    still.push(event);
                    continue;
                };
                let before = states_after(&rooms, event.pdu().prev_events());
                let expected = resolved(&rooms, &version, &before);
                prop_assert_eq!(rooms.state_before_event(applied.event_id()).unwrap(), expected);
                let tips = rooms.forward_extremities(&room).unwrap();
                let expected = resolved(&rooms, &version, &states_after(&rooms, &tips));
                prop_assert_eq!(rooms.state_of(&room), expected);
            }
            waiting = still;
        }
    }
}
