//! Messages of topics: what strangers pass on, and what members seal in them.
#![no_main]

use kith_identity::TopicSecret;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What nobody signed is not opened.
    let topic = TopicSecret::from_bytes(&[7; 32]);
    assert!(!topic.public().verify(bytes) && topic.open(bytes).is_err());
    if let Ok(content) = TopicSecret::unpack_sealed(bytes) {
        assert!(content.len() <= TopicSecret::MAX_CONTENT);
    }
});
