//! Compressed bodies: what they save, and what becomes of those that are meant to do harm.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kith_net::{Break, RequestError, RequestLimits};
use proptest::prelude::*;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::{
    faults::learn_through,
    node::{Keys, Node, QUIC, Setup, TCP, service},
    rogue::Rogue,
    wire::Wire,
};

/// Something like a transaction: regular, with pieces that no compression makes smaller.
fn events(count: usize) -> String {
    let event = |number: usize| {
        let noise = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(r#"{{"type":"m.room.message","sender":"@alice:example","content":{{"body":"{noise:x}"}}}}"#)
    };
    format!("[{}]", (0..count).map(event).collect::<Vec<_>>().join(","))
}

fn put(kind: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    Request::put("/").header(CONTENT_TYPE, kind).body(body.into()).unwrap()
}

/// Answers with what it is sent, under the same type; what of the coding the service saw goes into a header.
fn mirror(setup: &mut Setup) {
    setup.service = service(|_, request| async move {
        let (head, body) = request.into_parts();
        let mut answer = Response::new(body.collect().await.unwrap().to_bytes());
        if let Some(kind) = head.headers.get(CONTENT_TYPE) {
            answer.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
        if head.headers.contains_key(CONTENT_ENCODING) {
            *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        }
        answer
    });
}

async fn exchange(alice: &Node, bob: &Node, request: Request<Bytes>) -> Result<Response<Bytes>, RequestError> {
    alice.net.request(&bob.name(), request, RequestLimits::default()).await
}

#[tokio::test]
async fn large_json_is_smaller_on_the_wire_and_media_stay_as_they_are() {
    for transport in [QUIC, TCP] {
        let alice = Setup::new().listen(&[transport]).start().await;
        let mut setup = Setup::new().listen(&[transport]);
        mirror(&mut setup);
        let bob = setup.start().await;
        let wire = Wire::to(&bob.net.listen_addrs()[0]).await;
        learn_through(&alice, &bob, &wire).await;
        alice.get(&bob, "/").await.unwrap();

        let body = events(5000);
        let mut carried = Vec::new();
        for kind in ["application/json", "image/png"] {
            let before = wire.carried();
            let answer = exchange(&alice, &bob, put(kind, body.clone())).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers().get(CONTENT_ENCODING), None);
            assert!(*answer.body() == body, "{kind} came back changed");
            carried.push(wire.carried() - before);
        }
        // Each way 400 KB, of which 80 KB are noise.
        assert!(carried[1] > 2 * body.len(), "{transport}: {carried:?}");
        assert!(carried[0] < body.len(), "{transport}: {carried:?}");
    }
}

/// What the other end of a raw HTTP/2 stream sees of an honest node's answers.
async fn raw(rogue: &Rogue) -> SendRequest<Full<Bytes>> {
    rogue.greet(&Keys::generate()).await;
    let stream = TokioIo::new(rogue.stream("/kith/http/2").await.compat());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    headers: &[(http::HeaderName, &str)],
    body: impl Into<Bytes>,
) -> (StatusCode, HeaderMap, Bytes) {
    let mut request = put("application/json", body).map(Full::new);
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, body)
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask_for_it_and_when_it_helps() {
    let mut setup = Setup::new();
    mirror(&mut setup);
    let bob = setup.start().await;
    let rogue = Rogue::connect(&bob).await;
    let mut sender = raw(&rogue).await;
    let (small, large) = (format!("\"{}\"", "a".repeat(1022)), events(100));
    for (accept, body, compressed) in [
        ("zstd", &large, true),
        ("gzip, ZSTD", &large, true),
        ("gzip", &large, false),
        ("zstd", &small, false),
    ] {
        let (status, headers, answer) = ask(&mut sender, &[(ACCEPT_ENCODING, accept)], body.clone()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            headers.contains_key(CONTENT_ENCODING),
            compressed,
            "{accept} {}",
            body.len()
        );
        let plain = if compressed {
            assert!(answer.len() < body.len() / 2);
            zstd::decode_all(&answer[..]).unwrap().into()
        } else {
            answer
        };
        assert!(plain == *body);
    }
}

/// Zstd that asks its reader to remember 128 MiB.
fn wide_window() -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    // Without a length in its head, the frame's window is what it says.
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(events(2).as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Zstd of which one byte is not as its checksum says.
fn damaged() -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(events(500).as_bytes()).unwrap();
    let mut damaged = encoder.finish().unwrap();
    damaged[1000] ^= 0xff;
    damaged
}

#[tokio::test]
async fn a_bomb_or_garbage_is_refused_and_the_connection_lives_on() {
    let mut setup = Setup::new();
    setup.limits.request_body = 1 << 20;
    let victim = setup.start().await;
    let rogue = Rogue::connect(&victim).await;
    let mut sender = raw(&rogue).await;
    let good = zstd::encode_all(events(100).as_bytes(), 3).unwrap();
    let within = zstd::encode_all(&vec![b' '; 1 << 20][..], 3).unwrap();
    let bomb = zstd::encode_all(&vec![b' '; (1 << 20) + 1][..], 3).unwrap();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("bomb", bomb, "length limit exceeded"),
        ("bombs in a row", within.repeat(20), "length limit exceeded"),
        ("plain", events(3).into_bytes(), "no valid zstd"),
        ("damaged", damaged(), "no valid zstd"),
        ("wide", wide_window(), "no valid zstd: Frame requires too much memory"),
        ("half", good[..good.len() / 2].to_vec(), "cut short"),
        ("nothing", Vec::new(), "cut short"),
        ("trailing garbage", [&good[..], b"garbage"].concat(), "no valid zstd"),
    ];
    for (name, body, reason) in cases {
        let (status, _, answer) = ask(&mut sender, &[(CONTENT_ENCODING, "zstd")], body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(reason), "{name}: {answer}");
        for (body, length) in [(good.clone(), events(100).len()), (within.clone(), 1 << 20)] {
            let (status, _, answer) = ask(&mut sender, &[(CONTENT_ENCODING, "zstd")], body).await;
            assert_eq!(status, StatusCode::OK);
            assert!(answer.len() >= length, "after {name}");
        }
    }
    let (status, headers, _) = ask(&mut sender, &[(CONTENT_ENCODING, "gzip")], good).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(headers[ACCEPT_ENCODING], "kith-zstd, zstd");

    let long = vec![0; 17 << 10];
    for (name, body, expected) in [
        (
            "what was never said",
            vec![0x11, 1, 2, 3],
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        ("no number", vec![0xff; 11], StatusCode::BAD_REQUEST),
        ("garbage", vec![0, 1, 2, 3], StatusCode::BAD_REQUEST),
        ("nothing", Vec::new(), StatusCode::BAD_REQUEST),
        ("more than is short", long, StatusCode::BAD_REQUEST),
    ] {
        let (status, _, _) = ask(&mut sender, &[(CONTENT_ENCODING, "kith-zstd")], body).await;
        assert_eq!(status, expected, "{name}");
    }
    let (status, _, _) = ask(&mut sender, &[(ACCEPT_ENCODING, "kith-zstd")], events(3)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn who_has_forgotten_what_was_said_is_told_it_anew() {
    let alice = Setup::new().start().await;
    let mut setup = Setup::new();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    setup.service = service(move |_, request| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut answer = Response::new(body);
            if first {
                *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            }
            answer
        }
    });
    let bob = setup.start().await;
    alice.learn(&bob).await;
    for asked in [2, 3, 4] {
        let request = put("application/json", events(3));
        let answer = exchange(&alice, &bob, request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(*answer.body() == events(3));
        assert_eq!(seen.load(Ordering::Relaxed), asked);
    }
}

#[tokio::test]
async fn an_answer_that_is_a_bomb_or_garbage_ends_in_an_error() {
    let alice = Setup::new().start().await;
    let mut setup = Setup::new();
    setup.service = service(|_, request| async move {
        let body = match request.uri().path() {
            "/bomb" => zstd::encode_all(&vec![0; 2 << 20][..], 3).unwrap(),
            "/garbage" => b"garbage".to_vec(),
            "/half" => zstd::encode_all(&[7; 5000][..], 3).unwrap()[..10].to_vec(),
            _ => zstd::encode_all(&b"good"[..], 3).unwrap(),
        };
        let coding = if request.uri().path() == "/gzip" {
            "gzip"
        } else {
            "zstd"
        };
        Response::builder()
            .header(CONTENT_ENCODING, coding)
            .body(body.into())
            .unwrap()
    });
    let bob = setup.start().await;
    alice.learn(&bob).await;
    let limits = RequestLimits {
        max_answer: 1 << 20,
        ..RequestLimits::default()
    };
    for (path, expected) in [
        ("/bomb", Err(Break::AnswerTooLarge(1 << 20))),
        ("/garbage", Err(Break::AnswerCoding)),
        ("/half", Err(Break::AnswerCoding)),
        ("/gzip", Err(Break::AnswerCoding)),
        ("/good", Ok(Bytes::from("good"))),
    ] {
        let request = Request::get(path).body(Bytes::new()).unwrap();
        let outcome = match alice.net.request(&bob.name(), request, limits).await {
            Ok(answer) => Ok(answer.into_body()),
            Err(RequestError::Broken { reason, .. }) => Err(reason),
            Err(error) => panic!("{path}: {error}"),
        };
        assert_eq!(outcome, expected, "{path}");
    }
    assert_eq!(alice.net.peers()[0].connections.len(), 1);
}

#[test]
fn any_body_comes_back_as_it_was() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (alice, bob) = runtime.block_on(async {
        let mut setup = Setup::new();
        mirror(&mut setup);
        let (alice, bob) = (Setup::new().start().await, setup.start().await);
        alice.learn(&bob).await;
        (alice, bob)
    });
    let bodies = (proptest::collection::vec(any::<u8>(), 0..3000), 1..400_usize);
    proptest!(ProptestConfig::with_cases(64), |((piece, times) in bodies)| {
        let body = Bytes::from(piece.repeat(times));
        let request = put("application/json", body.clone());
        let answer = runtime.block_on(exchange(&alice, &bob, request)).unwrap();
        prop_assert!(answer.status() == StatusCode::OK && *answer.body() == body);
    });
}
