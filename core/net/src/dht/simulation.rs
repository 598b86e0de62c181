//! The DHT with many servers in one process: libp2p as it is, over wires of the test's own. A fifth of the servers may be
//! hostile, servers come and go, and those that everybody began with die. Everything waits as long as it would on the real
//! internet: a handshake takes a while, and the dead never answer.
//!
//! `KITH_DHT_SERVERS=1000` says how many servers there are, instead of the few that every test run affords.

use std::{
    borrow::Cow,
    iter,
    net::Ipv4Addr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use libp2p::{
    Multiaddr, PeerId, Swarm, identify,
    identity::Keypair,
    kad::{
        self, ProviderRecord, Record, RecordKey,
        store::{RecordStore, Result as Stored},
    },
    multiaddr::Protocol,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{
    tests::{Bob, Time, look_up_all, soon},
    *,
};
use crate::internet::{Delays, Internet, address_of};

/// Until a connection is up: three times there and back, 50 ms each.
const HANDSHAKE_TIME: Duration = Duration::from_millis(150);

/// Servers that everybody begins with. They die once everybody has joined.
const FIRST: usize = 3;

/// Servers that join at one time.
const AT_ONCE: usize = 25;

#[derive(NetworkBehaviour)]
struct Honest {
    identify: identify::Behaviour,
    dht: Server,
}

/// Takes every record and keeps none, answers every question with garbage, and sends everybody to its friends.
#[derive(NetworkBehaviour)]
struct Hostile {
    identify: identify::Behaviour,
    kad: kad::Behaviour<Garbage>,
}

struct Garbage;

impl RecordStore for Garbage {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        Some(Cow::Owned(Record::new(key.clone(), vec![0x42; 1000])))
    }

    fn put(&mut self, _: Record) -> Stored<()> {
        Ok(())
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Stored<()> {
        Ok(())
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// A machine that serves.
struct Machine {
    address: Ipv4Addr,
    peer_id: PeerId,
    hostile: bool,
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
}

impl World {
    fn new() -> Self {
        Self {
            internet: Internet::new(Delays {
                handshake: HANDSHAKE_TIME,
                dead: HANDSHAKE,
                link: Duration::ZERO,
            }),
            time: Time::noon(),
            rng: StdRng::seed_from_u64(4),
            machines: Vec::new(),
            made: 0,
        }
    }

    /// A machine's address: all over the world, so that none is a neighbour.
    fn address(&mut self) -> Ipv4Addr {
        self.made += 1;
        Ipv4Addr::from_bits(0x0b00_0000 + self.made * 9973)
    }

    fn timing() -> Timing {
        Timing {
            unused: Duration::from_secs(2),
            ..Timing::default()
        }
    }

    fn start(&mut self, hostile: bool) {
        let keypair = Keypair::generate_ed25519();
        let peer_id = keypair.public().to_peer_id();
        let address = self.address();
        let transport = self.internet.transport(address, &keypair);
        let identify = swarm::identify_behaviour(&keypair);
        let first: Vec<_> = self.machines.iter().take(FIRST).map(Machine::multiaddr).collect();
        let (known, task) = if hostile {
            let mut kad = kad::Behaviour::with_config(peer_id, Garbage, settings());
            kad.set_mode(Some(kad::Mode::Server));
            let friends = self.machines.iter().filter(|machine| machine.hostile);
            for friend in friends {
                kad.add_address(&friend.peer_id, address_of(friend.address));
            }
            // It makes itself known to those who are there, as everybody does.
            let dials = self.machines.choose_multiple(&mut self.rng, 40).map(Machine::multiaddr);
            let dials = dials.collect::<Vec<_>>();
            let mut swarm = swarm::swarm(transport, Hostile { identify, kad }, peer_id, &Self::timing());
            swarm.listen_on(address_of(address)).unwrap();
            for address in dials {
                swarm.dial(address).unwrap();
            }
            (
                watch::channel(DhtStatus::default()).1,
                tokio::spawn(drive_hostile(swarm)),
            )
        } else {
            let dht = Server::started(peer_id, self.time.server_config(first));
            let known = dht.status();
            let mut swarm = swarm::swarm(transport, Honest { identify, dht }, peer_id, &Self::timing());
            swarm.listen_on(address_of(address)).unwrap();
            (known, tokio::spawn(drive(swarm)))
        };
        self.machines.push(Machine {
            address,
            peer_id,
            hostile,
            known,
            task,
        });
    }

    /// Machines join, some at a time; returns when each that is honest knows others.
    async fn join(&mut self, count: usize, hostile: usize) {
        let mut kinds = [vec![true; hostile], vec![false; count - hostile]].concat();
        kinds.shuffle(&mut self.rng);
        for some in kinds.chunks(AT_ONCE) {
            let before = self.machines.len();
            some.iter().for_each(|hostile| self.start(*hostile));
            let enough = before.min(10);
            let joined = self.machines[before..].iter().filter(|machine| !machine.hostile);
            let joined = joined.map(|machine| {
                let mut known = machine.known.clone();
                async move { drop(soon(known.wait_for(|status| status.servers >= enough)).await.unwrap()) }
            });
            join_all(joined).await;
        }
    }

    /// Those that everybody began with die, and some others, without a word.
    fn die(&mut self, share: f64) {
        let mut left = Vec::new();
        for (index, machine) in self.machines.drain(..).enumerate() {
            if index < FIRST || (!machine.hostile && self.rng.gen_bool(share)) {
                self.internet.remove(machine.address);
                machine.task.abort();
            } else {
                left.push(machine);
            }
        }
        self.machines = left;
    }

    /// Someone who publishes and looks up, on a machine that serves nobody.
    fn client(&mut self) -> Dht {
        let address = self.address();
        let internet = self.internet.clone();
        let carrier: Carrier = Arc::new(move |keypair, _| Ok(internet.transport(address, keypair)));
        let config = DhtConfig {
            servers: self.machines.iter().take(FIRST).map(Machine::multiaddr).collect(),
            ..DhtConfig::desktop()
        };
        let dht = Dht::over(carrier, config, self.time.directory(), Self::timing());
        dht.set_relays(&[]);
        dht
    }
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

/// How many servers there are.
static SERVERS: LazyLock<usize> = LazyLock::new(|| {
    let wanted = std::env::var("KITH_DHT_SERVERS").ok();
    wanted.map_or(60, |wanted| wanted.parse().expect("KITH_DHT_SERVERS is a number"))
});

/// One world at a time: what waits on real time must not wait for another world.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What lookups came to.
struct Outcome {
    found: usize,
    sought: usize,
    p50: Duration,
    p95: Duration,
}

/// Everybody publishes, the world changes, and everybody looks somebody else up.
async fn run(hostile_share: f64) -> Outcome {
    let _turn = TURN.lock().await;
    let mut world = World::new();
    let servers = *SERVERS;
    world.join(FIRST, 0).await;
    let hostile = (servers as f64 * hostile_share) as usize;
    world.join(servers - FIRST, hostile).await;
    let mut people = Vec::new();
    for _ in 0..(servers / 4).min(100) {
        people.push((Bob::new(), world.client()));
    }
    let now = world.time.now();
    let published = people.iter_mut().map(|(bob, dht)| {
        let records = [bob.where_at(now, 1), bob.document_at(now)];
        async move {
            for record in &records {
                assert!(dht.publish(record).await.unwrap() >= 8);
            }
        }
    });
    stream::iter(published.collect::<Vec<_>>())
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;

    // A fifth of the servers is gone an hour later, the first ones among them; as many are new.
    world.die(0.2);
    let gone = servers - world.machines.len();
    world.time.pass(60 * 60 * 1000);
    world.join(gone, (gone as f64 * hostile_share) as usize).await;

    let count = people.len();
    let lookups = (0..count * 2).map(|index| {
        let (_, dht) = &people[index % count];
        let (bob, _) = &people[(index * 7 + 3) % count];
        async move {
            let start = Instant::now();
            let found = look_up_all(dht, &bob.name()).await;
            (found == [bob.address(1)]).then(|| start.elapsed())
        }
    });
    let outcomes: Vec<_> = stream::iter(lookups.collect::<Vec<_>>())
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut times: Vec<_> = outcomes.iter().flatten().copied().collect();
    times.sort();
    // Those that found nothing took longer than any.
    times.resize(outcomes.len(), Duration::MAX);
    let outcome = Outcome {
        found: outcomes.iter().flatten().count(),
        sought: outcomes.len(),
        p50: times[times.len() / 2],
        p95: times[times.len() * 95 / 100],
    };
    for machine in world.machines {
        machine.task.abort();
    }
    println!(
        "{servers} servers, {hostile} of them hostile: {} of {} found, half within {:?}, 95 % within {:?}",
        outcome.found, outcome.sought, outcome.p50, outcome.p95
    );
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_found_while_servers_come_and_go_and_the_first_are_dead() {
    let outcome = run(0.0).await;
    assert!(
        outcome.found * 100 >= outcome.sought * 99,
        "{} of {}",
        outcome.found,
        outcome.sought
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_found_though_a_fifth_of_the_servers_is_hostile() {
    let outcome = run(0.2).await;
    assert!(
        outcome.found * 100 >= outcome.sought * 99,
        "{} of {}",
        outcome.found,
        outcome.sought
    );
}
