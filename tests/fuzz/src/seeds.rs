//! What fuzzers start from: well-formed inputs, which they would take days to come upon.

use std::{env, fs, path::PathBuf};

use kith_engine::{
    CheckedPdu, CreateRoom,
    testing::{MemoryRooms, TestServer},
};
use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, UInt};
use serde_json::{Value, json};

/// When everything of the seeds was made.
pub fn now() -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(1_700_000_000_000))
}

/// Writes inputs into the folder from which the fuzzer is about to read what to start from. Where a single case is played
/// again there is none.
pub fn plant<I: AsRef<[u8]>>(inputs: impl IntoIterator<Item = I>) {
    let folder = env::args_os().skip(1).map(PathBuf::from).find(|path| path.is_dir());
    let Some(folder) = folder else { return };
    for (number, input) in inputs.into_iter().enumerate() {
        fs::write(folder.join(format!("seed-{number}")), input).expect("the fuzzer's folder can be written to");
    }
}

/// JSON for [`plant`].
pub fn texts(values: impl IntoIterator<Item = Value>) -> impl Iterator<Item = String> {
    values.into_iter().map(|value| value.to_string())
}

/// The keys of one installation, the same every time.
pub fn keys() -> (IdentityKey, NodeKey, KeyDocument) {
    let identity = IdentityKey::from_bytes(&[1; 32]);
    let node = NodeKey::from_bytes(&[2; 64]);
    let valid_until = MilliSecondsSinceUnixEpoch(UInt::MAX);
    let document = KeyDocument::new(&identity, &node.public(), now(), valid_until).expect("a document");
    (identity, node, document)
}

/// Everything that a room starts with, well signed.
pub fn events(version: &RoomVersionId) -> Vec<CheckedPdu> {
    let server = TestServer::new("one");
    let mut request = CreateRoom::new(server.user("a"));
    request.version = version.clone();
    MemoryRooms::default().create(&server, &request).1
}

/// A transaction with a room's first events, and with one of each ephemeral event.
pub fn transaction(version: &RoomVersionId) -> Value {
    let events: Vec<_> = events(version).iter().map(|event| event.pdu().to_raw()).collect();
    json!({"origin": "one", "origin_server_ts": 1, "pdus": events, "edus": ephemeral()})
}

fn ephemeral() -> Value {
    let user = "@a:one";
    json!([
        {"edu_type": "m.typing", "content": {"room_id": "!r:one", "user_id": user, "typing": true}},
        {"edu_type": "m.presence", "content": {"push": [{
            "user_id": user, "presence": "online", "last_active_ago": 5, "currently_active": true, "status_msg": "x",
        }]}},
        {"edu_type": "m.receipt", "content": {"!r:one": {"m.read": {user: {
            "data": {"ts": 1, "thread_id": "main"}, "event_ids": ["$e:one"],
        }}}}},
        {"edu_type": "m.direct_to_device", "content": {
            "sender": user, "type": "m.room.encrypted", "message_id": "1", "messages": {user: {"DEVICE": {"body": "x"}, "*": {}}},
        }},
        {"edu_type": "m.device_list_update", "content": {
            "user_id": user, "device_id": "DEVICE", "device_display_name": "x", "stream_id": 2, "prev_id": [1], "deleted": false,
            "keys": device_keys(),
        }},
        {"edu_type": "m.signing_key_update", "content": {
            "user_id": user, "master_key": cross_signing_key("master"), "self_signing_key": cross_signing_key("self_signing"),
        }},
        {"edu_type": "org.example.other", "content": {"x": [1, null, "y"]}},
    ])
}

/// The keys of one device, as its server tells them.
pub fn device_keys() -> Value {
    json!({
        "user_id": "@a:one", "device_id": "DEVICE", "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {"curve25519:DEVICE": "AAAA", "ed25519:DEVICE": "AAAA"},
        "signatures": {"@a:one": {"ed25519:DEVICE": "AAAA"}}, "unsigned": {"device_display_name": "x"},
    })
}

/// One of a user's keys that sign others.
pub fn cross_signing_key(usage: &str) -> Value {
    json!({
        "user_id": "@a:one", "usage": [usage], "keys": {"ed25519:AAAA": "AAAA"},
        "signatures": {"@a:one": {"ed25519:DEVICE": "AAAA"}},
    })
}
