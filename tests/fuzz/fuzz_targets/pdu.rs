//! Events of every room version, up to their signatures.
#![no_main]

use kith_engine::{check_pdu, required_keys};
use libfuzzer_sys::fuzz_target;
use ruma::RoomVersionId;

fuzz_target!(|json: &str| {
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let _ = required_keys(json, &version);
        // Nobody's key is known, so nothing may pass.
        assert!(check_pdu(json, &version, |_, _, _| None).is_err());
    }
});
