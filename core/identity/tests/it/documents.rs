//! Key documents: what is signed, what is refused, and which key counts when.

use kith_identity::{DocumentError, KeyDocument, KeyStatus, NodeKey};
use proptest::prelude::*;
use ruma::{
    CanonicalJsonObject,
    signatures::{KeyPair, sign_json, to_canonical_json_string_for_signing},
};
use serde_json::{Value, json};

use crate::{LATER, NOW, at, document, identity, node};

/// Signs JSON as the identity with this seed would, whatever it says.
fn signed_by(identity_seed: u8, mut value: Value) -> Vec<u8> {
    value.as_object_mut().unwrap().remove("signatures");
    let object: CanonicalJsonObject = serde_json::from_value(value.clone()).unwrap();
    let text = to_canonical_json_string_for_signing(&object).unwrap();
    // A node key made of the identity's seed signs with the same Ed25519 key.
    let mut secret = [0; 64];
    secret[..32].fill(identity_seed);
    let signature = NodeKey::from_bytes(&secret).sign(text.as_bytes()).base64();
    let name = identity(identity_seed).public().to_string();
    value["signatures"] = json!({ name: { "ed25519:root": signature } });
    serde_json::to_vec(&value).unwrap()
}

fn as_value(document: &KeyDocument) -> Value {
    serde_json::from_str(&document.to_json()).unwrap()
}

#[test]
fn a_new_document_is_a_matrix_server_key_object() {
    let document = document(1, 2);
    let node = node(2);
    let (id, name) = (node.key_id().as_str(), identity(1).public().to_string());
    let value = as_value(&document);
    assert_eq!(value["server_name"], json!(name));
    assert_eq!(value["valid_until_ts"], json!(LATER));
    assert_eq!(
        value["verify_keys"][id]["key"],
        json!(node.public().signing.to_base64())
    );
    assert_eq!(value["old_verify_keys"], json!({}));
    assert_eq!(value["kith"]["version"], json!(1));
    assert_eq!(value["kith"]["nodes"][id]["added_ts"], json!(NOW));
    assert!(value["signatures"][&name]["ed25519:root"].is_string());
    assert_eq!(KeyDocument::parse(document.to_json().as_bytes()).unwrap(), document);
}

/// Each case changes a good document and signs it again; what is refused is refused for its content.
#[test]
fn wrong_content_is_refused_though_signed() {
    type Change = fn(&mut Value, id: &str, other: &str, other_key: Value);
    let cases: &[(&str, Change)] = &[
        ("a current key under another key's id", |d, id, other, _| {
            let key = d["verify_keys"][id].take();
            d["verify_keys"] = json!({ other: key });
            let node = d["kith"]["nodes"][id].take();
            d["kith"]["nodes"] = json!({ other: node });
        }),
        ("a current key without a seal", |d, _, _, _| {
            d["kith"]["nodes"] = json!({})
        }),
        ("a seal without a current key", |d, _, _, _| {
            d["verify_keys"] = json!({})
        }),
        ("a seal of the wrong length", |d, id, _, _| {
            d["kith"]["nodes"][id]["seal"] = json!("AAAA")
        }),
        ("a key both current and old", |d, id, _, _| {
            d["old_verify_keys"] = json!({ id: { "key": d["verify_keys"][id]["key"], "expired_ts": 5 } });
        }),
        ("an old key under a wrong id", |d, _, _, key| {
            d["old_verify_keys"] = json!({ "ed25519:yyyyyyyy": { "key": key, "expired_ts": 5 } });
        }),
        ("a weak key", |d, _, _, _| {
            let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
            d["verify_keys"] = json!({ "ed25519:yyyyyyyy": { "key": zero } });
            d["kith"]["nodes"] = json!({ "ed25519:yyyyyyyy": { "seal": zero, "added_ts": 1 } });
        }),
        ("a key of 31 bytes", |d, id, _, _| {
            d["verify_keys"][id]["key"] = json!("A".repeat(42))
        }),
        ("no version", |d, _, _, _| d["kith"] = json!({ "nodes": {} })),
        ("a negative version", |d, _, _, _| d["kith"]["version"] = json!(-1)),
        ("no validity", |d, _, _, _| {
            drop(d.as_object_mut().unwrap().remove("valid_until_ts"))
        }),
        ("a DNS server name", |d, _, _, _| d["server_name"] = json!("matrix.org")),
        ("no kith part", |d, _, _, _| {
            drop(d.as_object_mut().unwrap().remove("kith"))
        }),
        ("more than 4 KiB", |d, _, _, _| {
            d["padding"] = json!("x".repeat(KeyDocument::MAX_BYTES))
        }),
    ];
    let (node, other) = (node(2), node(3));
    let good = as_value(&document(1, 2));
    assert!(
        KeyDocument::parse(&signed_by(1, good.clone())).is_ok(),
        "unchanged, it is accepted"
    );
    for (what, change) in cases {
        let mut value = good.clone();
        let other_key = json!(other.public().signing.to_base64());
        change(&mut value, node.key_id().as_str(), other.key_id().as_str(), other_key);
        let error = KeyDocument::parse(&signed_by(1, value)).expect_err(what);
        assert!(!matches!(error, DocumentError::Signature), "{what}: {error}");
    }
}

#[test]
fn wrong_signatures_are_refused() {
    let good = as_value(&document(1, 2));
    let name = identity(1).public().to_string();
    let with = |path: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = value;
        serde_json::to_vec(&changed).unwrap()
    };
    let signed_by_node = {
        let mut object: CanonicalJsonObject = serde_json::from_value(good.clone()).unwrap();
        object.remove("signatures");
        sign_json(&name, &node(2), &mut object).unwrap();
        serde_json::to_vec(&object).unwrap()
    };
    let mut by_other: Value = serde_json::from_slice(&signed_by(9, good.clone())).unwrap();
    let others = by_other["signatures"][&identity(9).public().to_string()].take();
    by_other["signatures"] = json!({ &name: others });
    let cases = [
        ("content changed", with("/valid_until_ts", json!(LATER + 1))),
        ("version raised", with("/kith/version", json!(2))),
        ("no signatures", with("/signatures", json!({}))),
        ("signatures of another type", with("/signatures", json!([]))),
        (
            "not base64",
            with(&format!("/signatures/{name}/ed25519:root"), json!("!")),
        ),
        (
            "cut short",
            with(&format!("/signatures/{name}/ed25519:root"), json!("AAAA")),
        ),
        ("signed by its node only", signed_by_node),
        (
            "signed by another identity, in its own name",
            signed_by(9, good.clone()),
        ),
        (
            "signed by another identity, in this name",
            serde_json::to_vec(&by_other).unwrap(),
        ),
    ];
    for (what, bytes) in cases {
        let error = KeyDocument::parse(&bytes).expect_err(what);
        assert!(matches!(error, DocumentError::Signature), "{what}: {error}");
    }
}

#[test]
fn fields_of_a_newer_version_are_kept() {
    let mut value = as_value(&document(1, 2));
    value["kith"]["future"] = json!({ "a": 1 });
    let document = KeyDocument::parse(&signed_by(1, value)).unwrap();
    assert!(document.to_json().contains("future"));
    assert_eq!(KeyDocument::parse(document.to_json().as_bytes()).unwrap(), document);
}

#[test]
fn the_highest_version_wins() {
    let first = document(1, 2);
    let second = first.renew(&identity(1), at(LATER + 1)).unwrap();
    let strangers = document(9, 2).renew(&identity(9), at(LATER)).unwrap();
    let cases = [
        (&second, &first, true),
        (&first, &second, false),
        (&first, &first, false),
        (&strangers, &first, false),
    ];
    for (new, held, expected) in cases {
        assert_eq!(
            new.supersedes(held),
            expected,
            "{} over {}",
            new.version(),
            held.version()
        );
    }
}

#[test]
fn nodes_come_and_go() {
    let identity = identity(1);
    let (first, second) = (node(2), node(3));
    let one = document(1, 2);
    let two = one
        .add_node(&identity, &second.public(), at(NOW + 5), at(LATER))
        .unwrap();
    assert_eq!((two.version(), two.nodes().count()), (2, 2));
    let again = two
        .add_node(&identity, &second.public(), at(NOW + 9), at(LATER))
        .unwrap();
    assert_eq!(again.status(second.key_id()), two.status(second.key_id()), "added once");

    let revoked = two
        .revoke_node(&identity, first.key_id(), at(NOW + 50), at(LATER))
        .unwrap();
    assert_eq!(revoked.nodes().map(|(id, _)| id).collect::<Vec<_>>(), [second.key_id()]);
    assert!(matches!(revoked.status(first.key_id()), Some(KeyStatus::Revoked(old)) if old.expired_ts == at(NOW + 50)));

    let refusals = [
        revoked
            .add_node(&identity, &first.public(), at(NOW), at(LATER))
            .unwrap_err(),
        revoked
            .revoke_node(&identity, first.key_id(), at(NOW), at(LATER))
            .unwrap_err(),
        revoked.renew(&crate::identity(9), at(LATER)).unwrap_err(),
    ];
    assert!(
        matches!(refusals[0], DocumentError::Taken(_)),
        "a revoked key never comes back"
    );
    assert!(matches!(refusals[1], DocumentError::NoSuchNode(_)));
    assert!(matches!(refusals[2], DocumentError::OtherIdentity));
}

#[test]
fn the_key_that_counts_depends_on_the_time() {
    let (current, revoked, stranger) = (node(3), node(2), node(4));
    let document = document(1, 2)
        .add_node(&identity(1), &current.public(), at(NOW), at(LATER))
        .and_then(|d| d.revoke_node(&identity(1), revoked.key_id(), at(NOW + 50), at(LATER)))
        .unwrap();
    let cases = [
        (&current, NOW, true),
        (&current, LATER, true),
        (&current, LATER + 1, false),
        (&revoked, NOW, true),
        (&revoked, NOW + 50, true),
        (&revoked, NOW + 51, false),
        (&stranger, NOW, false),
    ];
    for (node, time, counts) in cases {
        let expected = counts.then(|| node.public().signing);
        assert_eq!(
            document.verifying_key(node.key_id(), at(time)),
            expected,
            "{node:?} at {time}"
        );
        let set = document.public_key_set(at(time));
        assert_eq!(set.contains_key(node.key_id().as_str()), counts, "{node:?} at {time}");
    }
}

#[test]
fn a_document_never_outgrows_its_limit() {
    let identity = identity(1);
    let mut document = document(1, 2);
    let refused =
        (3..=255).find_map(
            |seed| match document.add_node(&identity, &node(seed).public(), at(NOW), at(LATER)) {
                Ok(next) => {
                    document = next;
                    None
                }
                Err(error) => Some(error),
            },
        );
    assert!(matches!(refused, Some(DocumentError::TooLarge)));
    assert!(document.nodes().count() >= 15, "{}", document.nodes().count());
}

proptest! {
    #[test]
    fn documents_round_trip(seeds in prop::collection::btree_set(1u8.., 1..12), revoke: u16, until in 0..=1u64 << 53) {
        let identity = identity(77);
        let seeds: Vec<u8> = seeds.into_iter().collect();
        // 2^53 - 1 is the largest integer that canonical JSON holds.
        let until = at(until.min((1 << 53) - 1));
        let mut document = KeyDocument::new(&identity, &node(seeds[0]).public(), at(NOW), until).unwrap();
        for seed in &seeds[1..] {
            document = document.add_node(&identity, &node(*seed).public(), at(NOW), until).unwrap();
        }
        for (i, seed) in seeds.iter().enumerate().filter(|(i, _)| revoke & (1 << i) != 0) {
            document = document.revoke_node(&identity, node(*seed).key_id(), at(i as u64), until).unwrap();
        }
        prop_assert_eq!(KeyDocument::parse(document.to_json().as_bytes()).unwrap(), document);
    }

    #[test]
    fn strangers_bytes_do_no_harm(bytes: Vec<u8>) {
        prop_assert!(KeyDocument::parse(&bytes).is_err());
    }
}
