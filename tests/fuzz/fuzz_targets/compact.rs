//! Short bodies that peers pack: after nothing, and after what was said before, which may be anything too. What is taken for
//! a transaction loses its hashes and finds them again.
#![no_main]

use kith_fuzz::{VERSIONS, seeds};
use kith_identity::compact::{memory, pack, unpack};
use libfuzzer_sys::fuzz_target;

const MAX: usize = 16 << 10;

/// Two bytes of length before each part.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let parts = parts.iter().map(|part| {
        let length = u16::try_from(part.len()).expect("parts are short");
        [&length.to_le_bytes()[..], part].concat()
    });
    parts.collect::<Vec<_>>().concat()
}

/// What [`joined`] made; the last part ends with the bytes.
fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (part, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        parts.push(part);
        bytes = rest;
    }
    parts
}

fn seeds() -> Vec<Vec<u8>> {
    let said: Vec<String> = seeds::texts(VERSIONS.iter().map(seeds::transaction)).collect();
    let said: Vec<&[u8]> = said.iter().map(String::as_bytes).collect();
    let before = [memory(said[1])];
    let after_nothing = pack(said[0], &before[..0]).expect("it becomes shorter");
    let after_another = pack(said[0], &before).expect("it becomes shorter");
    vec![
        joined(&said),
        joined(&[&after_nothing]),
        joined(&[&after_another, said[1]]),
    ]
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    let parts = parts(bytes);
    let Some((bytes, before)) = parts.split_first() else {
        return;
    };
    let before: Vec<_> = before.iter().map(|said| memory(said)).collect();
    if let Ok(plain) = unpack(bytes, &before, MAX) {
        assert!(plain.len() <= MAX);
    }
    if let Some(packed) = pack(bytes, &before) {
        assert_eq!(unpack(&packed, &before, bytes.len()).expect("what was packed"), *bytes);
    }
});
