//! Whatever order events come in, every server ends with the same room.
//!
//! Random rooms, with forks, refused events and clocks that disagree, are fed to fresh servers one by one in the order
//! of their making, shuffled, in shuffled batches, and all at once. What an event's own past says of it must be the
//! same everywhere; and once an event builds upon all there is, so must the room's current state. In between, which
//! events are soft-failed, and so the current state, depends on what a server happens to see first: that is Matrix.

use std::collections::BTreeMap;

use kith_engine::{
    CheckedPdu, EventStatus, Outcome, RoomReader, StateMap, check_pdu, oldest_first, receive,
    testing::{MemoryRooms, TestServer, any_key, at},
};
use proptest::{collection::vec, prelude::*, sample::Index};
use ruma::{OwnedEventId, RoomVersionId, api::client::room::create_room::v3::RoomPreset};
use serde_json::{Value, json};

use crate::scene::{NAMES, Scene, user};

/// One step of a random room.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    who: usize,
    whom: usize,
    what: usize,
    power: i64,
    date: u32,
    /// Which earlier events it builds upon: most build upon the newest.
    prev: Vec<Index>,
    fork: bool,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    (
        0..5_usize,
        1..5_usize,
        0..16_usize,
        0..3_i64,
        2_000..2_010_u32,
        vec(any::<Index>(), 1..3),
        prop::bool::weighted(0.4),
    )
        .prop_map(|(who, whom, what, power, date, prev, fork)| Step {
            who,
            whom,
            what,
            power: power * 50,
            date,
            prev,
            fork,
        })
}

/// What a step says: type, state key, content. Alice, who made the room, neither leaves nor gives her power away.
fn saying(step: &Step, levels: &Value) -> (&'static str, Option<String>, Value) {
    let whom = user(NAMES[step.whom]);
    let who = user(NAMES[step.who]);
    match step.what {
        0 if step.who != 0 => ("m.room.member", Some(who), json!({"membership": "leave"})),
        1 | 2 => ("m.room.member", Some(who), json!({"membership": "join"})),
        3 => ("m.room.member", Some(whom), json!({"membership": "ban"})),
        4 => ("m.room.member", Some(whom), json!({"membership": "leave"})),
        5 => ("m.room.member", Some(whom), json!({"membership": "invite"})),
        6 | 7 => {
            let mut levels = levels.clone();
            levels["users"][whom] = json!(step.power.min(50));
            ("m.room.power_levels", Some(String::new()), levels)
        }
        8 => {
            let rule = if step.power == 0 { "invite" } else { "public" };
            ("m.room.join_rules", Some(String::new()), json!({"join_rule": rule}))
        }
        9 => (
            "m.room.topic",
            Some(String::new()),
            json!({"topic": format!("{who} {}", step.date)}),
        ),
        10 => (
            "m.room.name",
            Some(String::new()),
            json!({"name": format!("{who} {}", step.power)}),
        ),
        _ => ("m.room.message", None, json!({"body": step.date})),
    }
}

/// Every event of a random room, as servers send them to each other, in an order in which they could be made. The last
/// one builds upon all the others.
pub(crate) fn random_room(version: &RoomVersionId, steps: &[Step]) -> Vec<CheckedPdu> {
    let mut scene = Scene::new(version.clone(), RoomPreset::PublicChat);
    let mut levels = scene.content("m.room.power_levels", "").unwrap();
    levels["events"]["m.room.power_levels"] = json!(50);
    let mut tips: Vec<OwnedEventId> = vec![scene.last()];
    let mut made: Vec<OwnedEventId> = tips.clone();
    for name in ["bob", "charlie"] {
        made.push(scene.say(name, "m.room.member", Some(&user(name)), json!({"membership": "join"})));
    }
    tips = vec![scene.last()];
    for step in steps {
        let newest = made.last().unwrap();
        let mut prev: Vec<&OwnedEventId> = if step.fork {
            step.prev.iter().map(|index| index.get(&made)).collect()
        } else {
            vec![newest]
        };
        prev.sort();
        prev.dedup();
        let (kind, state_key, content) = saying(step, &levels);
        let event = scene.craft_at(step.date, &prev, NAMES[step.who], kind, state_key.as_deref(), content);
        let prev: Vec<OwnedEventId> = prev.into_iter().cloned().collect();
        // The same step twice makes the same event.
        if let Outcome::Applied(applied) = scene.rooms.receive(&event).unwrap() {
            tips.retain(|tip| !prev.contains(tip));
            tips.push(applied.event_id().to_owned());
            made.push(applied.event_id().to_owned());
            scene.events.push(event);
        }
    }
    let mut date = 3_000;
    loop {
        let some: Vec<OwnedEventId> = tips.drain(..tips.len().min(20)).collect();
        date += 1;
        let some: Vec<&OwnedEventId> = some.iter().collect();
        let event = scene.craft_at(
            date,
            &some,
            "alice",
            "m.room.message",
            None,
            json!({"body": "all seen"}),
        );
        assert_eq!(scene.rooms.accept(&event).status, EventStatus::Accepted);
        tips.push(event.event_id().to_owned());
        scene.events.push(event);
        if tips.len() == 1 {
            break;
        }
    }
    scene.events
}

/// A server that holds the room's beginning, which its maker alone can open.
fn fresh(events: &[CheckedPdu]) -> MemoryRooms {
    let mut rooms = MemoryRooms::default();
    rooms.accept(&events[0]);
    rooms
}

/// Feeds a batch, keeping what is not complete for later, until all is held.
fn feed(rooms: &mut MemoryRooms, batches: &[Vec<CheckedPdu>]) {
    let mut waiting: Vec<CheckedPdu> = Vec::new();
    for batch in batches {
        waiting.extend(batch.iter().cloned());
        loop {
            let before = waiting.len();
            waiting.retain(|event| matches!(rooms.receive(event).unwrap(), Outcome::Missing(_)));
            if waiting.is_empty() || waiting.len() == before {
                break;
            }
        }
    }
    assert!(waiting.is_empty(), "{} events were never complete", waiting.len());
}

/// All that must not depend on the order: of each event whether it was rejected and the state before it; and the room.
type Verdicts = BTreeMap<OwnedEventId, (bool, StateMap)>;

fn verdicts(rooms: &MemoryRooms, events: &[CheckedPdu]) -> (Verdicts, StateMap, Vec<OwnedEventId>) {
    let room = events[0].room_id();
    let verdicts = events.iter().map(|event| {
        let status = rooms.event(event.event_id()).unwrap().unwrap().status;
        let before = rooms.state_before_event(event.event_id()).unwrap();
        (event.event_id().to_owned(), (status == EventStatus::Rejected, before))
    });
    (
        verdicts.collect(),
        rooms.state_of(room),
        rooms.forward_extremities(room).unwrap(),
    )
}

pub(crate) fn versions() -> impl Strategy<Value = RoomVersionId> {
    prop::sample::select(vec![RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_order_ends_in_the_same_room(
        version in versions(),
        steps in vec(step(), 1..40),
        order in vec(any::<u32>(), 120),
        batch in 1..9_usize,
    ) {
        let events = random_room(&version, &steps);
        let merge = events.last().unwrap().event_id().to_owned();
        let rest = events[1..].to_vec();
        let mut shuffled: Vec<(u32, CheckedPdu)> = order.iter().cycle().copied().zip(rest.iter().cloned()).collect();
        shuffled.sort_by_key(|(rank, _)| *rank);
        let shuffled: Vec<CheckedPdu> = shuffled.into_iter().map(|(_, event)| event).collect();

        let mut one_by_one = fresh(&events);
        feed(&mut one_by_one, &rest.iter().map(|event| vec![event.clone()]).collect::<Vec<_>>());
        let expected = verdicts(&one_by_one, &events);
        prop_assert_eq!(&expected.2, &vec![merge]);

        let mut in_disorder = fresh(&events);
        feed(&mut in_disorder, &shuffled.iter().map(|event| vec![event.clone()]).collect::<Vec<_>>());
        prop_assert_eq!(&verdicts(&in_disorder, &events), &expected);

        let mut in_batches = fresh(&events);
        let batches: Vec<Vec<CheckedPdu>> = shuffled.chunks(batch).map(|chunk| oldest_first(chunk.to_vec())).collect();
        feed(&mut in_batches, &batches);
        prop_assert_eq!(&verdicts(&in_batches, &events), &expected);

        let mut at_once = fresh(&events);
        feed(&mut at_once, &[oldest_first(shuffled)]);
        prop_assert_eq!(&verdicts(&at_once, &events), &expected);

        // Replayed, all of it is known and nothing changes.
        for event in &events {
            prop_assert!(matches!(receive(&at_once, event).unwrap(), Outcome::Known));
        }
    }

    /// What one server sends, another reads as the same event.
    #[test]
    fn events_survive_the_wire(version in versions(), steps in vec(step(), 1..6)) {
        for event in random_room(&version, &steps) {
            let read = check_pdu(event.pdu().json(), &version, any_key).unwrap();
            prop_assert_eq!(read.event_id(), event.event_id());
            prop_assert_eq!(read.room_id(), event.room_id());
            prop_assert_eq!(read.pdu().json(), event.pdu().json());
        }
    }

    /// No bytes make the checks panic, and nothing that is altered passes as what it was.
    #[test]
    fn altered_events_never_pass(at_byte in any::<Index>(), byte in any::<u8>()) {
        let server = TestServer::new("alice.example");
        let mut rooms = MemoryRooms::default();
        let (_, events) = rooms.create(&server, &kith_engine::CreateRoom::new(server.user("alice")));
        let json = events[1].pdu().json().to_owned();
        let mut bytes = json.clone().into_bytes();
        let index = at_byte.index(bytes.len());
        bytes[index] = byte;
        let Ok(altered) = String::from_utf8(bytes) else { return Ok(()) };
        if let Ok(read) = check_pdu(&altered, &RoomVersionId::V12, any_key) {
            let unaltered = read.pdu().json() == json;
            let redacted = read.event_id() == events[1].event_id();
            prop_assert!(unaltered || redacted, "{altered}");
        }
    }
}

/// The property can fail: of two servers that resolve nothing and take the last word, these two would differ.
#[test]
fn the_last_word_is_not_what_counts() {
    let scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let base = scene.last();
    let ban = scene.craft_at(
        5_000,
        &[&base],
        "alice",
        "m.room.member",
        Some(&user("bob")),
        json!({"membership": "ban"}),
    );
    let leave = scene.craft_at(
        5_001,
        &[&base],
        "bob",
        "m.room.member",
        Some(&user("bob")),
        json!({"membership": "leave"}),
    );
    let mut states = Vec::new();
    for order in [[&ban, &leave], [&leave, &ban]] {
        let mut rooms = scene.rooms.clone();
        for event in order {
            rooms.accept(event);
        }
        let tips = [ban.event_id().to_owned(), leave.event_id().to_owned()];
        let draft = scene.draft("alice", "m.room.message", None, json!({}));
        let merge = rooms.build_on(&TestServer::new("alice.example"), &scene.room, &tips, &draft, at(5_002));
        rooms.accept(&merge);
        states.push(rooms.state_of(&scene.room));
    }
    assert_eq!(states[0], states[1]);
}
