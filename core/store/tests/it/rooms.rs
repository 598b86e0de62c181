//! The store's rooms answer as rooms in memory do, after the same changes, whatever these are.

use kith_engine::{
    Applied, CurrentState, EventStatus, ExtremityChange, NewState, Pdu, Redaction, Refuted, RoomReader, StateMap,
};
use kith_store::{Direction, Seq, Store, StoreConfig, StoreError, check};
use proptest::prelude::*;
use ruma::{CanonicalJsonObject, OwnedEventId, OwnedUserId, RoomVersionId, UserId, owned_room_id};
use serde_json::json;

use crate::{agreement::compare, model::Model};

/// One change, told so that both sides can make it. Numbers choose among what is there, modulo how much there is.
#[derive(Debug, Clone)]
enum Step {
    /// A message on all extremities.
    Message,
    /// A state event on all extremities.
    State(Change),
    /// A state event on one older event; the current state becomes a mixture.
    Fork { on: usize, change: Change, keep: u8 },
    /// A state that is told whole, as after a resolution that undid things.
    Reset { keep: u8 },
    /// An event whose checks failed.
    Refused { soft: bool, change: Change },
    /// An event of which only itself is known.
    Outlier(Change),
    /// An event with a state that another server told, which holds an outlier.
    Told { which: usize },
    /// What was told of is refuted by its own past. `anew`: the current state without it is told whole.
    Refuted {
        which: usize,
        on: usize,
        history: bool,
        anew: bool,
    },
    /// An outlier takes its place in the timeline.
    Settle { which: usize },
    /// An event upon one that is not held.
    Gap,
    /// The event that a gap lacked arrives as history.
    Fill { which: usize },
    /// An event is redacted.
    Redact { which: usize },
}

#[derive(Debug, Clone)]
enum Change {
    Member { user: u8, membership: u8 },
    Topic { key: u8 },
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..12u8, 0..4u8).prop_map(|(user, membership)| Change::Member { user, membership }),
        1 => (0..6u8).prop_map(|key| Change::Topic { key }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Message),
        8 => changes().prop_map(Step::State),
        3 => (any::<usize>(), changes(), any::<u8>()).prop_map(|(on, change, keep)| Step::Fork { on, change, keep }),
        1 => any::<u8>().prop_map(|keep| Step::Reset { keep }),
        2 => (any::<bool>(), changes()).prop_map(|(soft, change)| Step::Refused { soft, change }),
        2 => changes().prop_map(Step::Outlier),
        2 => any::<usize>().prop_map(|which| Step::Told { which }),
        2 => (any::<usize>(), any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(which, on, history, anew)| Step::Refuted { which, on, history, anew }),
        1 => any::<usize>().prop_map(|which| Step::Settle { which }),
        1 => Just(Step::Gap),
        1 => any::<usize>().prop_map(|which| Step::Fill { which }),
        2 => any::<usize>().prop_map(|which| Step::Redact { which }),
    ]
}

/// Steps saved in one commit.
const PER_COMMIT: usize = 6;

/// What the test knows of the room beside the two readers.
#[derive(Default)]
struct Script {
    count: u64,
    in_graph: Vec<OwnedEventId>,
    outliers: Vec<Pdu>,
    believed: Vec<Pdu>,
    absent: Vec<Pdu>,
}

pub(crate) fn room() -> ruma::OwnedRoomId {
    owned_room_id!("!room:a.example")
}

pub(crate) fn user(number: u8) -> OwnedUserId {
    UserId::parse(format!("@u{number}:s{}.example", number % 3)).unwrap()
}

impl Script {
    fn pdu(&mut self, kind: &str, state_key: Option<String>, content: serde_json::Value, prev: &[OwnedEventId]) -> Pdu {
        self.count += 1;
        let auth: Vec<_> = self.in_graph.iter().rev().step_by(3).take(3).collect();
        let mut event = json!({
            "type": kind, "room_id": room(), "sender": user(1), "content": content, "prev_events": prev,
            "auth_events": auth, "depth": self.count, "origin_server_ts": 1000 + self.count, "hashes": {"sha256": ""},
        });
        if let Some(state_key) = state_key {
            event["state_key"] = state_key.into();
        }
        let object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
        Pdu::from_json(&object, &RoomVersionId::V12).unwrap()
    }

    fn state_pdu(&mut self, change: &Change, prev: &[OwnedEventId]) -> Pdu {
        match change {
            Change::Member {
                user: number,
                membership,
            } => {
                let membership = ["join", "leave", "ban", "invite"][usize::from(*membership)];
                let content = json!({"membership": membership});
                self.pdu("m.room.member", Some(user(*number).to_string()), content, prev)
            }
            Change::Topic { key } => self.pdu("m.room.topic", Some(format!("k{key}")), json!({"topic": "x"}), prev),
        }
    }
}

/// The parts of a step that do not depend on who makes it.
struct Plan {
    pdu: Pdu,
    on: Option<OwnedEventId>,
    status: EventStatus,
    outlier: bool,
    history: bool,
    withheld: bool,
    keep: Option<u8>,
    told: Option<Pdu>,
    refuted_anew: Option<bool>,
    redacts: Option<OwnedEventId>,
}

impl Plan {
    fn new(pdu: Pdu, on: Option<OwnedEventId>) -> Self {
        Self {
            pdu,
            on,
            status: EventStatus::Accepted,
            outlier: false,
            history: false,
            withheld: false,
            keep: None,
            told: None,
            refuted_anew: None,
            redacts: None,
        }
    }

    /// Makes the change as one reader sees the room.
    fn change<R: RoomReader>(&self, reader: &R) -> Result<Applied, R::Error> {
        let room = room();
        let before = match &self.on {
            Some(on) => reader.state_after(on)?.map(NewState::Same),
            None if self.told.is_some() => Some(NewState::Full(self.told_state(reader)?)),
            None if self.outlier || self.history => None,
            None => Some(match reader.current_state(&room)? {
                Some(current) => NewState::Same(current),
                None => NewState::Full(StateMap::new()),
            }),
        };
        let sets = (self.status != EventStatus::Rejected && before.is_some())
            .then(|| self.pdu.state_entry())
            .flatten();
        let in_graph = self.status == EventStatus::Accepted && !self.outlier;
        let mut extremities = None;
        if in_graph && !self.history {
            let mut gone = reader.forward_extremities(&room)?;
            gone.retain(|id| self.pdu.prev_events().contains(id));
            let added = !reader.has_successor(self.pdu.event_id())?;
            extremities = Some(ExtremityChange { gone, added });
        }
        let refuted = self.refuted(reader, before.as_ref())?;
        let current_state = match self.keep {
            None if refuted.is_some() => self.current_without(reader, refuted.as_ref())?,
            Some(keep) => CurrentState::New(NewState::Full(self.mixture(reader, keep)?)),
            None if in_graph && !self.history => CurrentState::AfterEvent,
            None => CurrentState::Unchanged,
        };
        let mut redactions: Vec<Redaction> = reader
            .redactions_of(self.pdu.event_id())?
            .into_iter()
            .take(usize::from(!self.outlier))
            .map(|by| Redaction {
                target: self.pdu.event_id().to_owned(),
                by,
            })
            .collect();
        redactions.extend(self.redacts.clone().map(|target| Redaction {
            target,
            by: self.pdu.event_id().to_owned(),
        }));
        Ok(Applied {
            pdu: self.pdu.clone(),
            version: RoomVersionId::V12,
            status: self.status,
            reason: None,
            outlier: self.outlier,
            history: self.history,
            withheld: self.withheld,
            state_before: before,
            told: self.told.is_some(),
            sets,
            current_state,
            forward_extremities: extremities,
            redactions,
            refuted,
        })
    }

    fn current<R: RoomReader>(reader: &R) -> Result<StateMap, R::Error> {
        Ok(match reader.current_state(&room())? {
            Some(current) => (*reader.full_state(current)?).clone(),
            None => StateMap::new(),
        })
    }

    /// The current state, with what is told of.
    fn told_state<R: RoomReader>(&self, reader: &R) -> Result<StateMap, R::Error> {
        let mut state = Self::current(reader)?;
        let told = self.told.iter();
        state.extend(told.filter_map(|pdu| Some((pdu.state_entry()?, pdu.event_id().to_owned()))));
        Ok(state)
    }

    fn refuted<R: RoomReader>(&self, reader: &R, before: Option<&NewState>) -> Result<Option<Refuted>, R::Error> {
        let (Some(_), Some(key), Some(NewState::Same(before))) = (self.refuted_anew, self.pdu.state_entry(), before)
        else {
            return Ok(None);
        };
        let event = self.pdu.event_id().to_owned();
        let instead = reader.state_entry(*before, &key)?.filter(|id| *id != event);
        Ok(Some(Refuted { event, key, instead }))
    }

    fn current_without<R: RoomReader>(&self, reader: &R, refuted: Option<&Refuted>) -> Result<CurrentState, R::Error> {
        let mut state = Self::current(reader)?.into();
        refuted.unwrap().correct(&mut state);
        Ok(CurrentState::New(
            match (self.refuted_anew, reader.current_state(&room())?) {
                (Some(false), Some(current)) => NewState::Same(current),
                _ => NewState::Full((*state).clone()),
            },
        ))
    }

    /// The current state without some of its entries, and with what the event sets.
    fn mixture<R: RoomReader>(&self, reader: &R, keep: u8) -> Result<StateMap, R::Error> {
        let mut map = Self::current(reader)?;
        map.retain(|key, _| key.1.len() > 3 || !usize::from(keep).is_multiple_of(key.1.len() + 1));
        let mut number = 0u8;
        map.retain(|_, _| {
            number = number.wrapping_add(keep | 1);
            !number.is_multiple_of(7)
        });
        if let Some(key) = self.pdu.state_entry() {
            map.insert(key, self.pdu.event_id().to_owned());
        }
        Ok(map)
    }
}

/// Turns a step into a plan; none where there is nothing to choose from.
fn plan(step: &Step, script: &mut Script, model: &Model) -> Option<Plan> {
    let extremities = model.extremities.clone();
    let pick = |list: &[OwnedEventId], which: usize| (!list.is_empty()).then(|| list[which % list.len()].clone());
    Some(match step {
        Step::Message => Plan::new(
            script.pdu("m.room.message", None, json!({"body": "hi"}), &extremities),
            None,
        ),
        Step::State(change) => Plan::new(script.state_pdu(change, &extremities), None),
        Step::Fork { on, change, keep } => {
            let on = pick(&script.in_graph, *on).filter(|on| model.state_after(on).unwrap().is_some())?;
            let pdu = script.state_pdu(change, std::slice::from_ref(&on));
            Plan {
                keep: Some(*keep),
                ..Plan::new(pdu, Some(on))
            }
        }
        Step::Reset { keep } => {
            let pdu = script.pdu("m.room.message", None, json!({}), &extremities);
            Plan {
                keep: Some(*keep),
                ..Plan::new(pdu, None)
            }
        }
        Step::Refused { soft, change } => {
            let status = if *soft {
                EventStatus::SoftFailed
            } else {
                EventStatus::Rejected
            };
            Plan {
                status,
                ..Plan::new(script.state_pdu(change, &extremities), None)
            }
        }
        Step::Outlier(change) => {
            let pdu = script.state_pdu(change, &extremities);
            script.outliers.push(pdu.clone());
            Plan {
                outlier: true,
                ..Plan::new(pdu, None)
            }
        }
        Step::Told { which } => {
            let count = script.outliers.len();
            let told = (count > 0).then(|| script.outliers.swap_remove(which % count))?;
            script.believed.push(told.clone());
            let pdu = script.pdu("m.room.message", None, json!({"body": "leapt to"}), &extremities);
            Plan {
                told: Some(told),
                ..Plan::new(pdu, None)
            }
        }
        Step::Refuted {
            which,
            on,
            history,
            anew,
        } => {
            let on = pick(&script.in_graph, *on).filter(|on| model.state_after(on).unwrap().is_some())?;
            let count = script.believed.len();
            let pdu = (count > 0).then(|| script.believed.swap_remove(which % count))?;
            Plan {
                status: EventStatus::Rejected,
                history: *history,
                refuted_anew: Some(*anew),
                ..Plan::new(pdu, Some(on))
            }
        }
        Step::Settle { which } => {
            let count = script.outliers.len();
            let pdu = (count > 0).then(|| script.outliers.swap_remove(which % count))?;
            Plan::new(pdu, None)
        }
        Step::Gap => {
            let absent = script.pdu("m.room.message", None, json!({"body": "late"}), &[]);
            let pdu = script.pdu(
                "m.room.message",
                None,
                json!({"body": "after"}),
                &[absent.event_id().to_owned()],
            );
            script.absent.push(absent);
            Plan::new(pdu, None)
        }
        Step::Fill { which } => {
            let count = script.absent.len();
            let pdu = (count > 0).then(|| script.absent.swap_remove(which % count))?;
            Plan {
                history: true,
                ..Plan::new(pdu, None)
            }
        }
        Step::Redact { which } => {
            let mut targets = script.in_graph.clone();
            targets.extend(script.absent.iter().map(|pdu| pdu.event_id().to_owned()));
            let target = pick(&targets, *which)?;
            let held = model.has_event(&target).unwrap();
            let pdu = script.pdu("m.room.redaction", None, json!({"redacts": target}), &extremities);
            Plan {
                withheld: !held,
                redacts: held.then_some(target),
                ..Plan::new(pdu, None)
            }
        }
    })
}

/// Puts a small room into a store.
pub(crate) async fn fill(store: &Store) {
    let (mut model, mut script) = (Model::default(), Script::default());
    for number in 0..20 {
        let step = match number % 3 {
            0 => Step::Message,
            _ => Step::State(Change::Member {
                user: number,
                membership: 0,
            }),
        };
        let plan = plan(&step, &mut script, &model).unwrap();
        model.save(&plan.change(&model).unwrap());
        script.in_graph.push(plan.pdu.event_id().to_owned());
        save(store, vec![plan]).await;
    }
}

async fn save(store: &Store, plans: Vec<Plan>) {
    let write = store.write(move |txn| {
        plans.iter().try_for_each(|plan| {
            txn.save_event(&plan.change(&**txn)?)?;
            Ok::<_, StoreError>(())
        })
    });
    write.await.unwrap();
}

fn play(steps: &[Step], reopen_at: usize) {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::new(folder.path().join("kith.db"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut store = Store::open(&config).unwrap();
        let (mut model, mut script) = (Model::default(), Script::default());
        // Several events share a commit, as they do when they arrive in one transaction.
        for (number, steps) in steps.chunks(PER_COMMIT).enumerate() {
            let mut plans = Vec::new();
            for step in steps {
                let Some(plan) = plan(step, &mut script, &model) else {
                    continue;
                };
                model.save(&plan.change(&model).unwrap());
                if plan.status == EventStatus::Accepted && !plan.outlier {
                    script.in_graph.push(plan.pdu.event_id().to_owned());
                }
                plans.push(plan);
            }
            save(&store, plans).await;
            if number == reopen_at / PER_COMMIT {
                store.close().await;
                store = Store::open(&config).unwrap();
            }
        }
        store
            .read(move |txn| compare(txn, &model, &script.absent))
            .await
            .unwrap();
        store.close().await;
        let checked = check(&config.path).unwrap();
        assert!(checked.is_sound(), "{:?}", checked.problems);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_store_answers_as_memory_does(steps in prop::collection::vec(steps(), 1..120), reopen_at in 0..120usize) {
        play(&steps, reopen_at);
    }
}

/// Longer than a chain of deltas may get.
#[test]
fn long_chains_of_changes_stay_readable() {
    let steps: Vec<Step> = (0..400u32)
        .map(|number| {
            Step::State(Change::Member {
                user: (number % 11) as u8,
                membership: (number % 4) as u8,
            })
        })
        .collect();
    play(&steps, 200);
}

#[tokio::test]
async fn a_chunk_of_history_keeps_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreConfig::new(folder.path().join("kith.db"))).unwrap();
    let (model, mut script) = (Model::default(), Script::default());
    let chunks: Vec<Vec<Applied>> = (0..3)
        .map(|_| {
            let history = || Step::Message;
            (0..4)
                .map(|_| {
                    let plan = Plan {
                        history: true,
                        ..plan(&history(), &mut script, &model).unwrap()
                    };
                    plan.change(&model).unwrap()
                })
                .collect()
        })
        .collect();
    // Chunks arrive newest first; within each, the oldest event comes first.
    let expected: Vec<_> = chunks
        .iter()
        .rev()
        .flatten()
        .map(|applied| applied.event_id().to_owned())
        .collect();
    for chunk in chunks {
        let write = store.write(move |txn| {
            let places = txn.reserve_history(&room(), None, chunk.len())?;
            for (applied, place) in chunk.iter().zip(places) {
                assert_eq!(txn.save_history(applied, place)?.stream, Some(place));
            }
            Ok::<_, StoreError>(())
        });
        write.await.unwrap();
    }
    let timeline = store
        .read(|txn| txn.timeline(&room(), Seq(i64::MIN), Direction::Forward, 100))
        .await
        .unwrap();
    let ids: Vec<_> = timeline.iter().map(|event| event.pdu.event_id().to_owned()).collect();
    assert_eq!(ids, expected);
    assert_eq!(timeline.last().unwrap().stream, Seq(-1));
}
