//! Events of every room version: as they come, and signed by their sender's server, which may sign anything.
#![no_main]

use kith_engine::{
    Pdu, check_pdu,
    limits::MAX_EVENT_BYTES,
    required_keys, rules,
    testing::{TestServer, any_key},
};
use kith_fuzz::seeds::{self, VERSIONS};
use libfuzzer_sys::fuzz_target;
use ruma::{CanonicalJsonObject, RoomVersionId, UserId, signatures::hash_and_sign_event};

fn seeds() -> Vec<String> {
    let events = VERSIONS.iter().flat_map(seeds::events);
    events.map(|event| event.pdu().json().to_owned()).collect()
}

/// The event as its sender's server would send it.
fn signed(json: &str, version: &RoomVersionId) -> Option<String> {
    let mut object: CanonicalJsonObject = serde_json::from_str(json).ok()?;
    let sender = UserId::parse(object.get("sender")?.as_str()?).ok()?;
    let server = TestServer::new(sender.server_name().as_str());
    object.remove("signatures");
    let redaction = rules(version).expect("a version that is known").redaction;
    hash_and_sign_event(server.name.as_str(), &server, &mut object, &redaction).ok()?;
    serde_json::to_string(&object).ok()
}

fuzz_target!(init: seeds::plant(seeds()), |json: &str| {
    for version in &VERSIONS {
        let _ = required_keys(json, version);
        // Nobody's key is known, so nothing may pass.
        assert!(check_pdu(json, version, |_, _, _| None).is_err());
        let Some(signed) = signed(json, version) else { continue };
        if let Ok(event) = check_pdu(&signed, version, any_key) {
            let pdu = event.pdu();
            assert!(pdu.json().len() <= MAX_EVENT_BYTES);
            let stored = Pdu::from_stored(pdu.event_id().to_owned(), pdu.room_id().to_owned(), pdu.json());
            assert_eq!(stored.expect("what was checked is read back").json(), pdu.json());
            let redacted = pdu.redacted(&rules(version).expect("a version that is known").redaction);
            assert_eq!(redacted.expect("any event can be redacted").event_id(), pdu.event_id());
        }
    }
});
