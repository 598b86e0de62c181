//! Device lists, keys, messages, typing and receipts between nodes that share rooms.

use ruma::{
    OwnedRoomId, OwnedUserId, UInt,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, ReceiptContent, SigningKeyUpdateContent, TypingContent,
    },
};
use serde_json::{Value, json};

use super::test_keys::{TestIdentity, TestKey, again_at, one_time_keys};
use crate::{
    homeserver::to_device_tests::inbox,
    testing::{Client, Cluster, Node, escape},
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const FETCH: &str = "/user/devices/";

async fn publish(client: &Client) -> TestKey {
    let key = TestKey::new();
    client
        .post_ok(UPLOAD, json!({"device_keys": key.as_device(client)}))
        .await;
    key
}

fn at(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room))
}

/// A room of the first client that the second, on another node, has joined.
async fn shared_room(alice: &Client, node: &Node, bob: &Client) -> String {
    let body = json!({"preset": "public_chat"});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room = answer["room_id"].as_str().unwrap().to_owned();
    let join = format!("/_matrix/client/v3/join/{}?via={}", escape(&room), node.name);
    bob.post_ok(&join, json!({})).await;
    room
}

async fn query(client: &Client, user: &str) -> Value {
    let path = "/_matrix/client/v3/keys/query";
    client.post_ok(path, json!({"device_keys": {user: []}})).await
}

async fn names(client: &Client, user: &str) -> Vec<String> {
    let shown = query(client, user).await;
    let devices = shown["device_keys"][user].as_object().cloned().unwrap_or_default();
    let names = devices.values().map(|keys| &keys["unsigned"]["device_display_name"]);
    names.map(|name| name.as_str().unwrap_or("").to_owned()).collect()
}

/// The users whose devices changed, and who left, as a client is told from the beginning.
async fn changes(client: &Client) -> (Vec<String>, Vec<String>) {
    let answer = client.get_ok("/_matrix/client/v3/keys/changes?from=s0_0&to=s0_0").await;
    let list = |name: &str| serde_json::from_value(answer[name].clone()).unwrap();
    (list("changed"), list("left"))
}

/// Whether a node holds a complete copy of a user's device list, and where it stands.
async fn copy(node: &Node, user: &str) -> Option<(bool, i64)> {
    let user = OwnedUserId::try_from(user).unwrap();
    let store = &node.hs.context.store;
    let list = store.read(move |txn| txn.remote_device_list(&user)).await.unwrap();
    list.map(|list| (list.fresh, list.stream_id))
}

async fn is_fresh(node: &Node, user: &str) -> bool {
    matches!(copy(node, user).await, Some((true, _)))
}

async fn rename(client: &Client, name: &str) {
    let path = format!("/_matrix/client/v3/devices/{}", client.device_id);
    client.put_ok(&path, json!({"display_name": name})).await;
}

#[tokio::test]
async fn lists_are_fetched_once_and_then_follow_their_updates() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    publish(&bob).await;
    rename(&bob, "one").await;
    shared_room(&alice, &cluster[0], &bob).await;
    // The join makes Bob's node tell of his devices, and Alice's fetch them: nobody has asked yet.
    cluster[0]
        .until("bob's list is held", async || is_fresh(&cluster[0], &bob.user_id).await)
        .await;
    assert!(changes(&alice).await.0.contains(&bob.user_id));
    assert_eq!(cluster.wires.requests(FETCH), 1);
    assert_eq!(names(&alice, &bob.user_id).await, ["one"]);

    // Each update is awaited: of those that wait together, only the newest would be sent.
    let second = cluster[1].login("bob").await;
    let known = async |expected: &[&str]| {
        let is_so = async || {
            let mut names = names(&alice, &bob.user_id).await;
            names.sort();
            names == expected
        };
        cluster[0].until("bob's devices are known", is_so).await;
    };
    publish(&second).await;
    known(&["", "one"]).await;
    rename(&second, "two").await;
    known(&["one", "two"]).await;
    let identity = TestIdentity::new();
    bob.post_ok(
        "/_matrix/client/v3/keys/device_signing/upload",
        identity.upload(&bob.user_id),
    )
    .await;
    cluster[0]
        .until("bob's master key is known", async || {
            let shown = query(&alice, &bob.user_id).await;
            shown["master_keys"][&bob.user_id]["keys"]
                .to_string()
                .contains(&identity.master.public)
        })
        .await;
    second.post_ok("/_matrix/client/v3/logout", json!({})).await;
    known(&["one"]).await;
    assert_eq!(cluster.wires.requests(FETCH), 1);
    assert_eq!(cluster.wires.requests("/user/keys/query"), 0);

    // With Bob's node away his list is still there to encrypt to.
    cluster[1].go_down();
    let shown = query(&alice, &bob.user_id).await;
    assert_eq!(shown.get("failures"), None);
    assert!(shown["device_keys"][&bob.user_id][&bob.device_id].is_object());
}

#[tokio::test]
async fn a_missed_update_has_the_list_fetched() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    let second = cluster[1].login("bob").await;
    publish(&bob).await;
    shared_room(&alice, &cluster[0], &bob).await;
    let fresh = async || is_fresh(&cluster[0], &bob.user_id).await;
    cluster[0].until("bob's list is held", fresh).await;
    let fetched = cluster.wires.requests(FETCH);
    cluster.wires.cut(&cluster[0].name, &cluster[1].name);
    // Of the updates of one device only the last waits, so that Alice's node sees a gap.
    for name in ["a", "b", "c"] {
        rename(&bob, name).await;
    }
    publish(&second).await;
    rename(&bob, "d").await;
    cluster.wires.mend(&cluster[0].name, &cluster[1].name);
    cluster[0]
        .until("the new names are known", async || {
            let names = names(&alice, &bob.user_id).await;
            names.len() == 2 && names.contains(&"d".to_owned())
        })
        .await;
    assert!(cluster.wires.requests(FETCH) > fetched);
}

#[tokio::test]
async fn an_incomplete_list_is_completed_when_its_server_comes_back() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    publish(&bob).await;
    shared_room(&alice, &cluster[0], &bob).await;
    cluster[0]
        .until("bob's list is held", async || is_fresh(&cluster[0], &bob.user_id).await)
        .await;
    let (_, stream_id) = copy(&cluster[0], &bob.user_id).await.unwrap();
    cluster[1].go_down();
    let user = OwnedUserId::try_from(bob.user_id.as_str()).unwrap();
    let far_ahead = UInt::try_from(stream_id + 1000).unwrap();
    let update = || {
        let mut update = DeviceListUpdateContent::new(user.clone(), "X".into(), far_ahead);
        update.prev_id = vec![far_ahead];
        update
    };
    let keys = &cluster[0].hs.keys;
    // Nobody but Bob's server says anything about Bob.
    let liar = ruma::server_name!("liar");
    keys.handle_device_list_update(liar, update()).await.unwrap();
    let signing = SigningKeyUpdateContent::new(user.clone());
    keys.handle_signing_key_update(liar, signing).await.unwrap();
    assert!(is_fresh(&cluster[0], &bob.user_id).await);
    keys.handle_device_list_update(&cluster[1].name, update())
        .await
        .unwrap();
    assert!(!is_fresh(&cluster[0], &bob.user_id).await);
    let shown = query(&alice, &bob.user_id).await;
    assert!(shown["failures"][cluster[1].name.as_str()].is_object());
    assert!(shown["device_keys"][&bob.user_id][&bob.device_id].is_object());
    rename(&bob, "meanwhile").await;
    cluster.nodes[0].restart().await;
    cluster[1].come_up();
    let held = async || copy(&cluster[0], &bob.user_id).await;
    cluster[0]
        .until(
            "bob's list has moved on",
            async || matches!(held().await, Some((_, at)) if at > stream_id),
        )
        .await;
    assert_eq!(names(&again_at(&cluster[0], &alice), &bob.user_id).await, ["meanwhile"]);
}

#[tokio::test]
async fn strangers_lists_are_not_kept() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    publish(&bob).await;
    assert_eq!(names(&alice, &bob.user_id).await.len(), 1);
    assert_eq!(copy(&cluster[0], &bob.user_id).await, None);
    let room = shared_room(&alice, &cluster[0], &bob).await;
    cluster[0]
        .until("bob's list is held", async || is_fresh(&cluster[0], &bob.user_id).await)
        .await;
    assert_eq!(changes(&alice).await.1, [""; 0]);
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    cluster[0]
        .until("bob is gone", async || copy(&cluster[0], &bob.user_id).await.is_none())
        .await;
    assert_eq!(changes(&alice).await.1, [bob.user_id.as_str()]);
    let (changed, left) = changes(&bob).await;
    assert_eq!(
        (changed, left),
        (vec![bob.user_id.clone()], vec![alice.user_id.clone()])
    );
    // Updates about strangers leave no trace.
    let user = OwnedUserId::try_from(bob.user_id.as_str()).unwrap();
    let update = DeviceListUpdateContent::new(user, "X".into(), UInt::from(1u8));
    let keys = &cluster[0].hs.keys;
    keys.handle_device_list_update(&cluster[1].name, update).await.unwrap();
    assert_eq!(copy(&cluster[0], &bob.user_id).await, None);
}

#[tokio::test]
async fn messages_between_nodes_survive_crashes_and_arrive_once() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    cluster[1].go_down();
    let path = |txn: u32| format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
    let filler = "x".repeat(30_000);
    for n in 0..5 {
        let content = json!({"n": n, "filler": filler});
        let body = json!({"messages": {&bob.user_id: {&bob.device_id: content, "UNKNOWN": {}}}});
        for _ in 0..2 {
            alice.put_ok(&path(n), body.clone()).await;
        }
    }
    let everyone = json!({"messages": {&bob.user_id: {"*": {"n": 5}}}});
    alice.put_ok(&path(5), everyone).await;
    cluster.nodes[0].restart().await;
    cluster[1].come_up();
    cluster[1]
        .until("all messages are there", async || {
            inbox(&cluster[1], &bob).await.len() >= 6
        })
        .await;
    let numbers = async || -> Vec<u64> {
        let messages = inbox(&cluster[1], &bob).await.into_iter();
        messages
            .map(|message| message["content"]["n"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(numbers().await, [0, 1, 2, 3, 4, 5]);

    // A repeated EDU, or one that speaks for another server's user, adds nothing.
    let to_device = &cluster[1].hs.to_device;
    let edu = |sender: &str, id: &str| -> DirectDeviceContent {
        let messages = json!({&bob.user_id: {&bob.device_id: {"n": 6}}});
        let edu = json!({"sender": sender, "type": "m.test", "message_id": id, "messages": messages});
        serde_json::from_value(edu).unwrap()
    };
    let peer = &cluster[0].name;
    for (sender, id, count) in [
        (alice.user_id.as_str(), "one", 7),
        (alice.user_id.as_str(), "one", 7),
        (bob.user_id.as_str(), "two", 7),
        ("@eve:elsewhere", "three", 7),
        (alice.user_id.as_str(), &"x".repeat(300), 7),
        (alice.user_id.as_str(), "four", 8),
    ] {
        to_device.handle_direct_to_device(peer, edu(sender, id)).await.unwrap();
        assert_eq!(numbers().await.len(), count, "{sender} {id}");
    }
}

#[tokio::test]
async fn claims_across_nodes_take_each_key_once() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let (bob, carol) = (cluster[1].register("bob").await, cluster[2].register("carol").await);
    let keys = one_time_keys((0..20).map(|n| format!("K{n:02}")));
    alice.post_ok(UPLOAD, json!({"one_time_keys": keys})).await;
    let body = json!({"one_time_keys": {&alice.user_id: {&alice.device_id: "signed_curve25519"}}});
    let claim = async |client: &Client| {
        let answer = client.post_ok("/_matrix/client/v3/keys/claim", body.clone()).await;
        let keys = answer["one_time_keys"][&alice.user_id][&alice.device_id]
            .as_object()
            .cloned();
        keys.and_then(|keys| keys.keys().next().cloned())
    };
    let claims = (0..30).map(|n| claim(if n % 2 == 0 { &bob } else { &carol }));
    let mut claimed: Vec<String> = futures::future::join_all(claims).await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 20);
    claimed.sort();
    claimed.dedup();
    assert_eq!(claimed.len(), 20);
}

#[tokio::test]
async fn typing_and_receipts_reach_the_other_nodes_of_the_room() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    let room = shared_room(&alice, &cluster[0], &bob).await;
    let id = OwnedRoomId::try_from(room.as_str()).unwrap();
    let typing_path = at(&room, &format!("typing/{}", escape(&alice.user_id)));
    let far = &cluster[1].hs;
    let mut passing = far.passing.watch();
    for (body, expected) in [
        (json!({"typing": true, "timeout": 30_000}), vec![alice.user_id.clone()]),
        (json!({"typing": false}), Vec::new()),
    ] {
        alice.put_ok(&typing_path, body).await;
        let seen = |_: &u64| far.ephemeral.typing_in(&id) == expected;
        passing.wait_for(seen).await.unwrap();
    }

    let say = at(&room, "send/m.room.message/1");
    let answer = alice.put_ok(&say, json!({"msgtype": "m.text", "body": "hello"})).await;
    let event = answer["event_id"].as_str().unwrap().to_owned();
    for kind in ["m.read.private", "m.read"] {
        let path = at(&room, &format!("receipt/{kind}/{}", escape(&event)));
        alice.post_ok(&path, json!({})).await;
    }
    let (viewer, in_room) = (OwnedUserId::try_from(bob.user_id.as_str()).unwrap(), id.clone());
    let receipts = async || {
        let (viewer, room) = (viewer.clone(), in_room.clone());
        let store = &far.context.store;
        let read = store.read(move |txn| txn.receipts_in(&room, &viewer, Default::default(), txn.last_seq()?));
        let found = read.await.unwrap();
        let seen = found
            .into_iter()
            .map(|receipt| (receipt.user_id.to_string(), receipt.private));
        seen.collect::<Vec<_>>()
    };
    let expected = [(alice.user_id.clone(), false)];
    cluster[1]
        .until("alice's receipt is there", async || receipts().await == expected)
        .await;

    // A server speaks for its own users, and only for those in the room.
    let eve = format!("@eve:{}", cluster[0].name);
    for (peer, user) in [
        (&cluster[0].name, bob.user_id.as_str()),
        (&cluster[1].name, alice.user_id.as_str()),
        (&cluster[0].name, eve.as_str()),
    ] {
        let content: ReceiptContent = serde_json::from_value(json!({
            &room: {"m.read": {user: {"data": {"ts": 1}, "event_ids": ["$other"]}}}
        }))
        .unwrap();
        far.ephemeral.handle_receipts(peer, content).await.unwrap();
        let user = OwnedUserId::try_from(user).unwrap();
        let content = TypingContent::new(id.clone(), user, true);
        far.ephemeral.handle_typing(peer, content).await.unwrap();
    }
    assert_eq!(receipts().await, expected);
    assert!(far.ephemeral.typing_in(&id).is_empty());
}
