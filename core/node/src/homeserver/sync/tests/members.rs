//! Lazily loaded members, summaries and what is said about people.

use serde_json::{Value, json};

use super::{at, create, has, ids, join, keys, say, set, sync};
use crate::testing::{Client, Cluster, escape};

const LAZY: &str = r#"{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":3}}}"#;

/// A public room of alice's that some others are in; nobody has spoken yet.
async fn crowd(cluster: &Cluster, names: &[&str]) -> (Vec<Client>, String) {
    let mut clients = Vec::new();
    for name in names {
        clients.push(cluster[0].register(name).await);
    }
    let room = create(&clients[0], json!({ "preset": "public_chat", "name": "Crowd" })).await;
    for client in &clients[1..] {
        join(client, &room).await;
    }
    (clients, room)
}

/// The users whose membership a room's state section tells.
fn told(answer: &Value, room: &str) -> Vec<String> {
    let mut members: Vec<_> = keys(&answer["rooms"]["join"][room]["state"]["events"])
        .into_iter()
        .filter(|(kind, _)| kind == "m.room.member")
        .map(|(_, user)| user)
        .collect();
    members.sort();
    members
}

#[tokio::test]
async fn members_are_told_when_they_speak_and_once() {
    let cluster = Cluster::start(1).await;
    let (clients, room) = crowd(&cluster, &["alice", "bob", "carol", "dave"]).await;
    let [alice, bob, carol, dave] = &clients[..] else {
        panic!()
    };
    for number in 0..3 {
        say(alice, &room, &format!("start {number}")).await;
    }
    let initial = sync(alice, None, &[("filter", LAZY)]).await;
    assert_eq!(told(&initial, &room), [alice.user_id.as_str()]);
    assert!(has(
        &initial["rooms"]["join"][&room]["state"]["events"],
        "m.room.create",
        ""
    ));

    say(bob, &room, "bob speaks").await;
    let first = sync(alice, Some(&initial), &[("filter", LAZY)]).await;
    assert_eq!(told(&first, &room), [bob.user_id.as_str()]);
    // The answer may be lost: asked again, it tells the same.
    let again = sync(alice, Some(&initial), &[("filter", LAZY)]).await;
    assert_eq!(told(&again, &room), [bob.user_id.as_str()]);

    say(bob, &room, "bob again").await;
    let second = sync(alice, Some(&again), &[("filter", LAZY)]).await;
    assert!(told(&second, &room).is_empty(), "{second}");
    let redundant = LAZY.replace("true}", "true,\"include_redundant_members\":true}");
    let all = sync(alice, Some(&again), &[("filter", &redundant)]).await;
    assert_eq!(told(&all, &room), [bob.user_id.as_str()]);

    // Whoever changed is told anew, and in a gap everybody who came, went or changed.
    let renamed = json!({ "membership": "join", "displayname": "Caroline" });
    set(carol, &room, "m.room.member", &carol.user_id, renamed).await;
    dave.post_ok(&at(&room, "leave"), json!({})).await;
    for number in 0..4 {
        say(bob, &room, &format!("gap {number}")).await;
    }
    let gap = sync(alice, Some(&second), &[("filter", LAZY)]).await;
    assert_eq!(gap["rooms"]["join"][&room]["timeline"]["limited"], true);
    let mut expected = [carol.user_id.clone(), dave.user_id.clone()];
    expected.sort();
    assert_eq!(told(&gap, &room), expected);
    assert_eq!(gap["rooms"]["join"][&room]["summary"]["m.joined_member_count"], 3);
    say(carol, &room, "carol speaks").await;
    let last = sync(alice, Some(&gap), &[("filter", LAZY)]).await;
    assert!(told(&last, &room).is_empty(), "{last}");

    // A client that starts anew is told anew.
    let anew = sync(alice, None, &[("filter", LAZY)]).await;
    assert!(told(&anew, &room).contains(&bob.user_id));
}

#[tokio::test]
async fn without_lazy_loading_everybody_is_told() {
    let cluster = Cluster::start(1).await;
    let (clients, room) = crowd(&cluster, &["alice", "bob", "carol"]).await;
    for number in 0..3 {
        say(&clients[0], &room, &format!("start {number}")).await;
    }
    let filter = r#"{"room":{"timeline":{"limit":3}}}"#;
    let initial = sync(&clients[0], None, &[("filter", filter)]).await;
    assert_eq!(told(&initial, &room).len(), 3);
}

#[tokio::test]
async fn other_devices_have_their_own_memory() {
    let cluster = Cluster::start(1).await;
    let (clients, room) = crowd(&cluster, &["alice", "bob"]).await;
    let laptop = cluster[0].login("alice").await;
    let start = sync(&clients[0], None, &[("filter", LAZY)]).await;
    let start_laptop = sync(&laptop, None, &[("filter", LAZY)]).await;
    for number in 0..4 {
        say(&clients[0], &room, &format!("alice {number}")).await;
    }
    let (phone, other) = (
        sync(&clients[0], Some(&start), &[("filter", LAZY)]).await,
        sync(&laptop, Some(&start_laptop), &[("filter", LAZY)]).await,
    );
    say(&clients[1], &room, "bob").await;
    let phone = sync(&clients[0], Some(&phone), &[("filter", LAZY)]).await;
    let other = sync(&laptop, Some(&other), &[("filter", LAZY)]).await;
    assert_eq!(told(&phone, &room), told(&other, &room));
}

#[tokio::test]
async fn heroes_stand_for_a_room_without_a_name() {
    let cluster = Cluster::start(1).await;
    let (alice, bob, carol) = (
        cluster[0].register("alice").await,
        cluster[0].register("bob").await,
        cluster[0].register("carol").await,
    );
    let room = create(&alice, json!({ "invite": [bob.user_id, carol.user_id] })).await;
    for number in 0..4 {
        say(&alice, &room, &format!("{number}")).await;
    }
    let answer = sync(&alice, None, &[("filter", LAZY)]).await;
    let summary = &answer["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.user_id, carol.user_id]));
    assert_eq!(summary["m.invited_member_count"], 2);
    assert_eq!(told(&answer, &room).len(), 3, "heroes are told: {answer}");

    join(&bob, &room).await;
    carol.post_ok(&at(&room, "leave"), json!({})).await;
    let step = sync(&alice, Some(&answer), &[("filter", LAZY)]).await;
    let summary = &step["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.user_id]));
    assert_eq!(
        (&summary["m.joined_member_count"], &summary["m.invited_member_count"]),
        (&json!(2), &json!(0))
    );
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let step = sync(&alice, Some(&step), &[("filter", LAZY)]).await;
    let heroes = &step["rooms"]["join"][&room]["summary"]["m.heroes"];
    assert_eq!(
        heroes.as_array().unwrap().len(),
        2,
        "those who left stand for it: {heroes}"
    );

    set(&alice, &room, "m.room.name", "", json!({ "name": "Named" })).await;
    let step = sync(&alice, Some(&step), &[("filter", LAZY)]).await;
    let summary = &step["rooms"]["join"][&room]["summary"];
    assert!(
        summary.get("m.heroes").is_none() && summary["m.joined_member_count"] == 1,
        "{summary}"
    );
}

#[tokio::test]
async fn pages_of_history_tell_their_speakers() {
    let cluster = Cluster::start(1).await;
    let (clients, room) = crowd(&cluster, &["alice", "bob", "carol"]).await;
    let said = say(&clients[1], &room, "bob").await;
    say(&clients[0], &room, "alice").await;
    let filter = escape(r#"{"lazy_load_members":true}"#);
    let page = clients[0]
        .get_ok(&at(&room, &format!("messages?dir=b&limit=1&filter={filter}")))
        .await;
    assert_eq!(
        keys(&page["state"]),
        [("m.room.member".to_owned(), clients[0].user_id.clone())]
    );
    let context = format!("context/{}?limit=0&filter={filter}", escape(&said));
    let context = clients[0].get_ok(&at(&room, &context)).await;
    assert!(has(&context["state"], "m.room.member", &clients[1].user_id));
    assert!(!has(&context["state"], "m.room.member", &clients[2].user_id));
    let plain = clients[0]
        .get_ok(&at(&room, &format!("context/{}", escape(&said))))
        .await;
    assert!(has(&plain["state"], "m.room.member", &clients[2].user_id));
    assert_eq!(plain["event"]["event_id"], said.as_str());
    assert_eq!(ids(&plain["events_after"]).len(), 1);
}
