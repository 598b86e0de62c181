//! Keys and certificates for this node's records in the DHT, made ahead for a month, so that publishing needs no identity
//! key. Kept beside the other keys; knows no network and makes no record.

use kith_identity::{
    Certificate, Day, IdentityKey, IdentityPublicKey, KeyDocument, RecordError, RecordKey, RecordKind, RecordSigner,
    RecordSlot, cbor,
};
use rand::{CryptoRng, RngCore};
use ruma::OwnedServerSigningKeyId;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};
use zeroize::Zeroize;

use crate::{
    clock::World,
    keystore::{Keystore, KeystoreError},
};

/// The file that keeps them.
const RECORDS: &str = "records";

/// Days for which there are certificates, today included, after they were made.
const AHEAD: u32 = 31;

/// Days that must be left; with fewer, more are made.
const LEAST: u32 = 15;

/// Bytes of them all, encoded.
const MAX_BYTES: usize = 40 * 1024;

/// The keys of some days.
pub(crate) struct RecordKeys {
    identity: IdentityPublicKey,
    node: OwnedServerSigningKeyId,
    kept: Kept,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// The version of the key document up to which it may be published.
    version: u64,
    days: Vec<DayKeys>,
}

/// One day's keys, and what certifies them.
#[derive(Serialize, Deserialize)]
struct DayKeys {
    day: u32,
    document: Certified,
    address: Certified,
}

#[derive(Serialize, Deserialize)]
struct Certified {
    key: ByteArray<32>,
    certificate: ByteBuf,
}

impl Drop for Certified {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Certified {
    fn new(
        rng: &mut (impl RngCore + CryptoRng),
        certify: impl Fn(&kith_identity::PublicKey) -> Result<Certificate, RecordError>,
    ) -> Result<Self, RecordError> {
        let key = RecordKey::generate(rng);
        let certificate = certify(&key.public())?.encode()?;
        Ok(Self {
            key: ByteArray::new(*key.to_bytes()),
            certificate: ByteBuf::from(certificate),
        })
    }
}

impl RecordKeys {
    /// What signs this node's record of a kind on a day; none for other days than those made.
    pub(crate) fn signer(&self, kind: &RecordKind, day: Day) -> Result<Option<RecordSigner>, RecordError> {
        let Some(keys) = self.kept.days.iter().find(|keys| keys.day == day.number()) else {
            return Ok(None);
        };
        let certified = match kind {
            RecordKind::Keys => &keys.document,
            RecordKind::Address(id) if *id == self.node => &keys.address,
            RecordKind::Address(_) => return Ok(None),
        };
        let slot = RecordSlot::new(self.identity, kind.clone(), day);
        let certificate = Certificate::decode(&certified.certificate)?;
        RecordSigner::new(slot, certificate, RecordKey::from_bytes(&certified.key)).map(Some)
    }
}

impl Keystore {
    /// The keys for this node's records from today on. More are made when few days are left, and all anew for a new key
    /// document: what certifies them names its version.
    pub(crate) fn record_keys(
        &self,
        identity: &IdentityKey,
        document: &KeyDocument,
        node: &OwnedServerSigningKeyId,
        world: &World,
    ) -> Result<RecordKeys, KeystoreError> {
        let today = Day::of(world.now());
        let kept = match self.read_secret_bytes(RECORDS)? {
            Some(bytes) => cbor::from_slice(&bytes, MAX_BYTES).map_err(|_| self.damaged(RECORDS))?,
            None => Kept::default(),
        };
        let has = |number: u32| kept.days.iter().any(|keys| keys.day == number);
        let enough = (0..LEAST).all(|ahead| has(today.number().saturating_add(ahead)));
        if enough && kept.version == document.version() {
            return Ok(RecordKeys {
                identity: identity.public(),
                node: node.clone(),
                kept,
            });
        }
        let kept = issue(identity, document, node, today, &mut world.rng())?;
        let bytes = zeroize::Zeroizing::new(cbor::to_vec(&kept)?);
        self.write_secret(RECORDS, &bytes)?;
        Ok(RecordKeys {
            identity: identity.public(),
            node: node.clone(),
            kept,
        })
    }
}

fn issue(
    identity: &IdentityKey,
    document: &KeyDocument,
    node: &OwnedServerSigningKeyId,
    today: Day,
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Kept, RecordError> {
    let days = (0..AHEAD).map(|ahead| Day::from_number(today.number().saturating_add(ahead)));
    let days = days.map(|day| {
        Ok(DayKeys {
            day: day.number(),
            document: Certified::new(rng, |key| Certificate::for_document(identity, document, day, key))?,
            address: Certified::new(rng, |key| Certificate::for_node(identity, node, day, key))?,
        })
    });
    Ok(Kept {
        version: document.version(),
        days: days.collect::<Result<_, RecordError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering::SeqCst};

    use kith_identity::{AddressRecord, Record, SealedRecord, Whereabouts};
    use rand::rngs::OsRng;
    use ruma::{MilliSecondsSinceUnixEpoch, UInt};

    use super::*;
    use crate::clock::{Clock, SystemEntropy};

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    #[derive(Clone)]
    struct SetClock(Arc<AtomicU64>);

    impl Clock for SetClock {
        fn now(&self) -> MilliSecondsSinceUnixEpoch {
            MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.0.load(SeqCst)))
        }
    }

    #[test]
    fn records_are_signed_with_keys_made_ahead() {
        let data = tempfile::tempdir().unwrap();
        let clock = SetClock(Arc::new(AtomicU64::new(1_790_000_000_000)));
        let world = World::new(clock.clone(), SystemEntropy);
        let keystore = Keystore::new(data.path());
        let mut keys = keystore.open(&world).unwrap();
        let path = data.path().join("keys/records");
        let node = keys.node.key_id().clone();
        let publish = |document: &KeyDocument, identity: &IdentityKey| {
            let record_keys = keystore.record_keys(identity, document, &node, &world).unwrap();
            let address = AddressRecord::sign(
                Whereabouts {
                    peer_id: vec![1],
                    ..Whereabouts::default()
                },
                document,
                &keys.node,
                world.now(),
            );
            let day = Day::of(world.now());
            for record in [
                Record::keys(document.clone(), world.now()),
                Record::Address(address.unwrap()),
            ] {
                let signer = record_keys.signer(&record.kind(), day).unwrap().unwrap();
                let sealed = SealedRecord::seal(&record, &signer, &mut OsRng).unwrap();
                sealed.check(&sealed.dht_key(), world.now()).unwrap();
                assert_eq!(sealed.open(signer.slot()).unwrap(), record);
            }
            fs::read(&path).unwrap()
        };
        let first = publish(&keys.document, &keys.identity);
        clock.0.fetch_add(16 * DAY_MS, SeqCst);
        assert_eq!(
            publish(&keys.document, &keys.identity),
            first,
            "16 of 31 days later 15 are left"
        );
        clock.0.fetch_add(DAY_MS, SeqCst);
        let second = publish(&keys.document, &keys.identity);
        assert_ne!(second, first);
        clock.0.fetch_sub(3 * DAY_MS, SeqCst);
        assert_ne!(
            publish(&keys.document, &keys.identity),
            second,
            "a clock that was set back needs others"
        );
        let before = fs::read(&path).unwrap();
        keys.document = keystore.renew(&keys.identity, &keys.document, world.now()).unwrap();
        assert_ne!(
            publish(&keys.document, &keys.identity),
            before,
            "the new document's version is certified"
        );
    }
}
