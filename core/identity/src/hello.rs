//! The hello (`protocol.md` section 2): how a node proves, on a libp2p connection that is already up, which server it
//! belongs to. It binds a node key to both transport keys for a short time; it opens no connection itself.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, Bytes};

use crate::{
    IdentityPublicKey, KeyDocument, KeyError, KeyStatus, NodeKey, PublicKey,
    cbor::{self, CborError},
    key_id,
};

/// What the signed text begins with, so that no other signature by a node key can pass for a hello.
const CONTEXT: &str = "/kith/hello/1";

/// Why a hello proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// It does not decode.
    #[error("malformed hello")]
    Encoding(#[from] CborError),
    /// The server name or node key in it is no usable key.
    #[error("the hello holds an unusable key")]
    Key(#[source] KeyError),
    /// The signature is not the node key's over this connection.
    #[error("the hello is not signed for this connection")]
    Signature,
    /// It is past its expiry.
    #[error("the hello has expired")]
    Expired,
    /// It claims to hold for longer than [`Hello::LIFETIME_MS`] and the clock tolerance.
    #[error("the hello's expiry is too far in the future")]
    TooFarAhead,
    /// The key document at hand is older than the hello says; the newer one is needed to judge.
    #[error("key document version {needed} is needed, {held} is held")]
    DocumentNeeded {
        /// The version that the hello names.
        needed: u64,
        /// The version at hand.
        held: u64,
    },
    /// The key document is another server's.
    #[error("the key document belongs to another server")]
    OtherServer,
    /// The key document does not list the node key, or lists it as revoked.
    #[error("the node key does not belong to this server, or was revoked")]
    UnknownNode,
}

/// A node's proof of who it is, for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server that the node belongs to.
    pub identity: IdentityPublicKey,
    /// The version of that server's key document that the node holds.
    pub document_version: u64,
    /// The node's signing key.
    pub node_key: PublicKey,
    /// When the proof ends.
    pub expires: MilliSecondsSinceUnixEpoch,
    signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
struct Wire {
    server_name: ByteArray<32>,
    version: u64,
    node_key: ByteArray<32>,
    expires: u64,
    signature: ByteArray<64>,
}

impl Hello {
    /// Bytes of an encoded hello at the most.
    pub const MAX_BYTES: usize = 512;

    /// How long a fresh hello holds: connections say it once, right after the handshake.
    pub const LIFETIME_MS: u64 = 10 * 60 * 1000;

    /// How far apart two nodes' clocks may be (`protocol.md` section 2: one day).
    pub const CLOCK_TOLERANCE_MS: u64 = 24 * 60 * 60 * 1000;

    /// Makes the hello that this node presents to the peer `to`. Both PeerIds are opaque bytes here.
    pub fn sign(
        document: &KeyDocument,
        node: &NodeKey,
        own_peer: &[u8],
        to_peer: &[u8],
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, HelloError> {
        let expires = MilliSecondsSinceUnixEpoch(now.0.saturating_add(UInt::new_saturating(Self::LIFETIME_MS)));
        let mut hello = Self {
            identity: document.identity(),
            document_version: document.version(),
            node_key: node.public().signing,
            expires,
            signature: [0; 64],
        };
        hello.signature = node.sign_bytes(&hello.signed_bytes(own_peer, to_peer)?);
        Ok(hello)
    }

    /// The server name that the node claims.
    pub fn server_name(&self) -> OwnedServerName {
        self.identity.server_name()
    }

    /// Checks what needs no key document: the signature over both PeerIds, and the expiry. Afterwards the peer is known
    /// to hold the node key, but not yet that the node key is the server's: see [`Hello::verify`].
    pub fn verify_signature(
        &self,
        from_peer: &[u8],
        own_peer: &[u8],
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), HelloError> {
        let (now, expires) = (u64::from(now.0), u64::from(self.expires.0));
        if expires.saturating_add(Self::CLOCK_TOLERANCE_MS) <= now {
            return Err(HelloError::Expired);
        }
        if expires > now.saturating_add(Self::LIFETIME_MS + Self::CLOCK_TOLERANCE_MS) {
            return Err(HelloError::TooFarAhead);
        }
        self.node_key
            .verify(&self.signed_bytes(from_peer, own_peer)?, &self.signature)
            .map_err(|_| HelloError::Signature)
    }

    /// Checks everything: [`Hello::verify_signature`], and that `document` (which is verified by its type) is this
    /// server's, at least as new as the hello says, and lists the node key as current.
    pub fn verify(
        &self,
        document: &KeyDocument,
        from_peer: &[u8],
        own_peer: &[u8],
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), HelloError> {
        self.verify_signature(from_peer, own_peer, now)?;
        if document.identity() != self.identity {
            return Err(HelloError::OtherServer);
        }
        if document.version() < self.document_version {
            return Err(HelloError::DocumentNeeded {
                needed: self.document_version,
                held: document.version(),
            });
        }
        // Eight characters of a key id can be made to collide; only the whole key counts.
        match document.status(&key_id(&self.node_key)) {
            Some(KeyStatus::Current(node)) if node.key.signing == self.node_key => Ok(()),
            _ => Err(HelloError::UnknownNode),
        }
    }

    /// The bytes that go over the wire.
    pub fn encode(&self) -> Result<Vec<u8>, HelloError> {
        Ok(cbor::to_vec(&Wire {
            server_name: ByteArray::new(*self.identity.as_bytes()),
            version: self.document_version,
            node_key: ByteArray::new(*self.node_key.as_bytes()),
            expires: self.expires.0.into(),
            signature: ByteArray::new(self.signature),
        })?)
    }

    /// Reads bytes from the wire; proves nothing yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let wire: Wire = cbor::from_slice(bytes, Self::MAX_BYTES)?;
        let expires = UInt::new(wire.expires).ok_or(HelloError::TooFarAhead)?;
        Ok(Self {
            identity: IdentityPublicKey::from_bytes(&wire.server_name).map_err(HelloError::Key)?,
            document_version: wire.version,
            node_key: PublicKey::from_bytes(&wire.node_key).map_err(HelloError::Key)?,
            expires: MilliSecondsSinceUnixEpoch(expires),
            signature: wire.signature.into_array(),
        })
    }

    /// The signer's PeerId comes first, so that a hello cannot be sent back to whoever made it.
    fn signed_bytes(&self, signer_peer: &[u8], other_peer: &[u8]) -> Result<Vec<u8>, CborError> {
        cbor::to_vec(&(
            CONTEXT,
            Bytes::new(self.identity.as_bytes()),
            self.document_version,
            Bytes::new(self.node_key.as_bytes()),
            Bytes::new(signer_peer),
            Bytes::new(other_peer),
            u64::from(self.expires.0),
        ))
    }
}
