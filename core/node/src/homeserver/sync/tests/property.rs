//! Whatever happens, in whatever steps a client hears of it: in the end it knows what one who asks only then is told.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::json;

use super::{at, create, ids, observer::Observer};
use crate::testing::{Client, Cluster, escape};

/// Something that happens. Numbers choose among what there is, modulo how much there is.
#[derive(Debug, Clone)]
enum Step {
    Say { who: usize, room: usize },
    Topic { who: usize, room: usize },
    Rename { who: usize },
    Join { who: usize, room: usize },
    Leave { who: usize, room: usize },
    Invite { who: usize, whom: usize, room: usize },
    Kick { whom: usize, room: usize },
    Redact { who: usize, which: usize },
    Look { observer: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (who, room) = (0..3usize, 0..2usize);
    let step = prop_oneof![
        8 => (who.clone(), room.clone()).prop_map(|(who, room)| Step::Say { who, room }),
        2 => (who.clone(), room.clone()).prop_map(|(who, room)| Step::Topic { who, room }),
        1 => who.clone().prop_map(|who| Step::Rename { who }),
        3 => (who.clone(), room.clone()).prop_map(|(who, room)| Step::Join { who, room }),
        2 => (who.clone(), room.clone()).prop_map(|(who, room)| Step::Leave { who, room }),
        2 => (who.clone(), who.clone(), room.clone()).prop_map(|(who, whom, room)| Step::Invite { who, whom, room }),
        1 => (who.clone(), room).prop_map(|(whom, room)| Step::Kick { whom, room }),
        1 => (who, any::<usize>()).prop_map(|(who, which)| Step::Redact { who, which }),
        5 => (0..12usize).prop_map(|observer| Step::Look { observer }),
    ];
    prop::collection::vec(step, 20..80)
}

/// Ways to ask; the last leaves members out.
const WAYS: [&[(&str, &str)]; 4] = [
    &[],
    &[("filter", r#"{"room":{"timeline":{"limit":1}}}"#)],
    &[
        ("filter", r#"{"room":{"timeline":{"limit":2}}}"#),
        ("use_state_after", "true"),
    ],
    &[(
        "filter",
        r#"{"room":{"timeline":{"limit":2},"state":{"lazy_load_members":true}}}"#,
    )],
];

struct Scene {
    people: Vec<Client>,
    rooms: Vec<String>,
    said: Vec<(usize, String)>,
    count: usize,
}

impl Scene {
    /// Makes something happen; what is not allowed does not.
    async fn act(&mut self, step: &Step) {
        self.count += 1;
        let count = self.count;
        match step {
            Step::Say { who, room } => {
                let path = at(&self.rooms[*room], &format!("send/m.room.message/{count}"));
                let content = json!({ "msgtype": "m.text", "body": format!("{count}") });
                let (_, answer) = self.people[*who].put(&path, content).await;
                if let Some(id) = answer["event_id"].as_str() {
                    self.said.push((*room, id.to_owned()));
                }
            }
            Step::Topic { who, room } => {
                let content = json!({ "topic": format!("{count}") });
                self.people[*who]
                    .put(&at(&self.rooms[*room], "state/m.room.topic"), content)
                    .await;
            }
            Step::Rename { who } => {
                let user = escape(&self.people[*who].user_id);
                let path = format!("/_matrix/client/v3/profile/{user}/displayname");
                self.people[*who]
                    .put(&path, json!({ "displayname": format!("{count}") }))
                    .await;
            }
            Step::Join { who, room } => {
                self.people[*who].post(&at(&self.rooms[*room], "join"), json!({})).await;
            }
            Step::Leave { who, room } => {
                self.people[*who]
                    .post(&at(&self.rooms[*room], "leave"), json!({}))
                    .await;
            }
            Step::Invite { who, whom, room } => {
                let content = json!({ "user_id": self.people[*whom].user_id });
                self.people[*who].post(&at(&self.rooms[*room], "invite"), content).await;
            }
            Step::Kick { whom, room } => {
                let content = json!({ "user_id": self.people[*whom].user_id });
                self.people[0].post(&at(&self.rooms[*room], "kick"), content).await;
            }
            Step::Redact { who, which } => {
                let Some((room, id)) = self.said.get(which % self.said.len().max(1)) else {
                    return;
                };
                let path = at(&self.rooms[*room], &format!("redact/{}/{count}", escape(id)));
                self.people[*who].put(&path, json!({})).await;
            }
            Step::Look { .. } => {}
        }
    }
}

/// Every event of a room that a client may read, oldest first, in pages of this size, and each once.
async fn history(client: &Client, room: &str, way: &str, size: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let page = client
            .get_ok(&at(room, &format!("messages?dir={way}&limit={size}{from}")))
            .await;
        let chunk = ids(&page["chunk"]);
        assert!(chunk.len() <= size);
        found.extend(chunk);
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", escape(end)),
            None => break,
        }
    }
    if way == "b" {
        found.reverse();
    }
    let mut unique = found.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), found.len(), "an event came twice");
    found
}

async fn play(steps: Vec<Step>) {
    let cluster = Cluster::start(1).await;
    let mut people = Vec::new();
    for name in ["alice", "bob", "carol"] {
        people.push(cluster[0].register(name).await);
    }
    let rooms = vec![
        create(&people[0], json!({ "preset": "public_chat", "name": "open" })).await,
        create(&people[0], json!({ "preset": "private_chat" })).await,
    ];
    let mut observers: Vec<_> = people
        .iter()
        .flat_map(|person| WAYS.iter().map(|way| (person.clone(), way)))
        .map(|(person, way)| (person.clone(), way, Observer::new(&person, way)))
        .collect();
    let mut scene = Scene {
        people,
        rooms,
        said: Vec::new(),
        count: 0,
    };
    for step in &steps {
        if let Step::Look { observer } = step {
            observers[*observer].2.step().await;
        }
        scene.act(step).await;
    }
    for (person, way, observer) in &mut observers {
        observer.step().await;
        let mut newcomer = Observer::new(person, way);
        newcomer.step().await;
        assert_eq!(observer.invites, newcomer.invites);
        assert_eq!(
            observer.rooms.keys().collect::<Vec<_>>(),
            newcomer.rooms.keys().collect::<Vec<_>>()
        );
        let lazy = **way == WAYS[3];
        for (id, room) in &mut observer.rooms {
            let fresh = newcomer.rooms.get_mut(id).unwrap();
            if lazy {
                // Which members are told differs; those that are must be the current ones.
                let all = person.get_ok(&at(id, "members")).await;
                let current = ids(&all["chunk"]);
                for room in [&*room, &*fresh] {
                    let mut members = room.state.iter().filter(|(key, _)| key.0 == "m.room.member");
                    assert!(members.all(|(_, event)| current.contains(event)), "{id}");
                }
                room.state.retain(|key, _| key.0 != "m.room.member");
                fresh.state.retain(|key, _| key.0 != "m.room.member");
            }
            assert_eq!(room.state, fresh.state, "{way:?}");
            let whole = history(person, id, "b", 3).await;
            assert!(whole.ends_with(&room.timeline), "{way:?} {whole:?} {:?}", room.timeline);
            assert!(whole.ends_with(&fresh.timeline), "{way:?}");
        }
    }
    for (person, sizes) in scene.people.iter().zip([[1, 2], [5, 7], [4, 100]]) {
        for room in &scene.rooms {
            let (status, _) = person.get(&at(room, "messages?dir=b")).await;
            if status.is_success() {
                let backward = history(person, room, "b", sizes[0]).await;
                assert_eq!(history(person, room, "f", sizes[1]).await, backward);
            }
        }
    }
}

#[test]
fn steps_add_up_to_what_a_newcomer_is_told() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Few but long cases: each plays twelve clients against a real node.
    let config = Config {
        cases: 12,
        max_shrink_iters: 60,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime.block_on(play(steps));
            Ok(())
        })
        .unwrap();
}
