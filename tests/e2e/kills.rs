//! Two hundred kills under load: three nodes talk in one room while one after another is ended with SIGKILL, at instants
//! that a seeded generator picks among the requests under way. What was acknowledged is then on all of them, once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::join_all;
use kith_tests::{Client, Node, within};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::a_room_of_three;

/// Kills of all nodes together.
const KILLS: usize = 200;
/// Requests begun or answered between two kills at the most.
const MOST_BETWEEN: u64 = 12;
/// Every so many kills, the database of the node that was killed is checked before the node starts again.
const CHECK_EVERY: usize = 20;
/// Picks the instants and the victims. Any other is as good.
const SEED: u64 = 0x6b69_7468;

/// A generator of reproducible numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// What writers and killer tell each other.
struct Board {
    /// Requests begun and requests answered, counted together: the clock of this suite.
    instants: watch::Sender<u64>,
    /// How often each node has been started, so that writers wait for one that is down without asking it over and over.
    starts: [watch::Sender<u64>; 3],
    over: watch::Sender<bool>,
    /// Requests that were cut off by a kill.
    cut_off: AtomicUsize,
}

impl Board {
    fn tick(&self) {
        self.instants.send_modify(|instants| *instants += 1);
    }
}

/// A user who writes without pause, and repeats what was not answered, as clients do: with the same transaction id.
struct Writer {
    client: Client,
    node: usize,
    /// Texts with the ids of the events that they became.
    acknowledged: BTreeMap<String, String>,
}

impl Writer {
    async fn write(mut self, room: String, board: Arc<Board>) -> Self {
        let over = board.over.subscribe();
        let mut starts = board.starts[self.node].subscribe();
        for n in 0.. {
            if *over.borrow() {
                break;
            }
            let text = format!("{}-{n:05}", self.node);
            let path = format!("/rooms/{room}/send/m.room.message/{text}");
            let body = json!({"msgtype": "m.text", "body": text});
            let event = loop {
                let start = *starts.borrow_and_update();
                board.tick();
                let answer = self.client.try_request(Method::PUT, &path, Some(&body)).await;
                board.tick();
                match answer {
                    Some(answer) if answer.status == 200 => break answer.body["event_id"].clone(),
                    // A node that is asked to end says 503; one that is killed says nothing.
                    Some(answer) => panic!("{text}: {} {}", answer.status, answer.body),
                    None => {
                        board.cut_off.fetch_add(1, Ordering::Relaxed);
                        let again = starts.wait_for(|now| *now > start);
                        within("the node's next start", again)
                            .await
                            .expect("the board outlives writers");
                    }
                }
            };
            let event = event.as_str().expect("an event id").to_owned();
            self.acknowledged.insert(text, event);
        }
        self
    }
}

/// Kills and restarts nodes while writers write.
async fn kill_all_along(nodes: &mut [Node], board: &Board) {
    let mut dice = Dice(SEED);
    let mut instants = board.instants.subscribe();
    for kill in 1..=KILLS {
        let victim = usize::try_from(dice.below(3)).expect("a small number");
        let instant = *instants.borrow_and_update() + 1 + dice.below(MOST_BETWEEN);
        let reached = instants.wait_for(|now| *now >= instant);
        within("requests", reached)
            .await
            .expect("the board outlives the killer");
        nodes[victim].kill().await;
        if kill % CHECK_EVERY == 0 {
            assert_sound(&nodes[victim]).await;
        }
        nodes[victim].restart().await;
        board.starts[victim].send_modify(|starts| *starts += 1);
    }
}

async fn assert_sound(node: &Node) {
    let (status, _, stderr) = node.kith(&["check"], "").await;
    assert!(status.success(), "{stderr}");
}

/// All text messages of a room with their event ids, in the order of a client's timeline.
async fn timeline(client: &Client, room: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let page = client
            .get(&format!("/rooms/{room}/messages?dir=b&limit=500{from}"))
            .await
            .ok();
        let chunk = page["chunk"].as_array().expect("events");
        let messages = chunk.iter().filter(|event| event["type"] == "m.room.message");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        found.extend(messages.map(|event| (text(&event["content"]["body"]), text(&event["event_id"]))));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    found.reverse();
    found
}

/// The timeline, once it holds all that was acknowledged anywhere.
async fn timeline_with(
    client: &mut Client,
    room: &str,
    acknowledged: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    // Where the news begin for which the loop waits.
    client.sync(0).await;
    let waiting = async {
        loop {
            let seen = timeline(client, room).await;
            let there: BTreeMap<_, _> = seen.iter().cloned().collect();
            if acknowledged.keys().all(|text| there.contains_key(text)) {
                return seen;
            }
            client.sync(20_000).await;
        }
    };
    within("what was acknowledged", waiting).await
}

#[tokio::test]
async fn two_hundred_kills_lose_nothing_and_repeat_nothing() {
    let mut nodes = Node::start_connected(3).await;
    let (clients, room) = a_room_of_three(&nodes).await;

    let board = Arc::new(Board {
        instants: watch::Sender::default(),
        starts: Default::default(),
        over: watch::Sender::default(),
        cut_off: AtomicUsize::default(),
    });
    let writers: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(node, client)| Writer {
            client,
            node,
            acknowledged: BTreeMap::new(),
        })
        .map(|writer| tokio::spawn(writer.write(room.clone(), Arc::clone(&board))))
        .collect();
    kill_all_along(&mut nodes, &board).await;
    board.over.send_replace(true);
    let mut writers: Vec<Writer> = join_all(writers).await.into_iter().map(Result::unwrap).collect();
    let cut_off = board.cut_off.load(Ordering::Relaxed);
    assert!(cut_off > 0, "no kill met a request");

    let acknowledged: BTreeMap<String, String> =
        writers.iter().flat_map(|writer| writer.acknowledged.clone()).collect();
    for writer in &mut writers {
        let seen = timeline_with(&mut writer.client, &room, &acknowledged).await;
        assert_eq!(
            seen.len(),
            acknowledged.len(),
            "node {}: something is there twice",
            writer.node
        );
        assert_eq!(
            seen.into_iter().collect::<BTreeMap<_, _>>(),
            acknowledged,
            "node {}",
            writer.node
        );
    }
    for node in &mut nodes {
        assert!(node.stop().await.success());
        assert_sound(node).await;
    }
    eprintln!("{} messages, {cut_off} requests cut off", acknowledged.len());
}
