//! Accounts as clients see them, through the real router and a real store.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    Homeserver,
    testing::{Client, Cluster, assert_refused},
};

const LOGIN: &str = "/_matrix/client/v3/login";
const REGISTER: &str = "/_matrix/client/v3/register";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn password(user: &str, password: &str) -> Value {
    json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password})
}

fn with_token(client: &Client, token: &str) -> Client {
    let mut client = client.clone();
    client.token = Some(token.to_owned());
    client
}

/// The cluster's first node with registration closed.
async fn closed() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    let mut context = cluster[0].hs.context.clone();
    let mut config = (*context.config).clone();
    config.open_registration = false;
    context.config = Arc::new(config);
    cluster.nodes[0].hs = Homeserver::new(context);
    cluster
}

#[tokio::test]
async fn requests_that_are_refused() {
    let cluster = Cluster::start(1).await;
    let node = &cluster[0];
    let alice = node.register("alice").await;
    let (nobody, dummy) = (node.client(), json!({"type": "m.login.dummy"}));
    let foreign = format!("@alice:{}", "y".repeat(52));
    let long = "a".repeat(250);
    let cases = [
        (LOGIN, json!({}), (400, "M_BAD_JSON")),
        (LOGIN, json!({"type": 3}), (400, "M_BAD_JSON")),
        (
            LOGIN,
            json!({"type": "m.login.password", "password": "secret"}),
            (400, "M_MISSING_PARAM"),
        ),
        (LOGIN, json!({"type": "m.login.smile"}), (400, "M_UNKNOWN")),
        (
            LOGIN,
            json!({"type": "m.login.application_service"}),
            (401, "M_MISSING_TOKEN"),
        ),
        (
            LOGIN,
            json!({"type": "m.login.token", "token": "x"}),
            (403, "M_FORBIDDEN"),
        ),
        (LOGIN, password("alice", "wrong"), (403, "M_FORBIDDEN")),
        (LOGIN, password("bob", "secret"), (403, "M_FORBIDDEN")),
        (LOGIN, password(&foreign, "secret"), (403, "M_FORBIDDEN")),
        (REGISTER, json!({"username": "alice"}), (400, "M_USER_IN_USE")),
        (REGISTER, json!({"username": "Alice"}), (400, "M_INVALID_USERNAME")),
        (REGISTER, json!({"username": "a b"}), (400, "M_INVALID_USERNAME")),
        (REGISTER, json!({"username": ""}), (400, "M_INVALID_USERNAME")),
        (REGISTER, json!({"username": long}), (400, "M_INVALID_USERNAME")),
        (
            REGISTER,
            json!({"username": "bob", "auth": dummy}),
            (400, "M_MISSING_PARAM"),
        ),
        (
            REGISTER,
            json!({"username": "bob", "password": "", "auth": dummy}),
            (400, "M_WEAK_PASSWORD"),
        ),
        (
            REGISTER,
            json!({"username": "bob", "password": "b", "auth": {"type": "m.login.dummy", "session": "unheard of"}}),
            (400, "M_UNKNOWN"),
        ),
        (
            REGISTER,
            json!({"username": "bob", "password": "b", "device_id": "", "auth": dummy}),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "/_matrix/client/v3/register?kind=guest",
            json!({}),
            (403, "M_GUEST_ACCESS_FORBIDDEN"),
        ),
        (
            "/_matrix/client/v3/refresh",
            json!({"refresh_token": "x"}),
            (401, "M_UNKNOWN_TOKEN"),
        ),
        ("/_matrix/client/v3/logout", json!({}), (401, "M_MISSING_TOKEN")),
        (
            "/_matrix/client/v3/account/password",
            json!({"new_password": "x"}),
            (401, "M_MISSING_TOKEN"),
        ),
        (
            "/_matrix/client/v3/no_such_endpoint",
            json!({}),
            (404, "M_UNRECOGNIZED"),
        ),
    ];
    for (path, body, expected) in cases {
        assert_refused(nobody.post(path, body).await, expected);
    }
    for (path, expected) in [
        (
            "/_matrix/client/v3/register/available?username=alice",
            (400, "M_USER_IN_USE"),
        ),
        (
            "/_matrix/client/v3/register/available?username=%C3%A9",
            (400, "M_INVALID_USERNAME"),
        ),
        (WHOAMI, (401, "M_MISSING_TOKEN")),
    ] {
        assert_refused(nobody.get(path).await, expected);
    }
    assert_refused(with_token(&alice, "x").get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    assert_refused(alice.get("/_matrix/client/v3/devices/NONE").await, (404, "M_NOT_FOUND"));
    assert_refused(
        alice.put("/_matrix/client/v3/devices/NONE", json!({})).await,
        (404, "M_NOT_FOUND"),
    );
    for (body, errcode) in [
        ("{", "M_NOT_JSON"),
        ("[]", "M_BAD_JSON"),
        (r#"{"type":"m.login.password""#, "M_NOT_JSON"),
    ] {
        let response = nobody.raw(Method::POST, LOGIN, body.into()).await;
        let answer = serde_json::from_slice(response.body()).unwrap();
        assert_refused((response.status(), answer), (400, errcode));
    }
    let big = vec![b' '; node.hs.context.config.max_body_bytes + 1];
    assert_eq!(
        nobody.raw(Method::POST, LOGIN, big).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
    // Nothing of this made an account or a device.
    assert_eq!(node.hs.accounts.users().await.unwrap().len(), 1);
    assert_eq!(
        alice.get_ok("/_matrix/client/v3/devices").await["devices"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn names_that_log_in() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for name in ["alice", "Alice", &alice.user_id] {
        let answer = cluster[0].client().post_ok(LOGIN, password(name, "secret")).await;
        assert_eq!(answer["user_id"], alice.user_id);
    }
    let old_style = json!({"type": "m.login.password", "user": "alice", "password": "secret"});
    cluster[0].client().post_ok(LOGIN, old_style).await;
}

#[tokio::test]
async fn registration_without_login_and_without_name() {
    let cluster = Cluster::start(1).await;
    let nobody = cluster[0].client();
    let (status, flows) = nobody.post(REGISTER, json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(flows["flows"], json!([{"stages": ["m.login.dummy"]}]));
    let auth = json!({"type": "m.login.dummy", "session": flows["session"]});
    let body = json!({"password": "p", "inhibit_login": true, "auth": auth});
    let answer = nobody.post_ok(REGISTER, body.clone()).await;
    assert!(
        answer.get("access_token").is_none() && answer["user_id"].is_string(),
        "{answer}"
    );
    // The session was for one account only.
    assert_refused(nobody.post(REGISTER, body).await, (400, "M_UNKNOWN"));
}

#[tokio::test]
async fn registration_by_token() {
    let cluster = closed().await;
    let (node, nobody) = (&cluster[0], cluster[0].client());
    let account = |name: &str, token: &str| json!({"username": name, "password": "p", "auth": {"type": "m.login.registration_token", "token": token}});
    assert_refused(nobody.post(REGISTER, account("alice", "x")).await, (403, "M_FORBIDDEN"));
    let day = Duration::from_secs(86_400);
    let token = node
        .hs
        .accounts
        .create_registration_token(Some(1), Some(day))
        .await
        .unwrap();
    let valid = format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}");
    assert_eq!(nobody.get_ok(&valid).await["valid"], true);
    assert_refused(
        nobody.post(REGISTER, account("alice", "x")).await,
        (401, "M_UNAUTHORIZED"),
    );
    let (_, flows) = nobody.post(REGISTER, json!({"auth": {"type": "m.login.dummy"}})).await;
    assert_eq!(flows["flows"], json!([{"stages": ["m.login.registration_token"]}]));
    nobody.post_ok(REGISTER, account("alice", &token)).await;
    assert_eq!(nobody.get_ok(&valid).await["valid"], false);
    assert_refused(
        nobody.post(REGISTER, account("bob", &token)).await,
        (403, "M_FORBIDDEN"),
    );

    let token = node
        .hs
        .accounts
        .create_registration_token(None, Some(day))
        .await
        .unwrap();
    nobody.post_ok(REGISTER, account("bob", &token)).await;
    nobody.post_ok(REGISTER, account("carol", &token)).await;
    cluster.clock.advance(day);
    assert_refused(
        nobody.post(REGISTER, account("dave", &token)).await,
        (403, "M_FORBIDDEN"),
    );
}

#[tokio::test]
async fn sessions_outlive_a_restart_and_end_with_logout() {
    let mut cluster = Cluster::start(1).await;
    let first = cluster[0].register("alice").await;
    let second = cluster[0].login("alice").await;
    cluster.nodes[0].restart().await;
    let again = |old: &Client| with_token(&cluster[0].client(), old.token.as_deref().unwrap());
    let (one, two) = (again(&first), again(&second));
    let me = one.get_ok(WHOAMI).await;
    assert_eq!(me, json!({"user_id": first.user_id, "device_id": first.device_id}));
    two.get_ok(WHOAMI).await;

    one.post_ok("/_matrix/client/v3/logout", json!({})).await;
    assert_refused(one.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    let devices = two.get_ok("/_matrix/client/v3/devices").await;
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    two.post_ok("/_matrix/client/v3/logout/all", json!({})).await;
    assert_refused(two.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
}

#[tokio::test]
async fn logging_in_on_a_known_device_replaces_its_session() {
    let cluster = Cluster::start(1).await;
    let old = cluster[0].register("alice").await;
    let mut login = password("alice", "secret");
    login["device_id"] = old.device_id.clone().into();
    let answer = cluster[0].client().post_ok(LOGIN, login).await;
    assert_eq!(answer["device_id"], old.device_id);
    assert_refused(old.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    with_token(&old, answer["access_token"].as_str().unwrap())
        .get_ok(WHOAMI)
        .await;
}

#[tokio::test]
async fn refreshing_keeps_the_old_pair_until_the_new_one_is_used() {
    let cluster = Cluster::start(1).await;
    let client = cluster[0].register("alice").await;
    let mut login = password("alice", "secret");
    login["refresh_token"] = true.into();
    let first = client.post_ok(LOGIN, login).await;
    let access = |pair: &Value| with_token(&client, pair["access_token"].as_str().unwrap());
    let refresh = async |pair: &Value| {
        let body = json!({"refresh_token": pair["refresh_token"]});
        client.post("/_matrix/client/v3/refresh", body).await
    };
    let lost = refresh(&first).await.1;
    let second = refresh(&first).await.1;
    assert_refused(access(&lost).get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    access(&first).get_ok(WHOAMI).await;
    access(&second).get_ok(WHOAMI).await;
    assert_refused(access(&first).get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    assert_refused(refresh(&first).await, (401, "M_UNKNOWN_TOKEN"));

    // A refresh token shows as well that its pair arrived.
    let third = refresh(&second).await.1;
    let fourth = refresh(&third).await.1;
    assert_refused(access(&second).get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    access(&fourth).get_ok(WHOAMI).await;

    cluster
        .clock
        .advance(Duration::from_millis(fourth["expires_in_ms"].as_u64().unwrap()));
    let (status, expired) = access(&fourth).get(WHOAMI).await;
    assert_eq!(expired["soft_logout"], true);
    assert_refused((status, expired), (401, "M_UNKNOWN_TOKEN"));
    let fifth = refresh(&fourth).await.1;
    access(&fifth).get_ok(WHOAMI).await;
    cluster.clock.advance(super::sessions::REFRESH_LIFETIME);
    assert_refused(refresh(&fifth).await, (401, "M_UNKNOWN_TOKEN"));
    client.get_ok(WHOAMI).await;
}

#[tokio::test]
async fn grave_steps_ask_for_the_password_again() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    cluster[0].register("bob").await;
    let token = "/_matrix/client/v1/login/get_token";
    let proof = |user: &str, secret: &str, session: &Value| {
        let mut auth = password(user, secret);
        if session.is_string() {
            auth["session"] = session.clone();
        }
        json!({ "auth": auth })
    };
    let (status, flows) = alice.post(token, json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(flows["flows"], json!([{"stages": ["m.login.password"]}]));
    let session = &flows["session"];
    for (user, secret) in [("alice", "wrong"), ("bob", "secret"), ("nobody", "secret")] {
        let (status, answer) = alice.post(token, proof(user, secret, session)).await;
        assert_eq!(&answer["session"], session);
        assert_refused((status, answer), (401, "M_FORBIDDEN"));
    }
    // A session begun for one step proves nothing for another.
    let elsewhere = json!({"devices": [alice.device_id], "auth": proof("alice", "secret", session)["auth"]});
    let delete = "/_matrix/client/v3/delete_devices";
    assert_refused(alice.post(delete, elsewhere).await, (400, "M_UNKNOWN"));

    let login_token = alice.post_ok(token, proof("alice", "secret", session)).await["login_token"].clone();
    assert_refused(
        alice.post(token, proof("alice", "secret", session)).await,
        (400, "M_UNKNOWN"),
    );
    let login = json!({"type": "m.login.token", "token": login_token});
    cluster[0].client().post_ok(LOGIN, login.clone()).await;
    assert_refused(cluster[0].client().post(LOGIN, login).await, (403, "M_FORBIDDEN"));

    let stale = alice.post_ok(token, proof("alice", "secret", &Value::Null)).await["login_token"].clone();
    cluster.clock.advance(Duration::from_secs(121));
    let login = json!({"type": "m.login.token", "token": stale});
    assert_refused(cluster[0].client().post(LOGIN, login).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn devices_are_listed_renamed_and_removed() {
    let cluster = Cluster::start(1).await;
    let one = cluster[0].register("alice").await;
    let (two, three) = (cluster[0].login("alice").await, cluster[0].login("alice").await);
    let path = format!("/_matrix/client/v3/devices/{}", two.device_id);
    one.put_ok(&path, json!({"display_name": "Laptop"})).await;
    one.put_ok(&path, json!({})).await;
    assert_eq!(one.get_ok(&path).await["display_name"], "Laptop");
    let long = json!({"display_name": "x".repeat(2000)});
    assert_refused(one.put(&path, long).await, (400, "M_INVALID_PARAM"));

    assert_eq!(one.delete(&path).await.0, StatusCode::UNAUTHORIZED);
    two.get_ok(WHOAMI).await;
    let proof = json!({"auth": password("alice", "secret")});
    let response = one.raw(Method::DELETE, &path, proof.to_string().into_bytes()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_refused(two.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));

    let body = json!({"devices": [three.device_id, "NONE"], "auth": password("alice", "secret")});
    one.post_ok("/_matrix/client/v3/delete_devices", body).await;
    assert_refused(three.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    one.get_ok(WHOAMI).await;
}

#[tokio::test]
async fn changing_the_password_and_giving_the_account_up() {
    let cluster = Cluster::start(1).await;
    let one = cluster[0].register("alice").await;
    let two = cluster[0].login("alice").await;
    let path = "/_matrix/client/v3/account/password";
    let change = |new: &str, old: &str, others: bool| json!({"new_password": new, "logout_devices": others, "auth": password("alice", old)});
    one.post_ok(path, change("second", "secret", false)).await;
    two.get_ok(WHOAMI).await;
    assert_refused(
        one.post(path, change("third", "secret", true)).await,
        (401, "M_FORBIDDEN"),
    );
    one.post_ok(path, change("third", "second", true)).await;
    assert_refused(two.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    one.get_ok(WHOAMI).await;

    let deactivate = "/_matrix/client/v3/account/deactivate";
    assert_eq!(one.post(deactivate, json!({})).await.0, StatusCode::UNAUTHORIZED);
    one.post_ok(deactivate, json!({"auth": password("alice", "third")}))
        .await;
    assert_refused(one.get(WHOAMI).await, (401, "M_UNKNOWN_TOKEN"));
    assert_refused(one.post(LOGIN, password("alice", "third")).await, (403, "M_FORBIDDEN"));
    assert_refused(
        one.post(REGISTER, json!({"username": "alice"})).await,
        (400, "M_USER_IN_USE"),
    );
}

#[tokio::test]
async fn guessing_is_slowed_down_and_locked_accounts_say_so() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for _ in 0..10 {
        assert_refused(
            alice.post(LOGIN, password("alice", "guess")).await,
            (403, "M_FORBIDDEN"),
        );
    }
    let body = password("alice", "secret").to_string();
    let response = alice.raw(Method::POST, LOGIN, body.into()).await;
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    let retry_after = answer["retry_after_ms"].as_u64().unwrap();
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    assert_refused((response.status(), answer), (429, "M_LIMIT_EXCEEDED"));
    alice.get_ok(WHOAMI).await;
    cluster.clock.advance(Duration::from_millis(retry_after));
    alice.post_ok(LOGIN, password("alice", "secret")).await;

    let accounts = &cluster[0].hs.accounts;
    let user_id = ruma::UserId::parse(&alice.user_id).unwrap();
    accounts.set_locked(&user_id, true).await.unwrap();
    let (status, answer) = alice.get(WHOAMI).await;
    assert_eq!(answer["soft_logout"], true);
    assert_refused((status, answer), (401, "M_USER_LOCKED"));
    assert_refused(
        alice.post(LOGIN, password("alice", "secret")).await,
        (401, "M_USER_LOCKED"),
    );
    accounts.set_locked(&user_id, false).await.unwrap();
    alice.get_ok(WHOAMI).await;
}

#[tokio::test]
async fn what_a_client_discovers() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let versions = cluster[0].client().get_ok("/_matrix/client/versions").await;
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.11")));
    let capabilities = alice.get_ok("/_matrix/client/v3/capabilities").await;
    assert_eq!(capabilities["capabilities"]["m.room_versions"]["default"], "12");
    assert_eq!(capabilities["capabilities"]["m.get_login_token"]["enabled"], true);
    let flows = alice.get_ok(LOGIN).await;
    assert_eq!(
        flows["flows"],
        json!([{"type": "m.login.password"}, {"type": "m.login.token", "get_login_token": true}])
    );
    assert_refused(alice.get("/.well-known/matrix/client").await, (404, "M_NOT_FOUND"));
}
