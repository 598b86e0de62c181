//! Peers that die, come back, cross each other or hide behind a relay.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use futures::future::{join, join_all};
use http::{Request, Response};
use kith_identity::TransportKey;
use kith_net::{Break, Net, PeerEvent, RequestError, RequestLimits, Timing};
use rand::rngs::OsRng;
use tokio::sync::mpsc;

use crate::{
    node::{Keys, Node, QUIC, Setup, TCP, connections, quick, service, wait_for, wary},
    wire::Wire,
};

/// A service that never answers, and says when it is asked.
fn silent(setup: &mut Setup) -> mpsc::Receiver<()> {
    let (asked, questions) = mpsc::channel(16);
    setup.service = service(move |_, _| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    questions
}

pub(crate) async fn learn_through(node: &Node, other: &Node, wire: &Wire) {
    let address = [wire.address.clone()];
    node.net
        .add_addresses(&other.name(), other.net.local_peer_id(), &address)
        .await;
}

#[tokio::test]
async fn a_path_that_dies_under_a_request_is_noticed_and_closed() {
    for transport in [QUIC, TCP] {
        let mut setup = Setup::new().listen(&[transport]);
        setup.timing = Timing {
            active_ping: Duration::from_millis(100),
            active_ping_timeout: Duration::from_millis(200),
            handshake: Duration::from_millis(500),
            ..quick()
        };
        let alice = setup.start().await;
        let mut setup = Setup::new().listen(&[transport]);
        let mut questions = silent(&mut setup);
        let bob = setup.start().await;
        let wire = Wire::to(&bob.net.listen_addrs()[0]).await;
        learn_through(&alice, &bob, &wire).await;
        let mut events = alice.net.events();

        let request = Request::post("/").body(Bytes::new()).unwrap();
        let limits = RequestLimits {
            deadline: Duration::from_secs(3600),
            ..RequestLimits::default()
        };
        let name = bob.name();
        let request = alice.net.request(&name, request, limits);
        let cut = async {
            questions.recv().await.unwrap();
            wire.cut();
        };
        let (answer, ()) = tokio::join!(request, cut);
        let error = answer.unwrap_err();
        assert!(
            matches!(
                error,
                RequestError::Broken {
                    reason: Break::Connection,
                    ..
                }
            ),
            "{transport}: {error}"
        );
        wait_for(&mut events, &PeerEvent::Down(bob.name())).await;
        assert!(alice.net.peers().is_empty());
    }
}

#[tokio::test]
async fn a_path_that_dies_while_idle_is_noticed_by_the_keep_alive() {
    for transport in [QUIC, TCP] {
        let mut setup = Setup::new().listen(&[transport]);
        setup.timing = Timing {
            handshake: Duration::from_millis(500),
            ..wary()
        };
        let alice = setup.start().await;
        let bob = Setup::new().listen(&[transport]).start().await;
        let wire = Wire::to(&bob.net.listen_addrs()[0]).await;
        learn_through(&alice, &bob, &wire).await;
        let mut events = alice.net.events();
        alice.get(&bob, "/").await.unwrap();
        wire.cut();
        wait_for(&mut events, &PeerEvent::Down(bob.name())).await;
    }
}

/// A phone that went from one network to another is answered there, not where it was.
#[tokio::test]
async fn a_peer_that_comes_another_way_is_spoken_to_there() {
    let alice = Setup::new().listen(&[TCP]).start().await;
    let mut setup = Setup::new().listen(&[QUIC]);
    setup.timing = Timing {
        active_ping: Duration::from_millis(100),
        active_ping_timeout: Duration::from_millis(200),
        ..quick()
    };
    let bob = setup.start().await;
    let wire = Wire::to(&bob.net.listen_addrs()[0]).await;
    learn_through(&alice, &bob, &wire).await;
    alice.get(&bob, "/").await.unwrap();
    wire.cut();
    bob.learn(&alice).await;
    // Alice has not noticed yet, and QUIC would be the better of the two.
    let moved = connections(
        &alice,
        |peers| matches!(&peers[0].connections[..], [first, second] if !first.dialled && second.dialled),
    );
    let (answer, ()) = tokio::join!(bob.get(&alice, "/back"), moved);
    assert_eq!(answer.unwrap().body(), &bob.expected("/back"));
}

#[tokio::test]
async fn a_slow_answer_times_out_and_the_connection_stays() {
    let alice = Setup::new().start().await;
    let mut setup = Setup::new();
    let _questions = silent(&mut setup);
    let bob = setup.start().await;
    alice.learn(&bob).await;
    let limits = RequestLimits {
        deadline: Duration::from_millis(500),
        ..RequestLimits::default()
    };
    let request = Request::get("/").body(Bytes::new()).unwrap();
    let error = alice.net.request(&bob.name(), request, limits).await.unwrap_err();
    assert!(matches!(error, RequestError::TimedOut(_)), "{error}");
    assert_eq!(alice.net.peers().len(), 1);
}

#[tokio::test]
async fn an_answer_over_the_limit_breaks_off_and_the_connection_stays() {
    let alice = Setup::new().start().await;
    let mut setup = Setup::new();
    setup.service = service(|_, _| async { Response::new(vec![0; 2000].into()) });
    let bob = setup.start().await;
    alice.learn(&bob).await;
    for bulk in [false, true] {
        for (max_answer, fits) in [(1999, false), (2000, true)] {
            let limits = RequestLimits {
                max_answer,
                bulk,
                ..RequestLimits::default()
            };
            let request = Request::get("/").body(Bytes::new()).unwrap();
            match alice.net.request(&bob.name(), request, limits).await {
                Ok(answer) => assert!(fits && answer.body().len() == 2000),
                Err(RequestError::Broken { reason, .. }) => {
                    assert!(!fits && reason == Break::AnswerTooLarge(1999));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(alice.net.peers()[0].connections.len(), 1);
}

#[tokio::test]
async fn too_many_waiting_requests_are_refused_at_once() {
    let mut setup = Setup::new();
    setup.limits.requests_per_peer = 2;
    setup.limits.waiting_per_peer = 3;
    let alice = setup.start().await;
    let mut setup = Setup::new();
    let mut questions = silent(&mut setup);
    let bob = setup.start().await;
    alice.learn(&bob).await;
    let deadline = RequestLimits {
        deadline: Duration::from_secs(3600),
        ..RequestLimits::default()
    };
    let spawn = || {
        let (net, name) = (alice.net.clone(), bob.name());
        tokio::spawn(async move {
            let request = Request::get("/").body(Bytes::new()).unwrap();
            net.request(&name, request, deadline).await
        })
    };
    let running = [spawn(), spawn()];
    for _ in 0..2 {
        questions.recv().await.unwrap();
    }
    let (done, mut outcomes) = mpsc::channel(4);
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let (task, done) = (spawn(), done.clone());
            tokio::spawn(async move { done.send(task.await.unwrap()).await.unwrap() })
        })
        .collect();
    let error = outcomes.recv().await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            RequestError::Broken {
                reason: Break::Busy,
                ..
            }
        ),
        "{error}"
    );
    running.iter().for_each(tokio::task::JoinHandle::abort);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_peer_that_stops_is_down_at_once_and_up_when_it_is_back() {
    let alice = Setup::new().start().await;
    let bob = Setup::new().start().await;
    alice.learn(&bob).await;
    alice.get(&bob, "/").await.unwrap();
    bob.setup.directory.contacts.lock().unwrap().push(alice.name());
    let addresses = kith_net::PeerAddresses {
        peer_id: alice.net.local_peer_id(),
        addresses: alice.net.listen_addrs(),
    };
    bob.setup
        .directory
        .addresses
        .lock()
        .unwrap()
        .insert(alice.name(), vec![addresses]);

    let mut events = alice.net.events();
    bob.net.shutdown().await;
    wait_for(&mut events, &PeerEvent::Down(bob.name())).await;

    // Bob, at another port, dials his contacts; Alice then reaches him without knowing where he is.
    let bob = bob.setup.start().await;
    wait_for(&mut events, &PeerEvent::Up(bob.name())).await;
    assert_eq!(
        alice.get(&bob, "/again").await.unwrap().body(),
        &alice.expected("/again")
    );
}

#[tokio::test]
async fn a_request_that_comes_while_a_dial_fails_has_another() {
    let mut setup = Setup::new();
    setup.timing.shared_attempt = Duration::ZERO;
    let alice = setup.start().await;
    let bob = Setup::new().start().await;
    let wire = Wire::to(&bob.net.listen_addrs()[0]).await;
    learn_through(&alice, &bob, &wire).await;
    wire.cut();

    let first = async {
        alice.get(&bob, "/first").await.unwrap_err();
        wire.mend();
    };
    let second = async {
        wire.lost().await;
        alice.get(&bob, "/second").await
    };
    let ((), answer) = join(first, second).await;
    assert_eq!(answer.unwrap().body(), &alice.expected("/second"));
}

#[tokio::test]
async fn a_lost_contact_is_dialled_again_until_it_is_back() {
    let alice = Setup::new().start().await;
    let mut setup = Setup::new();
    let port = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    setup.listen = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap()];
    let bob = setup.start().await;
    alice.setup.directory.contacts.lock().unwrap().push(bob.name());
    alice.learn(&bob).await;
    alice.get(&bob, "/").await.unwrap();
    let mut events = alice.net.events();
    bob.net.shutdown().await;
    wait_for(&mut events, &PeerEvent::Down(bob.name())).await;

    // Bob is back with another PeerId at the same address, and dials nobody.
    let Node { mut setup, .. } = bob;
    setup.keys.transport = TransportKey::generate(&mut OsRng);
    let bob = setup.start().await;
    wait_for(&mut events, &PeerEvent::Up(bob.name())).await;
    assert_eq!(alice.net.peers()[0].connections[0].peer_id, bob.net.local_peer_id());
}

#[tokio::test]
async fn a_contact_that_is_not_there_at_first_is_dialled_until_it_is() {
    let alice = Setup::new().start().await;
    let bob = Setup::new().start().await;
    let addresses = bob.net.listen_addrs();
    alice.setup.directory.contacts.lock().unwrap().push(bob.name());
    alice.learn(&bob).await;
    bob.net.shutdown().await;
    let mut events = alice.net.events();
    alice.net.dial_contact(&bob.name()).await;
    // The request shares the attempt to reach the contact, and so tells when it has failed.
    alice.get(&bob, "/").await.unwrap_err();

    // Bob comes to where he is expected, and dials nobody.
    let Node { mut setup, .. } = bob;
    setup.listen = addresses;
    let bob = setup.start().await;
    wait_for(&mut events, &PeerEvent::Up(bob.name())).await;
}

#[test]
fn a_peer_that_was_killed_and_restarted_is_reached_over_its_new_connection() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (here, there) = (runtime(), runtime());
    let mut setup = Setup::new();
    setup.timing.active_ping_timeout = Duration::from_millis(500);
    let (alice, bob) = (here.block_on(setup.start()), there.block_on(Setup::new().start()));
    here.block_on(async {
        alice.learn(&bob).await;
        alice.get(&bob, "/").await.unwrap();
    });
    let Node { setup, net } = bob;
    // Nobody says farewell.
    there.shutdown_background();
    drop(net);

    let there = runtime();
    let bob = there.block_on(setup.start());
    there.block_on(bob.learn(&alice));
    there.block_on(bob.get(&alice, "/")).unwrap();
    here.block_on(async {
        assert_eq!(
            alice.get(&bob, "/again").await.unwrap().body(),
            &alice.expected("/again")
        );
        // What is left of the old connection is found out and closed.
        connections(&alice, |peers| peers[0].connections.len() == 1).await;
        assert!(!alice.net.peers()[0].connections[0].dialled);
    });
}

#[tokio::test]
async fn crossing_connections_become_one_and_no_request_is_lost() {
    let alice = Setup::new().listen(&[QUIC, TCP]).start().await;
    let bob = Setup::new().listen(&[QUIC, TCP]).start().await;
    alice.learn(&bob).await;
    bob.learn(&alice).await;
    let paths: Vec<_> = (0..200).map(|number| format!("/{number}")).collect();
    let there = join_all(paths.iter().map(|path| alice.get(&bob, path)));
    let back = join_all(paths.iter().map(|path| bob.get(&alice, path)));
    let (there, back) = tokio::join!(there, back);
    for (number, path) in paths.iter().enumerate() {
        assert_eq!(there[number].as_ref().unwrap().body(), &alice.expected(path));
        assert_eq!(back[number].as_ref().unwrap().body(), &bob.expected(path));
    }
    for node in [&alice, &bob] {
        connections(node, |peers| peers[0].connections.len() == 1).await;
    }
}

#[tokio::test]
async fn a_ticket_with_an_old_peer_id_or_another_servers_address_still_leads_to_the_server() {
    let alice = Setup::new().start().await;
    let bob = Setup::new().start().await;
    let carol = Setup::new().start().await;
    let old = libp2p::PeerId::random();
    alice.net.add_addresses(&bob.name(), old, &bob.net.listen_addrs()).await;
    assert_eq!(alice.get(&bob, "/").await.unwrap().body(), &alice.expected("/"));

    // Bob's addresses do not make Bob Dave.
    let dave = Keys::generate().server_name();
    for _ in 0..2 {
        alice
            .net
            .add_addresses(&dave, carol.net.local_peer_id(), &carol.net.listen_addrs())
            .await;
        let request = Request::get("/").body(Bytes::new()).unwrap();
        let error = alice
            .net
            .request(&dave, request, RequestLimits::default())
            .await
            .unwrap_err();
        assert!(matches!(error, RequestError::Unreachable(_)), "{error}");
    }
    assert_eq!(alice.net.peers().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_an_error_that_names_it() {
    let holder = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = format!("/ip4/127.0.0.1/udp/{}/quic-v1", holder.local_addr().unwrap().port());
    let cases = [
        (taken.as_str(), "in use"),
        ("/ip4/192.0.2.1/tcp/1", "assign"),
        ("/ip4/127.0.0.1/udp/0/webrtc-direct", "not supported"),
    ];
    for (address, reason) in cases {
        let setup = Setup::new().listen(&[QUIC, address]);
        let error = Net::start(setup.config()).await.err().unwrap().to_string();
        assert!(error.contains(address) && error.contains(reason), "{error}");
    }
    let mut setup = Setup::new();
    setup.relays = vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()];
    let error = Net::start(setup.config()).await.err().unwrap().to_string();
    assert!(error.contains("no relay's address"), "{error}");
    let setup = Setup::new();
    *setup.directory.own.lock().unwrap() = Some(Keys::generate().document);
    assert!(Net::start(setup.config()).await.is_err());
}
