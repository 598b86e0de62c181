//! Ways into rooms that were cut short, and out of them: what a room believes of a user, the user's node does in the end.

use http::StatusCode;
use kith_store::Entry;
use serde_json::{Value, json};

use super::{
    at, create,
    federated::{hear, join_path, outside_membership, until_membership},
    healing::until_settled,
    joined, say,
};
use crate::testing::{Client, Cluster, Node, escape};

async fn two() -> (Cluster, Client, Client) {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    (cluster, alice, bob)
}

async fn entries(node: &Node) -> Vec<Entry> {
    node.hs.context.store.read(|txn| txn.entries()).await.unwrap()
}

/// Asks for something whose answer is lost since bob's node stops before it comes; `is_done` waits until the other side
/// has done it.
async fn cut_short(cluster: &mut Cluster, path: &str, asked: (&Client, &str, Value), is_done: impl AsyncFn(&Cluster)) {
    let held = cluster.wires.hold_answers(path);
    let (client, what, body) = asked;
    let (client, what) = (client.clone(), what.to_owned());
    let asking = tokio::spawn(async move { client.post(&what, body).await });
    is_done(cluster).await;
    cluster.nodes[1].restart().await;
    drop(held);
    assert_ne!(asking.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn a_join_cut_short_is_finished_after_a_restart() {
    let (mut cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    cut_short(
        &mut cluster,
        "/send_join/",
        (&bob, &via, json!({"reason": "to see"})),
        async |cluster| until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await,
    )
    .await;
    let bob = cluster[1].again(&bob);
    until_membership(&cluster[1], &bob, &room, &bob.user_id, "join").await;
    until_settled(&cluster[1]).await;
    let event = say(&alice, &room, "1", "there you are").await;
    hear(&cluster[1], &bob, &room, &event).await;
    let member = bob
        .get_ok(&at(&room, &format!("state/m.room.member/{}", escape(&bob.user_id))))
        .await;
    assert_eq!(member["reason"], "to see");
}

#[tokio::test]
async fn a_restricted_join_cut_short_is_finished_too() {
    let (mut cluster, alice, bob) = two().await;
    let club = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&club, &[cluster[0].name.as_str()]);
    bob.post_ok(&via, json!({})).await;
    let allow = json!([{"type": "m.room_membership", "room_id": club}]);
    let rules = json!({"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}});
    let room = create(&alice, json!({"initial_state": [rules]})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    cut_short(&mut cluster, "/send_join/", (&bob, &via, json!({})), async |cluster| {
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await
    })
    .await;
    let bob = cluster[1].again(&bob);
    until_membership(&cluster[1], &bob, &room, &bob.user_id, "join").await;
    until_settled(&cluster[1]).await;
}

#[tokio::test]
async fn a_knock_cut_short_is_finished_after_a_restart() {
    let (mut cluster, alice, bob) = two().await;
    let rules = json!({"type": "m.room.join_rules", "content": {"join_rule": "knock"}});
    let room = create(&alice, json!({"initial_state": [rules]})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]).replace("/join/", "/knock/");
    cut_short(&mut cluster, "/send_knock/", (&bob, &via, json!({})), async |cluster| {
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "knock").await
    })
    .await;
    let bob = cluster[1].again(&bob);
    until_settled(&cluster[1]).await;
    assert_eq!(outside_membership(&cluster[1], &bob, &room).await, "knock");
}

#[tokio::test]
async fn a_refusal_cut_short_is_one_after_a_restart() {
    let (mut cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"invite": [bob.user_id]})).await;
    let leave = at(&room, "leave");
    cut_short(
        &mut cluster,
        "/send_leave/",
        (&bob, &leave, json!({})),
        async |cluster| until_membership(&cluster[0], &alice, &room, &bob.user_id, "leave").await,
    )
    .await;
    let bob = cluster[1].again(&bob);
    assert_eq!(outside_membership(&cluster[1], &bob, &room).await, "leave");
    until_settled(&cluster[1]).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_taken_in_is_asked_for_again() {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    cluster.wires.lie("/send_join/", |answer| *answer = json!("garbage"));
    assert_eq!(bob.post(&via, json!({})).await.0, StatusCode::BAD_GATEWAY);
    cluster.wires.be_honest();
    cluster[1].go_down();
    cluster[1].come_up();
    until_membership(&cluster[1], &bob, &room, &bob.user_id, "join").await;
    until_settled(&cluster[1]).await;
}

#[tokio::test]
async fn a_room_that_cannot_be_taken_in_is_left() {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    cluster.wires.lie("/send_join/", |answer| *answer = json!("garbage"));
    assert_eq!(bob.post(&via, json!({})).await.0, StatusCode::BAD_GATEWAY);
    // Whenever the other server comes up, it is asked once more.
    let mut told = 0;
    while !entries(&cluster[1]).await.is_empty() {
        let now = cluster.wires.requests("/send_join/");
        if now > told {
            told = now;
            cluster[1].go_down();
            cluster[1].come_up();
        }
        tokio::task::yield_now().await;
    }
    assert!(cluster.wires.requests("/send_join/") <= 6);
    until_membership(&cluster[0], &alice, &room, &bob.user_id, "leave").await;
    until_settled(&cluster[1]).await;
    assert_eq!(joined(&bob).await, [] as [&str; 0]);
}

/// Bob's join of Alice's room, kept by her node, which went down before it said so.
/// Returns the room too, and the path by which he tried.
async fn half_entered() -> (Cluster, Client, Client, String, String) {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    let held = cluster.wires.hold_answers("/send_join/");
    let (answer, ()) = tokio::join!(bob.post(&via, json!({})), async {
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
        cluster[0].go_down();
        drop(held);
    });
    assert_eq!(answer.0, StatusCode::BAD_GATEWAY);
    (cluster, alice, bob, room, via)
}

#[tokio::test]
async fn who_changes_its_mind_while_entering_leaves() {
    let (cluster, alice, bob, room, _) = half_entered().await;
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    cluster[0].come_up();
    until_membership(&cluster[0], &alice, &room, &bob.user_id, "leave").await;
    until_settled(&cluster[1]).await;
    assert_eq!(joined(&bob).await, [] as [&str; 0]);
}

#[tokio::test]
async fn who_is_refused_enters_no_more() {
    let (cluster, alice, bob, room, via) = half_entered().await;
    assert_eq!(entries(&cluster[1]).await.len(), 1);
    alice.post_ok(&at(&room, "ban"), json!({"user_id": bob.user_id})).await;
    cluster[0].come_up();
    until_settled(&cluster[1]).await;
    assert_eq!(joined(&bob).await, [] as [&str; 0]);
    // And whom no server let in at all is not even remembered.
    assert_eq!(bob.post(&via, json!({})).await.0, StatusCode::FORBIDDEN);
    assert!(entries(&cluster[1]).await.is_empty());
}

#[tokio::test]
async fn who_is_removed_while_entering_does_not_come_back_by_itself() {
    let (mut cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let via = join_path(&room, &[cluster[0].name.as_str()]);
    cut_short(&mut cluster, "/send_join/", (&bob, &via, json!({})), async |cluster| {
        until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
        cluster.wires.lose("/make_join/");
    })
    .await;
    alice.post_ok(&at(&room, "kick"), json!({"user_id": bob.user_id})).await;
    until_settled(&cluster[1]).await;
    cluster.wires.lose_nothing();
    assert_eq!(joined(&cluster[1].again(&bob)).await, [] as [&str; 0]);
    assert_eq!(cluster.wires.requests("/send_join/"), 1);
}

/// The server that let bob in has left the room when bob's node asks again: what it passed on before, carol's node believes.
#[tokio::test]
async fn a_way_whose_server_has_left_is_gone_through_another() {
    for wanted in [true, false] {
        let mut cluster = Cluster::start(3).await;
        let alice = cluster[0].register("alice").await;
        let (bob, carol) = (cluster[1].register("bob").await, cluster[2].register("carol").await);
        let room = create(&alice, json!({"preset": "public_chat", "room_version": "12"})).await;
        let via = join_path(&room, &[cluster[0].name.as_str()]);
        carol.post_ok(&via, json!({})).await;
        cluster.wires.cut(&cluster[1].name, &cluster[2].name);
        cut_short(&mut cluster, "/send_join/", (&bob, &via, json!({})), async |cluster| {
            until_membership(&cluster[2], &carol, &room, &bob.user_id, "join").await;
            alice.post_ok(&at(&room, "leave"), json!({})).await;
        })
        .await;
        let (bob, node) = (cluster[1].again(&bob), &cluster[1]);
        while entries(node).await.iter().any(|entry| !entry.servers.is_empty()) {
            tokio::task::yield_now().await;
        }
        if !wanted {
            bob.post_ok(&at(&room, "leave"), json!({})).await;
        }
        cluster.wires.mend(&node.name, &cluster[2].name);
        let expected = if wanted { "join" } else { "leave" };
        until_membership(&cluster[2], &carol, &room, &bob.user_id, expected).await;
        if wanted {
            until_membership(node, &bob, &room, &bob.user_id, "join").await;
            let event = say(&carol, &room, "1", "there you are").await;
            hear(node, &bob, &room, &event).await;
        }
        until_settled(node).await;
    }
}
