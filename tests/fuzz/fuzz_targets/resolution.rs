//! Arbitrary states of arbitrary rooms: their resolution does not depend on their order, keeps what all agree on, and holds
//! nothing that was rejected.
#![no_main]

use kith_engine::{NewState, RoomReader, StateId, StateMap, resolve};
use kith_fuzz::Graph;
use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut graph = Graph::new(u)?;
    let states = (0..u.int_in_range(1..=4)?).count();
    // What is left decides on the states, after the room has grown from its part.
    let part = u.len() * 3 / 4;
    graph.grow(&mut Unstructured::new(u.bytes(part)?))?;
    let mut maps: Vec<StateMap> = Vec::new();
    for _ in 0..states {
        maps.push(graph.any_state(u)?);
    }
    let ids: Vec<StateId> = maps.iter().map(|map| graph.rooms.add_state(map.clone())).collect();
    let Some(one) = resolved(&graph, &ids) else {
        return Ok(());
    };
    graph.check_state(&one);
    let reversed: Vec<StateId> = ids.iter().rev().copied().collect();
    assert_eq!(resolved(&graph, &reversed).as_ref(), Some(&one));
    let twice = [&ids[..], &reversed[..]].concat();
    assert_eq!(resolved(&graph, &twice).as_ref(), Some(&one));
    for (key, id) in &maps[0] {
        if maps.iter().all(|map| map.get(key) == Some(id)) {
            assert_eq!(one.get(key), Some(id), "all agree on {key:?}");
        }
    }
    Ok(())
}

fn resolved(graph: &Graph, ids: &[StateId]) -> Option<StateMap> {
    Some(match resolve(&graph.rooms, &graph.version, ids).ok()? {
        NewState::Same(id) => whole(graph, id),
        NewState::Delta { base, set } => {
            let mut state = whole(graph, base);
            state.extend(set);
            state
        }
        NewState::Full(state) => state,
    })
}

fn whole(graph: &Graph, id: StateId) -> StateMap {
    let Ok(state) = graph.rooms.full_state(id);
    (*state).clone()
}

fuzz_target!(|bytes: &[u8]| {
    // A fuzzer that runs out of bytes has said enough.
    let _ = run(&mut Unstructured::new(bytes));
});
