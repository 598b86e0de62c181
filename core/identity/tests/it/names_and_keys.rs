//! Server names, public keys and what node keys sign.

use kith_identity::{IdentityKey, IdentityPublicKey, KeyError, NameError, NodeKey, PublicKey};
use proptest::prelude::*;
use ruma::{
    CanonicalJsonObject, ServerName,
    serde::Base64,
    signatures::{KeyPair, PublicKeyMap, PublicKeySet, sign_json, verify_json},
};

/// The public key of the all-zero seed, and its name as an independent z-base-32 encoder gives it.
const ZERO_SEED_NAME: &str = "8pinxxgqs41n4aididenw5apqp1urfmzdztr8jt4abrkdn435ewo";

#[test]
fn a_server_name_is_the_z_base_32_of_the_key() {
    let key = IdentityKey::from_bytes(&[0; 32]).public();
    assert_eq!(key.server_name(), ZERO_SEED_NAME);
    assert_eq!(IdentityPublicKey::from_server_name(&key.server_name()), Ok(key));
}

#[test]
fn other_spellings_are_refused() {
    let last_char_replaced = |last: char| format!("{}{last}", &ZERO_SEED_NAME[..51]);
    let cases = [
        (String::new(), NameError::Length(0)),
        (ZERO_SEED_NAME[..51].to_owned(), NameError::Length(51)),
        (format!("{ZERO_SEED_NAME}y"), NameError::Length(53)),
        (format!("{ZERO_SEED_NAME}:8448"), NameError::Length(57)),
        ("é".repeat(26), NameError::Encoding),
        (ZERO_SEED_NAME.to_uppercase(), NameError::Encoding),
        (ZERO_SEED_NAME.replacen('8', "l", 1), NameError::Encoding),
        // The last character carries one bit of the key; these spell the same bit with others set.
        (last_char_replaced('b'), NameError::Encoding),
        (last_char_replaced('1'), NameError::Encoding),
        (last_char_replaced('9'), NameError::Encoding),
        // Bytes 00…: a point of order 4; 01…: the neutral element; 02…: no point at all.
        ("y".repeat(52), NameError::Key(KeyError::Weak)),
        (format!("yr{}", "y".repeat(50)), NameError::Key(KeyError::Weak)),
        (format!("ye{}", "y".repeat(50)), NameError::Key(KeyError::NotAKey)),
        ("matrix.org".to_owned(), NameError::Length(10)),
    ];
    for (name, expected) in cases {
        assert_eq!(name.parse::<IdentityPublicKey>(), Err(expected), "{name}");
    }
}

#[test]
fn unusable_public_keys_are_refused() {
    let with_first = |first: u8, rest: u8, last: u8| {
        let mut bytes = [rest; 32];
        bytes[0] = first;
        bytes[31] = last;
        bytes
    };
    let cases = [
        (with_first(0, 0, 0), KeyError::Weak, "a point of order 4"),
        (with_first(1, 0, 0), KeyError::Weak, "the neutral element"),
        (with_first(0xec, 0xff, 0x7f), KeyError::Weak, "the point of order 2"),
        (with_first(2, 0, 0), KeyError::NotAKey, "no point has this y"),
        (
            with_first(0xee, 0xff, 0x7f),
            KeyError::NotAKey,
            "the neutral element, spelt p + 1",
        ),
        (with_first(0xf0, 0xff, 0x7f), KeyError::NotAKey, "y = 3 spelt p + 3"),
    ];
    for (bytes, expected, what) in cases {
        assert_eq!(PublicKey::from_bytes(&bytes).unwrap_err(), expected, "{what}");
    }
}

#[test]
fn key_ids_name_the_key() {
    let node = NodeKey::from_bytes(&[0; 64]);
    assert_eq!(node.key_id(), format!("ed25519:{}", &ZERO_SEED_NAME[..8]).as_str());
}

/// The specification's vectors ("Signing JSON", appendix): the same seed signs the same bytes.
#[test]
fn node_keys_sign_as_the_specification_says() {
    let seed: Base64 = Base64::parse("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
    let mut secret = [0; 64];
    secret[..32].copy_from_slice(seed.as_bytes());
    let node = NodeKey::from_bytes(&secret);
    let cases = [
        (
            "{}",
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            r#"{"one":1,"two":"Two"}"#,
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ];
    for (json, signature) in cases {
        assert_eq!(node.sign(json.as_bytes()).base64(), signature, "{json}");
    }
}

#[test]
fn ruma_verifies_what_a_node_key_signs() {
    let node = NodeKey::from_bytes(&[7; 64]);
    let mut object: CanonicalJsonObject = serde_json::from_str(r#"{"a":1}"#).unwrap();
    sign_json("server", &node, &mut object).unwrap();
    let keys = PublicKeySet::from([(node.key_id().to_string(), node.public().signing.to_base64())]);
    verify_json(&PublicKeyMap::from([("server".to_owned(), keys)]), &object).unwrap();
}

#[test]
fn debug_output_holds_no_secret() {
    let shown = format!(
        "{:?} {:?}",
        IdentityKey::from_bytes(&[9; 32]),
        NodeKey::from_bytes(&[9; 64])
    );
    assert!(!shown.contains("9, 9"), "{shown}");
}

proptest! {
    #[test]
    fn names_round_trip(seed: [u8; 32]) {
        let key = IdentityKey::from_bytes(&seed).public();
        let name = key.server_name();
        prop_assert_eq!(name.as_str().len(), 52);
        prop_assert_eq!(IdentityPublicKey::from_server_name(&name), Ok(key));
    }

    #[test]
    fn any_name_is_refused_or_the_only_spelling(text in "[ybndrfg8ejkmcpqxot1uwisza345h769]{52}") {
        if let Ok(key) = text.parse::<IdentityPublicKey>() {
            prop_assert_eq!(key.to_string(), text.clone());
            prop_assert!(ServerName::parse(text).is_ok());
        }
    }

    #[test]
    fn secrets_round_trip(secret in prop::array::uniform32(any::<u8>()), seal: [u8; 32]) {
        prop_assert_eq!(*IdentityKey::from_bytes(&secret).to_bytes(), secret);
        let mut both = [0; 64];
        both[..32].copy_from_slice(&secret);
        both[32..].copy_from_slice(&seal);
        prop_assert_eq!(*NodeKey::from_bytes(&both).to_bytes(), both);
    }

    #[test]
    fn signatures_hold_for_their_message_only(seed: [u8; 32], message: Vec<u8>, flip in 0usize..64) {
        let mut secret = [0; 64];
        secret[..32].copy_from_slice(&seed);
        let node = NodeKey::from_bytes(&secret);
        let mut signature = node.sign_bytes(&message);
        prop_assert!(node.public().signing.verify(&message, &signature).is_ok());
        signature[flip] ^= 1;
        prop_assert!(node.public().signing.verify(&message, &signature).is_err());
    }
}
