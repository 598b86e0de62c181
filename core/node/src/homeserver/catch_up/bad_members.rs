//! Members that do on purpose what nobody does by accident. Honest members stay equal, and what it costs them is bounded.

use kith_engine::RoomReader;
use ruma::{OwnedRoomId, events::StateEventType};
use serde_json::{Value, json};

use super::mallory::{Mallory, heads, until_same, with_mallory, with_mallory_in};
use crate::{
    Error,
    testing::{
        escape,
        rooms::{eventually, join, say, texts, until_text},
    },
};

#[tokio::test]
async fn times_and_depths_that_are_lies_part_nobody() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let deepest = (1_u64 << 53) - 1;
    let lies = [
        json!({"depth": 1, "origin_server_ts": 1}),
        json!({"depth": deepest, "content": {"body": "deepest"}}),
        json!({"origin_server_ts": deepest, "content": {"body": "latest"}}),
    ];
    let forged: Vec<Value> = lies.into_iter().map(|lie| mallory.forge(&base, lie).1).collect();
    mallory.send(a, "lies", &forged).await;
    evil.go_down();
    until_same(&[a, b], &room).await;
    // The room goes on, also where only pulls bring what is said.
    cluster.wires.lose("/federation/v1/send/");
    say(&clients[0], &room, "still here").await;
    until_text(b, &room, "still here").await;
    say(&clients[1], &room, "me too").await;
    until_text(a, &room, "me too").await;
    until_same(&[a, b], &room).await;
}

#[tokio::test]
async fn events_built_on_nothing_are_not_waited_for() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let nothing = |letter: &str| format!("${}", letter.repeat(43));
    let orphans: Vec<Value> = ["b", "c", "d"]
        .iter()
        .map(|letter| mallory.forge(&base, json!({"prev_events": [nothing(letter)]})).1)
        .collect();
    let position = *a.hs.context.store.committed().borrow();
    let answer = mallory.send(a, "orphans", &orphans).await;
    assert!(
        answer
            .as_object()
            .unwrap()
            .values()
            .all(|verdict| verdict["error"].is_string()),
        "{answer}"
    );
    // Nobody has them, so that asking ends.
    while !a.hs.catch_up.is_idle() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*a.hs.context.store.committed().borrow(), position);
    let asked = cluster.wires.requests("/org.kith/");
    say(&clients[0], &room, "undisturbed").await;
    until_text(b, &room, "undisturbed").await;
    until_same(&[a, b], &room).await;
    assert!(asked < 60, "{asked} requests for three events that are not there");
}

/// A moderator forks the room before it was demoted, to take its power back.
#[tokio::test]
async fn power_that_was_taken_is_not_taken_back_by_a_fork() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let levels = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.power_levels/",
        escape(room.as_str())
    );
    let mut content = clients[0].get_ok(&levels).await;
    content["users"] = json!({&clients[2].user_id: 50});
    clients[0].put_ok(&levels, content.clone()).await;
    until_same(&[a, b, evil], &room).await;
    let mallory = Mallory::new(evil, &clients[2], &room);
    // From here on the hostile node hears nothing: this is what it builds upon.
    let base = mallory.base().await;
    content["users"] = json!({});
    clients[0].put_ok(&levels, content.clone()).await;
    until_same(&[a, b], &room).await;
    let mut usurped = content.clone();
    usurped["users"] = json!({&clients[2].user_id: 50});
    usurped["events_default"] = json!(50);
    let state = |kind: &str, content: Value| json!({"type": kind, "state_key": "", "content": content});
    let (_, power) = mallory.forge(&base, state("m.room.power_levels", usurped));
    let (_, topic) = mallory.forge(&base, state("m.room.topic", json!({"topic": "mine now"})));
    let kick = json!({
        "type": "m.room.member", "state_key": clients[1].user_id, "content": {"membership": "leave"},
    });
    let mut kick_base = base.clone();
    let (wanted, user) = (room.clone(), clients[1].user_id.clone());
    let read = evil.hs.context.store.read(move |txn| {
        let member = txn
            .current_state_event(&wanted, &StateEventType::RoomMember, &user)?
            .unwrap();
        Ok::<_, Error>(member.event_id().to_string())
    });
    kick_base["auth_events"]
        .as_array_mut()
        .unwrap()
        .push(json!(read.await.unwrap()));
    let (_, kick) = mallory.forge(&kick_base, kick);
    mallory.send(a, "usurp", &[power.clone(), topic.clone()]).await;
    mallory.send(b, "usurp", &[kick, topic, power]).await;
    evil.go_down();
    // Those who obey the rules speak on, and agree.
    say(&clients[0], &room, "order").await;
    until_text(b, &room, "order").await;
    say(&clients[1], &room, "still a member").await;
    until_text(a, &room, "still a member").await;
    until_same(&[a, b], &room).await;
    for client in &clients[..2] {
        assert_eq!(client.get_ok(&levels).await["users"], json!({}));
    }
    let members = clients[0]
        .get_ok(&format!(
            "/_matrix/client/v3/rooms/{}/joined_members",
            escape(room.as_str())
        ))
        .await;
    assert_eq!(members["joined"].as_object().unwrap().len(), 3);
}

/// A state that is larger than any honest one: it is kept like any other, and told.
#[tokio::test]
async fn much_state_at_once_is_borne() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let levels = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.power_levels/",
        escape(room.as_str())
    );
    let mut content = clients[0].get_ok(&levels).await;
    content["users"] = json!({&clients[2].user_id: 50});
    clients[0].put_ok(&levels, content).await;
    until_same(&[a, b, evil], &room).await;
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let mut events = Vec::new();
    for number in 0..100 {
        let fields = json!({"type": "org.example.junk", "state_key": number.to_string(), "content": {"n": number}});
        events.push(mallory.forge(&base, fields).1);
    }
    mallory.send(a, "junk", &events).await;
    evil.go_down();
    say(&clients[0], &room, "above it all").await;
    until_text(b, &room, "above it all").await;
    until_same(&[a, b], &room).await;
    let seen = eventually(b, move |txn| Ok(Some(texts(txn, &room)?)));
    assert_eq!(seen.await, ["above it all"]);
}

/// What a liar sends to one is not what it sends to the other, and it stays connected and says no more.
#[tokio::test]
async fn two_stories_told_by_one_who_stays_become_one() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.own_base().await;
    let (to_a, to_b) = (
        mallory.renamed(&base, "a's friend").1,
        mallory.renamed(&base, "b's friend").1,
    );
    mallory.send(a, "one", &[to_a]).await;
    mallory.send(b, "other", &[to_b]).await;
    // Nobody says anything: what members ask each other all the same must do.
    until_same(&[a, b], &room).await;
    assert_eq!(heads(a, &room).await, 2);
}

/// Nobody but a liar has what comes before its events, and it tells each honest member another state.
#[tokio::test]
async fn two_answers_about_a_state_part_nobody_for_long() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let topic = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic/", escape(room.as_str()));
    clients[0].put_ok(&topic, json!({"topic": "true"})).await;
    until_same(&[a, b, evil], &room).await;
    let nowhere = format!("${}", "n".repeat(43));
    let (id, orphan) = mallory.forge(&base, json!({"prev_events": [nowhere], "depth": 50}));
    // The liar's node answers for an event that it does not hold, with all but one event of the state each time.
    let member = |number: usize| clients[number].user_id.clone();
    let mut states = Vec::new();
    for left_out in [("m.room.topic", String::new()), ("m.room.member", member(1))] {
        let wanted = room.clone();
        let read = evil.hs.context.store.read(move |txn| {
            let state = txn.full_state(txn.current_state(&wanted)?.unwrap())?;
            let told = state
                .iter()
                .filter(|(key, _)| (key.0.to_string().as_str(), &key.1) != (left_out.0, &left_out.1));
            let told: Vec<Value> = told.map(|(_, id)| json!(id)).collect();
            Ok::<_, Error>(told)
        });
        states.push(read.await.unwrap());
    }
    let told = std::sync::Mutex::new(states.into_iter().cycle());
    cluster.wires.lie_of(&evil.name, "/state_ids/", move |answer| {
        *answer = json!({"pdu_ids": told.lock().unwrap().next(), "auth_chain_ids": []});
    });
    cluster.wires.lie_of(&evil.name, "/org.kith/", |answer| {
        *answer = json!({"errcode": "M_UNRECOGNIZED"})
    });
    cluster.wires.lie_of(&evil.name, "/get_missing_events/", |answer| {
        *answer = json!({"events": []})
    });
    mallory.send(a, "orphan", std::slice::from_ref(&orphan)).await;
    mallory.send(b, "orphan", std::slice::from_ref(&orphan)).await;
    evil.go_down();
    say(&clients[0], &room, "on we go").await;
    until_text(b, &room, "on we go").await;
    say(&clients[1], &room, "we do").await;
    until_text(a, &room, "we do").await;
    until_same(&[a, b], &room).await;
    for client in &clients[..2] {
        assert_eq!(client.get_ok(&topic).await["topic"], "true", "{id}");
    }
}

/// What an event names as coming before it, or as authorising it, is another room's, refused, or more than may be.
#[tokio::test]
async fn ancestry_that_cannot_be_is_refused_by_all() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let other = clients[2]
        .post_ok("/_matrix/client/v3/createRoom", json!({"preset": "public_chat"}))
        .await;
    let other: OwnedRoomId = other["room_id"].as_str().unwrap().try_into().unwrap();
    join(&clients[0], &other, evil).await;
    let elsewhere = Mallory::new(evil, &clients[2], &other).base().await;
    let ghost = |number: usize| format!("${number:043}");
    let many = |count: usize| json!((0..count).map(ghost).collect::<Vec<_>>());
    let (refused_id, refused) = mallory.forge(&base, json!({"type": "m.room.topic", "state_key": "", "content": {}}));
    let forge = |fields: Value| mallory.forge(&base, fields).1;
    let events = [
        forge(json!({"prev_events": elsewhere["prev_events"]})),
        forge(json!({"auth_events": elsewhere["auth_events"]})),
        forge(json!({"auth_events": []})),
        forge(json!({"auth_events": [base["auth_events"][0], base["auth_events"][1], ghost(1)]})),
        forge(json!({"auth_events": [base["auth_events"][0], base["auth_events"][1], refused_id]})),
        forge(json!({"prev_events": []})),
        forge(json!({"prev_events": many(21)})),
        forge(json!({"auth_events": many(11)})),
        forge(json!({"depth": -1})),
        forge(json!({"depth": "deep"})),
        forge(json!({"room_id": "!nowhere"})),
    ];
    let before = heads(a, &room).await;
    for node in [a, b] {
        mallory.send(node, "refused", std::slice::from_ref(&refused)).await;
        for (number, event) in events.iter().enumerate() {
            let answer = mallory
                .send(node, &format!("ancestry{number}"), std::slice::from_ref(event))
                .await;
            let taken = answer
                .as_object()
                .unwrap()
                .values()
                .any(|verdict| verdict["error"].is_null());
            assert!(!taken, "{number}: {answer}");
        }
    }
    assert_eq!(heads(a, &room).await, before);
    // A chain whose beginning never comes, and what builds upon a refused event, which is no worse than its own content.
    let mut chain = vec![forge(json!({"prev_events": [ghost(7)]}))];
    for depth in 10..20 {
        let before = mallory.forge(&base, chain.last().unwrap().clone()).0;
        chain.push(forge(json!({"prev_events": [before], "depth": depth})));
    }
    mallory.send(a, "chain", &chain).await;
    let on_refused = forge(json!({"prev_events": [refused_id], "content": {"body": "beyond"}}));
    mallory.send(a, "beyond", &[on_refused]).await;
    evil.go_down();
    say(&clients[0], &room, "unmoved").await;
    assert_eq!(until_text(b, &room, "unmoved").await.last().unwrap(), "unmoved");
    until_same(&[a, b], &room).await;
}

/// Somebody who was banned builds upon what came before the ban, as if it had never been; in a room of either way to resolve.
#[tokio::test]
async fn a_ban_is_not_undone_by_a_fork_from_before_it() {
    for version in ["11", "12"] {
        let body = json!({"preset": "public_chat", "room_version": version});
        let (cluster, room, clients) = with_mallory_in(body).await;
        let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
        let path = format!("/_matrix/client/v3/rooms/{}", escape(room.as_str()));
        let levels = format!("{path}/state/m.room.power_levels/");
        let mut content = clients[0].get_ok(&levels).await;
        content["users"][&clients[2].user_id] = json!(50);
        clients[0].put_ok(&levels, content.clone()).await;
        until_same(&[a, b, evil], &room).await;
        let mallory = Mallory::new(evil, &clients[2], &room);
        // From here on the hostile node hears nothing: this is what it builds upon.
        let (base, own_base) = (mallory.base().await, mallory.own_base().await);
        let ban = json!({"user_id": clients[2].user_id, "reason": "enough"});
        clients[0].post_ok(&format!("{path}/ban"), ban).await;
        clients[0]
            .put_ok(&format!("{path}/state/m.room.topic/"), json!({"topic": "peace"}))
            .await;
        until_same(&[a, b], &room).await;
        let state = |kind: &str, key: &str, content: Value| json!({"type": kind, "state_key": key, "content": content});
        let mut usurped = content.clone();
        usurped["state_default"] = json!(0);
        let early = |mut event: Value| {
            event["origin_server_ts"] = json!(1_500_000_000_000_u64);
            mallory.forge(&base, event)
        };
        let (rejoined_id, rejoined) = mallory.renamed(&own_base, "still here");
        let mut after = base.clone();
        after["prev_events"] = json!([rejoined_id]);
        after["depth"] = json!(base["depth"].as_u64().unwrap() + 1);
        let events = [
            rejoined,
            early(state("m.room.power_levels", "", usurped)).1,
            early(state("m.room.topic", "", json!({"topic": "war"}))).1,
            mallory
                .forge(&after, state("m.room.topic", "", json!({"topic": "more war"})))
                .1,
            mallory
                .forge(
                    &after,
                    json!({"content": {"body": "I was never gone", "msgtype": "m.text"}}),
                )
                .1,
        ];
        let backwards: Vec<Value> = events.iter().rev().cloned().collect();
        mallory.send(a, "undo", &events).await;
        mallory.send(b, "undo", &backwards).await;
        evil.go_down();
        say(&clients[0], &room, "order").await;
        until_text(b, &room, "order").await;
        say(&clients[1], &room, "and peace").await;
        assert!(
            !until_text(a, &room, "and peace")
                .await
                .contains(&"I was never gone".to_owned())
        );
        until_same(&[a, b], &room).await;
        for client in &clients[..2] {
            assert_eq!(
                client.get_ok(&format!("{path}/state/m.room.topic/")).await["topic"],
                "peace",
                "{version}"
            );
            assert_eq!(
                client.get_ok(&levels).await["state_default"],
                content["state_default"],
                "{version}"
            );
            let member = format!("{path}/state/m.room.member/{}", escape(&clients[2].user_id));
            assert_eq!(client.get_ok(&member).await["membership"], "ban", "{version}");
        }
    }
}

#[tokio::test]
async fn events_that_are_too_large_are_dropped_and_hold_up_nothing() {
    let (cluster, room, clients) = with_mallory().await;
    let [a, b, evil] = [&cluster[0], &cluster[1], &cluster[2]];
    let mallory = Mallory::new(evil, &clients[2], &room);
    let base = mallory.base().await;
    let forge = |fields: Value| mallory.forge(&base, fields).1;
    let honest = forge(json!({"content": {"body": "beside them", "msgtype": "m.text"}}));
    // What signs refuses larger ones: they grow afterwards.
    let mut large = forge(json!({"content": {"body": "x".repeat(60_000)}}));
    large["content"]["more"] = json!("y".repeat(10_000));
    let mut huge = honest.clone();
    huge["content"]["body"] = json!("z".repeat(200_000));
    let long_key = forge(json!({"type": "org.example", "state_key": "k".repeat(256)}));
    let long_type = forge(json!({"type": "t".repeat(256)}));
    let answer = mallory
        .send(a, "large", &[large, huge, long_key, long_type, honest])
        .await;
    let taken = answer
        .as_object()
        .unwrap()
        .values()
        .filter(|verdict| verdict["error"].is_null());
    assert_eq!(taken.count(), 1, "{answer}");
    // More than a transaction may hold is refused as a whole, before any of it is looked at.
    let body = json!({"origin": evil.name, "origin_server_ts": 1, "pdus": vec![json!({}); 51]});
    let (status, answer) = evil
        .ask(a, http::Method::PUT, "/_matrix/federation/v1/send/51", body)
        .await;
    assert_eq!((status.as_u16(), &answer["errcode"]), (400, &json!("M_INVALID_PARAM")));
    evil.go_down();
    assert_eq!(until_text(b, &room, "beside them").await, ["beside them"]);
    until_same(&[a, b], &room).await;
}
