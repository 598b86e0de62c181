//! Well signed events of members and strangers, with whatever past they claim: judged without a panic, and what the room
//! holds afterwards is sound.
#![no_main]

use kith_fuzz::Graph;
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    // A fuzzer that runs out of bytes has said enough.
    let _ = Graph::new(&mut u).map(|mut graph| graph.grow(&mut u));
});
