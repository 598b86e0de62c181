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

#[tokio::test]
async fn no_notifications_yet() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let path = "/_matrix/client/v3/notifications";
    assert_eq!(alice.get_ok(path).await, json!({"notifications": []}));
    assert_refused(alice.get(&format!("{path}?from=x")).await, (400, "M_INVALID_PARAM"));
}
