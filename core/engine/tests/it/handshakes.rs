//! Two servers, each with its own rooms in memory, and nothing between them but what the requests carry.

use kith_engine::{
    CheckedPdu, EventStatus, Expected, HandshakeError, ImportError, JoinGrant, Outcome, RoomReader, RoomView,
    accept_invite, build_event, build_on_template, check_membership, check_pdu, import_room, join_grant,
    limits::MAX_IMPORT_EVENTS,
    membership_template, oldest_first, prune_stripped_state, receive_history, stripped_state, take_signature,
    testing::{MemoryRooms, TestServer, any_key, at},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomVersionId,
    api::client::room::create_room::v3::RoomPreset, events::room::member::MembershipState, serde::Raw,
};
use serde_json::json;

use crate::scene::{Scene, user, user_id};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// What `send_join` answers: the state before the join and its auth chain, as the other server reads them off the wire.
fn told(scene: &Scene, event: &CheckedPdu) -> (Vec<CheckedPdu>, Vec<CheckedPdu>) {
    let state = scene.rooms.state_before_event(event.event_id()).unwrap();
    let ids: Vec<OwnedEventId> = state.into_values().collect();
    let chain = scene.rooms.auth_chain(&ids).unwrap();
    let read = |id: &OwnedEventId| {
        let stored = scene.rooms.event(id).unwrap().unwrap();
        check_pdu(stored.pdu.json(), event.version(), any_key).unwrap()
    };
    (ids.iter().map(read).collect(), chain.iter().map(read).collect())
}

/// Bob joins Alice's room from a server that holds nothing of it.
fn join(scene: &mut Scene, version: &RoomVersionId) -> Result<(CheckedPdu, MemoryRooms), String> {
    let bob = TestServer::new("bob.example");
    let alice = TestServer::new("alice.example");
    let (told_version, template) = membership_template(
        &scene.rooms,
        &scene.room,
        &user_id("bob"),
        MembershipState::Join,
        &VERSIONS,
        &alice.name,
        at(9_000),
    )
    .map_err(|error| error.to_string())?;
    assert_eq!(told_version, *version);
    let expected = Expected {
        room: &scene.room,
        user: &user_id("bob"),
        membership: MembershipState::Join,
    };
    let profile = CanonicalJsonObject::from([("displayname".to_owned(), CanonicalJsonValue::String("Bob".into()))]);
    let join = build_on_template(&template, version, &expected, profile, bob.signer(), at(9_001)).unwrap();
    let checked = check_membership(
        &scene.rooms,
        join.pdu().json(),
        &scene.room,
        &MembershipState::Join,
        alice.signer(),
        any_key,
    )
    .map_err(|error| error.to_string())?;
    assert_eq!(checked.event_id(), join.event_id());
    let applied = scene.rooms.accept(&checked);
    assert_eq!(applied.status, EventStatus::Accepted, "{:?}", applied.reason);
    scene.events.push(checked.clone());
    let (state, chain) = told(scene, &checked);
    let answered = check_pdu(checked.pdu().json(), version, any_key).unwrap();
    let mut rooms = MemoryRooms::default();
    for applied in import_room(&rooms, &state, &chain, &answered, &[]).unwrap() {
        rooms.save(&applied);
    }
    Ok((checked, rooms))
}

#[test]
fn a_user_joins_through_another_server() {
    for version in VERSIONS {
        let mut scene = Scene::public(version.clone(), &["charlie"]);
        scene.say("alice", "m.room.message", None, json!({"body": "before Bob"}));
        let (join, mut bobs) = join(&mut scene, &version).unwrap();
        assert_eq!(bobs.state_of(&scene.room), scene.state());
        assert_eq!(bobs.forward_extremities(&scene.room).unwrap(), [join.event_id()]);
        // From here on both go on alike.
        let said = scene.draft("bob", "m.room.message", None, json!({"body": "hello"}));
        let said = bobs
            .send(&TestServer::new("bob.example"), &scene.room, &said, at(9_002))
            .unwrap();
        let received = check_pdu(said.pdu().json(), &version, any_key).unwrap();
        assert_eq!(scene.rooms.accept(&received).status, EventStatus::Accepted);
        scene.say("alice", "m.room.name", Some(""), json!({"name": "both"}));
        let named = check_pdu(scene.events.last().unwrap().pdu().json(), &version, any_key).unwrap();
        assert_eq!(bobs.accept(&named).status, EventStatus::Accepted);
        assert_eq!(bobs.state_of(&scene.room), scene.state());
        backfill(&scene, &mut bobs, &join);
    }
}

/// Bob fetches what was said before he came, oldest first, down from a state he asks for.
fn backfill(scene: &Scene, bobs: &mut MemoryRooms, join: &CheckedPdu) {
    let end = scene
        .events
        .iter()
        .position(|event| event.event_id() == join.event_id())
        .unwrap();
    let chunk: Vec<CheckedPdu> = scene.events[end - 3..end].iter().rev().cloned().collect();
    let chunk = oldest_first(chunk);
    let state: Vec<OwnedEventId> = scene
        .rooms
        .state_before_event(chunk[0].event_id())
        .unwrap()
        .into_values()
        .collect();
    let without = receive_history(bobs, &chunk[0], None).unwrap().applied().unwrap();
    assert_eq!((without.state_before, without.status), (None, EventStatus::Accepted));
    for event in &chunk {
        let outcome = receive_history(bobs, event, Some(&state)).unwrap();
        let Outcome::Applied(applied) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((applied.status, applied.history), (EventStatus::Accepted, true));
        assert_eq!(applied.forward_extremities, None);
        bobs.save(&applied);
        assert_eq!(
            bobs.state_before_event(event.event_id()),
            scene.rooms.state_before_event(event.event_id())
        );
    }
    assert_eq!(bobs.state_of(&scene.room), scene.state());
}

#[test]
fn an_import_that_lacks_something_or_is_refused_changes_nothing() {
    let version = RoomVersionId::V11;
    let mut scene = Scene::public(version.clone(), &["charlie"]);
    let (join, _) = join(&mut scene, &version).unwrap();
    let (state, chain) = told(&scene, &join);
    let nothing = MemoryRooms::default();
    let without = |kind: &str| {
        let keep = |events: &[CheckedPdu]| -> Vec<CheckedPdu> {
            events
                .iter()
                .filter(|event| event.pdu().kind().to_string() != kind)
                .cloned()
                .collect()
        };
        import_room(&nothing, &keep(&state), &keep(&chain), &join, &[])
    };
    for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        let error = without(kind).unwrap_err();
        assert!(
            matches!(
                error,
                ImportError::Incomplete(_) | ImportError::Refused(_) | ImportError::Room(_)
            ),
            "{kind}: {error}"
        );
    }
    // What the room says has changed since, unseen by the server that told of it.
    scene.say("alice", "m.room.join_rules", Some(""), json!({"join_rule": "invite"}));
    let closed = scene.events.last().unwrap().clone();
    let told: Vec<CheckedPdu> = state
        .iter()
        .map(|event| match event.pdu().kind().to_string().as_str() {
            "m.room.join_rules" => closed.clone(),
            _ => event.clone(),
        })
        .collect();
    assert!(matches!(
        import_room(&nothing, &told, &chain, &join, &[]),
        Err(ImportError::Refused(_))
    ));
    assert!(nothing.is_empty());
}

#[test]
fn templates_must_be_what_was_asked_for() {
    let scene = Scene::public(RoomVersionId::V12, &[]);
    let alice = TestServer::new("alice.example");
    let bob = TestServer::new("bob.example");
    let (_, template) = membership_template(
        &scene.rooms,
        &scene.room,
        &user_id("bob"),
        MembershipState::Join,
        &[],
        &alice.name,
        at(9_000),
    )
    .unwrap();
    let expected = Expected {
        room: &scene.room,
        user: &user_id("bob"),
        membership: MembershipState::Join,
    };
    let build = |template: &CanonicalJsonObject| {
        build_on_template(
            template,
            &RoomVersionId::V12,
            &expected,
            CanonicalJsonObject::new(),
            bob.signer(),
            at(1),
        )
    };
    build(&template).unwrap();
    for (field, value) in [
        ("type", "m.room.message"),
        ("room_id", "!other:x"),
        ("sender", "@eve:x"),
        ("state_key", "@eve:x"),
    ] {
        let mut other = template.clone();
        other.insert(field.to_owned(), CanonicalJsonValue::String(value.to_owned()));
        assert!(build(&other).is_err(), "{field}");
    }
    let mut other = template.clone();
    other.insert(
        "content".to_owned(),
        CanonicalJsonValue::Object(CanonicalJsonObject::from([(
            "membership".to_owned(),
            CanonicalJsonValue::String("leave".to_owned()),
        )])),
    );
    assert!(build(&other).is_err());
    // Nothing else of the template's content comes under Bob's signature.
    let mut other = template;
    if let Some(CanonicalJsonValue::Object(content)) = other.get_mut("content") {
        content.insert(
            "displayname".to_owned(),
            CanonicalJsonValue::String("a fool".to_owned()),
        );
    }
    assert_eq!(build(&other).unwrap().pdu().content_json(), r#"{"membership":"join"}"#);
}

#[test]
fn the_resident_side_refuses_what_is_not_a_join() {
    let mut scene = Scene::public(RoomVersionId::V12, &["charlie"]);
    let alice = TestServer::new("alice.example");
    let refused = |scene: &Scene, event: &CheckedPdu| {
        check_membership(
            &scene.rooms,
            event.pdu().json(),
            &scene.room,
            &MembershipState::Join,
            alice.signer(),
            any_key,
        )
        .unwrap_err()
    };
    let last = scene.last();
    let message = scene.craft(&[&last], "charlie", "m.room.message", None, json!({}));
    assert!(matches!(refused(&scene, &message), HandshakeError::WrongEvent(_)));
    let leave = scene.craft(
        &[&last],
        "charlie",
        "m.room.member",
        Some(&user("charlie")),
        json!({"membership": "leave"}),
    );
    assert!(matches!(refused(&scene, &leave), HandshakeError::WrongEvent(_)));
    let other = scene.craft(
        &[&last],
        "charlie",
        "m.room.member",
        Some(&user("bob")),
        json!({"membership": "join"}),
    );
    assert!(matches!(refused(&scene, &other), HandshakeError::WrongEvent(_)));
    let mut elsewhere = Scene::new(RoomVersionId::V11, RoomPreset::PublicChat);
    let last = elsewhere.last();
    let join = elsewhere.craft(
        &[&last],
        "bob",
        "m.room.member",
        Some(&user("bob")),
        json!({"membership": "join"}),
    );
    assert!(matches!(
        refused(&scene, &join),
        HandshakeError::WrongEvent(_) | HandshakeError::Pdu(_)
    ));
    let unknown = membership_template(
        &scene.rooms,
        &scene.room,
        &user_id("bob"),
        MembershipState::Join,
        &[RoomVersionId::V11],
        &alice.name,
        at(1),
    );
    assert!(matches!(
        unknown,
        Err(HandshakeError::IncompatibleVersion(RoomVersionId::V12))
    ));
    let knock = membership_template(
        &scene.rooms,
        &scene.room,
        &user_id("bob"),
        MembershipState::Knock,
        &[],
        &alice.name,
        at(1),
    );
    assert!(matches!(knock, Err(HandshakeError::Forbidden(_))));
}

#[test]
fn knocking_and_leaving_go_the_same_way() {
    for version in VERSIONS {
        let mut scene = Scene::new(version.clone(), RoomPreset::PrivateChat);
        scene.say("alice", "m.room.join_rules", Some(""), json!({"join_rule": "knock"}));
        let alice = TestServer::new("alice.example");
        let bob = TestServer::new("bob.example");
        for membership in [MembershipState::Knock, MembershipState::Leave] {
            let (_, template) = membership_template(
                &scene.rooms,
                &scene.room,
                &user_id("bob"),
                membership.clone(),
                &[],
                &alice.name,
                at(9_000),
            )
            .unwrap();
            let expected = Expected {
                room: &scene.room,
                user: &user_id("bob"),
                membership: membership.clone(),
            };
            let event = build_on_template(
                &template,
                &version,
                &expected,
                CanonicalJsonObject::new(),
                bob.signer(),
                at(9_001),
            );
            let json = event.unwrap().pdu().json().to_owned();
            let checked = check_membership(&scene.rooms, &json, &scene.room, &membership, alice.signer(), any_key);
            assert_eq!(scene.rooms.accept(&checked.unwrap()).status, EventStatus::Accepted);
            let view = RoomView::current(&scene.rooms, &scene.room).unwrap().unwrap();
            assert_eq!(view.membership(&user_id("bob")).unwrap(), membership);
        }
    }
}

/// Alice's tea room lets in whoever is in her lobby.
fn restricted(version: RoomVersionId) -> (Scene, ruma::OwnedRoomId) {
    let mut scene = Scene::public(version.clone(), &["bob", "charlie"]);
    let lobby = scene.room.clone();
    let request = kith_engine::CreateRoom {
        version,
        ..kith_engine::CreateRoom::new(user_id("alice"))
    };
    let (tea, events) = scene.rooms.create(&TestServer::new("alice.example"), &request);
    scene.room = tea;
    scene.events.extend(events);
    scene.say(
        "alice",
        "m.room.join_rules",
        Some(""),
        json!({
            "join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": lobby}],
        }),
    );
    (scene, lobby)
}

#[test]
fn restricted_joins_are_granted_and_signed_by_the_server_that_grants_them() {
    for version in VERSIONS {
        let (mut scene, lobby) = restricted(version.clone());
        let alice = TestServer::new("alice.example");
        let grant = |scene: &Scene, name: &str| join_grant(&scene.rooms, &scene.room, &user_id(name), &alice.name);
        assert_eq!(grant(&scene, "bob").unwrap(), JoinGrant::Through(user_id("alice")));
        assert!(matches!(grant(&scene, "zara"), Err(HandshakeError::Forbidden(_))));
        // Without being let in, Bob cannot come in.
        let last = scene.last();
        let alone = scene.craft(
            &[&last],
            "bob",
            "m.room.member",
            Some(&user("bob")),
            json!({"membership": "join"}),
        );
        let mut copy = scene.rooms.clone();
        assert_eq!(copy.accept(&alone).status, EventStatus::Rejected);
        let (join, _) = join(&mut scene, &version).unwrap();
        let signatures = join.pdu().to_object().unwrap()["signatures"].as_object().unwrap().len();
        assert_eq!(signatures, 2);
        assert_eq!(grant(&scene, "bob").unwrap(), JoinGrant::Free);
        // Charlie has left the lobby; a server that is not in it could not know.
        let tea = std::mem::replace(&mut scene.room, lobby);
        scene.say(
            "charlie",
            "m.room.member",
            Some(&user("charlie")),
            json!({"membership": "leave"}),
        );
        scene.room = tea;
        assert!(matches!(grant(&scene, "charlie"), Err(HandshakeError::Forbidden(_))));
        let zara = TestServer::new("zara.example");
        let blind = join_grant(&scene.rooms, &scene.room, &user_id("charlie"), &zara.name);
        assert!(matches!(blind, Err(HandshakeError::UnableToAuthorise)));
        let unable = join_grant(&scene.rooms, &scene.room, &user_id("ella"), &zara.name);
        assert!(matches!(unable, Err(HandshakeError::UnableToAuthorise)));
    }
}

#[test]
fn an_invitation_is_signed_by_both_sides() {
    for version in VERSIONS {
        let mut scene = Scene::new(version.clone(), RoomPreset::PrivateChat);
        let alice = TestServer::new("alice.example");
        let bob = TestServer::new("bob.example");
        let draft = scene.draft(
            "alice",
            "m.room.member",
            Some(&user("bob")),
            json!({"membership": "invite"}),
        );
        let invite = build_event(&scene.rooms, &scene.room, &draft, alice.signer(), at(9_000)).unwrap();
        let json = invite.pdu().json();
        let accepted = accept_invite(json, &scene.room, &version, bob.signer(), any_key).unwrap();
        assert_eq!(accepted.event_id(), invite.event_id());
        let both = take_signature(&invite, accepted.pdu().json(), &bob.name, any_key).unwrap();
        assert_eq!(both.pdu().json(), accepted.pdu().json());
        assert_eq!(scene.rooms.accept(&both).status, EventStatus::Accepted);
        // Not signed, signed by somebody else, or another event.
        assert!(take_signature(&invite, json, &bob.name, any_key).is_err());
        let forged = accepted.pdu().json().replace("bob.example\":{", "zara.example\":{");
        assert!(take_signature(&invite, &forged, &bob.name, any_key).is_err());
        assert!(take_signature(&invite, accepted.pdu().json(), &bob.name, |_, _, _| None).is_err());
        let other = scene.events.last().unwrap().pdu().json().to_owned();
        assert!(take_signature(&invite, &other, &bob.name, any_key).is_err());
        let zara = TestServer::new("zara.example");
        let wrong = accept_invite(json, &scene.room, &version, zara.signer(), any_key);
        assert!(matches!(wrong, Err(HandshakeError::WrongEvent(_))));
        let wrong = accept_invite(&other, &scene.room, &version, bob.signer(), any_key);
        assert!(matches!(wrong, Err(HandshakeError::WrongEvent(_))));
        // An invitation that nobody signed, because it claims to come through a third party.
        let draft = scene.draft(
            "alice",
            "m.room.member",
            Some(&user("bob")),
            json!({
                "membership": "invite",
                "third_party_invite": {"signed": {"mxid": user("bob"), "token": "t", "signatures": {}}},
            }),
        );
        let last = scene.last();
        let claimed = scene.rooms.build_on(&alice, &scene.room, &[last], &draft, at(9_003));
        let mut unsigned: serde_json::Value = serde_json::from_str(claimed.pdu().json()).unwrap();
        unsigned["signatures"] = json!({});
        let wrong = accept_invite(&unsigned.to_string(), &scene.room, &version, bob.signer(), any_key);
        assert!(matches!(wrong, Err(HandshakeError::WrongEvent(_))), "{wrong:?}");
        // Bob comes, being invited.
        join(&mut scene, &version).unwrap();
    }
}

#[test]
fn stripped_state_tells_what_room_it_is_and_proves_it() {
    for version in VERSIONS {
        let mut scene = Scene::public(version.clone(), &["charlie"]);
        scene.say("alice", "m.room.name", Some(""), json!({"name": "Tea"}));
        let view = RoomView::current(&scene.rooms, &scene.room).unwrap().unwrap();
        let events = stripped_state(&view, Some(&user_id("alice"))).unwrap();
        let kinds: Vec<String> = events.iter().map(|event| event.kind().to_string()).collect();
        assert_eq!(
            kinds,
            ["m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"]
        );
        let sent: Vec<_> = events.iter().map(|event| event.to_raw()).collect();
        let pruned = prune_stripped_state(&sent, &scene.room, &version).unwrap();
        assert_eq!(pruned.len(), 4);
        let name: serde_json::Value = Raw::<serde_json::Value>::from_json(pruned[1].clone())
            .deserialize()
            .unwrap();
        assert_eq!(
            name,
            json!({
                "type": "m.room.name", "state_key": "", "sender": user("alice"), "content": {"name": "Tea"},
            })
        );
        if version == RoomVersionId::V12 {
            assert!(prune_stripped_state(&sent[1..], &scene.room, &version).is_err());
            let other = Scene::public(version.clone(), &["bob", "zara"]).room;
            let _ = other;
            let elsewhere = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".try_into().unwrap();
            let elsewhere: ruma::OwnedRoomId = elsewhere;
            assert!(prune_stripped_state(&sent, &elsewhere, &version).is_err());
        }
    }
}

/// Who was banned comes back through a server that has not heard of it: for the banned, who has, the ban stands.
#[test]
fn a_join_does_not_undo_what_the_other_server_has_not_heard() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob", "charlie"]);
        let mut bobs = scene.rooms.clone();
        let ban = scene.draft(
            "alice",
            "m.room.member",
            Some(&user("bob")),
            json!({"membership": "ban"}),
        );
        let ban = bobs.send(scene.server("alice"), &scene.room, &ban, at(5_000)).unwrap();
        let ban = ban.event_id().to_owned();
        let last = scene.last();
        let bob = user("bob");
        let again = scene.craft_at(
            6_000,
            &[&last],
            "bob",
            "m.room.member",
            Some(&bob),
            json!({"membership": "join"}),
        );
        scene.rooms.accept(&again);
        let (state, chain) = told(&scene, &again);
        let key = (ruma::events::StateEventType::RoomMember, bob);
        for (apart, heads, member) in [
            (
                Vec::new(),
                vec![again.event_id().to_owned()],
                again.event_id().to_owned(),
            ),
            (
                vec![ban.clone()],
                vec![ban.clone(), again.event_id().to_owned()],
                ban.clone(),
            ),
            // What the told state rests upon, the join builds upon.
            (
                vec![last],
                vec![again.event_id().to_owned()],
                again.event_id().to_owned(),
            ),
        ] {
            let mut bobs = bobs.clone();
            for applied in import_room(&bobs, &state, &chain, &again, &apart).unwrap() {
                bobs.save(&applied);
            }
            assert_eq!(bobs.forward_extremities(&scene.room).unwrap(), heads);
            assert_eq!(bobs.state_of(&scene.room)[&key], member);
        }
    }
}

/// A room whose state is larger than can be taken in is not entered, and nothing of it is looked at.
#[test]
fn a_room_that_is_too_large_is_not_entered() {
    let mut scene = Scene::public(RoomVersionId::V12, &["charlie"]);
    let (join, _) = join(&mut scene, &RoomVersionId::V12).unwrap();
    let (state, chain) = told(&scene, &join);
    let rooms = MemoryRooms::default();
    let many = state
        .iter()
        .cycle()
        .take(MAX_IMPORT_EVENTS)
        .cloned()
        .collect::<Vec<_>>();
    let refused = import_room(&rooms, &many, &chain, &join, &[]);
    assert!(matches!(refused, Err(ImportError::TooMany(count)) if count == MAX_IMPORT_EVENTS + chain.len()));
}
