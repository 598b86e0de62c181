//! Clients as people hold them: each follows its user's rooms by `/sync` alone, from its last token on, through crashes of
//! its node, and keeps what it was told. It asks for nothing else but the timeline between two answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::Method;
use serde_json::Value;
use tokio::{sync::watch, time::sleep};

use crate::{
    checker::Finding,
    random::Dice,
    world::{Answer, Client, escape},
};

/// Events of one page of a timeline.
const PAGE: usize = 30;
/// Pages that a client turns at the most, to fill one hole.
const PAGES: usize = 400;

/// How a client asks.
#[derive(Debug, Clone, Copy)]
struct Way {
    filter: &'static str,
    /// Whether it takes state from the state section alone.
    after: bool,
    /// Whether members are left out until they speak.
    lazy: bool,
}

const WAYS: [Way; 3] = [
    Way {
        filter: r#"{"room":{"timeline":{"limit":20}}}"#,
        after: false,
        lazy: false,
    },
    Way {
        filter: r#"{"room":{"timeline":{"limit":3}}}"#,
        after: true,
        lazy: false,
    },
    Way {
        filter: r#"{"room":{"timeline":{"limit":6},"state":{"lazy_load_members":true}}}"#,
        after: false,
        lazy: true,
    },
];

/// A room as a client has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// The event under each key of the state.
    pub(crate) state: BTreeMap<(String, String), String>,
    /// The timeline since the client was given the room, oldest first.
    pub(crate) timeline: Vec<String>,
    /// Where what came before can be asked for.
    beginning: Option<String>,
}

/// The client.
pub(crate) struct Observer {
    /// Whose it is.
    pub(crate) client: Client,
    way: Way,
    dice: Dice,
    since: Option<String>,
    /// The rooms that it is in.
    pub(crate) rooms: BTreeMap<String, Seen>,
    /// Those that it is invited to.
    pub(crate) invited: BTreeSet<String>,
    /// Those on which it knocks.
    pub(crate) knocking: BTreeSet<String>,
    /// What it was told that cannot be.
    pub(crate) findings: Vec<Finding>,
}

impl Observer {
    /// One that knows nothing yet.
    pub(crate) fn new(client: Client, dice: Dice) -> Self {
        let way = WAYS[client.node % WAYS.len()];
        Self {
            client,
            way,
            dice,
            since: None,
            rooms: BTreeMap::new(),
            invited: BTreeSet::new(),
            knocking: BTreeSet::new(),
            findings: Vec::new(),
        }
    }

    /// Whether it is told the state after timelines, and need not make it of them.
    pub(crate) fn is_told_after(&self) -> bool {
        self.way.after
    }

    /// Whether it is told of all members.
    pub(crate) fn knows_members(&self) -> bool {
        !self.way.lazy
    }

    /// Follows until told to end, and then until nothing is new.
    pub(crate) async fn follow(mut self, mut ends: watch::Receiver<bool>) -> Self {
        while !*ends.borrow() {
            let timeout = self.dice.between(30_000, 600_000);
            tokio::select! {
                biased;
                _ = ends.changed() => break,
                told = self.step(timeout) => if told.is_none() {
                    sleep(Duration::from_secs(self.dice.between(2, 60))).await;
                },
            }
        }
        loop {
            let before = self.since.clone();
            if self.step(0).await.is_none() {
                self.find("", "its node does not answer in the end");
                return self;
            }
            if self.since == before {
                return self;
            }
        }
    }

    /// Asks once. Nothing is kept of an answer unless everything that belongs to it was there.
    async fn step(&mut self, timeout: u64) -> Option<()> {
        let mut path = format!(
            "/_matrix/client/v3/sync?timeout={timeout}&set_presence=offline&filter={}",
            escape(self.way.filter)
        );
        if self.way.after {
            path.push_str("&use_state_after=true");
        }
        if let Some(since) = &self.since {
            path.push_str(&format!("&since={}", escape(since)));
        }
        let answer = match self.client.ask(Method::GET, &path, None).await {
            Answer::Done(answer) => answer,
            Answer::Refused(code, body) => {
                self.find("", &format!("sync is refused: {code} {body}"));
                return None;
            }
            Answer::Unknown => return None,
        };
        let mut told = BTreeMap::new();
        for (room, joined) in object(&answer["rooms"]["join"]) {
            let timeline = &joined["timeline"];
            let mut events = ids(&timeline["events"]);
            if timeline["limited"] == true && self.rooms.contains_key(room) {
                let between = self.page_back(room, timeline["prev_batch"].as_str(), self.since.as_deref());
                events.splice(0..0, between.await?);
            }
            told.insert(room.clone(), events);
        }
        for (room, events) in told {
            self.keep(&room, &answer["rooms"]["join"][&room], events);
        }
        self.move_rooms(&answer["rooms"]);
        self.since = answer["next_batch"].as_str().map(str::to_owned);
        Some(())
    }

    /// Takes in which rooms it is not joined to.
    fn move_rooms(&mut self, rooms: &Value) {
        let sections = ["join", "invite", "knock", "leave"];
        for (section, room) in sections
            .iter()
            .flat_map(|name| object(&rooms[*name]).map(move |(room, _)| (*name, room)))
        {
            if section != "join" {
                // Who left and was invited again since it last asked is told of the invitation alone.
                self.rooms.remove(room);
            }
            let put = |set: &mut BTreeSet<String>, is: bool| match is {
                true => drop(set.insert(room.clone())),
                false => drop(set.remove(room)),
            };
            put(&mut self.invited, section == "invite");
            put(&mut self.knocking, section == "knock");
        }
    }

    fn keep(&mut self, id: &str, joined: &Value, events: Vec<String>) {
        let timeline = &joined["timeline"];
        let new = !self.rooms.contains_key(id);
        let mut seen = self.rooms.remove(id).unwrap_or_default();
        if new {
            seen.beginning = timeline["prev_batch"].as_str().map(str::to_owned);
        }
        for event in events {
            if seen.timeline.contains(&event) {
                self.find(id, &format!("is told of {event} again"));
            }
            seen.timeline.push(event);
        }
        let lists: Vec<&Value> = match joined.get("state_after") {
            Some(after) => vec![&after["events"]],
            None => vec![&joined["state"]["events"], &timeline["events"]],
        };
        for event in lists.into_iter().filter_map(Value::as_array).flatten() {
            if let Some(state_key) = event["state_key"].as_str() {
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                let id = event["event_id"].as_str().unwrap_or_default().to_owned();
                seen.state.insert((kind, state_key.to_owned()), id);
            }
        }
        self.rooms.insert(id.to_owned(), seen);
    }

    /// What was before the client was given a room, oldest first, and then all that it was told.
    pub(crate) async fn whole_timeline(&self, room: &str) -> Option<Vec<String>> {
        let seen = self.rooms.get(room)?;
        let mut events = match &seen.beginning {
            Some(beginning) => self.page_back(room, Some(beginning), None).await?,
            None => Vec::new(),
        };
        events.extend(seen.timeline.iter().cloned());
        Some(events)
    }

    /// The events of a room between two places, oldest first.
    async fn page_back(&self, room: &str, from: Option<&str>, to: Option<&str>) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let mut from = Some(from?.to_owned());
        let to = to.map_or(String::new(), |to| format!("&to={}", escape(to)));
        for _ in 0..PAGES {
            let Some(token) = from else { break };
            let path = format!(
                "/_matrix/client/v3/rooms/{}/messages?dir=b&limit={PAGE}&from={}{to}",
                escape(room),
                escape(&token)
            );
            let page = match self.client.ask(Method::GET, &path, None).await {
                Answer::Done(page) => page,
                // Removed from the room meanwhile: the next answer will tell.
                Answer::Refused(..) => break,
                Answer::Unknown => return None,
            };
            found.extend(ids(&page["chunk"]));
            from = page["end"].as_str().map(str::to_owned);
        }
        found.reverse();
        Some(found)
    }

    fn find(&mut self, room: &str, what: &str) {
        let user = &self.client.user;
        self.findings
            .push(Finding(format!("{room}: the client of {user}: {what}")));
    }
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// The ids of some events.
pub(crate) fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().into_iter().flatten();
    let ids = events.map(|event| event["event_id"].as_str().unwrap_or_default().to_owned());
    ids.collect()
}
