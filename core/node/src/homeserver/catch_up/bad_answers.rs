//! Members that answer with garbage, with too much, or never. What the others hold arrives all the same, and what the
//! garbage costs is bounded.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kith_engine::limits::MAX_PULL_ROUNDS;
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use super::mallory::{Mallory, signed, until_same};
use crate::{
    Error,
    testing::{
        Client, Cluster, Node, escape,
        rooms::{common_room, join, numbered, say, until_alike, until_text},
    },
};

const SENDS: &str = "/federation/v1/send/";
const PULL: &str = "/org.kith/pull/";
const CATCH_UP: &str = "/org.kith/";

/// A room of three nodes, of which the last was away while the first said something. Nothing is sent any more, only pulled.
/// Returns which of the two that were there is asked first, as whoever has the lesser name is.
async fn one_was_away(cluster: &Cluster, said: &[String]) -> (OwnedRoomId, Vec<Client>, usize) {
    let (room, clients) = common_room(cluster).await;
    let [a, b, late] = [&cluster[0], &cluster[1], &cluster[2]];
    late.go_down();
    for text in said {
        say(&clients[0], &room, text).await;
    }
    until_alike(&[a, b], &room).await;
    cluster.wires.lose(SENDS);
    (room, clients, usize::from(b.name < a.name))
}

/// All ids that a node holds of a room, of whatever standing.
async fn held(node: &Node, room: &OwnedRoomId) -> BTreeSet<String> {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| {
        let events = txn.events_from_depth(&room, 0, kith_store::Moment::NOW, usize::MAX)?;
        Ok::<_, Error>(events.into_iter().map(|(_, id)| id.to_string()).collect())
    });
    read.await.unwrap()
}

#[tokio::test]
async fn who_never_answers_a_pull_keeps_nobody_from_the_others() {
    let cluster = Cluster::start(3).await;
    let said = numbered(0..30);
    let (room, _, first) = one_was_away(&cluster, &said).await;
    let [silent, other, late] = [&cluster[first], &cluster[1 - first], &cluster[2]];
    cluster.wires.silence(&silent.name, PULL);
    cluster.wires.cut(&late.name, &other.name);
    let before = cluster.wires.requests_to(&silent.name, PULL);
    late.come_up();
    cluster.wires.until_requests_to(&silent.name, PULL, before + 1).await;
    cluster.wires.mend(&late.name, &other.name);
    assert_eq!(until_text(late, &room, "n29").await, said);
    until_same(&[silent, other, late], &room).await;
}

#[tokio::test]
async fn who_never_answers_anything_keeps_nobody_from_the_others() {
    let cluster = Cluster::start(3).await;
    let said = numbered(0..30);
    let (room, _, first) = one_was_away(&cluster, &said).await;
    cluster.wires.silence(&cluster[first].name, "/federation/");
    cluster[2].come_up();
    assert_eq!(until_text(&cluster[2], &room, "n29").await, said);
    until_same(&[&cluster[0], &cluster[1], &cluster[2]], &room).await;
}

/// What the first to be asked answers in place of the truth.
type Garbage = Box<dyn Fn(&mut Value) + Send + Sync>;

#[tokio::test]
async fn garbage_is_passed_over_and_costs_little() {
    let cluster = Cluster::start(3).await;
    let said = numbered(0..30);
    let (room, clients, first) = one_was_away(&cluster, &said).await;
    let [a, b, late] = [&cluster[0], &cluster[1], &cluster[2]];
    // Another room that all are in, whose events are genuine and out of place.
    let other = clients[first]
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let other: OwnedRoomId = other["room_id"].as_str().unwrap().try_into().unwrap();
    say(&clients[first], &other, "elsewhere").await;
    let mallory = Mallory::new(&cluster[first], &clients[first], &room);
    let base = mallory.base().await;
    let elsewhere = mallory.forge(&base, json!({"room_id": other})).1;
    let unconnected = |number: usize| json!({"prev_events": [format!("${number:043}")], "depth": 5_000_000});
    let orphans: Vec<Value> = (0..600)
        .map(|number| mallory.forge(&base, unconnected(number)).1)
        .collect();
    let garbage: [Garbage; 6] = [
        Box::new(|answer| *answer = json!([[[[]]]])),
        Box::new(move |answer| answer["pdus"] = json!([elsewhere])),
        // Not signed by whom it names.
        Box::new(|answer| {
            for pdu in answer["pdus"].as_array_mut().into_iter().flatten() {
                pdu["content"] = json!({"body": "forged", "msgtype": "m.text"});
                pdu["depth"] = json!(99);
            }
        }),
        // Not what was asked for, but held already.
        Box::new({
            let held = json!([mallory.forge(&base, json!({"content": {"body": "unasked"}})).1]);
            move |answer| answer["pdus"] = held.clone()
        }),
        // More than was asked for, of which nothing connects.
        Box::new(move |answer| answer["pdus"] = json!(orphans)),
        Box::new(|answer| answer["pdus"] = json!(vec![json!({"type": "m.room.message", "content": {}}); 2_000])),
    ];
    for (number, garbage) in garbage.into_iter().enumerate() {
        cluster.wires.be_honest();
        cluster.wires.lie_of(&cluster[first].name, PULL, garbage);
        let before = cluster.wires.requests(CATCH_UP);
        late.come_up();
        let text = format!("true {number}");
        say(&clients[1 - first], &room, &text).await;
        until_text(late, &room, &text).await;
        until_same(&[a, b, late], &room).await;
        let asked = cluster.wires.requests(CATCH_UP) - before;
        assert!(asked < 2 * MAX_PULL_ROUNDS, "{number}: {asked} requests");
        late.go_down();
        say(&clients[1 - first], &room, &format!("missed {number}")).await;
        cluster.wires.be_honest();
        until_same(&[a, b], &room).await;
    }
    let kept = held(late, &room).await;
    assert!(kept.is_subset(&held(a, &room).await));
}

/// Each answer brings events that nobody has seen, all of which build upon others that never come.
#[tokio::test]
async fn endless_answers_end() {
    let cluster = Cluster::start(3).await;
    let said = numbered(0..30);
    let (room, clients, first) = one_was_away(&cluster, &said).await;
    let [a, b, late] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(&cluster[first], &clients[first], &room);
    let (base, context) = (mallory.base().await, cluster[first].hs.context.clone());
    let count = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&count);
    cluster.wires.lie_of(&cluster[first].name, PULL, move |answer| {
        let fresh = (0..100).map(|_| {
            let number = made.fetch_add(1, Ordering::Relaxed);
            let mut event = base.clone();
            event["prev_events"] = json!([format!("${number:043}")]);
            event["depth"] = json!(1_000_000 - number);
            signed(&context, &event).1
        });
        answer["pdus"] = fresh.collect();
    });
    // Mallory is asked before the other can be.
    let (asked, other) = (&cluster[first].name, &cluster[1 - first].name);
    cluster.wires.cut(&late.name, other);
    let before = cluster.wires.requests_to(asked, PULL);
    late.come_up();
    cluster.wires.until_requests_to(asked, PULL, before + 1).await;
    cluster.wires.mend(&late.name, other);
    assert_eq!(until_text(late, &room, "n29").await, said);
    until_same(&[a, b, late], &room).await;
    while !late.hs.catch_up.is_idle() {
        tokio::task::yield_now().await;
    }
    assert!((100..=200 * MAX_PULL_ROUNDS).contains(&count.load(Ordering::Relaxed)));
    assert!(held(late, &room).await.is_subset(&held(a, &room).await));
}

#[tokio::test]
async fn a_room_is_left_in_the_middle_of_a_pull() {
    let cluster = Cluster::start(3).await;
    let said = numbered(0..30);
    let (room, clients, _) = one_was_away(&cluster, &said).await;
    let [a, b, late] = [&cluster[0], &cluster[1], &cluster[2]];
    let answers = cluster.wires.hold_answers(PULL);
    late.come_up();
    cluster.wires.until_requests(PULL, 1).await;
    let path = format!("/_matrix/client/v3/rooms/{}", escape(room.as_str()));
    clients[2].post_ok(&format!("{path}/leave"), json!({})).await;
    drop(answers);
    cluster.wires.lose_nothing();
    while !late.hs.catch_up.is_idle() {
        tokio::task::yield_now().await;
    }
    // The others hear of it, and whoever comes back finds the room as it is.
    until_alike(&[a, b], &room).await;
    say(&clients[0], &room, "while nobody was there").await;
    until_text(b, &room, "while nobody was there").await;
    join(&clients[2], &room, a).await;
    say(&clients[1], &room, "welcome back").await;
    until_text(late, &room, "welcome back").await;
    until_same(&[a, b, late], &room).await;
}
