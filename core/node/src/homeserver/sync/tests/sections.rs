//! The sections of an answer beside rooms: account data, counts, messages to devices and keys.

use serde_json::{Value, json};

use super::{at, create, join, say, sync};
use crate::{
    homeserver::keys::test_keys::{TestKey, one_time_keys},
    testing::{Cluster, escape},
};

#[tokio::test]
async fn account_data_is_told_when_it_is_set() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let user = escape(&alice.user_id);
    let initial = sync(&alice, None, &[]).await;
    let kinds = |answer: &Value| -> Vec<String> {
        let events = answer["account_data"]["events"].as_array().cloned().unwrap_or_default();
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(kinds(&initial), ["m.push_rules"]);

    alice
        .put_ok(
            &format!("/_matrix/client/v3/user/{user}/account_data/x.y"),
            json!({ "a": 1 }),
        )
        .await;
    let tag = format!(
        "/_matrix/client/v3/user/{user}/rooms/{}/tags/m.favourite",
        escape(&room)
    );
    alice.put_ok(&tag, json!({ "order": 0.5 })).await;
    let step = sync(&alice, Some(&initial), &[]).await;
    assert_eq!(
        step["account_data"]["events"],
        json!([{ "type": "x.y", "content": { "a": 1 } }])
    );
    let joined = &step["rooms"]["join"][&room];
    let expected = json!([{ "type": "m.tag", "content": { "tags": { "m.favourite": { "order": 0.5 } } } }]);
    assert_eq!(joined["account_data"]["events"], expected);
    assert!(joined["timeline"].get("events").is_none(), "{joined}");
    assert!(sync(&alice, Some(&step), &[]).await.get("account_data").is_none());
    let anew = sync(&alice, None, &[]).await;
    assert_eq!(anew["rooms"]["join"][&room]["account_data"]["events"], expected);
}

#[tokio::test]
async fn unread_messages_are_counted_per_room_and_thread() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &room).await;
    let root = say(&alice, &room, "root").await;
    say(&bob, &room, "one").await;
    let in_thread = json!({
        "msgtype": "m.text", "body": "two", "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    super::send(&bob, &room, "m.room.message", "t", in_thread).await;
    let counts = |answer: &Value| answer["rooms"]["join"][&room]["unread_notifications"].clone();
    let plain = sync(&alice, None, &[]).await;
    assert_eq!(counts(&plain), json!({ "notification_count": 2, "highlight_count": 0 }));
    let filter = r#"{"room":{"timeline":{"unread_thread_notifications":true}}}"#;
    let threads = sync(&alice, None, &[("filter", filter)]).await;
    assert_eq!(
        counts(&threads),
        json!({ "notification_count": 1, "highlight_count": 0 })
    );
    assert_eq!(
        threads["rooms"]["join"][&room]["unread_thread_notifications"],
        json!({ root: { "notification_count": 1, "highlight_count": 0 } })
    );
    assert_eq!(counts(&sync(&bob, None, &[]).await)["notification_count"], 0);
}

#[tokio::test]
async fn messages_to_a_device_come_until_they_are_acknowledged() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let other = cluster[0].login("alice").await;
    let start = sync(&alice, None, &[]).await;
    for number in 0..150 {
        let messages = json!({ "messages": { alice.user_id.clone(): { alice.device_id.clone(): { "n": number } } } });
        bob.put_ok(&format!("/_matrix/client/v3/sendToDevice/x.y/{number}"), messages)
            .await;
    }
    let numbers = |answer: &Value| -> Vec<i64> {
        let events = answer["to_device"]["events"].as_array().cloned().unwrap_or_default();
        events
            .iter()
            .map(|event| event["content"]["n"].as_i64().unwrap())
            .collect()
    };
    let first = sync(&alice, Some(&start), &[]).await;
    assert_eq!(numbers(&first), (0..100).collect::<Vec<_>>());
    assert_eq!(first["to_device"]["events"][0]["sender"], bob.user_id.as_str());
    // Asked again without going on: told again.
    assert_eq!(numbers(&sync(&alice, Some(&start), &[]).await).len(), 100);
    // What did not fit waits for nobody's news.
    let path = super::sync_path(Some(&first), &[]).replace("timeout=0", "timeout=300000");
    let second = alice.get_ok(&path).await;
    assert_eq!(numbers(&second), (100..150).collect::<Vec<_>>());
    assert!(numbers(&sync(&alice, Some(&second), &[]).await).is_empty());
    // Acknowledged is gone, also for whoever starts anew.
    assert!(numbers(&sync(&alice, None, &[]).await).is_empty());
    assert!(numbers(&sync(&other, None, &[]).await).is_empty());
}

#[tokio::test]
async fn a_waiting_client_is_woken_by_a_message_to_its_device_and_by_account_data() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let start = sync(&alice, None, &[]).await;
    let waiting = |since: &Value| super::sync_path(Some(since), &[]).replace("timeout=0", "timeout=300000");
    let messages = json!({ "messages": { alice.user_id.clone(): { "*": { "n": 1 } } } });
    let path = waiting(&start);
    let send = bob.put_ok("/_matrix/client/v3/sendToDevice/x.y/1", messages);
    let (answer, _) = tokio::join!(alice.get_ok(&path), send);
    assert_eq!(answer["to_device"]["events"][0]["content"]["n"], 1);
    let path = waiting(&answer);
    let user = escape(&alice.user_id);
    let set = format!("/_matrix/client/v3/user/{user}/account_data/x.y");
    let (answer, _) = tokio::join!(alice.get_ok(&path), alice.put_ok(&set, json!({})));
    assert_eq!(answer["account_data"]["events"][0]["type"], "x.y");
}

#[tokio::test]
async fn keys_left_are_told_always() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let answer = sync(&alice, None, &[]).await;
    assert_eq!(answer["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
    assert_eq!(answer["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test]
async fn threads_relations_and_words_are_found() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat", "name": "Garden" })).await;
    join(&bob, &room).await;
    let roots = [
        say(&alice, &room, "first root").await,
        say(&bob, &room, "second root").await,
    ];
    let mut replies = Vec::new();
    for number in 0..5 {
        let root = &roots[number % 2];
        let content = json!({
            "msgtype": "m.text", "body": format!("reply {number}"),
            "m.relates_to": { "rel_type": "m.thread", "event_id": root },
        });
        replies.push(super::send(&bob, &room, "m.room.message", &format!("r{number}"), content).await);
    }
    let rooms = format!("/_matrix/client/v1/rooms/{}", escape(&room));
    let threads = alice.get_ok(&format!("{rooms}/threads?limit=1")).await;
    assert_eq!(super::ids(&threads["chunk"]), [roots[0].as_str()]);
    assert_eq!(threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 3);
    let next = escape(threads["next_batch"].as_str().unwrap());
    let threads = alice.get_ok(&format!("{rooms}/threads?limit=1&from={next}")).await;
    assert_eq!(super::ids(&threads["chunk"]), [roots[1].as_str()]);
    let own = alice.get_ok(&format!("{rooms}/threads?include=participated")).await;
    assert_eq!(super::ids(&own["chunk"]), [roots[0].as_str()]);

    let relations = format!("{rooms}/relations/{}/m.thread", escape(&roots[0]));
    let page = alice.get_ok(&format!("{relations}?limit=2")).await;
    assert_eq!(super::ids(&page["chunk"]), [replies[4].clone(), replies[2].clone()]);
    let next = escape(page["next_batch"].as_str().unwrap());
    let page = alice.get_ok(&format!("{relations}?limit=2&from={next}")).await;
    assert_eq!(super::ids(&page["chunk"]), [replies[0].as_str()]);
    assert!(page.get("next_batch").is_none(), "{page}");
    let forward = alice.get_ok(&format!("{relations}/m.room.message?dir=f&limit=2")).await;
    assert_eq!(super::ids(&forward["chunk"]), [replies[0].clone(), replies[2].clone()]);
    let none = alice
        .get_ok(&format!("{rooms}/relations/{}/m.thread/m.sticker", escape(&roots[0])))
        .await;
    assert_eq!(none["chunk"], json!([]));
    let deep = alice
        .get_ok(&format!("{rooms}/relations/{}?recurse=true", escape(&roots[0])))
        .await;
    assert_eq!(deep["recursion_depth"], 3);

    let search = json!({ "search_categories": { "room_events": {
        "search_term": "root", "order_by": "recent", "event_context": { "before_limit": 1, "after_limit": 1 },
        "groupings": { "group_by": [{ "key": "sender" }] },
    } } });
    let found = alice.post_ok("/_matrix/client/v3/search", search.clone()).await;
    let found = &found["search_categories"]["room_events"];
    assert_eq!(found["count"], 2, "{found}");
    let results: Vec<_> = found["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["result"]["event_id"].clone())
        .collect();
    assert_eq!(results, [json!(roots[1]), json!(roots[0])]);
    assert_eq!(
        super::ids(&found["results"][1]["context"]["events_after"]),
        [roots[1].as_str()]
    );
    assert_eq!(found["groups"]["sender"][&bob.user_id]["results"], json!([roots[1]]));
    let carol = cluster[0].register("carol").await;
    let nothing = carol.post_ok("/_matrix/client/v3/search", search).await;
    assert!(
        nothing["search_categories"]["room_events"].get("results").is_none(),
        "{nothing}"
    );

    let now = alice
        .get_ok(&at(&room, &format!("event/{}", escape(&replies[2]))))
        .await["origin_server_ts"]
        .as_u64()
        .unwrap();
    let nearest = alice
        .get_ok(&format!("{rooms}/timestamp_to_event?ts={now}&dir=b"))
        .await;
    assert_eq!(nearest["event_id"], replies[2].as_str());
    let nearest = alice
        .get_ok(&format!("{rooms}/timestamp_to_event?ts={}&dir=f", now + 1))
        .await;
    assert_eq!(nearest["event_id"], replies[3].as_str());
    let mutual = format!("/_matrix/client/v1/mutual_rooms?user_id={}", escape(&bob.user_id));
    assert_eq!(alice.get_ok(&mutual).await["joined"], json!([room]));
}

#[tokio::test]
async fn typing_and_receipts_and_presence_wake_and_are_told() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &room).await;
    let said = say(&alice, &room, "hello").await;
    let waiting = |since: &Value| super::sync_path(Some(since), &[]).replace("timeout=0", "timeout=300000");
    let ephemeral = |answer: &Value| answer["rooms"]["join"][&room]["ephemeral"]["events"].clone();
    let start = sync(&alice, None, &[("set_presence", "offline")]).await;

    let path = at(&room, &format!("typing/{}", escape(&bob.user_id)));
    let wait = waiting(&start) + "&set_presence=offline";
    let types = bob.put_ok(&path, json!({ "typing": true, "timeout": 30000 }));
    let (answer, _) = tokio::join!(alice.get_ok(&wait), types);
    let expected = json!([{ "type": "m.typing", "content": { "user_ids": [bob.user_id] } }]);
    assert_eq!(ephemeral(&answer), expected);
    assert!(answer["rooms"]["join"][&room].get("timeline").is_none(), "{answer}");
    // Who starts now is told that bob types; who goes on is not told again.
    assert_eq!(
        ephemeral(&sync(&alice, None, &[("set_presence", "offline")]).await),
        expected
    );
    assert!(ephemeral(&sync(&alice, Some(&answer), &[("set_presence", "offline")]).await).is_null());

    let wait = waiting(&answer) + "&set_presence=offline";
    let (path_read, read) = (at(&room, &format!("receipt/m.read/{}", escape(&said))), json!({}));
    let (answer, _) = tokio::join!(alice.get_ok(&wait), bob.post_ok(&path_read, read));
    let receipts = ephemeral(&answer);
    assert_eq!(receipts[0]["type"], "m.receipt", "{answer}");
    assert!(
        receipts[0]["content"][&said]["m.read"][&bob.user_id]["ts"].is_u64(),
        "{receipts}"
    );
    let filter = r#"{"room":{"ephemeral":{"not_types":["m.receipt"]}}}"#;
    let without = sync(&alice, None, &[("filter", filter), ("set_presence", "offline")]).await;
    assert_eq!(ephemeral(&without), expected);

    let wait = waiting(&answer) + "&set_presence=offline";
    let path = format!("/_matrix/client/v3/presence/{}/status", escape(&bob.user_id));
    let status = json!({ "presence": "unavailable", "status_msg": "tea" });
    let (answer, _) = tokio::join!(alice.get_ok(&wait), bob.put_ok(&path, status));
    let presence = &answer["presence"]["events"];
    assert_eq!(presence[0]["sender"], bob.user_id.as_str(), "{answer}");
    assert_eq!(presence[0]["content"]["status_msg"], "tea");
    // Carol shares no room with bob, until she does.
    let carol = cluster[0].register("carol").await;
    let apart = sync(&carol, None, &[("set_presence", "offline")]).await;
    assert!(apart.get("presence").is_none(), "{apart}");
    join(&carol, &room).await;
    let together = sync(&carol, Some(&apart), &[("set_presence", "offline")]).await;
    assert_eq!(
        together["presence"]["events"][0]["sender"],
        bob.user_id.as_str(),
        "{together}"
    );
    let receipts = &together["rooms"]["join"][&room]["ephemeral"]["events"];
    assert!(
        receipts
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["type"] == "m.receipt"),
        "{together}"
    );
}

#[tokio::test]
async fn a_device_is_woken_when_one_of_its_keys_is_taken_and_when_others_devices_change() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({ "preset": "public_chat" })).await;
    join(&bob, &room).await;
    let upload = "/_matrix/client/v3/keys/upload";
    let keys = json!({
        "device_keys": TestKey::new().as_device(&alice),
        "one_time_keys": one_time_keys(["K1".to_owned(), "K2".to_owned()]),
        "fallback_keys": one_time_keys(["K3".to_owned()]),
    });
    alice.post_ok(upload, keys).await;
    let start = sync(&alice, None, &[]).await;
    assert_eq!(start["device_one_time_keys_count"]["signed_curve25519"], 2);
    assert_eq!(start["device_unused_fallback_key_types"], json!(["signed_curve25519"]));

    let path = super::sync_path(Some(&start), &[]).replace("timeout=0", "timeout=300000");
    let claim = json!({ "one_time_keys": { alice.user_id.clone(): { alice.device_id.clone(): "signed_curve25519" } } });
    let taken = bob.post_ok("/_matrix/client/v3/keys/claim", claim);
    let (answer, _) = tokio::join!(alice.get_ok(&path), taken);
    assert_eq!(answer["device_one_time_keys_count"]["signed_curve25519"], 1);

    let path = super::sync_path(Some(&answer), &[]).replace("timeout=0", "timeout=300000");
    let published = bob.post_ok(upload, json!({ "device_keys": TestKey::new().as_device(&bob) }));
    let (answer, _) = tokio::join!(alice.get_ok(&path), published);
    assert_eq!(answer["device_lists"]["changed"], json!([bob.user_id]));
    bob.post_ok(&at(&room, "leave"), json!({})).await;
    let answer = sync(&alice, Some(&answer), &[]).await;
    assert_eq!(answer["device_lists"], json!({ "left": [bob.user_id] }));
}
