//! Requests between honest nodes.

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, StatusCode};
use kith_net::{PeerEvent, RequestError, RequestLimits};

use crate::node::{QUIC, Setup, TCP, wait_for};

#[tokio::test]
async fn a_request_reaches_a_server_by_name() {
    for transport in [QUIC, TCP] {
        let alice = Setup::new().listen(&[transport]).start().await;
        let bob = Setup::new().listen(&[transport]).start().await;
        let mut events = bob.net.events();
        alice.learn(&bob).await;

        let answer = alice.get(&bob, "/a/path?and=query").await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.body(), &alice.expected("/a/path?and=query"));

        // The other way it takes the same connection: Bob knows no address of Alice's.
        wait_for(&mut events, &PeerEvent::Up(alice.name())).await;
        let answer = bob.get(&alice, "/back").await.unwrap();
        assert_eq!(answer.body(), &bob.expected("/back"));
        assert_eq!(alice.net.peers().len(), 1);
        assert_eq!(alice.net.peers()[0].connections.len(), 1);
        assert_eq!(alice.net.peers()[0].server_name, bob.name());
    }
}

#[tokio::test]
async fn a_hundred_requests_at_once_are_all_answered() {
    let (alice, bob) = (Setup::new().start().await, Setup::new().start().await);
    alice.learn(&bob).await;
    let paths: Vec<_> = (0..100).map(|number| format!("/{number}")).collect();
    let answers = join_all(paths.iter().map(|path| alice.get(&bob, path))).await;
    for (path, answer) in paths.iter().zip(answers) {
        assert_eq!(answer.unwrap().body(), &alice.expected(path));
    }
    assert_eq!(alice.net.peers()[0].connections.len(), 1);
}

#[tokio::test]
async fn an_unknown_server_is_unreachable() {
    let (alice, bob) = (Setup::new().start().await, Setup::new().start().await);
    let error = alice.get(&bob, "/").await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable(server) if server == bob.name()));
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let (alice, bob) = (Setup::new().start().await, Setup::new().start().await);
    alice.learn(&bob).await;
    let body = Bytes::from(vec![7; 8 << 20]);
    let request = Request::post("/").body(body.clone()).unwrap();
    let answer = alice
        .net
        .request(&bob.name(), request, RequestLimits::default())
        .await
        .unwrap();
    assert!(answer.body().ends_with(&body));
}
