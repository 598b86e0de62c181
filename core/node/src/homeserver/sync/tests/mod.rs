//! `/sync` through the routers of real nodes, and the reading of rooms beside it.

mod federated;
mod members;
mod observer;
mod property;
mod rooms;
mod sections;
mod waiting;

use serde_json::{Value, json};

use crate::testing::{Client, escape};

/// The answer to a `/sync` with these parameters.
async fn sync(client: &Client, since: Option<&Value>, parameters: &[(&str, &str)]) -> Value {
    client.get_ok(&sync_path(since, parameters)).await
}

fn sync_path(since: Option<&Value>, parameters: &[(&str, &str)]) -> String {
    let mut path = "/_matrix/client/v3/sync?timeout=0".to_owned();
    if let Some(since) = since {
        let token = since["next_batch"].as_str().unwrap();
        path.push_str(&format!("&since={}", escape(token)));
    }
    for (name, value) in parameters {
        path.push_str(&format!("&{name}={}", escape(value)));
    }
    path
}

async fn create(client: &Client, body: Value) -> String {
    let answer = client.post_ok("/_matrix/client/v3/createRoom", body).await;
    answer["room_id"].as_str().unwrap().to_owned()
}

/// The path of something in a room.
fn at(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room))
}

async fn send(client: &Client, room: &str, kind: &str, txn: &str, content: Value) -> String {
    let answer = client.put_ok(&at(room, &format!("send/{kind}/{txn}")), content).await;
    answer["event_id"].as_str().unwrap().to_owned()
}

/// Sends a text; the text is its transaction id too.
async fn say(client: &Client, room: &str, text: &str) -> String {
    let content = json!({ "msgtype": "m.text", "body": text });
    send(client, room, "m.room.message", &escape(text), content).await
}

async fn set(client: &Client, room: &str, kind: &str, state_key: &str, content: Value) -> String {
    let path = at(room, &format!("state/{kind}/{}", escape(state_key)));
    let answer = client.put_ok(&path, content).await;
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn join(client: &Client, room: &str) {
    client
        .post_ok(&format!("/_matrix/client/v3/join/{}", escape(room)), json!({}))
        .await;
}

async fn redact(client: &Client, room: &str, event: &str, txn: &str) -> String {
    let path = at(room, &format!("redact/{}/{txn}", escape(event)));
    let answer = client.put_ok(&path, json!({ "reason": "spam" })).await;
    answer["event_id"].as_str().unwrap().to_owned()
}

/// The ids of a list of events.
fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

/// The bodies of the messages in a list of events.
fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    let bodies = events.iter().filter_map(|event| event["content"]["body"].as_str());
    bodies.map(str::to_owned).collect()
}

/// Type and state key of each event in a list.
fn keys(events: &Value) -> Vec<(String, String)> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .map(|event| (text(&event["type"]), text(&event["state_key"])))
        .collect()
}

/// Whether a list of events has one of this type and state key.
/// Clients show when somebody was invited: they read it from the invited user's own member event, which is told whole.
#[track_caller]
fn assert_tells_when_invited(state: &Value, user: &str) {
    let own: Vec<_> = (state.as_array().unwrap().iter())
        .filter(|event| event["type"] == "m.room.member" && event["state_key"] == user)
        .collect();
    assert_eq!(own.len(), 1, "{state}");
    assert!(
        own[0]["origin_server_ts"].is_number() && own[0]["event_id"].is_string(),
        "{state}"
    );
}

fn has(events: &Value, kind: &str, state_key: &str) -> bool {
    keys(events).contains(&(kind.to_owned(), state_key.to_owned()))
}
