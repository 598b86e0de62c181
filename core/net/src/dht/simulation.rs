//! The DHT with many servers in one process: libp2p as it is, over wires of the test's own. A fifth of the servers may be
//! hostile, servers come and go, and those that everybody began with die. Everything waits as long as it would on the real
//! internet: a handshake takes a while, and the dead never answer.
//!
//! `KITH_DHT_SERVERS=1000` says how many servers there are, instead of the few that every test run affords.

use std::{
    borrow::Cow,
    collections::HashMap,
    io, iter,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt,
    future::{BoxFuture, Ready, join_all, ready},
    stream,
};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::{
        UpgradeInfo,
        muxing::StreamMuxerBox,
        transport::{DialOpts, ListenerId, TransportError, TransportEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, Version},
    },
    identify,
    identity::Keypair,
    kad::{
        self, ProviderRecord, Record, RecordKey,
        store::{RecordStore, Result as Stored},
    },
    multiaddr::Protocol,
    swarm::{NetworkBehaviour, SwarmEvent},
    yamux,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::{
    tests::{Bob, Time, look_up_all, soon},
    *,
};

/// Until a connection is up: three times there and back, 50 ms each.
const HANDSHAKE_TIME: Duration = Duration::from_millis(150);

/// Servers that everybody begins with. They die once everybody has joined.
const FIRST: usize = 3;

/// Servers that join at one time.
const AT_ONCE: usize = 25;

/// What arrives at one address.
type Arrivals = mpsc::Sender<(DuplexStream, Ipv4Addr)>;

/// Every machine that is up, by its address.
#[derive(Clone, Default)]
struct Internet(Arc<Mutex<HashMap<Ipv4Addr, Arrivals>>>);

/// One machine's way to the others.
struct Wire {
    internet: Internet,
    own: Ipv4Addr,
    listening: Option<(ListenerId, mpsc::Receiver<(DuplexStream, Ipv4Addr)>)>,
    announce: bool,
}

fn address_of(machine: Ipv4Addr) -> Multiaddr {
    Multiaddr::from(machine)
        .with(Protocol::Udp(4433))
        .with(Protocol::QuicV1)
}

impl Internet {
    fn wire(&self, own: Ipv4Addr) -> Wire {
        Wire {
            internet: self.clone(),
            own,
            listening: None,
            announce: false,
        }
    }

    fn transport(&self, own: Ipv4Addr, keypair: &Keypair) -> swarm::BoxedTransport {
        self.wire(own)
            .upgrade(Version::V1Lazy)
            .authenticate(Plain(keypair.public().to_peer_id()))
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed()
    }
}

impl Transport for Wire {
    type Output = Compat<DuplexStream>;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(&mut self, id: ListenerId, _: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        let (arrivals, arriving) = mpsc::channel(256);
        lock(&self.internet.0).insert(self.own, arrivals);
        self.listening = Some((id, arriving));
        self.announce = true;
        Ok(())
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        self.listening.take().is_some()
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some(Protocol::Ip4(machine)) = address.iter().next() else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let (internet, own) = (self.internet.clone(), self.own);
        Ok(async move {
            sleep(HANDSHAKE_TIME).await;
            let up = lock(&internet.0).get(&machine).cloned();
            let (here, there) = tokio::io::duplex(64 << 10);
            if let Some(arrivals) = up
                && arrivals.send((there, own)).await.is_ok()
            {
                return Ok(here.compat());
            }
            sleep(HANDSHAKE - HANDSHAKE_TIME).await;
            Err(io::ErrorKind::TimedOut.into())
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let own = address_of(self.own);
        let announce = std::mem::take(&mut self.announce);
        let Some((listener_id, arriving)) = &mut self.listening else {
            return Poll::Pending;
        };
        let listener_id = *listener_id;
        if announce {
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id,
                listen_addr: own,
            });
        }
        arriving.poll_recv(cx).map(|arrived| match arrived {
            Some((stream, from)) => TransportEvent::Incoming {
                listener_id,
                upgrade: ready(Ok(stream.compat())),
                local_addr: own,
                send_back_addr: address_of(from),
            },
            None => TransportEvent::ListenerClosed {
                listener_id,
                reason: Ok(()),
            },
        })
    }
}

/// Each side says its PeerId, and is believed: what is tried here is not cryptography.
#[derive(Clone)]
struct Plain(PeerId);

impl UpgradeInfo for Plain {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/plain/1")
    }
}

impl<S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<S> for Plain {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_inbound(self, mut stream: S, _: Self::Info) -> Self::Future {
        async move {
            let own = self.0.to_bytes();
            stream.write_all(&own).await?;
            stream.flush().await?;
            let mut other = vec![0; own.len()];
            stream.read_exact(&mut other).await?;
            let other = PeerId::from_bytes(&other).map_err(io::Error::other)?;
            Ok((other, stream))
        }
        .boxed()
    }
}

impl<S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<S> for Plain {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_outbound(self, stream: S, info: Self::Info) -> Self::Future {
        self.upgrade_inbound(stream, info)
    }
}

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
            internet: Internet::default(),
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
            let mut settings = kad::Config::new(PROTOCOL);
            settings.set_kbucket_inserts(kad::BucketInserts::Manual);
            let mut kad = kad::Behaviour::with_config(peer_id, Garbage, settings);
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
                lock(&self.internet.0).remove(&machine.address);
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
