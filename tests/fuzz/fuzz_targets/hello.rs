//! Hellos: the first bytes that a stranger sends. Only one encoding of each may be accepted.
#![no_main]

use kith_identity::Hello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode().expect("a hello that decoded fits"), bytes);
    }
});
