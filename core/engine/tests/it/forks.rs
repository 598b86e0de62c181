//! Forks by the thousand: a member that makes them on purpose costs little, and hides nothing that others say.

use kith_engine::{
    CheckedPdu, JOINS_HEADS, RoomReader,
    limits::{MAX_EXTREMITIES, MAX_PREV_EVENTS},
    testing::MemoryRooms,
};
use ruma::{OwnedEventId, RoomVersionId, events::StateEventType};
use serde_json::json;

use crate::scene::{Scene, user};

const FORKS: u32 = 1_000;

/// Bob says in a thousand events, each made as if none of the others were, that he has another name.
fn forked(version: RoomVersionId) -> (Scene, Vec<CheckedPdu>) {
    let scene = Scene::public(version, &["bob", "charlie"]);
    let base = scene.last();
    let fork = |number: u32| {
        let content = json!({"membership": "join", "displayname": number.to_string()});
        scene.craft_at(
            5_000 + number,
            &[&base],
            "bob",
            "m.room.member",
            Some(&user("bob")),
            content,
        )
    };
    let forks = (0..FORKS).map(fork).collect();
    (scene, forks)
}

fn heads(rooms: &MemoryRooms, scene: &Scene) -> usize {
    rooms.forward_extremities(&scene.room).unwrap().len()
}

#[test]
fn a_thousand_forks_cost_little_in_any_order() {
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let (scene, mut forks) = forked(version);
        let mut states = Vec::new();
        for _ in 0..2 {
            let mut rooms = scene.rooms.clone();
            rooms.take_reads();
            for fork in &forks {
                rooms.accept(fork);
            }
            // Each resolution reads as many states as it resolves: of each fork against all others it would be 500,000.
            let reads = rooms.take_reads().states;
            assert!(reads < 2_500, "{reads} states read");
            assert_eq!(heads(&rooms, &scene), forks.len());
            states.push(rooms.state_of(&scene.room));
            forks.reverse();
        }
        assert_eq!(states[0], states[1]);
    }
}

#[test]
fn what_others_say_counts_at_once_beside_a_thousand_forks() {
    let (mut scene, forks) = forked(RoomVersionId::V12);
    let base = scene.last();
    for fork in &forks {
        scene.rooms.accept(fork);
    }
    // One who has not seen the forks, and one who has.
    let calm = scene.craft(&[&base], "alice", "m.room.topic", Some(""), json!({"topic": "calm"}));
    scene.rooms.accept(&calm);
    let topic = (StateEventType::RoomTopic, String::new());
    assert_eq!(scene.state().get(&topic).map(|id| &**id), Some(calm.event_id()));
    scene.say("alice", "m.room.name", Some(""), json!({"name": "still ours"}));
    assert_eq!(scene.content("m.room.name", ""), Some(json!({"name": "still ours"})));
    assert_eq!(scene.state().get(&topic).map(|id| &**id), Some(calm.event_id()));
    scene.say(
        "alice",
        "m.room.member",
        Some(&user("bob")),
        json!({"membership": "ban"}),
    );
    assert_eq!(
        scene.content("m.room.member", &user("bob")),
        Some(json!({"membership": "ban"}))
    );
    scene.try_say("bob", "m.room.message", None, json!({})).unwrap_err();
}

#[test]
fn forks_are_joined_twenty_at_a_time() {
    let (mut scene, forks) = forked(RoomVersionId::V12);
    for fork in &forks {
        scene.rooms.accept(fork);
    }
    let mut joins: Vec<OwnedEventId> = Vec::new();
    scene.rooms.take_reads();
    while heads(&scene.rooms, &scene) > MAX_EXTREMITIES {
        let before = heads(&scene.rooms, &scene);
        let join = scene.say("charlie", JOINS_HEADS, None, json!({}));
        assert!(scene.events.last().unwrap().pdu().prev_events().len() <= MAX_PREV_EVENTS);
        assert!(heads(&scene.rooms, &scene) + MAX_PREV_EVENTS / 2 < before);
        joins.push(join);
        assert!(joins.len() < 2 * forks.len() / MAX_PREV_EVENTS);
    }
    let reads = scene.rooms.take_reads().states;
    assert!(reads < 5 * forks.len(), "{reads} states read");
    // All that is left is the state of the one who joined them.
    let last = joins.last().unwrap();
    assert!(scene.rooms.forward_extremities(&scene.room).unwrap().contains(last));
}
