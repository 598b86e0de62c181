//! DHT records: what whoever knows the name can do with them, and what a storer or a crawler of all storers cannot.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use ciborium::Value;
use kith_identity::{
    AddressRecord, Certificate, Day, DhtKey, KeyDocument, Mailbox, Record, RecordError, RecordKey, RecordKind,
    RecordSigner, RecordSlot, SealedRecord, Whereabouts,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use crate::{LATER, NOW, at, document, identity, node};

pub(crate) const DAY: u64 = 24 * 60 * 60 * 1000;

pub(crate) fn today() -> Day {
    Day::of(at(NOW))
}

pub(crate) fn whereabouts() -> Whereabouts {
    Whereabouts {
        peer_id: vec![1; 38],
        addrs: vec![vec![4, 127, 0, 0, 1, 6, 15, 160], vec![5; 20]],
        relays: vec![vec![6; 60], vec![7; 60]],
        mailboxes: vec![Mailbox {
            relay: vec![6; 60],
            id: [8; 32],
            hpke_key: [9; 32],
        }],
    }
}

/// The addresses of node 2 of identity 1, as of `now`.
pub(crate) fn address(now: u64) -> Record {
    Record::Address(AddressRecord::sign(whereabouts(), &document(1, 2), &node(2), at(now)).unwrap())
}

pub(crate) fn keys(document: &KeyDocument) -> Record {
    Record::keys(document.clone(), at(NOW))
}

pub(crate) fn slot_of(identity_seed: u8, record: &Record, day: Day) -> RecordSlot {
    RecordSlot::new(identity(identity_seed).public(), record.kind(), day)
}

/// Who may publish this record, as made by its identity for one day.
pub(crate) fn signer(identity_seed: u8, record: &Record, day: Day) -> RecordSigner {
    let mut rng = rng(("record key", identity_seed, record.kind(), day));
    let (identity, key) = (identity(identity_seed), RecordKey::generate(&mut rng));
    let certificate = match record {
        Record::Keys { document, .. } => Certificate::for_document(&identity, document, day, &key.public()),
        Record::Address(address) => Certificate::for_node(&identity, &address.key_id(), day, &key.public()),
    };
    RecordSigner::new(slot_of(identity_seed, record, day), certificate.unwrap(), key).unwrap()
}

/// Other randomness for everything that it is for, as in a node.
pub(crate) fn rng(purpose: impl Hash) -> StdRng {
    let mut hasher = DefaultHasher::new();
    purpose.hash(&mut hasher);
    StdRng::seed_from_u64(hasher.finish())
}

pub(crate) fn seal(identity_seed: u8, record: &Record, day: Day) -> Vec<u8> {
    let signer = signer(identity_seed, record, day);
    let mut rng = rng((
        "nonce",
        identity_seed,
        record.kind(),
        record.seq(),
        record.expires(),
        day,
    ));
    let sealed = SealedRecord::seal(record, &signer, &mut rng).unwrap();
    sealed.encode().unwrap()
}

/// What a storer does with bytes under a key.
pub(crate) fn store(bytes: &[u8], key: &DhtKey, now: u64) -> Result<SealedRecord, RecordError> {
    let sealed = SealedRecord::decode(bytes)?;
    sealed.check(key, at(now))?;
    Ok(sealed)
}

/// Changes one entry of the outer map, or of the certificate in it, and encodes it as it should be.
pub(crate) fn edited(bytes: &[u8], within: &[&str], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut whole: Value = ciborium::from_reader(bytes).unwrap();
    let mut inner = &mut whole;
    for name in within {
        let entries = inner.as_map_mut().unwrap();
        inner = &mut entries
            .iter_mut()
            .find(|(key, _)| key.as_text() == Some(name))
            .unwrap()
            .1;
    }
    change(inner);
    kith_identity::cbor::to_vec(&whole).unwrap()
}

pub(crate) fn entry(bytes: &[u8], within: &[&str]) -> Value {
    let mut found = None;
    edited(bytes, within, |value| found = Some(value.clone()));
    found.unwrap()
}

/// These follow from the name alone and must never change: nodes of all versions meet there.
#[test]
fn dht_keys_are_where_they_always_were() {
    let cases = [
        (
            RecordKind::Keys,
            19_675,
            "ca4035c166f2dbf836228e843b4acaacf7dc02e5e271fb638d3ffece8f4de989",
        ),
        (
            RecordKind::Keys,
            19_676,
            "b850c65288f502df0f3605a2f6df9262fc896cb3b654fd6f8ecbf9fdc1e29bb7",
        ),
        (
            RecordKind::Address(node(2).key_id().clone()),
            19_675,
            "b57d1fdec5038b3e8bb29a92455081ca4d94eab43cd16d3866c2c3fc47937d7d",
        ),
    ];
    for (kind, day, expected) in cases {
        let slot = RecordSlot::new(identity(1).public(), kind, Day::from_number(day));
        assert_eq!(
            format!("{:?}", slot.dht_key()),
            format!("DhtKey({expected})"),
            "{slot:?}"
        );
    }
}

#[test]
fn days_are_utc_days() {
    let cases = [
        (0, 0),
        (DAY - 1, 0),
        (DAY, 1),
        (NOW, 19_675),
        ((1 << 53) - 1, 104_249_991),
    ];
    for (millis, expected) in cases {
        assert_eq!(Day::of(at(millis)).number(), expected, "{millis}");
    }
    assert_eq!(Day::around(at(NOW)).map(Day::number), [19_675, 19_676, 19_674]);
    assert_eq!(Day::around(at(5)).map(Day::number), [0, 1, 0]);
}

#[test]
fn whoever_knows_the_name_finds_and_reads() {
    for record in [address(NOW), keys(&document(1, 2))] {
        let bytes = seal(1, &record, today());
        let slot = slot_of(1, &record, today());
        let sealed = store(&bytes, &slot.dht_key(), NOW).unwrap();
        assert_eq!(sealed.open(&slot).unwrap(), record);
        assert_eq!((sealed.day(), sealed.expires()), (today(), record.expires()));
    }
}

#[test]
fn whoever_knows_another_name_does_not() {
    let record = address(NOW);
    let sealed = SealedRecord::decode(&seal(1, &record, today())).unwrap();
    let slots = [
        ("another server's", slot_of(9, &record, today())),
        (
            "another kind's",
            RecordSlot::new(identity(1).public(), RecordKind::Keys, today()),
        ),
        (
            "another node's",
            RecordSlot::new(
                identity(1).public(),
                RecordKind::Address(node(3).key_id().clone()),
                today(),
            ),
        ),
        ("another day's", slot_of(1, &record, today().next())),
    ];
    for (what, slot) in slots {
        assert_ne!(slot.dht_key(), sealed.dht_key(), "{what}");
        assert!(matches!(sealed.open(&slot), Err(RecordError::OtherSlot)), "{what}");
        assert!(
            matches!(sealed.check(&slot.dht_key(), at(NOW)), Err(RecordError::OtherSlot)),
            "{what}"
        );
    }
}

/// Whatever number, or eight bytes of a key, signature or value two days have in common, another server's record has
/// too: nothing links them. The same document and addresses, version and node are in both.
#[test]
fn two_days_have_nothing_in_common() {
    let seen = |seed, record: &Record, day| {
        let mut parts = BTreeSet::new();
        let whole = ciborium::from_reader(seal(seed, record, day).as_slice()).unwrap();
        take_apart(&whole, &mut parts);
        take_apart(
            &Value::Bytes(slot_of(seed, record, day).dht_key().as_bytes().to_vec()),
            &mut parts,
        );
        parts
    };
    let strangers = Record::Address(AddressRecord::sign(whereabouts(), &document(9, 3), &node(3), at(NOW)).unwrap());
    let constants = seen(9, &strangers, today().next());
    let links = |one: &BTreeSet<Vec<u8>>, other: &BTreeSet<Vec<u8>>| {
        let both = one.intersection(other).filter(|part| !constants.contains(*part));
        both.cloned().collect::<Vec<_>>()
    };
    let records = [address(NOW), keys(&document(1, 2))];
    for (one, other) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (today_s, tomorrows) = (
            seen(1, &records[one], today()),
            seen(1, &records[other], today().next()),
        );
        assert_eq!(
            links(&today_s, &tomorrows),
            Vec::<Vec<u8>>::new(),
            "records {one} and {other}"
        );
    }
    // Nor do two records of one day have anything in common; one record with itself has, or this test sees nothing.
    let [addresses, keys] = [0, 1].map(|index| seen(1, &records[index], today()));
    let day = (u64::from(today().number())).to_be_bytes().to_vec();
    assert_eq!(links(&addresses, &keys), [day]);
    assert!(links(&addresses, &addresses).len() > 500);
}

/// All numbers in a value, and all eight neighbouring bytes.
fn take_apart(value: &Value, parts: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::Map(entries) => entries.iter().for_each(|(_, value)| take_apart(value, parts)),
        Value::Bytes(bytes) => parts.extend(bytes.windows(8).map(<[u8]>::to_vec)),
        Value::Integer(number) => {
            parts.insert(u64::try_from(*number).unwrap().to_be_bytes().to_vec());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_tell_one_of_three() {
    let mut sizes = BTreeSet::new();
    for count in 0..=8 {
        let mut whereabouts = whereabouts();
        whereabouts.relays = vec![vec![6; 128]; count];
        whereabouts.addrs = vec![vec![6; 128]; count * 2];
        let address = AddressRecord::sign(whereabouts, &document(1, 2), &node(2), at(NOW)).unwrap();
        sizes.insert(seal(1, &Record::Address(address), today()).len());
    }
    // Two bytes less than the powers of two, until days need four bytes.
    assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [1022, 2046, 4094]);
}

/// Each case is made of true parts, by someone without the identity key.
#[test]
fn records_put_together_from_true_parts_are_refused() {
    let record = address(NOW);
    let key = slot_of(1, &record, today()).dht_key();
    let good = seal(1, &record, today());
    let tomorrows = seal(1, &record, today().next());
    let older = seal(1, &address(NOW - 5), today());
    let take = |from: &[u8], within: &[&str]| {
        let value = entry(from, within);
        edited(&good, within, |place| *place = value)
    };
    let keys_record = seal(1, &keys(&document(1, 2)), today());
    let mallory = {
        // The identity's certificate, for a key of which Mallory has no secret; Mallory's own record beside it.
        let own = seal(
            9,
            &Record::Address(AddressRecord::sign(whereabouts(), &document(9, 2), &node(2), at(NOW)).unwrap()),
            today(),
        );
        edited(&own, &["certificate"], |place| *place = entry(&good, &["certificate"]))
    };
    let moved_on = edited(&good, &["certificate", "day"], |day| *day = Value::from(19_676));
    let higher = edited(&good, &["seq"], |seq| *seq = entry(&good, &["certificate", "max_seq"]));
    type Expected = fn(&RecordError) -> bool;
    let cases: [(&str, Vec<u8>, Expected); 10] = [
        ("another day's certificate", take(&tomorrows, &["certificate"]), |e| {
            matches!(e, RecordError::OtherSlot)
        }),
        (
            "another day's record key",
            take(&tomorrows, &["certificate", "record_key"]),
            |e| matches!(e, RecordError::Certificate),
        ),
        (
            "another kind's certificate",
            take(&keys_record, &["certificate"]),
            |e| matches!(e, RecordError::OtherSlot),
        ),
        (
            "another day's certificate signature",
            take(&tomorrows, &["certificate", "signature"]),
            |e| matches!(e, RecordError::Certificate),
        ),
        ("another day's value", take(&tomorrows, &["value"]), |e| {
            matches!(e, RecordError::Signature)
        }),
        ("an older value", take(&older, &["value"]), |e| {
            matches!(e, RecordError::Signature)
        }),
        (
            "a later expiry",
            edited(&good, &["expires"], |e| *e = Value::from(NOW + DAY)),
            |e| matches!(e, RecordError::Signature),
        ),
        ("a higher number", higher, |e| matches!(e, RecordError::Signature)),
        ("a certificate moved to the next day", moved_on, |e| {
            matches!(e, RecordError::Certificate)
        }),
        ("a certificate over another's record", mallory, |e| {
            matches!(e, RecordError::Signature)
        }),
    ];
    store(&good, &key, NOW).unwrap();
    for (what, bytes, expected) in cases {
        assert_ne!(bytes, good, "{what}");
        let error = store(&bytes, &key, NOW).expect_err(what);
        assert!(expected(&error), "{what}: {error}");
    }
    // A certificate of the right day under the right key, over a record that its own record key did not sign.
    let moved = edited(&tomorrows, &["certificate"], |place| {
        *place = entry(&good, &["certificate"])
    });
    let error = store(&moved, &key, NOW).unwrap_err();
    assert!(matches!(error, RecordError::Signature), "{error}");

    // Both certificates are for one record key and one day: still, each record goes with its own.
    let first = document(1, 2);
    let second = keys(&first.renew(&identity(1), at(LATER)).unwrap());
    let (first, second) = (seal(1, &keys(&first), today()), seal(1, &second, today()));
    let exchanged = edited(&first, &["certificate"], |place| {
        *place = entry(&second, &["certificate"])
    });
    let error = store(&exchanged, &slot_of(1, &keys(&document(1, 2)), today()).dht_key(), NOW).unwrap_err();
    assert!(matches!(error, RecordError::Signature), "{error}");
}

#[test]
fn limits_hold_for_what_comes_over_the_wire() {
    let good = seal(1, &address(NOW), today());
    let weak = edited(&good, &["certificate", "record_key"], |key| {
        *key = Value::Bytes(vec![0; 32])
    });
    assert!(matches!(SealedRecord::decode(&weak), Err(RecordError::Key(_))));
    let late = edited(&good, &["expires"], |expires| *expires = Value::from(u64::MAX));
    assert!(matches!(SealedRecord::decode(&late), Err(RecordError::TooFarAhead)));
    for length in [0, 24, 701, 703, 3773] {
        let bytes = edited(&good, &["value"], |value| *value = Value::Bytes(vec![0; length]));
        assert!(
            matches!(SealedRecord::decode(&bytes), Err(RecordError::Size)),
            "{length}"
        );
    }
    let large = edited(&good, &["value"], |value| *value = Value::Bytes(vec![0; 4096]));
    assert!(matches!(SealedRecord::decode(&large), Err(RecordError::Encoding(_))));
    assert!(matches!(
        SealedRecord::decode(&[0; 5000]),
        Err(RecordError::Encoding(_))
    ));
}

#[test]
fn the_largest_document_fits_a_record() {
    let mut document = document(1, 2);
    for seed in 3.. {
        match document.add_node(&identity(1), &node(seed).public(), at(NOW), at(LATER)) {
            Ok(next) => document = next,
            Err(_) => break,
        }
    }
    assert!(document.to_json().len() > KeyDocument::MAX_BYTES - 200);
    let record = keys(&document);
    let bytes = seal(1, &record, today());
    assert!(bytes.len() <= SealedRecord::MAX_BYTES);
    let slot = slot_of(1, &record, today());
    assert_eq!(
        store(&bytes, &slot.dht_key(), NOW).unwrap().open(&slot).unwrap(),
        record
    );
}

prop_compose! {
    fn any_whereabouts()(
        peer_id in part(),
        addrs in prop::collection::vec(part(), 0..=8),
        relays in prop::collection::vec(part(), 0..=5),
        mailboxes in prop::collection::vec((part(), any::<[u8; 32]>(), any::<[u8; 32]>()), 0..=4),
    ) -> Whereabouts {
        let mailboxes = mailboxes.into_iter().map(|(relay, id, hpke_key)| Mailbox { relay, id, hpke_key }).collect();
        Whereabouts { peer_id, addrs, relays, mailboxes }
    }
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=128)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn address_records_round_trip(
        whereabouts in any_whereabouts(), seeds in any::<[u8; 2]>(), now in 2 * DAY..1 << 52, seed: u64,
    ) {
        let [identity_seed, node_seed] = seeds;
        let document = document(identity_seed, node_seed);
        let address = AddressRecord::sign(whereabouts, &document, &node(node_seed), at(now)).unwrap();
        prop_assert_eq!(&AddressRecord::decode(&address.encode().unwrap()).unwrap(), &address);
        prop_assert!(address.verify(&document).is_ok());
        let record = Record::Address(address);
        for day in Day::around(at(now)) {
            let signer = signer(identity_seed, &record, day);
            let sealed = SealedRecord::seal(&record, &signer, &mut StdRng::seed_from_u64(seed)).unwrap();
            let bytes = sealed.encode().unwrap();
            let stored = store(&bytes, &signer.slot().dht_key(), now).unwrap();
            prop_assert_eq!(&stored, &sealed);
            prop_assert_eq!(&stored.open(signer.slot()).unwrap(), &record);
        }
    }

    #[test]
    fn key_records_round_trip(identity_seed: u8, node_seeds in prop::collection::btree_set(any::<u8>(), 1..12)) {
        let identity = identity(identity_seed);
        let mut seeds = node_seeds.into_iter();
        let mut document = document(identity_seed, seeds.next().unwrap());
        for seed in seeds {
            document = document.add_node(&identity, &node(seed).public(), at(NOW), at(LATER)).unwrap();
        }
        let record = keys(&document);
        let slot = slot_of(identity_seed, &record, today());
        let stored = store(&seal(identity_seed, &record, today()), &slot.dht_key(), NOW).unwrap();
        prop_assert_eq!(stored.open(&slot).unwrap(), record);
    }

    #[test]
    fn any_flipped_bit_is_refused(index: prop::sample::Index, documents: bool) {
        let record = if documents { keys(&document(1, 2)) } else { address(NOW) };
        let key = slot_of(1, &record, today()).dht_key();
        let mut bytes = seal(1, &record, today());
        let index = index.index(bytes.len() * 8);
        bytes[index / 8] ^= 1 << (index % 8);
        prop_assert!(store(&bytes, &key, NOW).is_err());
        let mut key = *key.as_bytes();
        key[index % 32] ^= 1 << (index % 8);
        bytes[index / 8] ^= 1 << (index % 8);
        prop_assert!(store(&bytes, &DhtKey::from_bytes(key), NOW).is_err());
    }

    #[test]
    fn a_record_cut_short_or_grown_is_refused(cut: prop::sample::Index, more in prop::collection::vec(any::<u8>(), 1..9)) {
        let bytes = seal(1, &address(NOW), today());
        prop_assert!(SealedRecord::decode(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(SealedRecord::decode(&[bytes, more].concat()).is_err());
    }

    #[test]
    fn strangers_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(SealedRecord::decode(&bytes).is_err());
        prop_assert!(AddressRecord::decode(&bytes).is_err());
        prop_assert!(Certificate::decode(&bytes).is_err());
    }
}
