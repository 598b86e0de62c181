//! Rooms that other nodes made.

use serde_json::json;

use super::{assert_tells_when_invited, at, bodies, create, has, ids, join, say, sync};
use crate::testing::{Cluster, escape};

#[tokio::test]
async fn an_invite_from_another_node_becomes_a_room() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let start = sync(&bob, None, &[]).await;
    let room = create(&alice, json!({ "name": "Far", "invite": [bob.user_id] })).await;
    say(&alice, &room, "before").await;
    let invited = sync(&bob, Some(&start), &[]).await;
    let state = &invited["rooms"]["invite"][&room]["invite_state"]["events"];
    assert!(
        has(state, "m.room.name", "") && has(state, "m.room.member", &bob.user_id),
        "{invited}"
    );
    assert_tells_when_invited(state, &bob.user_id);

    join(&bob, &room).await;
    let joined = sync(&bob, Some(&invited), &[]).await;
    let there = &joined["rooms"]["join"][&room];
    assert!(joined["rooms"].get("invite").is_none());
    assert!(has(&there["state"]["events"], "m.room.create", ""), "{there}");
    assert!(
        has(&there["timeline"]["events"], "m.room.member", &bob.user_id),
        "{there}"
    );
    assert_eq!(there["summary"]["m.joined_member_count"], 2);

    let hello = say(&bob, &room, "hello").await;
    let seen = sync(&bob, Some(&joined), &[]).await;
    assert_eq!(ids(&seen["rooms"]["join"][&room]["timeline"]["events"]), [hello]);
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let left = sync(&bob, Some(&seen), &[]).await;
    let gone = &left["rooms"]["leave"][&room];
    assert!(
        has(&gone["timeline"]["events"], "m.room.member", &bob.user_id),
        "{left}"
    );
    assert!(bodies(&gone["timeline"]["events"]).is_empty());
}

#[tokio::test]
async fn a_refused_invite_from_another_node_leaves() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let room = create(&alice, json!({ "invite": [bob.user_id] })).await;
    let invited = sync(&bob, None, &[]).await;
    assert!(invited["rooms"]["invite"][&room].is_object(), "{invited}");
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let refused = sync(&bob, Some(&invited), &[]).await;
    assert!(refused["rooms"]["leave"][&room].is_object(), "{refused}");
    assert!(sync(&bob, Some(&refused), &[]).await.get("rooms").is_none());
}

/// What was said before a node came to a room is fetched when somebody reads back that far: all of it, once, in order.
#[tokio::test]
async fn history_from_before_joining_is_fetched_on_demand() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let room = create(&alice, json!({ "preset": "public_chat", "invite": [bob.user_id] })).await;
    for number in 0..30 {
        say(&alice, &room, &format!("{number}")).await;
    }
    join(&bob, &room).await;
    let joined = sync(&bob, None, &[]).await;
    let timeline = &joined["rooms"]["join"][&room]["timeline"];
    let mut said = bodies(&timeline["events"]);
    let mut from = timeline["prev_batch"].as_str().map(str::to_owned);
    let mut last = ids(&timeline["events"]);
    let mut pages = 0;
    while let Some(token) = from {
        let page = bob
            .get_ok(&at(&room, &format!("messages?dir=b&limit=7&from={}", escape(&token))))
            .await;
        said.splice(0..0, bodies(&page["chunk"]).into_iter().rev());
        last = ids(&page["chunk"]).into_iter().rev().chain(last).collect();
        from = page["end"].as_str().map(str::to_owned);
        pages += 1;
        assert!(pages < 20, "the pages do not end");
    }
    assert_eq!(said, (0..30).map(|number| number.to_string()).collect::<Vec<_>>());
    let here = alice.get_ok(&at(&room, "messages?dir=f&limit=100")).await;
    assert_eq!(last, ids(&here["chunk"]));
    // What came as history is no news.
    assert!(sync(&bob, Some(&joined), &[]).await.get("rooms").is_none());
}

#[tokio::test]
async fn history_that_cannot_be_fetched_leaves_the_way_open() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let room = create(&alice, json!({ "preset": "public_chat", "invite": [bob.user_id] })).await;
    for number in 0..5 {
        say(&alice, &room, &format!("{number}")).await;
    }
    join(&bob, &room).await;
    cluster[0].go_down();
    let page = bob.get_ok(&at(&room, "messages?dir=b&limit=100")).await;
    assert!(bodies(&page["chunk"]).is_empty(), "{page}");
    let end = page["end"].as_str().unwrap();
    cluster[0].come_up();
    let page = bob
        .get_ok(&at(&room, &format!("messages?dir=b&limit=100&from={}", escape(end))))
        .await;
    assert_eq!(bodies(&page["chunk"]), ["4", "3", "2", "1", "0"]);
    assert!(page.get("end").is_none(), "{page}");
}

/// A client that reads back until there is no `end` must come to one, also where nobody tells what is missing; when somebody
/// does again, reading back anew finds it.
#[tokio::test]
async fn reading_back_ends_where_nobody_tells_more() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let room = create(&alice, json!({ "preset": "public_chat", "invite": [bob.user_id] })).await;
    say(&alice, &room, "before bob").await;
    join(&bob, &room).await;
    cluster[0].go_down();
    let newest = at(&room, "messages?dir=b&limit=100");
    let mut page = bob.get_ok(&newest).await;
    for _ in 0..5 {
        let Some(end) = page["end"].as_str() else { break };
        page = bob.get_ok(&format!("{newest}&from={}", escape(end))).await;
    }
    assert!(page.get("end").is_none(), "the pages do not end: {page}");
    cluster[0].come_up();
    let page = bob.get_ok(&newest).await;
    assert_eq!(bodies(&page["chunk"]), ["before bob"]);
}
