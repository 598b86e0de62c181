//! A topic among many nodes in one process: libp2p as it is, over wires in memory on a paused clock. Some followers may be
//! hostile. Only gossipsub's own heart beats in real time: the tests wait for it before anything is said. `tests/virtual/run.sh
//! topics::simulation` has it go by the paused clock too.
//!
//! `KITH_TOPIC_NODES=1000` says how many honest nodes there are, instead of the few that every test run affords.

mod drive;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::StreamExt;
use kith_identity::{IdentityKey, TopicSecret};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, IdentTopic, MessageAuthenticity},
    identity::Keypair,
    multiaddr::Protocol,
};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IteratorRandom, SliceRandom},
};
use ruma::OwnedServerName;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use self::drive::{Arrived, Ask, Book, Drive, Names};
use super::{
    allowance::{BURST, EACH_SECOND},
    *,
};
use crate::{
    Timing,
    internet::{Delays, Internet, address_of, time_is_virtual},
    peers::lock,
    swarm,
};

/// One way, between any two nodes.
const LINK: Duration = Duration::from_millis(50);

/// Members that each node dials, as `owner::company` does.
const DIALS: usize = 4;

/// How many honest nodes there are.
static NODES: LazyLock<usize> = LazyLock::new(|| {
    let wanted = std::env::var("KITH_TOPIC_NODES").ok();
    wanted.map_or(60, |wanted| wanted.parse().expect("KITH_TOPIC_NODES is a number"))
});

/// Messages until silent members have lost their places.
const WARM_UP: usize = 24;

/// Messages after that.
const AFTERWARDS: usize = 6;

/// Beats for the meshes to settle at the most, after everybody came at once.
const BEATS_BEFORE: usize = 20;

/// Many times as long as a message takes to spread, in real time.
fn heart() -> Duration {
    Duration::from_millis(500).max(Duration::from_millis(4) * *NODES as u32)
}

/// One world at a time: what waits on real time must not wait for another world.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Node {
    address: Ipv4Addr,
    peer_id: PeerId,
    server: OwnedServerName,
    asks: mpsc::Sender<Ask>,
    followers: watch::Receiver<usize>,
}

impl Node {
    fn multiaddr(&self) -> Multiaddr {
        address_of(self.address).with(Protocol::P2p(self.peer_id))
    }
}

/// What forged messages are made of.
const FORGERY: [u8; 300] = [0x42; 300];

/// What a hostile follower does besides following, swallowing what it gets and grafting whom it can.
#[derive(Clone, Copy, PartialEq)]
enum Hostility {
    Silent,
    Forging,
}

struct World {
    internet: Internet,
    names: Names,
    book: Book,
    arrived: Arrived,
    /// How often a node took another one for silent.
    silenced: Arc<watch::Sender<usize>>,
    topic: TopicSecret,
    rng: StdRng,
    nodes: Vec<Node>,
    /// Machines so far: numbers their addresses.
    made: u32,
}

impl World {
    fn new() -> Self {
        let delays = Delays {
            handshake: LINK * 3,
            dead: Duration::from_secs(3),
            link: LINK,
        };
        Self {
            internet: Internet::new(delays),
            names: Names::default(),
            book: Book::default(),
            silenced: Arc::default(),
            arrived: Arc::new(watch::Sender::default()),
            topic: TopicSecret::from_bytes(&[7; 32]),
            rng: StdRng::seed_from_u64(4),
            nodes: Vec::new(),
            made: 0,
        }
    }

    /// A new machine: its address, and who it is.
    fn machine(&mut self) -> (Ipv4Addr, Keypair, OwnedServerName) {
        self.made += 1;
        let keypair = Keypair::generate_ed25519();
        let server = IdentityKey::generate(&mut self.rng).public().server_name();
        let (peer_id, address) = (
            keypair.public().to_peer_id(),
            Ipv4Addr::from_bits(0x0b00_0000 + self.made),
        );
        lock(&self.names).insert(peer_id, server.clone());
        lock(&self.book).push((server.clone(), address_of(address).with(Protocol::P2p(peer_id))));
        (address, keypair, server)
    }

    fn swarm<B: libp2p::swarm::NetworkBehaviour>(
        &self,
        address: Ipv4Addr,
        keypair: &Keypair,
        behaviour: B,
    ) -> Swarm<B> {
        let timing = Timing {
            unused: Duration::from_secs(60 * 60),
            ..Timing::default()
        };
        let transport = self.internet.transport(address, keypair);
        let mut swarm = swarm::swarm(transport, behaviour, keypair.public().to_peer_id(), &timing);
        swarm.listen_on(address_of(address)).unwrap();
        swarm
    }

    /// An honest node that has just come and knows some who were there.
    fn join(&mut self) {
        self.join_knowing(DIALS);
    }

    /// An honest node that has just come and knows so many of those who were there.
    fn join_knowing(&mut self, count: usize) {
        let (address, keypair, server) = self.machine();
        let mut swarm = self.swarm(address, &keypair, Behaviour::with_heart(heart()).unwrap());
        let friends: Vec<_> = self
            .nodes
            .choose_multiple(&mut self.rng, count)
            .map(Node::multiaddr)
            .collect();
        for friend in friends {
            swarm.dial(friend).unwrap();
        }
        let (asks, asked) = mpsc::channel(16);
        let (follow, followers) = watch::channel(0);
        let drive = Drive {
            swarm,
            address,
            topic: self.topic.public(),
            names: self.names.clone(),
            book: self.book.clone(),
            rng: StdRng::seed_from_u64(u64::from(self.made)),
            chosen: HashMap::new(),
            arrived: self.arrived.clone(),
            silenced: self.silenced.clone(),
            followers: follow,
        };
        tokio::spawn(drive.run(asked));
        self.nodes.push(Node {
            address,
            peer_id: keypair.public().to_peer_id(),
            server,
            asks,
            followers,
        });
    }

    /// A follower that works against the others; says who it claims to be. It dials as many as an honest one.
    fn join_hostile(&mut self, hostility: Hostility, dials: usize) -> OwnedServerName {
        let (address, keypair, server) = self.machine();
        let config = config(heart()).unwrap();
        let mut gossip: gossipsub::Behaviour =
            gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, config).unwrap();
        let topic = IdentTopic::new(self.topic.public().name().as_str());
        gossip.subscribe(&topic).unwrap();
        let mut swarm = self.swarm(address, &keypair, gossip);
        for victim in self.nodes.choose_multiple(&mut self.rng, dials) {
            swarm.dial(victim.multiaddr()).unwrap();
        }
        let mut number = u64::from(self.made) << 32;
        tokio::spawn(async move {
            loop {
                // What it receives it never reports as valid, and so it passes nothing on.
                tokio::select! {
                    _ = swarm.select_next_some() => {}
                    () = sleep(Duration::from_millis(200)), if hostility == Hostility::Forging => {
                        number += 1;
                        let forged = [&number.to_be_bytes()[..], &FORGERY].concat();
                        let _ = swarm.behaviour_mut().publish(topic.hash(), forged);
                    }
                }
            }
        });
        server
    }

    fn members(&self) -> HashSet<OwnedServerName> {
        self.nodes.iter().map(|node| node.server.clone()).collect()
    }

    /// Everybody follows the topic among these servers; returns when each knows enough of the others to.
    async fn follow(&self, members: HashSet<OwnedServerName>) {
        let members: Members = Arc::new(members);
        for node in &self.nodes {
            node.asks.send(Ask::Follow(members.clone())).await.ok().unwrap();
        }
        for node in &self.nodes {
            let enough = DIALS.min(self.nodes.len() - 1);
            let mut followers = node.followers.clone();
            followers.wait_for(|count| *count >= enough).await.unwrap();
        }
        for _ in 0..BEATS_BEFORE {
            if self.beat().await {
                return;
            }
        }
        panic!("the meshes never settle");
    }

    /// Everybody follows the topic among these servers and dials some of them, and meshes are made for a few beats.
    async fn follow_among(&self, members: HashSet<OwnedServerName>) {
        let members: Members = Arc::new(members);
        for node in &self.nodes {
            node.asks.send(Ask::Follow(members.clone())).await.ok().unwrap();
            node.asks.send(Ask::Choose(DIALS)).await.ok().unwrap();
        }
        for node in &self.nodes {
            let mut followers = node.followers.clone();
            followers.wait_for(|count| *count >= DIALS).await.unwrap();
        }
        for _ in 0..3 {
            self.beat().await;
        }
    }

    /// Lets every heart beat once, and says whether all meshes were as they should be before.
    async fn beat(&self) -> bool {
        if time_is_virtual() {
            sleep(heart()).await;
        } else {
            // Gossipsub's time is the real one, and virtual time stands still meanwhile.
            tokio::task::spawn_blocking(|| std::thread::sleep(heart()))
                .await
                .unwrap();
        }
        let mut meshes = HashMap::new();
        for node in &self.nodes {
            let (reply, answer) = oneshot::channel();
            node.asks.send(Ask::Beat(reply)).await.ok().unwrap();
            meshes.insert(node.peer_id, answer.await.unwrap());
        }
        sleep(LINK * 4).await;
        let mutual = |(one, mesh): (&PeerId, &HashSet<PeerId>)| {
            let mut honest = mesh.iter().filter_map(|other| meshes.get(other));
            honest.all(|others| others.contains(one))
        };
        let enough = MESH_LOW..=MESH;
        meshes.iter().all(mutual) && meshes.values().all(|mesh| enough.contains(&mesh.len()))
    }

    /// One node says something, and everybody listens for a while.
    async fn tell(&mut self, sender: usize) -> Spread {
        let mut words = [0; 200];
        self.rng.fill(&mut words[..]);
        let message: Bytes = self.topic.seal(&words, &mut self.rng).unwrap().into();
        self.internet.watch(&message[..24]);
        self.arrived.send_replace(BTreeMap::new());
        let (reply, told) = oneshot::channel();
        let start = Instant::now();
        self.nodes[sender]
            .asks
            .send(Ask::Tell(message.clone(), reply))
            .await
            .ok()
            .unwrap();
        told.await.unwrap().unwrap();
        sleep(LINK / 2).await;
        let at_once = self.internet.copies().values().sum();
        let everybody = self.nodes.len() - 1;
        // Those whom the mesh does not reach are told at the next beats. After those they must catch up otherwise.
        for _ in 0..=TOLD_BEATS {
            let mut arrived = self.arrived.subscribe();
            let all = arrived.wait_for(|arrived| arrived.len() >= everybody);
            if tokio::time::timeout(BEAT, all).await.is_ok() {
                break;
            }
            self.beat().await;
        }
        // What is still under way counts as copies.
        sleep(LINK * 4).await;
        let arrived = self.arrived.borrow();
        // Nothing but messages of the topic is taken for one.
        assert!(arrived.keys().all(|(_, arrived)| self.topic.public().verify(arrived)));
        let this = arrived.iter().filter(|((_, arrived), _)| *arrived == message);
        let mut delays: Vec<_> = this.map(|(_, arrived)| *arrived - start).collect();
        delays.sort();
        let copies = self.internet.copies();
        Spread {
            reached: delays.len(),
            everybody,
            at_once,
            from_sender: copies[&self.nodes[sender].address],
            copies: copies.values().sum(),
            delays,
            missing: self
                .nodes
                .iter()
                .enumerate()
                .filter(|(number, node)| {
                    *number != sender
                        && !arrived
                            .keys()
                            .any(|(at, arrived)| *at == node.address && *arrived == message)
                })
                .map(|(number, _)| number)
                .collect(),
        }
    }

    /// Whoever did not get a message gets it from an honest node, if one is connected. Says how many do not.
    async fn catch_up(&mut self, spread: &Spread) -> usize {
        let mut alone = 0;
        for number in &spread.missing {
            let asks = &self.nodes[*number].asks;
            let (reply, answer) = oneshot::channel();
            asks.send(Ask::Peers(reply)).await.ok().unwrap();
            let peers = answer.await.unwrap();
            let honest = self.nodes.iter().filter(|node| peers.contains(&node.peer_id));
            match honest.choose(&mut self.rng) {
                Some(from) => asks.send(Ask::Missed(from.server.clone())).await.ok().unwrap(),
                None => alone += 1,
            }
        }
        alone
    }
}

/// What became of a message.
#[derive(Debug)]
struct Spread {
    reached: usize,
    everybody: usize,
    /// Sent by the sender of its own accord.
    at_once: usize,
    /// And with those who heard of it at a beat and asked.
    from_sender: usize,
    /// Sent by all together; what is more than one for each receiver is waste.
    copies: usize,
    delays: Vec<Duration>,
    /// Whom it did not reach.
    missing: Vec<usize>,
}

impl Spread {
    fn after(&self, share: usize) -> Duration {
        let last = (self.everybody * share).div_ceil(100).max(1) - 1;
        self.delays.get(last).copied().unwrap_or(Duration::MAX)
    }

    fn show(&self, what: &str) {
        let at = |delay: Option<Duration>| delay.map_or("-".to_owned(), |delay| format!("{delay:?}"));
        let after = |share| at(Some(self.after(share)).filter(|delay| *delay < Duration::MAX));
        println!(
            "{what}: {} of {}, p50 {}, p95 {}, last {}; {} copies from the sender, {:.2} for each receiver",
            self.reached,
            self.everybody,
            after(50),
            after(95),
            at(self.delays.last().copied()),
            self.from_sender,
            self.copies as f64 / self.reached as f64,
        );
    }

    /// What the design asks of every message.
    fn check(&self) {
        assert_eq!(self.reached, self.everybody);
        // One more than wanted, while somebody has just pressed in.
        assert!(self.at_once <= MESH_HIGH);
        assert!(self.after(95) < Duration::from_secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn every_message_reaches_everybody_soon_in_few_copies_and_then_there_is_silence() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    (0..*NODES).for_each(|_| world.join());
    world.follow(world.members()).await;
    for sender in [0, 1, *NODES / 2, *NODES - 1] {
        let spread = world.tell(sender).await;
        spread.show("honest");
        spread.check();
        assert!(spread.at_once <= MESH);
    }
    // Once the last beats are over, nothing is sent for hours. A thousand meshes go on changing places for some minutes.
    let quiet = async || {
        let before = world.internet.bytes();
        sleep(BEAT * 10).await;
        world.internet.bytes() == before
    };
    let mut tries = 0..100;
    while !quiet().await {
        tries.next().expect("there is never silence");
    }
    let before = world.internet.bytes();
    sleep(Duration::from_secs(10 * 60 * 60)).await;
    assert_eq!(world.internet.bytes(), before);
}

#[tokio::test(start_paused = true)]
async fn strangers_who_know_a_topics_name_take_no_part_in_it() {
    let _turn = TURN.lock().await;
    for hostility in [Hostility::Silent, Hostility::Forging] {
        let mut world = World::new();
        let honest = *NODES;
        (0..honest).for_each(|_| world.join());
        // Four to each honest one.
        for _ in 0..honest * 4 {
            world.join_hostile(hostility, DIALS);
        }
        world.follow(world.members()).await;
        for sender in [0, honest - 1] {
            let spread = world.tell(sender).await;
            spread.show("strangers");
            spread.check();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_message_stops_at_its_first_hop_and_its_forger_is_shut_out() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let honest = *NODES;
    (0..honest).for_each(|_| world.join());
    let mut members = world.members();
    world.internet.watch(&FORGERY[..64]);
    // Four to each honest one, and members all of them.
    for _ in 0..honest * 4 {
        members.insert(world.join_hostile(Hostility::Forging, DIALS));
    }
    world.follow(members).await;
    let forgers = world.internet.copies();
    assert!(forgers.len() > honest, "hardly anything was forged");
    let passed_on = world.nodes.iter().filter(|node| forgers.contains_key(&node.address));
    assert_eq!(passed_on.count(), 0);
    for sender in [0, 1, honest - 1] {
        let spread = world.tell(sender).await;
        spread.show("forgers");
        spread.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_who_floods_a_topic_is_passed_on_only_so_far() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    (0..12).for_each(|_| world.join());
    world.follow(world.members()).await;
    let start = Instant::now();
    // Far more than is allowed, and it does not compress.
    let mut words = vec![0; TopicSecret::MAX_CONTENT];
    let floods = 2 * BURST / words.len();
    for _ in 0..floods {
        world.rng.fill(&mut words[..]);
        let message: Bytes = world.topic.seal(&words, &mut world.rng).unwrap().into();
        let (reply, told) = oneshot::channel();
        world.nodes[0].asks.send(Ask::Tell(message, reply)).await.ok().unwrap();
        told.await.unwrap().unwrap();
    }
    // Long enough for all of it to get through, by what the wires carry.
    sleep(Duration::from_secs(20)).await;
    let allowed = BURST + EACH_SECOND * start.elapsed().as_secs() as usize;
    assert!(allowed < floods * words.len());
    let arrived = world.arrived.borrow();
    for node in &world.nodes[1..] {
        let bytes = arrived.keys().filter(|(at, _)| *at == node.address);
        let bytes: usize = bytes.map(|(_, message)| message.len()).sum();
        assert!(bytes > BURST / 2 && bytes <= allowed, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn members_who_pass_nothing_on_lose_their_places() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let honest = *NODES;
    // Each came through one that was there.
    (0..honest).for_each(|_| world.join_knowing(1));
    let mut members = world.members();
    // Four to each honest one, and members all of them.
    for _ in 0..honest * 4 {
        members.insert(world.join_hostile(Hostility::Silent, DIALS));
    }
    world.follow_among(members).await;
    let (mut heard, mut reached) = (0, 0);
    for number in 1..=WARM_UP + AFTERWARDS {
        let sender = world.rng.gen_range(0..honest);
        let spread = world.tell(sender).await;
        spread.show(&format!("silent members, message {number}"));
        assert!(spread.at_once <= MESH_HIGH);
        let alone = world.catch_up(&spread).await;
        assert_eq!(alone, 0);
        if number > WARM_UP && spread.reached * 10 >= spread.everybody * 9 {
            heard += 1;
            reached += spread.reached;
        }
    }
    // Whoever speaks for the first time may have silent members alone around it.
    assert!(heard * 3 >= AFTERWARDS * 2, "nine in ten heard {heard} of {AFTERWARDS}");
    assert!(reached * 100 >= heard * (honest - 1) * 98);
}

/// However many have never brought anything, nobody is taken for silent, or let go, while the mesh does its work.
#[tokio::test(start_paused = true)]
async fn nobody_honest_is_taken_for_silent_though_one_alone_speaks() {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let honest = NODES.min(20);
    (0..honest).for_each(|_| world.join());
    world.follow(world.members()).await;
    for _ in 0..50 {
        let spread = world.tell(0).await;
        spread.check();
        assert!(spread.at_once <= MESH);
        // As in a busy room: the next one comes before the meshes are looked at.
        assert_eq!(*world.silenced.borrow(), 0);
    }
    assert!(world.beat().await, "the meshes do not stay");
}
