//! Ed25519 key blinding, as Tor's rend-spec-v3 A.2 does it for onion services: from an identity key and a factor that
//! everyone who knows the name can compute comes another key pair, which tells nobody else whose it is. A blinded
//! secret never leaves this crate: together with the factor it *is* the identity key.

use curve25519_dalek::scalar::{Scalar, clamp_integer};
use ed25519_dalek::{
    VerifyingKey,
    hazmat::{ExpandedSecretKey, raw_sign},
};
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

use crate::{IdentityKey, IdentityPublicKey, PublicKey};

/// What the secret nonces of a blinded key are derived under, in the place of Tor's "Derive temporary signing key hash
/// input".
const NONCE: &str = "kith blinded key nonces 1";

/// The blinded public key `h·A`, for 32 uniformly random bytes of `factor` (before clamping).
///
/// It is never of small order: clamped integers of 255 bits are multiples of 8, the group's order is an odd prime
/// above 2^252, and so none of them is a multiple of it.
pub(crate) fn blind(identity: &IdentityPublicKey, factor: &[u8; 32]) -> PublicKey {
    PublicKey::from_point(scalar(factor) * identity.public_key().to_point())
}

/// The secret half of a blinded key.
pub(crate) struct BlindedSecret {
    secret: ExpandedSecretKey,
    public: VerifyingKey,
}

impl BlindedSecret {
    /// Blinds an identity key with the `factor` that [`blind`] takes.
    pub(crate) fn new(identity: &IdentityKey, factor: &[u8; 32]) -> Self {
        let identity = identity.expanded();
        let mut nonces = Zeroizing::new([0; 64]);
        // Tor's prefix is the same for all periods. With the factor in it, no two blinded keys ever share a nonce,
        // whatever they sign: two signatures with one nonce would tell the identity key.
        let hash = Sha512::new()
            .chain_update(NONCE)
            .chain_update([0])
            .chain_update(identity.hash_prefix)
            .chain_update(factor);
        hash.finalize_into(nonces.as_mut().into());
        let mut secret = ExpandedSecretKey {
            scalar: scalar(factor) * identity.scalar,
            hash_prefix: [0; 32],
        };
        secret.hash_prefix.copy_from_slice(&nonces[..32]);
        let public = VerifyingKey::from(&secret);
        Self { secret, public }
    }

    /// The public half, as [`blind`] gives it.
    pub(crate) fn public(&self) -> PublicKey {
        PublicKey::from_point(self.public.to_edwards())
    }

    /// An ordinary Ed25519 signature (RFC 8032) by the blinded key.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        raw_sign::<Sha512>(&self.secret, message, &self.public).to_bytes()
    }
}

fn scalar(factor: &[u8; 32]) -> Scalar {
    Scalar::from_bytes_mod_order(clamp_integer(*factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tor_llcrypto::pk::{
        ed25519::{Ed25519Identity, ExpandedKeypair, Keypair, PublicKey as TorPublicKey, Signature},
        keymanip::{blind_keypair, blind_pubkey},
    };

    use super::*;

    proptest! {
        /// Tor's implementation is the oracle: same scalar, same public key, and each takes the other's signatures.
        /// The nonces differ, on purpose.
        #[test]
        fn blinding_is_tors(seed: [u8; 32], factor: [u8; 32], message: Vec<u8>) {
            let identity = IdentityKey::from_bytes(&seed);
            let tors = ExpandedKeypair::from(&Keypair::from_bytes(&seed));
            let (ours, theirs) = (BlindedSecret::new(&identity, &factor), blind_keypair(&tors, factor).unwrap());
            prop_assert_eq!(&ours.secret.scalar.to_bytes()[..], &theirs.to_secret_key_bytes()[..32]);
            prop_assert_ne!(&ours.secret.hash_prefix[..], &theirs.to_secret_key_bytes()[32..]);
            prop_assert_eq!(*ours.public().as_bytes(), theirs.public().to_bytes());

            let public = blind(&identity.public(), &factor);
            let name = Ed25519Identity::new(*identity.public().as_bytes());
            let by_name = blind_pubkey(&TorPublicKey::try_from(name).unwrap(), factor).unwrap();
            prop_assert_eq!(*public.as_bytes(), by_name.to_bytes());
            prop_assert_eq!(public, ours.public());
            prop_assert_eq!(PublicKey::from_bytes(public.as_bytes()), Ok(public), "it is a key like any other");

            let signature = ours.sign(&message);
            prop_assert!(public.verify(&message, &signature).is_ok());
            prop_assert!(theirs.public().verify(&message, &Signature::from(signature)).is_ok());
            prop_assert!(public.verify(&message, &theirs.sign(&message).to_bytes()).is_ok());
            prop_assert!(identity.public().public_key().verify(&message, &signature).is_err());
        }

        #[test]
        fn no_two_factors_share_nonces(seed: [u8; 32], factors: [[u8; 32]; 2]) {
            prop_assume!(factors[0] != factors[1]);
            let identity = IdentityKey::from_bytes(&seed);
            let [one, other] = factors.map(|factor| BlindedSecret::new(&identity, &factor));
            prop_assert_ne!(one.secret.hash_prefix, other.secret.hash_prefix);
            prop_assert_ne!(one.secret.hash_prefix, identity.expanded().hash_prefix);
        }
    }
}
