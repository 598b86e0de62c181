//! What a text message costs on the wire between two nodes: each way, and with everything that follows from it.

use std::{net::SocketAddr, time::Duration};

use kith_identity::Ticket;
use kith_tests::{Node, NodeOptions};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{
    Table,
    nodes::{Pair, pair},
    wire::{Count, IP_AND_UDP, Wire},
};

/// Messages that are counted.
const COUNT: usize = 100;

/// After this, everything that follows from a message has been sent: acknowledgements wait for 25 ms at the most.
const QUIET: Duration = Duration::from_millis(200);

/// What QUIC spends on each packet beside what it carries: flags, connection id, two bytes of number, and tag (RFC 9000,
/// section 17.3, with the connection ids that libp2p uses).
const QUIC_PACKET: u64 = 1 + 8 + 2 + 16;

/// What people say, of 33 bytes on average.
const TEXTS: [&str; 10] = [
    "Are you coming to the park at 07?",
    "yes",
    "Running ten minutes late, sorry!",
    "Did anybody feed the cat today? She keeps asking.",
    "I found the recipe, sending it tonight",
    "haha that is exactly what he said",
    "Train at 17:42 from platform 9, see you there",
    "Could you bring the blue folder tomorrow?",
    "ok 👍",
    "The meeting moved to Thursday morning, is that fine?",
];

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new(
        "A text message on the wire (33 bytes of text on average; both ways, acknowledgements included)",
        &[
            "measured, for each message",
            "one after the other",
            "each after a silence",
        ],
    );
    let (mut pair, wire) = wired().await;
    let talk = count(&mut pair, &wire, Duration::ZERO).await;
    let alone = count(&mut pair, &wire, QUIET).await;
    let mut row = |what: &str, of: fn(&Count) -> u64| {
        let each = |count: &Count| format!("{:.1}", of(count) as f64 / COUNT as f64);
        table.row([what.to_owned(), each(&talk), each(&alone)]);
    };
    row("bytes with IP and UDP headers", |count| count.bytes);
    row("packets", |count| count.packets);
    row("bytes in UDP", |count| count.bytes - count.packets * IP_AND_UDP);
    row(
        "payload: what QUIC's packets carry, frame headers and acknowledgements included",
        |count| count.bytes - count.packets * (IP_AND_UDP + QUIC_PACKET),
    );
    row("bytes to the receiver, with IP and UDP headers", |count| count.there);
    table
}

/// Two nodes with a wire between them that counts.
async fn wired() -> (Pair, Wire) {
    let first = Node::start(NodeOptions::default()).await;
    let wire = Wire::to(udp_address(&first.ready.listen[0])).await;
    let second = Node::start(NodeOptions {
        peers: vec![through(&first.ready.ticket, wire.address)],
        ..NodeOptions::default()
    });
    // The wire's client is the one who dialled: it is to be the sender.
    (pair(vec![second.await, first]).await, wire)
}

/// Sends messages, each after the one before is read, and a pause.
async fn count(pair: &mut Pair, wire: &Wire, pause: Duration) -> Count {
    tokio::time::sleep(QUIET).await;
    let before = wire.count();
    for number in 0..COUNT {
        // One text is another one each time, as far as the receiver looks for it.
        let text = [format!("{} {}", TEXTS[number % TEXTS.len()], number / TEXTS.len())];
        pair.sender.send_text(&pair.room, &text[0]).await;
        pair.receiver.texts_until(&pair.room, &text).await;
        tokio::time::sleep(pause).await;
    }
    tokio::time::sleep(QUIET).await;
    wire.count() - before
}

fn udp_address(multiaddr: &str) -> SocketAddr {
    let multiaddr: Multiaddr = multiaddr.parse().expect("a multiaddr");
    let mut parts = multiaddr.iter();
    match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Udp(port))) => SocketAddr::from((ip, port)),
        other => panic!("not a UDP address: {other:?}"),
    }
}

/// The same ticket with another address.
fn through(ticket: &str, address: SocketAddr) -> String {
    let mut ticket = Ticket::parse(ticket).expect("a ticket");
    let address: Multiaddr = format!("/ip4/{}/udp/{}/quic-v1", address.ip(), address.port())
        .parse()
        .expect("a multiaddr");
    ticket.addrs = vec![address.to_vec()];
    ticket.encode().expect("a ticket")
}
