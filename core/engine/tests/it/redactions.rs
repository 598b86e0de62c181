//! Redactions: which take hold, when, and which are never shown.

use kith_engine::{BuildError, Draft, EventStatus, ExtremityChange, Redaction, testing::at};
use ruma::{OwnedEventId, RoomVersionId};
use serde_json::json;

use crate::scene::{Scene, user_id};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

fn draft(name: &str, target: &OwnedEventId) -> Draft {
    Draft::redaction(user_id(name), target.clone(), Some("spam".to_owned()))
}

#[test]
fn own_events_and_with_power_all_events_can_be_redacted() {
    for version in VERSIONS {
        let mut scene = Scene::public(version.clone(), &["bob", "charlie"]);
        let room = scene.room.clone();
        let rules = version.rules().unwrap().redaction;
        let said = scene.say("bob", "m.room.message", None, json!({"body": "spam"}));
        let charlies = draft("charlie", &said);
        let servers = std::mem::take(&mut scene.servers);
        let refused = scene.rooms.send(&servers[2], &room, &charlies, at(5_000));
        assert!(matches!(refused, Err(BuildError::Forbidden(_))), "{refused:?}");
        let unknown = draft("bob", &"$nothing".try_into().unwrap());
        let refused = scene.rooms.send(&servers[1], &room, &unknown, at(5_000));
        assert!(matches!(refused, Err(BuildError::UnknownTarget(_))));
        for (server, name) in [(1, "bob"), (0, "alice")] {
            let checked = kith_engine::build_event(
                &scene.rooms,
                &room,
                &draft(name, &said),
                servers[server].signer(),
                at(5_000),
            );
            let checked = checked.unwrap();
            assert_eq!(checked.pdu().redacts(&rules), Some(said.clone()));
            let applied = scene.rooms.accept(&checked);
            let by = checked.event_id().to_owned();
            assert_eq!(
                applied.redactions,
                [Redaction {
                    target: said.clone(),
                    by
                }]
            );
            assert!(applied.is_shown());
        }
        let pdu = scene
            .events
            .iter()
            .find(|event| event.event_id() == said)
            .unwrap()
            .pdu();
        let redacted = pdu.redacted(&rules).unwrap();
        assert_eq!((redacted.content_json(), redacted.event_id()), ("{}", pdu.event_id()));
    }
}

/// The rules let these pass, and they take part in the graph; nobody is shown them.
#[test]
fn redactions_that_do_not_apply_are_withheld() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob", "charlie"]);
        let said = scene.say("bob", "m.room.message", None, json!({"body": "mine"}));
        let redaction = scene.rooms.build_on(
            scene.server("charlie"),
            &scene.room,
            std::slice::from_ref(&said),
            &draft("charlie", &said),
            at(6_000),
        );
        let applied = scene.rooms.accept(&redaction);
        assert_eq!(applied.status, EventStatus::Accepted);
        assert!(applied.withheld && !applied.is_shown());
        assert_eq!(applied.redactions, []);
        let change = ExtremityChange {
            gone: vec![said],
            added: true,
        };
        assert_eq!(applied.forward_extremities, Some(change));
    }
}

#[test]
fn a_redaction_may_come_before_what_it_redacts() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob", "charlie"]);
        let base = scene.last();
        let message = scene.craft(&[&base], "bob", "m.room.message", None, json!({"body": "spam"}));
        let said = message.event_id().to_owned();
        for (name, takes_hold) in [("alice", true), ("bob", true), ("charlie", false)] {
            let mut rooms = scene.rooms.clone();
            let redaction = rooms.build_on(
                scene.server(name),
                &scene.room,
                std::slice::from_ref(&base),
                &draft(name, &said),
                at(6_000),
            );
            let applied = rooms.accept(&redaction);
            assert!(applied.withheld);
            let applied = rooms.accept(&message);
            assert_eq!(applied.redactions.len(), usize::from(takes_hold));
            assert_eq!(rooms.redacted_by(&said), takes_hold.then_some(redaction.event_id()));
        }
    }
}
