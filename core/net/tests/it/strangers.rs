//! What a peer may do before it says who it is, and how little one that floods or stalls takes from others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kith_net::PeerEvent;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::{
    node::{Keys, Setup, service, soon, wait_for},
    rogue::Rogue,
};

const HTTP: &str = "/kith/http/2";

async fn http(rogue: &Rogue) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(rogue.stream(HTTP).await.compat());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_stranger_has_four_requests_which_wait_for_its_hello() {
    let mut setup = Setup::new();
    setup.timing.hello = Duration::from_secs(3600);
    let victim = setup.start().await;
    let rogue = Rogue::connect(&victim).await;
    let sender = http(&rogue).await;
    let mut answers: FuturesUnordered<_> = (0..6)
        .map(|number| {
            let mut sender = sender.clone();
            async move { sender.send_request(get(&format!("/{number}"))).await.unwrap() }
        })
        .collect();
    // Two too many are refused at once; the others wait.
    for _ in 0..2 {
        assert_eq!(soon(answers.next()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    let keys = Keys::generate();
    rogue.greet(&keys).await;
    for _ in 0..4 {
        let answer = soon(answers.next()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(keys.server_name().as_bytes()));
    }
}

#[tokio::test]
async fn a_stranger_who_never_says_hello_reaches_nothing() {
    let (reached, mut requests) = mpsc::channel(1);
    let mut setup = Setup::new();
    setup.timing.hello = Duration::from_millis(300);
    setup.service = service(move |_, _| {
        let reached = reached.clone();
        async move {
            reached.send(()).await.unwrap();
            Response::default()
        }
    });
    let victim = setup.start().await;
    let mut rogue = Rogue::connect(&victim).await;
    let mut sender = http(&rogue).await;
    let answer = sender.send_request(get("/")).await;
    assert!(answer.is_err() || answer.unwrap().status() == StatusCode::UNAUTHORIZED);
    rogue.closed().await;
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_flood_waits_in_its_own_queue_and_others_are_served() {
    let most = Arc::new(AtomicUsize::new(0));
    let running = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (arrived, mut arrivals) = mpsc::channel(1000);
    let flooder = Keys::generate();

    let mut setup = Setup::new();
    setup.limits.requests_per_peer = 8;
    setup.service = {
        let (most, running, gate, flooder) = (most.clone(), running.clone(), gate.clone(), flooder.server_name());
        service(move |peer, _| {
            let (most, running, gate, arrived) = (most.clone(), running.clone(), gate.clone(), arrived.clone());
            let floods = peer == flooder;
            async move {
                if floods {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    arrived.send(()).await.unwrap();
                    gate.acquire().await.unwrap().forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                }
                Response::default()
            }
        })
    };
    let victim = setup.start().await;
    let rogue = Rogue::connect(&victim).await;
    rogue.greet(&flooder).await;
    let mut answers = FuturesUnordered::new();
    for _ in 0..4 {
        let sender = http(&rogue).await;
        for _ in 0..8 {
            let mut sender = sender.clone();
            answers.push(async move { sender.send_request(get("/")).await.unwrap().status() });
        }
    }
    // Of 32 on four streams, 8 run, 8 wait and 16 are refused.
    for _ in 0..16 {
        assert_eq!(soon(answers.next()).await.unwrap(), StatusCode::TOO_MANY_REQUESTS);
    }
    for _ in 0..8 {
        soon(arrivals.recv()).await.unwrap();
    }
    let honest = Setup::new().start().await;
    honest.learn(&victim).await;
    assert_eq!(honest.get(&victim, "/").await.unwrap().status(), StatusCode::OK);

    gate.add_permits(16);
    for _ in 0..16 {
        assert_eq!(soon(answers.next()).await.unwrap(), StatusCode::OK);
    }
    assert_eq!(most.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_peer_that_does_not_take_its_answer_is_cut_off() {
    let mut setup = Setup::new();
    setup.timing.stall = Duration::from_millis(300);
    setup.service = service(|_, _| async { Response::new(vec![0; 32 << 20].into()) });
    let victim = setup.start().await;
    let mut events = victim.net.events();
    let keys = Keys::generate();
    let mut rogue = Rogue::connect(&victim).await;
    rogue.greet(&keys).await;
    let mut sender = http(&rogue).await;
    // The head comes; the body is left lying.
    let answer = sender.send_request(get("/")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    rogue.closed().await;
    wait_for(&mut events, &PeerEvent::Down(keys.server_name())).await;
    drop(answer);
}

#[tokio::test]
async fn a_request_that_stalls_or_is_too_large_ends_with_an_error() {
    let mut setup = Setup::new();
    setup.timing.stall = Duration::from_millis(200);
    setup.limits.request_body = 1000;
    let victim = setup.start().await;
    let rogue = Rogue::connect(&victim).await;
    rogue.greet(&Keys::generate()).await;
    let stream = TokioIo::new(rogue.stream(HTTP).await.compat());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    for (chunks, reason) in [
        (vec![vec![0; 600]; 2], "length limit exceeded"),
        (vec![vec![0; 600]], "stopped sending"),
    ] {
        let pieces = futures::stream::iter(chunks)
            .map(|chunk| Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from(chunk))))
            .chain(futures::stream::pending());
        let request = Request::post("/")
            .body(http_body_util::StreamBody::new(Box::pin(pieces)))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(reason), "{body:?}");
    }
}

#[tokio::test]
async fn one_host_has_few_strangers_and_room_again_once_they_are_known() {
    let mut setup = Setup::new();
    setup.timing.hello = Duration::from_secs(3600);
    setup.limits.strangers_per_host = 3;
    let victim = setup.start().await;
    let mut rogues = Vec::new();
    for _ in 0..3 {
        rogues.push(Rogue::connect(&victim).await);
    }
    // The refusal may come before or after the handshake's end.
    if let Ok(mut refused) = Rogue::try_connect(&victim).await {
        refused.closed().await;
    }
    let mut events = victim.net.events();
    let keys = Keys::generate();
    rogues[0].greet(&keys).await;
    wait_for(&mut events, &PeerEvent::Up(keys.server_name())).await;
    rogues.push(Rogue::connect(&victim).await);
    assert!(rogues.iter().all(|rogue| !rogue.is_closed()));
}

#[tokio::test]
async fn the_connection_that_was_silent_for_longest_makes_room_and_a_contacts_stays() {
    let contact = Setup::new();
    let mut setup = Setup::new();
    setup.limits.connections = 8;
    setup
        .directory
        .contacts
        .lock()
        .unwrap()
        .push(contact.keys.server_name());
    let victim = setup.start().await;
    let mut events = victim.net.events();
    let contact = contact.start().await;
    let mut others = Vec::new();
    for _ in 0..7 {
        others.push(Setup::new().start().await);
    }
    for node in [&contact].into_iter().chain(&others[..6]) {
        victim.learn(node).await;
        victim.get(node, "/").await.unwrap();
    }
    assert_eq!(victim.net.peers().len(), 7);
    victim.learn(&others[6]).await;
    victim.get(&others[6], "/").await.unwrap();
    wait_for(&mut events, &PeerEvent::LetGo(others[0].name())).await;
    let names: Vec<_> = victim.net.peers().into_iter().map(|peer| peer.server_name).collect();
    assert!(names.contains(&contact.name()) && names.contains(&others[1].name()));
}
