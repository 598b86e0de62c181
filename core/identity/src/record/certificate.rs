//! Certificates for record keys. They are made ahead, one for each day and kind, where the identity key is; a node that
//! does not hold the identity key publishes with them. Never made from them: the identity key, or another day's.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use rand::{CryptoRng, RngCore};
use ruma::OwnedServerSigningKeyId;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, Bytes};
use zeroize::Zeroizing;

use super::{Day, RecordError, RecordKind, RecordSlot};
use crate::{
    IdentityKey, KeyDocument, PublicKey,
    cbor::{self, CborError},
};

/// What the text signed by a blinded key begins with.
const CONTEXT: &str = "/kith/record/1/certificate";

/// Signs the records of one slot. Made at random for each: knowing one tells nothing of another.
pub struct RecordKey(SigningKey);

impl RecordKey {
    /// Makes a new key.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        Self(SigningKey::generate(rng))
    }

    /// Takes back what [`RecordKey::to_bytes`] gave.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The secret, for a key store.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, which a certificate names.
    pub fn public(&self) -> PublicKey {
        PublicKey::from_point(self.0.verifying_key().to_edwards())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordKey({:?})", self.public())
    }
}

/// A blinded key's word that a record key speaks for it on one day. It goes along with each record, and tells a storer
/// no more than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub(super) blinded_key: PublicKey,
    pub(super) day: Day,
    pub(super) record_key: PublicKey,
    /// Masked, as the record's own sequence number is; or, where nothing is to be bounded, the highest there is.
    pub(super) max_seq: u64,
    signature: [u8; 64],
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wire {
    blinded_key: ByteArray<32>,
    day: u32,
    max_seq: u64,
    record_key: ByteArray<32>,
    signature: ByteArray<64>,
}

impl Certificate {
    /// Bytes of an encoded certificate at the most.
    pub const MAX_BYTES: usize = 256;

    /// Lets `record_key` publish this key document, or an older one, on `day`. A node that is revoked by the next
    /// document can therefore not bring this one back above it.
    pub fn for_document(
        identity: &IdentityKey,
        document: &KeyDocument,
        day: Day,
        record_key: &PublicKey,
    ) -> Result<Self, RecordError> {
        if document.identity() != identity.public() {
            return Err(RecordError::OtherSlot);
        }
        Self::issue(identity, RecordKind::Keys, day, record_key, Some(document.version()))
    }

    /// Lets `record_key` publish the addresses of the node with this key id on `day`.
    pub fn for_node(
        identity: &IdentityKey,
        node: &OwnedServerSigningKeyId,
        day: Day,
        record_key: &PublicKey,
    ) -> Result<Self, RecordError> {
        Self::issue(identity, RecordKind::Address(node.clone()), day, record_key, None)
    }

    fn issue(
        identity: &IdentityKey,
        kind: RecordKind,
        day: Day,
        record_key: &PublicKey,
        max_seq: Option<u64>,
    ) -> Result<Self, RecordError> {
        let blinded = RecordSlot::blinded_secret(identity, &kind, day);
        let slot = RecordSlot::new(identity.public(), kind, day);
        let mut certificate = Self {
            blinded_key: blinded.public(),
            day,
            record_key: *record_key,
            // A bound that is known would take the mask off: numbers of addresses are times, and clocks tell nodes apart.
            max_seq: max_seq.map_or(u64::MAX, |seq| slot.seq_mask().saturating_add(seq)),
            signature: [0; 64],
        };
        certificate.signature = blinded.sign(&certificate.signed_bytes()?);
        Ok(certificate)
    }

    /// The bytes to keep, or to hand to the node that shall publish.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Ok(cbor::to_vec(&self.to_wire())?)
    }

    /// Reads a certificate, and checks the blinded key's signature.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let certificate = Self::from_wire(&cbor::from_slice(bytes, Self::MAX_BYTES)?)?;
        certificate.verify()?;
        Ok(certificate)
    }

    /// The day that it is good for.
    pub fn day(&self) -> Day {
        self.day
    }

    /// Whether it is for this slot.
    pub(super) fn covers(&self, slot: &RecordSlot) -> bool {
        self.blinded_key == *slot.blinded_key() && self.day == slot.day()
    }

    /// The blinded key's signature.
    pub(super) fn verify(&self) -> Result<(), RecordError> {
        self.blinded_key
            .verify(&self.signed_bytes()?, &self.signature)
            .map_err(|_| RecordError::Certificate)
    }

    pub(super) fn to_wire(&self) -> Wire {
        Wire {
            blinded_key: ByteArray::new(*self.blinded_key.as_bytes()),
            day: self.day.number(),
            max_seq: self.max_seq,
            record_key: ByteArray::new(*self.record_key.as_bytes()),
            signature: ByteArray::new(self.signature),
        }
    }

    /// Takes keys that are keys; proves nothing yet.
    pub(super) fn from_wire(wire: &Wire) -> Result<Self, RecordError> {
        Ok(Self {
            blinded_key: PublicKey::from_bytes(&wire.blinded_key).map_err(RecordError::Key)?,
            day: Day::from_number(wire.day),
            record_key: PublicKey::from_bytes(&wire.record_key).map_err(RecordError::Key)?,
            max_seq: wire.max_seq,
            signature: *wire.signature,
        })
    }

    fn signed_bytes(&self) -> Result<Vec<u8>, CborError> {
        cbor::to_vec(&(
            CONTEXT,
            Bytes::new(self.blinded_key.as_bytes()),
            self.day.number(),
            Bytes::new(self.record_key.as_bytes()),
            self.max_seq,
        ))
    }
}

/// All that a node needs to publish in one slot, without the identity key.
#[derive(Debug)]
pub struct RecordSigner {
    pub(super) slot: RecordSlot,
    pub(super) certificate: Certificate,
    pub(super) key: RecordKey,
}

impl RecordSigner {
    /// Puts together what belongs together: the certificate must be the slot's and name the key.
    pub fn new(slot: RecordSlot, certificate: Certificate, key: RecordKey) -> Result<Self, RecordError> {
        if certificate.covers(&slot) && certificate.record_key == key.public() {
            Ok(Self { slot, certificate, key })
        } else {
            Err(RecordError::Certificate)
        }
    }

    /// Where it publishes.
    pub fn slot(&self) -> &RecordSlot {
        &self.slot
    }
}
