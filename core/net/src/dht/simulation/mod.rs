//! The DHT with many servers in one process: libp2p as it is, over wires of the test's own. Servers come and go, some work
//! against the others, and those that everybody began with die. Everything takes as long as it would on the real internet: a
//! handshake takes a while, and the dead never answer.
//!
//! `cargo test` runs a few servers in real time. Under virtual time (`make sim-dht`) there may be a thousand, and a run repeats.

mod hostile;
mod outcome;
mod runs;

use std::{
    net::Ipv4Addr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::{
    StreamExt,
    future::{Either, join_all, select},
};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::transport::timeout::TransportTimeout,
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{interval_at, sleep},
};

use self::hostile::{Hostile, Hostility};
use super::{
    tests::{Time, soon},
    *,
};
use crate::internet::{Carried, Delays, Internet, address_of};

/// One way, once a connection is up.
const LINK: Duration = Duration::from_millis(50);

/// Until a connection is up: three times there and back.
const HANDSHAKE_TIME: Duration = Duration::from_millis(300);

/// Servers that everybody begins with. They die once everybody has joined.
const FIRST: usize = 3;

/// Servers that join at one time.
const AT_ONCE: usize = 25;

/// Others that a hostile server makes itself known to.
const HOSTILE_DIALS: usize = 40;

/// A server's stay, on average, while people publish and look up.
const STAY: Duration = Duration::from_secs(15 * 60);

/// A thousand servers that keep each connection for as long as real ones do take three times the memory.
const UNUSED: Duration = Duration::from_secs(10);

/// How many servers there are.
static SERVERS: LazyLock<usize> = LazyLock::new(|| number("KITH_DHT_SERVERS", 40));

/// How many hostile servers have chosen PeerIds next to the addresses of each person in ten.
static SYBILS: LazyLock<usize> = LazyLock::new(|| number("KITH_DHT_SYBILS", 0));

fn number(variable: &str, otherwise: usize) -> usize {
    let wanted = std::env::var(variable).ok();
    wanted.map_or(otherwise, |wanted| wanted.parse().expect("a number"))
}

#[derive(NetworkBehaviour)]
struct Honest {
    identify: identify::Behaviour,
    dht: Server,
}

/// A machine that serves.
struct Machine {
    address: Ipv4Addr,
    peer_id: PeerId,
    hostility: Option<Hostility>,
    known: watch::Receiver<DhtStatus>,
    task: JoinHandle<()>,
}

impl Machine {
    fn multiaddr(&self) -> Multiaddr {
        address_of(self.address).with(Protocol::P2p(self.peer_id))
    }
}

struct World {
    internet: Internet,
    time: Time,
    rng: StdRng,
    machines: Vec<Machine>,
    /// Machines so far: numbers their addresses.
    made: u32,
    /// Servers that came and went while people were at work.
    exchanged: usize,
}

/// A transport that gives up as the real ones do.
fn transport(internet: &Internet, address: Ipv4Addr, keypair: &Keypair) -> swarm::BoxedTransport {
    TransportTimeout::new(internet.transport(address, keypair), HANDSHAKE).boxed()
}

impl World {
    fn new() -> Self {
        Self {
            internet: Internet::new(Delays {
                handshake: HANDSHAKE_TIME,
                dead: HANDSHAKE,
                link: LINK,
            }),
            time: Time::noon(),
            rng: StdRng::seed_from_u64(4),
            machines: Vec::new(),
            made: 0,
            exchanged: 0,
        }
    }

    /// A machine's address: all over the world, so that none is a neighbour.
    fn address(&mut self) -> Ipv4Addr {
        self.made += 1;
        Ipv4Addr::from_bits(0x0b00_0000 + self.made * 9973)
    }

    fn start(&mut self, hostility: Option<Hostility>) {
        self.start_as(hostility, &Keypair::generate_ed25519());
    }

    fn start_as(&mut self, hostility: Option<Hostility>, keypair: &Keypair) {
        let peer_id = keypair.public().to_peer_id();
        let address = self.address();
        let transport = transport(&self.internet, address, keypair);
        let identify = swarm::identify_behaviour(keypair);
        let timing = Timing {
            unused: UNUSED,
            ..Timing::default()
        };
        let (known, task) = if let Some(hostility) = hostility {
            let friends = self.machines.iter().filter(|machine| machine.hostility.is_some());
            let friends = friends.map(|friend| (friend.peer_id, address_of(friend.address)));
            let hostile = Hostile::new(identify, peer_id, hostility, friends);
            // It makes itself known to those who are there, as everybody does.
            let victims = self.machines.choose_multiple(&mut self.rng, HOSTILE_DIALS);
            let mut swarm = swarm::swarm(transport, hostile, peer_id, &timing);
            swarm.listen_on(address_of(address)).unwrap();
            for victim in victims {
                swarm.dial(victim.multiaddr()).unwrap();
            }
            let nothing = watch::channel(DhtStatus::default()).1;
            (nothing, tokio::spawn(drive_hostile(swarm)))
        } else {
            let config = self.time.server_config(self.some_servers());
            let dht = Server::started(peer_id, config);
            let known = dht.status();
            let mut swarm = swarm::swarm(transport, Honest { identify, dht }, peer_id, &timing);
            swarm.listen_on(address_of(address)).unwrap();
            (known, tokio::spawn(drive(swarm)))
        };
        self.machines.push(Machine {
            address,
            peer_id,
            hostility,
            known,
            task,
        });
    }

    /// Servers that newcomers are told of.
    fn some_servers(&self) -> Vec<Multiaddr> {
        let honest = self.machines.iter().filter(|machine| machine.hostility.is_none());
        honest.take(FIRST).map(Machine::multiaddr).collect()
    }

    fn some_hostility(&mut self) -> Hostility {
        Hostility::ALL[self.rng.gen_range(0..Hostility::ALL.len())]
    }

    /// Machines join, some at a time; returns when each that is honest knows others.
    async fn join(&mut self, count: usize, hostile: usize) {
        let mut kinds = [vec![true; hostile], vec![false; count - hostile]].concat();
        kinds.shuffle(&mut self.rng);
        for some in kinds.chunks(AT_ONCE) {
            let before = self.machines.len();
            for hostile in some {
                let hostility = hostile.then(|| self.some_hostility());
                self.start(hostility);
            }
            let enough = before.min(10);
            let joined = self.machines[before..]
                .iter()
                .filter(|machine| machine.hostility.is_none());
            let joined = joined.map(|machine| {
                let mut known = machine.known.clone();
                async move { drop(soon(known.wait_for(|status| status.servers >= enough)).await.unwrap()) }
            });
            join_all(joined).await;
        }
    }

    /// The first machine, or the one at an index, dies without a word.
    fn kill(&mut self, index: usize) {
        let machine = self.machines.remove(index);
        self.internet.remove(machine.address);
        machine.task.abort();
    }

    /// Those that everybody began with die, and a share of the other honest ones. Says how many.
    fn die(&mut self, share: f64) -> usize {
        let before = self.machines.len();
        for index in (0..before).rev() {
            if index < FIRST || (self.machines[index].hostility.is_none() && self.rng.gen_bool(share)) {
                self.kill(index);
            }
        }
        before - self.machines.len()
    }

    /// Servers come and go until something is done. Hostile ones stay, so that their share does.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let every = STAY / self.machines.len() as u32;
        let mut due = interval_at(Instant::now() + every, every);
        let mut work = Box::pin(work);
        loop {
            match select(work, Box::pin(due.tick())).await {
                Either::Left((done, _)) => return done,
                Either::Right((_, still)) => work = still,
            }
            let honest: Vec<_> = (0..self.machines.len())
                .filter(|index| self.machines[*index].hostility.is_none())
                .collect();
            let goes = *honest.choose(&mut self.rng).unwrap();
            self.kill(goes);
            self.start(None);
            self.time.pass(every.as_millis() as u64);
            self.exchanged += 1;
        }
    }

    /// Someone who publishes and looks up, on a machine that serves nobody.
    fn client(&mut self, config: DhtConfig) -> Client {
        let address = self.address();
        let internet = self.internet.clone();
        let carrier: Carrier = Arc::new(move |keypair, _| Ok(transport(&internet, address, keypair)));
        let config = DhtConfig {
            servers: self.some_servers(),
            ..config
        };
        let dht = Dht::over(carrier, config, self.time.directory(), Timing::default());
        dht.set_relays(&[]);
        Client { address, dht }
    }

    /// What clients cost themselves so far, together.
    fn carried<'a>(&self, clients: impl IntoIterator<Item = &'a Client>) -> Carried {
        let mut all = Carried::default();
        for client in clients {
            let one = self.internet.carried(client.address);
            all.connections += one.connections;
            all.bytes += one.bytes;
        }
        all
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for machine in &self.machines {
            machine.task.abort();
        }
    }
}

/// Somebody's way into the DHT.
struct Client {
    address: Ipv4Addr,
    dht: Dht,
}

async fn drive(mut swarm: Swarm<Honest>) {
    loop {
        if let SwarmEvent::Behaviour(HonestEvent::Identify(identify::Event::Received {
            connection_id,
            peer_id,
            info,
            ..
        })) = swarm.select_next_some().await
        {
            swarm.behaviour_mut().dht.identified(connection_id, peer_id, &info);
        }
    }
}

async fn drive_hostile(mut swarm: Swarm<Hostile>) {
    loop {
        swarm.select_next_some().await;
    }
}
