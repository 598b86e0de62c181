//! Several nodes: entering, leaving and inviting across them.

use serde_json::{Value, json};

use super::{at, create, joined, say};
use crate::testing::{Client, Cluster, assert_refused, escape};

/// The membership of a user as a client's node has it in a room.
async fn membership(client: &Client, room: &str, user: &str) -> Value {
    let path = at(room, &format!("state/m.room.member/{}", escape(user)));
    client.get_ok(&path).await["membership"].clone()
}

fn join_path(room_or_alias: &str, via: &[&str]) -> String {
    let via: Vec<String> = via.iter().map(|server| format!("via={server}")).collect();
    format!("/_matrix/client/v3/join/{}?{}", escape(room_or_alias), via.join("&"))
}

#[tokio::test]
async fn joins_by_id_alias_and_through_another_member() {
    for version in ["10", "11", "12"] {
        let cluster = Cluster::start(4).await;
        let [alice, bob, carol, dave] = [
            cluster[0].register("alice").await,
            cluster[1].register("bob").await,
            cluster[2].register("carol").await,
            cluster[3].register("dave").await,
        ];
        let body = json!({"room_version": version, "preset": "public_chat", "room_alias_name": "tea", "name": "Tea"});
        let room = create(&alice, body).await;
        say(&alice, &room, "1", "hello").await;

        let answer = bob
            .post_ok(&join_path(&room, &[cluster[0].name.as_str()]), json!({}))
            .await;
        assert_eq!(answer["room_id"], *room);
        assert_eq!(joined(&bob).await, std::slice::from_ref(&room));
        assert_eq!(membership(&bob, &room, &alice.user_id).await, "join");
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
        assert_eq!(bob.get_ok(&at(&room, "state/m.room.name/")).await["name"], "Tea");

        let alias = format!("#tea:{}", cluster[0].name);
        carol.post_ok(&join_path(&alias, &[]), json!({})).await;
        assert_eq!(membership(&carol, &room, &alice.user_id).await, "join");

        // The room's maker is away: another member lets dave in, after one who cannot.
        cluster[0].go_down();
        let via = [cluster[0].name.as_str(), cluster[1].name.as_str()];
        dave.post_ok(&join_path(&room, &via), json!({})).await;
        assert_eq!(membership(&dave, &room, &alice.user_id).await, "join");
        assert_eq!(membership(&bob, &room, &dave.user_id).await, "join");
    }
}

#[tokio::test]
async fn invites_and_their_ends() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let invite = json!({"user_id": bob.user_id});
    let room = create(&alice, json!({"name": "Tea"})).await;

    // Not invited, not let in.
    let join = join_path(&room, &[cluster[0].name.as_str()]);
    assert_refused(bob.post(&join, json!({})).await, (403, "M_FORBIDDEN"));

    alice.post_ok(&at(&room, "invite"), invite.clone()).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "invite");
    let event: Value = {
        let (user, room) = (
            bob.user_id.as_str().try_into().unwrap(),
            room.as_str().try_into().unwrap(),
        );
        let (user, room): (ruma::OwnedUserId, ruma::OwnedRoomId) = (user, room);
        let store = &cluster[1].hs.context.store;
        let outside = store
            .read(move |txn| txn.outside_membership(&user, &room))
            .await
            .unwrap()
            .unwrap();
        let types: Vec<Value> = outside
            .state
            .iter()
            .map(|event| serde_json::from_str::<Value>(event.get()).unwrap()["type"].clone())
            .collect();
        for kind in ["m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"] {
            assert!(types.contains(&json!(kind)), "{kind} is not shown");
        }
        serde_json::from_str(outside.event.get()).unwrap()
    };
    for server in [&cluster[0].name, &cluster[1].name] {
        assert!(event["signatures"][server.as_str()].is_object(), "{event}");
    }

    // Refused through the inviting server.
    bob.post_ok(&at(&room, "leave"), json!({"reason": "no tea"})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "leave");
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    bob.post_ok(&at(&room, "forget"), json!({})).await;

    // Invited again, and accepted: no `via` is needed, for it is known who invited.
    alice.post_ok(&at(&room, "invite"), invite.clone()).await;
    bob.post_ok(&at(&room, "join"), json!({})).await;
    assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
}
