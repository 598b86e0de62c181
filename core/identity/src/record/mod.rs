//! DHT records (`protocol.md` section 2), sealed so that whoever stores one can check and compare it, and can neither
//! read it nor tell whose it is. This module stores and looks up nothing.
//!
//! For each UTC day and [`RecordKind`] the identity key is blinded. A [`Certificate`] by the blinded key lets a
//! [`RecordKey`] sign [`SealedRecord`]s; the value is encrypted under a key that follows from the server name. So who
//! knows the name knows where to look ([`RecordSlot`]) and can read, and everyone else sees keys and ciphertext that are
//! new every day.

mod address;
mod certificate;
mod slot;

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use rand::{CryptoRng, RngCore};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf, Bytes};

pub use address::{AddressRecord, Mailbox, Whereabouts};
pub use certificate::{Certificate, RecordKey, RecordSigner};
pub use slot::{Day, DhtKey, RecordKind, RecordSlot};

use crate::{
    DocumentError, Hello, KeyDocument, KeyError,
    cbor::{self, CborError},
};

/// What the text signed by a record key begins with.
const CONTEXT: &str = "/kith/record/1";

/// Bytes that a sealed record may have, nearly: padding leaves two bits of its content's size to see.
const SIZES: [usize; 3] = [1024, 2048, SealedRecord::MAX_BYTES];

/// Bytes of a sealed record besides its value, at the most.
const ENVELOPE: usize = 322;

/// Bytes of XChaCha20's nonce, which is random: several nodes may seal under one day's key.
const NONCE: usize = 24;

/// Bytes of Poly1305's tag.
const TAG: usize = 16;

/// Bytes that tell the content's length within the padding.
const LENGTH: usize = 2;

// Whatever key document a server can have, the DHT can carry.
const _: () = assert!(KeyDocument::MAX_BYTES <= SealedRecord::MAX_CONTENT);

/// Why a record is refused, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It does not decode, or exceeds its limit.
    #[error("malformed record")]
    Encoding(#[from] CborError),
    /// A key in it is no usable key.
    #[error("the record holds an unusable key")]
    Key(#[source] KeyError),
    /// Its value has none of the sizes that values are padded to.
    #[error("the record's value is not padded to a known size")]
    Size,
    /// It does not belong under this DHT key, to this server, kind or day.
    #[error("the record belongs elsewhere")]
    OtherSlot,
    /// It is for a day that is further away than clocks may be apart.
    #[error("the record is for another day")]
    OtherDay,
    /// It is past its expiry.
    #[error("the record has expired")]
    Expired,
    /// It claims to hold for longer than [`SealedRecord::MAX_LIFETIME_MS`] and the clock tolerance.
    #[error("the record's expiry is too far in the future")]
    TooFarAhead,
    /// Its sequence number is above what its certificate allows.
    #[error("the record's sequence number is not certified")]
    Seq,
    /// The blinded key did not sign the certificate, or the certificate is for another slot or record key.
    #[error("the record key is not certified for this record")]
    Certificate,
    /// The record key did not sign it.
    #[error("the record is not signed by its record key")]
    Signature,
    /// The content does not fit into [`SealedRecord::MAX_CONTENT`] bytes.
    #[error("{0} bytes are too many for a record; leave out addresses or relays")]
    TooLarge(usize),
    /// The value cannot be decrypted, or is not what its envelope says.
    #[error("the record's value is not what its envelope says")]
    Value,
    /// The key document in it is not one.
    #[error("the record holds no good key document")]
    Document(#[from] DocumentError),
    /// An address or PeerId is empty or too long, or there are too many.
    #[error("the record's addresses are not valid")]
    Addresses,
    /// The node key did not sign these addresses for this server.
    #[error("the addresses are not signed by their node")]
    NodeSignature,
    /// The key document at hand is older than the node says; the newer one is needed to judge.
    #[error("key document version {needed} is needed, {held} is held")]
    DocumentNeeded {
        /// The version that the record names.
        needed: u64,
        /// The version at hand.
        held: u64,
    },
    /// The key document does not list the node key, or lists it as revoked.
    #[error("the node key does not belong to this server, or was revoked")]
    UnknownNode,
}

/// For how long a record holds, if it is not published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLifetime {
    /// Two hours.
    Short,
    /// Six hours: for nodes to which each publication is dear. One whose addresses change publishes at once all the same.
    Long,
}

impl RecordLifetime {
    /// In milliseconds.
    pub const fn as_millis(self) -> u64 {
        match self {
            Self::Short => SealedRecord::LIFETIME_MS,
            Self::Long => SealedRecord::MAX_LIFETIME_MS,
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The server's key document; its version is the sequence number.
    Keys {
        /// The document.
        document: KeyDocument,
        /// When this publication of it ends.
        expires: MilliSecondsSinceUnixEpoch,
    },
    /// Where one of its nodes is.
    Address(AddressRecord),
}

impl Record {
    /// A key document, to be found for the next two hours.
    pub fn keys(document: KeyDocument, now: MilliSecondsSinceUnixEpoch) -> Self {
        Self::keys_for(RecordLifetime::Short, document, now)
    }

    /// A key document, to be found from now on.
    pub fn keys_for(lifetime: RecordLifetime, document: KeyDocument, now: MilliSecondsSinceUnixEpoch) -> Self {
        Self::Keys {
            document,
            expires: address::expiry(now, lifetime),
        }
    }

    /// Which of a server's records it is.
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::Keys { .. } => RecordKind::Keys,
            Self::Address(address) => RecordKind::Address(address.key_id()),
        }
    }

    /// Of two records for one slot the one with the higher number counts.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Keys { document, .. } => document.version(),
            Self::Address(address) => address.seq,
        }
    }

    /// When it ends.
    pub fn expires(&self) -> MilliSecondsSinceUnixEpoch {
        match self {
            Self::Keys { expires, .. } => *expires,
            Self::Address(address) => address.expires,
        }
    }

    /// Canonical JSON of a key document, CBOR of an address record.
    fn content(&self) -> Result<Vec<u8>, RecordError> {
        match self {
            Self::Keys { document, .. } => Ok(document.to_json().into_bytes()),
            Self::Address(address) => address.encode(),
        }
    }

    /// Reads the content of a slot's record, and checks all in it that vouches for itself.
    fn read(content: &[u8], slot: &RecordSlot, expires: MilliSecondsSinceUnixEpoch) -> Result<Self, RecordError> {
        let record = match slot.kind() {
            RecordKind::Keys => Self::Keys {
                document: KeyDocument::parse(content)?,
                expires,
            },
            RecordKind::Address(_) => Self::Address(AddressRecord::decode(content)?),
        };
        record.check_slot(slot)?;
        Ok(record)
    }

    /// That the record is this server's and of this kind, by its own signatures.
    fn check_slot(&self, slot: &RecordSlot) -> Result<(), RecordError> {
        if self.kind() != *slot.kind() {
            return Err(RecordError::OtherSlot);
        }
        match self {
            Self::Keys { document, .. } if document.identity() == *slot.identity() => Ok(()),
            Self::Keys { .. } => Err(RecordError::OtherSlot),
            Self::Address(address) => address.verify_signature(slot.identity()),
        }
    }
}

/// A record as the DHT carries it. Seen by its storer: a key that is new every day, a certificate by it, a masked
/// sequence number and whether it is bounded (so, whether it is a key document), the expiry to the minute, and about 1,
/// 2 or 4 KiB of ciphertext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecord {
    certificate: Certificate,
    /// With the slot's mask added.
    seq: u64,
    expires: MilliSecondsSinceUnixEpoch,
    /// Nonce, ciphertext and tag.
    value: Vec<u8>,
    signature: [u8; 64],
}

/// Which of two records of one slot counts: the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordRank {
    seq: u64,
    expires: MilliSecondsSinceUnixEpoch,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    certificate: certificate::Wire,
    seq: u64,
    expires: u64,
    value: ByteBuf,
    signature: ByteArray<64>,
}

impl SealedRecord {
    /// Bytes of an encoded record at the most.
    pub const MAX_BYTES: usize = 4096;

    /// Bytes of a record's content at the most.
    pub const MAX_CONTENT: usize = Self::MAX_BYTES - ENVELOPE - NONCE - TAG - LENGTH;

    /// For how long a record holds, as most do; publish again well before.
    pub const LIFETIME_MS: u64 = 2 * 60 * 60 * 1000;

    /// For how long a record may hold.
    pub const MAX_LIFETIME_MS: u64 = 6 * 60 * 60 * 1000;

    /// How far a publisher's clock may be from a storer's: one day, as in a hello.
    pub const CLOCK_TOLERANCE_MS: u64 = Hello::CLOCK_TOLERANCE_MS;

    /// Pads, encrypts and signs a record for its slot.
    pub fn seal(
        record: &Record,
        signer: &RecordSigner,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Self, RecordError> {
        record.check_slot(&signer.slot)?;
        let masked = signer.slot.seq_mask().checked_add(record.seq());
        let seq = masked
            .filter(|seq| *seq <= signer.certificate.max_seq)
            .ok_or(RecordError::Seq)?;
        Self::seal_padded(&pad(&record.content()?)?, seq, record.expires(), signer, rng)
    }

    fn seal_padded(
        padded: &[u8],
        seq: u64,
        expires: MilliSecondsSinceUnixEpoch,
        signer: &RecordSigner,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Self, RecordError> {
        let mut value = vec![0; NONCE];
        rng.fill_bytes(&mut value);
        let plain = Payload {
            msg: padded,
            aad: &header(&signer.slot, seq, expires)?,
        };
        let ciphertext = XChaCha20Poly1305::new(signer.slot.value_key().as_ref().into())
            .encrypt(XNonce::from_slice(&value), plain)
            .map_err(|_| RecordError::Value)?;
        value.extend(ciphertext);
        let mut sealed = Self {
            certificate: signer.certificate.clone(),
            seq,
            expires,
            value,
            signature: [0; 64],
        };
        sealed.signature = signer.key.sign(&sealed.signed_bytes()?);
        Ok(sealed)
    }

    /// The bytes that the DHT carries.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Ok(cbor::to_vec(&Wire {
            certificate: self.certificate.to_wire(),
            seq: self.seq,
            expires: self.expires.0.into(),
            value: ByteBuf::from(self.value.clone()),
            signature: ByteArray::new(self.signature),
        })?)
    }

    /// Reads bytes from the wire, within all limits; proves nothing yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire: Wire = cbor::from_slice(bytes, Self::MAX_BYTES)?;
        if !SIZES.iter().any(|size| wire.value.len() == size - ENVELOPE) {
            return Err(RecordError::Size);
        }
        Ok(Self {
            certificate: Certificate::from_wire(&wire.certificate)?,
            seq: wire.seq,
            expires: MilliSecondsSinceUnixEpoch(UInt::new(wire.expires).ok_or(RecordError::TooFarAhead)?),
            value: wire.value.into_vec(),
            signature: wire.signature.into_array(),
        })
    }

    /// Checks all that a storer can, and must before it stores, answers or replaces: the DHT key, the day, the expiry,
    /// the sequence number's bound, the certificate and the signature. Finders check the same before they open.
    pub fn check(&self, key: &DhtKey, now: MilliSecondsSinceUnixEpoch) -> Result<(), RecordError> {
        if self.dht_key() != *key {
            return Err(RecordError::OtherSlot);
        }
        if !Day::around(now).contains(&self.certificate.day) {
            return Err(RecordError::OtherDay);
        }
        let (now, expires) = (u64::from(now.0), u64::from(self.expires.0));
        if expires.saturating_add(Self::CLOCK_TOLERANCE_MS) <= now {
            return Err(RecordError::Expired);
        }
        if expires > now.saturating_add(Self::MAX_LIFETIME_MS + Self::CLOCK_TOLERANCE_MS) {
            return Err(RecordError::TooFarAhead);
        }
        if self.seq > self.certificate.max_seq {
            return Err(RecordError::Seq);
        }
        self.certificate.verify()?;
        self.certificate
            .record_key
            .verify(&self.signed_bytes()?, &self.signature)
            .map_err(|_| RecordError::Signature)
    }

    /// How it compares with other records of its slot, once they are checked.
    pub fn rank(&self) -> RecordRank {
        RecordRank {
            seq: self.seq,
            expires: self.expires,
        }
    }

    /// Whether to keep this record instead of `held`, both checked: it is for the same slot, and newer. The same record
    /// once more is not: it must not be kept for longer because somebody repeats it.
    pub fn supersedes(&self, held: &Self) -> bool {
        self.certificate.blinded_key == held.certificate.blinded_key && self.rank() > held.rank()
    }

    /// Until when a storer keeps a record that it got at `received`, in its own time: until the record's expiry, but for two
    /// hours at the least and six at the most, however wrong the publisher's clock is, and never past
    /// [`SealedRecord::refused_from`].
    pub fn kept_until(&self, received: MilliSecondsSinceUnixEpoch) -> MilliSecondsSinceUnixEpoch {
        let after = |lifetime: RecordLifetime| received.0.saturating_add(UInt::new_saturating(lifetime.as_millis()));
        let ends = self
            .expires
            .0
            .clamp(after(RecordLifetime::Short), after(RecordLifetime::Long));
        MilliSecondsSinceUnixEpoch(ends.min(self.refused_from().0))
    }

    /// From when on [`SealedRecord::check`] refuses it for good: it is expired, or its day is over, for every clock that
    /// is taken for right. Until then a storer remembers its [`RecordRank`], so that nobody brings an older one back.
    pub fn refused_from(&self) -> MilliSecondsSinceUnixEpoch {
        let tolerance = UInt::new_saturating(Self::CLOCK_TOLERANCE_MS);
        let expired = self.expires.0.saturating_add(tolerance);
        // Yesterday's records are still good, those of the day before are not.
        let day_over = self.certificate.day.next().next().begins();
        MilliSecondsSinceUnixEpoch(expired.min(day_over.0))
    }

    /// Decrypts and reads the record of a slot, and checks that the content is the server's own: the identity key's
    /// signature on a key document, the node key's on addresses, and the envelope's numbers.
    pub fn open(&self, slot: &RecordSlot) -> Result<Record, RecordError> {
        if !self.certificate.covers(slot) {
            return Err(RecordError::OtherSlot);
        }
        let (nonce, ciphertext) = self.value.split_at_checked(NONCE).ok_or(RecordError::Size)?;
        let sealed = Payload {
            msg: ciphertext,
            aad: &header(slot, self.seq, self.expires)?,
        };
        let padded = XChaCha20Poly1305::new(slot.value_key().as_ref().into())
            .decrypt(XNonce::from_slice(nonce), sealed)
            .map_err(|_| RecordError::Value)?;
        let record = Record::read(unpad(&padded).ok_or(RecordError::Value)?, slot, self.expires)?;
        if slot.seq_mask().checked_add(record.seq()) != Some(self.seq) || record.expires() != self.expires {
            return Err(RecordError::Value);
        }
        Ok(record)
    }

    /// Where the DHT keeps it.
    pub fn dht_key(&self) -> DhtKey {
        DhtKey::of(&self.certificate.blinded_key)
    }

    /// The day that it is for.
    pub fn day(&self) -> Day {
        self.certificate.day
    }

    /// When it ends, by its publisher's clock.
    pub fn expires(&self) -> MilliSecondsSinceUnixEpoch {
        self.expires
    }

    /// The certificate is part of the text: with another one, even for the same record key, it is another record.
    fn signed_bytes(&self) -> Result<Vec<u8>, CborError> {
        cbor::to_vec(&(
            CONTEXT,
            self.certificate.to_wire(),
            self.seq,
            u64::from(self.expires.0),
            Bytes::new(&self.value),
        ))
    }
}

/// What the encryption binds the value to.
fn header(slot: &RecordSlot, seq: u64, expires: MilliSecondsSinceUnixEpoch) -> Result<Vec<u8>, CborError> {
    cbor::to_vec(&(Bytes::new(slot.blinded_key().as_bytes()), seq, u64::from(expires.0)))
}

/// The content's length in two bytes, the content, and zeros up to the next of the [`SIZES`].
fn pad(content: &[u8]) -> Result<Vec<u8>, RecordError> {
    let too_large = || RecordError::TooLarge(content.len());
    let length = u16::try_from(content.len()).map_err(|_| too_large())?;
    let room = SIZES
        .iter()
        .map(|size| size - ENVELOPE - NONCE - TAG)
        .find(|room| LENGTH + content.len() <= *room)
        .ok_or_else(too_large)?;
    let mut padded = Vec::with_capacity(room);
    padded.extend(length.to_be_bytes());
    padded.extend(content);
    padded.resize(room, 0);
    Ok(padded)
}

fn unpad(padded: &[u8]) -> Option<&[u8]> {
    let (length, rest) = padded.split_first_chunk::<LENGTH>()?;
    let (content, zeros) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    zeros.iter().all(|byte| *byte == 0).then_some(content)
}

#[cfg(test)]
mod tests;
