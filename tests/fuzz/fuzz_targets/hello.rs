//! Hellos: the first bytes that a stranger sends. Only one encoding of each may be accepted.
#![no_main]

use kith_fuzz::seeds::{self, now};
use kith_identity::Hello;
use libfuzzer_sys::fuzz_target;

fn seed() -> Vec<u8> {
    let (_, node, document) = seeds::keys();
    let hello = Hello::sign(&document, &node, b"own", b"other", now()).expect("a hello");
    hello.encode().expect("it fits")
}

fuzz_target!(init: seeds::plant([seed()]), |bytes: &[u8]| {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode().expect("a hello that decoded fits"), bytes);
        assert!(hello.verify_signature(b"one", b"another", now()).is_err());
    }
});
