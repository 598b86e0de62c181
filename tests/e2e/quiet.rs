//! A room in which nobody speaks: what two programs send each other then is QUIC's life signs, and nothing else.

use std::{net::SocketAddr, time::Duration};

use kith_identity::Ticket;
use kith_tests::{Node, NodeOptions, within};
use libp2p::{Multiaddr, multiaddr::Protocol};
use serde_json::json;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

/// The largest UDP payload that only keeps a connection alive, or acknowledges one that does. Any request, and any answer, is more: HTTP/2's
/// headers alone are.
const LIFE_SIGN: usize = 48;

/// What nodes make sure of after something was said is over when nothing but life signs passed for this long: the last of it comes ten
/// seconds after the event.
const QUIET: Duration = Duration::from_secs(15);

/// What is looked at. Not waited for anything: time passes, and what is sent in it is counted. Two life signs and more are in it,
/// and whatever a node would do every minute.
const WINDOW: Duration = Duration::from_secs(65);

/// Life signs come every 25 s, each with its acknowledgement, and from both ends if they cross.
const MAX_PACKETS: usize = 4 * (65 / 25 + 1);

/// Forwards UDP to a port, and tells how large each packet is.
struct Wire {
    address: SocketAddr,
    packets: mpsc::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = near.local_addr().unwrap();
        let (tell, packets) = mpsc::channel(65_536);
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                let length = tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send_to(&up[..length], target).await;
                        length
                    }
                    Ok((length, _)) = far.recv_from(&mut down) => {
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..length], client).await;
                        }
                        length
                    }
                };
                tell.try_send(length).unwrap();
            }
        });
        Self { address, packets, task }
    }

    /// Waits until nothing but life signs has passed for a while.
    async fn until_quiet(&mut self) {
        let mut quiet_at = Instant::now() + QUIET;
        while let Ok(packet) = timeout_at(quiet_at, self.packets.recv()).await {
            if packet.unwrap() > LIFE_SIGN {
                quiet_at = Instant::now() + QUIET;
            }
        }
    }

    /// The sizes of what passes in some time.
    async fn passing(&mut self, time: Duration) -> Vec<usize> {
        let mut passed = Vec::new();
        let listening = async {
            while let Some(packet) = self.packets.recv().await {
                passed.push(packet);
            }
        };
        timeout(time, listening).await.unwrap_err();
        passed
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_converged_room_costs_nothing_but_life_signs() {
    let first = Node::start(NodeOptions::default()).await;
    let mut wire = Wire::to(udp_address(&first.ready.listen[0])).await;
    let second = Node::start(NodeOptions {
        peers: vec![through(&first.ready.ticket, wire.address)],
        ..NodeOptions::default()
    })
    .await;
    let mut alice = first.client("alice").await;
    let mut bob = second.client("bob").await;
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let texts = ["hello".to_owned(), "and back".to_owned()];
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    alice.texts_until(&room, &texts).await;
    // Or that they fall silent would be said a minute later.
    for client in [&alice, &bob] {
        let path = format!("/presence/{}/status", client.user_id);
        client.put(&path, json!({"presence": "offline"})).await.ok();
    }

    within("quiet", wire.until_quiet()).await;
    let passed = wire.passing(WINDOW).await;
    assert!(passed.iter().all(|size| *size <= LIFE_SIGN), "{passed:?}");
    assert!((2..=MAX_PACKETS).contains(&passed.len()), "{passed:?}");
}

fn udp_address(multiaddr: &str) -> SocketAddr {
    let multiaddr: Multiaddr = multiaddr.parse().unwrap();
    let mut parts = multiaddr.iter();
    match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Udp(port))) => SocketAddr::from((ip, port)),
        other => panic!("not a UDP address: {other:?}"),
    }
}

/// The same ticket with another address.
fn through(ticket: &str, address: SocketAddr) -> String {
    let mut ticket = Ticket::parse(ticket).unwrap();
    let address: Multiaddr = format!("/ip4/{}/udp/{}/quic-v1", address.ip(), address.port())
        .parse()
        .unwrap();
    ticket.addrs = vec![address.to_vec()];
    ticket.encode().unwrap()
}
