//! Events of every room version: as they come, and signed by their sender's server, which may sign anything.
#![no_main]

use kith_engine::{
    Pdu, check_pdu,
    limits::MAX_EVENT_BYTES,
    required_keys, rules,
    testing::{TestServer, any_key},
};
use kith_fuzz::{VERSIONS, seeds, signed};
use libfuzzer_sys::fuzz_target;
use ruma::{CanonicalJsonObject, RoomVersionId, UserId};

fn seeds() -> Vec<String> {
    let events = VERSIONS.iter().flat_map(seeds::events);
    events.map(|event| event.pdu().json().to_owned()).collect()
}

fn signed_by_sender(json: &str, version: &RoomVersionId) -> Option<String> {
    let mut object: CanonicalJsonObject = serde_json::from_str(json).ok()?;
    let sender = UserId::parse(object.get("sender")?.as_str()?).ok()?;
    let server = TestServer::new(sender.server_name().as_str());
    object.remove("signatures");
    signed(&server, version, object)
}

fuzz_target!(init: seeds::plant(seeds()), |json: &str| {
    for version in &VERSIONS {
        let _ = required_keys(json, version);
        // Nobody's key is known, so nothing may pass.
        assert!(check_pdu(json, version, |_, _, _| None).is_err());
        let Some(signed) = signed_by_sender(json, version) else { continue };
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
