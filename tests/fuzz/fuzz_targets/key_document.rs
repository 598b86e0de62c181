//! Key documents, which vouch for themselves: whatever parses carries a good signature, and parses again.
#![no_main]

use kith_identity::KeyDocument;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = KeyDocument::parse(bytes) {
        let again = KeyDocument::parse(document.to_json().as_bytes()).expect("our own words parse");
        assert_eq!(again.version(), document.version());
    }
});
