//! What must come right again across nodes: refusals that nobody heard, long absences, replaced rooms, and servers that a
//! room keeps out.

use std::time::Duration;

use http::StatusCode;
use kith_store::StoreError;
use serde_json::{Value, json};

use super::{
    at, create,
    federated::{hear, join_path, membership, outside_membership, three_together, until_membership},
    joined, say,
};
use crate::testing::{Client, Cluster, Node, assert_refused, escape};

#[tokio::test]
async fn a_refusal_that_nobody_heard_is_told_when_somebody_is_back() {
    for forgotten in [false, true] {
        let mut cluster = Cluster::start(2).await;
        let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
        let room = create(&alice, json!({"invite": [bob.user_id]})).await;
        let other = create(&alice, json!({"invite": [bob.user_id]})).await;
        cluster[0].go_down();
        for room in [&room, &other] {
            bob.post_ok(&at(room, "leave"), json!({"reason": "no tea"})).await;
        }
        if forgotten {
            bob.post_ok(&at(&room, "forget"), json!({})).await;
        }
        cluster.nodes[1].restart().await;
        cluster[0].come_up();
        for room in [&room, &other] {
            until_membership(&cluster[0], &alice, room, &bob.user_id, "leave").await;
            let told = alice
                .get_ok(&at(room, &format!("state/m.room.member/{}", escape(&bob.user_id))))
                .await;
            assert_eq!(told["reason"], "no tea");
        }
        until_settled(&cluster[1]).await;
    }
}

/// Waits until a node owes no leaves any more and enters nothing, which is no news to clients and hence wakes nobody.
pub(super) async fn until_settled(node: &Node) {
    let settled = async {
        loop {
            let read = node
                .hs
                .context
                .store
                .read(|txn| Ok::<_, StoreError>((txn.owed_leaves()?, txn.entries()?)));
            let (owed, entries) = read.await.unwrap();
            if owed.is_empty() && entries.is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), settled).await;
    assert!(waited.is_ok(), "leaves stay owed, or rooms half entered");
}

/// Whoever is invited once more before the refusal arrives is invited.
#[tokio::test]
async fn a_refusal_is_not_told_of_a_later_invite() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let room = create(&alice, json!({"invite": [bob.user_id]})).await;
    let held = cluster.wires.hold_answers("/make_leave/");
    cluster.wires.lie("/make_leave/", |answer| *answer = json!("garbage"));
    let leaving = bob.clone();
    let path = at(&room, "leave");
    let leaving = tokio::spawn(async move { leaving.post_ok(&path, json!({})).await });
    drop(held);
    leaving.await.unwrap();
    let owed = async || {
        let owed = cluster[1].hs.context.store.read(|txn| txn.owed_leaves()).await;
        owed.unwrap().len()
    };
    assert_eq!(owed().await, 1);
    alice
        .post_ok(&at(&room, "invite"), json!({"user_id": bob.user_id}))
        .await;
    assert_eq!(
        (owed().await, outside_membership(&cluster[1], &bob, &room).await),
        (0, "invite".to_owned())
    );
    cluster.wires.be_honest();
    cluster[0].go_down();
    cluster[0].come_up();
    bob.post_ok(&at(&room, "join"), json!({})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
}

/// The texts that a client reads back to the start of a room, oldest first.
async fn texts(client: &Client, room: &str) -> Vec<String> {
    let (mut texts, mut from) = (Vec::new(), String::new());
    loop {
        let page = client
            .get_ok(&at(room, &format!("messages?dir=b&limit=40{from}")))
            .await;
        let events = page["chunk"].as_array().unwrap();
        texts.extend(
            events
                .iter()
                .filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)),
        );
        // What is older than anybody's stay here may still come, from whoever is away now.
        let Some(end) = page["end"].as_str().filter(|_| !events.is_empty()) else {
            break;
        };
        from = format!("&from={}", escape(end));
    }
    texts.reverse();
    texts
}

#[tokio::test]
async fn who_was_away_for_long_comes_back_to_the_room_as_it_is() {
    for version in ["10", "12"] {
        let cluster = Cluster::start(3).await;
        let ([alice, bob, carol], room) = three_together(&cluster, version).await;
        let seen = say(&alice, &room, "seen", "seen").await;
        hear(&cluster[1], &bob, &room, &seen).await;
        let sync = async |since: &Value| -> Value {
            let since = since["next_batch"]
                .as_str()
                .map_or(String::new(), |since| format!("?since={}", escape(since)));
            bob.get_ok(&format!("/_matrix/client/v3/sync{since}")).await
        };
        let before = sync(&Value::Null).await;
        bob.post_ok(&at(&room, "leave"), json!({})).await;
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "leave").await;
        let after = sync(&before).await;
        let mut said = vec!["seen".to_owned()];
        for number in 0..60 {
            let text = format!("while bob was away {number}");
            let who = if number % 2 == 0 {
                (&alice, 2, &carol)
            } else {
                (&carol, 0, &alice)
            };
            let event = say(who.0, &room, &number.to_string(), &text).await;
            if number % 10 == 9 {
                hear(&cluster[who.1], who.2, &room, &event).await;
            }
            said.push(text);
        }
        alice
            .put_ok(&at(&room, "state/m.room.name/"), json!({"name": "Renamed"}))
            .await;
        alice
            .put_ok(&at(&room, "state/m.room.topic/"), json!({"topic": "t"}))
            .await;
        let newest = say(&alice, &room, "newest", "newest").await;
        hear(&cluster[2], &carol, &room, &newest).await;
        said.push("newest".to_owned());

        // The one who made the room and whom bob knew first is away: any other member will do.
        cluster[0].go_down();
        let carols = cluster[2].name.as_str();
        bob.post_ok(&join_path(&room, &[carols]), json!({})).await;
        assert_eq!(joined(&bob).await, std::slice::from_ref(&room));
        assert_eq!(bob.get_ok(&at(&room, "state/m.room.name/")).await["name"], "Renamed");
        let back = say(&bob, &room, "back", "back").await;
        hear(&cluster[2], &carol, &room, &back).await;
        said.push("back".to_owned());
        // Clients are not shown what they saw before as if nothing were between, and find what is.
        for since in [before, after, Value::Null] {
            let timeline = sync(&since).await["rooms"]["join"][&room]["timeline"].clone();
            assert!(!timeline.to_string().contains("seen"), "{timeline}");
            assert!(since.is_null() || timeline["limited"] == true, "{timeline}");
            let from = escape(timeline["prev_batch"].as_str().unwrap());
            let page = bob
                .get_ok(&at(&room, &format!("messages?dir=b&limit=5&from={from}")))
                .await;
            assert!(format!("{timeline} {page}").contains("newest"), "{page}");
        }
        // Nothing of what was said meanwhile is missing, nothing is there twice, everyone's words are in their order, and
        // nobody's author needs to be there.
        let mut read = texts(&bob, &room).await;
        assert_eq!((read.first(), read.last()), (said.first(), said.last()), "{read:?}");
        for parity in [0, 1] {
            let numbers = read
                .iter()
                .filter_map(|text| text.split_once("away ")?.1.parse::<u32>().ok());
            let numbers: Vec<u32> = numbers.filter(|number| number % 2 == parity).collect();
            assert_eq!(
                numbers,
                (0..60).filter(|number| number % 2 == parity).collect::<Vec<_>>()
            );
        }
        read.sort();
        said.sort();
        assert_eq!(read, said);
        cluster[0].come_up();
        hear(&cluster[0], &alice, &room, &back).await;
    }
}

/// Whoever was let in by a node that is gone can still leave, speak and let others in.
#[tokio::test]
async fn a_room_outlives_the_node_that_made_it() {
    let cluster = Cluster::start(4).await;
    let ([alice, bob, carol], room) = three_together(&cluster, "12").await;
    until_membership(&cluster[2], &carol, &room, &bob.user_id, "join").await;
    let dave = cluster[3].register("dave").await;
    let levels = alice.put_ok(&at(&room, "state/m.room.power_levels/"), json!({})).await;
    for (node, client) in [(1, &bob), (2, &carol)] {
        hear(&cluster[node], client, &room, levels["event_id"].as_str().unwrap()).await;
    }
    cluster[0].go_down();
    let via = [cluster[0].name.as_str(), cluster[1].name.as_str()];
    dave.post_ok(&join_path(&room, &via), json!({})).await;
    until_membership(&cluster[2], &carol, &room, &dave.user_id, "join").await;
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    until_membership(&cluster[2], &carol, &room, &bob.user_id, "leave").await;
    until_membership(&cluster[3], &dave, &room, &bob.user_id, "leave").await;
    let hello = say(&carol, &room, "1", "still here").await;
    hear(&cluster[3], &dave, &room, &hello).await;
    carol
        .post_ok(&at(&room, "invite"), json!({"user_id": bob.user_id}))
        .await;
    assert_eq!(outside_membership(&cluster[1], &bob, &room).await, "invite");
    bob.post_ok(&at(&room, "join"), json!({})).await;
    until_membership(&cluster[3], &dave, &room, &bob.user_id, "join").await;
}

#[tokio::test]
async fn a_replaced_room_is_followed_by_members_of_other_nodes() {
    for (from, to) in [("10", "12"), ("12", "12")] {
        let cluster = Cluster::start(3).await;
        let ([alice, bob, carol], old) = three_together(&cluster, from).await;
        let new = alice.post_ok(&at(&old, "upgrade"), json!({"new_version": to})).await;
        let new = new["replacement_room"].as_str().unwrap().to_owned();
        for (node, client) in [(1, &bob), (2, &carol)] {
            let path = at(&old, "state/m.room.tombstone/");
            let told = async || client.get(&path).await.1["replacement_room"] == *new;
            cluster[node].until("the room is seen to be replaced", told).await;
            client
                .post_ok(&join_path(&new, &[cluster[0].name.as_str()]), json!({}))
                .await;
            let created = client.get_ok(&at(&new, "state/m.room.create/")).await;
            assert_eq!(created["predecessor"]["room_id"], *old);
            assert_eq!(created["room_version"], to);
            // The old one is closed on every node.
            let levels = at(&old, "state/m.room.power_levels/");
            let closed = async || client.get_ok(&levels).await["events_default"].as_i64().unwrap_or(0) > 0;
            cluster[node].until("the old room is closed", closed).await;
            let text = json!({"msgtype": "m.text", "body": "still here"});
            let send = at(&old, "send/m.room.message/1");
            assert_refused(client.put(&send, text).await, (403, "M_FORBIDDEN"));
        }
        let here = say(&bob, &new, "1", "here now").await;
        hear(&cluster[0], &alice, &new, &here).await;
    }
}

#[tokio::test]
async fn rooms_for_members_of_another_or_for_whom_is_let_in() {
    let cluster = Cluster::start(3).await;
    let ([alice, bob, carol], club) = three_together(&cluster, "12").await;
    let allow = json!([{"type": "m.room_membership", "room_id": club}]);
    let rule = json!({"join_rule": "knock_restricted", "allow": allow});
    let rules = json!({"type": "m.room.join_rules", "content": rule});
    let room = create(&alice, json!({"initial_state": [rules]})).await;
    let via = [cluster[0].name.as_str()];
    // A member of the club walks in; a stranger may ask, and is let in.
    bob.post_ok(&join_path(&room, &via), json!({})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
    let stranger = cluster[2].register("stranger").await;
    assert_refused(
        stranger.post(&join_path(&room, &via), json!({})).await,
        (403, "M_FORBIDDEN"),
    );
    let knock = format!("/_matrix/client/v3/knock/{}?via={}", escape(&room), via[0]);
    stranger.post_ok(&knock, json!({})).await;
    assert_eq!(membership(&alice, &room, &stranger.user_id).await, "knock");
    until_membership(&cluster[1], &bob, &room, &stranger.user_id, "knock").await;
    alice
        .post_ok(&at(&room, "invite"), json!({"user_id": stranger.user_id}))
        .await;
    stranger.post_ok(&at(&room, "join"), json!({})).await;
    until_membership(&cluster[1], &bob, &room, &stranger.user_id, "join").await;
    carol.post_ok(&join_path(&room, &via), json!({})).await;
}

#[tokio::test]
async fn a_server_that_is_kept_out_later_is_heard_no_more() {
    let cluster = Cluster::start(3).await;
    let ([alice, bob, carol], room) = three_together(&cluster, "12").await;
    let acl = json!({"allow": ["*"], "deny": [cluster[1].name]});
    let set = alice.put_ok(&at(&room, "state/m.room.server_acl/"), acl).await;
    let set = set["event_id"].as_str().unwrap();
    hear(&cluster[1], &bob, &room, set).await;
    hear(&cluster[2], &carol, &room, set).await;
    // What bob does from now on counts on no other node; what carol does afterwards shows that it has arrived.
    let unheard = say(&bob, &room, "1", "unheard").await;
    let typing = at(&room, &format!("typing/{}", escape(&bob.user_id)));
    bob.put_ok(&typing, json!({"typing": true, "timeout": 60_000})).await;
    bob.post_ok(&at(&room, &format!("receipt/m.read/{}", escape(set))), json!({}))
        .await;
    let elsewhere = create(&bob, json!({"invite": [alice.user_id]})).await;
    let invited = async || outside_membership(&cluster[0], &alice, &elsewhere).await == "invite";
    cluster[0].until("alice hears from bob's node", invited).await;
    let mut waiting = cluster[1].hs.outbox.waiting();
    waiting.wait_for(|waiting| *waiting == 0).await.unwrap();
    let path = at(&room, &format!("event/{}", escape(&unheard)));
    assert_refused(alice.get(&path).await, (404, "M_NOT_FOUND"));
    let room_id = ruma::RoomId::parse(&room).unwrap();
    assert!(cluster[0].hs.ephemeral.typing_in(&room_id).is_empty());
    let synced = alice.get_ok("/_matrix/client/v3/sync").await;
    let ephemeral = &synced["rooms"]["join"][&room]["ephemeral"]["events"];
    assert!(!ephemeral.to_string().contains(&bob.user_id), "{ephemeral}");
}

#[tokio::test]
async fn a_room_is_made_though_an_invited_server_refuses() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let nobody = format!("@nobody:{}", cluster[1].name);
    let room = create(&alice, json!({"invite": [nobody, bob.user_id]})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "invite");
    let path = at(&room, &format!("state/m.room.member/{}", escape(&nobody)));
    assert_refused(alice.get(&path).await, (404, "M_NOT_FOUND"));
    // Asked for directly, the refusal is the answer.
    let invite = alice.post(&at(&room, "invite"), json!({"user_id": nobody})).await;
    assert_refused(invite, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn strangers_may_invite_only_so_often_a_day() {
    let cluster = Cluster::start(3).await;
    let [spammer, friend, bob] = [
        cluster[0].register("spammer").await,
        cluster[1].register("friend").await,
        cluster[2].register("bob").await,
    ];
    let invite = async |from: &Client| -> (String, (StatusCode, Value)) {
        let room = create(from, json!({})).await;
        let answer = from.post(&at(&room, "invite"), json!({"user_id": bob.user_id})).await;
        (room, answer)
    };
    let common = create(&friend, json!({"invite": [bob.user_id]})).await;
    bob.post_ok(&at(&common, "join"), json!({})).await;
    for _ in 0..9 {
        assert_eq!(invite(&spammer).await.1.0, StatusCode::OK);
    }
    let (room, refused) = invite(&spammer).await;
    assert_refused(refused, (403, "M_FORBIDDEN"));
    assert_eq!(outside_membership(&cluster[2], &bob, &room).await, "");
    // Who shares a room is no stranger, nor is a contact; and tomorrow is another day.
    assert_eq!(invite(&friend).await.1.0, StatusCode::OK);
    let (now, name) = (cluster[2].hs.context.world.now(), cluster[0].name.clone());
    let store = &cluster[2].hs.context.store;
    store.write(move |txn| txn.add_contact(&name, now)).await.unwrap();
    assert_eq!(invite(&spammer).await.1.0, StatusCode::OK);
    let other = cluster[2].register("other").await;
    assert_eq!(joined(&other).await, [""; 0]);
    cluster.clock.advance(Duration::from_secs(25 * 60 * 60));
    assert_eq!(invite(&spammer).await.1.0, StatusCode::OK);
}

/// What one may not read is in no answer.
#[tokio::test]
async fn what_was_said_before_one_came_is_hidden_everywhere() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let (dave, bob) = (cluster[1].register("dave").await, cluster[1].register("bob").await);
    let visibility = json!({"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}});
    let room = create(&alice, json!({"preset": "public_chat", "initial_state": [visibility]})).await;
    let via = [cluster[0].name.as_str()];
    dave.post_ok(&join_path(&room, &via), json!({})).await;
    let send = async |client: &Client, txn: &str, content: Value| -> String {
        let path = at(&room, &format!("send/m.room.message/{txn}"));
        client.put_ok(&path, content).await["event_id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let root = send(&alice, "1", json!({"msgtype": "m.text", "body": "secret root"})).await;
    hear(&cluster[1], &dave, &room, &root).await;
    let relates = json!({"rel_type": "m.thread", "event_id": root});
    let reply = json!({"msgtype": "m.text", "body": "secret reply", "m.relates_to": relates});
    let reply = send(&alice, "2", reply).await;
    hear(&cluster[1], &dave, &room, &reply).await;
    let before = u64::from(cluster[1].hs.context.world.now().get());

    bob.post_ok(&at(&room, "join"), json!({})).await;
    let open = say(&bob, &room, "3", "open").await;
    let v1 = |rest: &str| format!("/_matrix/client/v1/rooms/{}/{rest}", escape(&room));
    let (root, reply, open) = (escape(&root), escape(&reply), escape(&open));
    let shown = [
        "/_matrix/client/v3/sync".to_owned(),
        format!(
            "/_matrix/client/v3/sync?filter={}",
            escape(r#"{"room":{"timeline":{"limit":100}}}"#)
        ),
        at(&room, "messages?dir=b&limit=100"),
        at(&room, "messages?dir=f&limit=100"),
        at(&room, &format!("context/{open}?limit=100")),
        v1("threads"),
        "/_matrix/client/v3/notifications".to_owned(),
    ];
    for path in &shown {
        let answer = bob.get_ok(path).await.to_string();
        assert!(!answer.contains("secret"), "{path}: {answer}");
    }
    let categories = json!({"search_categories": {"room_events": {"search_term": "secret"}}});
    let found = bob.post_ok("/_matrix/client/v3/search", categories.clone()).await;
    assert_eq!(found["search_categories"]["room_events"]["count"], 0);
    let hidden = [
        at(&room, &format!("event/{root}")),
        at(&room, &format!("context/{root}")),
        v1(&format!("relations/{root}")),
        v1(&format!("relations/{root}/m.thread")),
    ];
    for path in &hidden {
        assert_refused(bob.get(path).await, (404, "M_NOT_FOUND"));
    }
    let near = bob.get_ok(&v1(&format!("timestamp_to_event?ts={before}&dir=b"))).await;
    for secret in [&root, &reply] {
        assert_ne!(escape(near["event_id"].as_str().unwrap()), **secret);
    }
    // Dave, who was there, has it all.
    assert!(dave.get_ok(&shown[2]).await.to_string().contains("secret reply"));
    let found = dave.post_ok("/_matrix/client/v3/search", categories).await;
    assert_eq!(found["search_categories"]["room_events"]["count"], 2);
    for path in &hidden {
        assert_eq!(dave.get(path).await.0, StatusCode::OK, "{path}");
    }
}
