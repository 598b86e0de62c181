//! Push rules, pushers and counts as clients see them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::testing::{Client, Cluster, assert_refused, escape};

const RULES: &str = "/_matrix/client/v3/pushrules/global";
const PUSHERS: &str = "/_matrix/client/v3/pushers";
const SET_PUSHER: &str = "/_matrix/client/v3/pushers/set";

async fn ids(client: &Client, kind: &str) -> Vec<String> {
    let rules = client.get_ok(&format!("{RULES}/")).await;
    let rules = rules[kind].as_array().unwrap();
    rules
        .iter()
        .map(|rule| rule["rule_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn rules_are_predefined_added_moved_and_removed() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let all = alice.get_ok("/_matrix/client/v3/pushrules/").await;
    assert_eq!(all["global"], alice.get_ok(&format!("{RULES}/")).await);
    assert_eq!(ids(&alice, "override").await[0], ".m.rule.master");
    let before = ids(&alice, "override").await.len();

    let rule = |pattern: &str| json!({"actions": ["notify"], "pattern": pattern});
    for (id, query) in [
        ("one", ""),
        ("two", ""),
        ("three", "?after=one"),
        ("four", "?before=two"),
    ] {
        alice.put_ok(&format!("{RULES}/content/{id}{query}"), rule(id)).await;
    }
    assert_eq!(ids(&alice, "content").await, ["four", "two", "one", "three"]);
    alice
        .put_ok(&format!("{RULES}/content/four?after=three"), rule("changed"))
        .await;
    assert_eq!(ids(&alice, "content").await, ["two", "one", "three", "four"]);
    let four = alice.get_ok(&format!("{RULES}/content/four")).await;
    assert_eq!((&four["pattern"], &four["enabled"]), (&json!("changed"), &json!(true)));

    let condition = json!({"actions": [], "conditions": [{"kind": "event_match", "key": "type", "pattern": "x"}]});
    alice.put_ok(&format!("{RULES}/override/mine"), condition.clone()).await;
    assert_eq!(ids(&alice, "override").await[1], "mine");
    alice.put_ok(&format!("{RULES}/underride/mine"), condition).await;
    alice
        .put_ok(&format!("{RULES}/room/%21room%3Ahere"), json!({"actions": []}))
        .await;
    alice
        .put_ok(&format!("{RULES}/sender/%40bob%3Ahere"), json!({"actions": []}))
        .await;
    assert_eq!(alice.delete(&format!("{RULES}/override/mine")).await.0, StatusCode::OK);
    assert_eq!(ids(&alice, "override").await.len(), before);

    let master = format!("{RULES}/override/.m.rule.master");
    alice
        .put_ok(&format!("{master}/enabled"), json!({"enabled": true}))
        .await;
    assert_eq!(
        alice.get_ok(&format!("{master}/enabled")).await,
        json!({"enabled": true})
    );
    let message = format!("{RULES}/underride/.m.rule.message/actions");
    alice.put_ok(&message, json!({"actions": []})).await;
    assert_eq!(alice.get_ok(&message).await, json!({"actions": []}));

    // What /sync tells is what the endpoints tell.
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.push_rules",
        escape(&alice.user_id)
    );
    assert_eq!(
        alice.get_ok(&path).await["global"],
        alice.get_ok(&format!("{RULES}/")).await
    );
}

#[tokio::test]
async fn rules_that_are_refused_change_nothing() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let before = alice.get_ok(&format!("{RULES}/")).await;
    let rule = json!({"actions": ["notify"], "pattern": "x"});
    let long = json!({"actions": ["notify"], "pattern": "x".repeat(65_536)});
    let none = json!({});
    for (method, path, body, expected) in [
        (Method::PUT, "content/.m.mine", &rule, (400, "M_INVALID_PARAM")),
        (Method::PUT, "content/a%5Cb", &rule, (400, "M_INVALID_PARAM")),
        (
            Method::PUT,
            "content/a?before=.m.rule.x",
            &rule,
            (400, "M_INVALID_PARAM"),
        ),
        (Method::PUT, "content/a?before=none", &rule, (404, "M_NOT_FOUND")),
        (Method::PUT, "content/a?after=none", &rule, (404, "M_NOT_FOUND")),
        (Method::PUT, "content/a", &long, (400, "M_INVALID_PARAM")),
        (Method::PUT, "content/a", &none, (400, "M_BAD_JSON")),
        (Method::PUT, "room/noroom", &rule, (400, "M_BAD_JSON")),
        (Method::PUT, "other/a", &rule, (400, "M_BAD_JSON")),
        (Method::GET, "content/none", &none, (404, "M_NOT_FOUND")),
        (Method::GET, "other/none", &none, (404, "M_NOT_FOUND")),
        (Method::GET, "content/none/enabled", &none, (404, "M_NOT_FOUND")),
        (Method::DELETE, "content/none", &none, (404, "M_NOT_FOUND")),
        (
            Method::DELETE,
            "override/.m.rule.master",
            &none,
            (400, "M_INVALID_PARAM"),
        ),
        (
            Method::PUT,
            "content/none/enabled",
            &json!({"enabled": true}),
            (404, "M_NOT_FOUND"),
        ),
        (
            Method::PUT,
            "content/none/actions",
            &json!({"actions": []}),
            (404, "M_NOT_FOUND"),
        ),
    ] {
        let response = alice
            .raw(method, &format!("{RULES}/{path}"), body.to_string().into())
            .await;
        let answer: Value = serde_json::from_slice(response.body()).unwrap();
        assert_refused((response.status(), answer), expected);
    }
    assert_eq!(alice.get_ok(&format!("{RULES}/")).await, before);
}

#[tokio::test]
async fn pushers_are_kept_until_their_device_goes() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let phone = cluster[0].login("alice").await;
    let bob = cluster[0].register("bob").await;
    let pusher = |key: &str, append: bool| {
        json!({
            "app_id": "org.example", "pushkey": key, "kind": "http", "app_display_name": "App",
            "device_display_name": "Phone", "lang": "en", "append": append,
            "data": {"url": "https://push.example.org/_matrix/push/v1/notify", "format": "event_id_only"},
        })
    };
    let count = async |client: &Client| client.get_ok(PUSHERS).await["pushers"].as_array().unwrap().len();
    alice.post_ok(SET_PUSHER, pusher("a", false)).await;
    alice.post_ok(SET_PUSHER, pusher("a", false)).await;
    phone.post_ok(SET_PUSHER, pusher("b", false)).await;
    let first = &alice.get_ok(PUSHERS).await["pushers"][0];
    assert_eq!(
        (&first["pushkey"], &first["data"]["format"]),
        (&json!("a"), &json!("event_id_only"))
    );
    assert_eq!(count(&alice).await, 2);
    bob.post_ok(SET_PUSHER, pusher("a", true)).await;
    assert_eq!((count(&alice).await, count(&bob).await), (2, 1));
    bob.post_ok(SET_PUSHER, pusher("a", false)).await;
    assert_eq!((count(&alice).await, count(&bob).await), (1, 1));
    phone.post_ok("/_matrix/client/v3/logout", json!({})).await;
    assert_eq!(count(&alice).await, 0);
    bob.post_ok(
        SET_PUSHER,
        json!({"app_id": "org.example", "pushkey": "a", "kind": null}),
    )
    .await;
    assert_eq!(count(&bob).await, 0);

    for (field, value) in [
        ("pushkey", json!("k".repeat(513))),
        ("pushkey", json!("")),
        ("app_id", json!("k".repeat(65))),
        ("data", json!({"url": "https://push.example.org/elsewhere"})),
        ("data", json!({"url": "ftp://push.example.org/_matrix/push/v1/notify"})),
        ("kind", json!("pigeon")),
    ] {
        let mut wrong = pusher("a", false);
        wrong[field] = value;
        assert_refused(bob.post(SET_PUSHER, wrong).await, (400, "M_INVALID_PARAM"));
    }
    assert_eq!(count(&bob).await, 0);
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

async fn send(client: &Client, room: &str, txn: &str, content: Value) -> String {
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn}", escape(room));
    client.put_ok(&path, content).await["event_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn text(body: &str) -> Value {
    json!({"msgtype": "m.text", "body": body})
}

/// Unread notifications and highlights outside of threads, and in each thread.
async fn unread(node: &crate::testing::Node, client: &Client, room: &str) -> (u64, u64, Vec<(u64, u64)>) {
    let user = ruma::UserId::parse(&client.user_id).unwrap();
    let room = ruma::RoomId::parse(room).unwrap();
    let store = &node.hs.context.store;
    let counts = store
        .read(move |txn| txn.notification_counts(&user, &room))
        .await
        .unwrap();
    let threads = counts
        .threads
        .values()
        .map(|thread| (thread.notifications, thread.highlights));
    (counts.main.notifications, counts.main.highlights, threads.collect())
}

#[tokio::test]
async fn what_notifies_and_what_does_not() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let carol = cluster[0].register("carol").await;
    let room = room(&alice, &[&bob, &carol]).await;
    let mut expected = unread(&cluster[0], &bob, &room).await;
    let mention = |users: Value| json!({"msgtype": "m.text", "body": "x", "m.mentions": users});
    let edit = json!({
        "msgtype": "m.text", "body": "* x", "m.new_content": text("x"),
        "m.relates_to": {"rel_type": "m.replace", "event_id": "$x"},
    });
    for (n, (sender, content, notifications, highlights)) in [
        (&alice, text("Hello"), 1, 0),
        (&bob, text("My own"), 0, 0),
        (&alice, json!({"msgtype": "m.notice", "body": "Beep"}), 0, 0),
        (&alice, mention(json!({"user_ids": [bob.user_id]})), 1, 1),
        (&alice, mention(json!({"user_ids": [carol.user_id]})), 1, 0),
        // Alice may notify the room, by her power level; Carol may not.
        (&alice, mention(json!({"room": true})), 1, 1),
        (&carol, mention(json!({"room": true})), 1, 0),
        (&alice, edit, 0, 0),
    ]
    .into_iter()
    .enumerate()
    {
        send(sender, &room, &n.to_string(), content.clone()).await;
        // Whoever speaks has read what was said.
        if sender.user_id == bob.user_id {
            expected = (0, 0, vec![]);
        }
        expected.0 += notifications;
        expected.1 += highlights;
        assert_eq!(unread(&cluster[0], &bob, &room).await, expected, "{content}");
    }
    let state = format!("/_matrix/client/v3/rooms/{}/state/m.room.topic", escape(&room));
    alice.put_ok(&state, json!({"topic": "Quiet"})).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, expected);
}

#[tokio::test]
async fn rules_of_ones_own_and_ignored_users() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let room = room(&alice, &[&bob]).await;
    let start = unread(&cluster[0], &bob, &room).await.0;
    let highlight = json!({"actions": ["notify", {"set_tweak": "highlight"}], "pattern": "cake"});
    bob.put_ok(&format!("{RULES}/content/cake"), highlight).await;
    send(&alice, &room, "1", text("There is CAKE!")).await;
    send(&alice, &room, "2", text("cakes")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (start + 2, 1, vec![]));
    // The deprecated condition on the name in the room is still answered.
    let named =
        json!({"actions": ["notify", {"set_tweak": "highlight"}], "conditions": [{"kind": "contains_display_name"}]});
    let name = format!("/_matrix/client/v3/profile/{}/displayname", escape(&bob.user_id));
    bob.put_ok(&name, json!({"displayname": "Bobby"})).await;
    bob.put_ok(&format!("{RULES}/override/named"), named).await;
    send(&alice, &room, "3", text("Is bobby here?")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (start + 3, 2, vec![]));

    let quiet = format!("{RULES}/room/{}", escape(&room));
    bob.put_ok(&quiet, json!({"actions": []})).await;
    send(&alice, &room, "4", text("Unheard")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await.0, start + 3);
    assert_eq!(bob.delete(&quiet).await.0, StatusCode::OK);

    let list = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        escape(&bob.user_id)
    );
    bob.put_ok(&list, json!({"ignored_users": {&alice.user_id: {}}})).await;
    send(&alice, &room, "5", text("cake")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (start + 3, 2, vec![]));
    bob.put_ok(&list, json!({"ignored_users": {}})).await;
    bob.put_ok(
        &format!("{RULES}/override/.m.rule.master/enabled"),
        json!({"enabled": true}),
    )
    .await;
    send(&alice, &room, "6", text("cake")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await.0, start + 3);
}

#[tokio::test]
async fn receipts_redactions_and_leaving_take_notifications_away() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let room = room(&alice, &[&bob]).await;
    let at = format!("/_matrix/client/v3/rooms/{}", escape(&room));
    let root = send(&alice, &room, "1", text("Root")).await;
    let thread = |body: &str| json!({"msgtype": "m.text", "body": body, "m.relates_to": {"rel_type": "m.thread", "event_id": root}});
    let in_thread = send(&alice, &room, "2", thread("In")).await;
    send(&alice, &room, "3", thread("Further in")).await;
    let after = send(&alice, &room, "4", text("After")).await;
    let last = send(&alice, &room, "5", text("Last")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await.2, [(2, 0)]);

    let read = async |event: &str, thread: Value| {
        let path = format!("{at}/receipt/m.read/{}", escape(event));
        let body = if thread.is_null() {
            json!({})
        } else {
            json!({ "thread_id": thread })
        };
        bob.post_ok(&path, body).await;
    };
    read(&after, json!("main")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (1, 0, vec![(2, 0)]));
    read(&in_thread, json!(root)).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (1, 0, vec![(1, 0)]));

    let listed = bob.get_ok("/_matrix/client/v3/notifications?limit=2").await;
    let first = &listed["notifications"][0];
    assert_eq!((&first["read"], &first["room_id"]), (&json!(false), &json!(room)));
    assert_eq!(
        (&first["event"]["event_id"], &first["event"]["content"]["body"]),
        (&json!(last), &json!("Last"))
    );
    assert_eq!(first["actions"][0], "notify");
    let next = listed["next_token"].as_str().unwrap();
    let rest = bob
        .get_ok(&format!("/_matrix/client/v3/notifications?from={next}"))
        .await;
    assert!(
        rest["notifications"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["event"]["event_id"] == root.as_str())
    );
    let none = bob.get_ok("/_matrix/client/v3/notifications?only=highlight").await;
    assert_eq!(none["notifications"], json!([]));
    assert_refused(
        bob.get("/_matrix/client/v3/notifications?from=x").await,
        (400, "M_INVALID_PARAM"),
    );

    alice
        .put_ok(&format!("{at}/redact/{}/6", escape(&last)), json!({}))
        .await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (0, 0, vec![(1, 0)]));
    let newest = send(&alice, &room, "7", text("Newest")).await;
    read(&newest, Value::Null).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (0, 0, vec![]));

    send(&alice, &room, "8", text("Bye")).await;
    bob.post_ok(&format!("{at}/leave"), json!({})).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (0, 0, vec![]));
    send(&alice, &room, "9", text("Alone")).await;
    assert_eq!(unread(&cluster[0], &bob, &room).await, (0, 0, vec![]));
    assert_eq!(
        bob.get_ok("/_matrix/client/v3/notifications").await["notifications"],
        json!([])
    );
}

#[tokio::test]
async fn what_other_servers_send_notifies_too_and_a_restart_forgets_nothing() {
    let mut cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let room = room(&alice, &[&bob]).await;
    let start = unread(&cluster[1], &bob, &room).await.0;
    let mut committed = cluster[1].hs.context.store.committed();
    send(
        &alice,
        &room,
        "1",
        json!({"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": [bob.user_id]}}),
    )
    .await;
    while unread(&cluster[1], &bob, &room).await.0 == start {
        committed.changed().await.unwrap();
    }
    cluster.nodes[1].restart().await;
    assert_eq!(unread(&cluster[1], &bob, &room).await, (start + 1, 1, vec![]));
}
