//! Hellos: one connection, one direction, a short time, one node.

use kith_identity::{Hello, HelloError};
use proptest::prelude::*;

use crate::{LATER, NOW, at, document, identity, node};

const ALICE_PEER: &[u8] = b"peer id of alice";
const BOB_PEER: &[u8] = b"peer id of bob";

fn hello() -> Hello {
    Hello::sign(&document(1, 2), &node(2), ALICE_PEER, BOB_PEER, at(NOW)).unwrap()
}

#[test]
fn a_hello_holds_on_its_connection() {
    let hello = Hello::decode(&hello().encode().unwrap()).unwrap();
    assert_eq!(hello.server_name(), identity(1).public().server_name());
    hello
        .verify(&document(1, 2), ALICE_PEER, BOB_PEER, at(NOW + 1000))
        .unwrap();
}

#[test]
fn a_hello_holds_nowhere_else() {
    let cases = [
        ("sent back to its maker", BOB_PEER, ALICE_PEER),
        ("replayed to a third peer", ALICE_PEER, b"peer id of carol".as_slice()),
        ("replayed by a third peer", b"peer id of carol", BOB_PEER),
        ("with the peers' border moved", b"peer id of alicep", b"eer id of bob"),
    ];
    for (what, from, own) in cases {
        let error = hello().verify(&document(1, 2), from, own, at(NOW)).expect_err(what);
        assert!(matches!(error, HelloError::Signature), "{what}: {error}");
    }
}

#[test]
fn a_hello_holds_for_its_time_and_the_clock_tolerance() {
    let end = NOW + Hello::LIFETIME_MS;
    let day = Hello::CLOCK_TOLERANCE_MS;
    let cases = [
        (NOW, "ok"),
        (end + day - 1, "ok"),
        (end + day, "expired"),
        (NOW - day, "ok"),
        (NOW - day - 1, "too far ahead"),
    ];
    for (now, expected) in cases {
        let outcome = match hello().verify_signature(ALICE_PEER, BOB_PEER, at(now)) {
            Ok(()) => "ok",
            Err(HelloError::Expired) => "expired",
            Err(HelloError::TooFarAhead) => "too far ahead",
            Err(error) => panic!("{error}"),
        };
        assert_eq!(outcome, expected, "at {now}");
    }
}

#[test]
fn the_key_document_decides() {
    let identity = identity(1);
    let held = document(1, 2);
    let newer = held.renew(&identity, at(LATER)).unwrap();
    let without = newer
        .add_node(&identity, &node(3).public(), at(NOW), at(LATER))
        .and_then(|d| d.revoke_node(&identity, node(2).key_id(), at(NOW), at(LATER)))
        .unwrap();
    let by_newer = Hello::sign(&newer, &node(2), ALICE_PEER, BOB_PEER, at(NOW)).unwrap();
    let by_stranger = Hello::sign(&held, &node(8), ALICE_PEER, BOB_PEER, at(NOW)).unwrap();
    let verify = |hello: &Hello, document| hello.verify(document, ALICE_PEER, BOB_PEER, at(NOW));

    verify(&hello(), &newer).unwrap();
    verify(&by_newer, &newer).unwrap();
    assert!(matches!(
        verify(&by_newer, &held),
        Err(HelloError::DocumentNeeded { needed: 2, held: 1 })
    ));
    assert!(
        matches!(verify(&hello(), &without), Err(HelloError::UnknownNode)),
        "revoked"
    );
    assert!(
        matches!(verify(&by_stranger, &held), Err(HelloError::UnknownNode)),
        "not listed"
    );
    assert!(matches!(
        verify(&hello(), &document(9, 2)),
        Err(HelloError::OtherServer)
    ));
}

#[test]
fn malformed_hellos_are_refused() {
    let good = hello().encode().unwrap();
    assert!(good.len() <= Hello::MAX_BYTES);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut weak = good.clone();
    let place = weak
        .windows(32)
        .position(|w| w == identity(1).public().as_bytes())
        .unwrap();
    weak[place..place + 32].fill(0);
    let cases = [
        ("empty", Vec::new()),
        ("bytes left over", trailing),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("a weak identity", weak),
        ("too large", vec![0; Hello::MAX_BYTES + 1]),
    ];
    for (what, bytes) in cases {
        assert!(Hello::decode(&bytes).is_err(), "{what}");
    }
}

proptest! {
    #[test]
    fn hellos_round_trip(id in 1u8.., key in 1u8.., now in 0u64..(1 << 52), from: Vec<u8>, to: Vec<u8>) {
        let document = document(id, key);
        let hello = Hello::sign(&document, &node(key), &from, &to, at(now)).unwrap();
        let read = Hello::decode(&hello.encode().unwrap()).unwrap();
        prop_assert_eq!(&read, &hello);
        prop_assert!(read.verify(&document, &from, &to, at(now)).is_ok());
    }

    #[test]
    fn any_flipped_bit_is_noticed(byte: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = hello().encode().unwrap();
        let byte = byte.index(bytes.len());
        bytes[byte] ^= 1 << bit;
        let read = Hello::decode(&bytes).and_then(|h| h.verify(&document(1, 2), ALICE_PEER, BOB_PEER, at(NOW)));
        prop_assert!(read.is_err());
    }

    #[test]
    fn strangers_bytes_do_no_harm(bytes: Vec<u8>) {
        prop_assert!(Hello::decode(&bytes).is_err());
    }
}
