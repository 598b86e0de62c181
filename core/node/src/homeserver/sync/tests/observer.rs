//! A client that keeps what `/sync` tells it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{at, ids, sync};
use crate::testing::{Client, escape};

/// A room as a client has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// The event under each key of the state.
    pub(super) state: BTreeMap<(String, String), String>,
    /// The timeline since the client was given the room, oldest first.
    pub(super) timeline: Vec<String>,
}

/// The client.
pub(super) struct Observer {
    client: Client,
    parameters: Vec<(&'static str, String)>,
    last: Option<Value>,
    /// The rooms that it is in.
    pub(super) rooms: BTreeMap<String, Room>,
    /// Those that it is invited to.
    pub(super) invites: BTreeSet<String>,
}

impl Observer {
    /// A client that asks with these parameters.
    pub(super) fn new(client: &Client, parameters: &[(&'static str, &str)]) -> Self {
        Self {
            client: client.clone(),
            parameters: parameters
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            last: None,
            rooms: BTreeMap::new(),
            invites: BTreeSet::new(),
        }
    }

    /// Asks once and keeps the answer.
    pub(super) async fn step(&mut self) {
        let parameters: Vec<_> = self
            .parameters
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let answer = sync(&self.client, self.last.as_ref(), &parameters).await;
        let rooms = &answer["rooms"];
        for (room, invited) in object(&rooms["invite"]) {
            assert!(invited.is_object());
            // Who left and was invited again since the client last asked is told of the invitation alone.
            self.rooms.remove(room);
            self.invites.insert(room.clone());
        }
        for (room, _) in object(&rooms["leave"]) {
            self.rooms.remove(room);
            self.invites.remove(room);
        }
        for (room, joined) in object(&rooms["join"]) {
            self.invites.remove(room);
            self.keep(room, joined).await;
        }
        self.last = Some(answer);
    }

    async fn keep(&mut self, id: &str, joined: &Value) {
        let new = !self.rooms.contains_key(id);
        let timeline = &joined["timeline"];
        let mut told = ids(&timeline["events"]);
        if timeline["limited"] == true && !new {
            let hole = self.hole(id, timeline["prev_batch"].as_str().unwrap()).await;
            told.splice(0..0, hole);
        }
        let room = self.rooms.entry(id.to_owned()).or_default();
        room.timeline.extend(told);
        let lists: Vec<&Value> = match joined.get("state_after") {
            Some(after) => vec![&after["events"]],
            None => vec![&joined["state"]["events"], &timeline["events"]],
        };
        for event in lists.into_iter().filter_map(Value::as_array).flatten() {
            if let Some(state_key) = event["state_key"].as_str() {
                let key = (event["type"].as_str().unwrap().to_owned(), state_key.to_owned());
                room.state.insert(key, event["event_id"].as_str().unwrap().to_owned());
            }
        }
    }

    /// The events between the last answer and the timeline of this one, oldest first.
    async fn hole(&self, room: &str, prev_batch: &str) -> Vec<String> {
        let to = self.last.as_ref().unwrap()["next_batch"].as_str().unwrap();
        let mut found = Vec::new();
        let mut from = Some(prev_batch.to_owned());
        while let Some(token) = from {
            let query = format!("messages?dir=b&limit=3&from={}&to={}", escape(&token), escape(to));
            let page = self.client.get_ok(&at(room, &query)).await;
            found.extend(ids(&page["chunk"]));
            from = page["end"].as_str().map(str::to_owned);
        }
        found.reverse();
        found
    }
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
