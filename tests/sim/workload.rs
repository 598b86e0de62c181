//! The people: each has a device on a node, and creates, joins, leaves, invites, removes, writes, takes back and appoints,
//! whatever state the world is in. They know each other's rooms by hearsay, and trust no answer but 200.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    random::Dice,
    world::{Answer, Client, World, escape},
};

/// Rooms that people make in one run at the most.
const MAX_ROOMS: usize = 4;
/// The same, with those that took the place of others.
const MAX_WITH_UPGRADES: usize = 6;
/// How often a client repeats a message that was not acknowledged.
const ATTEMPTS: usize = 8;
/// Out of a hundred acts of somebody who has banned someone, so many take that back: bans are rare, and each is to be taken back
/// in some part of the world while another does not know of it.
const FORGIVENESS: u32 = 40;

/// What people do, by the name under which it is counted and the part of a request's path that tells it.
const ACTS: [(&str, &str); 13] = [
    ("creates", "/createRoom"),
    ("joins", "/v3/join/"),
    ("knocks", "/v3/knock/"),
    ("leaves", "/leave"),
    ("invites", "/invite"),
    ("kicks", "/kick"),
    ("bans", "/ban"),
    ("unbans", "/unban"),
    ("powers", "/state/m.room.power_levels"),
    ("topics", "/state/m.room.topic"),
    ("upgrades", "/upgrade"),
    ("redacts", "/redact/"),
    ("sends", "/send/"),
];

/// The names of everything that people do: every set of runs must see each done in a split world.
pub(crate) fn acts() -> impl Iterator<Item = &'static str> {
    ACTS.into_iter().map(|(name, _)| name)
}

/// A message that a node has acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Its room.
    pub(crate) room: String,
    /// Its event.
    pub(crate) event: String,
    /// Who sent it.
    pub(crate) user: String,
}

/// A room that people have heard of.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// Its id.
    pub(crate) id: String,
    /// A server that was in it.
    pub(crate) via: String,
    /// Whether it is the one in which everybody is from the start, and most stay.
    pub(crate) main: bool,
    /// Whether strangers knock on it.
    knocks: bool,
}

/// What the people have done and know. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Society(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    users: Vec<String>,
    rooms: Vec<Known>,
    sent: Vec<Sent>,
    done: u64,
    /// What was done while the world was split.
    split: BTreeMap<&'static str, u64>,
}

impl Society {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every room there is.
    pub(crate) fn rooms(&self) -> Vec<Known> {
        self.lock().rooms.clone()
    }

    /// Every acknowledged message.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.lock().sent.clone()
    }

    /// How many requests were answered with 200.
    pub(crate) fn done(&self) -> u64 {
        self.lock().done
    }

    /// How often each act was done while the world was split.
    pub(crate) fn split(&self) -> BTreeMap<&'static str, u64> {
        self.lock().split.clone()
    }

    fn users(&self) -> Vec<String> {
        self.lock().users.clone()
    }
}

/// One of the people.
pub(crate) struct Person {
    client: Client,
    number: usize,
    /// Whether the others may remove this one from the main room.
    drifter: bool,
    society: Society,
    server: String,
    dice: Dice,
    transactions: u64,
    /// What this one wrote: room and event.
    own: Vec<(String, String)>,
    /// Whom this one has banned.
    banned: Vec<(Known, String)>,
}

/// Makes one user on every node, and the room in which all of them are.
pub(crate) async fn settle(world: &Arc<World>, seed: u64) -> Vec<Person> {
    let society = world.society.clone();
    let mut people = Vec::new();
    for (number, node) in world.nodes.iter().enumerate() {
        let client = Client::register(world, number, &format!("user{number}")).await;
        society.lock().users.push(client.user.clone());
        people.push(Person {
            client,
            number,
            drifter: number * 3 >= world.nodes.len() * 2,
            society: society.clone(),
            server: node.name.to_string(),
            dice: Dice::new(seed, &format!("person {number}")),
            transactions: 0,
            own: Vec::new(),
            banned: Vec::new(),
        });
    }
    people[0].create(true).await;
    let room = society.rooms().remove(0);
    people[0].empower(&room).await;
    for person in &people[1..] {
        let joined = person.join(&room).await;
        assert!(matches!(joined, Answer::Done(_)), "nothing is wrong yet: {joined:?}");
    }
    people
}

/// Parts a quiet world in two, and has somebody on either side name the main room, so that every run ends with a conflict that
/// nothing but the resolution of states settles.
pub(crate) async fn dispute(world: &World, people: &[Person]) {
    let Some(room) = world.society.rooms().into_iter().find(|room| room.main) else {
        return;
    };
    let (even, odd): (Vec<&Person>, Vec<&Person>) = people.iter().partition(|person| person.number % 2 == 0);
    let across = even.iter().flat_map(|a| odd.iter().map(|b| (a.number, b.number)));
    world.wires.part(across);
    for side in [even, odd] {
        for person in side {
            let topic = json!({"topic": format!("the last word of {}", person.number)});
            let named = person.in_room(&room, Method::PUT, "state/m.room.topic", topic).await;
            if matches!(named, Answer::Done(_)) {
                break;
            }
        }
    }
    world.wires.part([]);
    world.wires.reconnect();
}

impl Person {
    /// Does this and that until a time.
    pub(crate) async fn live(mut self, until: Instant) -> Self {
        loop {
            sleep(Duration::from_millis(self.dice.between(5_000, 420_000))).await;
            if Instant::now() >= until {
                return self;
            }
            self.act().await;
        }
    }

    async fn act(&mut self) {
        let joined = self.joined_rooms().await;
        let rooms = self.society.rooms();
        let known: Vec<&Known> = rooms.iter().filter(|room| joined.contains(&room.id)).collect();
        let away: Vec<&Known> = rooms.iter().filter(|room| !joined.contains(&room.id)).collect();
        let here = self.dice.choose(&known).copied();
        if !self.banned.is_empty() && self.dice.percent(FORGIVENESS) {
            return self.unban().await;
        }
        match (self.dice.between(0, 99), here) {
            (0..=3, _) if rooms.len() < MAX_ROOMS => self.create(false).await,
            (0..=14, _) if !away.is_empty() => {
                if let Some(room) = self.dice.choose(&away) {
                    self.enter(room).await;
                }
            }
            (15..=18, Some(room)) if !room.main || self.drifter => {
                self.in_room(room, Method::POST, "leave", json!({})).await;
            }
            (19..=25, Some(room)) => self.on_someone(room, "invite").await,
            (26..=27, Some(room)) => self.on_someone(room, "kick").await,
            (28..=30, Some(room)) => self.on_someone(room, "ban").await,
            (31..=34, Some(room)) => self.appoint(room).await,
            (35..=40, Some(room)) => {
                let topic = json!({"topic": format!("{} by {}", self.dice.between(0, 9_999), self.number)});
                self.in_room(room, Method::PUT, "state/m.room.topic", topic).await;
            }
            (41..=46, _) => self.redact().await,
            (47..=52, Some(room)) if !room.main && room.via == self.server && rooms.len() < MAX_WITH_UPGRADES => {
                self.upgrade(room).await;
            }
            (_, Some(room)) => {
                for _ in 0..self.dice.between(1, 3) {
                    self.write(room).await;
                }
            }
            _ => {}
        }
    }

    /// Asks, and counts what was done.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let act = ACTS
            .into_iter()
            .find(|(_, part)| method != Method::GET && path.contains(part));
        let answer = self.client.ask(method, path, body).await;
        if matches!(answer, Answer::Done(_)) {
            let mut society = self.society.lock();
            society.done += 1;
            if let Some((act, _)) = act.filter(|_| self.client.is_world_split()) {
                *society.split.entry(act).or_default() += 1;
            }
        }
        answer
    }

    async fn in_room(&self, room: &Known, method: Method, what: &str, body: Value) -> Answer {
        let path = format!("/_matrix/client/v3/rooms/{}/{what}", escape(&room.id));
        self.ask(method, &path, Some(&body)).await
    }

    async fn joined_rooms(&self) -> BTreeSet<String> {
        let Answer::Done(body) = self.ask(Method::GET, "/_matrix/client/v3/joined_rooms", None).await else {
            return BTreeSet::new();
        };
        let rooms = body["joined_rooms"].as_array().into_iter().flatten();
        rooms.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
    }

    async fn create(&self, main: bool) {
        let version = self.dice.choose(&["10", "11", "12"]).copied().unwrap_or("11");
        let open = main || self.dice.percent(50);
        let preset = if open { "public_chat" } else { "private_chat" };
        let rule = match self.society.rooms().first() {
            Some(room) if !open => match self.dice.between(0, 4) {
                0..=2 => Some(json!({"join_rule": "knock"})),
                3 => Some(
                    json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": room.id}]}),
                ),
                _ => None,
            },
            _ => None,
        };
        let knocks = rule.as_ref().is_some_and(|rule| rule["join_rule"] == "knock");
        let initial: Vec<Value> = rule
            .into_iter()
            .map(|content| json!({"type": "m.room.join_rules", "content": content}))
            .collect();
        let mut users = self.society.users();
        self.dice.shuffle(&mut users);
        users.retain(|user| *user != self.client.user);
        // Where people are to knock, few are invited.
        users.truncate(match (main, knocks) {
            (true, _) => 0,
            (_, true) => 1,
            _ => 3,
        });
        let body = json!({"preset": preset, "room_version": version, "invite": users, "initial_state": initial});
        let answer = self
            .ask(Method::POST, "/_matrix/client/v3/createRoom", Some(&body))
            .await;
        self.tell(&answer, "room_id", main, knocks);
    }

    /// Puts another room in the place of one.
    async fn upgrade(&self, room: &Known) {
        let answer = self
            .in_room(room, Method::POST, "upgrade", json!({"new_version": "12"}))
            .await;
        self.tell(&answer, "replacement_room", false, room.knocks);
    }

    /// Tells the others of a room that was made.
    fn tell(&self, answer: &Answer, field: &str, main: bool, knocks: bool) {
        if let Answer::Done(body) = answer
            && let Some(id) = body[field].as_str()
        {
            let mut society = self.society.lock();
            society.rooms.push(Known {
                id: id.to_owned(),
                via: self.server.clone(),
                main,
                knocks,
            });
        }
    }

    async fn join(&self, room: &Known) -> Answer {
        let path = format!("/_matrix/client/v3/join/{}?via={}", escape(&room.id), room.via);
        self.ask(Method::POST, &path, Some(&json!({}))).await
    }

    /// Joins a room, and tries again a few times if there is no answer. If there never is one, its node finishes what was
    /// begun, or takes it back.
    async fn enter(&self, room: &Known) {
        if room.knocks && self.dice.percent(85) {
            let path = format!("/_matrix/client/v3/knock/{}?via={}", escape(&room.id), room.via);
            self.ask(Method::POST, &path, Some(&json!({}))).await;
            return;
        }
        for _ in 0..ATTEMPTS {
            if self.join(room).await != Answer::Unknown {
                return;
            }
            sleep(Duration::from_secs(self.dice.between(2, 60))).await;
        }
    }

    async fn on_someone(&mut self, room: &Known, what: &str) {
        let mut users = self.society.users();
        if room.main {
            // Most of the main room stay in it, so that there is somebody whose messages all must see.
            users.drain(..(users.len() * 2).div_ceil(3));
        }
        users.retain(|user| *user != self.client.user);
        if let Some(user) = self.dice.choose(&users) {
            let answer = self.in_room(room, Method::POST, what, json!({"user_id": user})).await;
            if what == "ban" && matches!(answer, Answer::Done(_)) {
                self.banned.push((room.clone(), user.clone()));
            }
        }
    }

    /// Lets somebody come back whom this one has banned.
    async fn unban(&mut self) {
        if let Some((room, user)) = self.banned.pop() {
            self.in_room(&room, Method::POST, "unban", json!({"user_id": user}))
                .await;
        }
    }

    /// Gives half of the people the power to name the room and to remove others.
    async fn empower(&self, room: &Known) {
        self.change_power(room, |levels| {
            let users = self.society.users();
            for user in users.iter().skip(1).take(users.len() / 2) {
                levels["users"][user] = 50.into();
            }
            true
        })
        .await;
    }

    /// Gives someone power, or takes it.
    async fn appoint(&self, room: &Known) {
        self.change_power(room, |levels| {
            let users = self.society.users();
            let Some(user) = self.dice.choose(&users).filter(|user| **user != self.client.user) else {
                return false;
            };
            let level = self.dice.choose(&[0, 50, 50, 100]).copied().unwrap_or(50);
            levels["users"][user] = level.into();
            true
        })
        .await;
    }

    /// Reads the room's power levels, and sends them as `change` leaves them, unless it says that nothing is to be done.
    async fn change_power(&self, room: &Known, change: impl FnOnce(&mut Value) -> bool) {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/state/m.room.power_levels",
            escape(&room.id)
        );
        let Answer::Done(mut levels) = self.ask(Method::GET, &path, None).await else {
            return;
        };
        if change(&mut levels) {
            self.ask(Method::PUT, &path, Some(&levels)).await;
        }
    }

    /// Writes a message, and repeats it until it is acknowledged or refused, as clients do.
    async fn write(&mut self, room: &Known) {
        self.transactions += 1;
        let (number, transaction) = (self.number, self.transactions);
        let body = json!({"msgtype": "m.text", "body": format!("{number}.{transaction}")});
        let what = format!("send/m.room.message/{number}.{transaction}");
        for _ in 0..ATTEMPTS {
            match self.in_room(room, Method::PUT, &what, body.clone()).await {
                Answer::Done(answer) => {
                    let event = answer["event_id"].as_str().unwrap_or_default().to_owned();
                    self.own.push((room.id.clone(), event.clone()));
                    self.society.lock().sent.push(Sent {
                        room: room.id.clone(),
                        event,
                        user: self.client.user.clone(),
                    });
                    return;
                }
                Answer::Refused(..) => return,
                Answer::Unknown => sleep(Duration::from_secs(self.dice.between(2, 60))).await,
            }
        }
    }

    /// Takes back something that this one wrote.
    async fn redact(&mut self) {
        let Some((room, event)) = self.dice.choose(&self.own).cloned() else {
            return;
        };
        self.transactions += 1;
        let path = format!(
            "/_matrix/client/v3/rooms/{}/redact/{}/{}.{}",
            escape(&room),
            escape(&event),
            self.number,
            self.transactions
        );
        self.ask(Method::PUT, &path, Some(&json!({}))).await;
    }

    /// What the checker looks through.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }
}
