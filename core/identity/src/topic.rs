//! The messages of a room's topic (`protocol.md` section 4). Who holds the [`TopicSecret`] makes and reads them; who
//! passes them on needs no more than the [`TopicKey`] to tell them from what outsiders make up, and sees padded
//! ciphertext. This module sends nothing, and knows no room.
//!
//! A message is `nonce ‖ ciphertext ‖ tag ‖ signature`: 24, a multiple of some bytes, 16 and 64 bytes. The plaintext is
//! the length of a zstd frame, the frame, and zeros. The message does not name its topic, because it never travels
//! without it.

use std::fmt;

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use ed25519_dalek::{Signer, SigningKey};
use rand::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{KeyError, PublicKey, name::Z_BASE_32};

/// What everything derived for topics begins with.
const CONTEXT: &str = "/kith/topic/1";

/// Bytes of XChaCha20's nonce, which is random: all members seal under one key.
const NONCE: usize = 24;

/// Bytes of Poly1305's tag.
const TAG: usize = 16;

/// Bytes of the signature.
const SIGNATURE: usize = 64;

/// Bytes that tell the frame's length within the padding.
const LENGTH: usize = 4;

/// Bytes of a plaintext at the least, so that receipts and short messages look alike.
const SMALLEST: usize = 128;

/// Bytes of a topic's name before encoding: enough that nobody finds two keys with one name.
const NAME: usize = 20;

/// zstd's ordinary level: what is made once travels many times.
const LEVEL: i32 = 3;

/// Why a message cannot be made, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// There is more to say than [`TopicSecret::MAX_CONTENT`], or the message exceeds [`TopicKey::MAX_MESSAGE`].
    #[error("{0} bytes are too many for a topic")]
    TooLarge(usize),
    /// It is shorter than any message.
    #[error("too short for a topic's message")]
    TooShort,
    /// No holder of the topic's secret made it.
    #[error("the topic's key did not sign the message")]
    Signature(#[source] KeyError),
    /// What a member made is not as members make it: damaged, of another topic, or more than is allowed when unpacked.
    #[error("the message's content is not as it should be")]
    Content,
}

/// What members of a room share: it makes and opens the messages of the room's topic.
pub struct TopicSecret {
    secret: Zeroizing<[u8; 32]>,
    signing: SigningKey,
    content_key: Zeroizing<[u8; 32]>,
}

impl TopicSecret {
    /// Bytes that one message can say at the most, before compression. They always fit, however badly they compress.
    pub const MAX_CONTENT: usize = 240 << 10;

    /// Makes a new topic.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(secret.as_mut());
        Self::from_bytes(&secret)
    }

    /// Takes back what [`TopicSecret::as_bytes`] gave.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self {
            secret: Zeroizing::new(*secret),
            signing: SigningKey::from_bytes(&derive("signing", secret)),
            content_key: derive("content", secret),
        }
    }

    /// The secret, for members and a key store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.secret
    }

    /// What names the topic and tells its messages from others.
    pub fn public(&self) -> TopicKey {
        TopicKey(PublicKey::from_point(self.signing.verifying_key().to_edwards()))
    }

    /// Makes a message: compressed, padded, encrypted and signed.
    pub fn seal(&self, content: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<Vec<u8>, TopicError> {
        self.seal_padded(&Self::pack(content)?, rng)
    }

    /// What is sealed to say this.
    fn pack(content: &[u8]) -> Result<Vec<u8>, TopicError> {
        if content.len() > Self::MAX_CONTENT {
            return Err(TopicError::TooLarge(content.len()));
        }
        let frame = zstd::bulk::compress(content, LEVEL).map_err(|_| TopicError::Content)?;
        Ok(pad(&frame))
    }

    fn seal_padded(&self, padded: &[u8], rng: &mut (impl RngCore + CryptoRng)) -> Result<Vec<u8>, TopicError> {
        let mut message = vec![0; NONCE];
        rng.fill_bytes(&mut message);
        let plain = Payload {
            msg: padded,
            aad: CONTEXT.as_bytes(),
        };
        let ciphertext = self
            .cipher()
            .encrypt(XNonce::from_slice(&message), plain)
            .map_err(|_| TopicError::Content)?;
        message.extend(ciphertext);
        let signature = self.signing.sign(&signed_bytes(&message));
        message.extend(signature.to_bytes());
        Ok(message)
    }

    /// What a message says, if a member of this topic made it.
    pub fn open(&self, message: &[u8]) -> Result<Vec<u8>, TopicError> {
        let sealed = self.public().check(message)?;
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE).ok_or(TopicError::TooShort)?;
        let sealed = Payload {
            msg: ciphertext,
            aad: CONTEXT.as_bytes(),
        };
        let padded = self
            .cipher()
            .decrypt(XNonce::from_slice(nonce), sealed)
            .map_err(|_| TopicError::Content)?;
        Self::unpack(&padded)
    }

    /// What a message says, from what was sealed: any member can seal anything.
    fn unpack(padded: &[u8]) -> Result<Vec<u8>, TopicError> {
        let frame = unpad(padded).ok_or(TopicError::Content)?;
        // Takes memory for what the frame says it holds, or for all that is allowed, and never for more.
        zstd::bulk::decompress(frame, Self::MAX_CONTENT).map_err(|_| TopicError::Content)
    }

    /// What goes into a message, for a fuzzer to start from.
    #[cfg(feature = "testing")]
    pub fn pack_to_seal(content: &[u8]) -> Result<Vec<u8>, TopicError> {
        Self::pack(content)
    }

    /// What members can make others read, for a fuzzer, which cannot sign.
    #[cfg(feature = "testing")]
    pub fn unpack_sealed(padded: &[u8]) -> Result<Vec<u8>, TopicError> {
        Self::unpack(padded)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.content_key.as_ref().into())
    }
}

impl fmt::Debug for TopicSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicSecret({})", self.public().name())
    }
}

/// The public half of a [`TopicSecret`]: tells messages of the topic from others, and reads none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TopicKey(PublicKey);

impl TopicKey {
    /// Bytes of a message at the most.
    pub const MAX_MESSAGE: usize = 256 << 10;

    /// Takes 32 bytes as a topic's key, if they are one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        PublicKey::from_bytes(bytes).map(Self)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// What the topic is called among those who pass its messages on.
    pub fn name(&self) -> TopicName {
        let hash = Sha256::new()
            .chain_update(CONTEXT)
            .chain_update(" name\0")
            .chain_update(self.as_bytes());
        TopicName(Z_BASE_32.encode(&hash.finalize()[..NAME]))
    }

    /// Whether a holder of the topic's secret made this message. Who passes messages on asks this first.
    pub fn verify(&self, message: &[u8]) -> bool {
        self.check(message).is_ok()
    }

    /// The message without its signature, which holds.
    fn check<'a>(&self, message: &'a [u8]) -> Result<&'a [u8], TopicError> {
        if message.len() > Self::MAX_MESSAGE {
            return Err(TopicError::TooLarge(message.len()));
        }
        if message.len() < NONCE + SMALLEST + TAG + SIGNATURE {
            return Err(TopicError::TooShort);
        }
        let (sealed, signature) = message.split_last_chunk().ok_or(TopicError::TooShort)?;
        self.0
            .verify(&signed_bytes(sealed), signature)
            .map_err(TopicError::Signature)?;
        Ok(sealed)
    }
}

/// What a topic is called: [`TopicName::LENGTH`] characters of z-base-32, the first 20 bytes of a hash of its key. It tells nothing of the room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicName(String);

impl TopicName {
    /// Characters of every name.
    pub const LENGTH: usize = NAME / 5 * 8;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn derive(purpose: &str, secret: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    let hash = Sha256::new()
        .chain_update(CONTEXT)
        .chain_update(" ")
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(secret);
    hash.finalize_into(derived.as_mut().into());
    derived
}

fn signed_bytes(sealed: &[u8]) -> Vec<u8> {
    [CONTEXT.as_bytes(), b"\0", sealed].concat()
}

/// Lengths after padding leave only their order of magnitude and a few bits to see (Padmé: the fewer bits, the longer).
fn padded_length(length: usize) -> usize {
    let length = length.max(SMALLEST);
    let magnitude = length.ilog2();
    let kept = magnitude.ilog2() + 1;
    length.next_multiple_of(1 << (magnitude - kept))
}

fn pad(frame: &[u8]) -> Vec<u8> {
    // A frame is at most a little longer than the content, which is bounded.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let mut padded = [&length.to_be_bytes()[..], frame].concat();
    padded.resize(padded_length(padded.len()), 0);
    padded
}

fn unpad(padded: &[u8]) -> Option<&[u8]> {
    let (length, rest) = padded.split_first_chunk::<LENGTH>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (frame, padding) = rest.split_at_checked(length)?;
    let honest = padding.iter().all(|byte| *byte == 0) && padded.len() == padded_length(LENGTH + length);
    honest.then_some(frame)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use rand::{RngCore as _, SeedableRng, rngs::StdRng};

    use super::*;

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    fn topic() -> TopicSecret {
        TopicSecret::from_bytes(&[7; 32])
    }

    proptest! {
        #[test]
        fn members_read_what_members_say(secret: [u8; 32], content: Vec<u8>) {
            let topic = TopicSecret::from_bytes(&secret);
            let message = topic.seal(&content, &mut rng()).unwrap();
            prop_assert!(topic.public().verify(&message));
            prop_assert_eq!(TopicSecret::from_bytes(topic.as_bytes()).open(&message).unwrap(), content);
        }

        #[test]
        fn any_change_is_seen(at: prop::sample::Index, flip in 1u8..) {
            let mut message = topic().seal(b"something", &mut rng()).unwrap();
            let at = at.index(message.len());
            message[at] ^= flip;
            prop_assert!(!topic().public().verify(&message));
            prop_assert!(matches!(topic().open(&message), Err(TopicError::Signature(_))));
        }

        #[test]
        fn padding_hides_all_but_a_few_lengths(length in 0..TopicSecret::MAX_CONTENT) {
            let padded = padded_length(length);
            prop_assert!(padded >= length && padded <= (length + length / 8).max(SMALLEST), "{length}: {padded}");
            prop_assert_eq!(padded_length(padded), padded);
        }
    }

    #[test]
    fn what_is_said_always_fits() {
        let mut content = vec![0; TopicSecret::MAX_CONTENT];
        rng().fill_bytes(&mut content);
        let message = topic().seal(&content, &mut rng()).unwrap();
        assert_eq!(topic().open(&message).unwrap(), content);

        content.push(0);
        let refused = topic().seal(&content, &mut rng());
        assert!(matches!(refused, Err(TopicError::TooLarge(size)) if size == content.len()));
    }

    #[test]
    fn size_comes_before_the_signature() {
        let long = vec![0; TopicKey::MAX_MESSAGE + 1];
        assert!(matches!(topic().open(&long), Err(TopicError::TooLarge(_))));
        let short = topic().seal(b"", &mut rng()).unwrap();
        for length in 0..short.len() {
            assert!(matches!(topic().open(&short[1..][..length]), Err(TopicError::TooShort)));
        }
    }

    /// A member may lie, but not cost more than a message may.
    #[test]
    fn a_members_content_is_bounded_and_has_one_spelling() {
        let check = |padded: &[u8]| topic().open(&topic().seal_padded(padded, &mut rng()).unwrap());
        let frame = zstd::bulk::compress(b"something", LEVEL).unwrap();
        assert_eq!(check(&pad(&frame)).unwrap(), b"something");

        let bomb = zstd::bulk::compress(&vec![0; TopicSecret::MAX_CONTENT + 1], LEVEL).unwrap();
        assert!(bomb.len() < 1000);
        let mut unmarked = zstd::Encoder::new(Vec::new(), LEVEL).unwrap();
        unmarked.include_contentsize(false).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut unmarked).unwrap();
        let mut dirty = pad(&frame);
        *dirty.last_mut().unwrap() = 1;
        let mut long = pad(&frame);
        long[..LENGTH].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut wasteful = pad(&frame);
        wasteful.resize(padded_length(wasteful.len() + 1), 0);
        let cases = [
            ("more than is allowed", pad(&bomb)),
            ("more than is allowed, unannounced", pad(&unmarked.finish().unwrap())),
            ("no frame", pad(b"something")),
            ("half a frame", pad(&frame[..frame.len() - 1])),
            ("bytes in the padding", dirty),
            ("a length beyond the padding", long),
            ("more padding than needed", wasteful),
        ];
        for (what, padded) in cases {
            assert!(matches!(check(&padded), Err(TopicError::Content)), "{what}");
        }
    }

    #[test]
    fn topics_have_nothing_in_common() {
        let (one, other) = (topic(), TopicSecret::generate(&mut rng()));
        let message = one.seal(b"something", &mut rng()).unwrap();
        assert!(!other.public().verify(&message));
        assert!(other.open(&message).is_err());
        assert_ne!(one.public().name(), other.public().name());
        assert_eq!(one.public().name().as_str().len(), TopicName::LENGTH);
        assert_eq!(TopicKey::from_bytes(one.public().as_bytes()).unwrap(), one.public());
        let keys = [one.as_bytes(), one.signing.as_bytes(), &*one.content_key];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        assert!(!format!("{one:?}").contains("07"), "a secret does not show");
    }

    #[test]
    fn the_same_words_look_different_each_time() {
        let (mut rng, topic) = (rng(), topic());
        let messages = [(); 2].map(|()| topic.seal(b"something", &mut rng).unwrap());
        assert_ne!(messages[0], messages[1]);
        let short = topic.seal(b"", &mut rng).unwrap();
        assert_eq!(short.len(), messages[0].len(), "short messages look alike");
    }
}
