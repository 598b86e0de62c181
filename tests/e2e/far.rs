//! Nodes that are far apart, on lines that lose packets: 200 ms there and back, and one packet in fifty lost each way.

use std::time::Duration;

use futures::{StreamExt, stream};
use kith_tests::{Access, Client, Internet, Node, Quality, Relay, lab, texts};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;

/// One uplink; two of them lie between any two nodes, and between a node and its relay.
const UPLINK: Quality = Quality {
    delay: Duration::from_millis(50),
    jitter: Duration::from_millis(5),
    loss: 0.01,
};

const TURNS: usize = 20;
const MANY: usize = 300;
const FILE: usize = 256 << 10;

async fn find_each_other_and_talk(access: Access, path: &str, name: &str) {
    let set_up = lab(name, async {
        let mut internet = Internet::set_up().await?;
        internet.set_uplinks(UPLINK);
        let relay = internet.public_host().await?;
        let hosts = [internet.host(access).await?, internet.host(access).await?];
        Ok((internet, relay, hosts))
    });
    let Some((mut internet, relay, hosts)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let relays = [&relay];
    let (one, other) = futures::join!(
        Node::start_at(&hosts[0].0, &relays),
        Node::start_at(&hosts[1].0, &relays)
    );
    let mut alice = one.client_over_socket("alice").await;
    let mut bob = other.client_over_socket("bob").await;

    // By name alone.
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    one.reaches(&other, path).await;
    both_ways(&mut alice, &mut bob, &room).await;
    many_at_once(&alice, &mut bob, &room).await;
    // A file whose path breaks on its way is answered 502 and has to be asked for again, and long relayed paths do break.
    if path == "direct" {
        a_file(&alice, &bob).await;
    }

    for (uplink, carried) in internet.carried().await.iter().enumerate() {
        eprintln!("{access:?}, uplink {uplink}: {carried:?}");
        assert!(carried.lost > 0, "nothing was lost: {carried:?}");
    }
}

/// Each says something in turn, and hears all of it once and in order.
async fn both_ways(alice: &mut Client, bob: &mut Client, room: &str) {
    let mut said = Vec::new();
    let (mut heard_by_alice, mut heard_by_bob) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let (speaker, listener, heard) = match turn % 2 {
            0 => (&*alice, &mut *bob, &mut heard_by_bob),
            _ => (&*bob, &mut *alice, &mut heard_by_alice),
        };
        said.push(format!("turn {turn}"));
        speaker.send_text(room, &said[turn]).await;
        heard.extend(listener.texts_until(room, &said[turn..]).await);
    }
    // What oneself said last is heard, too.
    let missing: Vec<_> = said
        .iter()
        .filter(|text| !heard_by_bob.contains(text))
        .cloned()
        .collect();
    heard_by_bob.extend(bob.texts_until(room, &missing).await);
    assert_eq!(heard_by_alice, said);
    assert_eq!(heard_by_bob, said);
}

async fn many_at_once(alice: &Client, bob: &mut Client, room: &str) {
    let many: Vec<_> = (0..MANY).map(|number| format!("many {number}")).collect();
    let sends = many.iter().map(|text| alice.send_text(room, text));
    stream::iter(sends).buffered(16).collect::<Vec<_>>().await;
    // In the order in which alice's node took them, sixteen at a time.
    let sent = history(alice, room).await;
    let last = sent.last().cloned().into_iter().collect::<Vec<_>>();
    bob.texts_until(room, &last).await;
    let mut heard = history(bob, room).await;
    assert_eq!(heard, sent);
    heard.retain(|text| many.contains(text));
    let number = |text: &String| text.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok());
    heard.sort_by_key(number);
    assert_eq!(heard, many, "each once");
}

/// All that was said in a room, in its order.
async fn history(client: &Client, room: &str) -> Vec<String> {
    let (mut said, mut from) = (Vec::new(), String::new());
    loop {
        let page = client
            .get(&format!("/rooms/{room}/messages?dir=f&limit=100{from}"))
            .await
            .ok();
        said.extend(texts(&page["chunk"]));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return said,
        }
    }
}

async fn a_file(alice: &Client, bob: &Client) {
    let mut bytes = vec![0; FILE];
    StdRng::seed_from_u64(FILE as u64).fill_bytes(&mut bytes);
    let media = alice.upload(bytes.clone()).await;
    assert!(bob.download(&media).await == bytes, "the file arrived as another");
}

#[tokio::test]
async fn lines_that_lose_packets_lose_no_message_on_a_straight_path() {
    let name = "lines_that_lose_packets_lose_no_message_on_a_straight_path";
    find_each_other_and_talk(Access::Home, "direct", name).await;
}

#[tokio::test]
async fn lines_that_lose_packets_lose_no_message_through_a_relay() {
    let name = "lines_that_lose_packets_lose_no_message_through_a_relay";
    find_each_other_and_talk(Access::Carrier, "relayed", name).await;
}
