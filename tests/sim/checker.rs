//! What must be true of a healed world: the members of a room hold the same events and the same state, everything
//! acknowledged stands once in everybody's timeline, and nothing has grown without bound. It changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use http::Method;
use kith_engine::{EventStatus, Pdu, RoomReader, StateKey};
use kith_node::{Error, Homeserver};
use kith_store::{Direction, ReadTxn, Seq};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, events::room::member::MembershipState};
use serde_json::Value;

use crate::{
    observer::{self, Observer},
    workload::Sent,
    world::{Answer, Client, World, escape},
};

/// Events that one page of a timeline holds.
const PAGE: usize = 100;
/// Events listed of a difference.
const LISTED: usize = 8;

/// What was found not to be so.
#[derive(Debug, Clone)]
pub(crate) struct Finding(pub String);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A room as one node has it.
struct Held {
    node: usize,
    server: OwnedServerName,
    state: BTreeMap<StateKey, OwnedEventId>,
    /// The shown events, oldest first.
    timeline: Vec<Pdu>,
    /// The users joined by the table of members.
    joined: BTreeSet<String>,
}

/// A room as all its members together have it.
struct Room {
    id: OwnedRoomId,
    held: Vec<Held>,
    /// Every event that somebody shows.
    events: BTreeMap<OwnedEventId, Pdu>,
}

/// Looks through a healed world.
pub(crate) async fn check(world: &World, clients: &[Client], observers: &[Observer]) -> Vec<Finding> {
    let society = &world.society;
    let mut findings = Vec::new();
    let mut ids: BTreeSet<OwnedRoomId> = BTreeSet::new();
    for number in 0..world.nodes.len() {
        let Some(hs) = world.homeserver(number) else {
            continue;
        };
        ids.extend(rooms_of(&hs).await);
    }
    for observer in observers {
        check_observer(observer, &mut findings).await;
    }
    let sent = society.sent();
    for id in ids {
        let room = Room::look(world, id).await;
        room.check_equal(&mut findings);
        room.check_members(world, &mut findings);
        // A member may fetch what it was not sent when somebody looks for it.
        room.check_timelines(&sent, clients, observers, &mut findings).await;
        room.check_events(world, &mut findings).await;
    }
    findings
}

async fn rooms_of(hs: &Homeserver) -> Vec<OwnedRoomId> {
    let own = hs.context.server_name.clone();
    let rooms: Result<_, Error> = hs.context.store.read(move |txn| Ok(txn.rooms_of_server(&own)?)).await;
    rooms.unwrap_or_default()
}

impl Held {
    fn read(txn: &ReadTxn<'_>, node: usize, server: OwnedServerName, room: &RoomId) -> Result<Self, Error> {
        let mut timeline = Vec::new();
        let mut from = Seq(i64::MIN);
        loop {
            let page = txn.timeline(room, from, Direction::Forward, PAGE)?;
            let Some(last) = page.last() else { break };
            from = last.stream;
            timeline.extend(page.into_iter().map(|event| event.pdu));
        }
        let state = match txn.current_state(room)? {
            Some(state) => (*txn.full_state(state)?).clone(),
            None => BTreeMap::new(),
        };
        let joined = txn.members(room, &[MembershipState::Join])?;
        Ok(Self {
            node,
            server,
            state,
            timeline,
            joined: joined.into_iter().map(|member| member.user_id.to_string()).collect(),
        })
    }
}

impl Room {
    async fn look(world: &World, id: OwnedRoomId) -> Self {
        let mut held = Vec::new();
        for number in 0..world.nodes.len() {
            let Some(hs) = world.homeserver(number) else { continue };
            let (room, own) = (id.clone(), hs.context.server_name.clone());
            let read: Result<Option<Held>, Error> = hs
                .context
                .store
                .read(move |txn| {
                    if !txn.is_server_joined(&room, &own)? {
                        return Ok(None);
                    }
                    Held::read(txn, number, own, &room).map(Some)
                })
                .await;
            held.extend(read.ok().flatten());
        }
        let events = held.iter().flat_map(|held| &held.timeline);
        let events = events.map(|pdu| (pdu.event_id().to_owned(), pdu.clone())).collect();
        Self { id, held, events }
    }

    /// The same state.
    fn check_equal(&self, findings: &mut Vec<Finding>) {
        let Some((first, others)) = self.held.split_first() else {
            return;
        };
        for other in others {
            if other.state == first.state {
                continue;
            }
            let keys: BTreeSet<&StateKey> = first.state.keys().chain(other.state.keys()).collect();
            let differences: Vec<String> = keys
                .into_iter()
                .filter(|key| first.state.get(*key) != other.state.get(*key))
                .take(LISTED)
                .map(|key| {
                    let of = |held: &Held| held.state.get(key).map_or("nothing".to_owned(), |id| self.describe(id));
                    format!("\n    {} {}: {} | {}", key.0, key.1, of(first), of(other))
                })
                .collect();
            findings.push(Finding(format!(
                "{}: nodes {} and {} differ in state:{}",
                self.id,
                first.node,
                other.node,
                differences.concat()
            )));
        }
    }

    /// The table of members says what the state says, and whoever is in the room by the others' word knows it.
    fn check_members(&self, world: &World, findings: &mut Vec<Finding>) {
        for held in &self.held {
            let by_state: BTreeSet<String> = held
                .state
                .iter()
                .filter(|(key, _)| key.0.to_string() == "m.room.member")
                .filter(|(_, id)| self.events.get(*id).is_some_and(|pdu| membership(pdu) == "join"))
                .map(|(key, _)| key.1.clone())
                .collect();
            // Joins of before a node came are not in anybody's timeline that leaves out history.
            if !by_state.is_subset(&held.joined) {
                findings.push(Finding(format!(
                    "{}: node {} has other members in its table ({:?}) than in its state ({by_state:?})",
                    self.id, held.node, held.joined
                )));
            }
            for user in &held.joined {
                let server = user.split_once(':').map_or("", |(_, server)| server);
                let Some(node) = world.nodes.iter().position(|node| node.name == server) else {
                    continue;
                };
                if !self.held.iter().any(|held| held.node == node) {
                    findings.push(Finding(format!(
                        "{}: node {} says that {user} is in it, which node {node} does not know",
                        self.id, held.node
                    )));
                }
            }
        }
    }

    /// Whoever is in the room holds everything that somebody shows, but for what was before its time.
    async fn check_events(&self, world: &World, findings: &mut Vec<Finding>) {
        let refused = self.refused(world).await;
        for held in &self.held {
            let mut passed = self.before(held);
            passed.extend(refused.iter().cloned());
            let wanted: Vec<OwnedEventId> = self.events.keys().filter(|id| !passed.contains(*id)).cloned().collect();
            let Some(hs) = world.homeserver(held.node) else {
                continue;
            };
            let lacking: Result<Vec<(OwnedEventId, &str)>, Error> = hs
                .context
                .store
                .read(move |txn| {
                    let mut lacking = Vec::new();
                    for id in wanted {
                        match txn.event(&id)? {
                            None => lacking.push((id, "absent")),
                            Some(stored) if stored.outlier => lacking.push((id, "an outlier")),
                            Some(stored) if stored.status == EventStatus::Rejected => lacking.push((id, "rejected")),
                            Some(_) => {}
                        }
                    }
                    Ok(lacking)
                })
                .await;
            let lacking = lacking.unwrap_or_default();
            if !lacking.is_empty() {
                let list = lacking.iter().take(LISTED);
                let list: Vec<String> = list
                    .map(|(id, why)| format!("\n    {why}: {}", self.describe(id)))
                    .collect();
                findings.push(Finding(format!(
                    "{}: node {} lacks {} events:{}",
                    self.id,
                    held.node,
                    lacking.len(),
                    list.concat()
                )));
            }
        }
    }

    /// What only its author's server shows, having kept it before it heard of what forbids it: somebody else has it and refuses
    /// it, and nobody else accepts it. Who never heard of it would not show it either, and nothing leads there: no head names
    /// what is refused. Server-server API, "Soft failure".
    async fn refused(&self, world: &World) -> BTreeSet<OwnedEventId> {
        let is_own = |held: &Held, id: &OwnedEventId| {
            let event = self.events.get(id);
            event.is_some_and(|pdu| *pdu.sender().server_name() == *held.server)
        };
        let mut candidates: BTreeSet<OwnedEventId> = self.events.keys().cloned().collect();
        let mut refused = BTreeSet::new();
        for held in &self.held {
            let others: Vec<OwnedEventId> = candidates.iter().filter(|id| !is_own(held, id)).cloned().collect();
            let Some(hs) = world.homeserver(held.node) else {
                continue;
            };
            let read: Result<Vec<(OwnedEventId, EventStatus)>, Error> = hs
                .context
                .store
                .read(move |txn| {
                    let mut statuses = Vec::new();
                    for id in others {
                        let stored = txn.event(&id)?.filter(|stored| !stored.outlier);
                        statuses.extend(stored.map(|stored| (id, stored.status)));
                    }
                    Ok(statuses)
                })
                .await;
            for (id, status) in read.unwrap_or_default() {
                if status == EventStatus::Accepted {
                    candidates.remove(&id);
                } else {
                    refused.insert(id);
                }
            }
        }
        candidates.intersection(&refused).cloned().collect()
    }

    /// Every message of somebody who was in the room all the time stands once in the timeline of everybody who was.
    async fn check_timelines(
        &self,
        sent: &[Sent],
        clients: &[Client],
        observers: &[Observer],
        findings: &mut Vec<Finding>,
    ) {
        let sent: Vec<&Sent> = sent.iter().filter(|sent| sent.room == *self.id).collect();
        for held in &self.held {
            let Some(client) = clients.iter().find(|client| client.node == held.node) else {
                continue;
            };
            if !held.joined.contains(&client.user) {
                continue;
            }
            // Everybody reads to the beginning: what only who left still has is fetched then, and no gap may stay.
            let seen = match timeline_of(client, &self.id).await {
                Ok(seen) => seen,
                Err(finding) => {
                    findings.push(finding);
                    continue;
                }
            };
            if !self.is_steady(&client.user) {
                continue;
            }
            self.check_shown(&sent, held, &client.user, &seen, findings);
            let observer = observers.iter().find(|observer| observer.client.user == client.user);
            let Some(observer) = observer else { continue };
            let who = format!("the client of {}", client.user);
            let Some(followed) = observer.whole_timeline(self.id.as_str()).await else {
                findings.push(Finding(format!("{}: {who} does not have it", self.id)));
                continue;
            };
            self.check_shown(&sent, held, &who, &followed, findings);
            let both: BTreeSet<&String> = followed.iter().filter(|id| seen.contains(id)).collect();
            let order =
                |events: &[String]| -> Vec<String> { events.iter().filter(|id| both.contains(id)).cloned().collect() };
            if order(&followed) != order(&seen) {
                findings.push(Finding(format!(
                    "{}: {who} was told of events in another order than they are shown in:\n    {:?}\n    {:?}",
                    self.id,
                    order(&followed),
                    order(&seen)
                )));
            }
        }
    }

    /// Everything acknowledged stands once in what a member is shown.
    fn check_shown(&self, sent: &[&Sent], held: &Held, who: &str, shown: &[String], findings: &mut Vec<Finding>) {
        let before = self.before(held);
        let mut times: BTreeMap<&String, usize> = BTreeMap::new();
        for event in shown {
            *times.entry(event).or_default() += 1;
        }
        for (event, times) in times.iter().filter(|(_, times)| **times > 1) {
            findings.push(Finding(format!("{}: {who} is shown {event} {times} times", self.id)));
        }
        for sent in sent {
            let before = before.iter().any(|id| *id == sent.event);
            if !times.contains_key(&sent.event) && !before && self.is_steady(&sent.user) && !self.was_closed(sent) {
                let event = OwnedEventId::try_from(sent.event.as_str());
                let event = event.map_or(sent.event.clone(), |id| self.describe(&id));
                findings.push(Finding(format!(
                    "{}: {who} is not shown what was acknowledged: {event}",
                    self.id
                )));
            }
        }
    }

    /// Whether the room was closed to ordinary people, as an upgrade does with the old room, by somebody of whom the sender of
    /// a message had not heard. Who had is right not to show it. Server-server API, "Soft failure".
    fn was_closed(&self, sent: &Sent) -> bool {
        let closes = |pdu: &&Pdu| {
            let content: Value = serde_json::from_str(pdu.content().get()).unwrap_or_default();
            pdu.kind().to_string() == "m.room.power_levels" && content["events_default"].as_i64() > Some(0)
        };
        let mut closings = self.events.values().filter(closes).peekable();
        let Ok(event) = OwnedEventId::try_from(sent.event.as_str()) else {
            return false;
        };
        if closings.peek().is_none() {
            return false;
        }
        let known = self.ancestors([event]);
        closings.any(|pdu| !known.contains(pdu.event_id()))
    }

    /// Whether a user is in the room since its only join, which nobody questioned.
    fn is_steady(&self, user: &str) -> bool {
        let of_user = |pdu: &&Pdu| pdu.kind().to_string() == "m.room.member" && pdu.state_key() == Some(user);
        let events: Vec<&Pdu> = self.events.values().filter(of_user).collect();
        let mut joins = events.iter().filter(|pdu| membership(pdu) == "join");
        let (Some(join), None) = (joins.next(), joins.next()) else {
            return false;
        };
        let before = self.ancestors([join.event_id().to_owned()]);
        let others = events.iter().filter(|pdu| membership(pdu) != "join");
        let mut others = others.filter(|pdu| membership(pdu) != "invite" || !before.contains(pdu.event_id()));
        others.next().is_none() && self.held.iter().all(|held| held.joined.contains(user))
    }

    /// What a node need not hold: everything before the latest join of one of its users that brought it in.
    fn before(&self, held: &Held) -> BTreeSet<OwnedEventId> {
        let own = |pdu: &&Pdu| {
            let user = pdu.state_key().and_then(|user| user.split_once(':'));
            user.is_some_and(|(_, server)| held.server == server)
        };
        let joins = self.events.values().filter(|pdu| membership(pdu) == "join").filter(own);
        self.ancestors(joins.map(|pdu| pdu.event_id().to_owned()))
    }

    fn ancestors(&self, of: impl IntoIterator<Item = OwnedEventId>) -> BTreeSet<OwnedEventId> {
        let mut ancestors = BTreeSet::new();
        let mut open: Vec<OwnedEventId> = of.into_iter().collect();
        while let Some(id) = open.pop() {
            let Some(pdu) = self.events.get(&id) else { continue };
            for prev in pdu.prev_events() {
                if ancestors.insert(prev.clone()) {
                    open.push(prev.clone());
                }
            }
        }
        ancestors
    }

    fn describe(&self, id: &OwnedEventId) -> String {
        match self.events.get(id) {
            Some(pdu) => format!(
                "{id} {} {:?} of {} {}",
                pdu.kind(),
                pdu.state_key(),
                pdu.sender(),
                pdu.content()
            ),
            None => id.to_string(),
        }
    }
}

fn membership(pdu: &Pdu) -> String {
    let content: Value = serde_json::from_str(pdu.content().get()).unwrap_or_default();
    content["membership"].as_str().unwrap_or_default().to_owned()
}

/// What an observer was told of rooms is what its node says when asked at the end.
async fn check_observer(observer: &Observer, findings: &mut Vec<Finding>) {
    let user = &observer.client.user;
    findings.extend(observer.findings.iter().cloned());
    let whole = format!(
        "/_matrix/client/v3/sync?filter={}",
        escape(r#"{"room":{"timeline":{"limit":1}}}"#)
    );
    let Answer::Done(whole) = observer.client.ask(Method::GET, &whole, None).await else {
        findings.push(Finding(format!("{user} cannot sync at the end")));
        return;
    };
    let section = |name: &str| -> BTreeSet<String> {
        let rooms = whole["rooms"][name].as_object().into_iter().flatten();
        rooms.map(|(room, _)| room.clone()).collect()
    };
    for (name, told) in [
        ("join", observer.rooms.keys().cloned().collect()),
        ("invite", observer.invited.clone()),
        ("knock", observer.knocking.clone()),
    ] {
        if section(name) != told {
            findings.push(Finding(format!(
                "the client of {user} was told of other rooms to {name} ({told:?}) than there are ({:?})",
                section(name)
            )));
        }
    }
    for (room, seen) in &observer.rooms {
        let path = format!("/_matrix/client/v3/rooms/{}/state", escape(room));
        let Answer::Done(state) = observer.client.ask(Method::GET, &path, None).await else {
            findings.push(Finding(format!("{room}: {user} cannot read its state")));
            continue;
        };
        let told_of = |key: &(String, String)| observer.knows_members() || key.0 != "m.room.member";
        let entry = |event: &Value| {
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            ((text("type"), text("state_key")), text("event_id"))
        };
        let state = state.as_array().into_iter().flatten().map(entry);
        let state: BTreeMap<_, _> = state.filter(|(key, _)| told_of(key)).collect();
        let told: BTreeMap<_, _> = seen.state.clone().into_iter().filter(|(key, _)| told_of(key)).collect();
        if state != told {
            let keys: BTreeSet<_> = state.keys().chain(told.keys()).collect();
            let differ = keys.into_iter().filter(|key| state.get(*key) != told.get(*key));
            // A client that takes state from timelines takes what they tell last, though it may have lost against something
            // older when forks were joined: `use_state_after` was made because nothing else helps.
            let misled = |key: &(String, String)| told.get(key).is_some_and(|id| seen.timeline.contains(id));
            let differ: Vec<_> = differ.filter(|key| observer.is_told_after() || !misled(key)).collect();
            if differ.is_empty() {
                continue;
            }
            let differ = differ.into_iter();
            let differ = differ.map(|key| format!("\n    {key:?}: {:?} | {:?}", told.get(key), state.get(key)));
            findings.push(Finding(format!(
                "{room}: the client of {user} has another state than its node:{}",
                differ.collect::<String>()
            )));
        }
    }
}

/// The events of a client's timeline of a room, walked from the newest to the oldest, in the order in which they are shown.
async fn timeline_of(client: &Client, room: &RoomId) -> Result<Vec<String>, Finding> {
    let mut seen = Vec::new();
    let mut from = String::new();
    loop {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit={PAGE}{from}",
            escape(room.as_str())
        );
        let Answer::Done(page) = client.ask(Method::GET, &path, None).await else {
            return Err(Finding(format!("{room}: {} cannot read its timeline", client.user)));
        };
        seen.extend(observer::ids(&page["chunk"]));
        let next = page["end"].as_str().map(|end| format!("&from={}", escape(end)));
        if next.as_ref() == Some(&from) {
            return Err(Finding(format!(
                "{room}: {} reads the same page again and again",
                client.user
            )));
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", escape(end)),
            None => {
                seen.reverse();
                return Ok(seen);
            }
        }
    }
}
