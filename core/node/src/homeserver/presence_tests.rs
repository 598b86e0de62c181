//! Presence and the user directory over real rooms, on one node and between two.

use std::time::Duration;

use ruma::{
    UInt, UserId,
    api::federation::transactions::edu::{PresenceContent, PresenceUpdate},
    presence::PresenceState,
};
use serde_json::json;

use crate::{
    homeserver::Session,
    testing::{Client, Cluster, assert_refused, escape},
};

fn status(user: &str) -> String {
    format!("/_matrix/client/v3/presence/{}/status", escape(user))
}

fn session(client: &Client) -> Session {
    Session {
        user_id: UserId::parse(&client.user_id).unwrap(),
        device_id: client.device_id.as_str().into(),
    }
}

/// Makes a room and lets others in.
async fn room(owner: &Client, others: &[&Client]) -> String {
    let invited: Vec<&str> = others.iter().map(|client| client.user_id.as_str()).collect();
    let body = json!({"preset": "private_chat", "invite": invited});
    let answer = owner.post_ok("/_matrix/client/v3/createRoom", body).await;
    let room = answer["room_id"].as_str().unwrap().to_owned();
    for client in others {
        let path = format!("/_matrix/client/v3/join/{}", escape(&room));
        client.post_ok(&path, json!({})).await;
    }
    room
}

#[tokio::test]
async fn users_show_themselves_to_whom_they_share_a_room_with() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    assert_eq!(alice.get_ok(&status(&alice.user_id)).await["presence"], "offline");
    assert_refused(bob.get(&status(&alice.user_id)).await, (403, "M_FORBIDDEN"));
    let away = json!({"presence": "unavailable", "status_msg": "Lunch"});
    assert_refused(
        bob.put(&status(&alice.user_id), away.clone()).await,
        (403, "M_FORBIDDEN"),
    );
    for body in [
        json!({"presence": "asleep"}),
        json!({"presence": "online", "status_msg": "x".repeat(1025)}),
    ] {
        assert_refused(alice.put(&status(&alice.user_id), body).await, (400, "M_INVALID_PARAM"));
    }
    let before = cluster[0].hs.passing.last();
    alice.put_ok(&status(&alice.user_id), away.clone()).await;
    alice.put_ok(&status(&alice.user_id), away).await;
    assert_eq!(cluster[0].hs.passing.last(), before + 1);
    room(&alice, &[&bob]).await;
    let seen = bob.get_ok(&status(&alice.user_id)).await;
    assert_eq!(
        (&seen["presence"], &seen["status_msg"]),
        (&json!("unavailable"), &json!("Lunch"))
    );
    assert_eq!(seen["currently_active"], false);

    let changed = cluster[0]
        .hs
        .presence
        .changed_between(before, cluster[0].hs.passing.last());
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].0, alice.user_id);
    assert!(cluster[0].hs.presence.changed_between(before + 1, u64::MAX).is_empty());
}

#[tokio::test]
async fn the_most_present_device_counts_and_silence_ends_it() {
    let cluster = Cluster::start(1).await;
    let (phone, laptop) = (cluster[0].register("alice").await, cluster[0].login("alice").await);
    let presence = &cluster[0].hs.presence;
    let look = async || phone.get_ok(&status(&phone.user_id)).await["presence"].clone();
    let none = Duration::ZERO;
    presence
        .handle_sync(&session(&phone), PresenceState::Online, none)
        .await
        .unwrap();
    presence
        .handle_sync(&session(&laptop), PresenceState::Unavailable, none)
        .await
        .unwrap();
    assert_eq!(look().await, "online");
    presence
        .handle_sync(&session(&phone), PresenceState::Offline, none)
        .await
        .unwrap();
    assert_eq!(look().await, "unavailable");

    // With nothing else to do, the paused clock goes on to the moment when the last device counts as gone.
    presence.start();
    let mut news = cluster[0].hs.passing.watch();
    tokio::time::pause();
    news.changed().await.unwrap();
    tokio::time::resume();
    assert_eq!(look().await, "offline");
    presence.shutdown().await;
}

#[tokio::test]
async fn other_servers_speak_for_their_own_users_in_common_rooms() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let carol = cluster[1].register("carol").await;
    room(&alice, &[&bob]).await;
    let presence = &cluster[0].hs.presence;
    let says = async |user: &Client, state: PresenceState| {
        let user_id = UserId::parse(&user.user_id).unwrap();
        let mut update = PresenceUpdate::new(user_id, state, UInt::new(5000).unwrap());
        update.status_msg = Some("Here".to_owned());
        let content = PresenceContent::new(vec![update]);
        presence.handle_presence(&cluster[1].name, content).await.unwrap();
    };
    let before = cluster[0].hs.passing.last();
    // Not its user, not in a common room, not a known state: nothing changes.
    says(&alice, PresenceState::Online).await;
    says(&carol, PresenceState::Online).await;
    says(&bob, PresenceState::from("asleep")).await;
    assert_eq!(cluster[0].hs.passing.last(), before);
    says(&bob, PresenceState::Online).await;
    says(&bob, PresenceState::Online).await;
    assert_eq!(cluster[0].hs.passing.last(), before + 1);
    let seen = alice.get_ok(&status(&bob.user_id)).await;
    assert_eq!(
        (&seen["presence"], &seen["status_msg"]),
        (&json!("online"), &json!("Here"))
    );
    assert!(seen["last_active_ago"].as_u64().unwrap() >= 5000);

    // A server that goes takes its users with it.
    let mut news = cluster[0].hs.passing.watch();
    presence.start();
    news.mark_unchanged();
    cluster[1].go_down();
    news.changed().await.unwrap();
    assert_eq!(alice.get_ok(&status(&bob.user_id)).await["presence"], "offline");
}

#[tokio::test]
async fn people_are_found_by_name() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    cluster[1].register("bobby").await;
    cluster[0].register("carol").await;
    let name = format!("/_matrix/client/v3/profile/{}/displayname", escape(&bob.user_id));
    bob.put_ok(&name, json!({"displayname": "Ümit Bob"})).await;
    let found = async |term: &str, limit: u32| {
        let body = json!({"search_term": term, "limit": limit});
        let answer = alice.post_ok("/_matrix/client/v3/user_directory/search", body).await;
        let results = answer["results"].as_array().unwrap().clone();
        let names: Vec<String> = results
            .iter()
            .map(|user| user["user_id"].as_str().unwrap().split(':').next().unwrap().to_owned())
            .collect();
        (names, answer["limited"].as_bool().unwrap(), results)
    };
    assert!(found("bob", 10).await.0.is_empty());
    room(&alice, &[&bob]).await;
    for (term, expected) in [
        ("bob", vec!["@bob"]),
        ("ümit", vec!["@bob"]),
        ("BOB", vec!["@bob"]),
        ("@bo", vec!["@bob"]),
        ("car", vec!["@carol"]),
        ("o", vec!["@bob", "@carol"]),
        ("alice", vec![]),
        ("%", vec![]),
    ] {
        let (mut names, limited, _) = found(term, 10).await;
        names.sort();
        assert_eq!(
            (names, limited),
            (expected.iter().map(|name| (*name).to_owned()).collect(), false),
            "{term}"
        );
    }
    let (names, limited, _) = found("o", 1).await;
    assert_eq!((names.len(), limited), (1, true));
    assert_eq!(found("bob", 10).await.2[0]["display_name"], "Ümit Bob");
    let long = json!({"search_term": "x".repeat(256)});
    assert_refused(
        alice.post("/_matrix/client/v3/user_directory/search", long).await,
        (400, "M_INVALID_PARAM"),
    );
}

#[tokio::test]
async fn presence_travels_between_nodes_that_are_connected() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    room(&alice, &[&bob]).await;
    for node in &cluster.nodes {
        node.hs.presence.start();
    }
    let mut news = cluster[1].hs.passing.watch();
    news.mark_unchanged();
    let body = json!({"presence": "unavailable", "status_msg": "Tea"});
    alice.put_ok(&status(&alice.user_id), body).await;
    let shown = async || bob.get_ok(&status(&alice.user_id)).await["presence"].clone();
    for (what, expected) in [("said", "unavailable"), ("cut", "offline"), ("mended", "unavailable")] {
        match what {
            "cut" => cluster.wires.cut(&cluster[0].name, &cluster[1].name),
            "mended" => cluster.wires.mend(&cluster[0].name, &cluster[1].name),
            _ => {}
        }
        while shown().await != expected {
            news.changed().await.unwrap();
        }
    }
    assert_eq!(bob.get_ok(&status(&alice.user_id)).await["status_msg"], "Tea");
}
