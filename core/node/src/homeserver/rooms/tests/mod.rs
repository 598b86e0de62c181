//! The rooms service through the routers of real nodes.

mod boundaries;
mod entries;
mod federated;
mod healing;
mod local;
mod refusals;
mod spaces;
mod strangers;

use serde_json::{Value, json};

use crate::testing::{Client, escape};

/// Makes a room and gives its id.
async fn create(client: &Client, body: Value) -> String {
    let answer = client.post_ok("/_matrix/client/v3/createRoom", body).await;
    answer["room_id"].as_str().unwrap().to_owned()
}

/// The path of something in a room.
fn at(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", escape(room))
}

/// Sends a text and gives the event's id.
async fn say(client: &Client, room: &str, txn: &str, text: &str) -> String {
    let path = at(room, &format!("send/m.room.message/{txn}"));
    let answer = client.put_ok(&path, json!({"msgtype": "m.text", "body": text})).await;
    answer["event_id"].as_str().unwrap().to_owned()
}

/// The rooms that a client's user is joined to.
async fn joined(client: &Client) -> Vec<String> {
    let answer = client.get_ok("/_matrix/client/v3/joined_rooms").await;
    serde_json::from_value(answer["joined_rooms"].clone()).unwrap()
}
