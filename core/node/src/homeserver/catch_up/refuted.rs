//! What a hostile member tells of in a state, where nobody else has what comes before: it is believed for as long as nothing
//! refutes it.

use kith_engine::{CheckedPdu, RoomReader, receive_outlier, receive_with_state};
use kith_store::ReadTxn;
use ruma::{OwnedEventId, OwnedRoomId, UserId};
use serde_json::{Value, json, value::to_raw_value};

use super::mallory::{Mallory, until_same, with_mallory_in};
use crate::{
    Error,
    clock::Clock,
    testing::{
        Node, escape,
        rooms::{eventually, say, until_text},
    },
};

/// An event as a node verifies it, whoever made it.
async fn checked(node: &Node, room: &OwnedRoomId, event: &Value) -> CheckedPdu {
    let wanted = room.clone();
    let read = node.hs.context.store.read(move |txn| txn.room_version(&wanted));
    let version = read.await.unwrap().unwrap();
    let pdus = vec![to_raw_value(event).unwrap()];
    let checked = node.hs.server_keys.check(pdus, room, &version, &node.name).await;
    checked.unwrap().remove(0)
}

/// Has the hostile member's own node believe that one of two events stood in the state before the other.
async fn believe(node: &Node, standing: CheckedPdu, event: CheckedPdu) {
    let write = node.hs.context.store.write(move |txn| {
        let read: &ReadTxn<'_> = txn;
        let outlier = receive_outlier(read, &standing).unwrap().applied().unwrap();
        txn.save_event(&outlier)?;
        let current = txn.current_state(event.room_id())?.unwrap();
        let mut state = (*txn.full_state(current)?).clone();
        state.insert(outlier.pdu.state_entry().unwrap(), outlier.event_id().to_owned());
        let told: Vec<OwnedEventId> = state.into_values().collect();
        let applied = receive_with_state(read, &event, &told).unwrap().applied().unwrap();
        txn.save_event(&applied)?;
        Ok::<_, Error>(())
    });
    write.await.unwrap();
}

async fn newest(node: &Node, room: &OwnedRoomId) -> (OwnedEventId, Value) {
    let room = room.clone();
    let read = node.hs.context.store.read(move |txn| {
        let head = txn.forward_extremities(&room)?.remove(0);
        let json = txn.event_json(&head)?.unwrap();
        Ok::<_, Error>((head, serde_json::from_str(json.get()).unwrap()))
    });
    read.await.unwrap()
}

async fn until_member(node: &Node, room: &OwnedRoomId, user: &UserId, event: &OwnedEventId) {
    let (room, user, event) = (room.clone(), user.to_owned(), event.clone());
    eventually(node, move |txn| {
        let member = txn.member(&room, &user)?;
        Ok(member.filter(|member| member.event_id == event).map(drop))
    })
    .await;
}

/// Mallory was banned, and tells somebody who does not know it of a state in which she is there under a name that she took
/// after the ban.
#[tokio::test]
async fn what_a_liar_told_of_stands_no_more_once_its_past_comes() {
    for version in ["11", "12"] {
        let (cluster, room, clients) = with_mallory_in(json!({"preset": "public_chat", "room_version": version})).await;
        let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
        let evil_user = UserId::parse(&*clients[2].user_id).unwrap();
        let mallory = Mallory::new(evil, &clients[2], &room);
        let (base, own_base) = (mallory.base().await, mallory.own_base().await);
        cluster.wires.cut(&a.name, &b.name);
        cluster.wires.cut(&a.name, &evil.name);
        let path = |what: &str| format!("/_matrix/client/v3/rooms/{}/{what}", escape(room.as_str()));
        clients[0].post_ok(&path("ban"), json!({"user_id": evil_user})).await;
        let (ban_id, ban) = newest(a, &room).await;

        // Of two that disagree, the later one stands.
        let now = u64::from(cluster.clock.now().get());
        let renamed = json!({
            "origin_server_ts": now, "prev_events": [ban_id], "content": {"membership": "join", "displayname": "never banned"}, "depth": 40,
        });
        let (renamed_id, renamed) = mallory.forge(&own_base, renamed);
        let (_, after) = mallory.forge(&base, json!({"prev_events": [renamed_id], "depth": 41}));
        let (standing, event) = (checked(evil, &room, &renamed).await, checked(evil, &room, &after).await);
        believe(evil, standing, event).await;
        mallory.send(b, "word", &[after]).await;
        let renamed_id: OwnedEventId = renamed_id.try_into().unwrap();
        until_member(b, &room, &evil_user, &renamed_id).await;
        let before = clients[1].get_ok("/_matrix/client/v3/sync").await["next_batch"].clone();

        mallory.send(b, "past", &[ban, renamed]).await;
        evil.go_down();
        until_member(b, &room, &evil_user, &ban_id).await;
        let joined = clients[1].get_ok(&path("joined_members")).await;
        assert_eq!(joined["joined"].as_object().unwrap().len(), 2, "{version}: {joined}");
        let sync = format!(
            "/_matrix/client/v3/sync?use_state_after=true&since={}",
            before.as_str().unwrap()
        );
        let news = clients[1].get_ok(&sync).await;
        let told = news["rooms"]["join"][room.as_str()]["state_after"]["events"].clone();
        assert_eq!(
            (&told[0]["event_id"], told.as_array().unwrap().len()),
            (&json!(ban_id), 1),
            "{news}"
        );

        // Whoever heard of it in its order has the same.
        cluster.wires.mend(&a.name, &b.name);
        say(&clients[1], &room, "who was that?").await;
        until_text(a, &room, "who was that?").await;
        say(&clients[0], &room, "nobody").await;
        until_text(b, &room, "nobody").await;
        until_same(&[a, b], &room).await;
        until_member(a, &room, &evil_user, &ban_id).await;
    }
}
