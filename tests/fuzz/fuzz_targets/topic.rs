//! Messages of topics: what strangers pass on, what members seal in them, and what members claim to be another's word.
#![no_main]

use kith_identity::{NodeKey, TopicSecret, Vouched};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What nobody signed is not opened.
    let topic = TopicSecret::from_bytes(&[7; 32]);
    assert!(!topic.public().verify(bytes) && topic.open(bytes).is_err());
    if let Ok(content) = TopicSecret::unpack_sealed(bytes) {
        assert!(content.len() <= TopicSecret::MAX_CONTENT);
    }
    if let Ok(vouched) = serde_json::from_slice::<Vouched>(bytes) {
        let key = NodeKey::from_bytes(&[3; 64]).public().signing;
        assert!(vouched.verify(&key, &topic.public().name()).is_err());
        let told = serde_json::to_vec(&vouched).expect("what was parsed serialises");
        let again: Vouched = serde_json::from_slice(&told).expect("what was told parses");
        assert_eq!(serde_json::to_vec(&again).expect("and serialises"), told);
    }
});
