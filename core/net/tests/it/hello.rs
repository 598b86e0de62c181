//! Who a peer says it is: honest, mistaken and lying.

use std::{sync::Arc, time::Duration};

use futures::AsyncWriteExt;
use kith_identity::NodeKey;
use kith_net::{PeerEvent, Timing};
use rand::rngs::OsRng;

use crate::{
    node::{Keys, NOW, Node, Setup, quick, timestamp, wait_for},
    rogue::{Message, Rogue, frame, read},
};

const DAY: u64 = 24 * 60 * 60 * 1000;

/// A rogue's keys, and another server that the victim knows.
struct Scene {
    rogue: Rogue,
    keys: Keys,
    known: Keys,
}

async fn scene(victim: &Node) -> Scene {
    let rogue = Rogue::connect(victim).await;
    let known = Keys::generate();
    let mut documents = victim.setup.directory.documents.lock().unwrap();
    documents.insert(known.server_name(), known.document.clone());
    Scene {
        rogue,
        keys: Keys::generate(),
        known,
    }
}

#[tokio::test]
async fn an_honest_hello_is_believed_and_its_document_kept() {
    let victim = Setup::new().start().await;
    let mut events = victim.net.events();
    let Scene { rogue, keys, .. } = scene(&victim).await;
    let heard = rogue.greet(&keys).await;
    assert!(
        matches!(heard[..], [Message::Hello(_), Message::Want, Message::Accepted]),
        "{heard:?}"
    );
    wait_for(&mut events, &PeerEvent::Up(keys.server_name())).await;
    assert_eq!(
        victim.setup.directory.documents.lock().unwrap()[&keys.server_name()],
        keys.document
    );
    assert!(!rogue.is_closed());
}

#[tokio::test]
async fn a_document_that_is_held_is_not_asked_for_and_an_older_one_is() {
    let victim = Setup::new().start().await;
    let Scene { rogue, known, .. } = scene(&victim).await;
    let heard = rogue.greet(&known).await;
    assert!(matches!(heard[..], [Message::Hello(_), Message::Accepted]), "{heard:?}");

    let newer = Keys {
        document: known.document.renew(&known.identity, timestamp(NOW * 2)).unwrap(),
        ..known
    };
    let rogue = Rogue::connect(&victim).await;
    let heard = rogue.greet(&newer).await;
    assert!(
        matches!(heard[..], [Message::Hello(_), Message::Want, Message::Accepted]),
        "{heard:?}"
    );
    assert_eq!(
        victim.setup.directory.documents.lock().unwrap()[&newer.server_name()].version(),
        2
    );
}

/// What the rogue sends, whatever it is asked.
type Lie = fn(&Scene) -> Vec<Vec<u8>>;

fn says(messages: &[Message]) -> Vec<Vec<u8>> {
    messages.iter().map(Message::frame).collect()
}

fn lies() -> Vec<(&'static str, Lie)> {
    vec![
        ("another server's name", |scene| {
            says(&[Message::hello(
                &scene.rogue.hello_with(&scene.known.document, &scene.keys),
            )])
        }),
        ("another server's name, and one's own document for it", |scene| {
            let unknown = Keys::generate();
            let hello = scene.rogue.hello_with(&unknown.document, &scene.keys);
            says(&[Message::hello(&hello), Message::document(&scene.keys.document)])
        }),
        ("another server's name, and that server's document", |scene| {
            let unknown = Keys::generate();
            let hello = scene.rogue.hello_with(&unknown.document, &scene.keys);
            says(&[Message::hello(&hello), Message::document(&unknown.document)])
        }),
        ("a hello made for another connection", |scene| {
            let elsewhere = (libp2p::PeerId::random().to_bytes(), libp2p::PeerId::random().to_bytes());
            let now = timestamp(NOW);
            let hello = kith_identity::Hello::sign(
                &scene.known.document,
                &scene.known.node,
                &elsewhere.0,
                &elsewhere.1,
                now,
            );
            says(&[Message::hello(&hello.unwrap())])
        }),
        ("a hello from long ago", |scene| {
            let hello = scene.rogue.hello_at(&scene.known.document, &scene.known, NOW - 2 * DAY);
            says(&[Message::hello(&hello)])
        }),
        ("a hello from the far future", |scene| {
            let hello = scene.rogue.hello_at(&scene.known.document, &scene.known, NOW + 2 * DAY);
            says(&[Message::hello(&hello)])
        }),
        ("a node key that the document does not list", |scene| {
            let other = Arc::new(NodeKey::generate(&mut OsRng));
            let keys = Keys {
                node: other,
                ..Keys::generate()
            };
            says(&[
                Message::hello(&scene.rogue.hello(&keys)),
                Message::document(&keys.document),
            ])
        }),
        ("a revoked node key", |scene| {
            let keys = Keys::generate();
            let second = NodeKey::generate(&mut OsRng);
            let document = keys
                .document
                .add_node(&keys.identity, &second.public(), timestamp(NOW), timestamp(NOW * 2));
            let revoked =
                document
                    .unwrap()
                    .revoke_node(&keys.identity, keys.node.key_id(), timestamp(NOW), timestamp(NOW * 2));
            let revoked = revoked.unwrap();
            let hello = scene.rogue.hello_with(&revoked, &keys);
            says(&[Message::hello(&hello), Message::document(&revoked)])
        }),
        ("a document older than the hello says", |scene| {
            let newer = scene
                .keys
                .document
                .renew(&scene.keys.identity, timestamp(NOW * 2))
                .unwrap();
            let hello = scene.rogue.hello_with(&newer, &scene.keys);
            says(&[Message::hello(&hello), Message::document(&scene.keys.document)])
        }),
        ("a document with a broken signature", |scene| {
            let json = scene.keys.document.to_json().replace("\"version\":1", "\"version\":9");
            let document = Message::Document(json.into_bytes().into());
            says(&[Message::hello(&scene.rogue.hello(&scene.keys)), document])
        }),
        ("a document without a hello", |scene| {
            says(&[Message::document(&scene.keys.document)])
        }),
        ("two hellos", |scene| {
            let hello = || Message::hello(&scene.rogue.hello(&scene.known));
            says(&[hello(), hello()])
        }),
        ("two acceptances", |_| says(&[Message::Accepted, Message::Accepted])),
        ("two demands for the document", |_| {
            says(&[Message::Want, Message::Want])
        }),
        ("nonsense", |_| vec![frame(b"nonsense")]),
        ("an empty message", |_| vec![frame(b"")]),
        ("a message without end", |_| vec![vec![0xff; 70_000]]),
    ]
}

#[tokio::test]
async fn a_lying_hello_closes_the_connection_and_changes_nothing() {
    for (what, lie) in lies() {
        let mut setup = Setup::new();
        // It is the lie that ends the connection, not impatience.
        setup.timing.hello = Duration::from_secs(3600);
        let victim = setup.start().await;
        let mut scene = scene(&victim).await;
        let before = victim.setup.directory.documents.lock().unwrap().clone();
        let mut stream = scene.rogue.stream("/kith/hello/1").await;
        for frame in lie(&scene) {
            // The victim may be gone after the first frame.
            let _ = stream.write_all(&frame).await;
        }
        let _ = stream.flush().await;
        scene.rogue.closed().await;
        assert!(victim.net.peers().is_empty(), "{what}");
        assert_eq!(*victim.setup.directory.documents.lock().unwrap(), before, "{what}");
    }
}

#[tokio::test]
async fn a_stranger_who_says_nothing_or_stops_half_way_is_left() {
    let setups: [&[u8]; 3] = [b"", b"\x01", b"\x01\x00half"];
    for said in setups {
        let mut setup = Setup::new();
        setup.timing = Timing {
            hello: Duration::from_millis(200),
            ..quick()
        };
        let victim = setup.start().await;
        let mut rogue = Rogue::connect(&victim).await;
        let mut stream = rogue.stream("/kith/hello/1").await;
        stream.write_all(said).await.unwrap();
        stream.flush().await.unwrap();
        rogue.closed().await;
    }
}

#[tokio::test]
async fn a_second_hello_is_refused_and_costs_the_first_nothing() {
    let victim = Setup::new().start().await;
    let Scene { rogue, keys, known } = scene(&victim).await;
    rogue.greet(&keys).await;
    let mut stream = rogue.stream("/kith/hello/1").await;
    let hello = Message::hello(&rogue.hello(&known)).frame();
    let _ = stream.write_all(&hello).await;
    let _ = stream.flush().await;
    let mut rest = Vec::new();
    let ended = futures::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    assert!(ended.is_err() || rest.is_empty());
    assert_eq!(victim.net.peers()[0].server_name, keys.server_name());
}

#[tokio::test]
async fn the_victim_presents_itself_and_its_document_when_asked() {
    let victim = Setup::new().start().await;
    let rogue = Rogue::connect(&victim).await;
    let mut stream = rogue.stream("/kith/hello/1").await;
    stream.write_all(&Message::Want.frame()).await.unwrap();
    stream.flush().await.unwrap();
    let Message::Hello(hello) = read(&mut stream).await else {
        panic!("not a hello");
    };
    let hello = kith_identity::Hello::decode(&hello).unwrap();
    let Message::Document(json) = read(&mut stream).await else {
        panic!("not a document");
    };
    let document = kith_identity::KeyDocument::parse(&json).unwrap();
    let (from, to) = (victim.net.local_peer_id().to_bytes(), rogue.peer_id.to_bytes());
    hello.verify(&document, &from, &to, timestamp(NOW)).unwrap();
    assert_eq!(document.server_name(), victim.name());
}
