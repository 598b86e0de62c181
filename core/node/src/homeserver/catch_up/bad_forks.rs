//! Forks made on purpose, by the dozen and by the thousand. Honest members stay equal, join them, and their users see
//! nothing of it.

use http::StatusCode;
use kith_engine::{JOINS_HEADS, RoomReader, limits::MAX_EXTREMITIES};
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use super::mallory::{Mallory, heads, until_same, with_mallory};
use crate::{
    Error,
    testing::{
        Client, Node, escape,
        rooms::{say, until_text},
    },
};

/// So many messages on top of the same events.
async fn remarks(mallory: &Mallory<'_>, count: usize) -> Vec<Value> {
    let base = mallory.base().await;
    let said = |number: usize| json!({"content": {"body": format!("fork {number}")}});
    (0..count).map(|number| mallory.forge(&base, said(number)).1).collect()
}

/// So many events on top of the same ones. Each gives the hostile member another name, so that each has a state of its own.
async fn renames(mallory: &Mallory<'_>, count: usize) -> Vec<Value> {
    let base = mallory.own_base().await;
    let fork = |number: usize| mallory.renamed(&base, &format!("Mallory {number}")).1;
    (0..count).map(fork).collect()
}

/// Waits until a room's heads are few on all these nodes, and the same.
async fn until_joined(nodes: &[&Node], room: &OwnedRoomId) {
    loop {
        until_same(nodes, room).await;
        if heads(nodes[0], room).await <= MAX_EXTREMITIES {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Events of a room that do nothing but join others.
async fn joins(node: &Node, room: &OwnedRoomId) -> Vec<String> {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| {
        let mut joins = Vec::new();
        for (_, id) in txn.events_from_depth(&room, 0, kith_store::Moment::NOW, usize::MAX)? {
            if txn.event(&id)?.unwrap().pdu.kind().to_string() == JOINS_HEADS {
                joins.push(id.to_string());
            }
        }
        Ok::<_, Error>(joins)
    });
    read.await.unwrap()
}

#[tokio::test]
async fn forks_told_to_some_and_not_to_others_meet_and_are_joined() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let forks = remarks(&mallory, 80).await;
    // Whom a member tells what: the two never see the same from it.
    mallory.send(a, "odd", &forks[..40]).await;
    mallory.send(b, "even", &forks[40..]).await;
    evil.go_down();
    // Either joins them when it has waited long enough; clients see nothing of it.
    until_joined(&[a, b], &room).await;
    assert!((4..=20).contains(&joins(a, &room).await.len()));
    let path = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=200",
        escape(room.as_str())
    );
    for client in &clients[..2] {
        let page = client.get_ok(&path).await;
        let chunk = page["chunk"].as_array().unwrap();
        let of_kind = |kind: &str| chunk.iter().filter(|event| event["type"] == kind).count();
        assert_eq!((of_kind("m.room.message"), of_kind(JOINS_HEADS)), (80, 0));
    }
    let joined = heads(a, &room).await;
    a.hs.rooms.join_heads(&room).await.unwrap();
    assert_eq!(heads(a, &room).await, joined, "few heads are left alone");
}

/// Each fork has a state of its own. To resolve each against all others would take hours.
#[tokio::test]
async fn thousands_of_forks_are_borne_and_joined() {
    const FORKS: usize = 2_000;
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let forks = renames(&mallory, FORKS).await;
    mallory.send(a, "first", &forks[..FORKS / 2]).await;
    // What others say counts at once, whatever there is beside it.
    let topic = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic/", escape(room.as_str()));
    clients[0].put_ok(&topic, json!({"topic": "calm"})).await;
    assert_eq!(clients[0].get_ok(&topic).await["topic"], "calm");
    mallory.send(a, "second", &forks[FORKS / 2..]).await;
    evil.go_down();
    say(&clients[0], &room, "above it all").await;
    until_text(b, &room, "above it all").await;
    until_joined(&[a, b], &room).await;
    for client in &clients[..2] {
        assert_eq!(client.get_ok(&topic).await["topic"], "calm");
    }
    // Nineteen fewer with each: as many as that takes, and not as many again from every member.
    let joins = joins(b, &room).await.len();
    assert!(
        (FORKS / 20..2 * FORKS / 19).contains(&joins),
        "{joins} events join {FORKS} forks"
    );
}

async fn sync(client: &Client, since: Option<&Value>) -> Value {
    let filter = escape(r#"{"room":{"timeline":{"limit":200}}}"#);
    let since = since.map(|since| format!("&since={}", escape(since.as_str().unwrap())));
    let path = format!("/_matrix/client/v3/sync?filter={filter}{}", since.unwrap_or_default());
    client.get_ok(&path).await
}

#[tokio::test]
async fn clients_are_never_shown_how_forks_are_joined() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let forks = remarks(&mallory, 30).await;
    mallory.send(a, "forks", &forks).await;
    mallory.send(b, "forks", &forks).await;
    evil.go_down();
    let before = sync(&clients[1], None).await;
    let position = *b.hs.context.store.committed().borrow();
    a.hs.rooms.join_heads(&room).await.unwrap();
    until_joined(&[a, b], &room).await;
    // Whoever waits for news is not woken by it.
    assert_eq!(*b.hs.context.store.committed().borrow(), position);
    for since in [Some(&before["next_batch"]), None] {
        let answer = sync(&clients[1], since).await;
        assert!(!answer.to_string().contains(JOINS_HEADS), "{answer}");
    }
    let unread = |answer: &Value| answer["rooms"]["join"][room.as_str()]["unread_notifications"].clone();
    assert_eq!(unread(&sync(&clients[1], None).await), unread(&before));
    let notified = clients[1].get_ok("/_matrix/client/v3/notifications?limit=100").await;
    assert!(!notified.to_string().contains(JOINS_HEADS), "{notified}");
    let joins = joins(b, &room).await;
    assert!(!joins.is_empty());
    for (id, place) in joins.iter().flat_map(|id| [(id, "event"), (id, "context")]) {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/{place}/{}",
            escape(room.as_str()),
            escape(id)
        );
        let (status, answer) = clients[1].get(&path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{place}: {answer}");
    }
}
