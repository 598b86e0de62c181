//! DHT records, which anyone may put under any key, and the addresses in them, which anyone with a name of their own may
//! seal. Only one encoding of each may be accepted.
#![no_main]

use kith_identity::{AddressRecord, Certificate, SealedRecord};
use libfuzzer_sys::fuzz_target;
use ruma::{MilliSecondsSinceUnixEpoch, UInt};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = SealedRecord::decode(bytes) {
        assert_eq!(record.encode().expect("a record that decoded fits"), bytes);
        let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(1_700_000_000_000));
        let _ = record.check(&record.dht_key(), now);
    }
    if let Ok(addresses) = AddressRecord::decode(bytes) {
        assert_eq!(addresses.encode().expect("addresses that decoded fit"), bytes);
    }
    if let Ok(certificate) = Certificate::decode(bytes) {
        assert_eq!(certificate.encode().expect("a certificate that decoded fits"), bytes);
    }
});
