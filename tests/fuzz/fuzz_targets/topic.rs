//! Messages of topics: what strangers pass on, what members seal in them, and what members claim to be another's word.
#![no_main]

use kith_fuzz::seeds::{self, now};
use kith_identity::{NodeKey, TopicSecret, Vouched};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::value::to_raw_value;

fn topic() -> TopicSecret {
    TopicSecret::from_bytes(&[7; 32])
}

fn seeds() -> Vec<Vec<u8>> {
    let (identity, node, _) = seeds::keys();
    let name = topic().public().name();
    let content = to_raw_value("x").expect("JSON");
    let origin = identity.public().server_name();
    let vouched = Vouched::sign(&node, &name, origin, now(), content).expect("it is small");
    let vouched = serde_json::to_vec(&vouched).expect("JSON");
    // Of another topic: what is of this one nobody may come upon.
    let sealed = TopicSecret::from_bytes(&[8; 32]).seal(&vouched, &mut StdRng::seed_from_u64(0));
    vec![
        TopicSecret::pack_to_seal(&vouched).expect("it is small"),
        sealed.expect("it is small"),
        vouched,
    ]
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    // What nobody signed is not opened.
    let topic = topic();
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
