//! Several nodes: entering, leaving and inviting across them.

use http::StatusCode;
use serde_json::{Value, json};

use super::{at, create, joined, say};
use crate::testing::{Client, Cluster, Node, assert_refused, escape};

/// The membership of a user as a client's node has it in a room.
pub(super) async fn membership(client: &Client, room: &str, user: &str) -> Value {
    let path = at(room, &format!("state/m.room.member/{}", escape(user)));
    client.get_ok(&path).await["membership"].clone()
}

pub(super) fn join_path(room_or_alias: &str, via: &[&str]) -> String {
    let via: Vec<String> = via.iter().map(|server| format!("via={server}")).collect();
    format!("/_matrix/client/v3/join/{}?{}", escape(room_or_alias), via.join("&"))
}

#[tokio::test]
async fn joins_by_id_alias_and_through_another_member() {
    for version in ["10", "11", "12"] {
        let cluster = Cluster::start(4).await;
        let [alice, bob, carol, dave] = [
            cluster[0].register("alice").await,
            cluster[1].register("bob").await,
            cluster[2].register("carol").await,
            cluster[3].register("dave").await,
        ];
        let body = json!({"room_version": version, "preset": "public_chat", "room_alias_name": "tea", "name": "Tea"});
        let room = create(&alice, body).await;
        say(&alice, &room, "1", "hello").await;

        let answer = bob
            .post_ok(&join_path(&room, &[cluster[0].name.as_str()]), json!({}))
            .await;
        assert_eq!(answer["room_id"], *room);
        assert_eq!(joined(&bob).await, std::slice::from_ref(&room));
        assert_eq!(membership(&bob, &room, &alice.user_id).await, "join");
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
        assert_eq!(bob.get_ok(&at(&room, "state/m.room.name/")).await["name"], "Tea");

        let alias = format!("#tea:{}", cluster[0].name);
        carol.post_ok(&join_path(&alias, &[]), json!({})).await;
        assert_eq!(membership(&carol, &room, &alice.user_id).await, "join");

        // The room's maker is away: another member lets dave in, after one who cannot.
        cluster[0].go_down();
        let via = [cluster[0].name.as_str(), cluster[1].name.as_str()];
        dave.post_ok(&join_path(&room, &via), json!({})).await;
        assert_eq!(membership(&dave, &room, &alice.user_id).await, "join");
        assert_eq!(membership(&bob, &room, &dave.user_id).await, "join");
    }
}

#[tokio::test]
async fn invites_and_their_ends() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let invite = json!({"user_id": bob.user_id});
    let room = create(&alice, json!({"name": "Tea"})).await;

    // Not invited, not let in.
    let join = join_path(&room, &[cluster[0].name.as_str()]);
    assert_refused(bob.post(&join, json!({})).await, (403, "M_FORBIDDEN"));

    alice.post_ok(&at(&room, "invite"), invite.clone()).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "invite");
    let event: Value = {
        let (user, room) = (
            bob.user_id.as_str().try_into().unwrap(),
            room.as_str().try_into().unwrap(),
        );
        let (user, room): (ruma::OwnedUserId, ruma::OwnedRoomId) = (user, room);
        let store = &cluster[1].hs.context.store;
        let outside = store
            .read(move |txn| txn.outside_membership(&user, &room))
            .await
            .unwrap()
            .unwrap();
        let types: Vec<Value> = outside
            .state
            .iter()
            .map(|event| serde_json::from_str::<Value>(event.get()).unwrap()["type"].clone())
            .collect();
        for kind in ["m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"] {
            assert!(types.contains(&json!(kind)), "{kind} is not shown");
        }
        serde_json::from_str(outside.event.get()).unwrap()
    };
    for server in [&cluster[0].name, &cluster[1].name] {
        assert!(event["signatures"][server.as_str()].is_object(), "{event}");
    }

    // Refused through the inviting server.
    bob.post_ok(&at(&room, "leave"), json!({"reason": "no tea"})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "leave");
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    bob.post_ok(&at(&room, "forget"), json!({})).await;

    // Invited again, and accepted: no `via` is needed, for it is known who invited.
    alice.post_ok(&at(&room, "invite"), invite.clone()).await;
    bob.post_ok(&at(&room, "join"), json!({})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");

    // Left, invited, and refused while nobody can be asked.
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let left = async || membership(&alice, &room, &bob.user_id).await == "leave";
    cluster[0].until("alice's node hears that bob left", left).await;
    alice.post_ok(&at(&room, "invite"), invite).await;
    cluster[0].go_down();
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    bob.post_ok(&at(&room, "forget"), json!({})).await;
}

/// Waits until a client's node has an event, and gives it.
pub(super) async fn hear(node: &Node, client: &Client, room: &str, event: &str) -> Value {
    let path = at(room, &format!("event/{}", escape(event)));
    node.until("an event arrives", async || client.get(&path).await.0 == StatusCode::OK)
        .await;
    client.get_ok(&path).await
}

/// Waits until a client's node has a user's membership in a room.
pub(super) async fn until_membership(node: &Node, client: &Client, room: &str, user: &str, wanted: &str) {
    let path = at(room, &format!("state/m.room.member/{}", escape(user)));
    let is_so = async || client.get(&path).await.1["membership"] == *wanted;
    node.until(&format!("{user} is {wanted}"), is_so).await;
}

/// Alice's public room with bob and carol of two other nodes in it.
pub(super) async fn three_together(cluster: &Cluster, version: &str) -> ([Client; 3], String) {
    let clients = [
        cluster[0].register("alice").await,
        cluster[1].register("bob").await,
        cluster[2].register("carol").await,
    ];
    let room = create(&clients[0], json!({"preset": "public_chat", "room_version": version})).await;
    for client in &clients[1..] {
        client
            .post_ok(&join_path(&room, &[cluster[0].name.as_str()]), json!({}))
            .await;
    }
    // Bob's node hears of carol from alice's.
    until_membership(&cluster[1], &clients[1], &room, &clients[2].user_id, "join").await;
    (clients, room)
}

#[tokio::test]
async fn what_is_done_on_one_node_is_seen_on_all() {
    for version in ["10", "11", "12"] {
        let cluster = Cluster::start(3).await;
        let ([alice, bob, carol], room) = three_together(&cluster, version).await;
        let hello = say(&bob, &room, "1", "hello").await;
        assert_eq!(
            hear(&cluster[0], &alice, &room, &hello).await["content"]["body"],
            "hello"
        );
        assert_eq!(
            hear(&cluster[2], &carol, &room, &hello).await["content"]["body"],
            "hello"
        );

        let redact = at(&room, &format!("redact/{}/2", escape(&hello)));
        let redaction = alice.put_ok(&redact, json!({})).await;
        hear(&cluster[2], &carol, &room, redaction["event_id"].as_str().unwrap()).await;
        assert_eq!(hear(&cluster[2], &carol, &room, &hello).await["content"], json!({}));

        let of_bob = json!({"user_id": bob.user_id});
        let bobs = async |node: usize, wanted: &str| {
            let client = [&alice, &bob, &carol][node];
            until_membership(&cluster[node], client, &room, &bob.user_id, wanted).await;
        };
        alice.post_ok(&at(&room, "kick"), of_bob.clone()).await;
        bobs(2, "leave").await;
        // Bob's node hears it too, though it is out of the room then.
        bobs(1, "leave").await;
        assert!(joined(&bob).await.is_empty());
        bob.post_ok(&join_path(&room, &[cluster[2].name.as_str()]), json!({}))
            .await;
        bobs(0, "join").await;
        say(&bob, &room, "3", "back").await;
        alice.post_ok(&at(&room, "ban"), of_bob.clone()).await;
        bobs(1, "ban").await;
        bobs(2, "ban").await;
        let again = bob
            .post(&join_path(&room, &[cluster[2].name.as_str()]), json!({}))
            .await;
        assert_refused(again, (403, "M_FORBIDDEN"));
        alice.post_ok(&at(&room, "unban"), of_bob).await;
        bobs(2, "leave").await;
        bob.post_ok(&join_path(&room, &[cluster[2].name.as_str()]), json!({}))
            .await;
        bobs(0, "join").await;
    }
}

#[tokio::test]
async fn a_node_that_was_away_catches_up_in_order() {
    let mut cluster = Cluster::start(3).await;
    let ([alice, bob, carol], room) = three_together(&cluster, "12").await;
    cluster[1].go_down();
    let mut said = Vec::new();
    for n in 0..20 {
        let who = if n % 2 == 0 { &alice } else { &carol };
        said.push(say(who, &room, &format!("a{n}"), "while you were away").await);
    }
    // The authors start anew meanwhile; what they owe is in their databases.
    cluster.nodes[0].restart().await;
    let while_alone = say(&bob, &room, "b", "is anybody there?").await;
    cluster[1].come_up();
    for event in &said {
        hear(&cluster[1], &bob, &room, event).await;
    }
    hear(&cluster[2], &carol, &room, &while_alone).await;
    // What one author said stands in the order it was said in.
    let messages = bob.get_ok(&at(&room, "messages?dir=f&limit=200")).await;
    let ids: Vec<&str> = messages["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["event_id"].as_str())
        .collect();
    for parity in 0..2 {
        let places: Vec<usize> = said
            .iter()
            .skip(parity)
            .step_by(2)
            .map(|event| ids.iter().position(|id| id == event).unwrap())
            .collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}

#[tokio::test]
async fn events_that_arrive_during_a_join_are_not_lost() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let held = cluster.wires.hold_answers("/send_join/");
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    let (_, event) = tokio::join!(bob.post_ok(&via, json!({})), async {
        // The room has let bob in, and his node does not know yet.
        cluster.wires.until_requests("/send_join/", 1).await;
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
        let event = say(&alice, &room, "1", "welcome").await;
        cluster.wires.until_requests("/v1/send/", 1).await;
        drop(held);
        event
    });
    assert_eq!(
        hear(&cluster[1], &bob, &room, &event).await["content"]["body"],
        "welcome"
    );
}

#[tokio::test]
async fn joins_at_the_same_time_enter_once() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let mut others = Vec::new();
    for name in ["bob", "carol", "dave"] {
        let client = cluster[1].register(name).await;
        others.extend([client.clone(), client]);
    }
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    futures::future::join_all(others.iter().map(|client| client.post_ok(&via, json!({})))).await;
    assert_eq!(cluster.wires.requests("/send_join/"), 1);
    for client in &others {
        until_membership(&cluster[0], &alice, &room, &client.user_id, "join").await;
        assert_eq!(joined(client).await, std::slice::from_ref(&room));
    }
}

#[tokio::test]
async fn an_answer_lost_on_the_way_is_no_lost_join() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let held = cluster.wires.hold_answers("/send_join/");
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    let (first, ()) = tokio::join!(bob.post(&via, json!({})), async {
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
        cluster.wires.cut(&cluster[0].name, &cluster[1].name);
        drop(held);
    });
    assert_eq!(first.0, StatusCode::BAD_GATEWAY);
    cluster.wires.mend(&cluster[0].name, &cluster[1].name);
    bob.post_ok(&via, json!({})).await;
    let event = say(&bob, &room, "1", "at last").await;
    hear(&cluster[0], &alice, &room, &event).await;
}

#[tokio::test]
async fn restricted_rooms_across_nodes() {
    let cluster = Cluster::start(3).await;
    let ([alice, bob, carol], club) = three_together(&cluster, "12").await;
    let stranger = cluster[1].register("stranger").await;
    let allow = json!([{"type": "m.room_membership", "room_id": club}]);
    let rules = json!({"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}});
    let room = create(&alice, json!({"initial_state": [rules]})).await;
    let via = |server: usize| join_path(&room, &[cluster[server].name.as_str()]);
    assert_refused(stranger.post(&via(0), json!({})).await, (403, "M_FORBIDDEN"));
    bob.post_ok(&via(0), json!({})).await;
    until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
    // Bob may invite, so his node lets carol in.
    cluster[0].go_down();
    carol.post_ok(&via(1), json!({})).await;
    cluster[0].come_up();
    until_membership(&cluster[0], &alice, &room, &carol.user_id, "join").await;

    // Where only alice may invite, bob's node says so, and alice's is asked next.
    alice
        .put_ok(&at(&room, "state/m.room.power_levels"), json!({"invite": 50}))
        .await;
    let dave = cluster[2].register("dave").await;
    dave.post_ok(&join_path(&club, &[cluster[0].name.as_str()]), json!({}))
        .await;
    until_membership(&cluster[0], &alice, &club, &dave.user_id, "join").await;
    dave.post_ok(&via(0), json!({})).await;
    until_membership(&cluster[0], &alice, &room, &dave.user_id, "join").await;
}

#[tokio::test]
async fn knocks_across_nodes() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let rules = json!({"type": "m.room.join_rules", "content": {"join_rule": "knock"}});
    let room = create(&alice, json!({"name": "Tea", "initial_state": [rules]})).await;
    let knock = format!("/_matrix/client/v3/knock/{}?via={}", escape(&room), cluster[0].name);
    bob.post_ok(&knock, json!({"reason": "please"})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "knock");
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "leave");
    bob.post_ok(&knock, json!({})).await;
    // Turned away: bob's node hears of it though it is not in the room.
    alice.post_ok(&at(&room, "kick"), json!({"user_id": bob.user_id})).await;
    let outside = async || outside_membership(&cluster[1], &bob, &room).await;
    cluster[1]
        .until("bob's node hears of the refusal", async || outside().await == "leave")
        .await;
    bob.post_ok(&knock, json!({})).await;
    alice
        .post_ok(&at(&room, "invite"), json!({"user_id": bob.user_id}))
        .await;
    assert_eq!(outside().await, "invite");
    bob.post_ok(&at(&room, "join"), json!({})).await;
    assert_eq!(outside().await, "");
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
}

/// What a node was told of a user's standing in a room that it is not in; empty if nothing.
pub(super) async fn outside_membership(node: &Node, client: &Client, room: &str) -> String {
    let user: ruma::OwnedUserId = client.user_id.as_str().try_into().unwrap();
    let room: ruma::OwnedRoomId = room.try_into().unwrap();
    let read = node
        .hs
        .context
        .store
        .read(move |txn| txn.outside_membership(&user, &room));
    let outside = read.await.unwrap();
    outside.map_or(String::new(), |outside| outside.membership.to_string())
}

/// A node that is away when its user is invited learns of it when it is back, even if the inviter's was restarted.
#[tokio::test]
async fn invites_wait_for_nodes_that_are_away() {
    let mut cluster = Cluster::start(3).await;
    let [alice, bob, carol] = [
        cluster[0].register("alice").await,
        cluster[1].register("bob").await,
        cluster[2].register("carol").await,
    ];
    cluster[1].go_down();
    cluster[2].go_down();
    let first = create(&alice, json!({"invite": [bob.user_id, carol.user_id], "name": "Tea"})).await;
    let second = create(&alice, json!({})).await;
    alice
        .post_ok(&at(&second, "invite"), json!({"user_id": bob.user_id}))
        .await;
    assert_eq!(membership(&alice, &first, &bob.user_id).await, "invite");
    // Carol is turned away before she ever hears of it.
    alice
        .post_ok(&at(&first, "kick"), json!({"user_id": carol.user_id}))
        .await;
    cluster.nodes[0].restart().await;
    let alice = cluster[0].again(&alice);
    cluster[1].come_up();
    cluster[2].come_up();
    for room in [&first, &second] {
        let invited = async || outside_membership(&cluster[1], &bob, room).await == "invite";
        cluster[1].until("bob hears of the invite", invited).await;
        bob.post_ok(&at(room, "join"), json!({})).await;
    }
    // What waited for carol's node went in order; a later invite shows that nothing of the first came before it.
    let third = create(&alice, json!({"invite": [carol.user_id]})).await;
    let invited = async || outside_membership(&cluster[2], &carol, &third).await == "invite";
    cluster[2].until("carol hears of the later invite", invited).await;
    assert_eq!(outside_membership(&cluster[2], &carol, &first).await, "");
}

#[tokio::test]
async fn an_invite_is_taken_back() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let room = create(&alice, json!({"invite": [bob.user_id]})).await;
    assert_eq!(outside_membership(&cluster[1], &bob, &room).await, "invite");
    alice.post_ok(&at(&room, "kick"), json!({"user_id": bob.user_id})).await;
    let gone = async || outside_membership(&cluster[1], &bob, &room).await == "leave";
    cluster[1].until("the invite is gone", gone).await;
    assert_refused(bob.post(&at(&room, "join"), json!({})).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn a_server_that_the_room_keeps_out() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let acl = json!({"type": "m.room.server_acl", "content": {"allow": ["*"], "deny": [cluster[1].name]}});
    let room = create(&alice, json!({"preset": "public_chat", "initial_state": [acl]})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    assert_refused(bob.post(&via, json!({})).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn other_nodes_public_rooms() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    for name in ["Tea", "Coffee"] {
        create(
            &alice,
            json!({"preset": "public_chat", "visibility": "public", "name": name}),
        )
        .await;
    }
    let path = format!("/_matrix/client/v3/publicRooms?server={}", cluster[0].name);
    let found = bob
        .post_ok(&path, json!({"filter": {"generic_search_term": "tea"}}))
        .await;
    assert_eq!(found["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(
        bob.get_ok(&format!("{path}&limit=1")).await["total_room_count_estimate"],
        2
    );
    cluster[0].go_down();
    assert_refused(bob.get(&path).await, (502, "M_UNKNOWN"));
}
