//! What fuzz targets share. They judge; nothing here does.

mod graph;
pub mod seeds;

pub use graph::Graph;

use kith_engine::{rules, testing::TestServer};
use ruma::{CanonicalJsonObject, RoomVersionId, signatures::hash_and_sign_event};

/// The room versions that targets try.
pub const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// An event's JSON as this server would send it, if it can be signed at all.
pub fn signed(server: &TestServer, version: &RoomVersionId, mut object: CanonicalJsonObject) -> Option<String> {
    let rules = rules(version).expect("a version that is known");
    hash_and_sign_event(server.name.as_str(), server, &mut object, &rules.redaction).ok()?;
    serde_json::to_string(&object).ok()
}
