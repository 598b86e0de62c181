//! Address records: whose word they are, and their limits.

use ciborium::Value;
use kith_identity::{AddressRecord, KeyDocument, Mailbox, Record, RecordError, SealedRecord, Whereabouts};

use crate::{
    LATER, NOW, at, document, identity, node,
    records::{edited, rng, signer, today, whereabouts},
};

#[test]
fn whose_node_it_is_the_document_says() {
    let first = document(1, 2);
    let second = first
        .add_node(&identity(1), &node(3).public(), at(NOW), at(LATER))
        .unwrap();
    let third = second
        .revoke_node(&identity(1), node(2).key_id(), at(NOW), at(LATER))
        .unwrap();
    let by_2 = AddressRecord::sign(whereabouts(), &first, &node(2), at(NOW)).unwrap();
    let by_3 = AddressRecord::sign(whereabouts(), &second, &node(3), at(NOW)).unwrap();
    let by_4 = AddressRecord::sign(whereabouts(), &first, &node(4), at(NOW)).unwrap();
    type Expected = fn(&Result<(), RecordError>) -> bool;
    let cases: [(&str, &AddressRecord, &KeyDocument, Expected); 7] = [
        ("a current node", &by_2, &first, |o| o.is_ok()),
        ("a newer document", &by_2, &second, |o| o.is_ok()),
        ("an older document", &by_3, &first, |o| {
            matches!(o, Err(RecordError::DocumentNeeded { needed: 2, held: 1 }))
        }),
        ("a node added later", &by_3, &second, |o| o.is_ok()),
        ("a revoked node", &by_2, &third, |o| {
            matches!(o, Err(RecordError::UnknownNode))
        }),
        ("a stranger", &by_4, &first, |o| {
            matches!(o, Err(RecordError::UnknownNode))
        }),
        ("another server", &by_2, &document(9, 2), |o| {
            matches!(o, Err(RecordError::NodeSignature))
        }),
    ];
    for (what, record, document, expected) in cases {
        let outcome = record.verify(document);
        assert!(expected(&outcome), "{what}: {outcome:?}");
    }
    let mut moved = by_2;
    moved.whereabouts.peer_id[0] ^= 1;
    assert!(matches!(moved.verify(&first), Err(RecordError::NodeSignature)));
}

#[test]
fn addresses_have_limits() {
    let mailbox = || whereabouts().mailboxes[0].clone();
    type Change = fn(&mut Whereabouts);
    let cases: &[(&str, Change, bool)] = &[
        (
            "nothing but a peer id",
            |w| {
                *w = Whereabouts {
                    peer_id: vec![1],
                    ..Whereabouts::default()
                }
            },
            true,
        ),
        ("no peer id", |w| w.peer_id.clear(), false),
        ("a long peer id", |w| w.peer_id = vec![1; 129], false),
        ("16 addresses of 128 bytes", |w| w.addrs = vec![vec![1; 128]; 16], true),
        ("17 addresses", |w| w.addrs = vec![vec![1]; 17], false),
        ("a long address", |w| w.addrs[0] = vec![1; 129], false),
        ("an empty address", |w| w.addrs[0].clear(), false),
        ("8 relays", |w| w.relays = vec![vec![1]; 8], true),
        ("9 relays", |w| w.relays = vec![vec![1]; 9], false),
        ("an empty relay", |w| w.relays[0].clear(), false),
        ("8 mailboxes", |w| w.mailboxes = vec![w.mailboxes[0].clone(); 8], true),
        ("9 mailboxes", |w| w.mailboxes = vec![w.mailboxes[0].clone(); 9], false),
        ("a mailbox without relay", |w| w.mailboxes[0].relay.clear(), false),
    ];
    for (what, change, accepted) in cases {
        let mut changed = whereabouts();
        change(&mut changed);
        let outcome = AddressRecord::sign(changed.clone(), &document(1, 2), &node(2), at(NOW));
        assert_eq!(outcome.is_ok(), *accepted, "{what}: {outcome:?}");
        // The same words from the wire: what signs them does not matter, the limits come first.
        let mut record = AddressRecord::sign(whereabouts(), &document(1, 2), &node(2), at(NOW)).unwrap();
        record.whereabouts = changed;
        let outcome = record.encode();
        assert_eq!(outcome.is_ok(), *accepted, "{what}");
        assert!(matches!(outcome, Ok(_) | Err(RecordError::Addresses)), "{what}");
    }

    let mut much = whereabouts();
    much.addrs = vec![vec![1; 128]; 16];
    much.mailboxes = vec![
        Mailbox {
            relay: vec![1; 128],
            ..mailbox()
        };
        8
    ];
    let record = Record::Address(AddressRecord::sign(much, &document(1, 2), &node(2), at(NOW)).unwrap());
    let error = SealedRecord::seal(&record, &signer(1, &record, today()), &mut rng("nonce")).unwrap_err();
    assert!(
        matches!(error, RecordError::TooLarge(size) if size > SealedRecord::MAX_CONTENT),
        "{error}"
    );
}

#[test]
fn address_limits_hold_for_what_comes_over_the_wire() {
    let addresses = AddressRecord::sign(whereabouts(), &document(1, 2), &node(2), at(NOW)).unwrap();
    let bytes = addresses.encode().unwrap();
    assert_eq!(AddressRecord::decode(&bytes).unwrap(), addresses);
    let many = edited(&bytes, &["addrs"], |list| {
        *list = Value::Array(vec![Value::Bytes(vec![1]); 17])
    });
    assert!(matches!(AddressRecord::decode(&many), Err(RecordError::Addresses)));
    let late = edited(&bytes, &["expires"], |expires| *expires = Value::from(u64::MAX));
    assert!(matches!(AddressRecord::decode(&late), Err(RecordError::TooFarAhead)));
}
