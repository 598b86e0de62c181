//! The DHT over real QUIC on loopback: relays serve, errands publish and look up.

mod spies;

use std::{
    collections::HashMap,
    future::Future,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use kith_identity::{
    AddressRecord, Certificate, Day, IdentityKey, KeyDocument, NodeKey, Record, RecordKey, RecordKind, RecordSigner,
    RecordSlot, SealedRecord, TransportKey, Whereabouts,
};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use rand::rngs::OsRng;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Clock, Dht, DhtConfig, ERRAND, PATHS, ServerConfig, ShelfLimits, Stored, errand::Errand, known_servers};
use crate::{
    PeerAddresses, PublishError, Timing,
    internet::{Delays, Internet, address_of},
    peer_id_of,
    peers::lock,
    relay::{Relay, RelayConfig, RelayLimits},
    swarm,
    testing::MemoryDirectory,
};

/// Noon of a day in 2026, in milliseconds.
const NOON: u64 = 20_700 * DAY + DAY / 2;
const DAY: u64 = 24 * HOUR;
const HOUR: u64 = 60 * 60 * 1000;

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new(millis).unwrap())
}

pub(super) async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), awaited).await.expect("it never came")
}

/// One clock for everybody in a test.
#[derive(Clone)]
pub(super) struct Time(Arc<AtomicU64>);

impl Time {
    pub(super) fn noon() -> Self {
        Self(Arc::new(AtomicU64::new(NOON)))
    }

    pub(super) fn now(&self) -> MilliSecondsSinceUnixEpoch {
        at(self.0.load(SeqCst))
    }

    pub(super) fn pass(&self, millis: u64) {
        self.0.fetch_add(millis, SeqCst);
    }

    pub(super) fn server_config(&self, servers: Vec<Multiaddr>) -> ServerConfig {
        ServerConfig {
            clock: self.clock(),
            limits: ShelfLimits::default(),
            servers,
        }
    }

    /// A relay, which is a server of the DHT.
    async fn server(&self, others: Vec<Multiaddr>) -> Relay {
        let key = TransportKey::generate(&mut OsRng);
        self.server_at(QUIC.parse().unwrap(), key, others).await
    }

    async fn server_at(&self, listen: Multiaddr, transport_key: TransportKey, others: Vec<Multiaddr>) -> Relay {
        Relay::start(RelayConfig {
            transport_key,
            listen: vec![listen],
            external: Vec::new(),
            limits: RelayLimits::default(),
            dht: self.server_config(others),
            timing: Timing::default(),
        })
        .await
        .unwrap()
    }

    /// Servers that all know each other.
    async fn servers(&self, count: usize) -> Vec<Relay> {
        let mut servers = vec![self.server(Vec::new()).await];
        while servers.len() < count {
            let first = servers[0].addrs();
            servers.push(self.server(first).await);
            // Who joins meets all that are there. Those who join at one time would meet when they join again.
            let others = servers.len() - 1;
            for server in &servers {
                soon(server.dht().wait_for(|status| status.servers == others))
                    .await
                    .unwrap();
            }
        }
        servers
    }

    /// Errands never say who makes them: it has no document of its own.
    pub(super) fn directory(&self) -> Arc<MemoryDirectory> {
        MemoryDirectory::new(None, self.clock())
    }

    fn clock(&self) -> Clock {
        let time = self.clone();
        Arc::new(move || time.now())
    }

    fn dht(&self, servers: Vec<Multiaddr>) -> (Dht, Arc<MemoryDirectory>) {
        let directory = self.directory();
        let config = DhtConfig {
            servers,
            ..DhtConfig::desktop()
        };
        (Dht::new(config, &[], directory.clone(), &Timing::default()), directory)
    }
}

/// Whoever publishes: a server's keys, and the PeerId and address that it says it has.
pub(super) struct Bob {
    identity: IdentityKey,
    node: NodeKey,
    document: KeyDocument,
    peer_id: PeerId,
    keys: HashMap<(Day, RecordKind), RecordKey>,
}

impl Bob {
    pub(super) fn new() -> Self {
        let identity = IdentityKey::generate(&mut OsRng);
        let node = NodeKey::generate(&mut OsRng);
        let document = KeyDocument::new(&identity, &node.public(), at(NOON), at(NOON * 2)).unwrap();
        Self {
            identity,
            node,
            document,
            peer_id: PeerId::random(),
            keys: HashMap::new(),
        }
    }

    pub(super) fn name(&self) -> OwnedServerName {
        self.document.server_name()
    }

    pub(super) fn address(&self, port: u16) -> PeerAddresses {
        PeerAddresses {
            peer_id: self.peer_id,
            addresses: vec![format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap()],
        }
    }

    fn seal(&mut self, record: &Record, day: Day) -> SealedRecord {
        let kind = record.kind();
        let key = self
            .keys
            .entry((day, kind.clone()))
            .or_insert_with(|| RecordKey::generate(&mut OsRng));
        let certificate = match &kind {
            RecordKind::Keys => Certificate::for_document(&self.identity, &self.document, day, &key.public()),
            RecordKind::Address(id) => Certificate::for_node(&self.identity, id, day, &key.public()),
        };
        let slot = RecordSlot::new(self.identity.public(), kind, day);
        let key = RecordKey::from_bytes(&key.to_bytes());
        let signer = RecordSigner::new(slot, certificate.unwrap(), key).unwrap();
        SealedRecord::seal(record, &signer, &mut OsRng).unwrap()
    }

    /// An address record made at a time, for the day that it falls into.
    pub(super) fn where_at(&mut self, time: MilliSecondsSinceUnixEpoch, port: u16) -> SealedRecord {
        let whereabouts = Whereabouts {
            peer_id: self.peer_id.to_bytes(),
            addrs: vec![self.address(port).addresses[0].to_vec()],
            ..Whereabouts::default()
        };
        let record = AddressRecord::sign(whereabouts, &self.document, &self.node, time).unwrap();
        self.seal(&Record::Address(record), Day::of(time))
    }

    pub(super) fn document_at(&mut self, time: MilliSecondsSinceUnixEpoch) -> SealedRecord {
        let record = Record::keys(self.document.clone(), time);
        self.seal(&record, Day::of(time))
    }
}

/// Everything that looking a name up gives.
pub(super) async fn look_up_all(dht: &Dht, server: &ServerName) -> Vec<PeerAddresses> {
    let (tell, mut found) = mpsc::channel(64);
    soon(dht.look_up(server, &tell, &CancellationToken::new())).await;
    drop(tell);
    let mut all = Vec::new();
    while let Some((name, addresses)) = found.recv().await {
        assert_eq!(name, server);
        all.extend(addresses);
    }
    all
}

#[tokio::test]
async fn whoever_knows_a_name_finds_its_keys_and_addresses() {
    for count in [1, 3, 10] {
        let time = Time::noon();
        let servers = time.servers(count).await;
        let (publisher, _) = time.dht(servers[0].addrs());
        let (finder, known) = time.dht(servers[count - 1].addrs());
        let mut bob = Bob::new();
        for record in [bob.document_at(time.now()), bob.where_at(time.now(), 1)] {
            assert_eq!(soon(publisher.publish(&record)).await.unwrap(), count);
        }
        assert_eq!(
            look_up_all(&finder, &bob.name()).await,
            [bob.address(1)],
            "{count} servers"
        );
        assert_eq!(lock(&known.documents).get(&bob.name()), Some(&bob.document));
        // With the document at hand, what is new is found as well.
        time.pass(HOUR);
        soon(publisher.publish(&bob.where_at(time.now(), 2))).await.unwrap();
        assert_eq!(look_up_all(&finder, &bob.name()).await, [bob.address(2)]);
        assert_eq!(
            look_up_all(&finder, &Bob::new().name()).await,
            [],
            "nobody knows this one"
        );
    }
}

#[tokio::test]
async fn clocks_may_be_a_day_apart_and_records_end() {
    let time = Time::noon();
    let servers = time.servers(2).await;
    let (dht, _) = time.dht(servers[0].addrs());
    // (the publisher's clock, how much later it is looked up, whether it is found)
    let cases = [
        (NOON - DAY, 0, true),
        (NOON + DAY, 0, true),
        (NOON - 2 * DAY, 0, false),
        (NOON + 2 * DAY, 0, false),
        (NOON, 2 * HOUR - 1, true),
        (NOON, 2 * HOUR, false),
    ];
    for (clock, later, found) in cases {
        let mut bob = Bob::new();
        time.0.store(NOON, SeqCst);
        for record in [bob.document_at(at(clock)), bob.where_at(at(clock), 1)] {
            soon(dht.publish(&record)).await.unwrap();
        }
        time.pass(later);
        let expected: &[PeerAddresses] = if found { &[bob.address(1)] } else { &[] };
        assert_eq!(look_up_all(&dht, &bob.name()).await, expected, "{clock} {later}");
    }
}

/// What a server gives under a key.
async fn held(server: &Relay, key: kith_identity::DhtKey) -> Option<Vec<u8>> {
    let mut errand = errand(&server.addrs());
    errand.seek(key);
    soon(errand.next()).await.map(|given| given.value)
}

fn errand(servers: &[Multiaddr]) -> Errand {
    let timing = Timing::default();
    let carrier: super::Carrier = Arc::new(|keypair, _| swarm::direct_transport(keypair, &Timing::default()));
    Errand::new(&carrier, &timing, &known_servers(servers), PATHS).unwrap()
}

/// Publishes bytes as they are: servers seem to take everything.
async fn put(server: &Relay, key: kith_identity::DhtKey, value: Vec<u8>) {
    let mut errand = errand(&server.addrs());
    let took = soon(errand.put(key, value, std::num::NonZeroUsize::MIN)).await.taken;
    assert_eq!(took.len(), 1);
    assert_eq!(took[0].peer_id, server.peer_id());
}

#[tokio::test]
async fn a_server_refuses_what_is_forged_old_expired_or_elsewhere() {
    let time = Time::noon();
    let server = time.server(Vec::new()).await;
    let (mut bob, mut eve) = (Bob::new(), Bob::new());
    let older = bob.where_at(at(NOON - 1), 1);
    let good = bob.where_at(at(NOON), 2);
    let key = good.dht_key();
    put(&server, key, good.encode().unwrap()).await;
    let good = good.encode().unwrap();
    assert_eq!(held(&server, key).await.as_ref(), Some(&good));

    let mut forged = bob.where_at(at(NOON + 1), 3).encode().unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let mut changed = bob.where_at(at(NOON + 1), 3).encode().unwrap();
    changed[600] ^= 1;
    let mut long = good.clone();
    long.resize(5000, 0);
    let cases = [
        ("forged", forged),
        ("changed", changed),
        ("rolled back", older.encode().unwrap()),
        ("somebody else's", eve.where_at(at(NOON + 1), 3).encode().unwrap()),
        ("of another kind", bob.document_at(at(NOON + 1)).encode().unwrap()),
        ("of another day", bob.where_at(at(NOON + DAY), 3).encode().unwrap()),
        ("oversized", long),
        ("garbage", vec![0xff; 1024]),
        ("nothing", Vec::new()),
    ];
    for (what, value) in cases {
        put(&server, key, value).await;
        assert_eq!(held(&server, key).await.as_ref(), Some(&good), "{what}");
    }
    // Under its own key none of these is good either.
    let expired = bob.where_at(at(NOON - DAY - 3 * HOUR), 1);
    let far = bob.where_at(at(NOON + 2 * DAY), 1);
    for (what, record) in [("expired", expired), ("from the far future", far)] {
        put(&server, record.dht_key(), record.encode().unwrap()).await;
        assert_eq!(held(&server, record.dht_key()).await, None, "{what}");
    }
    assert_eq!(server.dht().borrow().records, 1);

    // After its end it does not come back, nor anything older, until its day is over: nobody keeps a record alive.
    time.pass(3 * HOUR);
    for record in [good.clone(), older.encode().unwrap()] {
        put(&server, key, record).await;
        assert_eq!(held(&server, key).await, None);
    }
    let newer = bob.where_at(time.now(), 4).encode().unwrap();
    put(&server, key, newer.clone()).await;
    assert_eq!(held(&server, key).await, Some(newer));
}

#[tokio::test]
async fn servers_that_were_met_replace_those_that_died() {
    let time = Time::noon();
    let mut servers = time.servers(6).await;
    let first = servers.remove(0);
    let (dht, known) = time.dht(first.addrs());
    let mut bob = Bob::new();
    for record in [bob.document_at(time.now()), bob.where_at(time.now(), 1)] {
        soon(dht.publish(&record)).await.unwrap();
    }
    assert_eq!(look_up_all(&dht, &bob.name()).await, [bob.address(1)]);
    assert!(!lock(&known.dht_servers).is_empty());
    first.shutdown().await;
    time.pass(HOUR);
    assert_eq!(soon(dht.publish(&bob.where_at(time.now(), 2))).await.unwrap(), 5);
    assert_eq!(look_up_all(&dht, &bob.name()).await, [bob.address(2)]);
}

#[tokio::test]
async fn a_server_that_found_nobody_joins_when_somebody_is_there() {
    let time = Time::noon();
    let place = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = place.local_addr().unwrap().port();
    let at: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let key = TransportKey::generate(&mut OsRng);
    let there = at.clone().with(Protocol::P2p(peer_id_of(&key).unwrap()));
    let _early = time.server(vec![there]).await;
    // It has come and found no server, as often as libp2p tries by itself.
    drop(soon(place.accept()).await.unwrap());
    while let Ok(came) = timeout(Duration::from_secs(3), place.accept()).await {
        drop(came.unwrap());
    }
    drop(place);
    let late = time.server_at(at, key, Vec::new()).await;
    soon(late.dht().wait_for(|status| status.servers == 1)).await.unwrap();
}

#[tokio::test]
async fn a_search_ends_though_a_server_neither_answers_nor_refuses() {
    let never = Duration::from_secs(60 * 60);
    let internet = Internet::new(Delays {
        handshake: never,
        dead: never,
        link: Duration::ZERO,
    });
    let (own, server) = (Ipv4Addr::new(11, 0, 0, 1), Ipv4Addr::new(11, 0, 0, 2));
    let carrier: super::Carrier = Arc::new(move |keypair, _| Ok(internet.transport(own, keypair)));
    let server = address_of(server).with(Protocol::P2p(PeerId::random()));
    let mut errand = Errand::new(&carrier, &Timing::default(), &known_servers(&[server]), PATHS).unwrap();
    errand.seek(Bob::new().document_at(at(NOON)).dht_key());
    // Otherwise it is cut off, and what it found is lost. In a task of its own: waiting for it does not make it look at its clocks.
    let search = tokio::spawn(async move { errand.next().await.is_none() });
    assert!(timeout(ERRAND / 2, search).await.expect("no end").unwrap());
}

#[test]
fn those_who_took_a_record_are_enough_while_most_are_there() {
    // (servers that it was given to, that took it, that take it again, whether they are enough)
    let cases = [
        (3, 3, 2, true),
        (3, 3, 1, false),
        (16, 16, 11, true),
        (16, 16, 10, false),
        (16, 9, 8, true),
        (16, 9, 7, false),
        (2, 2, 2, true),
    ];
    for (given, took, again, enough) in cases {
        let server = PeerAddresses {
            peer_id: PeerId::random(),
            addresses: Vec::new(),
        };
        let stored = Stored {
            servers: vec![server; took],
            given,
            sought: Instant::now(),
        };
        assert_eq!(stored.is_enough(again), enough, "{again} of {took} of {given}");
    }
}

#[tokio::test]
async fn a_record_goes_again_to_those_who_took_it_while_most_are_there() {
    let time = Time::noon();
    let mut servers = time.servers(3).await;
    let (dht, known) = time.dht(Vec::new());
    dht.set_relays(&servers[0].addrs());
    let mut bob = Bob::new();
    assert_eq!(soon(dht.publish(&bob.where_at(time.now(), 1))).await.unwrap(), 3);
    // Whom to ask who is nearest is forgotten.
    dht.set_relays(&[]);
    lock(&known.dht_servers).clear();
    time.pass(1);
    let renewed = bob.where_at(time.now(), 2);
    assert_eq!(soon(dht.publish(&renewed)).await.unwrap(), 3);
    let newest = renewed.encode().unwrap();
    for server in &servers {
        assert_eq!(held(server, renewed.dht_key()).await.as_ref(), Some(&newest));
    }
    for enough in [Some(2), None] {
        servers.pop().unwrap().shutdown().await;
        time.pass(1);
        let published = soon(dht.publish(&bob.where_at(time.now(), 3))).await;
        assert_eq!(published.ok(), enough);
    }
    // Of another record nobody knows yet who would take it.
    let other = bob.document_at(time.now());
    assert!(matches!(dht.publish(&other).await, Err(PublishError::NoServers)));
}

#[tokio::test]
async fn without_servers_there_is_nothing_to_ask() {
    let time = Time::noon();
    let (dht, _) = time.dht(Vec::new());
    let mut bob = Bob::new();
    let record = bob.where_at(time.now(), 1);
    assert!(matches!(dht.publish(&record).await, Err(PublishError::NoServers)));
    assert_eq!(look_up_all(&dht, &bob.name()).await, []);
    let gone = time.server(Vec::new()).await;
    let (dht, _) = time.dht(gone.addrs());
    gone.shutdown().await;
    assert!(matches!(soon(dht.publish(&record)).await, Err(PublishError::NotTaken)));
}

#[tokio::test]
async fn a_name_that_was_not_found_is_not_looked_up_all_the_time() {
    let (dht, _) = Time::noon().dht(Vec::new());
    let bob = Bob::new().name();
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    assert!(dht.may_look_up(&bob, false, start));
    // (seconds since the start, whether it may be looked up then if something is awaited)
    for (seconds, may) in [(4, false), (5, true), (19, false), (20, true), (64, false), (65, true)] {
        assert!(!dht.may_look_up(&bob, false, after(seconds)), "{seconds}");
        assert_eq!(dht.may_look_up(&bob, true, after(seconds)), may, "{seconds}");
    }
    assert!(dht.may_look_up(&Bob::new().name(), false, start), "others may");
    dht.forgive();
    assert!(dht.may_look_up(&bob, false, start));
    dht.reached(&bob);
    assert!(dht.may_look_up(&bob, false, start));
}
