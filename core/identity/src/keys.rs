//! The three kinds of keys, as `protocol.md` section 1 lists them. Their secrets leave this module only as bytes to be
//! kept in a key store, wrapped so that they are wiped afterwards.

use std::fmt;

use curve25519_dalek::EdwardsPoint;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey, hazmat::ExpandedSecretKey};
use rand::{CryptoRng, RngCore};
use ruma::{
    AnyKeyName, OwnedServerSigningKeyId, ServerSigningKeyId, SigningKeyAlgorithm, SigningKeyId, serde::Base64,
    signatures,
};
use zeroize::Zeroizing;

use crate::{IdentityPublicKey, name::Z_BASE_32};

/// Why 32 bytes are not a usable public key, or a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are not a point of the curve.
    #[error("not an Ed25519 public key")]
    NotAKey,
    /// The point has small order: signatures by it prove nothing.
    #[error("a weak Ed25519 public key")]
    Weak,
    /// The signature was not made by this key over this message.
    #[error("the signature does not hold")]
    Signature,
}

/// An Ed25519 public key that is a point of the curve and not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Takes 32 bytes as a key, if they are one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAKey)?;
        // Points have second, non-canonical spellings; only one may name a server.
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(KeyError::NotAKey);
        }
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self(key))
    }

    /// Takes a point that is known not to be of small order.
    pub(crate) fn from_point(point: EdwardsPoint) -> Self {
        Self(point.into())
    }

    /// The point of the curve.
    pub(crate) fn to_point(self) -> EdwardsPoint {
        self.0.to_edwards()
    }

    /// Reads a key as Matrix writes it: unpadded base64 of 32 bytes.
    pub fn from_base64(base64: &Base64) -> Result<Self, KeyError> {
        let bytes = base64.as_bytes().try_into().map_err(|_| KeyError::NotAKey)?;
        Self::from_bytes(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key as Matrix writes it.
    pub fn to_base64(&self) -> Base64 {
        Base64::new(self.as_bytes().to_vec())
    }

    /// Checks a signature over `message`, strictly (no weak keys, no malleable signatures).
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), KeyError> {
        self.0
            .verify_strict(message, &Signature::from_bytes(signature))
            .map_err(|_| KeyError::Signature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_base64())
    }
}

/// The Matrix key id of a node key: `ed25519:` and the first 8 characters of the z-base-32 of the public key.
pub fn key_id(key: &PublicKey) -> OwnedServerSigningKeyId {
    let mut version = Z_BASE_32.encode(key.as_bytes());
    version.truncate(8);
    // Letters and digits are a valid key version, so ruma's parser has nothing to refuse.
    #[expect(clippy::expect_used)]
    ServerSigningKeyId::parse(format!("ed25519:{version}")).expect("z-base-32 is a valid key version")
}

/// The secret behind a server name. It signs key documents and, blinded, certificates for DHT records; nothing else. It
/// can be kept offline.
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Makes a new identity.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        Self(SigningKey::generate(rng))
    }

    /// Takes back what [`IdentityKey::to_bytes`] gave.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The secret, for a key store or a recovery phrase.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half: the server name.
    pub fn public(&self) -> IdentityPublicKey {
        PublicKey(self.0.verifying_key()).into()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The secret scalar and nonce prefix (RFC 8032, section 5.1.5), for key blinding.
    pub(crate) fn expanded(&self) -> ExpandedSecretKey {
        self.0.as_bytes().into()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public())
    }
}

/// The public half of a node key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePublicKey {
    /// Verifies events, hellos and address records.
    pub signing: PublicKey,
    /// What envelopes for this node are sealed to (X25519).
    pub seal: [u8; 32],
}

impl NodePublicKey {
    /// The key id under which a key document lists this node.
    pub fn key_id(&self) -> OwnedServerSigningKeyId {
        key_id(&self.signing)
    }
}

/// The secrets of one installation: an Ed25519 key that signs its events and hellos, and an X25519 key that opens what
/// is sealed to it.
pub struct NodeKey {
    signing: SigningKey,
    seal: x25519_dalek::StaticSecret,
    key_id: OwnedServerSigningKeyId,
}

impl NodeKey {
    /// Makes the keys of a new installation.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut secret = Zeroizing::new([0; 64]);
        rng.fill_bytes(secret.as_mut());
        Self::from_bytes(&secret)
    }

    /// Takes back what [`NodeKey::to_bytes`] gave: 32 bytes Ed25519 seed, 32 bytes X25519 secret.
    pub fn from_bytes(secret: &[u8; 64]) -> Self {
        let mut halves = Zeroizing::new(([0; 32], [0; 32]));
        halves.0.copy_from_slice(&secret[..32]);
        halves.1.copy_from_slice(&secret[32..]);
        let signing = SigningKey::from_bytes(&halves.0);
        let key_id = key_id(&PublicKey(signing.verifying_key()));
        Self {
            signing,
            seal: x25519_dalek::StaticSecret::from(halves.1),
            key_id,
        }
    }

    /// The secrets, for a key store.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 64]> {
        let mut secret = Zeroizing::new([0; 64]);
        secret[..32].copy_from_slice(self.signing.as_bytes());
        secret[32..].copy_from_slice(self.seal.as_bytes());
        secret
    }

    /// The public half, as a key document lists it.
    pub fn public(&self) -> NodePublicKey {
        NodePublicKey {
            signing: PublicKey(self.signing.verifying_key()),
            seal: x25519_dalek::PublicKey::from(&self.seal).to_bytes(),
        }
    }

    /// The Matrix key id that signatures by this node carry.
    pub fn key_id(&self) -> &OwnedServerSigningKeyId {
        &self.key_id
    }

    /// The X25519 secret that opens envelopes sealed to this node.
    pub fn seal_secret(&self) -> &x25519_dalek::StaticSecret {
        &self.seal
    }

    /// Signs bytes. Whatever is signed must begin with a text that no other use of this key begins with.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

/// Signs Matrix JSON and events under this node's key id.
impl signatures::KeyPair for NodeKey {
    fn sign(&self, message: &[u8]) -> signatures::Signature {
        signatures::Signature::new(
            SigningKeyId::<AnyKeyName>::from_parts(
                SigningKeyAlgorithm::Ed25519,
                self.key_id.key_name().as_str().into(),
            ),
            self.sign_bytes(message).to_vec(),
        )
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.key_id)
    }
}

/// The secret behind a libp2p PeerId. Never the identity or node key, and replaced at least weekly, so that whoever sees
/// the PeerId learns no name and cannot follow one for long.
pub struct TransportKey(Zeroizing<[u8; 32]>);

impl TransportKey {
    /// Makes a new key.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self(seed)
    }

    /// Takes back a seed.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*seed))
    }

    /// The Ed25519 seed, for libp2p or a key store.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }
}

impl fmt::Debug for TransportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransportKey")
    }
}
