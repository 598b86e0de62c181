//! Profiles, account data, tags, filters and the endpoints of what a node has none of, through the real router.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::testing::{Client, Cluster, assert_refused, escape};

fn of(user: &Client, rest: &str) -> String {
    format!("/_matrix/client/v3/user/{}/{rest}", escape(&user.user_id))
}

fn profile(user: &str, field: &str) -> String {
    format!("/_matrix/client/v3/profile/{}{field}", escape(user))
}

#[tokio::test]
async fn profiles_are_set_read_and_removed_here_and_from_elsewhere() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let fields = [
        ("displayname", json!("Alice 🦊")),
        ("avatar_url", json!("mxc://a/b")),
        ("m.tz", json!("Europe/Berlin")),
        ("org.example.pronouns", json!([{"language": "en", "summary": "she"}])),
    ];
    let mut whole = json!({});
    for (field, value) in fields {
        let path = profile(&alice.user_id, &format!("/{field}"));
        alice.put_ok(&path, json!({ field: value })).await;
        whole[field] = value;
        for client in [&alice, &bob] {
            assert_eq!(client.get_ok(&path).await, json!({ field: whole[field] }));
            assert_eq!(client.get_ok(&profile(&alice.user_id, "")).await, whole);
        }
    }
    let tz = profile(&alice.user_id, "/m.tz");
    assert_eq!(alice.delete(&tz).await.0, StatusCode::OK);
    alice
        .put_ok(&profile(&alice.user_id, "/displayname"), json!({"displayname": ""}))
        .await;
    for client in [&alice, &bob] {
        assert_refused(client.get(&tz).await, (404, "M_NOT_FOUND"));
        assert_eq!(client.get_ok(&profile(&alice.user_id, "/displayname")).await, json!({}));
    }
    let nobody = alice.user_id.replace("alice", "nobody");
    assert_refused(alice.get(&profile(&nobody, "")).await, (404, "M_NOT_FOUND"));
    assert_refused(bob.get(&profile(&nobody, "")).await, (404, "M_NOT_FOUND"));
    cluster[0].go_down();
    assert_eq!(bob.get(&profile(&alice.user_id, "")).await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn profiles_that_are_refused_change_nothing() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let long = "k".repeat(256);
    let cases = [
        ("displayname", json!({"displayname": 3}), (400, "M_BAD_JSON")),
        ("displayname", json!({}), (400, "M_BAD_JSON")),
        (
            "displayname",
            json!({"displayname": "x".repeat(1025)}),
            (400, "M_INVALID_PARAM"),
        ),
        (
            "avatar_url",
            json!({"avatar_url": "https://example.org/a.png"}),
            (400, "M_INVALID_PARAM"),
        ),
        (&long, json!({ &long: 1 }), (400, "M_KEY_TOO_LARGE")),
        (
            "org.example.big",
            json!({"org.example.big": "x".repeat(65_536)}),
            (400, "M_PROFILE_TOO_LARGE"),
        ),
    ];
    for (field, body, expected) in cases {
        assert_refused(
            alice.put(&profile(&alice.user_id, &format!("/{field}")), body).await,
            expected,
        );
    }
    let name = json!({"displayname": "Not me"});
    assert_refused(
        alice.put(&profile(&bob.user_id, "/displayname"), name).await,
        (403, "M_FORBIDDEN"),
    );
    assert_refused(
        alice.delete(&profile(&bob.user_id, "/displayname")).await,
        (403, "M_FORBIDDEN"),
    );
    // Every account starts with its own name to be shown by.
    for (user, name) in [(&alice, "alice"), (&bob, "bob")] {
        assert_eq!(
            alice.get_ok(&profile(&user.user_id, "")).await,
            json!({"displayname": name})
        );
    }
}

#[tokio::test]
async fn account_data_is_kept_for_its_owner_alone() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let room = "rooms/%21a%3Ab/";
    for (prefix, content) in [("", json!({"n": 1})), (room, json!({"n": 2})), (room, json!({"n": 3}))] {
        let path = of(&alice, &format!("{prefix}account_data/org.example"));
        alice.put_ok(&path, content.clone()).await;
        assert_eq!(alice.get_ok(&path).await, content);
    }
    let path = of(&alice, "account_data/org.example");
    for (who, path, body, expected) in [
        (&bob, path.clone(), json!({}), (403, "M_FORBIDDEN")),
        (
            &alice,
            of(&alice, "account_data/m.push_rules"),
            json!({}),
            (405, "M_BAD_JSON"),
        ),
        (
            &alice,
            of(&alice, "rooms/%21a%3Ab/account_data/m.fully_read"),
            json!({}),
            (405, "M_BAD_JSON"),
        ),
        (&alice, path.clone(), json!([]), (400, "M_BAD_JSON")),
        (
            &alice,
            of(&alice, &format!("account_data/{}", "k".repeat(256))),
            json!({}),
            (400, "M_INVALID_PARAM"),
        ),
    ] {
        assert_refused(who.put(&path, body).await, expected);
    }
    assert_refused(bob.get(&path).await, (403, "M_FORBIDDEN"));
    assert_refused(
        alice.get(&of(&alice, "account_data/org.other")).await,
        (404, "M_NOT_FOUND"),
    );

    cluster.nodes[0].restart().await;
    let again = cluster[0].login("alice").await;
    assert_eq!(again.get_ok(&path).await, json!({"n": 1}));
}

#[tokio::test]
async fn account_data_is_handed_out_in_the_order_of_change() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let store = &cluster[0].hs.context.store;
    let user = ruma::UserId::parse(&alice.user_id).unwrap();
    let before = *store.committed().borrow();
    for (kind, n) in [("a", 1), ("b", 2), ("a", 3)] {
        alice
            .put_ok(&of(&alice, &format!("account_data/{kind}")), json!({ "n": n }))
            .await;
    }
    alice
        .put_ok(&of(&alice, "rooms/%21a%3Ab/tags/u.x"), json!({"order": 0.5}))
        .await;
    let upto = *store.committed().borrow();
    let changed = store
        .read(move |txn| txn.account_data_between(&user, before, upto))
        .await
        .unwrap();
    let seen: Vec<_> = changed
        .iter()
        .map(|entry| (entry.room_id.is_some(), entry.kind.as_str(), entry.content.get()))
        .collect();
    assert_eq!(
        seen,
        [
            (false, "b", r#"{"n":2}"#),
            (false, "a", r#"{"n":3}"#),
            (true, "m.tag", r#"{"tags":{"u.x":{"order":0.5}}}"#)
        ]
    );
}

#[tokio::test]
async fn tags() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let room = of(&alice, "rooms/%21a%3Ab/tags");
    assert_eq!(alice.get_ok(&room).await, json!({"tags": {}}));
    alice
        .put_ok(&format!("{room}/m.favourite"), json!({"order": 0.25}))
        .await;
    alice.put_ok(&format!("{room}/u.work"), json!({})).await;
    assert_eq!(
        alice.get_ok(&room).await,
        json!({"tags": {"m.favourite": {"order": 0.25}, "u.work": {}}})
    );
    assert_eq!(alice.delete(&format!("{room}/m.favourite")).await.0, StatusCode::OK);
    assert_eq!(alice.delete(&format!("{room}/m.favourite")).await.0, StatusCode::OK);
    assert_eq!(alice.get_ok(&room).await, json!({"tags": {"u.work": {}}}));
    assert_refused(bob.get(&room).await, (403, "M_FORBIDDEN"));
    assert_refused(bob.put(&format!("{room}/u.x"), json!({})).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn filters() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let filter = json!({"room": {"timeline": {"limit": 5, "types": ["m.room.*"]}}});
    let create = of(&alice, "filter");
    let id = alice.post_ok(&create, filter.clone()).await["filter_id"].clone();
    assert_eq!(alice.post_ok(&create, filter.clone()).await["filter_id"], id);
    assert_ne!(alice.post_ok(&create, json!({})).await["filter_id"], id);
    let path = of(&alice, &format!("filter/{}", id.as_str().unwrap()));
    assert_eq!(alice.get_ok(&path).await, filter);
    assert_refused(bob.get(&path).await, (403, "M_FORBIDDEN"));
    for unknown in ["99", "x", "-1"] {
        assert_refused(
            alice.get(&of(&alice, &format!("filter/{unknown}"))).await,
            (404, "M_NOT_FOUND"),
        );
    }
    assert_refused(alice.post(&create, json!({"room": 3})).await, (400, "M_BAD_JSON"));
}

#[tokio::test]
async fn openid_tokens_prove_a_user_elsewhere() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let token = alice.post_ok(&of(&alice, "openid/request_token"), json!({})).await;
    assert_eq!(token["matrix_server_name"], cluster[0].name.as_str());
    assert_refused(
        bob.post(&of(&alice, "openid/request_token"), json!({})).await,
        (403, "M_FORBIDDEN"),
    );
    let ask = async |token: &Value| {
        let token = token["access_token"].as_str().unwrap().to_owned();
        let request = ruma::api::federation::openid::get_openid_userinfo::v1::Request::new(token);
        crate::federation::client::request(&cluster[1].hs.context, &cluster[0].name, request).await
    };
    assert_eq!(ask(&token).await.unwrap().sub, alice.user_id);
    cluster
        .clock
        .advance(Duration::from_secs(token["expires_in"].as_u64().unwrap()));
    assert!(ask(&token).await.is_err());
}

#[tokio::test]
async fn administrators_see_and_lock_accounts() {
    let cluster = Cluster::start(1).await;
    let admin = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let whois = |user: &Client| format!("/_matrix/client/v3/admin/whois/{}", escape(&user.user_id));
    let lock = |user: &str| format!("/_matrix/client/v1/admin/lock/{}", escape(user));
    assert!(
        admin.get_ok(&whois(&bob)).await["devices"]
            .get(&bob.device_id)
            .is_some()
    );
    bob.get_ok(&whois(&bob)).await;
    assert_refused(bob.get(&whois(&admin)).await, (403, "M_FORBIDDEN"));
    let body = json!({"locked": true});
    assert_refused(bob.put(&lock(&admin.user_id), body.clone()).await, (403, "M_FORBIDDEN"));
    assert_refused(
        admin.put(&lock(&admin.user_id), body.clone()).await,
        (403, "M_FORBIDDEN"),
    );
    assert_refused(
        admin.put(&lock("@x:elsewhere"), body.clone()).await,
        (400, "M_INVALID_PARAM"),
    );
    let nobody = bob.user_id.replace("bob", "nobody");
    assert_refused(admin.put(&lock(&nobody), body.clone()).await, (404, "M_NOT_FOUND"));
    admin.put_ok(&lock(&bob.user_id), body).await;
    assert_eq!(admin.get_ok(&lock(&bob.user_id)).await, json!({"locked": true}));
    assert_refused(bob.get(&whois(&bob)).await, (401, "M_USER_LOCKED"));
}

#[tokio::test]
async fn what_a_node_has_none_of() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let v3 = |path: &str| format!("/_matrix/client/v3/{path}");
    assert_eq!(alice.get_ok(&v3("account/3pid")).await, json!({"threepids": []}));
    assert_eq!(alice.get_ok(&v3("thirdparty/protocols")).await, json!({}));
    assert_eq!(alice.get_ok(&v3("voip/turnServer")).await["uris"], json!([]));
    assert_refused(alice.get(&v3("thirdparty/protocol/irc")).await, (404, "M_NOT_FOUND"));
    let email = json!({"client_secret": "s", "email": "a@b.c", "send_attempt": 1});
    let number = json!({"client_secret": "s", "country": "DE", "phone_number": "1", "send_attempt": 1});
    for (path, body, expected) in [
        ("account/3pid", json!({}), (403, "M_THREEPID_DENIED")),
        (
            "account/3pid/add",
            json!({"client_secret": "s", "sid": "1"}),
            (403, "M_THREEPID_DENIED"),
        ),
        (
            "account/3pid/email/requestToken",
            email.clone(),
            (403, "M_THREEPID_DENIED"),
        ),
        (
            "account/3pid/msisdn/requestToken",
            number.clone(),
            (403, "M_THREEPID_DENIED"),
        ),
        ("register/email/requestToken", email.clone(), (403, "M_THREEPID_DENIED")),
        (
            "account/password/email/requestToken",
            email,
            (400, "M_THREEPID_NOT_FOUND"),
        ),
        (
            "account/password/msisdn/requestToken",
            number,
            (400, "M_THREEPID_NOT_FOUND"),
        ),
    ] {
        assert_refused(alice.post(&v3(path), body).await, expected);
    }
    let forget = json!({"medium": "email", "address": "a@b.c"});
    let answer = alice.post_ok(&v3("account/3pid/delete"), forget).await;
    assert_eq!(answer, json!({"id_server_unbind_result": "no-support"}));
}
