//! Events between real nodes over wires that are cut and mended.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use kith_store::{Direction, Seq};
use ruma::OwnedRoomId;
use serde_json::{Value, json};

use crate::{
    Error,
    clock::Clock,
    network::Limits,
    testing::{
        Cluster, Node, assert_refused, escape,
        rooms::{
            common_room, eventually, join, numbered, room_of_two, say, texts, until_alike, until_delivered, until_text,
        },
    },
};

#[tokio::test]
async fn a_conversation_arrives_once_and_in_order() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    // More than one transaction holds.
    for text in numbered(0..120) {
        say(&clients[0], &room, &text).await;
    }
    assert_eq!(until_text(&cluster[1], &room, "n119").await, numbered(0..120));
    say(&clients[1], &room, "reply").await;
    let mut expected = numbered(0..120);
    expected.push("reply".to_owned());
    assert_eq!(until_text(&cluster[0], &room, "reply").await, expected);
    until_alike(&[&cluster[0], &cluster[1]], &room).await;
}

#[tokio::test]
async fn what_was_said_while_a_node_was_away_arrives_when_it_comes_back() {
    let mut cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    cluster[1].go_down();
    for text in numbered(0..5) {
        say(&clients[0], &room, &text).await;
    }
    // The node that waits to deliver is restarted meanwhile, and the one that was away too.
    cluster.nodes[0].restart().await;
    cluster.nodes[1].restart().await;
    cluster[1].come_up();
    assert_eq!(until_text(&cluster[1], &room, "n4").await, numbered(0..5));
    let alice = cluster[0].login("alice").await;
    say(&alice, &room, "again").await;
    let mut expected = numbered(0..5);
    expected.push("again".to_owned());
    assert_eq!(until_text(&cluster[1], &room, "again").await, expected);
    // The queue is empty once everything is acknowledged.
    until_delivered(&cluster[0]).await;
}

#[tokio::test]
async fn an_answer_that_is_lost_does_no_harm() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    let before = cluster.wires.requests("/send/");
    // The request arrives, its answer does not: the wire is cut as soon as the other side has committed.
    let mut committed = cluster[1].hs.context.store.committed();
    committed.borrow_and_update();
    say(&clients[0], &room, "once").await;
    committed.changed().await.unwrap();
    cluster.wires.cut(&cluster[0].name, &cluster[1].name);
    cluster.wires.mend(&cluster[0].name, &cluster[1].name);
    say(&clients[0], &room, "twice").await;
    assert_eq!(until_text(&cluster[1], &room, "twice").await, ["once", "twice"]);
    until_delivered(&cluster[0]).await;
    assert!(cluster.wires.requests("/send/") > before);
}

#[tokio::test]
async fn what_was_read_ahead_waits_for_the_transaction_before_it() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    until_delivered(&cluster[0]).await;
    // What was pulled would not be sent.
    cluster.wires.lose("/org.kith/heads");
    cluster[1].go_down();
    for text in numbered(0..170) {
        say(&clients[0], &room, &text).await;
    }
    // The first transaction's answer is lost when the second has long been read.
    let sent = cluster.wires.requests("/send/");
    let mut committed = cluster[1].hs.context.store.committed();
    committed.borrow_and_update();
    let held = cluster.wires.hold_answers("/send/");
    cluster[1].come_up();
    committed.changed().await.unwrap();
    cluster.wires.cut(&cluster[0].name, &cluster[1].name);
    drop(held);
    cluster.wires.mend(&cluster[0].name, &cluster[1].name);
    assert_eq!(until_text(&cluster[1], &room, "n169").await, numbered(0..170));
    until_delivered(&cluster[0]).await;
    // Four of them hold 170 events, and the first went twice at the least.
    assert!(cluster.wires.requests("/send/") >= sent + 5);
}

#[tokio::test]
async fn a_gap_is_filled_by_whoever_knows() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    // a and c do not reach each other: what a says, c learns when b builds upon it. More than one request brings, and
    // keys of a that c must have from b.
    cluster.wires.cut(&a.name, &c.name);
    for text in numbered(0..130) {
        say(&clients[0], &room, &text).await;
    }
    until_text(b, &room, "n129").await;
    say(&clients[1], &room, "have you heard?").await;
    let mut expected = numbered(0..130);
    expected.push("have you heard?".to_owned());
    assert_eq!(until_text(c, &room, "have you heard?").await, expected);
    assert!(cluster.wires.requests("/get_missing_events/") + cluster.wires.requests("/org.kith/pull/") >= 1);
    // When they meet again, nothing arrives twice.
    cluster.wires.mend(&a.name, &c.name);
    say(&clients[0], &room, "hello c").await;
    expected.push("hello c".to_owned());
    assert_eq!(until_text(c, &room, "hello c").await, expected);
    until_delivered(a).await;
    until_alike(&[a, b, c], &room).await;
}

#[tokio::test]
async fn forks_meet_again_in_one_state() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    for (one, other) in [(a, b), (a, c), (b, c)] {
        cluster.wires.cut(&one.name, &other.name);
    }
    let topic = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic/", escape(room.as_str()));
    clients[0].put_ok(&topic, json!({"topic": "partition"})).await;
    for (client, text) in clients.iter().zip(["from a", "from b", "from c"]) {
        say(client, &room, text).await;
    }
    for (one, other) in [(a, b), (a, c), (b, c)] {
        cluster.wires.mend(&one.name, &other.name);
    }
    let all: BTreeSet<String> = ["from a", "from b", "from c"].map(str::to_owned).into();
    for node in [a, b, c] {
        let (room, all) = (room.clone(), all.clone());
        let texts = eventually(node, move |txn| {
            let texts = texts(txn, &room)?;
            Ok(all.iter().all(|text| texts.contains(text)).then_some(texts))
        });
        assert_eq!(texts.await.len(), 3);
    }
    until_alike(&[a, b, c], &room).await;
    for client in &clients {
        assert_eq!(client.get_ok(&topic).await["topic"], "partition");
    }
}

#[tokio::test]
async fn reading_back_fetches_what_was_said_before_one_came() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let body = json!({"preset": "public_chat", "name": "Old room"});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    for text in numbered(0..150) {
        say(&alice, &room, &text).await;
    }
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    let mut back = Vec::new();
    let mut from = String::new();
    let mut kinds = BTreeSet::new();
    loop {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=40{from}",
            escape(room.as_str())
        );
        let page = bob.get_ok(&path).await;
        for event in page["chunk"].as_array().unwrap() {
            kinds.insert(event["type"].as_str().unwrap().to_owned());
            back.extend(event["content"]["body"].as_str().map(str::to_owned));
        }
        let Some(end) = page["end"].as_str() else { break };
        from = format!("&from={end}");
    }
    back.reverse();
    assert_eq!(back, numbered(0..150));
    assert!(kinds.contains("m.room.create"), "{kinds:?}");
    // Everything is held now: with the author away, another newcomer reads it all through bob's node.
    cluster[0].go_down();
    let carol = cluster[2].register("carol").await;
    join(&carol, &room, &cluster[1]).await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=500",
        escape(room.as_str())
    );
    let page = carol.get_ok(&path).await;
    assert_eq!(
        page["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["content"]["body"].is_string())
            .count(),
        150
    );
}

#[tokio::test]
async fn a_moment_of_the_past_is_found_though_it_is_elsewhere() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let body = json!({"preset": "public_chat"});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    let mut moments = Vec::new();
    for text in numbered(0..60) {
        moments.push(u64::from(cluster.clock.now().get()));
        cluster.clock.advance(Duration::from_secs(60));
        say(&alice, &room, &text).await;
    }
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    let at = |rest: &str| format!("/_matrix/client/v1/rooms/{}/{rest}", escape(room.as_str()));
    let near = async |ts: u64, direction: &str| {
        let path = at(&format!("timestamp_to_event?ts={ts}&dir={direction}"));
        let answer = bob.get_ok(&path).await;
        let event = escape(answer["event_id"].as_str().unwrap());
        let path = format!("/_matrix/client/v3/rooms/{}/event/{event}", escape(room.as_str()));
        bob.get_ok(&path).await["content"]["body"].clone()
    };
    assert_eq!(near(moments[10], "f").await, numbered(10..11)[0]);
    assert_eq!(near(moments[10], "b").await, numbered(9..10)[0]);
    // Everything that could be had is here: the time before is nobody's.
    let before = at("timestamp_to_event?ts=1000&dir=b");
    assert_refused(bob.get(&before).await, (404, "M_NOT_FOUND"));
}

/// Sends raw JSON from one node to another, as its federation client would.
async fn put(from: &Node, to: &Node, txn: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::put(format!("/_matrix/federation/v1/send/{txn}"));
    let response = send(from, to, request, body).await;
    (response.status(), serde_json::from_slice(response.body()).unwrap())
}

/// [`put`], content with little to read.
async fn put_briefly(from: &Node, to: &Node, txn: &str, body: &Value) -> (StatusCode, usize) {
    let request = Request::put(format!("/_matrix/federation/v1/send/{txn}")).header("prefer", "return=minimal");
    let response = send(from, to, request, body).await;
    (response.status(), response.body().len())
}

async fn send(from: &Node, to: &Node, request: http::request::Builder, body: &Value) -> Response<Bytes> {
    let request = request.body(Bytes::from(body.to_string())).unwrap();
    from.hs
        .context
        .network
        .request(&to.name, request, Limits::default())
        .await
        .unwrap()
}

fn transaction(origin: &Node, pdus: &[Value]) -> Value {
    json!({"origin": origin.name, "origin_server_ts": 1, "pdus": pdus})
}

/// The newest event of a room as a node has it, in federation format.
async fn newest(node: &Node, room: &OwnedRoomId) -> (String, Value) {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| {
        let newest = txn.timeline(&room, Seq(i64::MAX), Direction::Backward, 1)?.remove(0);
        Ok::<_, Error>((newest.pdu.event_id().to_string(), newest.pdu.json().to_owned()))
    });
    let (id, json) = read.await.unwrap();
    (id, serde_json::from_str(&json).unwrap())
}

#[tokio::test]
async fn bad_transactions_change_nothing() {
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b] = [&cluster[0], &cluster[1]];
    cluster.wires.cut(&a.name, &b.name);
    say(&clients[0], &room, "unsent").await;
    let (id, good) = newest(a, &room).await;
    // The node that holds the good event stays silent, and nobody asks it: only what the test sends arrives.
    a.hs.outbox.shutdown().await;
    a.hs.catch_up.shutdown().await;
    b.hs.catch_up.shutdown().await;
    cluster.wires.mend(&a.name, &b.name);
    let position = *b.hs.context.store.committed().borrow();

    let many: Vec<Value> = vec![json!({}); 51];
    let edus = json!({"origin": a.name, "origin_server_ts": 1, "pdus": [], "edus": vec![json!({}); 101]});
    let refused = [
        ("other origin", transaction(b, &[]), 403, "M_FORBIDDEN"),
        ("too many PDUs", transaction(a, &many), 400, "M_INVALID_PARAM"),
        ("too many EDUs", edus, 400, "M_INVALID_PARAM"),
        ("no origin", json!({"pdus": []}), 400, "M_BAD_JSON"),
        ("no object", json!([1]), 400, "M_BAD_JSON"),
    ];
    for (name, body, status, errcode) in refused {
        let (found, answer) = put(a, b, "bad", &body).await;
        assert_eq!(
            (found.as_u16(), &answer["errcode"]),
            (status, &json!(errcode)),
            "{name}: {answer}"
        );
    }

    let altered = |change: fn(&mut Value)| {
        let mut pdu = good.clone();
        change(&mut pdu);
        pdu
    };
    let ignored = [
        altered(|pdu| pdu["signatures"] = json!({})),
        altered(|pdu| pdu["sender"] = json!("@mallory:elsewhere")),
        altered(|pdu| pdu["depth"] = json!(7)),
        altered(|pdu| pdu["depth"] = json!("deep")),
        altered(|pdu| pdu["content"]["body"] = json!("x".repeat(70_000))),
        altered(|pdu| pdu["room_id"] = json!("!elsewhere:example.org")),
        altered(|pdu| pdu["room_id"] = json!(7)),
        json!({}),
        json!([]),
        json!("event"),
    ];
    let (status, answer) = put(a, b, "ignored", &transaction(a, &ignored)).await;
    assert_eq!(status, StatusCode::OK);
    let refused = answer["pdus"].as_object().unwrap();
    assert!(
        !refused.is_empty() && refused.values().all(|verdict| verdict["error"].is_string()),
        "{answer}"
    );
    let again = put(a, b, "ignored", &transaction(a, &ignored)).await;
    assert_eq!(again.1, answer);
    assert_eq!(*b.hs.context.store.committed().borrow(), position);

    // With other content under its signature an event is genuine, but says nothing any more.
    let redacted = altered(|pdu| pdu["content"]["body"] = json!("forged"));
    let body = transaction(a, &[redacted]);
    let (_, answer) = put(a, b, "good", &body).await;
    assert_eq!(answer["pdus"], json!({ id.as_str(): {} }));
    let (newest_id, newest) = newest(b, &room).await;
    assert_eq!((newest_id, &newest["content"]), (id, &json!({})));
    // The same transaction again is answered alike.
    assert_eq!(put(a, b, "good", &body).await.1, answer);

    // Only where all is well can the list be left out.
    assert_eq!(put_briefly(a, b, "good", &body).await, (StatusCode::NO_CONTENT, 0));
    let (status, length) = put_briefly(a, b, "ignored", &transaction(a, &ignored)).await;
    assert!(status == StatusCode::OK && length > 2);
}

#[tokio::test]
async fn who_is_not_in_a_room_learns_nothing_of_it() {
    let cluster = Cluster::start(3).await;
    let (room, alice, _) = room_of_two(&cluster).await;
    say(&alice, &room, "secret").await;
    let (id, _) = newest(&cluster[0], &room).await;
    let (escaped, event) = (escape(room.as_str()), escape(&id));
    let paths = [
        format!("event/{event}"),
        format!("backfill/{escaped}?v={event}&limit=10"),
        format!("state/{escaped}?event_id={event}"),
        format!("state_ids/{escaped}?event_id={event}"),
        format!("event_auth/{escaped}/{event}"),
        format!("timestamp_to_event/{escaped}?ts=1&dir=f"),
    ];
    let get = async |from: &Node, path: &str| {
        let request = Request::get(format!("/_matrix/federation/v1/{path}"))
            .body(Bytes::new())
            .unwrap();
        let response = from
            .hs
            .context
            .network
            .request(&cluster[0].name, request, Limits::default())
            .await
            .unwrap();
        (
            response.status().as_u16(),
            serde_json::from_slice::<Value>(response.body()).unwrap(),
        )
    };
    for path in &paths {
        let (status, answer) = get(&cluster[1], path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        let (status, answer) = get(&cluster[2], path).await;
        let expected = if path.starts_with("event/") {
            (404, "M_NOT_FOUND")
        } else {
            (403, "M_FORBIDDEN")
        };
        assert_eq!((status, answer["errcode"].as_str().unwrap()), expected, "{path}");
    }
    // What the access list keeps out is as good as not in it.
    let acl = json!({"allow": ["*"], "deny": [cluster[1].name]});
    let path = format!("/_matrix/client/v3/rooms/{escaped}/state/m.room.server_acl/");
    alice.put_ok(&path, acl).await;
    for path in &paths[1..] {
        let (status, answer) = get(&cluster[1], path).await;
        assert_eq!(
            (status, answer["errcode"].as_str().unwrap()),
            (403, "M_FORBIDDEN"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_history_visibility_hides_is_told_without_content() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let visibility =
        json!({"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}});
    let body = json!({"preset": "public_chat", "initial_state": [visibility]});
    let answer = alice.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room: OwnedRoomId = answer["room_id"].as_str().unwrap().try_into().unwrap();
    say(&alice, &room, "before").await;
    let bob = cluster[1].register("bob").await;
    join(&bob, &room, &cluster[0]).await;
    say(&alice, &room, "after").await;
    assert_eq!(until_text(&cluster[1], &room, "after").await, ["after"]);
    let path = format!(
        "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=500",
        escape(room.as_str())
    );
    let page = bob.get_ok(&path).await;
    let bodies: Vec<&Value> = page["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["content"]["body"])
        .collect();
    assert!(
        bodies.contains(&&json!("after")) && !bodies.contains(&&json!("before")),
        "{page}"
    );
    // The past was fetched, but what bob's server may not know did not come with it.
    let room = room.clone();
    let texts = cluster[1]
        .hs
        .context
        .store
        .read(move |txn| texts(txn, &room))
        .await
        .unwrap();
    assert_eq!(texts, ["after"]);
}
