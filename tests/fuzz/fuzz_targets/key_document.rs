//! Key documents, which vouch for themselves: as they come, and signed by somebody who may put anything into theirs. Whatever
//! parses carries a good signature, and parses again.
#![no_main]

use kith_fuzz::seeds::{self, now};
use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use libfuzzer_sys::fuzz_target;
use ruma::CanonicalJsonObject;

fn seeds() -> Vec<String> {
    let (identity, node, first) = seeds::keys();
    let until = first.valid_until();
    let other = NodeKey::from_bytes(&[3; 64]).public();
    let second = first.add_node(&identity, &other, now(), until).expect("a document");
    let third = second
        .revoke_node(&identity, node.key_id(), now(), until)
        .expect("a document");
    [first, second, third].iter().map(KeyDocument::to_json).collect()
}

fn check(document: &KeyDocument) {
    let again = KeyDocument::parse(document.to_json().as_bytes()).expect("our own words parse");
    assert_eq!(again.version(), document.version());
    for id in again.key_ids() {
        assert_eq!(again.status(id), document.status(id));
    }
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    if let Ok(document) = KeyDocument::parse(bytes) {
        check(&document);
    }
    if let Ok(object) = serde_json::from_slice::<CanonicalJsonObject>(bytes) {
        let anybody = IdentityKey::from_bytes(&[9; 32]);
        if let Ok(document) = KeyDocument::sign_anything(&anybody, object) {
            check(&document);
        }
    }
});
