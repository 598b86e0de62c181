//! What happens to networks in mid-conversation, and how long the next words take then.

use std::time::{Duration, Instant};

use kith_tests::{Access, Client, Host, LanError, Node};

use super::{Lab, UPLINK, delivery, is_straight, seconds, until_path};
use crate::Table;

/// Words that are said in turn while the uplink is switched.
const TURNS: usize = 6;

/// Two who talk already.
struct Talk {
    nodes: [Node; 2],
    alice: Client,
    bob: Client,
    room: String,
}

impl Talk {
    async fn start(nodes: [Node; 2]) -> Self {
        let mut alice = nodes[0].client_over_socket("alice").await;
        let mut bob = nodes[1].client_over_socket("bob").await;
        nodes[0].know(&nodes[1]).await;
        let room = alice.talk_to(&mut bob).await;
        Self {
            nodes,
            alice,
            bob,
            room,
        }
    }

    async fn between(lab: &Lab, hosts: [&Host; 2]) -> Self {
        Self::start([lab.node(hosts[0]).await, lab.node(hosts[1]).await]).await
    }

    /// Waits for a straight path.
    async fn straight(&self) {
        let straight = until_path(&self.nodes[0], &self.nodes[1], is_straight).await;
        assert!(straight.is_some(), "no straight path");
    }

    /// How long a word each way takes, from now.
    async fn both(&mut self, word: &str) -> Duration {
        let start = Instant::now();
        let Self { alice, bob, room, .. } = self;
        delivery(alice, bob, room, &format!("{word}, bob?")).await;
        delivery(bob, alice, room, &format!("{word}, alice?")).await;
        start.elapsed()
    }
}

pub(super) async fn relay_killed(reach: &mut Table) -> Result<(), LanError> {
    let mut lab = Lab::set_up(2, Some(UPLINK)).await?;
    let (first, second) = (lab.host(Access::Carrier).await?, lab.host(Access::Carrier).await?);
    let mut talk = Talk::between(&lab, [&first, &second]).await;
    let peer = talk.nodes[0].peer(&talk.nodes[1]).await.expect("a peer");
    let used = peer["addresses"][0].as_str().expect("an address");
    let names = |relay: &kith_tests::Relay| relay.addresses.iter().any(|address| used.starts_with(address));
    let dies = lab.relays.iter().position(names).expect("one of the relays");
    lab.relays[dies].kill().await;
    let took = talk.both("still there").await;
    reach.row([
        "relay killed: a word each way through the other",
        &seconds(took),
        "10 s",
    ]);
    Ok(())
}

pub(super) async fn internet_cut(reach: &mut Table) -> Result<(), LanError> {
    let mut lab = Lab::set_up(1, Some(UPLINK)).await?;
    let mut home = lab.internet.router(Access::Home).await?;
    let hosts = [home.host().await?, home.host().await?];
    let relays: Vec<_> = lab.relays.iter().collect();
    let mut nodes = Vec::new();
    for host in &hosts {
        let options = kith_tests::NodeOptions {
            mdns: true,
            ..Node::options_at(host, &relays)
        };
        nodes.push(Node::start(options).await);
    }
    let nodes: [Node; 2] = nodes.try_into().unwrap_or_else(|_| unreachable!("two hosts"));
    let mut talk = Talk::start(nodes).await;
    talk.straight().await;
    home.cut().await?;
    let took = talk.both("only me").await;
    reach.row(["internet cut, two on one LAN: a word each way", &seconds(took), "1 s"]);
    // Nobody is told where the restarted node is now but by the local network.
    talk.nodes[1].kill().await;
    talk.nodes[1].restart_anywhere().await;
    let took = talk.both("again").await;
    reach.row([
        "one of them restarted meanwhile, at another port: a word each way, from when it is up",
        &seconds(took),
        "",
    ]);
    Ok(())
}

pub(super) async fn uplink_switched(reach: &mut Table) -> Result<(), LanError> {
    let mut lab = Lab::set_up(1, Some(UPLINK)).await?;
    let mut home = lab.internet.router(Access::Home).await?;
    let mut carrier = lab.internet.router(Access::Carrier).await?;
    let phone = home.host().await?;
    let mobile = carrier.offer(&phone, "mobile").await?;
    let friend = lab.host(Access::Home).await?;
    let mut talk = Talk::between(&lab, [&phone, &friend]).await;
    talk.straight().await;
    let mut said = Vec::new();
    let mut gap = Duration::ZERO;
    let mut switched = None;
    for turn in 0..TURNS {
        if turn == TURNS / 3 {
            phone.switch("eth", "mobile", &mobile).await?;
            switched = Some(Instant::now());
        }
        let Talk { alice, bob, room, .. } = &mut talk;
        said.push(format!("turn {turn}"));
        let took = match turn % 2 {
            0 => delivery(alice, bob, room, &said[turn]).await,
            _ => delivery(bob, alice, room, &said[turn]).await,
        };
        gap = gap.max(took);
    }
    let whole = switched.map(|switched| switched.elapsed()).unwrap_or_default();
    let messages = talk
        .alice
        .get(&format!("/rooms/{}/messages?dir=b&limit=100", talk.room))
        .await
        .ok();
    let kept = kith_tests::texts(&messages["chunk"]);
    let lost = said.iter().filter(|text| !kept.contains(text)).count();
    reach.row([
        "uplink switched from home to mobile: the longest that a word took",
        &format!("{}, {lost} lost", seconds(gap)),
        "0 lost",
    ]);
    reach.row(["four words in turn from the switch on", &seconds(whole), ""]);
    Ok(())
}
