//! Gaps in a room's graph: leapt over with a state that another server tells, and filled later with history.

use kith_engine::{EventStatus, NewState, Outcome, RoomReader, receive, receive_history, testing::at};
use ruma::{OwnedEventId, RoomVersionId};
use serde_json::json;

use crate::scene::{Scene, user};

/// A gap too wide to fill: the state before the event is asked for instead.
#[test]
fn a_gap_can_be_leapt_with_a_state_that_another_server_tells() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let mut behind = scene.rooms.clone();
    let old_tip = scene.last();
    for i in 0..5 {
        scene.say("alice", "m.room.name", Some(""), json!({"name": i.to_string()}));
    }
    scene.say("bob", "m.room.message", None, json!({"body": "far ahead"}));
    let event = scene.events.last().unwrap().clone();
    let Outcome::Missing(missing) = receive(&behind, &event).unwrap() else {
        panic!()
    };
    assert_eq!(missing.prev.len(), 1);
    let told = scene.rooms.state_before_event(event.event_id()).unwrap();
    let ids: Vec<OwnedEventId> = told.values().cloned().collect();
    let outcome = kith_engine::receive_with_state(&behind, &event, &ids).unwrap();
    let Outcome::Missing(missing) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(missing.auth.len(), 1, "the last name");
    let name = scene
        .events
        .iter()
        .find(|event| event.event_id() == missing.auth[0])
        .unwrap();
    let outlier = kith_engine::receive_outlier(&behind, name).unwrap().applied().unwrap();
    assert!(outlier.outlier && !outlier.is_shown());
    behind.save(&outlier);
    let applied = kith_engine::receive_with_state(&behind, &event, &ids)
        .unwrap()
        .applied()
        .unwrap();
    assert_eq!(applied.status, EventStatus::Accepted);
    assert_eq!(applied.state_before, Some(NewState::Full(told)));
    behind.save(&applied);
    assert_eq!(
        behind.forward_extremities(&scene.room).unwrap(),
        [old_tip, event.event_id().to_owned()]
    );
    assert_eq!(behind.state_of(&scene.room), scene.state());
}

/// Who came in the gap is not soft-failed for not being there in the state before it; who was banned in the meantime is.
#[test]
fn what_is_leapt_to_must_be_allowed_by_both_ends() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let mut behind = scene.rooms.clone();
    scene.say(
        "charlie",
        "m.room.member",
        Some(&user("charlie")),
        json!({"membership": "join"}),
    );
    let charlies = scene.last();
    let told = |scene: &Scene| -> Vec<OwnedEventId> { scene.state().into_values().collect() };
    for (name, expected) in [("charlie", EventStatus::Accepted), ("bob", EventStatus::SoftFailed)] {
        scene.say("alice", "m.room.message", None, json!({"body": "missed"}));
        let state = told(&scene);
        scene.say(name, "m.room.message", None, json!({"body": "after the gap"}));
        let event = scene.events.last().unwrap().clone();
        if name == "charlie" {
            let joining = scene.events.iter().find(|event| event.event_id() == charlies).unwrap();
            let outlier = kith_engine::receive_outlier(&behind, joining)
                .unwrap()
                .applied()
                .unwrap();
            behind.save(&outlier);
        } else {
            let banned = scene.draft(
                "alice",
                "m.room.member",
                Some(&user("bob")),
                json!({"membership": "ban"}),
            );
            behind
                .send(scene.server("alice"), &scene.room, &banned, at(9_000))
                .unwrap();
        }
        let outcome = kith_engine::receive_with_state(&behind, &event, &state).unwrap();
        let applied = outcome.applied().unwrap();
        assert_eq!(applied.status, expected, "{name}: {:?}", applied.reason);
        behind.save(&applied);
    }
}

/// History that turns out to build upon a head takes its place, as anything new does, and gives it up to what was leapt to.
#[test]
fn history_between_a_head_and_what_was_leapt_to_joins_them() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let mut behind = scene.rooms.clone();
    let state: Vec<OwnedEventId> = scene.state().into_values().collect();
    for body in ["missed", "missed too", "leapt to"] {
        scene.say("bob", "m.room.message", None, json!({"body": body}));
    }
    let events = scene.events.split_off(scene.events.len() - 3);
    let leapt = kith_engine::receive_with_state(&behind, &events[2], &state).unwrap();
    behind.save(&leapt.applied().unwrap());
    assert_eq!(behind.forward_extremities(&scene.room).unwrap().len(), 2);
    for event in &events[..2] {
        let applied = receive_history(&behind, event, None).unwrap().applied().unwrap();
        assert_eq!((applied.status, applied.history), (EventStatus::Accepted, false));
        behind.save(&applied);
    }
    assert_eq!(behind.forward_extremities(&scene.room).unwrap(), [events[2].event_id()]);
}
