//! One node by itself.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};

use super::{at, create, joined, say};
use crate::testing::{Cluster, assert_refused, escape};

#[tokio::test]
async fn a_room_of_each_version() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for version in ["10", "11", "12"] {
        for preset in ["private_chat", "public_chat", "trusted_private_chat"] {
            let room = create(
                &alice,
                json!({"room_version": version, "preset": preset, "name": "Tea"}),
            )
            .await;
            assert!(joined(&alice).await.contains(&room));
            let first = say(&alice, &room, "a", "hello").await;
            assert_eq!(say(&alice, &room, "a", "hello").await, first);
            assert_ne!(say(&alice, &room, "b", "hello").await, first);
        }
    }
    let answer = alice
        .post("/_matrix/client/v3/createRoom", json!({"room_version": "9"}))
        .await;
    assert_refused(answer, (400, "M_UNSUPPORTED_ROOM_VERSION"));
    let bob = cluster[0].register("bob").await;
    let room = create(&alice, json!({})).await;
    let body = json!({"msgtype": "m.text", "body": "hi"});
    assert_refused(
        bob.put(&at(&room, "send/m.room.message/a"), body).await,
        (403, "M_FORBIDDEN"),
    );
}

#[tokio::test]
async fn rooms_made_at_the_same_time_are_different_rooms() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    cluster.clock.stop();
    let made = futures::future::join_all((0..16).map(|_| create(&alice, json!({})))).await;
    let different: BTreeSet<&String> = made.iter().collect();
    assert_eq!(different.len(), 16);
    assert_eq!(joined(&alice).await.len(), 16);
}

/// The creator's power, the guests' power, and the rules that each preset makes.
#[tokio::test]
async fn presets() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let cases = [
        ("private_chat", "invite", "can_join", false),
        ("trusted_private_chat", "invite", "can_join", true),
        ("public_chat", "public", "forbidden", false),
    ];
    for version in ["10", "11", "12"] {
        for (preset, join_rule, guest_access, equal) in cases {
            let body = json!({"room_version": version, "preset": preset, "invite": [bob.user_id], "is_direct": true});
            let room = create(&alice, body).await;
            let state = async |kind: &str| alice.get_ok(&at(&room, &format!("state/{kind}/"))).await;
            assert_eq!(state("m.room.join_rules").await["join_rule"], join_rule);
            assert_eq!(state("m.room.guest_access").await["guest_access"], guest_access);
            assert_eq!(state("m.room.history_visibility").await["history_visibility"], "shared");
            let member = alice
                .get_ok(&at(&room, &format!("state/m.room.member/{}", bob.user_id)))
                .await;
            assert_eq!(
                (&member["membership"], &member["is_direct"]),
                (&json!("invite"), &json!(true))
            );
            bob.post_ok(&at(&room, "join"), json!({})).await;
            let renamed = bob
                .put(&at(&room, "state/m.room.tombstone/"), json!({"body": ""}))
                .await;
            assert_eq!(renamed.0 == StatusCode::OK, equal, "{version} {preset}");
        }
    }
}

#[tokio::test]
async fn initial_state_name_and_topic() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let body = json!({
        "name": "Tea", "topic": "leaves", "room_alias_name": "tea", "visibility": "public",
        "initial_state": [
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {"type": "m.room.name", "content": {"name": "Coffee"}},
            {"type": "org.example", "state_key": "a", "content": {"b": 1}},
        ],
        "creation_content": {"type": "m.space", "m.federate": false},
        "power_level_content_override": {"events": {"m.room.name": 0}},
    });
    let room = create(&alice, body).await;
    let state = async |kind: &str| alice.get_ok(&at(&room, &format!("state/{kind}"))).await;
    assert_eq!(state("m.room.name").await["name"], "Tea");
    assert_eq!(state("m.room.topic").await["topic"], "leaves");
    assert_eq!(state("m.room.encryption").await["algorithm"], "m.megolm.v1.aes-sha2");
    assert_eq!(state("org.example/a").await["b"], 1);
    let create_event = state("m.room.create").await;
    assert_eq!(
        (&create_event["type"], &create_event["m.federate"]),
        (&json!("m.space"), &json!(false))
    );
    assert_eq!(state("m.room.power_levels").await["events"], json!({"m.room.name": 0}));
    let alias = format!("#tea:{}", cluster[0].name);
    assert_eq!(state("m.room.canonical_alias").await["alias"], *alias);
    let found = cluster[0]
        .client()
        .get_ok(&format!("/_matrix/client/v3/directory/room/{}", escape(&alias)))
        .await;
    assert_eq!(found, json!({"room_id": room, "servers": [cluster[0].name]}));
    let list = cluster[0].client().get_ok("/_matrix/client/v3/publicRooms").await;
    assert_eq!(list["chunk"][0]["room_id"], *room);
    assert_eq!(list["chunk"][0]["room_type"], "m.space");
}

#[tokio::test]
async fn a_membership_goes_round() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let room = create(&alice, json!({})).await;
    let bobs = async || {
        alice
            .get_ok(&at(&room, &format!("state/m.room.member/{}", bob.user_id)))
            .await
    };
    let of_bob = json!({"user_id": bob.user_id, "reason": "because"});
    let steps = [
        (&alice, "invite", of_bob.clone(), "invite"),
        (&bob, "leave", json!({"reason": "because"}), "leave"),
        (&bob, "forget", json!({}), "leave"),
        (&alice, "invite", of_bob.clone(), "invite"),
        (&bob, "join", json!({"reason": "because"}), "join"),
        (&bob, "join", json!({}), "join"),
        (&alice, "kick", of_bob.clone(), "leave"),
        (&alice, "ban", of_bob.clone(), "ban"),
        (&bob, "forget", json!({}), "ban"),
        (&alice, "unban", of_bob.clone(), "leave"),
        (&alice, "invite", of_bob.clone(), "invite"),
        (&bob, "join", json!({"reason": "because"}), "join"),
        (&bob, "leave", json!({"reason": "because"}), "leave"),
        (&bob, "leave", json!({}), "leave"),
    ];
    for (who, action, body, membership) in steps {
        who.post_ok(&at(&room, action), body).await;
        let member = bobs().await;
        assert_eq!(
            (&member["membership"], &member["reason"]),
            (&json!(membership), &json!("because")),
            "{action}"
        );
        assert_eq!(joined(&bob).await.is_empty(), membership != "join");
    }
    // The same through the state event itself.
    let member = at(&room, &format!("state/m.room.member/{}", bob.user_id));
    for (who, membership) in [
        (&alice, "invite"),
        (&bob, "join"),
        (&bob, "leave"),
        (&alice, "ban"),
        (&alice, "leave"),
    ] {
        let answer = who.put_ok(&member, json!({"membership": membership})).await;
        assert!(answer["event_id"].is_string());
        assert_eq!(bobs().await["membership"], membership);
    }
}

#[tokio::test]
async fn repeated_and_concurrent_requests() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let same = futures::future::join_all((0..16).map(|_| say(&alice, &room, "same", "hello"))).await;
    assert!(same.iter().all(|event| *event == same[0]));
    let txns: Vec<String> = (0..64).map(|n| format!("txn{n}")).collect();
    let sent = futures::future::join_all(txns.iter().map(|txn| say(&alice, &room, txn, "hello"))).await;
    let different: BTreeSet<&String> = sent.iter().collect();
    assert_eq!(different.len(), 64);

    // Another device, another type and a redaction are other requests, whatever their transaction id.
    let laptop = cluster[0].login("alice").await;
    assert_ne!(say(&laptop, &room, "same", "hello").await, same[0]);
    let path = at(&room, "send/org.example/same");
    assert_ne!(alice.put_ok(&path, json!({})).await["event_id"], *same[0]);
    let redact = at(&room, &format!("redact/{}/same", escape(&same[0])));
    let redaction = alice.put_ok(&redact, json!({"reason": "no"})).await;
    assert_ne!(redaction["event_id"], *same[0]);
    assert_eq!(alice.put_ok(&redact, json!({"reason": "no"})).await, redaction);

    // State set again by the same user is the same event.
    let name = at(&room, "state/m.room.name");
    let set = alice.put_ok(&name, json!({"name": "Tea"})).await;
    assert_eq!(alice.put_ok(&name, json!({"name": "Tea"})).await, set);
    assert_ne!(alice.put_ok(&name, json!({"name": "Coffee"})).await, set);

    // The node remembers over a restart.
    cluster.nodes[0].restart().await;
    let again = cluster[0].again(&alice);
    assert_eq!(say(&again, &room, "same", "hello").await, same[0]);
}

#[tokio::test]
async fn profiles_show_in_rooms() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&at(&room, "join"), json!({})).await;
    let bobs = async || {
        alice
            .get_ok(&at(&room, &format!("state/m.room.member/{}", bob.user_id)))
            .await
    };
    let profile = |field: &str| format!("/_matrix/client/v3/profile/{}/{field}", bob.user_id);
    bob.put_ok(&profile("displayname"), json!({"displayname": "Bob"})).await;
    bob.put_ok(&profile("avatar_url"), json!({"avatar_url": "mxc://a/b"}))
        .await;
    assert_eq!(
        bobs().await,
        json!({"membership": "join", "displayname": "Bob", "avatar_url": "mxc://a/b"})
    );
    bob.delete(&profile("displayname")).await;
    assert_eq!(bobs().await, json!({"membership": "join", "avatar_url": "mxc://a/b"}));
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    bob.put_ok(&profile("displayname"), json!({"displayname": "Robert"}))
        .await;
    assert_eq!(bobs().await, json!({"membership": "leave"}));
}

#[tokio::test]
async fn restricted_rooms_and_knocks() {
    let cluster = Cluster::start(1).await;
    let [alice, bob, carol] = [
        cluster[0].register("alice").await,
        cluster[0].register("bob").await,
        cluster[0].register("carol").await,
    ];
    let club = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&at(&club, "join"), json!({})).await;
    for rule in ["restricted", "knock_restricted"] {
        let allow = json!([{"type": "m.room_membership", "room_id": club}]);
        let rules = json!({"type": "m.room.join_rules", "content": {"join_rule": rule, "allow": allow}});
        let room = create(&alice, json!({"initial_state": [rules]})).await;
        bob.post_ok(&at(&room, "join"), json!({})).await;
        assert_refused(carol.post(&at(&room, "join"), json!({})).await, (403, "M_FORBIDDEN"));
        let knock = format!("/_matrix/client/v3/knock/{}", escape(&room));
        if rule == "restricted" {
            assert_refused(carol.post(&knock, json!({})).await, (403, "M_FORBIDDEN"));
            continue;
        }
        for _ in 0..2 {
            assert_eq!(
                carol.post_ok(&knock, json!({"reason": "please"})).await["room_id"],
                *room
            );
        }
        let member = alice
            .get_ok(&at(&room, &format!("state/m.room.member/{}", carol.user_id)))
            .await;
        assert_eq!(
            (&member["membership"], &member["reason"]),
            (&json!("knock"), &json!("please"))
        );
        carol.post_ok(&at(&room, "leave"), json!({})).await;
        carol.post_ok(&knock, json!({})).await;
        alice
            .post_ok(&at(&room, "invite"), json!({"user_id": carol.user_id}))
            .await;
        carol.post_ok(&at(&room, "join"), json!({})).await;
    }
}

#[tokio::test]
async fn aliases_and_the_public_room_list() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let mut rooms = Vec::new();
    for name in ["Tea", "Coffee", "Cocoa"] {
        let body = json!({"preset": "public_chat", "visibility": "public", "name": name, "topic": "drinks"});
        rooms.push(create(&alice, body).await);
    }
    bob.post_ok(&at(&rooms[2], "join"), json!({})).await;
    let path = "/_matrix/client/v3/publicRooms";
    let names = |list: &Value| -> Vec<String> {
        let chunk = list["chunk"].as_array().unwrap();
        chunk
            .iter()
            .map(|room| room["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = bob.get_ok(&format!("{path}?limit=2")).await;
    assert_eq!(names(&first)[0], "Cocoa");
    assert_eq!(first["total_room_count_estimate"], 3);
    let next = bob
        .get_ok(&format!(
            "{path}?limit=2&since={}",
            first["next_batch"].as_str().unwrap()
        ))
        .await;
    assert_eq!((names(&next).len(), &next["next_batch"]), (1, &Value::Null));
    let back = bob
        .get_ok(&format!(
            "{path}?limit=2&since={}",
            next["prev_batch"].as_str().unwrap()
        ))
        .await;
    assert_eq!(names(&back), names(&first));
    let search = |filter: Value| bob.post_ok(path, json!({"filter": filter}));
    assert_eq!(
        names(
            &bob.post_ok(path, json!({"filter": {"generic_search_term": "cof"}}))
                .await
        ),
        ["Coffee"]
    );
    assert_eq!(names(&search(json!({"generic_search_term": "DRINKS"})).await).len(), 3);
    assert_eq!(names(&search(json!({"room_types": ["m.space"]})).await).len(), 0);
    assert_eq!(names(&search(json!({"room_types": [null]})).await).len(), 3);

    let list = format!("/_matrix/client/v3/directory/list/room/{}", escape(&rooms[0]));
    alice.put_ok(&list, json!({"visibility": "private"})).await;
    assert_eq!(bob.get_ok(&list).await["visibility"], "private");
    assert_eq!(names(&bob.get_ok(path).await).len(), 2);

    let alias = format!("#drink:{}", cluster[0].name);
    let directory = format!("/_matrix/client/v3/directory/room/{}", escape(&alias));
    bob.put_ok(&directory, json!({"room_id": rooms[2]})).await;
    assert_eq!(alice.get_ok(&at(&rooms[2], "aliases")).await["aliases"], json!([alias]));
    alice
        .put_ok(&at(&rooms[2], "state/m.room.canonical_alias"), json!({"alias": alias}))
        .await;
    // Not bob's room, but bob's alias; and alice may remove it by her power.
    let other = format!("#other:{}", cluster[0].name);
    let others = format!("/_matrix/client/v3/directory/room/{}", escape(&other));
    bob.put_ok(&others, json!({"room_id": rooms[2]})).await;
    assert_eq!(alice.delete(&others).await.0, StatusCode::OK);
    assert_eq!(bob.delete(&directory).await.0, StatusCode::OK);
    assert_refused(bob.get(&directory).await, (404, "M_NOT_FOUND"));
    // An alias that is gone may stay in the event where it stood.
    alice
        .put_ok(
            &at(&rooms[2], "state/m.room.canonical_alias"),
            json!({"alt_aliases": [alias]}),
        )
        .await;
}

#[tokio::test]
async fn upgrades() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    for (from, to) in [("10", "11"), ("11", "12"), ("12", "12"), ("12", "10")] {
        let body = json!({
            "room_version": from, "preset": "public_chat", "visibility": "public", "room_alias_name": "tea", "name": "Tea",
        });
        let old = create(&alice, body).await;
        bob.post_ok(&at(&old, "join"), json!({})).await;
        let new = alice.post_ok(&at(&old, "upgrade"), json!({"new_version": to})).await;
        let new = new["replacement_room"].as_str().unwrap().to_owned();
        let state = async |room: &str, kind: &str| alice.get(&at(room, &format!("state/{kind}/"))).await.1;
        assert_eq!(state(&old, "m.room.tombstone").await["replacement_room"], *new);
        let opened = state(&new, "m.room.create").await;
        assert_eq!(
            (&opened["room_version"], &opened["predecessor"]["room_id"]),
            (&json!(to), &json!(old))
        );
        assert_eq!(state(&new, "m.room.name").await["name"], "Tea");
        assert_eq!(state(&new, "m.room.join_rules").await["join_rule"], "public");
        let alias = format!("#tea:{}", cluster[0].name);
        assert_eq!(state(&new, "m.room.canonical_alias").await["alias"], *alias);
        let directory = format!("/_matrix/client/v3/directory/room/{}", escape(&alias));
        assert_eq!(bob.get_ok(&directory).await["room_id"], *new);
        let list = bob.get_ok("/_matrix/client/v3/publicRooms").await;
        assert_eq!(
            (list["chunk"].as_array().unwrap().len(), &list["chunk"][0]["room_id"]),
            (1, &json!(new))
        );
        // The old room is closed to its ordinary members.
        let text = json!({"msgtype": "m.text", "body": "still here"});
        assert_refused(
            bob.put(&at(&old, "send/m.room.message/1"), text).await,
            (403, "M_FORBIDDEN"),
        );
        bob.post_ok(&at(&new, "join"), json!({})).await;
        say(&bob, &new, &format!("{from}{to}"), "here now").await;
        // Out of the way of the next pair.
        assert_eq!(alice.delete(&directory).await.0, StatusCode::OK);
        let list = format!("/_matrix/client/v3/directory/list/room/{}", escape(&new));
        alice.put_ok(&list, json!({"visibility": "private"})).await;
    }
}

#[tokio::test]
async fn a_closed_account_leaves_its_rooms() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&at(&room, "join"), json!({})).await;
    let auth =
        json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bob"}, "password": "secret"});
    bob.post_ok("/_matrix/client/v3/account/deactivate", json!({"auth": auth}))
        .await;
    let member = alice
        .get_ok(&at(&room, &format!("state/m.room.member/{}", bob.user_id)))
        .await;
    assert_eq!(member["membership"], "leave");
}
