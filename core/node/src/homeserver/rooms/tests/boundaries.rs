//! What one endpoint keeps from another server, all of them must: rooms that keep the server out, and what was said before
//! its users came.

use http::Method;
use serde_json::{Value, json};

use super::{
    at, create,
    federated::{hear, join_path, until_membership},
    say,
};
use crate::testing::{Cluster, escape};

/// Every request about a room, and an event in it, that another server may make: method, path and body.
fn requests(room: &str, event: &str, user: &str) -> Vec<(Method, String, Value)> {
    let (room_id, event_id) = (room, event);
    let (room, event, user) = (escape(room), escape(event), escape(user));
    let key = "A".repeat(43);
    let missing = json!({"latest_events": [event_id], "earliest_events": [], "limit": 100, "min_depth": 0});
    let get = |path: String| (Method::GET, format!("/_matrix/federation/v1/{path}"), Value::Null);
    let put = |path: String| (Method::PUT, format!("/_matrix/federation/{path}"), json!({}));
    let kith = |path: &str, body: Value| {
        let path = format!("/_matrix/federation/unstable/org.kith/{path}/{room}");
        (Method::POST, path, body)
    };
    vec![
        get(format!("make_join/{room}/{user}?ver=12")),
        get(format!("make_leave/{room}/{user}")),
        get(format!("make_knock/{room}/{user}?ver=12")),
        put(format!("v2/send_join/{room}/{event}")),
        put(format!("v2/send_leave/{room}/{event}")),
        put(format!("v1/send_knock/{room}/{event}")),
        get(format!("backfill/{room}?v={event}&limit=50")),
        get(format!("state/{room}?event_id={event}")),
        get(format!("state_ids/{room}?event_id={event}")),
        get(format!("event_auth/{room}/{event}")),
        get(format!("timestamp_to_event/{room}?ts=1&dir=f")),
        get(format!("hierarchy/{room}")),
        get(format!("event/{event}")),
        (
            Method::POST,
            format!("/_matrix/federation/v1/get_missing_events/{room}"),
            missing,
        ),
        kith("pull", json!({"event_ids": [event_id]})),
        kith("pull", json!({"event_ids": [event_id], "past": true})),
        kith("reconcile", json!({"key": key, "depth": 0, "masks": ""})),
        (
            Method::POST,
            "/_matrix/federation/unstable/org.kith/heads".to_owned(),
            json!({"rooms": {room_id: {"events": [], "digest": "", "depth": 0}}}),
        ),
    ]
}

#[tokio::test]
async fn a_server_that_the_room_keeps_out_is_answered_nothing() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&join_path(&room, &[cluster[0].name.as_str()]), json!({}))
        .await;
    let event = say(&alice, &room, "1", "before").await;
    let acl = json!({"allow": ["*"], "deny": [cluster[1].name]});
    let kept_out = alice.put_ok(&at(&room, "state/m.room.server_acl/"), acl).await;
    hear(&cluster[1], &bob, &room, kept_out["event_id"].as_str().unwrap()).await;
    for (method, path, body) in requests(&room, &event, &bob.user_id) {
        let (status, answer) = cluster[1].ask(&cluster[0], method, &path, body).await;
        let expected = match path.rsplit('/').next() {
            // What does not name the room does not show that it is there.
            Some("heads") => (200, ""),
            _ if path.contains("/v1/event/") || path.contains("/hierarchy/") => (404, "M_NOT_FOUND"),
            _ => (403, "M_FORBIDDEN"),
        };
        let found = (status.as_u16(), answer["errcode"].as_str().unwrap_or(""));
        assert_eq!(found, expected, "{path}: {answer}");
        assert!(found.0 != 200 || answer == json!({"rooms": {}}), "{path}: {answer}");
    }
}

#[tokio::test]
async fn what_was_said_before_its_users_came_no_server_is_told() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[1].register("bob").await];
    let visibility = json!({"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}});
    let room = create(&alice, json!({"preset": "public_chat", "initial_state": [visibility]})).await;
    let secret = say(&alice, &room, "1", "secret").await;
    let then = say(&alice, &room, "2", "secret too").await;
    bob.post_ok(&join_path(&room, &[cluster[0].name.as_str()]), json!({}))
        .await;
    until_membership(&cluster[0], &alice, &room, &bob.user_id, "join").await;
    let open = say(&alice, &room, "3", "open").await;
    for event in [&secret, &then, &open] {
        for (method, path, body) in requests(&room, event, &bob.user_id) {
            if path.contains("/send_") || path.contains("/make_") {
                continue;
            }
            let (status, answer) = cluster[1].ask(&cluster[0], method, &path, body).await;
            assert_eq!(status, 200, "{path}: {answer}");
            assert!(!answer.to_string().contains("secret"), "{path}: {answer}");
            let whole = ["/event/", "/pull/", "/backfill/"]
                .iter()
                .any(|part| path.contains(part));
            if event == &open && whole {
                assert!(answer.to_string().contains("\"open\""), "{path}: {answer}");
            }
        }
    }
}
