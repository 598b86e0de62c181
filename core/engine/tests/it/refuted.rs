//! What one server told of in a state, and its own past refutes when that comes.

use kith_engine::{
    CheckedPdu, EventStatus, NewState, Outcome, RoomReader, StateKey, check_pdu, receive, receive_history,
    receive_outlier, receive_with_state, resolve, rules,
    testing::{MemoryRooms, any_key},
};
use ruma::{CanonicalJsonObject, OwnedEventId, RoomVersionId, events::StateEventType, signatures::hash_and_sign_event};
use serde_json::{Value, json};

use crate::scene::{Scene, user};

const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// Alice bans Bob, who says afterwards that he has another name, as if he did not know; Charlie builds upon that.
struct Story {
    scene: Scene,
    /// A room without the ban and what came after.
    behind: MemoryRooms,
    ban: CheckedPdu,
    renamed: CheckedPdu,
    after: CheckedPdu,
    /// What Charlie tells of the state before his event.
    told: Vec<OwnedEventId>,
}

fn key(name: &str) -> StateKey {
    (StateEventType::RoomMember, user(name))
}

fn join(name: &str) -> Value {
    json!({"membership": "join", "displayname": name})
}

/// An event with other fields, signed again by its sender.
fn altered(scene: &Scene, name: &str, event: &CheckedPdu, fields: &Value) -> CheckedPdu {
    let mut json: Value = serde_json::from_str(event.pdu().json()).unwrap();
    for (field, value) in fields.as_object().unwrap() {
        json[field] = value.clone();
    }
    let mut object: CanonicalJsonObject = serde_json::from_value(json).unwrap();
    let (version, server) = (event.version(), scene.server(name));
    let redaction = rules(version).unwrap().redaction;
    hash_and_sign_event(server.name.as_str(), server, &mut object, &redaction).unwrap();
    check_pdu(&serde_json::to_string(&object).unwrap(), version, any_key).unwrap()
}

impl Story {
    fn new(version: RoomVersionId) -> Self {
        let mut scene = Scene::public(version, &["bob", "charlie"]);
        let mut levels = scene.content("m.room.power_levels", "").unwrap();
        levels["invite"] = json!(0);
        scene.say("alice", "m.room.power_levels", Some(""), levels);
        let behind = scene.rooms.clone();
        let base = scene.last();
        let bob = user("bob");
        let renamed = scene.craft(&[&base], "bob", "m.room.member", Some(&bob), join("Robert"));
        let ban = scene.say("alice", "m.room.member", Some(&bob), json!({"membership": "ban"}));
        let renamed = altered(&scene, "bob", &renamed, &json!({"prev_events": [ban]}));
        let message = scene.craft(&[&ban], "charlie", "m.room.message", None, json!({"body": "hi"}));
        let after = altered(
            &scene,
            "charlie",
            &message,
            &json!({"prev_events": [renamed.event_id()]}),
        );
        let mut told = behind.state_of(&scene.room);
        told.insert(key("bob"), renamed.event_id().to_owned());
        Self {
            ban: scene.events.last().unwrap().clone(),
            told: told.into_values().collect(),
            scene,
            behind,
            renamed,
            after,
        }
    }

    /// Charlie's word is all that is to be had at first.
    fn believed(version: RoomVersionId) -> Self {
        let mut story = Self::new(version);
        story.keep(receive_outlier(&story.behind, &story.renamed).unwrap());
        story.keep(receive_with_state(&story.behind, &story.after, &story.told).unwrap());
        assert_eq!(story.bob(), Some(story.renamed.event_id().to_owned()));
        story
    }

    fn keep(&mut self, outcome: Outcome) -> EventStatus {
        let applied = outcome.applied().unwrap();
        self.behind.save(&applied);
        applied.status
    }

    fn status(&self, event: &CheckedPdu) -> EventStatus {
        self.behind.event(event.event_id()).unwrap().unwrap().status
    }

    /// Bob's own joining.
    fn first_join(&self) -> OwnedEventId {
        let joins = self.scene.events.iter().map(CheckedPdu::pdu);
        let bobs = joins.filter(|pdu| pdu.state_key() == Some(&user("bob")));
        bobs.map(|pdu| pdu.event_id().to_owned()).next().unwrap()
    }

    /// What stands for Bob in the current state of the room that was behind.
    fn bob(&self) -> Option<OwnedEventId> {
        self.behind.state_of(&self.scene.room).get(&key("bob")).cloned()
    }
}

#[test]
fn what_its_own_past_refutes_gives_way_to_what_stood_before_it() {
    for version in VERSIONS {
        for live in [true, false] {
            let mut story = Story::believed(version.clone());
            story.keep(receive(&story.behind, &story.ban).unwrap());
            let outcome = match live {
                true => receive(&story.behind, &story.renamed),
                false => receive_history(&story.behind, &story.renamed, None),
            };
            assert_eq!(story.keep(outcome.unwrap()), EventStatus::Rejected);
            let ban = Some(story.ban.event_id().to_owned());
            assert_eq!(story.bob(), ban, "{version} {live}");
            let after = story.behind.state_after(story.after.event_id()).unwrap().unwrap();
            assert_eq!(story.behind.state_entry(after, &key("bob")).unwrap(), ban);
            // Who heard of everything in its order has the same.
            let rooms = &mut story.scene.rooms;
            for event in [&story.renamed, &story.after] {
                rooms.accept(event);
            }
            assert_eq!(
                rooms.state_of(&story.scene.room),
                story.behind.state_of(&story.scene.room)
            );
        }
    }
}

#[test]
fn what_is_told_of_after_it_was_refuted_gives_way_as_well() {
    let mut story = Story::new(RoomVersionId::V12);
    story.keep(receive(&story.behind, &story.ban).unwrap());
    assert_eq!(
        story.keep(receive(&story.behind, &story.renamed).unwrap()),
        EventStatus::Rejected
    );
    let outcome = receive_with_state(&story.behind, &story.after, &story.told).unwrap();
    let Some(NewState::Full(before)) = outcome.applied().unwrap().state_before else {
        panic!()
    };
    assert_eq!(before.get(&key("bob")), Some(&story.ban.event_id().to_owned()));
}

/// A state into which the event's sender could not have come, told of the event itself or of what comes before it.
#[test]
fn one_servers_word_does_not_refute_anothers() {
    for version in VERSIONS {
        let mut story = Story::believed(version);
        let lie: Vec<OwnedEventId> = story.told.iter().take(2).cloned().collect();
        let mut other = story.behind.clone();
        let history = receive_history(&other, &story.renamed, Some(&lie)).unwrap();
        other.save(&history.applied().unwrap());
        assert_eq!(
            other.event(story.renamed.event_id()).unwrap().unwrap().status,
            EventStatus::SoftFailed
        );

        let before = story
            .scene
            .craft(&[], "alice", "m.room.message", None, json!({"body": "long ago"}));
        let before = altered(&story.scene, "alice", &before, &json!({"prev_events": ["$lacking"]}));
        let mut lie = story.behind.state_of(&story.scene.room);
        lie.remove(&key("bob"));
        lie.remove(&(StateEventType::RoomJoinRules, String::new()));
        let lie: Vec<OwnedEventId> = lie.into_values().collect();
        story.keep(receive_with_state(&story.behind, &before, &lie).unwrap());
        let renamed = altered(
            &story.scene,
            "bob",
            &story.renamed,
            &json!({"prev_events": [before.event_id()]}),
        );
        story.keep(receive_outlier(&story.behind, &renamed).unwrap());
        assert_eq!(
            story.keep(receive(&story.behind, &renamed).unwrap()),
            EventStatus::SoftFailed
        );

        assert_eq!(
            story.keep(receive_with_state(&story.behind, &story.renamed, &lie).unwrap()),
            EventStatus::SoftFailed
        );
        assert_eq!(story.bob(), Some(story.renamed.event_id().to_owned()));
        // Of what nobody believed, the word of one server is enough.
        let unknown = altered(&story.scene, "bob", &story.renamed, &json!({"content": join("Bobby")}));
        assert_eq!(
            story.keep(receive_with_state(&story.behind, &unknown, &lie).unwrap()),
            EventStatus::Rejected
        );
        assert_eq!(story.status(&unknown), EventStatus::Rejected);
    }
}

/// Bob invites Ella, which rests upon what he said. Alice lets him in again, and by the rules alone he could say all of it then.
#[test]
fn no_resolution_brings_back_what_was_refuted() {
    for version in VERSIONS {
        let mut story = Story::believed(version.clone());
        let mut auth = story.renamed.pdu().auth_events().to_vec();
        auth.push(story.renamed.event_id().to_owned());
        auth.retain(|id| *id != story.first_join());
        let invite = json!({
            "state_key": user("ella"), "content": {"membership": "invite"}, "auth_events": auth,
            "prev_events": [story.after.event_id()],
        });
        let invite = altered(&story.scene, "bob", &story.renamed, &invite);
        assert_eq!(
            story.keep(receive_outlier(&story.behind, &invite).unwrap()),
            EventStatus::Accepted
        );
        story.keep(receive(&story.behind, &story.ban).unwrap());
        story.keep(receive(&story.behind, &story.renamed).unwrap());
        let let_in = json!({"membership": "leave"});
        let unban = story.scene.say("alice", "m.room.member", Some(&user("bob")), let_in);
        story.keep(receive(&story.behind, story.scene.events.last().unwrap()).unwrap());

        let mut with_invite = story.scene.state();
        with_invite.insert(key("ella"), invite.event_id().to_owned());
        assert_eq!(with_invite.get(&key("bob")), Some(&unban));
        let mut before = story.scene.state();
        before.insert(key("bob"), story.first_join());
        let states = [with_invite, before].map(|state| story.behind.add_state(state));
        let resolved = match resolve(&story.behind, &version, &states).unwrap() {
            NewState::Same(id) => (*story.behind.full_state(id).unwrap()).clone(),
            NewState::Delta { base, set } => {
                let mut state = (*story.behind.full_state(base).unwrap()).clone();
                state.extend(set);
                state
            }
            NewState::Full(state) => state,
        };
        assert_eq!(resolved.get(&key("bob")), Some(&unban), "{version}");
        assert_eq!(resolved.get(&key("ella")), None, "{version}");
    }
}
