//! Rooms of one node: timelines, gaps, state, and rooms coming and going.

use serde_json::{Value, json};

use super::{assert_tells_when_invited, at, bodies, create, has, ids, join, keys, redact, say, send, set, sync};
use crate::testing::{Cluster, assert_refused, escape};

#[tokio::test]
async fn a_new_room_comes_whole_and_then_in_steps() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let empty = sync(&alice, None, &[]).await;
    assert!(empty.get("rooms").is_none(), "{empty}");

    let room = create(&alice, json!({ "name": "Tea" })).await;
    let hello = say(&alice, &room, "hello").await;
    let initial = sync(&alice, None, &[]).await;
    let joined = &initial["rooms"]["join"][&room];
    // Everything fits into the timeline, which begins with the room.
    assert_eq!(joined["timeline"]["events"][0]["type"], "m.room.create");
    assert_eq!(ids(&joined["timeline"]["events"]).last(), Some(&hello));
    assert!(joined["timeline"].get("limited").is_none(), "{joined}");
    assert!(joined.get("state").is_none(), "{joined}");
    assert_eq!(joined["summary"]["m.joined_member_count"], 1);
    assert!(joined["summary"].get("m.heroes").is_none(), "the room has a name");
    assert_eq!(joined["unread_notifications"]["notification_count"], 0);

    let quiet = sync(&alice, Some(&initial), &[]).await;
    assert!(quiet.get("rooms").is_none(), "{quiet}");
    let one = say(&alice, &room, "one").await;
    let two = say(&alice, &room, "two").await;
    let step = sync(&alice, Some(&quiet), &[]).await;
    let joined = &step["rooms"]["join"][&room];
    assert_eq!(ids(&joined["timeline"]["events"]), [one, two]);
    assert!(
        joined.get("state").is_none() && joined.get("summary").is_none(),
        "{joined}"
    );

    // The step before can be asked for again, and tells the same.
    let again = sync(&alice, Some(&quiet), &[]).await;
    assert_eq!(ids(&again["rooms"]["join"][&room]["timeline"]["events"]).len(), 2);
}

#[tokio::test]
async fn only_the_sending_device_gets_its_transaction_id() {
    let cluster = Cluster::start(1).await;
    let phone = cluster[0].register("alice").await;
    let laptop = cluster[0].login("alice").await;
    let room = create(&phone, json!({})).await;
    say(&phone, &room, "mine").await;
    for (device, expected) in [(&phone, json!("mine")), (&laptop, Value::Null)] {
        let answer = sync(device, None, &[]).await;
        let events = &answer["rooms"]["join"][&room]["timeline"]["events"];
        let last = events.as_array().unwrap().last().unwrap();
        assert_eq!(last["unsigned"]["transaction_id"], expected, "{last}");
        assert_eq!(last["unsigned"]["membership"], "join");
        assert!(last["unsigned"]["age"].is_i64(), "{last}");
    }
}

/// A room with a gap: while the client was away, the topic changed twice, carol's name changed, and much was said.
#[tokio::test]
async fn a_gap_tells_the_state_it_hides_and_can_be_filled() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({ "topic": "first" })).await;
    let away = sync(&alice, None, &[]).await;

    let mut said = vec![set(&alice, &room, "m.room.topic", "", json!({ "topic": "second" })).await];
    let hidden_name = set(&alice, &room, "m.room.name", "", json!({ "name": "Hidden" })).await;
    said.push(hidden_name.clone());
    for number in 0..8 {
        said.push(say(&alice, &room, &format!("message {number}")).await);
    }
    let shown_topic = set(&alice, &room, "m.room.topic", "", json!({ "topic": "third" })).await;
    said.push(shown_topic.clone());
    said.push(say(&alice, &room, "last").await);

    let filter = json!({ "room": { "timeline": { "limit": 3 } } }).to_string();
    let back = sync(&alice, Some(&away), &[("filter", &filter)]).await;
    let joined = &back["rooms"]["join"][&room];
    let timeline = &joined["timeline"];
    assert_eq!(timeline["limited"], true);
    assert_eq!(ids(&timeline["events"]), said[said.len() - 3..]);
    // The name changed in the gap; the topic stood at `second` when the timeline began.
    let state = &joined["state"]["events"];
    assert_eq!(ids(state).len(), 2, "{state}");
    assert!(
        ids(state).contains(&hidden_name) && ids(state).contains(&said[0]),
        "{state}"
    );
    let topic = timeline["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["event_id"] == shown_topic.as_str());
    let topic = topic.unwrap();
    assert_eq!(topic["unsigned"]["prev_content"], json!({ "topic": "second" }));
    assert_eq!(topic["unsigned"]["replaces_state"], said[0].as_str());

    // With `use_state_after` the state is that of the end, and the timeline is told beside it.
    let after = sync(&alice, Some(&away), &[("filter", &filter), ("use_state_after", "true")]).await;
    let joined_after = &after["rooms"]["join"][&room];
    assert!(joined_after.get("state").is_none());
    let mut state = ids(&joined_after["state_after"]["events"]);
    state.sort();
    let mut expected = [hidden_name, shown_topic];
    expected.sort();
    assert_eq!(state, expected);
    let quiet = sync(&alice, Some(&after), &[("use_state_after", "true")]).await;
    assert!(quiet.get("rooms").is_none());

    // The gap is filled from where the timeline began back to where the client was.
    let mut from = timeline["prev_batch"].as_str().unwrap().to_owned();
    let to = away["next_batch"].as_str().unwrap();
    let mut filled = ids(&timeline["events"]);
    loop {
        let query = format!("messages?dir=b&limit=4&from={}&to={}", escape(&from), escape(to));
        let page = alice.get_ok(&at(&room, &query)).await;
        for id in ids(&page["chunk"]) {
            filled.insert(0, id);
        }
        match page["end"].as_str() {
            Some(end) => from = end.to_owned(),
            None => break,
        }
    }
    assert_eq!(filled, said);
}

#[tokio::test]
async fn full_state_comes_on_demand() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({ "name": "Tea" })).await;
    let initial = sync(&alice, None, &[]).await;
    // The timeout counts for nothing: the answer comes at once.
    let path = super::sync_path(Some(&initial), &[("full_state", "true")]).replace("timeout=0", "timeout=300000");
    let full = alice.get_ok(&path).await;
    let joined = &full["rooms"]["join"][&room];
    assert!(has(&joined["state"]["events"], "m.room.name", ""), "{joined}");
    assert!(
        has(&joined["state"]["events"], "m.room.member", &alice.user_id),
        "{joined}"
    );
    assert!(joined["timeline"].get("events").is_none(), "{joined}");
    let state = alice.get_ok(&at(&room, "state")).await;
    assert_eq!(ids(&joined["state"]["events"]).len(), ids(&state).len());
}

#[tokio::test]
async fn rooms_come_and_go() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let start = sync(&bob, None, &[]).await;
    let room = create(&alice, json!({ "name": "Tea", "invite": [bob.user_id] })).await;
    say(&alice, &room, "before bob").await;

    let invited = sync(&bob, Some(&start), &[]).await;
    let state = &invited["rooms"]["invite"][&room]["invite_state"]["events"];
    for (kind, key) in [
        ("m.room.create", ""),
        ("m.room.name", ""),
        ("m.room.join_rules", ""),
        ("m.room.member", &bob.user_id),
        ("m.room.member", &alice.user_id),
    ] {
        assert!(has(state, kind, key), "{kind} {state}");
    }
    assert!(state[0].get("event_id").is_none(), "{state}");
    assert_tells_when_invited(state, &bob.user_id);
    assert!(sync(&bob, Some(&invited), &[]).await.get("rooms").is_none());
    // An initial sync tells of the invite too.
    assert!(sync(&bob, None, &[]).await["rooms"]["invite"][&room].is_object());

    join(&bob, &room).await;
    let said = say(&alice, &room, "hello bob").await;
    let joined = sync(&bob, Some(&invited), &[]).await;
    let there = &joined["rooms"]["join"][&room];
    assert_eq!(there["summary"]["m.joined_member_count"], 2);
    assert!(ids(&there["timeline"]["events"]).contains(&said));
    let told: Vec<_> = [keys(&there["state"]["events"]), keys(&there["timeline"]["events"])].concat();
    for (kind, key) in [
        ("m.room.create", ""),
        ("m.room.name", ""),
        ("m.room.member", &*alice.user_id),
    ] {
        assert!(told.contains(&(kind.to_owned(), key.to_owned())), "{kind} {told:?}");
    }

    // Removed: the room ends for bob with the event that says so, and nothing that came later.
    let kick = json!({ "user_id": bob.user_id, "reason": "tea is out" });
    alice.post_ok(&at(&room, "kick"), kick).await;
    say(&alice, &room, "without bob").await;
    let left = sync(&bob, Some(&joined), &[]).await;
    assert!(left["rooms"].get("join").is_none(), "{left}");
    let gone = &left["rooms"]["leave"][&room]["timeline"]["events"];
    assert_eq!(keys(gone), [("m.room.member".to_owned(), bob.user_id.clone())]);
    assert_eq!(gone[0]["content"]["membership"], "leave");
    assert!(sync(&bob, Some(&left), &[]).await.get("rooms").is_none());
    assert!(sync(&bob, None, &[]).await.get("rooms").is_none());
    let with_left = json!({ "room": { "include_leave": true } }).to_string();
    let archive = sync(&bob, None, &[("filter", &with_left)]).await;
    let archived = &archive["rooms"]["leave"][&room];
    assert!(
        !bodies(&archived["timeline"]["events"]).contains(&"without bob".to_owned()),
        "{archived}"
    );
    assert_refused(bob.get(&at(&room, "joined_members")).await, (403, "M_FORBIDDEN"));

    // Back again: the client is given the room anew.
    let invite = json!({ "user_id": bob.user_id });
    alice.post_ok(&at(&room, "invite"), invite).await;
    join(&bob, &room).await;
    let back = sync(&bob, Some(&left), &[]).await;
    let again = &back["rooms"]["join"][&room];
    let told: Vec<_> = [keys(&again["state"]["events"]), keys(&again["timeline"]["events"])].concat();
    assert!(told.contains(&("m.room.create".to_owned(), String::new())), "{told:?}");
    assert!(back["rooms"].get("invite").is_none() && back["rooms"].get("leave").is_none());

    // Left and back between two questions: as new.
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    alice
        .post_ok(&at(&room, "invite"), json!({ "user_id": bob.user_id }))
        .await;
    join(&bob, &room).await;
    let blink = sync(&bob, Some(&back), &[]).await;
    let again = &blink["rooms"]["join"][&room];
    let told: Vec<_> = [keys(&again["state"]["events"]), keys(&again["timeline"]["events"])].concat();
    assert!(told.contains(&("m.room.create".to_owned(), String::new())), "{told:?}");

    bob.post_ok(&at(&room, "leave"), json!({})).await;
    bob.post_ok(&at(&room, "forget"), json!({})).await;
    let forgotten = sync(&bob, None, &[("filter", &with_left)]).await;
    assert!(forgotten.get("rooms").is_none(), "{forgotten}");
    assert_refused(bob.get(&at(&room, "messages?dir=b")).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn a_refused_invite_leaves_and_ignored_people_do_not_invite() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "invite": [bob.user_id] })).await;
    let invited = sync(&bob, None, &[]).await;
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let refused = sync(&bob, Some(&invited), &[]).await;
    let gone = &refused["rooms"]["leave"][&room]["timeline"]["events"];
    assert_eq!(gone[0]["content"]["membership"], "leave", "{refused}");

    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&bob.user_id)
    );
    let shared = create(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &shared).await;
    bob.put_ok(&path, json!({ "ignored_users": { alice.user_id.clone(): {} } }))
        .await;
    let before = sync(&bob, None, &[]).await;
    create(&alice, json!({ "invite": [bob.user_id] })).await;
    say(&alice, &shared, "can you hear me").await;
    let topic = set(&alice, &shared, "m.room.topic", "", json!({ "topic": "state is told" })).await;
    let after = sync(&bob, Some(&before), &[]).await;
    assert!(after["rooms"].get("invite").is_none(), "{after}");
    assert_eq!(ids(&after["rooms"]["join"][&shared]["timeline"]["events"]), [topic]);
}

#[tokio::test]
async fn history_that_a_newcomer_may_not_read_is_not_told() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    for (visibility, sees_before) in [("shared", true), ("joined", false)] {
        let visible = json!({ "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": visibility } });
        let room = create(&alice, json!({ "preset": "public_chat", "initial_state": [visible] })).await;
        say(&alice, &room, "secret").await;
        join(&bob, &room).await;
        say(&alice, &room, "open").await;
        let answer = sync(&bob, None, &[]).await;
        let told = bodies(&answer["rooms"]["join"][&room]["timeline"]["events"]);
        assert_eq!(
            told.contains(&"secret".to_owned()),
            sees_before,
            "{visibility} {told:?}"
        );
        let page = bob.get_ok(&at(&room, "messages?dir=b&limit=100")).await;
        assert_eq!(
            bodies(&page["chunk"]).contains(&"secret".to_owned()),
            sees_before,
            "{visibility}"
        );
        assert!(bodies(&page["chunk"]).contains(&"open".to_owned()));
        assert!(page.get("end").is_none(), "{page}");
    }
}

#[tokio::test]
async fn redacted_events_are_told_redacted() {
    let cluster = Cluster::start(1).await;
    for version in ["10", "11", "12"] {
        let alice = cluster[0].register(&format!("alice{version}")).await;
        let room = create(&alice, json!({ "room_version": version })).await;
        let secret = say(&alice, &room, "secret").await;
        let before = sync(&alice, None, &[]).await;
        let redaction = redact(&alice, &room, &secret, "r").await;
        let step = sync(&alice, Some(&before), &[]).await;
        let told = &step["rooms"]["join"][&room]["timeline"]["events"];
        assert_eq!(ids(told), [redaction.as_str()]);
        assert_eq!(told[0]["redacts"], secret.as_str());
        assert_eq!(told[0]["content"]["redacts"], secret.as_str());

        let initial = sync(&alice, None, &[]).await;
        let events = initial["rooms"]["join"][&room]["timeline"]["events"]
            .as_array()
            .unwrap()
            .clone();
        let event = events
            .iter()
            .find(|event| event["event_id"] == secret.as_str())
            .unwrap();
        assert_eq!(event["content"], json!({}));
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], redaction.as_str());
        assert_eq!(because["content"]["reason"], "spam");
        let alone = alice.get_ok(&at(&room, &format!("event/{}", escape(&secret)))).await;
        assert_eq!(alone["content"], json!({}));
        assert_eq!(alone["room_id"], room.as_str());
    }
}

#[tokio::test]
async fn what_relates_to_an_event_is_told_with_it() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &room).await;
    let root = say(&alice, &room, "root").await;
    let relates = |rel_type: &str, target: &str, body: &str| {
        json!({
            "msgtype": "m.text", "body": body, "m.new_content": { "msgtype": "m.text", "body": body },
            "m.relates_to": { "rel_type": rel_type, "event_id": target },
        })
    };
    let edit = send(
        &alice,
        &room,
        "m.room.message",
        "e1",
        relates("m.replace", &root, "edited"),
    )
    .await;
    let forged = relates("m.replace", &root, "forged");
    send(&bob, &room, "m.room.message", "e2", forged).await;
    let reply = send(
        &bob,
        &room,
        "m.room.message",
        "t1",
        relates("m.thread", &root, "in thread"),
    )
    .await;
    let reference = send(
        &bob,
        &room,
        "m.room.message",
        "r1",
        relates("m.reference", &root, "see"),
    )
    .await;
    let broken =
        json!({ "msgtype": "m.text", "body": "x", "m.relates_to": { "rel_type": "m.replace", "event_id": root } });
    send(&alice, &room, "m.room.message", "e3", broken).await;

    let event = format!("event/{}", escape(&root));
    let told = alice.get_ok(&at(&room, &event)).await;
    let relations = &told["unsigned"]["m.relations"];
    assert_eq!(relations["m.replace"]["event_id"], edit.as_str(), "{relations}");
    assert_eq!(relations["m.replace"]["content"]["m.new_content"]["body"], "edited");
    assert_eq!(relations["m.thread"]["latest_event"]["event_id"], reply.as_str());
    assert_eq!(relations["m.thread"]["count"], 1);
    assert_eq!(relations["m.thread"]["current_user_participated"], true);
    assert_eq!(relations["m.reference"]["chunk"], json!([{ "event_id": reference }]));
    let initial = sync(&bob, None, &[]).await;
    let events = initial["rooms"]["join"][&room]["timeline"]["events"]
        .as_array()
        .unwrap()
        .clone();
    let in_sync = events.iter().find(|event| event["event_id"] == root.as_str());
    assert!(in_sync.unwrap()["unsigned"]["m.relations"]["m.thread"].is_object());

    redact(&alice, &room, &edit, "x1").await;
    redact(&bob, &room, &reply, "x2").await;
    let told = alice.get_ok(&at(&room, &event)).await;
    let relations = &told["unsigned"]["m.relations"];
    assert!(
        relations.get("m.replace").is_none() && relations.get("m.thread").is_none(),
        "{relations}"
    );
}

#[tokio::test]
async fn filters_choose_what_is_told() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat" })).await;
    let other = create(&alice, json!({})).await;
    join(&bob, &room).await;
    let from_bob = say(&bob, &room, "from bob").await;
    say(&alice, &room, "from alice").await;
    set(&alice, &room, "m.room.topic", "", json!({ "topic": "t" })).await;

    let told = async |filter: Value| sync(&alice, None, &[("filter", &filter.to_string())]).await;
    let answer = told(json!({ "room": { "not_rooms": [room] } })).await;
    assert!(answer["rooms"]["join"].get(&room).is_none() && answer["rooms"]["join"].get(&other).is_some());
    let answer = told(
        json!({ "room": { "rooms": [room], "timeline": { "senders": [bob.user_id], "types": ["m.room.mess*"] } } }),
    )
    .await;
    assert_eq!(ids(&answer["rooms"]["join"][&room]["timeline"]["events"]), [from_bob]);
    assert!(answer["rooms"]["join"].get(&other).is_none());
    // The state that the timeline does not tell is told as state.
    assert!(has(
        &answer["rooms"]["join"][&room]["state"]["events"],
        "m.room.topic",
        ""
    ));
    let answer = told(json!({ "room": { "state": { "types": [] }, "timeline": { "limit": 0 } } })).await;
    let joined = &answer["rooms"]["join"][&room];
    assert!(joined.get("state").is_none(), "{joined}");
    assert_eq!(joined["timeline"]["events"], json!([]));
    assert_eq!(joined["timeline"]["limited"], true);
    let answer =
        told(json!({ "account_data": { "not_types": ["*"] }, "event_fields": ["type", "content.body"] })).await;
    assert!(answer.get("account_data").is_none(), "{answer}");
    let events = answer["rooms"]["join"][&room]["timeline"]["events"]
        .as_array()
        .unwrap()
        .clone();
    let last = events
        .iter()
        .rev()
        .find(|event| event["type"] == "m.room.message")
        .unwrap();
    assert_eq!(
        *last,
        json!({ "type": "m.room.message", "content": { "body": "from alice" } })
    );
    let answer = told(json!({ "event_format": "federation" })).await;
    let events = &answer["rooms"]["join"][&room]["timeline"]["events"];
    assert!(
        events[0]["hashes"].is_object() && events[0]["unsigned"].is_object(),
        "{events}"
    );

    // By id, and what is no filter.
    let path = format!("/_matrix/client/v3/user/{}/filter", escape(&alice.user_id));
    let id = alice.post_ok(&path, json!({ "room": { "rooms": [] } })).await;
    let answer = sync(&alice, None, &[("filter", id["filter_id"].as_str().unwrap())]).await;
    assert!(answer.get("rooms").is_none(), "{answer}");
    let refused = alice.get("/_matrix/client/v3/sync?filter=999").await;
    assert_refused(refused, (400, "M_INVALID_PARAM"));
    let refused = alice
        .get(&format!("/_matrix/client/v3/sync?filter={}", escape("{\"room\": 5}")))
        .await;
    assert_refused(refused, (400, "M_BAD_JSON"));
}
