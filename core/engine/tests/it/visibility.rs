//! Who may read what was said when.

use kith_engine::{Viewer, visible_to};
use ruma::{RoomVersionId, ServerName, api::client::room::create_room::v3::RoomPreset};
use serde_json::json;

use crate::scene::{Scene, user, user_id};

/// Alice speaks before Bob is invited, while he is, while he is in, and after he has left.
fn told(visibility: &str) -> (Scene, [usize; 4]) {
    let mut scene = Scene::new(RoomVersionId::V12, RoomPreset::PrivateChat);
    scene.say(
        "alice",
        "m.room.history_visibility",
        Some(""),
        json!({"history_visibility": visibility}),
    );
    let mut said = Vec::new();
    for membership in [
        None,
        Some(("alice", "invite")),
        Some(("bob", "join")),
        Some(("bob", "leave")),
    ] {
        if let Some((who, membership)) = membership {
            scene.say(
                who,
                "m.room.member",
                Some(&user("bob")),
                json!({"membership": membership}),
            );
        }
        scene.say("alice", "m.room.message", None, json!({"body": "now"}));
        said.push(scene.events.len() - 1);
    }
    let said = said.try_into().unwrap();
    (scene, said)
}

#[test]
fn users_read_what_the_visibility_at_the_event_says() {
    for (visibility, expected) in [
        ("world_readable", [true, true, true, true]),
        ("shared", [true, true, true, false]),
        ("invited", [false, true, true, false]),
        ("joined", [false, false, true, false]),
        ("org.example.unheard_of", [true, true, true, false]),
    ] {
        let (scene, said) = told(visibility);
        let seen = said
            .map(|index| visible_to(&scene.rooms, Viewer::User(&user_id("bob")), scene.events[index].pdu()).unwrap());
        assert_eq!(seen, expected, "{visibility}");
        let alice = Viewer::User(&user_id("alice"));
        let stranger = Viewer::User(&user_id("zara"));
        for index in said {
            assert!(visible_to(&scene.rooms, alice, scene.events[index].pdu()).unwrap());
            let seen = visible_to(&scene.rooms, stranger, scene.events[index].pdu()).unwrap();
            assert_eq!(seen, visibility == "world_readable");
        }
    }
}

#[test]
fn servers_read_what_some_user_of_theirs_may() {
    for (visibility, expected) in [
        ("world_readable", [true, true, true, true]),
        ("shared", [true, true, true, true]),
        ("invited", [false, true, true, false]),
        ("joined", [false, false, true, false]),
    ] {
        let (scene, said) = told(visibility);
        let bob = ServerName::parse("bob.example").unwrap();
        let seen = said.map(|index| visible_to(&scene.rooms, Viewer::Server(&bob), scene.events[index].pdu()).unwrap());
        assert_eq!(seen, expected, "{visibility}");
    }
}

#[test]
fn ones_own_leaving_can_be_read() {
    let (scene, _) = told("joined");
    let leave = scene
        .events
        .iter()
        .rev()
        .find(|event| event.pdu().state_key() == Some(&user("bob")))
        .unwrap();
    assert!(visible_to(&scene.rooms, Viewer::User(&user_id("bob")), leave.pdu()).unwrap());
    let bob = ServerName::parse("bob.example").unwrap();
    assert!(visible_to(&scene.rooms, Viewer::Server(&bob), leave.pdu()).unwrap());
}
