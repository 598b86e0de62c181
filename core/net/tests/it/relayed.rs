//! Nodes that nobody reaches but through a relay.

use std::{net::Ipv4Addr, sync::Arc};

use kith_identity::TransportKey;
use kith_net::{
    DhtServerConfig, Multiaddr, PeerEvent, ShelfLimits, Timing, circuit_address,
    relay::{Relay, RelayConfig, RelayLimits},
};
use rand::rngs::OsRng;

use crate::node::{NOW, Node, QUIC, Setup, connections, soon, timestamp, wait_for};

async fn relay(key: &TransportKey, listen: &str) -> Relay {
    Relay::start(RelayConfig {
        transport_key: TransportKey::from_bytes(&key.to_bytes()),
        listen: vec![listen.parse().unwrap()],
        external: Vec::new(),
        limits: RelayLimits::default(),
        dht: dht_server(),
        timing: Timing::default(),
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
        let listens = !setup.listen.is_empty();
        let bob = setup.start().await;
        // An address to listen on is waited for; a relay to use is not.
        assert!(!listens || bob.net.listen_addrs().iter().any(is_circuit));
        soon(bob.net.listening(|addresses| addresses.iter().any(is_circuit))).await;
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
    let mut setup = Setup::new().listen(&[]);
    setup.relays = first.addrs();
    let bob = setup.start().await;
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
