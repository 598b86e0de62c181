//! What one member says on a topic in its own name: typing and receipts carry no proof of whose they are, and every member can
//! seal messages of the topic. Its node's key signs it for this topic and no other. This module knows no EDU, and remembers
//! no number: who reads is to take none twice.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId,
    serde::{Base64, base64::UrlSafe},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{KeyError, NodeKey, PublicKey, TopicName};

/// What the signed bytes begin with.
const CONTEXT: &str = "/kith/topic/1 vouched\0";

/// Why something is not taken for a member's.
#[derive(Debug, thiserror::Error)]
pub enum VouchedError {
    /// The content exceeds [`Vouched::MAX_CONTENT`].
    #[error("{0} bytes are too many to say at once")]
    TooLarge(usize),
    /// The signature has no 64 bytes.
    #[error("the signature is none")]
    NoSignature,
    /// The key did not sign this, or not for this topic.
    #[error("the key did not sign this for this topic")]
    Signature(#[source] KeyError),
}

/// JSON that a server's node signed for one topic. As JSON: `{origin, key_id, sent_ts, content, signature}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vouched {
    /// Whose it is.
    pub origin: OwnedServerName,
    /// The key that signed it, as the server's key document lists it.
    pub key_id: OwnedServerSigningKeyId,
    /// When it was made, by its maker's clock. A node makes no two with the same time.
    pub sent_ts: MilliSecondsSinceUnixEpoch,
    /// What is said; signed byte by byte as it stands here.
    pub content: Box<RawValue>,
    signature: Base64<UrlSafe>,
}

impl Vouched {
    /// Bytes of content at the most.
    pub const MAX_CONTENT: usize = 64 << 10;

    /// Signs content for a topic.
    pub fn sign(
        key: &NodeKey,
        topic: &TopicName,
        origin: OwnedServerName,
        sent_ts: MilliSecondsSinceUnixEpoch,
        content: Box<RawValue>,
    ) -> Result<Self, VouchedError> {
        let mut vouched = Self {
            origin,
            key_id: key.key_id().clone(),
            sent_ts,
            content,
            signature: Base64::new(Vec::new()),
        };
        vouched.check_size()?;
        vouched.signature = Base64::new(key.sign_bytes(&vouched.signed_bytes(topic)).to_vec());
        Ok(vouched)
    }

    /// Whether this key signed it for this topic. That the key is the origin's is for the caller to know.
    pub fn verify(&self, key: &PublicKey, topic: &TopicName) -> Result<(), VouchedError> {
        self.check_size()?;
        let signature = self.signature.as_bytes().try_into();
        let signature = signature.map_err(|_| VouchedError::NoSignature)?;
        key.verify(&self.signed_bytes(topic), signature)
            .map_err(VouchedError::Signature)
    }

    fn check_size(&self) -> Result<(), VouchedError> {
        let size = self.content.get().len();
        if size > Self::MAX_CONTENT {
            return Err(VouchedError::TooLarge(size));
        }
        Ok(())
    }

    /// Every part ends before the next begins: topics' names have one length, and neither names nor key ids hold a zero.
    fn signed_bytes(&self, topic: &TopicName) -> Vec<u8> {
        let sent_ts = u64::from(self.sent_ts.get()).to_be_bytes();
        [
            CONTEXT.as_bytes(),
            topic.as_str().as_bytes(),
            self.origin.as_bytes(),
            b"\0",
            self.key_id.as_bytes(),
            b"\0",
            &sent_ts,
            self.content.get().as_bytes(),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::UInt;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::TopicSecret;

    fn key() -> NodeKey {
        NodeKey::from_bytes(&[3; 64])
    }

    fn topic() -> TopicName {
        TopicSecret::from_bytes(&[7; 32]).public().name()
    }

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis))
    }

    fn vouched(content: &str, millis: u64) -> Vouched {
        let content = to_raw_value(content).unwrap();
        Vouched::sign(&key(), &topic(), "origin".try_into().unwrap(), at(millis), content).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_signed_verifies_after_its_way(content: String, millis in 0..(1_u64 << 53)) {
            let made = vouched(&content, millis);
            let text = serde_json::to_string(&made).unwrap();
            let read: Vouched = serde_json::from_str(&text).unwrap();
            prop_assert!(read.verify(&key().public().signing, &topic()).is_ok());
            prop_assert_eq!(serde_json::from_str::<String>(read.content.get()).unwrap(), content);
            prop_assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn nothing_of_it_can_be_changed() {
        type Change = fn(&mut Vouched);
        let changes: [(&str, Change); 5] = [
            ("origin", |vouched| vouched.origin = "other".try_into().unwrap()),
            ("key id", |vouched| vouched.key_id = "ed25519:other".try_into().unwrap()),
            ("time", |vouched| vouched.sent_ts = at(8)),
            ("content", |vouched| vouched.content = to_raw_value("other").unwrap()),
            ("signature", |vouched| vouched.signature = Base64::new(vec![1; 64])),
        ];
        let key = key().public().signing;
        assert!(vouched("content", 7).verify(&key, &topic()).is_ok());
        for (what, change) in changes {
            let mut changed = vouched("content", 7);
            change(&mut changed);
            assert!(
                matches!(changed.verify(&key, &topic()), Err(VouchedError::Signature(_))),
                "{what}"
            );
        }
        // Nor can it be said on another topic, or taken for another node's.
        let elsewhere = TopicSecret::from_bytes(&[8; 32]).public().name();
        assert!(vouched("content", 7).verify(&key, &elsewhere).is_err());
        let other = NodeKey::from_bytes(&[4; 64]).public().signing;
        assert!(vouched("content", 7).verify(&other, &topic()).is_err());
    }

    #[test]
    fn it_has_bounds() {
        let long = to_raw_value(&"x".repeat(Vouched::MAX_CONTENT)).unwrap();
        let refused = Vouched::sign(&key(), &topic(), "origin".try_into().unwrap(), at(7), long.clone());
        assert!(matches!(refused, Err(VouchedError::TooLarge(size)) if size == long.get().len()));
        let mut vouched = vouched("content", 7);
        vouched.content = long;
        let key = key().public().signing;
        assert!(matches!(vouched.verify(&key, &topic()), Err(VouchedError::TooLarge(_))));
        vouched.content = to_raw_value("content").unwrap();
        vouched.signature = Base64::new(vec![0; 63]);
        assert!(matches!(vouched.verify(&key, &topic()), Err(VouchedError::NoSignature)));
    }
}
