//! What only the inside can try: contents and envelopes that no honest publisher makes.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::*;
use crate::{IdentityKey, NodeKey};

const NOW: u64 = 1_700_000_000_000;

fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new(millis).unwrap())
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn document() -> KeyDocument {
    let node = NodeKey::from_bytes(&[2; 64]).public();
    KeyDocument::new(&IdentityKey::from_bytes(&[1; 32]), &node, at(NOW), at(NOW + 1)).unwrap()
}

fn signer() -> RecordSigner {
    let (identity, key, day) = (
        IdentityKey::from_bytes(&[1; 32]),
        RecordKey::from_bytes(&[3; 32]),
        Day::of(at(NOW)),
    );
    let certificate = Certificate::for_document(&identity, &document(), day, &key.public()).unwrap();
    let slot = RecordSlot::new(identity.public(), RecordKind::Keys, day);
    RecordSigner::new(slot, certificate, key).unwrap()
}

/// Seals `padded` with a sequence number `ahead` of the document's.
fn sealed(padded: &[u8], ahead: i64) -> SealedRecord {
    let signer = signer();
    let seq = (signer.slot.seq_mask() + document().version()).strict_add_signed(ahead);
    SealedRecord::seal_padded(padded, seq, at(NOW + 1000), &signer, &mut rng()).unwrap()
}

fn good_content() -> Vec<u8> {
    pad(document().to_json().as_bytes()).unwrap()
}

#[test]
fn a_content_must_be_what_the_envelope_says() {
    let check = |padded: &[u8], ahead| sealed(padded, ahead).open(signer().slot());
    assert!(check(&good_content(), 0).is_ok());

    let mut changed = good_content();
    *changed.last_mut().unwrap() = 1;
    let mut too_long = good_content();
    too_long[..2].copy_from_slice(&u16::MAX.to_be_bytes());
    let cases = [
        ("an older document as a newer one", good_content(), 1),
        ("a newer document as an older one", good_content(), -1),
        ("bytes in the padding", changed, 0),
        ("a length beyond the padding", too_long, 0),
        ("no length", vec![0], 0),
    ];
    for (what, padded, ahead) in cases {
        let error = check(&padded, ahead).expect_err(what);
        assert!(matches!(error, RecordError::Value), "{what}: {error}");
    }
    let error = check(&pad(b"{}").unwrap(), 0).unwrap_err();
    assert!(matches!(error, RecordError::Document(_)), "{error}");
}

#[test]
fn storers_refuse_what_a_certified_key_must_not_sign() {
    let check = |record: &SealedRecord| {
        SealedRecord::decode(&record.encode().unwrap())
            .and_then(|record| record.check(&signer().slot().dht_key(), at(NOW)))
    };
    check(&sealed(&good_content(), 0)).unwrap();
    check(&sealed(&good_content(), -1)).unwrap();
    let error = check(&sealed(&good_content(), 1)).unwrap_err();
    assert!(matches!(error, RecordError::Seq), "{error}");
    for length in [0, 1, 500, 623, 625, 3000] {
        let error = check(&sealed(&vec![0; length], 0)).unwrap_err();
        assert!(
            matches!(error, RecordError::Size | RecordError::Encoding(_)),
            "{length}: {error}"
        );
    }
}

/// A storer has the whole record, its DHT key, and this code. No 32 bytes of what it has are the value's key, nor do
/// they lead there in the place of the name.
#[test]
fn nothing_that_a_storer_sees_opens_the_value() {
    let (record, slot) = (sealed(&good_content(), 0), signer().slot);
    let opens = |key: &[u8]| {
        let (nonce, ciphertext) = record.value.split_at(NONCE);
        let payload = Payload {
            msg: ciphertext,
            aad: &header(&slot, record.seq, record.expires).unwrap(),
        };
        XChaCha20Poly1305::new(key.into())
            .decrypt(XNonce::from_slice(nonce), payload)
            .is_ok()
    };
    let derived = |from: &[u8]| {
        let hash = Sha256::new().chain_update("kith record value 1\0").chain_update(from);
        hash.chain_update(record.day().number().to_be_bytes())
            .chain_update("keys")
            .finalize()
    };
    assert!(opens(&derived(slot.identity().as_bytes())), "the name does");

    let mut seen = record.encode().unwrap();
    seen.extend(record.dht_key().as_bytes());
    assert!(!seen.windows(32).any(|bytes| opens(bytes) || opens(&derived(bytes))));
}

proptest! {
    #[test]
    fn padding_keeps_the_content_and_little_of_its_size(content in prop::collection::vec(any::<u8>(), 0..4096)) {
        match pad(&content) {
            Ok(padded) => {
                prop_assert_eq!(unpad(&padded), Some(content.as_slice()));
                prop_assert!(SIZES.iter().any(|size| padded.len() + NONCE + TAG + ENVELOPE == *size));
            }
            Err(error) => {
                prop_assert!(matches!(error, RecordError::TooLarge(size) if size == content.len()));
                prop_assert!(content.len() > SealedRecord::MAX_CONTENT);
            }
        }
    }

    #[test]
    fn any_decrypted_bytes_do_no_harm(padded: Vec<u8>) {
        if let Some(content) = unpad(&padded) {
            prop_assert!(content.len() + LENGTH <= padded.len());
        }
    }
}
