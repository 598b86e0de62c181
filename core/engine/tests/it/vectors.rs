//! The specification's cryptographic test vectors: appendices, "Cryptographic Test Vectors".

use base64::Engine;
use kith_engine::{json::parse_object, testing::key_pair};
use ruma::{
    CanonicalJsonObject,
    room_version_rules::RedactionRules,
    signatures::{Ed25519KeyPair, hash_and_sign_event, sign_json},
};

fn key() -> Ed25519KeyPair {
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::general_purpose::NO_PAD.with_decode_allow_trailing_bits(true),
    );
    let seed = engine.decode("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
    key_pair(&seed.try_into().unwrap(), "1")
}

fn signature(object: &CanonicalJsonObject) -> &str {
    object["signatures"].as_object().unwrap()["domain"].as_object().unwrap()["ed25519:1"]
        .as_str()
        .unwrap()
}

#[test]
fn signs_json_as_the_specification_does() {
    for (json, expected) in [
        (
            "{}",
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            r#"{"one": 1, "two": "Two"}"#,
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ] {
        let mut object = parse_object(json).unwrap();
        sign_json("domain", &key(), &mut object).unwrap();
        assert_eq!(signature(&object), expected, "{json}");
    }
}

#[test]
fn hashes_and_signs_events_as_the_specification_does() {
    for (json, hash, expected) in [
        (
            r#"{"room_id": "!x:domain", "sender": "@a:domain", "origin": "domain", "origin_server_ts": 1000000,
                "signatures": {}, "hashes": {}, "type": "X", "content": {}, "prev_events": [], "auth_events": [],
                "depth": 3, "unsigned": {"age_ts": 1000000}}"#,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            r#"{"content": {"body": "Here is the message content"}, "event_id": "$0:domain", "origin": "domain",
                "origin_server_ts": 1000000, "type": "m.room.message", "room_id": "!r:domain", "sender": "@u:domain",
                "signatures": {}, "unsigned": {"age_ts": 1000000}}"#,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ] {
        let mut object = parse_object(json).unwrap();
        hash_and_sign_event("domain", &key(), &mut object, &RedactionRules::V1).unwrap();
        assert_eq!(object["hashes"].as_object().unwrap()["sha256"].as_str(), Some(hash));
        assert_eq!(signature(&object), expected);
    }
}
