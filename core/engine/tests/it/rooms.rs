//! Rooms from their creation on: presets, power, forward extremities, soft failure, and what an event costs.

use kith_engine::{
    BuildError, CreateRoom, CreateRoomError, CurrentState, EventStatus, ExtremityChange, NewState, RoomReader,
    RoomView, create_room, receive_with_state,
    testing::{MemoryRooms, TestServer, at},
};
use ruma::{
    CanonicalJsonObject, OwnedEventId, RoomVersionId,
    api::client::room::create_room::v3::RoomPreset,
    canonical_json::try_from_json_map,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::{Value, json};

use crate::scene::{Scene, user, user_id};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

fn object(value: Value) -> CanonicalJsonObject {
    let Value::Object(map) = value else { panic!("{value}") };
    try_from_json_map(map).unwrap()
}

fn created(request: &CreateRoom) -> (MemoryRooms, Vec<(String, Value)>) {
    let mut rooms = MemoryRooms::default();
    let (_, events) = rooms.create(&TestServer::new("alice.example"), request);
    let events = events
        .iter()
        .map(|event| (event.pdu().kind().to_string(), event.pdu().content_as().unwrap()));
    let events = events.collect();
    (rooms, events)
}

#[test]
fn presets_make_what_the_specification_says() {
    for version in VERSIONS {
        for (preset, join_rule, guest_access) in [
            (RoomPreset::PrivateChat, "invite", "can_join"),
            (RoomPreset::TrustedPrivateChat, "invite", "can_join"),
            (RoomPreset::PublicChat, "public", "forbidden"),
        ] {
            let request = CreateRoom {
                version: version.clone(),
                preset,
                invite: vec![user_id("bob"), user_id("alice"), user_id("bob")],
                name: Some("Tea".to_owned()),
                topic: Some("Cups".to_owned()),
                is_direct: true,
                ..CreateRoom::new(user_id("alice"))
            };
            let (_, events) = created(&request);
            let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
            assert_eq!(
                kinds,
                [
                    "m.room.create",
                    "m.room.member",
                    "m.room.power_levels",
                    "m.room.join_rules",
                    "m.room.history_visibility",
                    "m.room.guest_access",
                    "m.room.name",
                    "m.room.topic",
                    "m.room.member",
                ]
            );
            let content = |index: usize| &events[index].1;
            assert_eq!(content(0)["room_version"], version.as_str());
            assert_eq!(content(0).get("creator").is_some(), version == RoomVersionId::V10);
            assert_eq!(content(3)["join_rule"], join_rule);
            assert_eq!(content(4)["history_visibility"], "shared");
            assert_eq!(content(5)["guest_access"], guest_access);
            assert_eq!(content(7)["topic"], "Cups");
            assert_eq!(*content(8), json!({"membership": "invite", "is_direct": true}));
            let trusted = request.preset == RoomPreset::TrustedPrivateChat;
            if version == RoomVersionId::V12 {
                assert_eq!(content(2)["users"], json!({}));
                assert!(content(2)["events"]["m.room.tombstone"].as_i64() > content(2)["state_default"].as_i64());
                let creators = content(0).get("additional_creators");
                assert_eq!(creators, trusted.then(|| json!([user("bob")])).as_ref());
            } else {
                assert_eq!(content(2)["users"][user("alice")], 100);
                assert_eq!(
                    content(2)["users"].get(user("bob")),
                    trusted.then(|| json!(100)).as_ref()
                );
            }
        }
    }
}

#[test]
fn a_client_may_set_most_things_otherwise() {
    let entry = |kind: StateEventType, content: Value| ((kind, String::new()), object(content));
    let request = CreateRoom {
        initial_state: vec![
            entry(
                StateEventType::RoomEncryption,
                json!({"algorithm": "m.megolm.v1.aes-sha2"}),
            ),
            entry(StateEventType::RoomJoinRules, json!({"join_rule": "knock"})),
            entry(StateEventType::RoomName, json!({"name": "overridden"})),
        ],
        name: Some("Tea".to_owned()),
        alias: Some("#tea:alice.example".try_into().unwrap()),
        creation_content: object(json!({"m.federate": false, "creator": "@eve:x", "room_version": "1"})),
        power_level_content_override: object(json!({"events_default": 10})),
        ..CreateRoom::new(user_id("alice"))
    };
    let (_, events) = created(&request);
    assert_eq!(events[0].1, json!({"m.federate": false, "room_version": "12"}));
    assert_eq!(events[2].1["events_default"], 10);
    let kinds: Vec<&str> = events[3..].iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "m.room.canonical_alias",
            "m.room.history_visibility",
            "m.room.guest_access",
            "m.room.encryption",
            "m.room.join_rules",
            "m.room.name",
        ]
    );
    assert_eq!(events[7].1["join_rule"], "knock");
    assert_eq!(events[8].1["name"], "Tea");
}

#[test]
fn impossible_rooms_are_refused() {
    let base = || CreateRoom::new(user_id("alice"));
    let member = (StateEventType::RoomMember, user("bob"));
    let create = (StateEventType::RoomCreate, String::new());
    let many = |n: usize| (0..n).map(user_id_of).collect::<Vec<_>>();
    fn user_id_of(i: usize) -> ruma::OwnedUserId {
        format!("@u{i}:x").try_into().unwrap()
    }
    let refused = |request: CreateRoom| create_room(&request).unwrap_err();
    assert!(matches!(
        refused(CreateRoom {
            version: RoomVersionId::V9,
            ..base()
        }),
        CreateRoomError::UnsupportedVersion(RoomVersionId::V9)
    ));
    for key in [member, create] {
        let error = refused(CreateRoom {
            initial_state: vec![(key, object(json!({})))],
            ..base()
        });
        assert!(matches!(error, CreateRoomError::InvalidState(_)));
    }
    let own_power = object(json!({"users": {user("alice"): 100}}));
    let error = refused(CreateRoom {
        power_level_content_override: own_power.clone(),
        ..base()
    });
    assert!(matches!(error, CreateRoomError::InvalidState(_)));
    create_room(&CreateRoom {
        power_level_content_override: own_power,
        version: RoomVersionId::V11,
        ..base()
    })
    .unwrap();
    assert!(matches!(
        refused(CreateRoom {
            invite: many(101),
            ..base()
        }),
        CreateRoomError::TooMany { .. }
    ));
}

#[test]
fn the_rules_refuse_in_words() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob", "charlie"]);
        scene.say("alice", "m.room.power_levels", Some(""), {
            let mut levels = scene.content("m.room.power_levels", "").unwrap();
            levels["users"][user("bob")] = json!(50);
            levels
        });
        let before = scene.state();
        for (name, kind, state_key, content, words) in [
            ("charlie", "m.room.name", "", json!({"name": "x"}), "enough power"),
            (
                "charlie",
                "m.room.member",
                &*user("bob"),
                json!({"membership": "ban"}),
                "enough power",
            ),
            (
                "bob",
                "m.room.member",
                &*user("alice"),
                json!({"membership": "leave"}),
                "enough power",
            ),
            ("zara", "m.room.name", "", json!({"name": "x"}), "membership"),
            (
                "zara",
                "m.room.member",
                &*user("zara"),
                json!({"membership": "knock"}),
                "knock",
            ),
            (
                "bob",
                "m.room.power_levels",
                "",
                json!({"users": {user("bob"): 1000}}),
                "power",
            ),
        ] {
            let error = scene.try_say(name, kind, Some(state_key), content).unwrap_err();
            assert!(error.contains(words), "{name} {kind}: {error}");
        }
        assert_eq!(scene.state(), before);
        scene.say(
            "bob",
            "m.room.member",
            Some(&user("charlie")),
            json!({"membership": "ban"}),
        );
        let error = scene.try_say(
            "charlie",
            "m.room.member",
            Some(&user("charlie")),
            json!({"membership": "join"}),
        );
        assert!(error.unwrap_err().contains("banned"));
        let view = RoomView::current(&scene.rooms, &scene.room).unwrap().unwrap();
        assert_eq!(view.membership(&user_id("charlie")).unwrap(), MembershipState::Ban);
        assert_eq!(view.joined_servers().unwrap(), ["alice.example", "bob.example"]);
        assert_eq!(view.creators().unwrap(), [user_id("alice")]);
        assert!(view.power_levels().unwrap().user_can_ban(&user_id("bob")));
    }
}

#[test]
fn what_cannot_be_an_event_is_not_built() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let now = kith_engine::testing::at(5_000);
    let room = scene.room.clone();
    let large = scene.draft("bob", "m.room.message", None, json!({"body": "x".repeat(65_000)}));
    let bob = TestServer::new("bob.example");
    assert!(matches!(
        scene.rooms.send(&bob, &room, &large, now),
        Err(BuildError::TooLarge(_))
    ));
    let long = scene.draft("bob", &"x".repeat(256), None, json!({}));
    assert!(matches!(
        scene.rooms.send(&bob, &room, &long, now),
        Err(BuildError::Malformed(_))
    ));
    let alices = scene.draft("alice", "m.room.message", None, json!({}));
    assert!(matches!(
        scene.rooms.send(&bob, &room, &alices, now),
        Err(BuildError::Forbidden(_))
    ));
    let again = scene.draft("bob", "m.room.create", Some(""), json!({}));
    assert!(matches!(
        scene.rooms.send(&bob, &room, &again, now),
        Err(BuildError::Forbidden(_))
    ));
    let message = scene.draft("bob", "m.room.message", None, json!({}));
    let elsewhere = ruma::room_id!("!elsewhere:x");
    assert!(matches!(
        scene.rooms.send(&bob, elsewhere, &message, now),
        Err(BuildError::Room(_))
    ));
}

/// The common case decides how many events a second are accepted: an event on top of the room's only extremity.
#[test]
fn an_event_on_the_only_extremity_costs_a_handful_of_lookups() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob"]);
        let last = scene.last();
        for (kind, state_key, content) in [
            ("m.room.message", None, json!({"body": "hi"})),
            (
                "m.room.member",
                Some(user("bob")),
                json!({"membership": "join", "displayname": "B"}),
            ),
        ] {
            let event = scene.craft(&[&last], "bob", kind, state_key.as_deref(), content);
            scene.rooms.take_reads();
            let applied = scene.rooms.accept(&event);
            let reads = scene.rooms.take_reads();
            assert_eq!(applied.status, EventStatus::Accepted);
            assert!(matches!(applied.state_before, Some(NewState::Same(_))));
            assert!(
                reads.events <= 5 && reads.entries <= 5 && reads.states == usize::from(state_key.is_some()),
                "{reads:?}"
            );
            scene.rooms = Scene::public(RoomVersionId::V12, &[]).rooms;
            scene = Scene::public(scene.events[0].version().clone(), &["bob"]);
        }
    }
}

#[test]
fn forks_are_joined_by_the_next_event() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob", "charlie"]);
    let base = scene.last();
    let (left, _) = scene.put(&[&base], "bob", "m.room.message", None, json!({"body": "left"}));
    let (right, applied) = scene.put(&[&base], "charlie", "m.room.message", None, json!({"body": "right"}));
    assert_eq!(applied.current_state, CurrentState::Unchanged);
    let change = ExtremityChange {
        gone: Vec::new(),
        added: true,
    };
    assert_eq!(applied.forward_extremities, Some(change));
    assert_eq!(
        scene.rooms.forward_extremities(&scene.room).unwrap(),
        [left.clone(), right.clone()]
    );
    let joined = scene.say("alice", "m.room.name", Some(""), json!({"name": "x"}));
    let event = scene.events.last().unwrap();
    assert_eq!(event.pdu().prev_events(), [left, right]);
    assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap(), [joined]);
}

#[test]
fn own_events_name_ten_extremities_and_in_the_end_all() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let base = scene.last();
    let mut tips: Vec<OwnedEventId> = Vec::new();
    for i in 0..25 {
        let (tip, _) = scene.put(
            &[&base],
            "bob",
            "org.example.note",
            Some(&i.to_string()),
            json!({"i": i}),
        );
        tips.push(tip);
    }
    // Bob lacks the power for state events, so that these forks were rejected and are no extremities.
    assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap(), [&*base]);
    for i in 0..25 {
        scene.put(
            &[&base],
            "alice",
            "org.example.note",
            Some(&i.to_string()),
            json!({"i": i}),
        );
    }
    assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap().len(), 25);
    for left in [16, 7, 1] {
        let before = scene.last();
        scene.say("bob", "m.room.message", None, json!({}));
        let prev = scene.events.last().unwrap().pdu().prev_events();
        assert!(prev.len() <= 10 && (left == 16 || prev.contains(&before)), "{left}");
        assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap().len(), left);
    }
    let notes = scene
        .state()
        .into_keys()
        .filter(|(kind, _)| kind.to_string() == "org.example.note")
        .count();
    assert_eq!(notes, 25);
}

/// Bob was banned, and goes on as if he had not seen it.
#[test]
fn events_that_evade_the_current_state_are_soft_failed() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob"]);
        let before_ban = scene.last();
        let ban = scene.say(
            "alice",
            "m.room.member",
            Some(&user("bob")),
            json!({"membership": "ban"}),
        );
        let state = scene.state();
        let (evading, applied) = scene.put(&[&before_ban], "bob", "m.room.message", None, json!({"body": "ha"}));
        assert_eq!(applied.status, EventStatus::SoftFailed);
        assert_eq!((applied.forward_extremities.clone(), applied.is_shown()), (None, false));
        let (_, applied) = scene.put(&[&evading], "bob", "m.room.message", None, json!({"body": "haha"}));
        assert_eq!(applied.status, EventStatus::SoftFailed);
        assert_eq!(scene.state(), state);
        assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap(), [&*ban]);
        // Past the ban it is not even soft-failed.
        let (_, applied) = scene.put(&[&ban], "bob", "m.room.message", None, json!({"body": "hahaha"}));
        assert_eq!(applied.status, EventStatus::Rejected);
    }
}

#[test]
fn the_access_list_decides_which_servers_take_part() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob", "zara"]);
    let allowed = |scene: &Scene, server: &TestServer| {
        let view = RoomView::current(&scene.rooms, &scene.room).unwrap().unwrap();
        view.allows_server(&server.name).unwrap()
    };
    let bob = TestServer::new("bob.example");
    assert!(allowed(&scene, &bob));
    scene.say(
        "alice",
        "m.room.server_acl",
        Some(""),
        json!({"allow": ["*"], "deny": ["bob.*"]}),
    );
    assert!(!allowed(&scene, &bob));
    assert!(allowed(&scene, &TestServer::new("zara.example")));
}

/// Resolution goes by dates, not by who built upon whom: an old state that comes back as a fork may win. The current
/// state must follow even where the event that brought it back is a message.
#[test]
fn a_message_on_an_old_state_can_change_the_current_one() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob"]);
        let last = scene.last();
        let topic = |topic: &str| json!({"topic": topic});
        let first = scene.craft_at(9_000, &[&last], "alice", "m.room.topic", Some(""), topic("dated late"));
        let first_id = first.event_id().to_owned();
        scene.rooms.accept(&first);
        let second = scene.craft_at(
            8_000,
            &[&first_id],
            "alice",
            "m.room.topic",
            Some(""),
            topic("dated early"),
        );
        let current = scene.rooms.accept(&second).current_state;
        assert_eq!(current, CurrentState::AfterEvent);
        let (_, applied) = scene.put(
            &[&first_id],
            "bob",
            "m.room.message",
            None,
            json!({"body": "what topic?"}),
        );
        assert!(matches!(applied.current_state, CurrentState::New(_)));
        let key = (StateEventType::RoomTopic, String::new());
        assert_eq!(scene.state()[&key], first_id);
    }
}

/// What comes late and is refused leaves no head behind it either: the event that builds upon it was accepted.
#[test]
fn what_comes_late_and_is_refused_leaves_the_heads_as_they_are() {
    for refused in [EventStatus::SoftFailed, EventStatus::Rejected] {
        let mut scene = Scene::public(RoomVersionId::V12, &["bob", "charlie"]);
        let start = scene.last();
        let before = scene.craft(&[&start], "charlie", "m.room.message", None, json!({"body": "before"}));
        let (kind, key) = match refused {
            EventStatus::Rejected => ("org.example.note", Some("")),
            _ => ("m.room.message", None),
        };
        let mut elsewhere = scene.rooms.clone();
        elsewhere.accept(&before);
        let server = scene.server("bob");
        let build = |rooms: &MemoryRooms, prev: &OwnedEventId, by: &str, kind: &str, key, now| {
            let draft = scene.draft(by, kind, key, json!({"body": by}));
            rooms.build_on(server, &scene.room, std::slice::from_ref(prev), &draft, at(now))
        };
        let missed = build(&elsewhere, &before.event_id().to_owned(), "bob", kind, key, 5_000);
        elsewhere.accept(&missed);
        let later = build(
            &elsewhere,
            &missed.event_id().to_owned(),
            "bob",
            "m.room.message",
            None,
            5_001,
        );
        let state: Vec<OwnedEventId> = scene.state().into_values().collect();
        let applied = receive_with_state(&scene.rooms, &later, &state)
            .unwrap()
            .applied()
            .unwrap();
        scene.rooms.save(&applied);
        let ban = json!({"membership": "ban"});
        scene.say("alice", "m.room.member", Some(&user("bob")), ban);
        let heads = scene.rooms.forward_extremities(&scene.room).unwrap();
        scene.rooms.accept(&before);
        assert_eq!(scene.rooms.accept(&missed).status, refused);
        assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap(), heads);
    }
}

/// Events of a gap arrive after what builds upon them: they become no extremities, and leave none behind.
#[test]
fn what_comes_late_leaves_the_heads_as_they_are() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let start = scene.last();
    let missed = scene.craft(&[&start], "bob", "m.room.message", None, json!({"body": "missed"}));
    let missed_id = missed.event_id().to_owned();
    // Another server holds what this one lacks, and tells the state before the event after it.
    let mut elsewhere = scene.rooms.clone();
    elsewhere.accept(&missed);
    let server = scene.server("bob");
    let build = |rooms: &MemoryRooms, prev: &OwnedEventId, body: &str, now| {
        let draft = scene.draft("bob", "m.room.message", None, json!({"body": body}));
        rooms.build_on(server, &scene.room, std::slice::from_ref(prev), &draft, at(now))
    };
    let missed_too = build(&elsewhere, &missed_id, "missed too", 5_000);
    elsewhere.accept(&missed_too);
    let later = build(&elsewhere, &missed_too.event_id().to_owned(), "later", 5_001);
    let state: Vec<OwnedEventId> = scene.state().into_values().collect();
    let applied = receive_with_state(&scene.rooms, &later, &state)
        .unwrap()
        .applied()
        .unwrap();
    scene.rooms.save(&applied);
    for (event, heads) in [(&missed, 2), (&missed_too, 1)] {
        scene.rooms.accept(event);
        assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap().len(), heads);
    }
    assert!(
        !scene
            .rooms
            .forward_extremities(&scene.room)
            .unwrap()
            .contains(&missed_id)
    );
}
