//! An end-to-end encrypted conversation: between two nodes, among three, and across a crash.

use kith_tests::{Node, NodeOptions};
use serde_json::json;

use crate::actor::{
    Actor,
    Library::{self, JsSdk, Nio},
};

const PASSWORD: &str = "correct horse";

#[tokio::test]
async fn nio_with_nio() {
    conversation([Nio, Nio]).await;
}

#[tokio::test]
async fn nio_with_js_sdk() {
    conversation([Nio, JsSdk]).await;
}

#[tokio::test]
async fn js_sdk_with_nio() {
    conversation([JsSdk, Nio]).await;
}

#[tokio::test]
async fn js_sdk_with_js_sdk() {
    conversation([JsSdk, JsSdk]).await;
}

async fn cast(libraries: &[Library], names: &[&str]) -> (Vec<Node>, Vec<Actor>) {
    let nodes = Node::start_connected(libraries.len()).await;
    let mut actors = Vec::new();
    for ((node, library), name) in nodes.iter().zip(libraries).zip(names) {
        node.add_user(name, PASSWORD).await;
        actors.push(Actor::log_in(*library, &node.ready.http, &node.user_id(name), PASSWORD).await);
    }
    (nodes, actors)
}

/// An encrypted room of all, made by the first; returns its id once everyone sees everyone.
async fn shared_room(nodes: &[Node], actors: &mut [Actor], names: &[&str], direct: bool) -> String {
    let ids: Vec<String> = nodes.iter().zip(names).map(|(node, name)| node.user_id(name)).collect();
    let arguments = json!({"invite": ids[1..], "direct": direct});
    let room = actors[0].run("create_room", arguments).await["room_id"]
        .as_str()
        .expect("a room")
        .to_owned();
    for actor in &mut actors[1..] {
        actor
            .event("the invite", |event| {
                event["event"] == "invite" && event["room_id"] == room.as_str()
            })
            .await;
        actor.run("join", json!({"room_id": room})).await;
    }
    for actor in actors.iter_mut() {
        actor
            .run("await_members", json!({"room_id": room, "user_ids": ids}))
            .await;
    }
    room
}

async fn say(actor: &mut Actor, room: &str, body: &str) -> String {
    let sent = actor.run("send_text", json!({"room_id": room, "body": body})).await;
    sent["event_id"].as_str().expect("an event id").to_owned()
}

async fn conversation(libraries: [Library; 2]) {
    let names = ["alice", "bob"];
    let (mut nodes, mut actors) = cast(&libraries, &names).await;
    let room = shared_room(&nodes, &mut actors, &names, true).await;
    let (left, right) = actors.split_at_mut(1);
    let (alice, bob) = (&mut left[0], &mut right[0]);
    let room = room.as_str();

    let hello = say(alice, room, "hello").await;
    assert_eq!(bob.text("hello").await, hello);
    let hi = say(bob, room, "hi").await;
    assert_eq!(alice.text("hi").await, hi);

    alice
        .run(
            "edit",
            json!({"room_id": room, "event_id": hello, "body": "hello there"}),
        )
        .await;
    bob.event("the edit", |event| {
        event["event"] == "edit" && event["of"] == hello.as_str() && event["body"] == "hello there"
    })
    .await;

    bob.run("react", json!({"room_id": room, "event_id": hello, "key": "👍"}))
        .await;
    alice
        .event("the reaction", |event| {
            event["event"] == "reaction" && event["of"] == hello.as_str() && event["key"] == "👍"
        })
        .await;

    bob.run("redact", json!({"room_id": room, "event_id": hi})).await;
    alice
        .event("the redaction", |event| {
            event["event"] == "redaction" && event["of"] == hi.as_str()
        })
        .await;

    let sent = alice
        .run("send_image", json!({"room_id": room, "bytes": 200_000}))
        .await;
    let image = bob.event("the image", |event| event["event"] == "image").await;
    assert_eq!(image["encrypted"], true);
    assert_eq!(
        image["sha256"], sent["sha256"],
        "the image arrives whole and decryptable"
    );

    bob.run("typing", json!({"room_id": room})).await;
    let typist = nodes[1].user_id("bob");
    alice
        .event("typing", |event| {
            event["event"] == "typing" && event["user_ids"][0] == typist.as_str()
        })
        .await;

    bob.run("read", json!({"room_id": room, "event_id": image["event_id"]}))
        .await;
    alice
        .event("the receipt", |event| {
            event["event"] == "receipt" && event["user_id"] == typist.as_str() && event["of"] == image["event_id"]
        })
        .await;

    // Bob's node dies in mid-conversation; Alice goes on; it comes back.
    nodes[1].kill().await;
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(say(alice, room, &format!("while you were out {number}")).await);
    }
    nodes[1].restart().await;
    for (number, id) in sent.iter().enumerate() {
        let next = bob.event("the next message", |event| event["event"] == "text").await;
        assert_eq!(
            next["body"],
            format!("while you were out {number}"),
            "in order, none missing, none twice"
        );
        assert_eq!(next["encrypted"], true);
        assert_eq!(next["event_id"], id.as_str());
    }
    say(bob, room, "back again").await;
    alice.text("back again").await;
    for actor in [alice, bob] {
        let odd = actor
            .left_over()
            .iter()
            .find(|event| event["event"] == "text" || event["event"] == "undecryptable");
        assert!(odd.is_none(), "an event too many: {odd:?}");
    }
}

#[tokio::test]
async fn three_nodes_share_an_encrypted_room() {
    let names = ["alice", "bob", "carol"];
    let (mut nodes, mut actors) = cast(&[Nio, JsSdk, Nio], &names).await;
    let room = shared_room(&nodes, &mut actors, &names, false).await;
    for speaker in 0..3 {
        let body = format!("from {}", names[speaker]);
        say(&mut actors[speaker], &room, &body).await;
        for (listener, actor) in actors.iter_mut().enumerate() {
            if listener != speaker {
                actor.text(&body).await;
            }
        }
    }
    // One of three dies; the other two do not notice; it catches up.
    nodes[2].kill().await;
    say(&mut actors[0], &room, "without carol").await;
    actors[1].text("without carol").await;
    say(&mut actors[1], &room, "indeed").await;
    actors[0].text("indeed").await;
    nodes[2].restart().await;
    actors[2].text("without carol").await;
    actors[2].text("indeed").await;
}

/// A client that logs in while its node knows nobody still finds its peer by ticket later.
#[tokio::test]
async fn a_peer_added_by_ticket_at_run_time_can_be_invited() {
    let alone = [
        Node::start(NodeOptions::default()).await,
        Node::start(NodeOptions::default()).await,
    ];
    let ticket = alone[1].ready.ticket.clone();
    let (status, _, stderr) = alone[0].kith(&["peer", "add", &ticket], "").await;
    assert!(status.success(), "{stderr}");
    let names = ["alice", "bob"];
    let mut actors = Vec::new();
    for (node, name) in alone.iter().zip(names) {
        node.add_user(name, PASSWORD).await;
        actors.push(Actor::log_in(Nio, &node.ready.http, &node.user_id(name), PASSWORD).await);
    }
    let room = shared_room(&alone, &mut actors, &names, true).await;
    say(&mut actors[0], &room, "found you").await;
    actors[1].text("found you").await;
}
