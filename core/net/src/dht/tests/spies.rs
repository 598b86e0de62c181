//! Servers of the test's own, which look closely at what they are given, or lie.

use std::{collections::HashSet, iter};

use futures::StreamExt;
use kith_identity::TransportKey;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    identity::Keypair,
    kad::{self, store::MemoryStore, store::RecordStore},
    swarm::SwarmEvent,
};
use rand::rngs::OsRng;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Bob, DAY, HOUR, NOON, QUIC, Time, at, known_servers, look_up_all, soon};
use crate::{Timing, dht::settings, peer_id_of, peers::lock, relay::Relay, swarm};

/// A server of the test's own: gives what it was told to, and shows what it is given.
struct Spy {
    address: Multiaddr,
    seen: mpsc::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Spy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Seen {
    peer_id: PeerId,
    record: kad::Record,
}

/// Starts one that knows another server.
async fn spy(gives: Vec<kad::Record>, other: Option<&Relay>) -> Spy {
    let keypair = Keypair::generate_ed25519();
    let peer_id = keypair.public().to_peer_id();
    let mut settings = settings();
    settings.set_record_filtering(kad::StoreInserts::FilterBoth);
    let mut kad = kad::Behaviour::with_config(peer_id, MemoryStore::new(peer_id), settings);
    kad.set_mode(Some(kad::Mode::Server));
    for record in gives {
        kad.store_mut().put(record).unwrap();
    }
    for server in other.map(|other| known_servers(&other.addrs())).into_iter().flatten() {
        kad.add_address(&server.peer_id, server.addresses[0].clone());
    }
    let timing = Timing::default();
    let transport = swarm::direct_transport(&keypair, &timing).unwrap();
    let mut swarm: Swarm<_> = swarm::swarm(transport, kad, peer_id, &timing);
    swarm::listen(&mut swarm, &[QUIC.parse().unwrap()], drop).await.unwrap();
    let address = swarm.listeners().next().unwrap().clone().with_p2p(peer_id).unwrap();
    let (tell, seen) = mpsc::channel(64);
    let task = tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(kad::Event::InboundRequest {
                request:
                    kad::InboundRequest::PutRecord {
                        source,
                        record: Some(record),
                        ..
                    },
            }) = swarm.select_next_some().await
            {
                let seen = Seen {
                    peer_id: source,
                    record,
                };
                tell.send(seen).await.unwrap();
            }
        }
    });
    Spy { address, seen, task }
}

#[tokio::test]
async fn a_storer_learns_no_name_and_cannot_link_two_days() {
    let time = Time::noon();
    let mut spy = spy(Vec::new(), None).await;
    let (dht, _) = time.dht(vec![spy.address.clone()]);
    let mut bob = Bob::new();
    let mut seen = Vec::new();
    for _ in 0..2 {
        for record in [bob.where_at(time.now(), 1), bob.document_at(time.now())] {
            soon(dht.publish(&record)).await.unwrap();
            seen.push(spy.seen.recv().await.unwrap());
        }
        time.pass(DAY);
    }
    let distinct = |part: fn(&Seen) -> Vec<u8>| seen.iter().map(part).collect::<HashSet<_>>().len();
    assert_eq!(
        distinct(|seen| seen.peer_id.to_bytes()),
        4,
        "each errand has a key of its own"
    );
    assert_eq!(
        distinct(|seen| seen.record.key.to_vec()),
        4,
        "each day and kind has its own place"
    );
    let secrets = [
        bob.name().as_bytes().to_vec(),
        bob.identity.public().as_bytes().to_vec(),
        bob.node.public().signing.as_bytes().to_vec(),
        bob.node.key_id().as_bytes().to_vec(),
        bob.peer_id.to_bytes(),
        bob.peer_id.to_base58().into_bytes(),
        bob.address(1).addresses[0].to_vec(),
    ];
    for Seen { record, .. } in &seen {
        assert_eq!(record.publisher, None);
        assert_eq!(record.expires, None);
        for secret in &secrets {
            let contains = |bytes: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
            assert!(!contains(&record.value) && !contains(record.key.as_ref()));
        }
        // Of 1, 2 and 4 KiB, nearly: all that the size tells.
        assert!(
            record.value.len() <= 1024 && record.value.len() > 900,
            "{}",
            record.value.len()
        );
    }
    // What is the same in two days' records of one kind is the same in anybody's: field names, and the day's high bytes.
    let mut eve = Bob::new();
    let others = [eve.where_at(at(NOON), 1), eve.document_at(at(NOON))];
    for (index, other) in others.iter().enumerate() {
        let (one, two, other) = (
            &seen[index].record.value,
            &seen[index + 2].record.value,
            other.encode().unwrap(),
        );
        assert_eq!(one.len(), two.len());
        let longest = |a: &[u8], b: &[u8]| common(a, b);
        assert!(
            longest(one, two) <= longest(one, &other).max(32),
            "something ties the two days together"
        );
    }
}

/// The longest run of bytes at the same place in both.
fn common(a: &[u8], b: &[u8]) -> usize {
    let mut longest = 0;
    let mut run = 0;
    for (a, b) in a.iter().zip(b) {
        run = if a == b { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

#[tokio::test]
async fn a_forged_record_never_wins() {
    let time = Time::noon();
    let servers = time.servers(3).await;
    let (publisher, _) = time.dht(servers[0].addrs());
    let (mut bob, mut eve) = (Bob::new(), Bob::new());
    let older = bob.where_at(at(NOON - HOUR), 1);
    let mut keys = Vec::new();
    for record in [bob.document_at(time.now()), bob.where_at(time.now(), 2)] {
        soon(publisher.publish(&record)).await.unwrap();
        keys.push(record.dht_key());
    }
    let lies: [(&str, Vec<u8>); 4] = [
        ("garbage", vec![7; 1000]),
        ("nothing", Vec::new()),
        ("somebody else's", eve.where_at(at(NOON), 3).encode().unwrap()),
        ("long", vec![7; 12_000]),
    ];
    for (what, lie) in lies {
        let gives = keys
            .iter()
            .map(|key| kad::Record::new(kad::RecordKey::new(key.as_bytes()), lie.clone()));
        let liar = spy(gives.collect(), Some(&servers[0])).await;
        let (finder, _) = time.dht(vec![liar.address.clone()]);
        assert_eq!(look_up_all(&finder, &bob.name()).await, [bob.address(2)], "{what}");
    }
    // An old record of bob's own is true as far as it goes; the newer one follows it.
    time.pass(HOUR + HOUR / 2);
    let gives = kad::Record::new(kad::RecordKey::new(older.dht_key().as_bytes()), older.encode().unwrap());
    let liar = spy(vec![gives], Some(&servers[0])).await;
    let (finder, _) = time.dht(vec![liar.address.clone()]);
    assert_eq!(look_up_all(&finder, &bob.name()).await.last(), Some(&bob.address(2)));
}

#[tokio::test]
async fn an_older_record_of_the_same_day_does_not_end_the_search() {
    let time = Time::noon();
    let servers = time.servers(4).await;
    let (publisher, _) = time.dht(servers[0].addrs());
    let mut bob = Bob::new();
    let older = [bob.document_at(time.now()), bob.where_at(time.now(), 1)];
    time.pass(1);
    for record in [bob.document_at(time.now()), bob.where_at(time.now(), 2)] {
        soon(publisher.publish(&record)).await.unwrap();
    }
    // Good for as long as the newer one is, and given first: whoever asks knows nobody else.
    let gives = older.map(|record| {
        let key = kad::RecordKey::new(record.dht_key().as_bytes());
        kad::Record::new(key, record.encode().unwrap())
    });
    let liar = spy(gives.to_vec(), Some(&servers[0])).await;
    let (finder, _) = time.dht(vec![liar.address.clone()]);
    let found = look_up_all(&finder, &bob.name()).await;
    assert_eq!(found, [bob.address(1), bob.address(2)]);
}

/// More than an errand begins at.
const LIARS: usize = 24;

#[tokio::test]
async fn whoever_is_misled_forgets_the_liars_and_searches_again() {
    let time = Time::noon();
    let mut bob = Bob::new();
    let (document, record) = (bob.document_at(time.now()), bob.where_at(time.now(), 1));
    let key = kad::RecordKey::new(record.dht_key().as_bytes());
    let mut liars = Vec::new();
    for _ in 0..LIARS {
        liars.push(spy(vec![kad::Record::new(key.clone(), vec![7; 1000])], None).await);
    }
    let liars_known = known_servers(&liars.iter().map(|liar| liar.address.clone()).collect::<Vec<_>>());
    // All of them are nearer to the record than who has it: the first search does not ask it.
    let distance = |peer: PeerId| kad::KBucketKey::from(peer).distance(&kad::KBucketKey::new(key.clone()));
    let farthest = liars_known.iter().map(|liar| distance(liar.peer_id)).max().unwrap();
    let honest_key = iter::repeat_with(|| TransportKey::generate(&mut OsRng))
        .find(|key| distance(peer_id_of(key).unwrap()) > farthest)
        .unwrap();
    let honest = time.server_at(QUIC.parse().unwrap(), honest_key, Vec::new()).await;
    let (publisher, _) = time.dht(honest.addrs());
    for record in [&document, &record] {
        assert_eq!(soon(publisher.publish(record)).await.unwrap(), 1);
    }

    let (finder, known) = time.dht(Vec::new());
    let honest = known_servers(&honest.addrs());
    *lock(&known.dht_servers) = [liars_known, honest.clone()].concat();
    lock(&known.documents).insert(bob.name(), bob.document.clone());
    assert_eq!(look_up_all(&finder, &bob.name()).await, [bob.address(1)]);
    let left = lock(&known.dht_servers).clone();
    assert!(left.contains(&honest[0]));
    assert!(left.len() <= 1 + LIARS - kad::K_VALUE.get(), "{}", left.len());
}
