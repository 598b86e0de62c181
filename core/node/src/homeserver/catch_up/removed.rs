//! Servers whose users were removed from a room, or left it, and what either side then hears of the other.

use std::collections::BTreeSet;

use http::Method;
use kith_engine::RoomReader;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, events::room::member::MembershipState};
use serde_json::{Value, json};

use super::mallory::Mallory;
use crate::{
    homeserver::terms::Terms,
    testing::{
        Client, Cluster, Node, assert_refused, escape,
        rooms::{common_room, common_room_with, eventually, join, say, texts, until_alike, until_text},
    },
};

/// Every transaction of PDUs and EDUs.
const SENDS: &str = "/federation/v1/send/";

fn at(room: &OwnedRoomId, what: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{what}", escape(room.as_str()))
}

/// Waits until a node's own state gives a user this membership.
async fn until_membership(node: &Node, room: &OwnedRoomId, user: &str, membership: MembershipState) {
    let (room, user) = (room.clone(), OwnedUserId::try_from(user).unwrap());
    eventually(node, move |txn| {
        Ok((txn.membership(&room, &user)? == membership).then_some(()))
    })
    .await;
}

async fn texts_of(node: &Node, room: &OwnedRoomId) -> Vec<String> {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| texts(txn, &room));
    read.await.unwrap()
}

async fn heads_of(node: &Node, room: &OwnedRoomId) -> Vec<String> {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| txn.forward_extremities(&room));
    read.await.unwrap().into_iter().map(Into::into).collect()
}

async fn remove(by: &Client, how: &str, room: &OwnedRoomId, user: &str) {
    by.post_ok(&at(room, how), json!({"user_id": user})).await;
}

fn room_with(visibility: &str) -> Value {
    let visibility = json!({"type": "m.room.history_visibility", "content": {"history_visibility": visibility}});
    json!({"preset": "public_chat", "initial_state": [visibility]})
}

#[tokio::test]
async fn who_was_removed_while_away_hears_of_it_from_whoever_is_left() {
    let cases = [
        ("shared", &["kick"][..], MembershipState::Leave),
        ("joined", &["kick"], MembershipState::Leave),
        ("invited", &["ban"], MembershipState::Ban),
        // A former member is told no more of a room that all may read: it may look there like anybody.
        ("world_readable", &["ban"], MembershipState::Ban),
        // What became of the user later, the user's server may not know, but that it was removed.
        ("shared", &["ban", "unban"], MembershipState::Ban),
        ("shared", &["kick", "ban"], MembershipState::Leave),
    ];
    for (visibility, removals, expected) in cases {
        let cluster = Cluster::start(3).await;
        let (room, clients) = common_room_with(&cluster, room_with(visibility)).await;
        let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
        let user = &clients[2].user_id;
        c.go_down();
        say(&clients[0], &room, "before").await;
        for removal in removals {
            remove(&clients[0], removal, &room, user).await;
            say(&clients[0], &room, &format!("after the {removal}")).await;
        }
        until_alike(&[a, b], &room).await;
        // Who removed the user is gone for good.
        a.go_down();
        c.come_up();
        until_membership(c, &room, user, expected).await;
        assert_eq!(texts_of(c, &room).await, ["before"], "{visibility} {removals:?}");
        let sync = clients[2].get_ok("/_matrix/client/v3/sync").await;
        assert!(sync["rooms"]["join"].get(room.as_str()).is_none(), "{sync}");
    }
}

#[tokio::test]
async fn removals_and_leaves_are_heard_of_without_a_single_send() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    cluster.wires.lose(SENDS);
    remove(&clients[0], "kick", &room, &clients[2].user_id).await;
    // It is in the past at once.
    say(&clients[0], &room, "without you").await;
    until_membership(c, &room, &clients[2].user_id, MembershipState::Leave).await;
    until_alike(&[a, b], &room).await;
    clients[1].post_ok(&at(&room, "leave"), json!({})).await;
    until_membership(a, &room, &clients[1].user_id, MembershipState::Leave).await;
    assert_eq!(texts_of(c, &room).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_leave_that_nobody_heard_is_told_after_a_restart() {
    let mut cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    cluster.wires.lose(SENDS);
    cluster[0].go_down();
    clients[1].post_ok(&at(&room, "leave"), json!({})).await;
    cluster.nodes[1].restart().await;
    cluster[0].come_up();
    until_membership(&cluster[0], &room, &clients[1].user_id, MembershipState::Leave).await;
}

#[tokio::test]
async fn of_two_users_removed_at_once_by_different_servers_both_hear() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    let dora = c.register("dora").await;
    join(&dora, &room, a).await;
    let path = at(&room, "state/m.room.power_levels/");
    let mut levels = clients[0].get_ok(&path).await;
    levels["users"][&clients[1].user_id] = json!(50);
    clients[0].put_ok(&path, levels).await;
    until_alike(&[a, b, c], &room).await;
    c.go_down();
    remove(&clients[0], "kick", &room, &clients[2].user_id).await;
    until_alike(&[a, b], &room).await;
    // One of two is out: the server is in the room as before.
    c.come_up();
    say(&clients[0], &room, "with dora").await;
    until_text(c, &room, "with dora").await;
    until_membership(c, &room, &clients[2].user_id, MembershipState::Leave).await;
    clients[0]
        .post_ok(&at(&room, "invite"), json!({"user_id": clients[2].user_id}))
        .await;
    until_membership(c, &room, &clients[2].user_id, MembershipState::Invite).await;
    join(&clients[2], &room, a).await;
    until_alike(&[a, b, c], &room).await;
    c.go_down();
    cluster.wires.cut(&a.name, &b.name);
    remove(&clients[0], "kick", &room, &clients[2].user_id).await;
    remove(&clients[1], "kick", &room, &dora.user_id).await;
    cluster.wires.mend(&a.name, &b.name);
    until_alike(&[a, b], &room).await;
    say(&clients[0], &room, "without both").await;
    a.go_down();
    c.come_up();
    for user in [&clients[2].user_id, &dora.user_id] {
        until_membership(c, &room, user, MembershipState::Leave).await;
    }
    assert_eq!(texts_of(c, &room).await, ["with dora"]);
}

#[tokio::test]
async fn what_was_said_alone_while_being_removed_counts_for_nobody_else() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    c.go_down();
    say(&clients[2], &room, "alone").await;
    remove(&clients[0], "kick", &room, &clients[2].user_id).await;
    until_membership(b, &room, &clients[2].user_id, MembershipState::Leave).await;
    say(&clients[1], &room, "among us").await;
    c.come_up();
    until_membership(c, &room, &clients[2].user_id, MembershipState::Leave).await;
    until_alike(&[a, b], &room).await;
    assert_eq!(texts_of(c, &room).await, ["alone"]);
    for node in [a, b] {
        assert_eq!(texts_of(node, &room).await, ["among us"]);
    }
}

#[tokio::test]
async fn a_removal_by_somebody_who_had_lost_the_power_to_it_does_not_hold() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    let dora = b.register("dora").await;
    join(&dora, &room, a).await;
    let path = at(&room, "state/m.room.power_levels/");
    let mut levels = clients[0].get_ok(&path).await;
    levels["users"][&clients[1].user_id] = json!(50);
    clients[0].put_ok(&path, levels.clone()).await;
    until_alike(&[a, b], &room).await;
    b.go_down();
    // alice, at the same time: the moderator is none any more. The creator's word stands.
    levels["users"][&clients[1].user_id] = json!(0);
    clients[0].put_ok(&path, levels).await;
    remove(&clients[1], "kick", &room, &dora.user_id).await;
    until_membership(b, &room, &dora.user_id, MembershipState::Leave).await;
    b.come_up();
    until_membership(b, &room, &dora.user_id, MembershipState::Join).await;
    until_membership(b, &room, &clients[1].user_id, MembershipState::Join).await;
    say(&dora, &room, "still here").await;
    until_text(a, &room, "still here").await;
    until_alike(&[a, b], &room).await;
}

/// The moderator bans whom the creator has made as powerful as itself meanwhile. The creator's word stands, and so the banned
/// is in the room for everybody: its node too.
#[tokio::test]
async fn who_was_banned_by_somebody_who_may_not_is_in_the_room_again() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    let user = &clients[2].user_id;
    let path = at(&room, "state/m.room.power_levels/");
    let mut levels = clients[0].get_ok(&path).await;
    levels["users"][&clients[1].user_id] = json!(50);
    clients[0].put_ok(&path, levels.clone()).await;
    until_alike(&[a, b, c], &room).await;
    a.go_down();
    remove(&clients[1], "ban", &room, user).await;
    until_membership(c, &room, user, MembershipState::Ban).await;
    levels["users"][user] = json!(100);
    clients[0].put_ok(&path, levels).await;
    c.go_down();
    a.come_up();
    until_membership(b, &room, user, MembershipState::Join).await;
    say(&clients[1], &room, "still here").await;
    c.come_up();
    until_membership(c, &room, user, MembershipState::Join).await;
    until_text(c, &room, "still here").await;
    say(&clients[2], &room, "so it seems").await;
    until_text(a, &room, "so it seems").await;
    until_alike(&[a, b, c], &room).await;
}

#[tokio::test]
async fn who_was_banned_does_not_come_back_through_who_has_not_heard() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    let user = &clients[2].user_id;
    cluster.wires.cut(&a.name, &b.name);
    remove(&clients[0], "ban", &room, user).await;
    until_membership(c, &room, user, MembershipState::Ban).await;
    a.go_down();
    // What the other one is told when it is asked in, it does not look into now.
    cluster.wires.lose("/org.kith/pull/");
    let via = format!("/_matrix/client/v3/join/{}?via={}", escape(room.as_str()), b.name);
    assert_refused(clients[2].post(&via, json!({})).await, (403, "M_FORBIDDEN"));
    assert_eq!(cluster.wires.requests("/send_join/"), 3);
    until_membership(c, &room, user, MembershipState::Ban).await;
    cluster.wires.lose_nothing();
    cluster.wires.mend(&a.name, &b.name);
    a.come_up();
    until_membership(b, &room, user, MembershipState::Ban).await;
    say(&clients[1], &room, "without you").await;
    until_text(a, &room, "without you").await;
    until_alike(&[a, b], &room).await;
    assert_eq!(texts_of(c, &room).await, [] as [&str; 0]);
}

#[tokio::test]
async fn who_was_removed_and_invited_again_while_away_sees_the_invite() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    cluster.wires.lose(SENDS);
    cluster.wires.lose("/org.kith/heads");
    let before = clients[1].get_ok("/_matrix/client/v3/sync").await["next_batch"].clone();
    remove(&clients[0], "kick", &room, &clients[1].user_id).await;
    // The invite is handed over, though what came before it is not.
    clients[0]
        .post_ok(&at(&room, "invite"), json!({"user_id": clients[1].user_id}))
        .await;
    say(&clients[0], &room, "come back").await;
    cluster.wires.lose_nothing();
    b.go_down();
    b.come_up();
    until_membership(b, &room, &clients[1].user_id, MembershipState::Leave).await;
    let since = format!("/_matrix/client/v3/sync?since={}", before.as_str().unwrap());
    for path in ["/_matrix/client/v3/sync", &since] {
        let sync = clients[1].get_ok(path).await;
        assert!(sync["rooms"]["invite"].get(room.as_str()).is_some(), "{sync}");
    }
    clients[1].post_ok(&at(&room, "join"), json!({})).await;
    say(&clients[0], &room, "here again").await;
    until_text(b, &room, "here again").await;
    until_alike(&[a, b], &room).await;
}

/// What a former member may ask about an event, and what it may be answered about one that came after it left.
fn questions(room: &OwnedRoomId, event: &str) -> Vec<(Method, String, Value)> {
    let (room, event, id) = (escape(room.as_str()), escape(event), event);
    let v1 = |path: String| format!("/_matrix/federation/v1/{path}");
    let kith = |path: String| format!("/_matrix/federation/unstable/org.kith/{path}");
    let missing = json!({"latest_events": [id], "earliest_events": [], "limit": 100, "min_depth": 0});
    vec![
        (Method::GET, v1(format!("event/{event}")), Value::Null),
        (
            Method::GET,
            v1(format!("backfill/{room}?v={event}&limit=50")),
            Value::Null,
        ),
        (Method::GET, v1(format!("state/{room}?event_id={event}")), Value::Null),
        (
            Method::GET,
            v1(format!("state_ids/{room}?event_id={event}")),
            Value::Null,
        ),
        (Method::GET, v1(format!("event_auth/{room}/{event}")), Value::Null),
        (Method::POST, v1(format!("get_missing_events/{room}")), missing),
        (Method::POST, kith(format!("pull/{room}")), json!({"event_ids": [id]})),
        (
            Method::POST,
            kith(format!("pull/{room}")),
            json!({"event_ids": [id], "past": true}),
        ),
    ]
}

#[tokio::test]
async fn who_left_learns_nothing_of_what_comes_after() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    say(&clients[0], &room, "before").await;
    until_alike(&[a, b], &room).await;
    let before = heads_of(a, &room).await.remove(0);
    remove(&clients[0], "kick", &room, &clients[1].user_id).await;
    let kick = heads_of(a, &room).await.remove(0);
    until_membership(b, &room, &clients[1].user_id, MembershipState::Leave).await;
    let heads = async || {
        let told = json!({"rooms": {room.as_str(): {"events": [], "digest": "", "depth": 0}}});
        let path = "/_matrix/federation/unstable/org.kith/heads";
        b.ask(a, Method::POST, path, told).await.1["rooms"][room.as_str()].clone()
    };
    let compare = async |masks: bool| {
        let mut body = json!({"key": "A".repeat(43), "depth": 0});
        if masks {
            body["masks"] = json!("");
        } else {
            // An empty set of ours: the answer names everything on the other side.
            let set = kith_engine::EventSet::new(&kith_engine::SetKey([0; 32]), []).unwrap();
            let first = kith_engine::Reconciliation::new(set).first_message().unwrap();
            body["message"] = json!(ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(first));
        }
        let path = format!(
            "/_matrix/federation/unstable/org.kith/reconcile/{}",
            escape(room.as_str())
        );
        b.ask(a, Method::POST, &path, body).await.1
    };
    let near = async |dir: &str| {
        let room = escape(room.as_str());
        let ts = if dir == "b" { i64::from(u32::MAX) * 1_000 } else { 1 };
        let path = format!("/_matrix/federation/v1/timestamp_to_event/{room}?ts={ts}&dir={dir}");
        b.ask(a, Method::GET, &path, Value::Null).await.1["event_id"].clone()
    };
    let at_leaving = (
        heads().await,
        compare(true).await,
        compare(false).await,
        near("b").await,
    );
    assert_eq!(at_leaving.0["events"], json!([kick]));
    assert_eq!(at_leaving.3, json!(kick));

    say(&clients[0], &room, "after").await;
    let topic = at(&room, "state/m.room.topic/");
    clients[0].put_ok(&topic, json!({"topic": "they are gone"})).await;
    for round in 0..30 {
        say(&clients[0], &room, &format!("more {round}")).await;
    }
    let now = (
        heads().await,
        compare(true).await,
        compare(false).await,
        near("b").await,
    );
    assert_eq!(now, at_leaving);

    for event in [&before, &kick] {
        for (method, path, body) in questions(&room, event) {
            let (status, answer) = b.ask(a, method, &path, body).await;
            assert_eq!(status, 200, "{path}: {answer}");
            assert!(!answer.to_string().contains("they are gone"), "{path}: {answer}");
        }
    }
    for after in heads_of(a, &room).await {
        for (method, path, body) in questions(&room, &after) {
            let (status, answer) = b.ask(a, method, &path, body).await;
            let nothing = ["pdus", "events"].iter().all(|list| {
                let list = answer[list].as_array();
                list.is_none_or(Vec::is_empty)
            });
            assert!(status == 404 || nothing, "{path}: {answer}");
        }
    }
    // Whom the room's list keeps out has not even been there.
    let acl = json!({"allow": ["*"], "deny": [b.name]});
    clients[0]
        .put_ok(&at(&room, "state/m.room.server_acl/"), acl.clone())
        .await;
    assert_eq!(heads().await, Value::Null);
    for (method, path, body) in questions(&room, &before) {
        let expected = if path.contains("v1/event/") {
            (404, "M_NOT_FOUND")
        } else {
            (403, "M_FORBIDDEN")
        };
        assert_refused(b.ask(a, method, &path, body).await, expected);
    }
    // Who comes back is a member like others.
    let acl = json!({"allow": ["*"], "deny": []});
    clients[0].put_ok(&at(&room, "state/m.room.server_acl/"), acl).await;
    join(&clients[1], &room, a).await;
    until_alike(&[a, b], &room).await;
    assert_eq!(heads().await["events"], json!(heads_of(a, &room).await));
}

#[tokio::test]
async fn who_never_was_in_a_room_is_no_former_member() {
    let cluster = Cluster::start(2).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let body = json!({"preset": "private_chat", "invite": [bob.user_id]});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    remove(&alice, "kick", &room, &bob.user_id).await;
    let event = heads_of(a, &room).await.remove(0);
    for (method, path, body) in questions(&room, &event) {
        let status = b.ask(a, method, &path, body).await.0.as_u16();
        assert!(status == 403 || status == 404, "{path}");
    }
}

/// A room of alice on the first node, who said something before bob on the second one joined.
async fn room_with_a_past(cluster: &Cluster) -> (OwnedRoomId, Client, Client) {
    let alice = cluster[0].register("alice").await;
    let answer = alice
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    say(&alice, &room, "early").await;
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    until_alike(&[&cluster[0], &cluster[1]], &room).await;
    (room, alice, bob)
}

#[tokio::test]
async fn what_only_who_left_has_is_read_back_from_it_and_nothing_that_it_makes_up() {
    let cluster = Cluster::start(2).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    let (room, alice, bob) = room_with_a_past(&cluster).await;
    let mallory = Mallory::new(a, &alice, &room);
    let (_, invented) = mallory.forge(&mallory.base().await, json!({}));
    cluster.wires.lie_of(&a.name, "/backfill/", move |answer| {
        answer["pdus"].as_array_mut().unwrap().push(invented.clone());
    });
    alice.post_ok(&at(&room, "leave"), json!({})).await;
    until_membership(b, &room, &alice.user_id, MembershipState::Leave).await;
    say(&bob, &room, "later").await;
    for _ in 0..2 {
        let page = bob.get_ok(&at(&room, "messages?dir=b&limit=50")).await;
        let bodies = page["chunk"].as_array().unwrap().iter();
        let bodies: Vec<&str> = bodies.filter_map(|event| event["content"]["body"].as_str()).collect();
        assert_eq!(bodies, ["later", "early"]);
    }
    assert_eq!(cluster.wires.requests_to(&a.name, "/backfill/"), 1);
}

#[tokio::test]
async fn who_left_may_know_what_came_before_and_nothing_that_came_since() {
    let cluster = Cluster::start(2).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    let (room, alice, bob) = room_with_a_past(&cluster).await;
    let before = heads_of(b, &room).await;
    alice.post_ok(&at(&room, "leave"), json!({})).await;
    until_membership(b, &room, &alice.user_id, MembershipState::Leave).await;
    let leave = heads_of(b, &room).await;
    say(&bob, &room, "later").await;
    let later = heads_of(b, &room).await;
    let ids = |names: &[&Vec<String>]| -> BTreeSet<OwnedEventId> {
        let names = names.iter().copied().flatten();
        names.map(|name| name.as_str().try_into().unwrap()).collect()
    };
    let asked = ids(&[&before, &leave, &later]);
    let (room, own, other) = (room.clone(), b.name.clone(), a.name.clone());
    let read = b.hs.context.store.read(move |txn| {
        let terms = Terms::between(txn, &room, &own, &other)?.unwrap();
        terms.known_of(txn, &room, &asked)
    });
    assert_eq!(read.await.unwrap(), ids(&[&before, &leave]));
}

#[tokio::test]
async fn an_invite_by_who_has_not_heard_of_the_join_moves_nobody() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    let alice = a.register("alice").await;
    let body = json!({"preset": "public_chat", "power_level_content_override": {"invite": 0}});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    let (bob, carol) = (b.register("bob").await, c.register("carol").await);
    join(&carol, &room, a).await;
    until_alike(&[a, c], &room).await;
    cluster.wires.lose(SENDS);
    cluster.wires.lose("/org.kith/heads");
    // Of the first invite nobody hears: the second one builds upon what bob's node does not hold.
    cluster.wires.cut(&b.name, &c.name);
    let invite = json!({"user_id": bob.user_id});
    carol.post(&at(&room, "invite"), invite.clone()).await;
    join(&bob, &room, a).await;
    let before = bob.get_ok("/_matrix/client/v3/sync").await["next_batch"].clone();
    cluster.wires.mend(&b.name, &c.name);
    let told = cluster.wires.requests_to(&b.name, "/invite/");
    carol.post_ok(&at(&room, "invite"), invite).await;
    assert_eq!(cluster.wires.requests_to(&b.name, "/invite/"), told + 1);
    let since = format!("/_matrix/client/v3/sync?since={}", before.as_str().unwrap());
    let sync = bob.get_ok(&since).await;
    assert!(sync["rooms"]["invite"].get(room.as_str()).is_none(), "{sync}");
    let sync = bob.get_ok("/_matrix/client/v3/sync").await;
    assert!(sync["rooms"]["invite"].get(room.as_str()).is_none(), "{sync}");
    assert!(sync["rooms"]["join"].get(room.as_str()).is_some(), "{sync}");
}
