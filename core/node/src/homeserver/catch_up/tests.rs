//! Members that lose what they send each other, and come to hold the same all the same.

use std::collections::BTreeSet;

use http::Method;
use kith_engine::RoomReader;
use ruma::{OwnedRoomId, RoomId};
use serde_json::{Value, json};

use crate::testing::{
    Cluster, Node, escape,
    rooms::{common_room, eventually, join, numbered, room_of_two, say, texts, until_alike, until_text},
};

/// Every transaction of PDUs and EDUs.
const SENDS: &str = "/federation/v1/send/";
const HEADS: &str = "/org.kith/heads";
const PULL: &str = "/org.kith/pull/";
const RECONCILE: &str = "/org.kith/reconcile/";

/// Waits until a node has all these texts, in any order, each once.
async fn until_texts(node: &Node, room: &OwnedRoomId, expected: &[String]) {
    let (room, expected) = (room.clone(), BTreeSet::from_iter(expected.iter().cloned()));
    let found = eventually(node, move |txn| {
        let texts = texts(txn, &room)?;
        let all = expected.iter().all(|text| texts.contains(text));
        Ok(all.then_some((texts.len(), expected.len())))
    });
    let (found, expected) = found.await;
    assert_eq!(found, expected);
}

/// Waits until nothing more would be asked by any node until something happens.
async fn until_idle(nodes: &[Node]) {
    for node in nodes {
        node.hs
            .outbox
            .waiting()
            .wait_for(|waiting| *waiting == 0)
            .await
            .unwrap();
    }
    loop {
        if nodes.iter().all(|node| node.hs.catch_up.is_idle()) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until no event of a room waits in the database to be sent to others.
async fn until_nothing_to_send(node: &Node, room: &OwnedRoomId, nodes: &[Node]) {
    for other in nodes {
        let (room, other) = (room.clone(), other.name.clone());
        // What is forgotten moves no position, so there is nothing to wait on.
        loop {
            let (room, other) = (room.clone(), other.clone());
            let read = node.hs.context.store.read(move |txn| txn.has_outgoing(&other, &room));
            if !read.await.unwrap() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn without_a_single_send_all_members_agree() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    cluster.wires.lose(SENDS);
    let mut said = Vec::new();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            let text = format!("{number} in round {round}");
            say(client, &room, &text).await;
            said.push(text);
        }
    }
    let topic = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic/", escape(room.as_str()));
    clients[0].put_ok(&topic, json!({"topic": "lost"})).await;
    for node in &cluster.nodes {
        until_texts(node, &room, &said).await;
    }
    until_alike(&[&cluster[0], &cluster[1], &cluster[2]], &room).await;
    for client in &clients {
        assert_eq!(client.get_ok(&topic).await["topic"], "lost");
    }
    // What others hold by now is not sent to them again.
    for node in &cluster.nodes {
        until_nothing_to_send(node, &room, &cluster.nodes).await;
    }
}

#[tokio::test]
async fn a_room_at_rest_costs_nothing() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    until_idle(&cluster.nodes).await;
    let before = cluster.wires.requests(HEADS);
    for (number, client) in clients.iter().enumerate() {
        say(client, &room, &format!("hello from {number}")).await;
    }
    for node in &cluster.nodes {
        until_texts(
            node,
            &room,
            &["hello from 0", "hello from 1", "hello from 2"].map(str::to_owned),
        )
        .await;
    }
    until_idle(&cluster.nodes).await;
    // Where transactions arrive, each asks one other once whether that is all; and idle, nothing is due, ever.
    let asked = cluster.wires.requests(HEADS) - before;
    assert!(asked <= cluster.nodes.len(), "{asked}");
    assert_eq!(cluster.wires.requests(PULL), 0);
}

#[tokio::test]
async fn who_was_let_go_gets_all_that_is_said() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    until_idle(&cluster.nodes).await;
    cluster.wires.let_all_go();
    assert!(cluster[0].hs.context.network.peers().is_empty());
    say(&clients[0], &room, "anybody there?").await;
    for node in &cluster.nodes {
        assert_eq!(until_text(node, &room, "anybody there?").await.len(), 1);
    }
    until_idle(&cluster.nodes).await;
    // One is away, and nobody has noticed. What is said meanwhile it gets when it is back, and from whoever has it.
    cluster.wires.let_all_go();
    cluster[2].go_down();
    say(&clients[0], &room, "missed").await;
    until_text(&cluster[1], &room, "missed").await;
    cluster[0].go_down();
    cluster[2].come_up();
    until_text(&cluster[2], &room, "missed").await;
    cluster[0].come_up();
    until_alike(&[&cluster[0], &cluster[1], &cluster[2]], &room).await;
    until_idle(&cluster.nodes).await;
}

#[tokio::test]
async fn a_large_difference_is_reconciled_and_nothing_needs_its_author() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    c.go_down();
    let mut said = numbered(0..620);
    for text in &said {
        say(&clients[0], &room, text).await;
    }
    until_text(b, &room, "n619").await;
    say(&clients[2], &room, "meanwhile, alone").await;
    said.push("meanwhile, alone".to_owned());
    a.go_down();
    cluster.wires.lose(SENDS);
    c.come_up();
    until_texts(c, &room, &said).await;
    until_texts(b, &room, &said).await;
    assert!(cluster.wires.requests(RECONCILE) >= 2);
    assert_eq!(cluster.wires.requests("/state_ids/"), 0);
    // The author hears of what it missed when it comes back.
    a.come_up();
    until_texts(a, &room, &said).await;
    until_alike(&[a, b, c], &room).await;
}

#[tokio::test]
async fn who_cannot_be_told_by_the_author_is_told_by_others() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    until_idle(&cluster.nodes).await;
    cluster.wires.cut(&a.name, &c.name);
    // b is connected to both all the time, and says nothing.
    say(&clients[0], &room, "to both").await;
    assert_eq!(until_text(c, &room, "to both").await, ["to both"]);
    until_alike(&[a, b, c], &room).await;
}

#[tokio::test]
async fn what_nobody_had_is_filled_in_when_somebody_has_it() {
    let cluster = Cluster::start(3).await;
    let (room, clients) = common_room(&cluster).await;
    let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
    b.go_down();
    say(&clients[0], &room, "missed").await;
    say(&clients[0], &room, "missed too").await;
    until_text(c, &room, "missed too").await;
    // A newcomer knows the room from here on only. b comes back, and nobody but the newcomer is there.
    let newcomer = clients[2].clone();
    let path = format!("/_matrix/client/v3/rooms/{}", escape(room.as_str()));
    newcomer.post_ok(&format!("{path}/leave"), json!({})).await;
    newcomer.post_ok(&format!("{path}/forget"), json!({})).await;
    until_alike(&[c, a], &room).await;
    let dora = c.register("dora").await;
    join(&dora, &room, a).await;
    say(&dora, &room, "new here").await;
    until_text(a, &room, "new here").await;
    until_alike(&[a, c], &room).await;
    for told in ["/pull/", "/get_missing_events/", "/backfill/", "/event/"] {
        // What c has kept of earlier times, it does not tell.
        cluster.wires.lie(told, |answer| {
            let missed = |pdu: &Value| {
                pdu["content"]["body"]
                    .as_str()
                    .is_some_and(|body| body.starts_with("missed"))
            };
            for list in ["pdus", "events"] {
                if let Some(list) = answer[list].as_array_mut() {
                    list.retain(|pdu| !missed(pdu));
                }
            }
        });
    }
    a.go_down();
    b.come_up();
    until_text(b, &room, "new here").await;
    assert!(cluster.wires.requests("/state_ids/") > 0);
    cluster.wires.be_honest();
    a.come_up();
    until_texts(b, &room, &["missed", "missed too", "new here"].map(str::to_owned)).await;
    until_alike(&[a, b, c], &room).await;
}

#[tokio::test]
async fn a_pull_that_is_cut_off_goes_on_after_a_restart() {
    let mut cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    cluster.wires.lose(SENDS);
    cluster[1].go_down();
    let said = numbered(0..40);
    for text in &said {
        say(&clients[0], &room, text).await;
    }
    let held = cluster.wires.hold_answers(PULL);
    cluster[1].come_up();
    cluster.wires.until_requests(PULL, 1).await;
    cluster.nodes[1].restart().await;
    drop(held);
    until_texts(&cluster[1], &room, &said).await;
    until_alike(&[&cluster[0], &cluster[1]], &room).await;
}

#[tokio::test]
async fn a_liar_among_the_members_does_not_keep_the_truth_away() {
    type Lie = fn(&mut Value);
    let lies: [Lie; 4] = [
        |answer| *answer = json!({}),
        |answer| answer["pdus"] = json!([]),
        |answer| answer["pdus"] = json!([{}, [], 7, {"type": "m.room.message"}]),
        |answer| {
            for pdu in answer["pdus"].as_array_mut().unwrap() {
                pdu["origin_server_ts"] = json!(1);
            }
        },
    ];
    let cluster = Cluster::start(2).await;
    let (room, clients) = common_room(&cluster).await;
    cluster.wires.lose(SENDS);
    for (number, lie) in lies.into_iter().enumerate() {
        let before = cluster.wires.requests(PULL);
        cluster.wires.lie(PULL, lie);
        let text = format!("true {number}");
        say(&clients[0], &room, &text).await;
        cluster.wires.until_requests(PULL, before + 1).await;
        cluster.wires.be_honest();
        until_text(&cluster[1], &room, &text).await;
    }
}

#[tokio::test]
async fn who_is_not_in_a_room_learns_nothing_of_where_it_stands() {
    let cluster = Cluster::start(3).await;
    let (room, alice, _) = room_of_two(&cluster).await;
    let head = head_of(&cluster[0], &room).await;
    let heads = json!({"rooms": {room.as_str(): {"events": [], "digest": "", "depth": 0}}});
    let escaped = escape(room.as_str());
    let key = "A".repeat(43);
    let asked = [
        (format!("pull/{escaped}"), json!({"event_ids": [head]})),
        (
            format!("reconcile/{escaped}"),
            json!({"key": key, "depth": 0, "masks": ""}),
        ),
    ];
    let path = |what: &str| format!("/_matrix/federation/unstable/org.kith/{what}");
    let ask = async |from: &Node, what: &str, body: &Value| {
        let (status, answer) = from.ask(&cluster[0], Method::POST, &path(what), body.clone()).await;
        (status.as_u16(), answer)
    };
    let member = ask(&cluster[1], "heads", &heads).await;
    assert_eq!(member.1["rooms"][room.as_str()]["events"], json!([head]));
    let denied = async |from: &Node| {
        assert_eq!(ask(from, "heads", &heads).await, (200, json!({"rooms": {}})));
        for (what, body) in &asked {
            let (status, answer) = ask(from, what, body).await;
            assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{what}");
        }
    };
    for (what, body) in &asked {
        let (status, answer) = ask(&cluster[1], what, body).await;
        assert_eq!(status, 200, "{what}: {answer}");
    }
    denied(&cluster[2]).await;
    // Whom the access list keeps out is as good as not in it.
    let acl = json!({"allow": ["*"], "deny": [cluster[1].name]});
    let path = format!("/_matrix/client/v3/rooms/{escaped}/state/m.room.server_acl/");
    alice.put_ok(&path, acl).await;
    denied(&cluster[1]).await;
    // Too much at once is refused before anything is read.
    let many: serde_json::Map<String, Value> = (0..101)
        .map(|number| (format!("!{number}:x"), json!({"events": [], "digest": "", "depth": 0})))
        .collect();
    let refused = ask(&cluster[1], "heads", &json!({"rooms": many})).await;
    assert_eq!((refused.0, &refused.1["errcode"]), (400, &json!("M_INVALID_PARAM")));
}

async fn head_of(node: &Node, room: &RoomId) -> String {
    let room = room.to_owned();
    let read = node.hs.context.store.read(move |txn| txn.forward_extremities(&room));
    read.await.unwrap()[0].to_string()
}
