//! Where a record stands: whose it is, of which kind and for which day. Everything that must be known to find and read
//! a record follows from these three, and nothing of it tells the three to anyone who does not know them.

use std::fmt;

use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerSigningKeyId, UInt};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{IdentityKey, IdentityPublicKey, PublicKey, blinding, blinding::BlindedSecret};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A UTC day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

impl Day {
    /// The day that a moment falls into.
    pub fn of(at: MilliSecondsSinceUnixEpoch) -> Self {
        Self(u32::try_from(u64::from(at.0) / DAY_MS).unwrap_or(u32::MAX))
    }

    /// Takes a count of days since 1970-01-01.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Days since 1970-01-01.
    pub fn number(self) -> u32 {
        self.0
    }

    /// When it begins.
    pub fn begins(self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(self.0) * DAY_MS))
    }

    /// The day after.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The days whose records are good at `now`, the likeliest first: today, tomorrow and yesterday, because clocks may
    /// be a day apart (`protocol.md` section 2).
    pub fn around(now: MilliSecondsSinceUnixEpoch) -> [Self; 3] {
        let today = Self::of(now);
        [today, today.next(), Self(today.0.saturating_sub(1))]
    }
}

/// What a record says, and of which node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The server's key document.
    Keys,
    /// The addresses of the node with this key id.
    Address(OwnedServerSigningKeyId),
}

impl RecordKind {
    /// `keys`, or the node's key id.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Keys => "keys",
            Self::Address(id) => id.as_str(),
        }
    }
}

/// The key under which the DHT keeps a record: the SHA-256 of the key that is blinded for its day and kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DhtKey([u8; 32]);

impl DhtKey {
    /// Takes the 32 bytes of a key that came over the wire.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Anyone who holds the record can compute this, so a storer sees that a record belongs under its key.
    pub(super) fn of(blinded_key: &PublicKey) -> Self {
        let hash = Sha256::new()
            .chain_update("kith record key 1\0")
            .chain_update(blinded_key.as_bytes());
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for DhtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DhtKey({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// One server's record of one kind for one day.
///
/// The kind is part of the blinding. Beside the blinded key, for all to see, a node's key id would name the node on
/// every day; and hashed together with it alone, its 40 bits would be found by trying them all. So also the records of
/// one server on one day have nothing in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSlot {
    identity: IdentityPublicKey,
    kind: RecordKind,
    day: Day,
    blinded_key: PublicKey,
}

impl RecordSlot {
    /// The slot of a server's record.
    pub fn new(identity: IdentityPublicKey, kind: RecordKind, day: Day) -> Self {
        let factor = derive("kith key blinding 1", &identity, &kind, day);
        Self {
            blinded_key: blinding::blind(&identity, &factor),
            identity,
            kind,
            day,
        }
    }

    /// Whose record.
    pub fn identity(&self) -> &IdentityPublicKey {
        &self.identity
    }

    /// Which record.
    pub fn kind(&self) -> &RecordKind {
        &self.kind
    }

    /// For which day.
    pub fn day(&self) -> Day {
        self.day
    }

    /// Where the DHT keeps it.
    pub fn dht_key(&self) -> DhtKey {
        DhtKey::of(&self.blinded_key)
    }

    /// The identity key, blinded for this slot.
    pub fn blinded_key(&self) -> &PublicKey {
        &self.blinded_key
    }

    /// The secret half of the blinded key, for the holder of the identity key alone.
    pub(super) fn blinded_secret(identity: &IdentityKey, kind: &RecordKind, day: Day) -> BlindedSecret {
        let factor = derive("kith key blinding 1", &identity.public(), kind, day);
        BlindedSecret::new(identity, &factor)
    }

    /// The key that the record's value is encrypted with.
    pub(super) fn value_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(derive("kith record value 1", &self.identity, &self.kind, self.day))
    }

    /// What is added to sequence numbers, so that storers can compare them on one day and learn nothing from them about
    /// another day. 63 bits: true numbers have at most 53, so the sum stays below 2^64 and tells nothing of them.
    pub(super) fn seq_mask(&self) -> u64 {
        let bytes = derive("kith record sequence 1", &self.identity, &self.kind, self.day);
        bytes[..8].iter().fold(0, |mask, byte| (mask << 8) | u64::from(*byte)) >> 1
    }
}

/// 32 bytes for one purpose that follow from a slot. The purposes hold no zero byte, and all that follows them has a
/// fixed length but the last part: no two inputs are the same bytes.
fn derive(purpose: &str, identity: &IdentityPublicKey, kind: &RecordKind, day: Day) -> [u8; 32] {
    let hash = Sha256::new()
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(identity.as_bytes())
        .chain_update(day.0.to_be_bytes())
        .chain_update(kind.as_str());
    hash.finalize().into()
}
