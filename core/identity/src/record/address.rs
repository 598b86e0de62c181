//! Address records (`protocol.md` section 2): where a node is reached, in its own node key's words. What a record says
//! is a hint to dial; whoever answers must still present a hello.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerSigningKeyId, UInt};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf, Bytes};

use super::{RecordError, RecordLifetime, SealedRecord};
use crate::{
    IdentityPublicKey, KeyDocument, KeyStatus, NodeKey, PublicKey,
    cbor::{self, CborError},
    key_id,
};

/// What the text signed by the node key begins with, so that no other signature by a node key can pass for it.
const CONTEXT: &str = "/kith/address/1";

/// Expiries are whole minutes: a finer time would tell a node by how wrong its clock is.
const EXPIRY_STEP_MS: u64 = 60 * 1000;

/// An inbox at a relay (`protocol.md` section 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    /// Binary multiaddr of the relay, with its PeerId.
    pub relay: Vec<u8>,
    /// The mailbox's public key, by which the relay knows it.
    pub id: [u8; 32],
    /// The X25519 key that envelopes for it are sealed to.
    pub hpke_key: [u8; 32],
}

/// Where a node is reached. Addresses are opaque bytes here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The node's libp2p PeerId.
    pub peer_id: Vec<u8>,
    /// Binary multiaddrs without PeerId, best first; at most 16, each of at most 128 bytes.
    pub addrs: Vec<Vec<u8>>,
    /// Binary multiaddrs of relays, with their PeerIds; at most 8.
    pub relays: Vec<Vec<u8>>,
    /// Inboxes for when the node sleeps; at most 8.
    pub mailboxes: Vec<Mailbox>,
}

impl Whereabouts {
    /// Bytes of one address or PeerId at the most.
    pub const MAX_BYTES: usize = 128;

    /// Addresses at the most.
    pub const MAX_ADDRS: usize = 16;

    /// Relays, and mailboxes, at the most.
    pub const MAX_RELAYS: usize = 8;
}

/// Where a node is reached, signed by its node key. In hand after [`SealedRecord::open`], the signature has been
/// checked; whether the node key is the server's is for [`AddressRecord::verify`] to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressRecord {
    /// Of two records of a node, the higher one counts: milliseconds since the epoch at its signing.
    pub seq: u64,
    /// When it ends.
    pub expires: MilliSecondsSinceUnixEpoch,
    /// What it says.
    pub whereabouts: Whereabouts,
    /// The node key that signed it.
    pub node_key: PublicKey,
    /// The version of the key document that the node holds.
    pub document_version: u64,
    signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
struct Wire {
    seq: u64,
    expires: u64,
    peer_id: ByteBuf,
    addrs: Vec<ByteBuf>,
    relays: Vec<ByteBuf>,
    mailboxes: Vec<WireMailbox>,
    hello_cert: WireHelloCert,
}

#[derive(Serialize, Deserialize)]
struct WireMailbox {
    relay: ByteBuf,
    id: ByteArray<32>,
    hpke_key: ByteArray<32>,
}

/// The node key's signature over everything else in the record, and what a finder needs to check it: the same parts as
/// in a hello.
#[derive(Serialize, Deserialize)]
struct WireHelloCert {
    version: u64,
    node_key: ByteArray<32>,
    signature: ByteArray<64>,
}

impl AddressRecord {
    /// Signs a node's whereabouts for the next two hours.
    pub fn sign(
        whereabouts: Whereabouts,
        document: &KeyDocument,
        node: &NodeKey,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, RecordError> {
        Self::sign_for(RecordLifetime::Short, whereabouts, document, node, now)
    }

    /// Signs a node's whereabouts from now on.
    pub fn sign_for(
        lifetime: RecordLifetime,
        whereabouts: Whereabouts,
        document: &KeyDocument,
        node: &NodeKey,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, RecordError> {
        let mut record = Self {
            seq: now.0.into(),
            expires: expiry(now, lifetime),
            whereabouts,
            node_key: node.public().signing,
            document_version: document.version(),
            signature: [0; 64],
        };
        record.check()?;
        record.signature = node.sign_bytes(&record.signed_bytes(&document.identity())?);
        Ok(record)
    }

    /// The key id of the node that it is about.
    pub fn key_id(&self) -> OwnedServerSigningKeyId {
        key_id(&self.node_key)
    }

    /// Checks that the node belongs to the server: `document` is as new as the node says, and lists its key as current.
    pub fn verify(&self, document: &KeyDocument) -> Result<(), RecordError> {
        self.verify_signature(&document.identity())?;
        if document.version() < self.document_version {
            return Err(RecordError::DocumentNeeded {
                needed: self.document_version,
                held: document.version(),
            });
        }
        // Eight characters of a key id can be made to collide; only the whole key counts.
        match document.status(&self.key_id()) {
            Some(KeyStatus::Current(node)) if node.key.signing == self.node_key => Ok(()),
            _ => Err(RecordError::UnknownNode),
        }
    }

    /// Checks the node key's signature, for a node of this server.
    pub(super) fn verify_signature(&self, identity: &IdentityPublicKey) -> Result<(), RecordError> {
        self.node_key
            .verify(&self.signed_bytes(identity)?, &self.signature)
            .map_err(|_| RecordError::NodeSignature)
    }

    /// The bytes that are sealed.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let Whereabouts {
            peer_id,
            addrs,
            relays,
            mailboxes,
        } = &self.whereabouts;
        Ok(cbor::to_vec(&Wire {
            seq: self.seq,
            expires: self.expires.0.into(),
            peer_id: ByteBuf::from(peer_id.clone()),
            addrs: to_bytes(addrs),
            relays: to_bytes(relays),
            mailboxes: mailboxes.iter().map(Mailbox::to_wire).collect(),
            hello_cert: WireHelloCert {
                version: self.document_version,
                node_key: ByteArray::new(*self.node_key.as_bytes()),
                signature: ByteArray::new(self.signature),
            },
        })?)
    }

    /// Reads bytes that were sealed; proves nothing yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire: Wire = cbor::from_slice(bytes, SealedRecord::MAX_CONTENT)?;
        let record = Self {
            seq: wire.seq,
            expires: MilliSecondsSinceUnixEpoch(UInt::new(wire.expires).ok_or(RecordError::TooFarAhead)?),
            whereabouts: Whereabouts {
                peer_id: wire.peer_id.into_vec(),
                addrs: to_vecs(wire.addrs),
                relays: to_vecs(wire.relays),
                mailboxes: wire.mailboxes.into_iter().map(Mailbox::from_wire).collect(),
            },
            node_key: PublicKey::from_bytes(&wire.hello_cert.node_key).map_err(RecordError::Key)?,
            document_version: wire.hello_cert.version,
            signature: *wire.hello_cert.signature,
        };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), RecordError> {
        let Whereabouts {
            peer_id,
            addrs,
            relays,
            mailboxes,
        } = &self.whereabouts;
        let parts = addrs.iter().chain(relays).chain([peer_id]);
        let sizes_fit = parts
            .chain(mailboxes.iter().map(|mailbox| &mailbox.relay))
            .all(|part| (1..=Whereabouts::MAX_BYTES).contains(&part.len()));
        let counts_fit = addrs.len() <= Whereabouts::MAX_ADDRS
            && relays.len() <= Whereabouts::MAX_RELAYS
            && mailboxes.len() <= Whereabouts::MAX_RELAYS;
        if sizes_fit && counts_fit {
            Ok(())
        } else {
            Err(RecordError::Addresses)
        }
    }

    fn signed_bytes(&self, identity: &IdentityPublicKey) -> Result<Vec<u8>, CborError> {
        let Whereabouts {
            peer_id,
            addrs,
            relays,
            mailboxes,
        } = &self.whereabouts;
        cbor::to_vec(&(
            CONTEXT,
            Bytes::new(identity.as_bytes()),
            self.document_version,
            Bytes::new(self.node_key.as_bytes()),
            self.seq,
            u64::from(self.expires.0),
            Bytes::new(peer_id),
            to_bytes(addrs),
            to_bytes(relays),
            mailboxes.iter().map(Mailbox::to_wire).collect::<Vec<_>>(),
        ))
    }
}

impl Mailbox {
    fn to_wire(&self) -> WireMailbox {
        WireMailbox {
            relay: ByteBuf::from(self.relay.clone()),
            id: ByteArray::new(self.id),
            hpke_key: ByteArray::new(self.hpke_key),
        }
    }

    fn from_wire(wire: WireMailbox) -> Self {
        Self {
            relay: wire.relay.into_vec(),
            id: *wire.id,
            hpke_key: *wire.hpke_key,
        }
    }
}

/// When a record that is made now ends: in two hours, cut to the minute.
pub(super) fn expiry(now: MilliSecondsSinceUnixEpoch, lifetime: RecordLifetime) -> MilliSecondsSinceUnixEpoch {
    let exact = u64::from(now.0).saturating_add(lifetime.as_millis());
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(exact - exact % EXPIRY_STEP_MS))
}

fn to_bytes(parts: &[Vec<u8>]) -> Vec<ByteBuf> {
    parts.iter().cloned().map(ByteBuf::from).collect()
}

fn to_vecs(parts: Vec<ByteBuf>) -> Vec<Vec<u8>> {
    parts.into_iter().map(ByteBuf::into_vec).collect()
}
