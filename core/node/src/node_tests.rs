//! Whole nodes on loopback: their lives, and how they find each other.

use axum::{Router, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kith_identity::{IdentityKey, TransportKey};
use kith_net::{
    DhtServerConfig, ShelfLimits, Timing,
    relay::{Relay, RelayConfig, RelayLimits},
};
use rand::rngs::OsRng;
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::{
    clock::{Clock, SystemClock, SystemEntropy},
    contacts::{AddPeerError, Introduction},
    network::{Limits, Network, PeerEvent},
    testing::{ManualClock, open_files},
};

fn config(data: &Path) -> Config {
    let mut config = Config::new(data);
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    config.mdns = false;
    config.upnp = false;
    config
}

async fn start(data: &Path) -> Node {
    Node::start(config(data)).await.unwrap()
}

/// Waits until `node` has a connection to `other`.
async fn connected(node: &Node, other: &Node) {
    let network = &node.inner.network;
    let mut events = network.events();
    let name = &other.homeserver().context.server_name;
    let is_up = |network: &Libp2p| network.peers().iter().any(|peer| peer.server_name == *name);
    while !is_up(network) {
        events.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_ticket_brings_two_nodes_together_and_they_find_each_other_again() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = (start(a.path()).await, start(b.path()).await);
    let ticket = bob.ticket().await.unwrap();
    let introduction = Introduction::Ticket(Box::new(ticket.clone()));
    assert_eq!(alice.add_peer(&introduction).await.unwrap(), [ticket.server_name()]);
    connected(&alice, &bob).await;
    connected(&bob, &alice).await;
    let status = alice.status().await.unwrap();
    assert!(status.online);
    assert_eq!(status.contacts, [ticket.server_name()]);
    assert_eq!(status.peers[0].server_name, ticket.server_name());

    let mut events = bob.inner.network.events();
    alice.shutdown().await;
    let name = alice.homeserver().context.server_name.clone();
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(name));
    let alice = start(a.path()).await;
    connected(&alice, &bob).await;
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test]
async fn a_suspended_node_is_gone_and_comes_back_to_its_contacts() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = (start(a.path()).await, start(b.path()).await);
    let introduction = Introduction::Ticket(Box::new(bob.ticket().await.unwrap()));
    alice.add_peer(&introduction).await.unwrap();
    connected(&bob, &alice).await;

    let mut events = bob.inner.network.events();
    // Without a relay that holds a place, nothing stays, even of a node that would like to be woken.
    alice.suspend(true).await.unwrap();
    let name = alice.homeserver().context.server_name.clone();
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(name));
    let status = alice.status().await.unwrap();
    assert!(!status.online && status.peers.is_empty() && status.listen.is_empty());
    alice.suspend(false).await.unwrap();

    alice.resume().await.unwrap();
    connected(&alice, &bob).await;
    alice.resume().await.unwrap();
    assert!(alice.status().await.unwrap().online);
    alice.shutdown().await;
    assert!(matches!(alice.suspend(false).await, Err(StartError::ShutDown)));
    bob.shutdown().await;
}

/// A host that suspends a node and starts another in the same process must get back what the first one used.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn nothing_is_left_of_a_node_that_was_shut_down() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = (start(a.path()).await, start(b.path()).await);
    let introduction = Introduction::Ticket(Box::new(bob.ticket().await.unwrap()));
    alice.add_peer(&introduction).await.unwrap();
    connected(&alice, &bob).await;
    connected(&bob, &alice).await;
    let address = alice
        .serve_http(([127, 0, 0, 1], 0).into(), Router::new())
        .await
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(fetch(stream, "/_matrix/client/versions").await, (200, true));

    for (node, data) in [(alice, a), (bob, b)] {
        assert!(open_files(data.path()) > 0);
        node.shutdown().await;
        assert_eq!(open_files(data.path()), 0);
        let services = Arc::downgrade(&node.homeserver().context.config);
        drop(node);
        assert!(services.upgrade().is_none());
    }
}

#[tokio::test]
async fn keys_are_renewed_while_running_and_peers_follow() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = ManualClock::starting_now();
    let start = async |data: &Path| {
        let world = World::new(clock.clone(), SystemEntropy);
        let node = Node::open(config(data), world).await.unwrap();
        node.go_online().await.unwrap();
        node
    };
    let (alice, bob) = (start(a.path()).await, start(b.path()).await);
    let introduction = Introduction::Ticket(Box::new(bob.ticket().await.unwrap()));
    alice.add_peer(&introduction).await.unwrap();
    connected(&bob, &alice).await;
    let context = &alice.homeserver().context;
    let (peer_id, version) = (alice.peer_id().unwrap(), context.key_document().version());
    let name = context.server_name.clone();
    let mut events = bob.inner.network.events();

    // Nothing is due at first, a new transport key after a week, a new document after half a month.
    let day = Duration::from_secs(24 * 60 * 60);
    let due = alice.renew().await.unwrap();
    assert!(due > 6 * day && due <= 7 * day, "{due:?}");
    assert_eq!(alice.peer_id().unwrap(), peer_id);

    clock.advance(7 * day);
    alice.renew().await.unwrap();
    assert_ne!(alice.peer_id().unwrap(), peer_id);
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(name.clone()));
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Up(name.clone()));
    assert_eq!(context.key_document().version(), version);

    clock.advance(9 * day);
    alice.renew().await.unwrap();
    let renewed = context.key_document();
    assert_eq!(renewed.version(), version + 1);
    // The next hello brings it to the other side.
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(name.clone()));
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Up(name.clone()));
    let held = bob
        .homeserver()
        .context
        .store
        .read(move |txn| txn.key_document(&name))
        .await;
    assert_eq!(held.unwrap().as_ref(), Some(&*renewed));
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test]
async fn one_node_at_a_time_over_a_folder_and_the_next_is_the_same() {
    let data = tempfile::tempdir().unwrap();
    let first = start(data.path()).await;
    let second = Node::start(config(data.path())).await;
    assert!(matches!(
        second.err(),
        Some(StartError::DataFolder(DataFolderError::Locked(_)))
    ));
    first.shutdown().await;
    let again = start(data.path()).await;
    assert_eq!(again.identity(), first.identity());
    again.shutdown().await;
    assert!(matches!(again.go_online().await, Err(StartError::ShutDown)));
}

#[tokio::test]
async fn a_node_that_is_only_opened_works_offline_and_keeps_its_ticket() {
    let data = tempfile::tempdir().unwrap();
    let online = start(data.path()).await;
    online
        .homeserver()
        .accounts
        .create_user("alice", "correct horse")
        .await
        .unwrap();
    let ticket = online.ticket().await.unwrap();
    assert!(!ticket.addrs.is_empty());
    assert_eq!(ticket.user.as_deref(), Some("alice"));
    online.shutdown().await;

    let offline = Node::open(config(data.path()), World::system()).await.unwrap();
    assert_eq!(offline.ticket().await.unwrap(), ticket);
    assert!(!offline.status().await.unwrap().online);
    for own in [
        Introduction::Servers(vec![ticket.identity]),
        Introduction::Ticket(Box::new(ticket)),
    ] {
        assert!(matches!(offline.add_peer(&own).await, Err(AddPeerError::Own)));
    }
    offline.shutdown().await;
}

#[tokio::test]
async fn a_database_keeps_its_owner() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path()).await;
    node.shutdown().await;
    std::fs::remove_dir_all(data.path().join("keys")).unwrap();
    let other = IdentityKey::from_bytes(&[9; 32]);
    Keystore::new(data.path()).restore(other).unwrap();
    let error = Node::start(config(data.path())).await.err().unwrap();
    let owner = node.homeserver().context.server_name.to_string();
    assert!(matches!(error, StartError::OtherOwner(found) if found == owner));
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_is_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(a.path()).await;
    let mut taken = config(b.path());
    taken.listen = first.inner.network.net().unwrap().listen_addrs();
    let error = Node::start(taken).await.err().unwrap().to_string();
    assert!(error.contains("/ip4/127.0.0.1/udp/"), "{error}");

    let http = first
        .serve_http(([127, 0, 0, 1], 0).into(), Router::new())
        .await
        .unwrap();
    let second = start(b.path()).await;
    let error = second.serve_http(http, Router::new()).await.unwrap_err();
    assert!(matches!(error, StartError::Listen(ListenError::InUse(address)) if address == http));
    second.shutdown().await;
    first.shutdown().await;
}

/// The status of `GET path` over any stream, and whether any page may read the answer.
async fn fetch<S>(stream: S, path: &str) -> (u16, bool)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "localhost")
        .header("origin", "https://evil.example");
    let answer = sender
        .send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap())
        .await
        .unwrap();
    let open = answer.headers().contains_key("access-control-allow-origin");
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    (status, open)
}

#[tokio::test]
async fn clients_are_served_beside_the_embedders_routes_until_shutdown() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path()).await;
    let own = || Router::new().route("/own", get(|| async { "own" }));
    let address = node.serve_http(([127, 0, 0, 1], 0).into(), own()).await.unwrap();
    let socket = data.path().join("kith.sock");
    // One that an earlier process left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    node.serve_socket(&socket, own()).await.unwrap();

    let cases = [
        ("/_matrix/client/versions", 200, true),
        ("/own", 200, false),
        ("/nothing", 404, true),
    ];
    for (path, status, open) in cases {
        let tcp = fetch(TcpStream::connect(address).await.unwrap(), path).await;
        assert_eq!(tcp, (status, open), "{path}");
        let unix = fetch(UnixStream::connect(&socket).await.unwrap(), path).await;
        assert_eq!(unix, (status, false), "{path}");
    }
    let taken = node.serve_socket(&socket, own()).await.unwrap_err();
    assert!(matches!(taken, StartError::Listen(ListenError::SocketInUse(_))));

    node.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_request_that_waits_does_not_hold_up_a_shutdown() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path()).await;
    let (asked, mut asking) = tokio::sync::mpsc::channel(1);
    let wait = move || async move {
        asked.send(()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let routes = Router::new().route("/wait", get(wait));
    let address = node.serve_http(([127, 0, 0, 1], 0).into(), routes).await.unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let waiting = tokio::spawn(async move { fetch(stream, "/wait").await });
    asking.recv().await.unwrap();
    node.shutdown().await;
    assert_eq!(waiting.await.unwrap(), (503, false));
}

/// Nothing but a relay in common: neither a ticket nor an address went from one to the other.
#[tokio::test]
async fn nodes_find_each_other_by_name_alone_through_a_relay_that_serves_the_dht() {
    let relay = Relay::start(RelayConfig {
        transport_key: TransportKey::generate(&mut OsRng),
        listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
        external: Vec::new(),
        // The limit counts the whole process, all other tests' homeservers included.
        limits: RelayLimits {
            memory: usize::MAX,
            ..RelayLimits::default()
        },
        dht: DhtServerConfig {
            clock: Arc::new(|| SystemClock.now()),
            limits: ShelfLimits::default(),
            servers: Vec::new(),
        },
        timing: Timing::default(),
    })
    .await
    .unwrap();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with_relay = |data: &Path| Config {
        relays: relay.addrs(),
        ..config(data)
    };
    let bob = Node::start(with_relay(b.path())).await.unwrap();
    // What the first publication waits for.
    crate::publishing::placed(&bob.inner.network.net().unwrap()).await;
    // Key document and addresses.
    relay.dht().wait_for(|status| status.records == 2).await.unwrap();
    let alice = Node::start(with_relay(a.path())).await.unwrap();
    relay.dht().wait_for(|status| status.records == 4).await.unwrap();
    let name = bob.homeserver().context.server_name.clone();
    let request = http::Request::get("/_matrix/federation/v1/version")
        .body(Vec::new().into())
        .unwrap();
    let answer = alice
        .inner
        .network
        .request(&name, request, Limits::default())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    connected(&bob, &alice).await;
    alice.shutdown().await;
    bob.shutdown().await;
    relay.shutdown().await;
}
