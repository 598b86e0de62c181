//! Nodes that nobody reaches but through a relay.

use std::{collections::HashSet, net::Ipv4Addr, sync::Arc, time::Duration};

use futures::future::join_all;
use kith_identity::TransportKey;
use kith_net::{
    DhtServerConfig, Multiaddr, PeerEvent, PeerId, ShelfLimits, Timing, circuit_address,
    relay::{Relay, RelayConfig, RelayLimits},
    relay_peer,
};
use rand::rngs::OsRng;

use crate::{
    node::{NOW, Node, QUIC, Setup, TCP, connections, quick, soon, timestamp, wait_for, wary},
    wire::Wire,
};

async fn relay(key: &TransportKey, listen: &str) -> Relay {
    relay_with(key, listen, Timing::default()).await
}

async fn relay_with(key: &TransportKey, listen: &str, timing: Timing) -> Relay {
    Relay::start(RelayConfig {
        transport_key: TransportKey::from_bytes(&key.to_bytes()),
        listen: vec![listen.parse().unwrap()],
        external: Vec::new(),
        limits: RelayLimits::default(),
        dht: dht_server(),
        timing,
    })
    .await
    .unwrap()
}

/// A server of the DHT on the tests' clock.
pub(crate) fn dht_server() -> DhtServerConfig {
    DhtServerConfig {
        clock: Arc::new(|| timestamp(NOW)),
        limits: ShelfLimits::default(),
        servers: Vec::new(),
    }
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.to_string().contains("p2p-circuit")
}

/// A node that is reached through these relays only.
async fn behind(relays: Vec<Multiaddr>) -> Node {
    let mut setup = Setup::new().listen(&[]);
    setup.relays = relays;
    setup.start().await
}

/// Tells `node` only how to reach `other` through its relay.
async fn learn_circuits(node: &Node, other: &Node) {
    let addresses: Vec<_> = other.net.ticket_addrs().into_iter().filter(is_circuit).collect();
    assert!(!addresses.is_empty());
    node.net
        .add_addresses(&other.name(), other.net.local_peer_id(), &addresses)
        .await;
}

#[tokio::test]
async fn a_node_with_a_place_at_a_relay_is_reached_through_it() {
    let relay = relay(&TransportKey::generate(&mut OsRng), QUIC).await;
    // Once as an address to listen on, once as a relay to use: it is the same.
    let mut bob = Setup::new().listen(&[]);
    bob.listen.push(circuit_address(&relay.addrs()[0]).unwrap());
    let mut carol = Setup::new().listen(&[]);
    carol.relays.push(relay.addrs()[0].clone());
    let alice = Setup::new().listen(&[]).start().await;
    for setup in [bob, carol] {
        let bob = setup.start().await;
        // A relay that grants a place at once stands in the first ticket.
        assert!(bob.net.listen_addrs().iter().any(is_circuit));
        learn_circuits(&alice, &bob).await;
        assert_eq!(alice.get(&bob, "/").await.unwrap().body(), &alice.expected("/"));
        assert_eq!(bob.get(&alice, "/back").await.unwrap().body(), &bob.expected("/back"));
        for (node, other) in [(&alice, &bob), (&bob, &alice)] {
            let peers = node.net.peers();
            let peer = peers.iter().find(|peer| peer.server_name == other.name()).unwrap();
            let connection = &peer.connections[0];
            assert!(connection.relayed && !connection.lan && is_circuit(&connection.address));
        }
    }
    relay.shutdown().await;
}

#[tokio::test]
async fn a_place_that_was_lost_is_asked_for_again() {
    let key = TransportKey::generate(&mut OsRng);
    let port = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let listen = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let first = relay(&key, &listen).await;
    let bob = behind(first.addrs()).await;
    let alice = Setup::new().listen(&[]).start().await;
    soon(bob.net.listening(|addresses| addresses.iter().any(is_circuit))).await;
    learn_circuits(&alice, &bob).await;
    alice.get(&bob, "/").await.unwrap();

    let mut events = alice.net.events();
    first.shutdown().await;
    wait_for(&mut events, &PeerEvent::Down(bob.name())).await;
    soon(bob.net.listening(|addresses| !addresses.iter().any(is_circuit))).await;
    let _second = relay(&key, &listen).await;
    soon(bob.net.listening(|addresses| addresses.iter().any(is_circuit))).await;
    assert_eq!(
        alice.get(&bob, "/again").await.unwrap().body(),
        &alice.expected("/again")
    );
}

#[tokio::test]
async fn a_relay_with_many_addresses_leaves_room_for_another() {
    let relay = relay(&TransportKey::generate(&mut OsRng), QUIC).await;
    let bob = behind(relay.addrs()).await;
    let alice = Setup::new().listen(&[]).start().await;
    let gone = PeerId::random();
    let dead_ends = (1..=6).map(|port| {
        format!("/ip4/127.0.0.1/tcp/{port}/p2p/{gone}/p2p-circuit")
            .parse()
            .unwrap()
    });
    let alive = bob.net.ticket_addrs().into_iter().filter(is_circuit);
    // What is learnt last is tried first.
    let addresses: Vec<Multiaddr> = alive.chain(dead_ends).collect();
    alice
        .net
        .add_addresses(&bob.name(), bob.net.local_peer_id(), &addresses)
        .await;
    assert_eq!(alice.get(&bob, "/").await.unwrap().body(), &alice.expected("/"));
}

#[tokio::test]
async fn many_are_reached_through_one_relay_at_once() {
    let relay = relay(&TransportKey::generate(&mut OsRng), QUIC).await;
    // More than libp2p opens through one relay at once.
    let nodes = join_all((0..14).map(|_| behind(relay.addrs()))).await;
    let alice = Setup::new().listen(&[]).start().await;
    for node in &nodes {
        learn_circuits(&alice, node).await;
    }
    let answers = join_all(nodes.iter().map(|node| alice.get(node, "/"))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().body(), &alice.expected("/"));
    }
}

#[tokio::test]
async fn a_straight_path_replaces_the_relayed_one() {
    let relay = relay(&TransportKey::generate(&mut OsRng), QUIC).await;
    let mut setup = Setup::new().listen(&[QUIC]);
    setup.relays = relay.addrs();
    let bob = setup.start().await;
    let alice = Setup::new().start().await;
    soon(bob.net.listening(|addresses| addresses.iter().any(is_circuit))).await;
    learn_circuits(&alice, &bob).await;
    alice.get(&bob, "/").await.unwrap();
    connections(
        &alice,
        |peers| matches!(&peers[0].connections[..], [one] if !one.relayed),
    )
    .await;
    assert_eq!(
        alice.get(&bob, "/again").await.unwrap().body(),
        &alice.expected("/again")
    );
}

#[tokio::test]
async fn a_relayed_path_that_stays_is_made_once_more_to_punch_holes_again() {
    let relay = relay(&TransportKey::generate(&mut OsRng), QUIC).await;
    let bob = behind(relay.addrs()).await;
    let alice = Setup::new().listen(&[]).start().await;
    learn_circuits(&alice, &bob).await;
    alice.get(&bob, "/").await.unwrap();
    // The new one is there before the old one goes.
    connections(&alice, |peers| peers[0].connections.len() == 2).await;
    connections(&alice, |peers| peers[0].connections.len() == 1).await;
    assert_eq!(
        alice.get(&bob, "/again").await.unwrap().body(),
        &alice.expected("/again")
    );
}

/// The relays at which `addresses` name a place.
fn places(addresses: &[Multiaddr]) -> HashSet<PeerId> {
    let circuits = addresses.iter().filter(|address| is_circuit(address));
    circuits.filter_map(relay_peer).collect()
}

async fn relays<const N: usize>() -> [Relay; N] {
    let mut relays = Vec::new();
    for _ in 0..N {
        relays.push(relay(&TransportKey::generate(&mut OsRng), QUIC).await);
    }
    relays.try_into().unwrap_or_else(|_| unreachable!())
}

#[tokio::test]
async fn two_places_are_held_and_another_relay_steps_in_for_one_that_is_lost() {
    let relays = relays::<3>().await;
    let bob = behind(relays.iter().flat_map(Relay::addrs).collect()).await;
    let all: HashSet<_> = relays.iter().map(Relay::peer_id).collect();
    let before = places(&bob.net.listen_addrs());
    assert!(before.len() == 2 && before.is_subset(&all), "{before:?}");

    let (lost, left): (Vec<_>, Vec<_>) = relays.into_iter().partition(|relay| before.contains(&relay.peer_id()));
    let mut lost = lost.into_iter();
    let first = lost.next().unwrap();
    let gone = first.peer_id();
    first.shutdown().await;
    let spare = left[0].peer_id();
    soon(bob.net.listening(|now| {
        let now = places(now);
        now.contains(&spare) && now.len() == 2 && !now.contains(&gone)
    }))
    .await;
}

#[tokio::test]
async fn relays_change_while_the_node_runs() {
    let [first, second] = relays::<2>().await;
    let bob = behind(first.addrs()).await;
    assert_eq!(places(&bob.net.listen_addrs()), HashSet::from([first.peer_id()]));
    bob.net.set_relays(&second.addrs()).await.unwrap();
    let wanted = HashSet::from([second.peer_id()]);
    soon(bob.net.listening(|now| places(now) == wanted)).await;
    assert!(bob.net.set_relays(&[QUIC.parse().unwrap()]).await.is_err());
    bob.net.set_relays(&[]).await.unwrap();
    soon(bob.net.listening(|now| places(now).is_empty())).await;
}

#[tokio::test]
async fn a_relay_is_found_over_tcp_where_quic_leads_nowhere() {
    let relay = relay(&TransportKey::generate(&mut OsRng), TCP).await;
    let address = relay.addrs()[0].to_string();
    let quic = address.replace("/tcp/", "/udp/").replace("/p2p/", "/quic-v1/p2p/");
    let bob = behind(vec![quic.parse().unwrap()]).await;
    assert_eq!(places(&bob.net.listen_addrs()), HashSet::from([relay.peer_id()]));
    let alice = Setup::new().listen(&[]).start().await;
    learn_circuits(&alice, &bob).await;
    assert_eq!(alice.get(&bob, "/").await.unwrap().body(), &alice.expected("/"));
}

/// A router may forget a connection over which nothing goes, and a machine may vanish: nobody is told then.
#[tokio::test]
async fn a_path_to_a_relay_that_dies_while_idle_is_noticed() {
    for transport in [QUIC, TCP] {
        let relay = relay(&TransportKey::generate(&mut OsRng), transport).await;
        let wire = Wire::to(&relay.listen_addrs()[0]).await;
        let mut setup = Setup::new().listen(&[]);
        setup.relays = vec![wire.address.clone().with_p2p(relay.peer_id()).unwrap()];
        setup.timing = wary();
        let bob = setup.start().await;
        assert_eq!(places(&bob.net.listen_addrs()), HashSet::from([relay.peer_id()]));
        wire.cut();
        soon(bob.net.listening(|now| places(now).is_empty())).await;
    }
}

/// The relay does not notice before long that the path is dead over which a node had its place.
#[tokio::test]
async fn a_node_that_lost_its_path_to_a_relay_is_reached_over_the_new_one() {
    let timing = Timing {
        idle_timeout: Duration::from_secs(3600),
        // A node takes longer to notice than connections of one dial can be apart.
        handshake: Duration::from_millis(500),
        ..quick()
    };
    let relay = relay_with(&TransportKey::generate(&mut OsRng), QUIC, timing.clone()).await;
    let alice = Setup::new().listen(&[]).start().await;
    // Whoever comes first may be reached through one of these.
    let mut wires = Vec::new();
    // One alone may be lucky.
    for _ in 0..6 {
        let (lost, kept) = (
            Wire::to(&relay.listen_addrs()[0]).await,
            Wire::to(&relay.listen_addrs()[0]).await,
        );
        let mut setup = Setup::new().listen(&[]);
        setup.relays = vec![lost.address.clone().with_p2p(relay.peer_id()).unwrap()];
        setup.timing = Timing {
            idle_timeout: timing.idle_timeout,
            ..quick()
        };
        let bob = setup.start().await;
        lost.cut();
        bob.net
            .set_relays(&[kept.address.clone().with_p2p(relay.peer_id()).unwrap()])
            .await
            .unwrap();
        bob.net.network_changed().await;
        soon(bob.net.listening(|now| kept.carried() > 0 && !places(now).is_empty())).await;
        learn_circuits(&alice, &bob).await;
        let mut events = alice.net.events();
        alice.net.dial_contact(&bob.name()).await;
        wait_for(&mut events, &PeerEvent::Up(bob.name())).await;
        wires.push(kept);
    }
}

#[tokio::test]
async fn a_resting_node_keeps_one_relay_and_is_reached_through_it() {
    let [first, second] = relays::<2>().await;
    let bob = behind([first.addrs(), second.addrs()].concat()).await;
    let alice = Setup::new().listen(&[]).start().await;
    learn_circuits(&alice, &bob).await;
    alice.get(&bob, "/").await.unwrap();
    assert_eq!(places(&bob.net.listen_addrs()).len(), 2);

    bob.net.doze().await;
    connections(&bob, <[_]>::is_empty).await;
    soon(bob.net.listening(|now| places(now).len() == 1)).await;
    assert_eq!(alice.get(&bob, "/wake").await.unwrap().body(), &alice.expected("/wake"));

    bob.net.wake().await;
    soon(bob.net.listening(|now| places(now).len() == 2)).await;
    assert_eq!(bob.get(&alice, "/back").await.unwrap().body(), &bob.expected("/back"));
}
