//! A disk without any room left: reading goes on, writing is refused for now, and all is well once there is room again.

use std::io::Write;

use kith_tests::{Client, Node, NodeOptions, SmallDisk};
use reqwest::Method;
use serde_json::{Value, json};

/// Messages that the log may still hold in pages that it has already; after so many the disk was not full.
const MOST_TO_FIT: usize = 500;

/// The disk of these tests, or a line that says why there is none.
async fn small_disk(test: &str) -> Option<SmallDisk> {
    match SmallDisk::mount(32).await {
        Ok(disk) => Some(disk),
        Err(reason) => {
            // Not through `eprintln!`, which is kept from whoever watches tests that pass.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {test}: no file system can be mounted here: {reason}"
            );
            None
        }
    }
}

/// Refused for now: clients and servers try again by themselves.
#[track_caller]
fn assert_retryable(what: &str, (status, body): (u16, &Value)) {
    assert_eq!((status, &body["errcode"]), (503, &json!("M_UNKNOWN")), "{what}: {body}");
    assert!(body["error"].as_str().unwrap().contains("disk"), "{what}: {body}");
}

/// Sends messages until one is refused; returns those that were acknowledged, and the refused one.
async fn send_until_full(client: &Client, room: &str) -> (Vec<String>, String) {
    let mut fitted = Vec::new();
    for n in 0..MOST_TO_FIT {
        let text = format!("little room {n}");
        let path = format!("/rooms/{room}/send/m.room.message/{text}").replace(' ', "-");
        let answer = client.put(&path, json!({"msgtype": "m.text", "body": text})).await;
        if answer.status == 200 {
            fitted.push(text);
        } else {
            assert_retryable("send", (answer.status, &answer.body));
            return (fitted, text);
        }
    }
    panic!("{MOST_TO_FIT} messages fitted on a full disk");
}

/// What needs no room.
async fn assert_readable(alice: &mut Client, bob: &Client, room: &str, media: &str) {
    let user = alice.user_id.clone();
    let paths = [
        "/sync?timeout=0".to_owned(),
        format!("/rooms/{room}/messages?dir=b&limit=50"),
        format!("/rooms/{room}/state"),
        format!("/rooms/{room}/members"),
        "/joined_rooms".to_owned(),
        "/devices".to_owned(),
        format!("/profile/{user}"),
        format!("/_matrix/client/v1/media/download/{media}"),
    ];
    for path in &paths {
        assert_eq!(alice.get(path).await.status, 200, "{path}");
    }
    // This device has been handed a message, which it acknowledges by going on; that is a write.
    alice.sync(0).await;
    alice.sync(0).await;
    let keys = json!({"device_keys": {user.as_str(): []}});
    alice.post("/keys/query", keys.clone()).await.ok();
    // Other nodes are answered, too.
    bob.get(&format!("/profile/{user}")).await.ok();
    bob.get(&format!("/_matrix/client/v1/media/download/{media}"))
        .await
        .ok();
    let answer = bob.post("/keys/query", keys).await.ok();
    assert!(answer["failures"].is_null(), "{answer}");
}

/// What needs room, and is refused.
async fn assert_not_writable(alice: &Client, room: &str) {
    let user = &alice.user_id;
    let device = &alice.device_id;
    let writes = [
        (Method::POST, "/createRoom".to_owned(), json!({})),
        (
            Method::PUT,
            format!("/rooms/{room}/state/m.room.topic"),
            json!({"topic": "x"}),
        ),
        (
            Method::PUT,
            format!("/profile/{user}/displayname"),
            json!({"displayname": "x"}),
        ),
        (
            Method::PUT,
            format!("/user/{user}/account_data/org.kith.test"),
            json!({"x": 1}),
        ),
        (Method::PUT, format!("/devices/{device}"), json!({"display_name": "x"})),
        (
            Method::POST,
            "/_matrix/media/v3/upload".to_owned(),
            json!({"much": "x".repeat(50_000)}),
        ),
        (
            Method::POST,
            "/login".to_owned(),
            json!({"type": "m.login.password", "password": "correct horse",
                   "identifier": {"type": "m.id.user", "user": user}}),
        ),
    ];
    for (method, path, body) in &writes {
        let answer = alice.request(method.clone(), path, Some(body)).await;
        assert_retryable(path, (answer.status, &answer.body));
    }
}

#[tokio::test]
async fn a_full_disk_stops_writing_and_nothing_else() {
    let Some(disk) = small_disk("a_full_disk_stops_writing_and_nothing_else").await else {
        return;
    };
    let mut well = Node::start(NodeOptions::default()).await;
    let mut full = Node::start(NodeOptions {
        peers: vec![well.ready.ticket.clone()],
        ..disk.node_options()
    })
    .await;
    let pid = full.pid();
    let mut alice = full.client("alice").await;
    let mut bob = well.client("bob").await;
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let media = alice.post("/_matrix/media/v3/upload", json!({"a": "file"})).await.ok();
    let media = media["content_uri"].as_str().unwrap().replace("mxc://", "");
    let hello = json!({"messages": {alice.user_id.as_str(): {"*": {"a": "message"}}}});
    bob.put("/sendToDevice/org.kith.test/1", hello).await.ok();
    alice
        .sync_until("the message to the device", |sync| {
            (!sync["to_device"]["events"].as_array()?.is_empty()).then_some(())
        })
        .await;

    disk.fill();
    let (fitted, refused) = send_until_full(&alice, &room).await;
    for _ in 0..3 {
        assert_not_writable(&alice, &room).await;
        assert_readable(&mut alice, &bob, &room, &media).await;
    }
    // What bob says now must wait with him, and his node is told that it may.
    let from_bob: Vec<String> = (0..20).map(|n| format!("while full {n}")).collect();
    for text in &from_bob {
        bob.send_text(&room, text).await;
    }
    let other = bob.create_room(json!({})).await;
    let invite = bob
        .post(&format!("/rooms/{other}/invite"), json!({"user_id": alice.user_id}))
        .await;
    assert_eq!(invite.status, 502, "{}", invite.body);
    assert!(
        invite.body["error"].as_str().unwrap().contains("refused with 503"),
        "{}",
        invite.body
    );
    assert_eq!(full.pid(), pid);
    // Even a node that dies now comes back, to be read.
    full.kill().await;
    full.restart().await;
    assert_not_writable(&alice, &room).await;
    assert_readable(&mut alice, &bob, &room, &media).await;

    let pid = full.pid();
    disk.free();
    // The client repeats what was refused, as clients do; nothing else needs to be done.
    let path = format!("/rooms/{room}/send/m.room.message/{refused}").replace(' ', "-");
    alice
        .put(&path, json!({"msgtype": "m.text", "body": refused}))
        .await
        .ok();
    let from_alice = [fitted, vec![refused]].concat();
    assert_eq!(
        bob.texts_until(&room, &from_alice).await.len(),
        from_alice.len() + from_bob.len()
    );
    let seen = alice.texts_until(&room, &from_bob).await;
    let of = |texts: &[String]| -> Vec<String> { seen.iter().filter(|text| texts.contains(text)).cloned().collect() };
    assert_eq!((of(&from_alice), of(&from_bob)), (from_alice.clone(), from_bob.clone()));
    assert_eq!(seen.len(), from_alice.len() + from_bob.len());
    bob.post(&format!("/rooms/{other}/invite"), json!({"user_id": alice.user_id}))
        .await
        .ok();
    assert_eq!(alice.invited().await, other);

    assert_eq!(full.pid(), pid);
    for node in [&mut full, &mut well] {
        assert!(node.stop().await.success());
        let (status, _, stderr) = node.kith(&["check"], "").await;
        assert!(status.success(), "{stderr}");
    }
}
