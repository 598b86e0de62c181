//! Messages between devices through the client API, of one node and between nodes.

use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::{Value, json};

use super::keys::test_keys::{TestKey, one_time_keys};
use crate::testing::{Client, Cluster, Node, assert_refused};

const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

/// What waits for a device: sender, type, content.
pub(crate) async fn inbox(node: &Node, client: &Client) -> Vec<Value> {
    let user = OwnedUserId::try_from(client.user_id.as_str()).unwrap();
    let device = OwnedDeviceId::from(client.device_id.as_str());
    let store = &node.hs.context.store;
    let messages = store
        .read(move |txn| txn.to_device_messages(&user, &device, Default::default(), txn.last_seq()?, 1000))
        .await
        .unwrap();
    let events = messages
        .into_iter()
        .map(|message| message.event.json().get().to_owned());
    events.map(|json| serde_json::from_str(&json).unwrap()).collect()
}

fn path(txn: &str) -> String {
    format!("/_matrix/client/v3/sendToDevice/m.test/{txn}")
}

fn message(from: &Client, n: u32) -> Value {
    json!({"sender": from.user_id, "type": "m.test", "content": {"n": n}})
}

#[tokio::test]
async fn messages_reach_their_devices_once() {
    let cluster = Cluster::start(1).await;
    let node = &cluster[0];
    let alice = node.register("alice").await;
    let (bob, second) = (node.register("bob").await, node.login("bob").await);
    let to = |device: &str, n: u32| json!({"messages": {&bob.user_id: {device: {"n": n}}, "@ghost:x": {}}});
    for _ in 0..2 {
        alice.put_ok(&path("1"), to(&bob.device_id, 1)).await;
        alice.put_ok(&path("2"), to("*", 2)).await;
        alice.put_ok(&path("3"), to("UNKNOWN", 3)).await;
    }
    // The same transaction id under another type is another request.
    let other = "/_matrix/client/v3/sendToDevice/m.other/1";
    alice.put_ok(other, to(&second.device_id, 4)).await;
    assert_eq!(inbox(node, &bob).await, [message(&alice, 1), message(&alice, 2)]);
    let mut last = message(&alice, 4);
    last["type"] = json!("m.other");
    assert_eq!(inbox(node, &second).await, [message(&alice, 2), last]);
    let large = json!({"messages": {&bob.user_id: {"*": {"x": "x".repeat(70_000)}}}});
    for (body, refusal) in [
        (large, (413, "M_TOO_LARGE")),
        (json!({"messages": {&bob.user_id: {"*": 7}}}), (400, "M_BAD_JSON")),
        (json!({}), (400, "M_BAD_JSON")),
    ] {
        assert_refused(alice.put(&path("bad"), body).await, refusal);
    }
    assert_eq!(inbox(node, &second).await.len(), 2);
}

#[tokio::test]
async fn a_sleeping_device_gets_keys_and_messages() {
    let cluster = Cluster::start(1).await;
    let node = &cluster[0];
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    assert_refused(alice.get(DEHYDRATED).await, (404, "M_NOT_FOUND"));
    let mut sleeper = alice.clone();
    sleeper.device_id = "SLEEPER".to_owned();
    let data = json!({"algorithm": "org.matrix.msc3814.v2", "device_pickle": "pickle", "nonce": "nonce"});
    let body = json!({
        "device_id": "SLEEPER", "device_data": data, "device_keys": TestKey::new().as_device(&sleeper),
        "one_time_keys": one_time_keys(["A".to_owned()]), "fallback_keys": one_time_keys(["F".to_owned()]),
    });
    let mut taken = body.clone();
    taken["device_id"] = json!(alice.device_id);
    taken["device_keys"] = TestKey::new().as_device(&alice);
    assert_refused(alice.put(DEHYDRATED, taken).await, (400, "M_INVALID_PARAM"));
    for _ in 0..2 {
        assert_eq!(
            alice.put_ok(DEHYDRATED, body.clone()).await,
            json!({"device_id": "SLEEPER"})
        );
    }
    assert_eq!(
        alice.get_ok(DEHYDRATED).await,
        json!({"device_id": "SLEEPER", "device_data": data})
    );
    let query = json!({"device_keys": {&alice.user_id: []}});
    let shown = bob.post_ok("/_matrix/client/v3/keys/query", query).await;
    assert!(shown["device_keys"][&alice.user_id]["SLEEPER"].is_object());
    for n in 0..3 {
        let messages = json!({"messages": {&alice.user_id: {"SLEEPER": {"n": n}}}});
        bob.put_ok(&path(&n.to_string()), messages).await;
    }
    let events = format!("{DEHYDRATED}/SLEEPER/events");
    let answer = alice.post_ok(&events, json!({})).await;
    assert_eq!(answer["events"].as_array().unwrap().len(), 3);
    assert_eq!(answer["events"][2], message(&bob, 2));
    let rest = alice
        .post_ok(&events, json!({"next_batch": answer["next_batch"]}))
        .await;
    assert_eq!(rest["events"], json!([]));
    assert_refused(
        alice.post(&events, json!({"next_batch": "x"})).await,
        (400, "M_INVALID_PARAM"),
    );
    assert_refused(
        alice.post(&format!("{DEHYDRATED}/OTHER/events"), json!({})).await,
        (404, "M_NOT_FOUND"),
    );
    assert_refused(bob.post(&events, json!({})).await, (404, "M_NOT_FOUND"));
    let (status, answer) = alice.delete(DEHYDRATED).await;
    assert_eq!((status.as_u16(), answer), (200, json!({"device_id": "SLEEPER"})));
    assert_refused(alice.delete(DEHYDRATED).await, (404, "M_NOT_FOUND"));
    assert_refused(alice.post(&events, json!({})).await, (404, "M_NOT_FOUND"));
}
