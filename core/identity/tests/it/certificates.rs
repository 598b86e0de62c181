//! Certificates for record keys: each lets one key publish one kind of record on one day.

use ciborium::Value;
use kith_identity::{AddressRecord, Certificate, Record, RecordError, RecordKey, RecordSigner, SealedRecord};

use crate::{
    LATER, NOW, at, document, identity, node,
    records::{address, entry, keys, rng, signer, slot_of, today, whereabouts},
};

#[test]
fn a_signer_publishes_only_what_it_is_certified_for() {
    let record = address(NOW);
    let issue =
        |day, key: &RecordKey| Certificate::for_node(&identity(1), node(2).key_id(), day, &key.public()).unwrap();
    let key = || RecordKey::from_bytes(&[5; 32]);
    let others = RecordKey::from_bytes(&[6; 32]);
    let cases = [
        ("as issued", slot_of(1, &record, today()), issue(today(), &key()), true),
        (
            "another day's certificate",
            slot_of(1, &record, today()),
            issue(today().next(), &key()),
            false,
        ),
        (
            "another record key",
            slot_of(1, &record, today()),
            issue(today(), &others),
            false,
        ),
        (
            "another server's slot",
            slot_of(9, &record, today()),
            issue(today(), &key()),
            false,
        ),
        (
            "another record's slot",
            slot_of(1, &keys(&document(1, 2)), today()),
            issue(today(), &key()),
            false,
        ),
    ];
    for (what, slot, certificate, accepted) in cases {
        let outcome = RecordSigner::new(slot, certificate, key());
        assert_eq!(outcome.is_ok(), accepted, "{what}");
        assert!(matches!(outcome, Ok(_) | Err(RecordError::Certificate)), "{what}");
    }

    let others_addresses = AddressRecord::sign(whereabouts(), &document(9, 2), &node(2), at(NOW)).unwrap();
    let third = AddressRecord::sign(whereabouts(), &document(1, 3), &node(3), at(NOW)).unwrap();
    let first = document(1, 2);
    let second = first.renew(&identity(1), at(LATER)).unwrap();
    type Expected = fn(&RecordError) -> bool;
    let cases: [(&str, RecordSigner, Record, Expected); 5] = [
        (
            "a newer document",
            signer(1, &keys(&first), today()),
            keys(&second),
            |e| matches!(e, RecordError::Seq),
        ),
        (
            "another's document",
            signer(1, &keys(&first), today()),
            keys(&document(9, 2)),
            |e| matches!(e, RecordError::OtherSlot),
        ),
        (
            "another node",
            signer(1, &record, today()),
            Record::Address(third),
            |e| matches!(e, RecordError::OtherSlot),
        ),
        ("another kind", signer(1, &record, today()), keys(&first), |e| {
            matches!(e, RecordError::OtherSlot)
        }),
        (
            "said under another name",
            signer(1, &record, today()),
            Record::Address(others_addresses),
            |e| matches!(e, RecordError::NodeSignature),
        ),
    ];
    for (what, signer, record, expected) in cases {
        let error = SealedRecord::seal(&record, &signer, &mut rng("nonce")).expect_err(what);
        assert!(expected(&error), "{what}: {error}");
    }
    let older = SealedRecord::seal(&keys(&first), &signer(1, &keys(&second), today()), &mut rng("nonce"));
    older.expect("a document below the limit may be published");
    let error = Certificate::for_document(&identity(9), &first, today(), &key().public()).unwrap_err();
    assert!(matches!(error, RecordError::OtherSlot));
}

#[test]
fn certificates_are_kept_and_checked() {
    let key = RecordKey::from_bytes(&[5; 32]);
    assert_eq!(RecordKey::from_bytes(&key.to_bytes()).public(), key.public());
    let certificate = Certificate::for_node(&identity(1), node(2).key_id(), today(), &key.public()).unwrap();
    let bytes = certificate.encode().unwrap();
    assert!(bytes.len() <= Certificate::MAX_BYTES);
    assert_eq!(Certificate::decode(&bytes).unwrap(), certificate);
    assert_eq!(certificate.day(), today());
    // Any other bound would let a storer subtract the mask: addresses are numbered by their node's clock.
    assert_eq!(entry(&bytes, &["max_seq"]), Value::from(u64::MAX));
    for index in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[index / 8] ^= 1 << (index % 8);
        assert!(Certificate::decode(&flipped).is_err(), "bit {index}");
    }
}
