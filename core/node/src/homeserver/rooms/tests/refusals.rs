//! What is refused, with which code; and that a refusal changes nothing.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{at, create, say};
use crate::testing::{Client, Cluster, assert_refused, escape};

/// A request and the refusal that it must get.
type Case<'a> = (&'a Client, Method, String, Value, (u16, &'a str));

async fn check(cases: Vec<Case<'_>>) {
    for (client, method, path, body, expected) in cases {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let shown = format!("{method} {path} {:.200}", String::from_utf8_lossy(&body));
        let response = client.raw(method, &path, body).await;
        let answer: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        let found = (response.status().as_u16(), answer["errcode"].as_str().unwrap_or(""));
        assert_eq!(found, expected, "{shown}: {answer}");
    }
}

fn client_path(rest: &str) -> String {
    format!("/_matrix/client/v3/{rest}")
}

#[tokio::test]
async fn of_rooms_that_cannot_be() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    create(&alice, json!({"room_alias_name": "taken"})).await;
    let nobody = format!("@nobody:{}", cluster[0].name);
    let before = super::joined(&alice).await;
    let cases = [
        (json!({"room_version": "9"}), (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (json!({"room_version": "banana"}), (400, "M_UNSUPPORTED_ROOM_VERSION")),
        (json!({"preset": "banana"}), (400, "M_INVALID_PARAM")),
        (json!({"visibility": "banana"}), (400, "M_INVALID_PARAM")),
        (json!({"room_alias_name": "taken"}), (400, "M_ROOM_IN_USE")),
        (json!({"room_alias_name": "a:b"}), (400, "M_INVALID_PARAM")),
        (json!({"room_alias_name": "a".repeat(300)}), (400, "M_INVALID_PARAM")),
        (json!({"initial_state": [{"content": {}}]}), (400, "M_BAD_JSON")),
        (
            json!({"initial_state": [{"type": "m.x", "content": {"a": 1.5}}]}),
            (400, "M_BAD_JSON"),
        ),
        (
            json!({"initial_state": [{"type": "m.room.create", "content": {}}]}),
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            json!({"initial_state": [{"type": "m.room.member", "state_key": nobody, "content": {"membership": "join"}}]}),
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            json!({"room_version": "12", "power_level_content_override": {"users": {(&*alice.user_id): 100}}}),
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            json!({"room_version": "11", "name": "x", "power_level_content_override": {"users": {(&*alice.user_id): 0}}}),
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (json!({"invite": ["bob"]}), (400, "M_BAD_JSON")),
        (json!({"invite": [nobody]}), (404, "M_NOT_FOUND")),
        (
            json!({"invite_3pid": [{"id_server": "a", "id_access_token": "b", "medium": "email", "address": "c"}]}),
            (403, "M_THREEPID_DENIED"),
        ),
        (json!({"name": "x".repeat(70_000)}), (413, "M_TOO_LARGE")),
        (json!([]), (400, "M_BAD_JSON")),
    ];
    let cases = cases.into_iter();
    let path = client_path("createRoom");
    check(
        cases
            .map(|(body, expected)| (&alice, Method::POST, path.clone(), body, expected))
            .collect(),
    )
    .await;
    let response = alice.raw(Method::POST, &path, b"{".to_vec()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_refused(
        cluster[0].client().post(&path, json!({})).await,
        (401, "M_MISSING_TOKEN"),
    );
    assert_eq!(super::joined(&alice).await, before);
}

#[tokio::test]
async fn of_events_that_may_not_be_sent() {
    let cluster = Cluster::start(1).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let stranger = cluster[0].register("stranger").await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&at(&room, "join"), json!({})).await;
    let event = say(&alice, &room, "1", "hello").await;
    let text = json!({"msgtype": "m.text", "body": "hello"});
    let (put, message) = (Method::PUT, at(&room, "send/m.room.message/2"));
    let unknown = format!("!unknown:{}", cluster[0].name);
    let state = |kind: &str| at(&room, &format!("state/{kind}"));
    let redact = |event: &str| at(&room, &format!("redact/{}/3", escape(event)));
    let alias = format!("#missing:{}", cluster[0].name);
    check(vec![
        (
            &stranger,
            put.clone(),
            message.clone(),
            text.clone(),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            put.clone(),
            at(&unknown, "send/m.room.message/2"),
            text,
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            put.clone(),
            message.clone(),
            json!({"body": 1.5}),
            (400, "M_BAD_JSON"),
        ),
        (
            &alice,
            put.clone(),
            message.clone(),
            json!({"body": 9_007_199_254_740_992_u64}),
            (400, "M_BAD_JSON"),
        ),
        (&alice, put.clone(), message.clone(), json!([]), (400, "M_BAD_JSON")),
        (
            &alice,
            put.clone(),
            message.clone(),
            json!({"body": "x".repeat(65_000)}),
            (413, "M_TOO_LARGE"),
        ),
        (
            &alice,
            put.clone(),
            message,
            json!({"body": "x".repeat(1_100_000)}),
            (413, "M_TOO_LARGE"),
        ),
        (
            &bob,
            put.clone(),
            state("m.room.name"),
            json!({"name": "mine"}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &bob,
            put.clone(),
            state("m.room.power_levels/"),
            json!({"users": {}}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &stranger,
            put.clone(),
            state("m.room.name"),
            json!({"name": "mine"}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            put.clone(),
            state("m.room.create"),
            json!({}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            put.clone(),
            state("m.room.member/alice"),
            json!({"membership": "join"}),
            (400, "M_INVALID_PARAM"),
        ),
        (
            &alice,
            put.clone(),
            state("m.room.canonical_alias"),
            json!({"alias": alias}),
            (400, "M_BAD_ALIAS"),
        ),
        (
            &alice,
            put.clone(),
            state("m.room.canonical_alias"),
            json!({"alias": "x"}),
            (400, "M_INVALID_PARAM"),
        ),
        (&bob, put.clone(), redact(&event), json!({}), (403, "M_FORBIDDEN")),
        (&alice, put.clone(), redact("$nothing"), json!({}), (404, "M_NOT_FOUND")),
        (&stranger, put, redact(&event), json!({}), (403, "M_FORBIDDEN")),
    ])
    .await;
    // A duplicate key, which two parsers would read in two ways.
    let doubled = br#"{"msgtype":"m.text","body":"a","body":"b"}"#.to_vec();
    let response = alice
        .raw(Method::PUT, &at(&room, "send/m.room.message/4"), doubled)
        .await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn of_memberships() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let banned = cluster[0].register("banned").await;
    let room = create(&alice, json!({})).await;
    let public = create(&alice, json!({"preset": "public_chat"})).await;
    bob.post_ok(&at(&public, "join"), json!({})).await;
    alice
        .post_ok(&at(&public, "ban"), json!({"user_id": banned.user_id}))
        .await;
    let unknown = format!("!unknown:{}", cluster[0].name);
    let nobody = format!("@nobody:{}", cluster[0].name);
    let away = format!("#room:{}", cluster[1].name);
    let away_user = format!("@user:{}", cluster[1].name);
    cluster[1].go_down();
    let post = Method::POST;
    let of = |user: &str| json!({"user_id": user});
    check(vec![
        (&bob, post.clone(), at(&room, "join"), json!({}), (403, "M_FORBIDDEN")),
        (
            &banned,
            post.clone(),
            at(&public, "join"),
            json!({}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at("!nowhere", "join"),
            json!({}),
            (404, "M_NOT_FOUND"),
        ),
        (
            &alice,
            post.clone(),
            at(&unknown, "join"),
            json!({}),
            (404, "M_NOT_FOUND"),
        ),
        (
            &alice,
            post.clone(),
            client_path(&format!("join/{}", escape(&away))),
            json!({}),
            (502, "M_UNKNOWN"),
        ),
        (
            &alice,
            post.clone(),
            client_path("join/rubbish"),
            json!({}),
            (400, "M_BAD_JSON"),
        ),
        (
            &bob,
            post.clone(),
            at(&public, "kick"),
            of(&alice.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "kick"),
            of(&nobody),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "kick"),
            of(&banned.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "kick"),
            json!({}),
            (400, "M_BAD_JSON"),
        ),
        (
            &bob,
            post.clone(),
            at(&public, "ban"),
            of(&alice.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &bob,
            post.clone(),
            at(&room, "ban"),
            of(&alice.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "unban"),
            of(&bob.user_id),
            (403, "M_BAD_STATE"),
        ),
        (
            &bob,
            post.clone(),
            at(&public, "unban"),
            of(&banned.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "invite"),
            of(&bob.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "invite"),
            of(&banned.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&public, "invite"),
            of(&nobody),
            (404, "M_NOT_FOUND"),
        ),
        (
            &bob,
            post.clone(),
            at(&room, "invite"),
            of(&banned.user_id),
            (403, "M_FORBIDDEN"),
        ),
        (
            &bob,
            post.clone(),
            at(&room, "invite"),
            of(&away_user),
            (403, "M_FORBIDDEN"),
        ),
        (&bob, post.clone(), at(&room, "leave"), json!({}), (403, "M_FORBIDDEN")),
        (
            &banned,
            post.clone(),
            at(&public, "leave"),
            json!({}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            post.clone(),
            at(&unknown, "leave"),
            json!({}),
            (404, "M_NOT_FOUND"),
        ),
        (&alice, post.clone(), at(&room, "forget"), json!({}), (400, "M_UNKNOWN")),
        (&bob, post.clone(), at(&room, "forget"), json!({}), (404, "M_NOT_FOUND")),
        (
            &bob,
            post,
            client_path(&format!("knock/{}", escape(&room))),
            json!({}),
            (403, "M_FORBIDDEN"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn of_names_and_lists() {
    let cluster = Cluster::start(2).await;
    let [alice, bob] = [cluster[0].register("alice").await, cluster[0].register("bob").await];
    let room = create(&alice, json!({})).await;
    let other = create(&bob, json!({})).await;
    let name = |alias: &str, server: usize| {
        client_path(&format!(
            "directory/room/{}",
            escape(&format!("#{alias}:{}", cluster[server].name))
        ))
    };
    alice.put_ok(&name("tea", 0), json!({"room_id": room})).await;
    let list = |room: &str| client_path(&format!("directory/list/room/{}", escape(room)));
    let (get, put, delete) = (Method::GET, Method::PUT, Method::DELETE);
    let public = json!({"visibility": "public"});
    check(vec![
        (
            &alice,
            put.clone(),
            name("tea", 0),
            json!({"room_id": room}),
            (409, "M_UNKNOWN"),
        ),
        (
            &alice,
            put.clone(),
            name("tea", 1),
            json!({"room_id": room}),
            (400, "M_INVALID_PARAM"),
        ),
        (
            &alice,
            put.clone(),
            name("mine", 0),
            json!({"room_id": other}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            put.clone(),
            name("mine", 0),
            json!({"room_id": "!x:y"}),
            (403, "M_FORBIDDEN"),
        ),
        (&alice, put.clone(), name("mine", 0), json!({}), (400, "M_BAD_JSON")),
        (&bob, delete.clone(), name("tea", 0), Value::Null, (403, "M_FORBIDDEN")),
        (
            &bob,
            delete.clone(),
            name("missing", 0),
            Value::Null,
            (404, "M_NOT_FOUND"),
        ),
        (&bob, delete, name("tea", 1), Value::Null, (400, "M_INVALID_PARAM")),
        (&bob, get.clone(), name("missing", 0), Value::Null, (404, "M_NOT_FOUND")),
        (&bob, get.clone(), name("missing", 1), Value::Null, (404, "M_NOT_FOUND")),
        (
            &bob,
            get.clone(),
            at(&room, "aliases"),
            Value::Null,
            (403, "M_FORBIDDEN"),
        ),
        (&bob, get.clone(), list("!x:y"), Value::Null, (404, "M_NOT_FOUND")),
        (&bob, put.clone(), list(&room), public.clone(), (403, "M_FORBIDDEN")),
        (&bob, put.clone(), list("!x:y"), public, (404, "M_NOT_FOUND")),
        (
            &alice,
            put,
            list(&room),
            json!({"visibility": "banana"}),
            (400, "M_INVALID_PARAM"),
        ),
        (
            &bob,
            get,
            client_path("publicRooms?since=banana"),
            Value::Null,
            (400, "M_INVALID_PARAM"),
        ),
        (
            &bob,
            Method::POST,
            at(&room, "upgrade"),
            json!({"new_version": "12"}),
            (403, "M_FORBIDDEN"),
        ),
        (
            &alice,
            Method::POST,
            at(&room, "upgrade"),
            json!({"new_version": "9"}),
            (400, "M_UNSUPPORTED_ROOM_VERSION"),
        ),
    ])
    .await;
}
