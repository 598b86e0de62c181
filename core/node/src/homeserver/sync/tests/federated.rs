//! Rooms that other nodes made.

use serde_json::json;

use super::{at, bodies, create, has, ids, join, say, sync};
use crate::testing::Cluster;

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
