//! Forks that disagree, and who wins: the scenarios that ruma's own resolution is tested with, told over real events.
//! Each is played in every order and version that it makes sense in; the outcome is the same.

use kith_engine::{NewState, RoomReader, StateKey, StateMap, resolve};
use ruma::{OwnedEventId, RoomVersionId, api::client::room::create_room::v3::RoomPreset, events::StateEventType};
use serde_json::{Value, json};

use crate::scene::{Scene, user};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// One event of a branch: who, what, under which key, saying what.
type Line = (&'static str, &'static str, String, Value);

fn line(who: &'static str, kind: &'static str, key: &str, content: Value) -> Line {
    (who, kind, key.to_owned(), content)
}

/// Power levels where Bob may moderate, and Alice leads by whatever the version gives her.
fn levels(scene: &Scene, bob: i64) -> Value {
    let mut levels = scene.content("m.room.power_levels", "").unwrap();
    levels["users"][user("bob")] = json!(bob);
    levels
}

/// Plays two branches on top of the same event, either first, and checks what the room says of one key afterwards.
fn check(
    version: &RoomVersionId,
    start: fn(RoomVersionId) -> Scene,
    left: &[Line],
    right: &[Line],
    (kind, key): (&str, &str),
    expected: Option<Value>,
) {
    // Made by people who have not seen each other's branch.
    let builder = &mut start(version.clone());
    let base = builder.last();
    let mut branches = Vec::new();
    for (branch, first_date) in [(left, 10_000), (right, 20_000)] {
        let mut events = Vec::new();
        let mut tip = base.clone();
        for ((who, kind, key, content), date) in branch.iter().zip(first_date..) {
            let event = builder.craft_at(date, &[&tip], who, kind, Some(key), content.clone());
            builder.rooms.accept(&event);
            tip = event.event_id().to_owned();
            events.push(event);
        }
        branches.push(events);
    }
    for _ in 0..2 {
        let mut scene = start(version.clone());
        assert_eq!(scene.last(), base, "a scene is the same each time");
        for event in branches.concat() {
            scene.rooms.accept(&event);
            scene.events.push(event);
        }
        // Somebody sees both.
        let tips: Vec<_> = branches
            .iter()
            .filter_map(|events| Some(events.last()?.event_id().to_owned()))
            .collect();
        let tips: Vec<&OwnedEventId> = tips.iter().collect();
        scene.put(
            &tips,
            "alice",
            "m.room.message",
            None,
            json!({"body": "I have seen it all"}),
        );
        assert_eq!(scene.content(kind, key), expected, "{version}");
        branches.reverse();
    }
}

/// A public room where Bob may moderate, and the topic is tea.
fn moderated(version: RoomVersionId) -> Scene {
    let mut scene = Scene::public(version, &["bob", "charlie"]);
    let levels = levels(&scene, 50);
    scene.say("alice", "m.room.power_levels", Some(""), levels);
    scene.say("alice", "m.room.topic", Some(""), json!({"topic": "tea"}));
    scene
}

/// The same, and Bob may change power levels.
fn co_led(version: RoomVersionId) -> Scene {
    let mut scene = moderated(version);
    let mut levels = levels(&scene, 50);
    levels["events"]["m.room.power_levels"] = json!(50);
    scene.say("alice", "m.room.power_levels", Some(""), levels);
    scene
}

#[test]
fn a_ban_beats_the_banned_ones_power_levels() {
    for version in VERSIONS {
        let now = levels(&co_led(version.clone()), 50);
        let mut wanted = now.clone();
        wanted["events_default"] = json!(20);
        let alice = [line(
            "alice",
            "m.room.member",
            &user("bob"),
            json!({"membership": "ban"}),
        )];
        let bob = [line("bob", "m.room.power_levels", "", wanted)];
        check(&version, co_led, &alice, &bob, ("m.room.power_levels", ""), Some(now));
    }
}

#[test]
fn a_ban_beats_the_banned_ones_topic() {
    for version in VERSIONS {
        let alice = [line(
            "alice",
            "m.room.member",
            &user("bob"),
            json!({"membership": "ban"}),
        )];
        let bob = [line("bob", "m.room.topic", "", json!({"topic": "coffee"}))];
        check(
            &version,
            moderated,
            &alice,
            &bob,
            ("m.room.topic", ""),
            Some(json!({"topic": "tea"})),
        );
    }
}

#[test]
fn a_topic_without_a_ban_stands() {
    for version in VERSIONS {
        let alice = [line("alice", "m.room.name", "", json!({"name": "kitchen"}))];
        let bob = [line("bob", "m.room.topic", "", json!({"topic": "coffee"}))];
        check(
            &version,
            moderated,
            &alice,
            &bob,
            ("m.room.topic", ""),
            Some(json!({"topic": "coffee"})),
        );
        check(
            &version,
            moderated,
            &alice,
            &bob,
            ("m.room.name", ""),
            Some(json!({"name": "kitchen"})),
        );
    }
}

#[test]
fn a_demotion_beats_the_demoted_ones_topic() {
    for version in VERSIONS {
        let demoted = levels(&moderated(version.clone()), 0);
        let alice = [
            line("alice", "m.room.topic", "", json!({"topic": "milk"})),
            line("alice", "m.room.power_levels", "", demoted),
        ];
        let bob = [line("bob", "m.room.topic", "", json!({"topic": "coffee"}))];
        check(
            &version,
            moderated,
            &alice,
            &bob,
            ("m.room.topic", ""),
            Some(json!({"topic": "milk"})),
        );
    }
}

#[test]
fn an_admins_power_levels_beat_a_moderators() {
    for version in VERSIONS {
        let alices = levels(&co_led(version.clone()), 0);
        let mut bobs = levels(&co_led(version.clone()), 50);
        bobs["users_default"] = json!(-1);
        let alice = [line("alice", "m.room.power_levels", "", alices.clone())];
        let bob = [line("bob", "m.room.power_levels", "", bobs)];
        check(
            &version,
            co_led,
            &alice,
            &bob,
            ("m.room.power_levels", ""),
            Some(alices),
        );
    }
}

#[test]
fn closing_the_room_beats_a_join() {
    for version in VERSIONS {
        let alice = [line("alice", "m.room.join_rules", "", json!({"join_rule": "invite"}))];
        let ella = [line(
            "ella",
            "m.room.member",
            &user("ella"),
            json!({"membership": "join"}),
        )];
        check(
            &version,
            moderated,
            &alice,
            &ella,
            ("m.room.member", &user("ella")),
            None,
        );
    }
}

#[test]
fn concurrent_joins_both_stand() {
    let join = json!({"membership": "join"});
    let ella = [line("ella", "m.room.member", &user("ella"), join.clone())];
    let zara = [line("zara", "m.room.member", &user("zara"), join.clone())];
    for version in VERSIONS {
        for who in ["ella", "zara"] {
            check(
                &version,
                moderated,
                &ella,
                &zara,
                ("m.room.member", &user(who)),
                Some(join.clone()),
            );
        }
    }
}

/// Of two power events by senders of equal power, the later date is applied last and stands.
#[test]
fn equal_power_is_decided_by_date() {
    let private = |version| Scene::new(version, RoomPreset::PrivateChat);
    let restricted = json!({"join_rule": "restricted", "allow": []});
    let public = json!({"join_rule": "public"});
    let early = [line("alice", "m.room.join_rules", "", restricted)];
    let late = [line("alice", "m.room.join_rules", "", public.clone())];
    for version in VERSIONS {
        check(
            &version,
            private,
            &early,
            &late,
            ("m.room.join_rules", ""),
            Some(public.clone()),
        );
    }
}

fn key(kind: StateEventType, state_key: &str) -> StateKey {
    (kind, state_key.to_owned())
}

/// MSC4297, "Problem A": two servers hold states that neither came by honestly; under v2.0 the unconflicted departure
/// of the room's only leader leaves nothing that would let any join rules stand, and the room loses them.
#[test]
fn the_join_rules_survive_their_author_from_v12_on() {
    for (version, survives) in [(RoomVersionId::V11, false), (RoomVersionId::V12, true)] {
        let mut scene = Scene::public(version.clone(), &["bob", "charlie"]);
        let open = key(StateEventType::RoomJoinRules, "");
        let public = scene.state()[&open].clone();
        let old = scene.state();
        let closed = scene.say("alice", "m.room.join_rules", Some(""), json!({"join_rule": "invite"}));
        let left = scene.say(
            "alice",
            "m.room.member",
            Some(&user("alice")),
            json!({"membership": "leave"}),
        );
        let mut states = Vec::new();
        for (who, rules) in [("bob", &closed), ("charlie", &public)] {
            let renamed = scene.craft(
                &[&left],
                who,
                "m.room.member",
                Some(&user(who)),
                json!({
                    "membership": "join", "displayname": format!("{who}++"),
                }),
            );
            scene.rooms.accept(&renamed);
            let mut state: StateMap = old.clone();
            state.insert(open.clone(), rules.clone());
            state.insert(key(StateEventType::RoomMember, &user("alice")), left.clone());
            state.insert(
                key(StateEventType::RoomMember, &user(who)),
                renamed.event_id().to_owned(),
            );
            states.push(scene.rooms.add_state(state));
        }
        let resolved = resolve(&scene.rooms, &version, &states).unwrap();
        let rules = whole(&scene, resolved).get(&open).cloned();
        assert_eq!(rules.is_some(), survives, "{version}");
    }
}

#[test]
fn equal_states_resolve_to_themselves() {
    let mut scene = Scene::public(RoomVersionId::V12, &["bob"]);
    let current = scene.rooms.current_state(&scene.room).unwrap().unwrap();
    let resolved = resolve(&scene.rooms, &RoomVersionId::V12, &[current, current]).unwrap();
    assert_eq!(resolved, NewState::Same(current));
    let copy = scene.state();
    let copy = scene.rooms.add_state(copy);
    let resolved = resolve(&scene.rooms, &RoomVersionId::V12, &[copy, current]).unwrap();
    assert!(matches!(resolved, NewState::Same(id) if id == copy || id == current));
}

/// MSC4297, "Problem B": one server never saw the power levels change twice, the other did; what led from the first to
/// the last is in neither state. Under v2.0 nothing shows that the last one was allowed, and the room falls back.
#[test]
fn power_levels_do_not_fall_back_from_v12_on() {
    for (version, survives) in [(RoomVersionId::V11, false), (RoomVersionId::V12, true)] {
        let mut scene = Scene::public(version.clone(), &["bob", "charlie"]);
        let mut seen = scene.content("m.room.power_levels", "").unwrap();
        seen["events"]["m.room.power_levels"] = json!(50);
        scene.say("alice", "m.room.power_levels", Some(""), seen.clone());
        let power = key(StateEventType::RoomPowerLevels, "");
        let old = scene.state();
        seen["users"][user("bob")] = json!(50);
        scene.say("alice", "m.room.power_levels", Some(""), seen.clone());
        seen["users"][user("charlie")] = json!(50);
        let last = scene.say("bob", "m.room.power_levels", Some(""), seen);
        let zara = scene.say(
            "zara",
            "m.room.member",
            Some(&user("zara")),
            json!({"membership": "join"}),
        );
        scene.say(
            "ella",
            "m.room.member",
            Some(&user("ella")),
            json!({"membership": "join"}),
        );
        let renamed = json!({"membership": "join", "displayname": "ella++"});
        let ella = scene.say("ella", "m.room.member", Some(&user("ella")), renamed);
        let mut ellas = old.clone();
        ellas.insert(key(StateEventType::RoomMember, &user("ella")), ella);
        let mut zaras = old.clone();
        zaras.insert(power.clone(), last.clone());
        zaras.insert(key(StateEventType::RoomMember, &user("zara")), zara);
        let states = [scene.rooms.add_state(ellas), scene.rooms.add_state(zaras)];
        let resolved = whole(&scene, resolve(&scene.rooms, &version, &states).unwrap());
        assert_eq!(resolved[&power] == last, survives, "{version}");
        assert_eq!(resolved[&power] == old[&power], !survives, "{version}");
    }
}

fn whole(scene: &Scene, state: NewState) -> StateMap {
    match state {
        NewState::Same(id) => (*scene.rooms.full_state(id).unwrap()).clone(),
        NewState::Delta { base, set } => {
            let mut map = (*scene.rooms.full_state(base).unwrap()).clone();
            map.extend(set);
            map
        }
        NewState::Full(map) => map,
    }
}
