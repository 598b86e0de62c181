//! DHT records, which anyone may put under any key, and the addresses in them, which anyone with a name of their own may
//! seal. Only one encoding of each may be accepted.
#![no_main]

use std::sync::LazyLock;

use kith_fuzz::seeds::{self, now};
use kith_identity::{
    AddressRecord, Certificate, Day, KeyDocument, Mailbox, Record, RecordKey, RecordKind, RecordSigner, RecordSlot,
    SealedRecord, Whereabouts,
};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

/// Signing it takes longer than a whole case.
static DOCUMENT: LazyLock<KeyDocument> = LazyLock::new(|| seeds::keys().2);

fn seeds() -> Vec<Vec<u8>> {
    let (identity, node, document) = seeds::keys();
    let day = Day::of(now());
    let key = RecordKey::from_bytes(&[4; 32]);
    let certificate = Certificate::for_document(&identity, &document, day, &key.public()).expect("a certificate");
    let whereabouts = Whereabouts {
        peer_id: vec![0, 36, 8, 1],
        addrs: vec![vec![4, 127, 0, 0, 1], vec![41; 17]],
        relays: vec![vec![4, 127, 0, 0, 1, 6]],
        mailboxes: vec![Mailbox {
            relay: vec![4, 127, 0, 0, 1, 6],
            id: [5; 32],
            hpke_key: [6; 32],
        }],
    };
    let addresses = AddressRecord::sign(whereabouts, &document, &node, now()).expect("addresses");
    let slot = RecordSlot::new(identity.public(), RecordKind::Keys, day);
    let signer = RecordSigner::new(slot, certificate.clone(), key).expect("they belong together");
    let record = Record::keys(document, now());
    let sealed = SealedRecord::seal(&record, &signer, &mut StdRng::seed_from_u64(0)).expect("a record");
    vec![
        certificate.encode().expect("it fits"),
        addresses.encode().expect("they fit"),
        sealed.encode().expect("it fits"),
    ]
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    if let Ok(record) = SealedRecord::decode(bytes) {
        assert_eq!(record.encode().expect("a record that decoded fits"), bytes);
        let _ = record.check(&record.dht_key(), now());
    }
    if let Ok(addresses) = AddressRecord::decode(bytes) {
        assert_eq!(addresses.encode().expect("addresses that decoded fit"), bytes);
        let _ = addresses.verify(&DOCUMENT);
    }
    if let Ok(certificate) = Certificate::decode(bytes) {
        assert_eq!(certificate.encode().expect("a certificate that decoded fits"), bytes);
    }
});
