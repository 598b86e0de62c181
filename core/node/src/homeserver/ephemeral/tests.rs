//! Typing, receipts and read markers through the routers of real nodes.

use std::time::Duration;

use ruma::{OwnedRoomId, OwnedUserId, events::receipt::ReceiptThread};
use serde_json::{Value, json};

use crate::testing::{Client, Cluster, Node, assert_refused, escape};

fn at(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room))
}

async fn say(client: &Client, room: &str, txn: &str, content: Value) -> String {
    let path = at(room, &format!("send/m.room.message/{txn}"));
    let answer = client.put_ok(&path, content).await;
    answer["event_id"].as_str().unwrap().to_owned()
}

fn text(body: &str) -> Value {
    json!({"msgtype": "m.text", "body": body})
}

/// A public room of the first client that the second has joined.
async fn room_of(alice: &Client, bob: &Client) -> String {
    let answer = alice
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let room = answer["room_id"].as_str().unwrap().to_owned();
    bob.post_ok(&at(&room, "join"), json!({})).await;
    room
}

fn receipt_path(room: &str, kind: &str, event: &str) -> String {
    at(room, &format!("receipt/{kind}/{}", escape(event)))
}

/// The receipts in a room as a user sees them: whose, whether private, thread, event.
async fn receipts(node: &Node, viewer: &Client, room: &str) -> Vec<(String, bool, String, String)> {
    let viewer = OwnedUserId::try_from(viewer.user_id.as_str()).unwrap();
    let room = OwnedRoomId::try_from(room).unwrap();
    let store = &node.hs.context.store;
    let found = store
        .read(move |txn| {
            let upto = txn.last_seq()?;
            let in_room = txn.receipts_in(&room, &viewer, Default::default(), upto)?;
            assert_eq!(txn.receipts_between(&viewer, Default::default(), upto)?, in_room);
            Ok::<_, crate::Error>(in_room)
        })
        .await
        .unwrap();
    let shown = found.into_iter().map(|receipt| {
        let thread = receipt.thread.as_str().unwrap_or("").to_owned();
        (
            receipt.user_id.to_string(),
            receipt.private,
            thread,
            receipt.event_id.to_string(),
        )
    });
    shown.collect()
}

#[tokio::test]
async fn receipts_move_forward_only() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = room_of(&alice, &bob).await;
    let first = say(&alice, &room, "1", text("first")).await;
    let second = say(&alice, &room, "2", text("second")).await;
    for (event, stands) in [
        (&first, &first),
        (&second, &second),
        (&first, &second),
        (&second, &second),
    ] {
        bob.post_ok(&receipt_path(&room, "m.read", event), json!({})).await;
        let expected = [(bob.user_id.clone(), false, String::new(), stands.clone())];
        assert_eq!(receipts(&cluster[0], &alice, &room).await, expected);
    }
    // A private receipt is a mark of its own, and nobody else's business.
    bob.post_ok(&receipt_path(&room, "m.read.private", &first), json!({}))
        .await;
    assert_eq!(receipts(&cluster[0], &alice, &room).await.len(), 1);
    let own = receipts(&cluster[0], &bob, &room).await;
    assert_eq!(own[1], (bob.user_id.clone(), true, String::new(), first));
}

#[tokio::test]
async fn receipts_fit_their_threads() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = room_of(&alice, &bob).await;
    let relating = |kind: &str, to: &str| {
        let mut content = text("reply");
        content["m.relates_to"] = json!({"rel_type": kind, "event_id": to});
        content
    };
    let root = say(&alice, &room, "1", text("root")).await;
    let threaded = say(&alice, &room, "2", relating("m.thread", &root)).await;
    let edit = say(&alice, &room, "3", relating("m.replace", &threaded)).await;
    let edit_of_root = say(&alice, &room, "4", relating("m.replace", &root)).await;
    let other = say(&alice, &room, "5", text("other")).await;
    for (event, thread, fits) in [
        (&root, "main", true),
        (&root, root.as_str(), true),
        (&threaded, "main", false),
        (&threaded, root.as_str(), true),
        (&edit, "main", false),
        (&edit, root.as_str(), true),
        (&edit_of_root, "main", true),
        (&edit_of_root, root.as_str(), false),
        (&other, "main", true),
        (&other, root.as_str(), false),
        (&other, "neither", false),
    ] {
        let answer = bob
            .post(&receipt_path(&room, "m.read", event), json!({"thread_id": thread}))
            .await;
        if fits {
            assert_eq!(answer.0.as_u16(), 200, "{event} in {thread}");
        } else {
            assert_refused(answer, (400, "M_INVALID_PARAM"));
        }
    }
    let stands: Vec<_> = receipts(&cluster[0], &alice, &room).await;
    let stands: Vec<_> = stands
        .into_iter()
        .map(|(_, _, thread, event)| (thread, event))
        .collect();
    assert_eq!(stands, [(root.clone(), edit), ("main".to_owned(), other)]);
    assert_eq!(ReceiptThread::try_from(Some("main")).unwrap(), ReceiptThread::Main);
}

#[tokio::test]
async fn receipts_are_refused_where_they_mean_nothing() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let eve = cluster[0].register("eve").await;
    let (room, elsewhere) = (room_of(&alice, &bob).await, room_of(&alice, &bob).await);
    let event = say(&alice, &room, "1", text("hello")).await;
    let foreign = say(&alice, &elsewhere, "1", text("hello")).await;
    for (client, kind, event, body, refusal) in [
        (&eve, "m.read", &event, json!({}), (403, "M_FORBIDDEN")),
        (&bob, "m.read", &foreign, json!({}), (404, "M_NOT_FOUND")),
        (&bob, "m.read", &"$unknown".to_owned(), json!({}), (404, "M_NOT_FOUND")),
        (&bob, "m.other", &event, json!({}), (400, "M_INVALID_PARAM")),
        (
            &bob,
            "m.fully_read",
            &event,
            json!({"thread_id": "main"}),
            (400, "M_INVALID_PARAM"),
        ),
        (&bob, "m.read", &event, json!({"thread_id": 7}), (400, "M_BAD_JSON")),
    ] {
        assert_refused(client.post(&receipt_path(&room, kind, event), body).await, refusal);
    }
    assert!(receipts(&cluster[0], &alice, &room).await.is_empty());
    // One bad mark undoes the good ones beside it.
    let marks = json!({"m.fully_read": &event, "m.read": &event, "m.read.private": "$unknown"});
    assert_refused(bob.post(&at(&room, "read_markers"), marks).await, (404, "M_NOT_FOUND"));
    assert!(receipts(&cluster[0], &bob, &room).await.is_empty());
}

#[tokio::test]
async fn read_markers_move_together_and_forward() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = room_of(&alice, &bob).await;
    let first = say(&alice, &room, "1", text("first")).await;
    let second = say(&alice, &room, "2", text("second")).await;
    let marker = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/account_data/m.fully_read",
        escape(&bob.user_id),
        escape(&room)
    );
    assert_refused(bob.get(&marker).await, (404, "M_NOT_FOUND"));
    for (event, stands) in [(&first, &first), (&second, &second), (&first, &second)] {
        let marks = json!({"m.fully_read": event, "m.read": event, "m.read.private": event});
        bob.post_ok(&at(&room, "read_markers"), marks).await;
        assert_eq!(bob.get_ok(&marker).await, json!({"event_id": stands}));
        let seen = receipts(&cluster[0], &bob, &room).await;
        let events: Vec<_> = seen
            .into_iter()
            .map(|(_, private, _, event)| (private, event))
            .collect();
        assert_eq!(events, [(false, stands.clone()), (true, stands.clone())]);
    }
    bob.post_ok(&receipt_path(&room, "m.fully_read", &second), json!({}))
        .await;
}

#[tokio::test]
async fn typing_is_for_members() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let eve = cluster[0].register("eve").await;
    let room = room_of(&alice, &bob).await;
    let path = |client: &Client| at(&room, &format!("typing/{}", escape(&client.user_id)));
    let typing = json!({"typing": true, "timeout": 30_000});
    for (client, body, refusal) in [
        (&eve, typing.clone(), (403, "M_FORBIDDEN")),
        (&eve, json!({"typing": false}), (403, "M_FORBIDDEN")),
        (&bob, json!({"typing": true}), (400, "M_BAD_JSON")),
    ] {
        assert_refused(client.put(&path(client), body).await, refusal);
    }
    assert_refused(alice.put(&path(&bob), typing.clone()).await, (403, "M_FORBIDDEN"));
    let ephemeral = &cluster[0].hs.ephemeral;
    let before = cluster[0].hs.passing.last();
    assert!(ephemeral.typing_since(before).is_empty());
    bob.put_ok(&path(&bob), typing).await;
    let id = OwnedRoomId::try_from(room.as_str()).unwrap();
    assert_eq!(ephemeral.typing_in(&id), [bob.user_id.as_str()]);
    assert_eq!(ephemeral.typing_since(before).len(), 1);
    bob.put_ok(&path(&bob), json!({"typing": false})).await;
    assert_eq!(ephemeral.typing_since(before), [(id, Vec::new())]);
}

#[tokio::test]
async fn typing_ends_by_itself() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = room_of(&alice, &bob).await;
    let (hs, id) = (&cluster[0].hs, OwnedRoomId::try_from(room.as_str()).unwrap());
    let user = OwnedUserId::try_from(bob.user_id.as_str()).unwrap();
    let mut passing = hs.passing.watch();
    let lasting = Some(Duration::from_millis(1));
    hs.ephemeral.set_typing(&user, &id, lasting).await.unwrap();
    passing
        .wait_for(|_| hs.ephemeral.typing_in(&id).is_empty())
        .await
        .unwrap();
}
