//! How long DHT records hold, for whoever reads them and for whoever keeps them, and which of two wins.

use kith_identity::{AddressRecord, KeyDocument, Record, RecordError, RecordLifetime, SealedRecord};

use crate::{
    LATER, NOW, at, document, identity, node,
    records::{DAY, address, seal, slot_of, store, today, whereabouts},
};

/// By how much some records may hold longer than others.
const LONGER: u64 = SealedRecord::MAX_LIFETIME_MS - SealedRecord::LIFETIME_MS;

#[test]
fn a_record_holds_for_its_time_and_the_clock_tolerance() {
    // Noon, so that the day's own borders are half a day away.
    let noon = u64::from(today().number()) * DAY + DAY / 2;
    let record = address(noon);
    let end = noon + SealedRecord::LIFETIME_MS;
    assert_eq!(record.expires(), at(end));
    let key = slot_of(1, &record, today()).dht_key();
    let bytes = seal(1, &record, today());
    let cases = [
        (noon, "ok"),
        (end + DAY - 1, "ok"),
        (end + DAY, "expired"),
        (noon + DAY + DAY / 2 - 1, "expired"),
        (noon + DAY + DAY / 2, "another day"),
        (noon - DAY, "ok"),
        (noon - DAY - LONGER, "ok"),
        (noon - DAY - LONGER - 1, "too far ahead"),
        (noon - DAY - DAY / 2, "too far ahead"),
        (noon - DAY - DAY / 2 - 1, "another day"),
    ];
    for (now, expected) in cases {
        let outcome = match store(&bytes, &key, now) {
            Ok(_) => "ok",
            Err(RecordError::Expired) => "expired",
            Err(RecordError::TooFarAhead) => "too far ahead",
            Err(RecordError::OtherDay) => "another day",
            Err(error) => panic!("{error}"),
        };
        assert_eq!(
            outcome,
            expected,
            "at noon {:+} min",
            (now as i64 - noon as i64) / 60_000
        );
    }
}

#[test]
fn expiries_tell_no_seconds() {
    for offset in [0, 1, 999, 59_999, 60_000] {
        let expires = u64::from(address(NOW + offset).expires().0);
        assert_eq!(expires % 60_000, 0);
        let lifetime = expires - (NOW + offset);
        assert!((SealedRecord::LIFETIME_MS - 60_000..=SealedRecord::LIFETIME_MS).contains(&lifetime));
    }
}

#[test]
fn the_newer_record_wins_and_a_replay_never_does() {
    let held = |bytes: &[u8]| SealedRecord::decode(bytes).unwrap();
    let seal_at = |now, day| held(&seal(1, &address(now), day));
    let second = document(1, 2).renew(&identity(1), at(LATER)).unwrap();
    let keys_at = |document: &KeyDocument, now| held(&seal(1, &Record::keys(document.clone(), at(now)), today()));
    let cases = [
        ("newer", seal_at(NOW + 1, today()), seal_at(NOW, today()), true),
        ("older", seal_at(NOW, today()), seal_at(NOW + 1, today()), false),
        ("the same", seal_at(NOW, today()), seal_at(NOW, today()), false),
        (
            "a newer document",
            keys_at(&second, NOW),
            keys_at(&document(1, 2), NOW + DAY),
            true,
        ),
        (
            "an older document, later",
            keys_at(&document(1, 2), NOW + DAY),
            keys_at(&second, NOW),
            false,
        ),
        (
            "the same document, later",
            keys_at(&second, NOW + 60_000),
            keys_at(&second, NOW),
            true,
        ),
        (
            "the same document, earlier",
            keys_at(&second, NOW),
            keys_at(&second, NOW + 60_000),
            false,
        ),
    ];
    for (what, new, held, expected) in cases {
        assert_eq!(new.supersedes(&held), expected, "{what}");
    }
    // Masked numbers of different slots compare by chance: none ever takes another's place.
    let slots = [
        seal_at(NOW, today()),
        seal_at(NOW, today().next()),
        keys_at(&second, NOW),
    ];
    for (new, held) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        assert!(!slots[new].supersedes(&slots[held]), "{new} over {held}");
    }
}

#[test]
fn a_storer_keeps_a_record_until_it_ends_and_for_the_longest_lifetime_at_the_most() {
    let morning = u64::from(today().begins().0);
    // A record of the morning ends a day after its expiry; one of the evening with the day after its own.
    for (made, ends) in [
        (morning, morning + SealedRecord::LIFETIME_MS + DAY),
        (NOW, morning + 2 * DAY),
    ] {
        let sealed = SealedRecord::decode(&seal(1, &address(made), today())).unwrap();
        assert_eq!(sealed.refused_from(), at(ends), "made at {made}");
        let cases = [
            (made, made + SealedRecord::LIFETIME_MS),
            // The publisher's clock is slow, or the record is repeated: what ended is kept no longer than what begins.
            (made + 60_000, made + 60_000 + SealedRecord::LIFETIME_MS),
            // It is fast.
            (made - LONGER, u64::from(sealed.expires().0)),
            (made - DAY, made - DAY + SealedRecord::MAX_LIFETIME_MS),
            (ends - 1, ends),
            (ends + 5, ends),
        ];
        for (received, expected) in cases {
            assert_eq!(sealed.kept_until(at(received)), at(expected), "received at {received}");
        }
    }
}

#[test]
fn a_record_may_hold_longer() {
    let noon = u64::from(today().begins().0) + DAY / 2;
    let long = RecordLifetime::Long;
    let address = AddressRecord::sign_for(long, whereabouts(), &document(1, 2), &node(2), at(noon)).unwrap();
    for record in [
        Record::Address(address),
        Record::keys_for(long, document(1, 2), at(noon)),
    ] {
        let end = noon + SealedRecord::MAX_LIFETIME_MS;
        assert_eq!(record.expires(), at(end));
        let bytes = seal(1, &record, today());
        let sealed = store(&bytes, &slot_of(1, &record, today()).dht_key(), noon).unwrap();
        for (received, kept_until) in [
            (noon, end),
            (noon - 1, end - 1),
            (end - SealedRecord::LIFETIME_MS, end),
            (end, end + SealedRecord::LIFETIME_MS),
        ] {
            assert_eq!(
                sealed.kept_until(at(received)),
                at(kept_until),
                "received at {received}"
            );
        }
    }
}
