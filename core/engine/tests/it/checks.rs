//! What strangers may send: forged, oversized, malformed, replayed and unauthorised events.

use kith_engine::{
    CheckedPdu, CurrentState, EventStatus, Outcome, PduError, RoomError, RoomReader, UncheckedPdu, VerifyKey,
    check_pdu,
    json::parse_object,
    limits::{MAX_AUTH_EVENTS, MAX_PREV_EVENTS},
    receive, required_keys,
    testing::{MemoryRooms, TestServer, any_key},
};
use ruma::{CanonicalJsonValue, Int, OwnedEventId, RoomVersionId, canonical_json::to_canonical_value};
use serde_json::{Value, json};

use crate::scene::{Scene, user};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// A good message of Bob's as he would send it, not yet received.
fn message(version: RoomVersionId) -> (Scene, String) {
    let mut scene = Scene::public(version, &["bob"]);
    let last = scene.last();
    let event = scene.craft(
        &[&last],
        "bob",
        "m.room.message",
        None,
        json!({"body": "hi", "msgtype": "m.text"}),
    );
    let json = event.pdu().json().to_owned();
    (scene, json)
}

fn altered(json: &str, alter: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_str(json).unwrap();
    alter(&mut value);
    value.to_string()
}

#[test]
fn a_good_event_passes_and_keeps_its_bytes() {
    for version in VERSIONS {
        let (mut scene, json) = message(version.clone());
        let checked = check_pdu(&json, &version, any_key).unwrap();
        assert_eq!(checked.pdu().json(), json);
        assert_eq!(checked.pdu().content_json(), r#"{"body":"hi","msgtype":"m.text"}"#);
        let keys = required_keys(&json, &version).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(
            (keys[0].server.as_str(), &*keys[0].key_ids),
            ("bob.example", &[TestServer::KEY_ID.to_owned()][..])
        );
        let applied = scene.rooms.accept(&checked);
        assert_eq!(applied.status, EventStatus::Accepted);
        assert_eq!(applied.current_state, CurrentState::Unchanged);
        // Replayed.
        assert!(matches!(receive(&scene.rooms, &checked).unwrap(), Outcome::Known));
    }
}

#[test]
fn unsigned_is_dropped_and_spaces_do_not_matter() {
    let (_, json) = message(RoomVersionId::V12);
    let spaced = altered(&json, |event| {
        event["unsigned"] = json!({"redacted_because": {}, "m.relations": {}})
    });
    let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&spaced).unwrap()).unwrap();
    let checked = check_pdu(&spaced, &RoomVersionId::V12, any_key).unwrap();
    assert_eq!(checked.pdu().json(), json);
}

#[test]
fn malformed_and_oversized_events_are_dropped() {
    let (_, json) = message(RoomVersionId::V12);
    let check = |what: &str, json: String| {
        let error = check_pdu(&json, &RoomVersionId::V12, any_key).expect_err(what);
        assert!(
            matches!(
                error,
                PduError::Json(_) | PduError::Malformed(_) | PduError::TooLarge(_)
            ),
            "{what}: {error:?}"
        );
    };
    check("not JSON", "{".to_owned());
    check("a list", "[]".to_owned());
    check("a duplicate key", json.replacen('{', r#"{"depth":1,"#, 1));
    check(
        "a duplicate key in content",
        json.replacen(r#"{"body""#, r#"{"body":"x","body""#, 1),
    );
    check("a float", altered(&json, |event| event["content"]["body"] = json!(1.5)));
    check(
        "an integer out of range",
        altered(&json, |event| event["content"]["n"] = json!(1_u64 << 53)),
    );
    for field in [
        "type",
        "sender",
        "room_id",
        "prev_events",
        "auth_events",
        "depth",
        "origin_server_ts",
        "content",
    ] {
        check(
            field,
            altered(&json, |event| {
                event.as_object_mut().unwrap().remove(field);
            }),
        );
        check(field, altered(&json, |event| event[field] = json!(true)));
    }
    check(
        "a null state key",
        altered(&json, |event| event["state_key"] = Value::Null),
    );
    check("a negative depth", altered(&json, |event| event["depth"] = json!(-1)));
    check(
        "a sender that is no user",
        altered(&json, |event| event["sender"] = json!("bob")),
    );
    check(
        "a long type",
        altered(&json, |event| event["type"] = json!("x".repeat(256))),
    );
    check(
        "a long state key",
        altered(&json, |event| event["state_key"] = json!("x".repeat(256))),
    );
    check(
        "too many prev events",
        altered(&json, |event| {
            event["prev_events"] = vec!["$a"; MAX_PREV_EVENTS + 1].into()
        }),
    );
    check(
        "too many auth events",
        altered(&json, |event| {
            event["auth_events"] = vec!["$a"; MAX_AUTH_EVENTS + 1].into()
        }),
    );
    check(
        "an event id that is none",
        altered(&json, |event| event["prev_events"] = json!(["x"])),
    );
    check(
        "too large",
        altered(&json, |event| event["content"]["body"] = json!("x".repeat(65_536))),
    );
    check("far too large", format!("{}{json}", " ".repeat(200_000)));
    check(
        "an m.room.create among the auth events",
        altered(&json, |event| {
            let create = event["room_id"].as_str().unwrap().replace('!', "$");
            event["auth_events"].as_array_mut().unwrap().push(json!(create));
        }),
    );
}

#[test]
fn forged_events_are_dropped() {
    let (_, json) = message(RoomVersionId::V12);
    let version = RoomVersionId::V12;
    let refused = |what: &str, json: &str| {
        let error = check_pdu(json, &version, any_key).expect_err(what);
        assert!(matches!(error, PduError::Signature(_)), "{what}: {error:?}");
    };
    refused(
        "another sender",
        &altered(&json, |event| event["sender"] = json!(user("alice"))),
    );
    refused(
        "another date",
        &altered(&json, |event| event["origin_server_ts"] = json!(1)),
    );
    refused(
        "another past",
        &altered(&json, |event| event["prev_events"] = json!([])),
    );
    refused("no signature", &altered(&json, |event| event["signatures"] = json!({})));
    refused(
        "signatures that are none",
        &altered(&json, |event| event["signatures"] = json!([])),
    );
    refused(
        "no hashes",
        &altered(&json, |event| {
            event.as_object_mut().unwrap().remove("hashes");
        }),
    );
    refused(
        "a signature by another server",
        &altered(&json, |event| {
            let bobs = event["signatures"]["bob.example"].clone();
            event["signatures"] = json!({"alice.example": bobs});
        }),
    );
    let unknown = check_pdu(&json, &version, |_, _, _| None).expect_err("an unknown key");
    assert!(matches!(unknown, PduError::Signature(_)));
    let wrong = check_pdu(&json, &version, |_, _, _| {
        Some(TestServer::new("eve.example").verify_key())
    });
    assert!(matches!(wrong, Err(PduError::Signature(_))));
    assert!(matches!(
        check_pdu(&json, &RoomVersionId::V5, any_key),
        Err(PduError::UnsupportedVersion(RoomVersionId::V5))
    ));
}

#[test]
fn content_that_does_not_match_its_hash_is_redacted() {
    let (mut scene, json) = message(RoomVersionId::V12);
    let genuine = check_pdu(&json, &RoomVersionId::V12, any_key).unwrap();
    let altered = altered(&json, |event| event["content"]["body"] = json!("something else"));
    let checked = check_pdu(&altered, &RoomVersionId::V12, any_key).unwrap();
    assert_eq!(checked.event_id(), genuine.event_id());
    assert_eq!(checked.pdu().content_json(), "{}");
    assert_eq!(scene.rooms.accept(&checked).status, EventStatus::Accepted);
}

#[test]
fn events_under_a_revoked_key_are_soft_failed_unless_vouched_for() {
    let (mut scene, json) = message(RoomVersionId::V12);
    let revoked =
        |server: &ruma::ServerName, id: &str, ts| any_key(server, id, ts).map(|key| VerifyKey { revoked: true, ..key });
    let checked = check_pdu(&json, &RoomVersionId::V12, revoked).unwrap();
    let mut other = scene.rooms.clone();
    let applied = scene.rooms.accept(&checked);
    assert_eq!(applied.status, EventStatus::SoftFailed);
    assert_eq!(applied.forward_extremities, None);
    assert!(!applied.is_shown());
    // What builds upon it counts, and takes the place of what the soft-failed one built upon.
    let id = checked.event_id().to_owned();
    let (next, applied) = scene.put(&[&id], "alice", "m.room.message", None, json!({"body": "seen"}));
    assert_eq!(applied.status, EventStatus::Accepted);
    assert_eq!(applied.forward_extremities.map(|change| change.gone.len()), Some(1));
    assert_eq!(scene.rooms.forward_extremities(&scene.room).unwrap(), [next]);
    assert_eq!(other.accept(&checked.vouched_for()).status, EventStatus::Accepted);
}

#[test]
fn unauthorised_events_are_rejected_and_change_nothing() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob"]);
        let last = scene.last();
        let state = scene.state();
        for (name, kind, state_key, content) in [
            ("zara", "m.room.message", None, json!({"body": "let me in"})),
            (
                "zara",
                "m.room.member",
                Some(user("charlie")),
                json!({"membership": "join"}),
            ),
            ("bob", "m.room.name", Some(String::new()), json!({"name": "Bob's"})),
            (
                "bob",
                "m.room.member",
                Some(user("alice")),
                json!({"membership": "ban"}),
            ),
            (
                "bob",
                "m.room.power_levels",
                Some(String::new()),
                json!({"users": {user("bob"): 100}}),
            ),
            ("bob", "org.example.own", Some(user("alice")), json!({})),
            (
                "alice",
                "m.room.create",
                Some(String::new()),
                json!({"room_version": "11"}),
            ),
            (
                "bob",
                "m.room.member",
                Some(user("bob")),
                json!({"membership": "nonsense"}),
            ),
        ] {
            let (_, applied) = scene.put(&[&last], name, kind, state_key.as_deref(), content);
            assert_eq!(applied.status, EventStatus::Rejected, "{name} {kind}");
            assert!(applied.reason.is_some());
            assert_eq!((applied.sets, applied.forward_extremities), (None, None));
            assert_eq!(applied.current_state, CurrentState::Unchanged);
        }
        assert_eq!(scene.state(), state);
        // The room goes on from where it stood.
        scene.say("bob", "m.room.message", None, json!({"body": "still here"}));
    }
}

/// Bob's event with some of its references replaced, properly hashed and signed.
fn resigned(scene: &Scene, event: &CheckedPdu, field: &str, ids: Vec<OwnedEventId>) -> CheckedPdu {
    let mut object = event.pdu().to_object().unwrap();
    object.insert(field.to_owned(), to_canonical_value(&ids).unwrap());
    for field in ["hashes", "signatures"] {
        object.remove(field);
    }
    let rules = event.version().rules().unwrap().redaction;
    ruma::signatures::hash_and_sign_event("bob.example", scene.server("bob"), &mut object, &rules).unwrap();
    UncheckedPdu::from_object(object, event.version())
        .unwrap()
        .verify(any_key)
        .unwrap()
}

/// Bob, banned, cites the authority he once had.
#[test]
fn the_state_before_an_event_counts_whatever_it_cites() {
    for version in VERSIONS {
        let mut scene = Scene::public(version, &["bob"]);
        let last = scene.last();
        let message = scene.craft(&[&last], "bob", "m.room.message", None, json!({"body": "still me"}));
        let ban = scene.say(
            "alice",
            "m.room.member",
            Some(&user("bob")),
            json!({"membership": "ban"}),
        );
        let late = resigned(&scene, &message, "prev_events", vec![ban]);
        let applied = scene.rooms.accept(&late);
        assert_eq!(applied.status, EventStatus::Rejected);
        assert!(applied.reason.unwrap().contains("membership"));
    }
}

/// The auth events an event names are part of what it claims: each of these claims something false.
#[test]
fn events_with_the_wrong_auth_events_are_rejected() {
    let mut scene = Scene::public(RoomVersionId::V11, &["bob"]);
    let join = scene.last();
    let name = scene.say("alice", "m.room.name", Some(""), json!({"name": "x"}));
    let good = scene.craft(&[&name], "bob", "m.room.message", None, json!({"body": "hi"}));
    let auth = good.pdu().auth_events().to_vec();
    let mut other = Scene::public(RoomVersionId::V11, &["bob"]);
    let ban = scene.craft(
        &[&name],
        "bob",
        "m.room.member",
        Some(&user("alice")),
        json!({"membership": "ban"}),
    );
    let rejected = scene.rooms.accept(&ban).pdu.event_id().to_owned();
    let with = |auth: Vec<OwnedEventId>| resigned(&scene, &good, "auth_events", auth);
    let without_create = auth[..auth.len() - 1].to_vec();
    let cases = [
        ("none", vec![]),
        ("no m.room.create", without_create),
        ("one too many", [auth.clone(), vec![name]].concat()),
        ("one twice", [auth.clone(), vec![auth[0].clone()]].concat()),
        ("a rejected one", [auth.clone(), vec![rejected]].concat()),
        (
            "no membership",
            auth.iter().filter(|id| **id != join).cloned().collect(),
        ),
    ];
    for (what, auth) in cases {
        let event = with(auth);
        let outcome = receive(&scene.rooms, &event).unwrap();
        let Outcome::Applied(applied) = outcome else {
            panic!("{what}: {outcome:?}")
        };
        assert_eq!(applied.status, EventStatus::Rejected, "{what}: {:?}", applied.reason);
    }
    let foreign = other.say("alice", "m.room.name", Some(""), json!({"name": "y"}));
    let outcome = receive(&scene.rooms, &with(vec![foreign.clone()])).unwrap();
    let Outcome::Missing(missing) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((missing.prev, missing.auth), (vec![], vec![foreign]));
    assert!(
        matches!(receive(&scene.rooms, &with(auth)).unwrap(), Outcome::Applied(a) if a.status == EventStatus::Accepted)
    );
}

#[test]
fn events_of_unknown_rooms_and_of_other_versions_change_nothing() {
    let (scene, json) = message(RoomVersionId::V11);
    let nothing = MemoryRooms::default();
    let create = check_pdu(scene.events[0].pdu().json(), &RoomVersionId::V11, any_key).unwrap();
    assert!(matches!(receive(&nothing, &create), Err(RoomError::UnknownRoom(_))));
    let checked = check_pdu(&json, &RoomVersionId::V11, any_key).unwrap();
    assert!(matches!(receive(&nothing, &checked), Err(RoomError::UnknownRoom(_))));
    let checked = check_pdu(&json, &RoomVersionId::V10, any_key).unwrap();
    assert!(matches!(
        receive(&scene.rooms, &checked),
        Err(RoomError::WrongVersion { .. })
    ));
}

#[test]
fn what_is_missing_is_told() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let before = scene.rooms.clone();
    let first = scene.say("bob", "m.room.message", None, json!({"body": "1"}));
    let second = scene.say("alice", "m.room.message", None, json!({"body": "2"}));
    let event = scene.events.last().unwrap();
    assert_eq!(event.event_id(), second);
    let Outcome::Missing(missing) = receive(&before, event).unwrap() else {
        panic!()
    };
    assert_eq!((missing.prev, missing.auth), (vec![first], vec![]));
}

#[test]
fn depth_never_leaves_what_json_can_hold() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let last = scene.last();
    let event = scene.craft(&[&last], "bob", "m.room.message", None, json!({}));
    let mut object = event.pdu().to_object().unwrap();
    object.insert("depth".to_owned(), CanonicalJsonValue::Integer(Int::MAX));
    for field in ["hashes", "signatures"] {
        object.remove(field);
    }
    let rules = RoomVersionId::V12.rules().unwrap().redaction;
    ruma::signatures::hash_and_sign_event("bob.example", scene.server("bob"), &mut object, &rules).unwrap();
    let json = serde_json::to_string(&object).unwrap();
    assert_eq!(parse_object(&json).unwrap(), object);
    scene
        .rooms
        .accept(&check_pdu(&json, &RoomVersionId::V12, any_key).unwrap());
    scene.say("alice", "m.room.message", None, json!({}));
    assert_eq!(scene.events.last().unwrap().pdu().depth(), (1 << 53) - 1);
}

/// The two rooms say different things of Zara; nothing of one counts in the other.
#[test]
fn events_of_another_room_are_no_past() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let here = scene.room.clone();
    let request = kith_engine::CreateRoom {
        invite: vec![crate::scene::user_id("zara")],
        ..kith_engine::CreateRoom::new(crate::scene::user_id("alice"))
    };
    let (_, there) = scene.rooms.create(&TestServer::new("alice.example"), &request);
    let foreign = there.last().unwrap().event_id().to_owned();
    let event = scene.craft(&[&foreign], "bob", "m.room.message", None, json!({}));
    assert_eq!(event.room_id(), here);
    let Outcome::Missing(missing) = receive(&scene.rooms, &event).unwrap() else {
        panic!()
    };
    assert_eq!(missing.prev, [foreign]);
}

#[test]
fn a_signature_that_anybody_could_add_changes_nothing() {
    let (_, json) = message(RoomVersionId::V12);
    let twice = altered(&json, |event| {
        event["signatures"]["bob.example"]["ed25519:old"] = json!("AAAA");
        event["signatures"]["eve.example"] = json!({"ed25519:test": "AAAA"});
    });
    let keys = |server: &ruma::ServerName, id: &str, ts| match id {
        "ed25519:old" => Some(VerifyKey {
            revoked: true,
            ..TestServer::new("old.example").verify_key()
        }),
        id => any_key(server, id, ts),
    };
    let checked = check_pdu(&twice, &RoomVersionId::V12, keys).unwrap();
    assert!(!checked.revoked_key());
    assert_eq!(
        checked.event_id(),
        check_pdu(&json, &RoomVersionId::V12, any_key).unwrap().event_id()
    );
}
