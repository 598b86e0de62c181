//! Who stays connected while nothing is said, and that whoever does not is reached all the same.

use std::time::Duration;

use kith_net::{Budget, PeerEvent};
use tokio::sync::broadcast::Receiver;

use crate::node::{Node, Setup, connections, soon, wait_for};

/// A budget that is soon used up. The visit is longer than the pause before a lost contact is dialled again.
fn small(idle: usize) -> Budget {
    Budget {
        idle,
        keep: None,
        linger: Duration::from_millis(300),
        visit: Duration::from_millis(300),
        visits: 2,
        ..Budget::phone()
    }
}

/// A node with a small budget that has these contacts, as they have it, before it meets them.
async fn with_contacts(idle: usize, contacts: &[Node]) -> Node {
    let mut setup = Setup::new();
    setup.limits.budget = small(idle);
    for contact in contacts {
        setup.directory.contacts.lock().unwrap().push(contact.name());
        contact
            .setup
            .directory
            .contacts
            .lock()
            .unwrap()
            .push(setup.keys.server_name());
        let found = kith_net::PeerAddresses {
            peer_id: contact.net.local_peer_id(),
            addresses: contact.net.listen_addrs(),
        };
        setup
            .directory
            .addresses
            .lock()
            .unwrap()
            .insert(contact.name(), vec![found]);
    }
    setup.start().await
}

async fn nodes(count: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Setup::new().start().await);
    }
    nodes
}

/// The events until one of them, that one included.
async fn until(events: &mut Receiver<PeerEvent>, last: &PeerEvent) -> Vec<PeerEvent> {
    let mut seen = Vec::new();
    while seen.last() != Some(last) {
        seen.push(soon(events.recv()).await.unwrap());
    }
    seen
}

#[tokio::test]
async fn every_contact_is_met_once_and_the_budget_stays() {
    let contacts = nodes(6).await;
    let mut events: Vec<_> = contacts.iter().map(|contact| contact.net.events()).collect();
    let alice = with_contacts(2, &contacts).await;
    for events in &mut events {
        wait_for(events, &PeerEvent::Up(alice.name())).await;
    }
    connections(&alice, |peers| peers.len() == 2).await;
    let stayed: Vec<_> = alice.net.peers().into_iter().map(|peer| peer.server_name).collect();
    // The first contacts are the most important ones.
    assert!(contacts[..2].iter().all(|contact| stayed.contains(&contact.name())));
    for events in &mut events[2..] {
        wait_for(events, &PeerEvent::LetGo(alice.name())).await;
    }
}

#[tokio::test]
async fn who_is_let_go_is_dialled_by_neither_end_until_there_is_something_to_say() {
    let contacts = nodes(2).await;
    let (bob, carol) = (&contacts[0], &contacts[1]);
    let mut at_carol = carol.net.events();
    let alice = with_contacts(1, &contacts).await;
    let mut events = alice.net.events();
    wait_for(&mut events, &PeerEvent::LetGo(carol.name())).await;
    wait_for(&mut at_carol, &PeerEvent::LetGo(alice.name())).await;
    assert_eq!(alice.net.peers()[0].server_name, bob.name());

    // A visit later, nobody has come back.
    let dave = Setup::new().start().await;
    dave.learn(&alice).await;
    dave.get(&alice, "/").await.unwrap();
    let seen = until(&mut events, &PeerEvent::LetGo(dave.name())).await;
    assert!(!seen.contains(&PeerEvent::Up(carol.name())), "{seen:?}");
    assert!(at_carol.is_empty());

    for (from, to) in [(carol, &alice), (&alice, carol)] {
        assert_eq!(from.get(to, "/news").await.unwrap().body(), &from.expected("/news"));
        wait_for(&mut events, &PeerEvent::Up(carol.name())).await;
        wait_for(&mut events, &PeerEvent::LetGo(carol.name())).await;
        assert_eq!(soon(at_carol.recv()).await, Ok(PeerEvent::Up(alice.name())));
        assert_eq!(soon(at_carol.recv()).await, Ok(PeerEvent::LetGo(alice.name())));
    }
}

#[tokio::test]
async fn with_whom_something_is_said_stays_and_is_remembered() {
    let contacts = nodes(2).await;
    let (bob, carol) = (&contacts[0], &contacts[1]);
    let alice = with_contacts(1, &contacts).await;
    let mut events = alice.net.events();
    wait_for(&mut events, &PeerEvent::LetGo(carol.name())).await;
    carol.get(&alice, "/").await.unwrap();
    alice.net.note_spoken(&carol.name());
    wait_for(&mut events, &PeerEvent::LetGo(bob.name())).await;
    assert_eq!(alice.net.peers()[0].server_name, carol.name());
    alice.net.shutdown().await;
    assert_eq!(
        *alice.setup.directory.spoken.lock().unwrap(),
        [carol.name(), bob.name()]
    );
}

#[tokio::test]
async fn who_was_let_go_and_is_out_of_reach_is_down() {
    let mut contacts = nodes(2).await;
    let alice = with_contacts(1, &contacts).await;
    let mut events = alice.net.events();
    let carol = contacts.pop().unwrap();
    wait_for(&mut events, &PeerEvent::LetGo(carol.name())).await;
    carol.net.shutdown().await;
    alice.get(&carol, "/").await.unwrap_err();
    assert_eq!(soon(events.recv()).await, Ok(PeerEvent::Down(carol.name())));
}

#[tokio::test]
async fn a_request_under_way_is_no_silence() {
    let mut setup = Setup::new();
    let (ask, mut asked) = tokio::sync::mpsc::channel(1);
    let (answer, answered) = tokio::sync::watch::channel(false);
    setup.service = crate::node::service(move |_, _| {
        let (ask, mut answered) = (ask.clone(), answered.clone());
        async move {
            ask.send(()).await.unwrap();
            answered.wait_for(|answered| *answered).await.unwrap();
            http::Response::new(bytes::Bytes::from_static(b"at last"))
        }
    });
    let slow = setup.start().await;
    let alice = with_contacts(0, &[]).await;
    alice.learn(&slow).await;
    let mut events = alice.net.events();
    let waiting = alice.get(&slow, "/");
    let others = async {
        asked.recv().await.unwrap();
        // Another one comes and is let go meanwhile, which takes a visit.
        let visitor = Setup::new().start().await;
        visitor.learn(&alice).await;
        visitor.get(&alice, "/").await.unwrap();
        let seen = until(&mut events, &PeerEvent::LetGo(visitor.name())).await;
        assert!(!seen.contains(&PeerEvent::LetGo(slow.name())), "{seen:?}");
        answer.send_replace(true);
    };
    let (body, ()) = tokio::join!(waiting, others);
    assert_eq!(body.unwrap().body(), "at last");
    wait_for(&mut events, &PeerEvent::LetGo(slow.name())).await;
}
