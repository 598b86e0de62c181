//! Servers that ask for what they may not have, and servers that lie. Nothing changes here, and clients get an answer.

use http::{Method, StatusCode};
use kith_engine::{Expected, Signer, build_on_template, json::parse_object};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, RoomId, RoomVersionId, UserId, events::room::member::MembershipState,
};
use serde_json::{Value, json};

use super::{super::member::member_draft, at, create, joined};
use crate::testing::{Client, Cluster, Node, assert_refused, escape};

fn make(what: &str, room: &str, user: &str, versions: &str) -> String {
    format!(
        "/_matrix/federation/v1/make_{what}/{}/{}{versions}",
        escape(room),
        escape(user)
    )
}

fn send(what: &str, room: &str, event: &str) -> String {
    let version = if what == "knock" { "v1" } else { "v2" };
    format!(
        "/_matrix/federation/{version}/send_{what}/{}/{}",
        escape(room),
        escape(event)
    )
}

const VERSIONS: &str = "?ver=10&ver=11&ver=12";

/// Completes a template as an honest server would, after `change`.
fn complete(
    node: &Node,
    template: &Value,
    membership: MembershipState,
    change: impl FnOnce(&mut CanonicalJsonObject),
) -> (String, Value) {
    let mut template = parse_object(&template["event"].to_string()).unwrap();
    change(&mut template);
    let text = |template: &CanonicalJsonObject, field: &str| template[field].as_str().unwrap().to_owned();
    let (room, user) = (text(&template, "room_id"), text(&template, "sender"));
    let context = &node.hs.context;
    let signer = Signer {
        server: &context.server_name,
        key: &*context.node_key,
    };
    let expected = Expected {
        room: <&RoomId>::try_from(room.as_str()).unwrap(),
        user: <&UserId>::try_from(user.as_str()).unwrap(),
        membership,
    };
    let now = context.world.now();
    let event = build_on_template(
        &template,
        &RoomVersionId::V12,
        &expected,
        CanonicalJsonObject::new(),
        signer,
        now,
    )
    .unwrap();
    (
        event.event_id().to_string(),
        serde_json::from_str(event.pdu().json()).unwrap(),
    )
}

async fn two() -> (Cluster, Client, Client) {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[1].register("bob").await);
    (cluster, alice, bob)
}

#[tokio::test]
async fn templates_are_for_those_who_may_have_them() {
    let (cluster, alice, bob) = two().await;
    let public = create(&alice, json!({"preset": "public_chat"})).await;
    let private = create(&alice, json!({})).await;
    let own = create(&bob, json!({"preset": "public_chat"})).await;
    let (room, user) = (public.as_str(), bob.user_id.as_str());
    let cases = [
        (make("join", room, user, VERSIONS), (200, "")),
        (
            make("join", room, user, "?ver=1&ver=11"),
            (400, "M_INCOMPATIBLE_ROOM_VERSION"),
        ),
        (make("join", room, user, ""), (400, "M_INCOMPATIBLE_ROOM_VERSION")),
        (make("join", room, &alice.user_id, VERSIONS), (403, "M_FORBIDDEN")),
        (make("join", &private, user, VERSIONS), (403, "M_FORBIDDEN")),
        (make("join", &own, user, VERSIONS), (404, "M_NOT_FOUND")),
        (make("join", "!nowhere", user, VERSIONS), (404, "M_NOT_FOUND")),
        (make("join", room, "bob", VERSIONS), (400, "M_BAD_JSON")),
        (make("leave", room, user, ""), (403, "M_FORBIDDEN")),
        (make("leave", "!nowhere", user, ""), (404, "M_NOT_FOUND")),
        (make("knock", room, user, VERSIONS), (403, "M_FORBIDDEN")),
        (make("knock", &private, user, VERSIONS), (403, "M_FORBIDDEN")),
    ];
    for (path, expected) in cases {
        let (status, answer) = cluster[1].ask(&cluster[0], Method::GET, &path, Value::Null).await;
        let found = (status.as_u16(), answer["errcode"].as_str().unwrap_or(""));
        assert_eq!(found, expected, "{path}: {answer}");
        if expected.1 == "M_INCOMPATIBLE_ROOM_VERSION" {
            assert_eq!(answer["room_version"], "12");
        }
    }
    // Without a hello there is no answer at all.
    let router = crate::federation::router(cluster[0].hs.clone());
    let request = http::Request::get(make("join", room, user, VERSIONS));
    let response = tower::ServiceExt::oneshot(router, request.body(axum::body::Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn joins_that_are_none() {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let other = create(&alice, json!({"preset": "public_chat"})).await;
    let path = make("join", &room, &bob.user_id, VERSIONS);
    let (_, template) = cluster[1].ask(&cluster[0], Method::GET, &path, Value::Null).await;
    let (id, good) = complete(&cluster[1], &template, MembershipState::Join, |_| ());
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut event = good.clone();
        change(&mut event);
        event
    };
    let (leave_id, leave) = complete(&cluster[1], &template, MembershipState::Leave, |template| {
        let content =
            CanonicalJsonObject::from([("membership".to_owned(), CanonicalJsonValue::String("leave".to_owned()))]);
        template.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    });
    let (orphan_id, orphan) = complete(&cluster[1], &template, MembershipState::Join, |template| {
        let nothing = CanonicalJsonValue::String(format!("${}", "a".repeat(43)));
        template.insert("prev_events".to_owned(), CanonicalJsonValue::Array(vec![nothing]));
    });
    let signature = |event: &mut Value| {
        let signatures = event["signatures"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .next()
            .unwrap();
        let signature = signatures.as_object_mut().unwrap().values_mut().next().unwrap();
        *signature = json!("A".repeat(86));
    };
    let cases = [
        (send("join", &room, &id), changed(&signature), 400),
        (
            send("join", &room, &id),
            changed(&|event| event["signatures"] = json!({})),
            400,
        ),
        (
            send("join", &room, &id),
            changed(&|event| event["content"]["displayname"] = json!("Eve")),
            400,
        ),
        (
            send("join", &room, &id),
            changed(&|event| event["sender"] = json!(alice.user_id)),
            400,
        ),
        (
            send("join", &room, &id),
            changed(&|event| event["depth"] = json!("deep")),
            400,
        ),
        (send("join", &room, &id), json!({}), 400),
        (send("join", &room, &id), json!([]), 400),
        (send("join", &room, &format!("${}", "a".repeat(43))), good.clone(), 400),
        (send("join", &other, &id), good.clone(), 400),
        (send("join", "!nowhere", &id), good.clone(), 404),
        (send("join", &room, &leave_id), leave.clone(), 400),
        (send("leave", &room, &id), good.clone(), 400),
        (send("leave", &room, &leave_id), leave, 403),
        (send("knock", &room, &id), good.clone(), 400),
        (send("join", &room, &orphan_id), orphan, 404),
    ];
    for (path, body, expected) in cases {
        let shown = format!("{path} {body}");
        let (status, answer) = cluster[1].ask(&cluster[0], Method::PUT, &path, body).await;
        assert_eq!(status.as_u16(), expected, "{shown}: {answer}");
        let members = alice.get_ok(&at(&room, "joined_members")).await;
        assert_eq!(members["joined"].as_object().unwrap().len(), 1, "{shown}");
    }
    // The genuine one is taken, and taken alike when it comes again.
    let first = cluster[1]
        .ask(&cluster[0], Method::PUT, &send("join", &room, &id), good.clone())
        .await;
    assert_eq!(first.0, StatusCode::OK);
    assert_eq!(
        cluster[1]
            .ask(&cluster[0], Method::PUT, &send("join", &room, &id), good)
            .await,
        first
    );
    let members = alice.get_ok(&at(&room, "joined_members")).await;
    assert_eq!(members["joined"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn invites_that_are_none() {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({})).await;
    // An honest invite, caught on its way.
    let user = |user: &str| UserId::parse(user).unwrap();
    let membership = MembershipState::Invite;
    let draft = member_draft(
        &user(&alice.user_id),
        &user(&bob.user_id),
        &membership,
        None,
        Default::default(),
    );
    let room_id = RoomId::parse(&room).unwrap();
    let (event, state) = cluster[0].hs.rooms.build_invitation(&room_id, draft).await.unwrap();
    let id = event.event_id().to_string();
    let body = json!({"room_version": "12", "event": event.pdu().to_raw(), "invite_room_state": state});
    let path = |room: &str, id: &str| format!("/_matrix/federation/v2/invite/{}/{}", escape(room), escape(id));
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut body = body.clone();
        change(&mut body);
        body
    };
    let cases = [
        (
            path(&room, &id),
            changed(&|body| body["room_version"] = json!("9")),
            (400, "M_INCOMPATIBLE_ROOM_VERSION"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["room_version"] = json!("11")),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["event"]["signatures"] = json!({})),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["event"]["content"]["membership"] = json!("join")),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["event"]["type"] = json!("m.room.name")),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["invite_room_state"] = json!([])),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["invite_room_state"][0]["content"]["x"] = json!(1)),
            (400, "M_INVALID_PARAM"),
        ),
        (
            path(&room, &id),
            changed(&|body| body["invite_room_state"][1]["content"] = json!(1.5)),
            (400, "M_INVALID_PARAM"),
        ),
        (path("!nowhere", &id), body.clone(), (400, "M_INVALID_PARAM")),
        (path(&room, "$other"), body.clone(), (400, "M_INVALID_PARAM")),
        (path(&room, &id), json!({}), (400, "M_BAD_JSON")),
    ];
    for (path, body, expected) in cases {
        let shown = format!("{path} {body}");
        let refused = cluster[0].ask(&cluster[1], Method::PUT, &path, body).await;
        let found = (refused.0.as_u16(), refused.1["errcode"].as_str().unwrap_or(""));
        assert_eq!(found, expected, "{shown}: {}", refused.1);
        assert_refused(bob.post(&at(&room, "leave"), json!({})).await, (404, "M_NOT_FOUND"));
    }
    // Nobody of that name.
    let nobody = format!("@nobody:{}", cluster[1].name);
    let invite = alice.post(&at(&room, "invite"), json!({"user_id": nobody})).await;
    assert_refused(invite, (403, "M_FORBIDDEN"));
    let first = cluster[0]
        .ask(&cluster[1], Method::PUT, &path(&room, &id), body.clone())
        .await;
    assert_eq!(first.0, StatusCode::OK);
    assert_eq!(
        cluster[0].ask(&cluster[1], Method::PUT, &path(&room, &id), body).await,
        first
    );
}

/// A resident that lies when it is asked to let somebody in: the join fails, and the truth still works afterwards.
#[tokio::test]
async fn residents_that_lie() {
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 14] = [
        ("/make_join/", |answer| answer["room_version"] = Value::Null),
        ("/make_join/", |answer| answer["room_version"] = json!("11")),
        ("/make_join/", |answer| {
            answer["event"]["sender"] = json!("@eve:nowhere")
        }),
        ("/make_join/", |answer| {
            answer["event"]["state_key"] = json!("@eve:nowhere")
        }),
        ("/make_join/", |answer| answer["event"]["room_id"] = json!("!nowhere")),
        ("/make_join/", |answer| answer["event"]["type"] = json!("m.room.name")),
        ("/make_join/", |answer| {
            answer["event"]["content"]["membership"] = json!("ban")
        }),
        ("/make_join/", |answer| *answer = json!({})),
        ("/send_join/", |answer| *answer = json!([])),
        ("/send_join/", |answer| answer["state"] = json!([])),
        ("/send_join/", |answer| {
            let public = |event: &Value| event["type"] != "m.room.join_rules";
            for list in ["state", "auth_chain"] {
                answer[list].as_array_mut().unwrap().retain(public);
            }
        }),
        ("/send_join/", |answer| {
            for list in ["state", "auth_chain"] {
                let events = answer[list].as_array_mut().unwrap().iter_mut();
                // Nothing else changes: the signatures no longer hold, so the event is left out, and then missed.
                events.for_each(|event| event["origin_server_ts"] = json!(1));
            }
        }),
        ("/send_join/", |answer| {
            for list in ["state", "auth_chain"] {
                answer[list]
                    .as_array_mut()
                    .unwrap()
                    .retain(|event| event["type"] != "m.room.create");
            }
        }),
        ("/send_join/", |answer| {
            let create = answer["state"][0].clone();
            answer["event"] = create;
        }),
    ];
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({"preset": "public_chat"})).await;
    let join = format!("/_matrix/client/v3/join/{}?via={}", escape(&room), cluster[0].name);
    for (place, (part, lie)) in lies.into_iter().enumerate() {
        cluster.wires.lie(part, lie);
        let (status, answer) = bob.post(&join, json!({})).await;
        assert!(!status.is_success(), "lie {place}: {answer}");
        assert!(answer["errcode"].is_string(), "lie {place}: {answer}");
        assert!(joined(&bob).await.is_empty(), "lie {place}");
        cluster.wires.be_honest();
    }
    bob.post_ok(&join, json!({})).await;
    assert_eq!(joined(&bob).await, [room]);
}

/// An invited server that does not sign what it was sent.
#[tokio::test]
async fn invited_servers_that_lie() {
    let (cluster, alice, bob) = two().await;
    let room = create(&alice, json!({})).await;
    let invite = json!({"user_id": bob.user_id});
    type Lie = fn(&mut Value);
    let lies: [Lie; 4] = [
        |answer| answer["event"]["content"]["membership"] = json!("join"),
        |answer| answer["event"]["signatures"] = json!({}),
        |answer| answer["event"] = json!({}),
        |answer| *answer = json!({}),
    ];
    for (place, lie) in lies.into_iter().enumerate() {
        cluster.wires.lie("/invite/", lie);
        assert_refused(
            alice.post(&at(&room, "invite"), invite.clone()).await,
            (502, "M_UNKNOWN"),
        );
        let member = alice
            .get(&at(&room, &format!("state/m.room.member/{}", bob.user_id)))
            .await;
        assert_refused(member, (404, "M_NOT_FOUND"));
        assert!(joined(&alice).await.contains(&room), "lie {place}");
        cluster.wires.be_honest();
    }
    alice.post_ok(&at(&room, "invite"), invite).await;
}
