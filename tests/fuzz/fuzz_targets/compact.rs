//! Short bodies that peers pack: after nothing, and after what was said before, which may be anything too. What is taken for
//! a transaction loses its hashes and finds them again.
#![no_main]

use kith_identity::compact::{memory, pack, unpack};
use libfuzzer_sys::fuzz_target;

const MAX: usize = 16 << 10;

fuzz_target!(|bytes: (Vec<u8>, Vec<Vec<u8>>)| {
    let (bytes, before) = bytes;
    let before: Vec<_> = before.iter().map(|said| memory(said)).collect();
    if let Ok(plain) = unpack(&bytes, &before, MAX) {
        assert!(plain.len() <= MAX);
    }
    if let Some(packed) = pack(&bytes, &before) {
        assert_eq!(unpack(&packed, &before, bytes.len()).expect("what was packed"), bytes);
    }
});
