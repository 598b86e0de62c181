//! A public key object as clients upload it: device keys or a cross-signing key, with signatures. It is checked and shown
//! here, never altered in what is signed.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, DeviceId, SigningKeyAlgorithm, UserId,
    canonical_json::to_canonical_value,
    encryption::KeyUsage,
    serde::{Base64, base64::Standard},
    signatures::{to_canonical_json_string_for_signing, verify_canonical_json_bytes},
};

/// The largest key object accepted, in bytes.
pub const MAX_KEY_BYTES: usize = 32 * 1024;

/// Why a key object is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a JSON object that can be signed, or too large.
    #[error("the key is not well formed: {0}")]
    Malformed(String),
    /// It names another user or device than the one it is uploaded for.
    #[error("the key belongs to someone else")]
    WrongOwner,
    /// A cross-signing key that is not for this use.
    #[error("the key does not have the usage {0}")]
    WrongUsage(KeyUsage),
    /// A cross-signing key must hold exactly one Ed25519 key, named by its own public key.
    #[error("a cross-signing key must hold one ed25519 key, under its own name")]
    NotOneKey,
    /// The signature that is asked for is not there.
    #[error("the signature by {0} is missing")]
    MissingSignature(String),
    /// The signature is there and wrong.
    #[error("the signature by {0} is invalid")]
    InvalidSignature(String),
}

/// One signature that was made on a key after its upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySignature {
    /// The user who made it.
    pub signer: String,
    /// The key it was made with, as `ed25519:<device id or public key>`.
    pub key_id: String,
    /// The signature, in unpadded base64.
    pub signature: String,
}

/// A public key object. `unsigned` is not part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedKey(CanonicalJsonObject);

impl PublishedKey {
    /// Parses an object. What it says is not yet checked.
    pub fn parse(json: &str) -> Result<Self, KeyError> {
        if json.len() > MAX_KEY_BYTES {
            return Err(KeyError::Malformed(format!("over {MAX_KEY_BYTES} bytes")));
        }
        let mut object: CanonicalJsonObject =
            serde_json::from_str(json).map_err(|error| KeyError::Malformed(error.to_string()))?;
        object.remove("unsigned");
        Ok(Self(object))
    }

    /// The object in canonical JSON, with its signatures.
    pub fn to_json(&self) -> Result<String, KeyError> {
        serde_json::to_string(&self.0).map_err(|error| KeyError::Malformed(error.to_string()))
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field)?.as_str()
    }

    /// Whether it is the key of this device of this user.
    pub fn check_device(&self, user: &UserId, device: &DeviceId) -> Result<(), KeyError> {
        let owned = self.text("user_id") == Some(user.as_str()) && self.text("device_id") == Some(device.as_str());
        if owned { Ok(()) } else { Err(KeyError::WrongOwner) }
    }

    /// The public key, in unpadded base64, if it is a well-formed cross-signing key of this user and usage.
    pub fn check_cross_signing(&self, user: &UserId, usage: &KeyUsage) -> Result<&str, KeyError> {
        if self.text("user_id") != Some(user.as_str()) {
            return Err(KeyError::WrongOwner);
        }
        let usages = self.0.get("usage").and_then(CanonicalJsonValue::as_array);
        if !usages.is_some_and(|list| list.iter().any(|entry| entry.as_str() == Some(usage.as_str()))) {
            return Err(KeyError::WrongUsage(usage.clone()));
        }
        let keys = self.0.get("keys").and_then(CanonicalJsonValue::as_object);
        let mut keys = keys.into_iter().flatten();
        let (Some((id, value)), None) = (keys.next(), keys.next()) else {
            return Err(KeyError::NotOneKey);
        };
        let public = value.as_str().ok_or(KeyError::NotOneKey)?;
        let decoded = Base64::<Standard>::parse(public).map_err(|_| KeyError::NotOneKey)?;
        if id.strip_prefix("ed25519:") != Some(public) || decoded.as_bytes().len() != 32 {
            return Err(KeyError::NotOneKey);
        }
        Ok(public)
    }

    /// The Ed25519 key of this name that the object holds, in base64.
    pub fn ed25519(&self, name: &str) -> Option<&str> {
        let keys = self.0.get("keys")?.as_object()?;
        keys.get(&format!("ed25519:{name}"))?.as_str()
    }

    /// Whether both are the same but for signatures.
    pub fn is_same_key(&self, other: &Self) -> bool {
        let unsigned = |(name, _): &(&String, &CanonicalJsonValue)| name.as_str() != "signatures";
        self.0.iter().filter(unsigned).eq(other.0.iter().filter(unsigned))
    }

    /// The signatures that a user has made on this key: ids of the signing keys, and signatures in base64.
    pub fn signatures_by(&self, signer: &UserId) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.get("signatures").and_then(CanonicalJsonValue::as_object);
        let by_signer = all.and_then(|all| all.get(signer.as_str())?.as_object());
        by_signer
            .into_iter()
            .flatten()
            .filter_map(|(key_id, value)| Some((key_id.as_str(), value.as_str()?)))
    }

    /// Checks the signature that `signer` made with the Ed25519 key of this name, whose public half is given in base64.
    ///
    /// Appendices, "Checking for a Signature".
    pub fn verify(&self, signer: &UserId, name: &str, public: &str) -> Result<(), KeyError> {
        let key_id = format!("ed25519:{name}");
        let found = self.signatures_by(signer).find(|(id, _)| *id == key_id);
        let (_, signature) = found.ok_or_else(|| KeyError::MissingSignature(key_id.clone()))?;
        let invalid = || KeyError::InvalidSignature(key_id.clone());
        let signature = Base64::<Standard>::parse(signature).map_err(|_| invalid())?;
        let public = Base64::<Standard>::parse(public).map_err(|_| invalid())?;
        let message =
            to_canonical_json_string_for_signing(&self.0).map_err(|error| KeyError::Malformed(error.to_string()))?;
        verify_canonical_json_bytes(
            &SigningKeyAlgorithm::Ed25519,
            public.as_bytes(),
            signature.as_bytes(),
            message.as_bytes(),
        )
        .map_err(|_| invalid())
    }

    /// Adds a signature, or replaces the one by the same key.
    pub fn add_signature(&mut self, signature: &KeySignature) {
        let mut all = take_object(&mut self.0, "signatures");
        let mut by_signer = take_object(&mut all, &signature.signer);
        let value = CanonicalJsonValue::String(signature.signature.clone());
        by_signer.insert(signature.key_id.clone(), value);
        all.insert(signature.signer.clone(), CanonicalJsonValue::Object(by_signer));
        self.0.insert("signatures".to_owned(), CanonicalJsonValue::Object(all));
    }

    /// Leaves only the signatures that a viewer may see: those by the key's owner, and those by the viewer. Without a
    /// viewer (another server asks) only the owner's.
    ///
    /// Client-server API, "Key and signature security": who has signed whom would give away whom a user knows.
    pub fn keep_visible(&mut self, owner: &UserId, viewer: Option<&UserId>) {
        if let Some(CanonicalJsonValue::Object(all)) = self.0.get_mut("signatures") {
            all.retain(|signer, _| signer == owner.as_str() || viewer.is_some_and(|viewer| signer == viewer.as_str()));
        }
    }

    /// The JSON to show, with the device's name beside the key.
    pub fn shown(mut self, display_name: Option<String>) -> Result<String, KeyError> {
        if let Some(name) = display_name {
            let unsigned = serde_json::json!({"device_display_name": name});
            let unsigned = to_canonical_value(unsigned).map_err(|error| KeyError::Malformed(error.to_string()))?;
            self.0.insert("unsigned".to_owned(), unsigned);
        }
        self.to_json()
    }
}

/// Takes the object under a field; whatever else stands there counts as an empty one.
fn take_object(object: &mut CanonicalJsonObject, field: &str) -> CanonicalJsonObject {
    match object.remove(field) {
        Some(CanonicalJsonValue::Object(inner)) => inner,
        _ => CanonicalJsonObject::new(),
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        CanonicalJsonObject, device_id,
        encryption::KeyUsage,
        serde::{Base64, base64::Standard},
        signatures::{Ed25519KeyPair, sign_json},
        user_id,
    };
    use serde_json::{Value, json};

    use super::{KeyError, KeySignature, PublishedKey};

    /// A key pair that signs under its own public key, as cross-signing keys do, or under a device id.
    fn key_pair(name: Option<&str>) -> (Ed25519KeyPair, String) {
        let document = Ed25519KeyPair::generate();
        let nameless = Ed25519KeyPair::from_der(&document, "x".to_owned()).unwrap();
        let public = Base64::<Standard, _>::new(nameless.public_key()).encode();
        let name = name.unwrap_or(&public).to_owned();
        (Ed25519KeyPair::from_der(&document, name).unwrap(), public)
    }

    fn signed(value: Value, signer: &str, pair: &Ed25519KeyPair) -> PublishedKey {
        let mut object: CanonicalJsonObject = serde_json::from_value(value).unwrap();
        sign_json(signer, pair, &mut object).unwrap();
        PublishedKey::parse(&serde_json::to_string(&object).unwrap()).unwrap()
    }

    #[test]
    fn malformed_objects_are_refused() {
        let long = json!({"keys": "x".repeat(super::MAX_KEY_BYTES)}).to_string();
        for text in ["", "[]", "\"key\"", "{\"a\":1.5}", "{\"a\":9007199254740992}", &long] {
            assert!(
                matches!(PublishedKey::parse(text), Err(KeyError::Malformed(_))),
                "{text:.40}"
            );
        }
    }

    #[test]
    fn device_keys_belong_to_their_device() {
        let key = PublishedKey::parse(r#"{"user_id":"@a:x","device_id":"D"}"#).unwrap();
        for (user, device, expected) in [
            (user_id!("@a:x"), device_id!("D"), Ok(())),
            (user_id!("@b:x"), device_id!("D"), Err(KeyError::WrongOwner)),
            (user_id!("@a:x"), device_id!("E"), Err(KeyError::WrongOwner)),
        ] {
            assert_eq!(key.check_device(user, device), expected);
        }
    }

    #[test]
    fn cross_signing_keys_are_one_key_under_its_own_name() {
        let (_, public) = key_pair(None);
        let id = format!("ed25519:{public}");
        for (value, expected) in [
            (
                json!({"user_id": "@a:x", "usage": ["master"], "keys": {&id: &public}}),
                Ok(public.as_str()),
            ),
            (
                json!({"user_id": "@b:x", "usage": ["master"], "keys": {&id: &public}}),
                Err(KeyError::WrongOwner),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["self_signing"], "keys": {&id: &public}}),
                Err(KeyError::WrongUsage(KeyUsage::Master)),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["master"]}),
                Err(KeyError::NotOneKey),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["master"], "keys": {}}),
                Err(KeyError::NotOneKey),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["master"], "keys": {&id: &public, "ed25519:b": "b"}}),
                Err(KeyError::NotOneKey),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["master"], "keys": {"ed25519:other": &public}}),
                Err(KeyError::NotOneKey),
            ),
            (
                json!({"user_id": "@a:x", "usage": ["master"], "keys": {"ed25519:short": "short"}}),
                Err(KeyError::NotOneKey),
            ),
        ] {
            let key = PublishedKey::parse(&value.to_string()).unwrap();
            let result = key.check_cross_signing(user_id!("@a:x"), &KeyUsage::Master);
            assert_eq!(result, expected, "{value}");
        }
    }

    #[test]
    fn signatures_are_checked() {
        let alice = user_id!("@alice:x");
        let (pair, public) = key_pair(Some("DEVICE"));
        let (_, other) = key_pair(None);
        let mut key = signed(json!({"user_id": alice, "device_id": "DEVICE"}), alice.as_str(), &pair);
        assert_eq!(key.verify(alice, "DEVICE", &public), Ok(()));
        let invalid = KeyError::InvalidSignature("ed25519:DEVICE".to_owned());
        assert_eq!(key.verify(alice, "DEVICE", &other), Err(invalid.clone()));
        assert_eq!(key.verify(alice, "DEVICE", "not base64!"), Err(invalid.clone()));
        let missing = |id: &str| Err(KeyError::MissingSignature(id.to_owned()));
        assert_eq!(key.verify(alice, "OTHER", &public), missing("ed25519:OTHER"));
        assert_eq!(
            key.verify(user_id!("@bob:x"), "DEVICE", &public),
            missing("ed25519:DEVICE")
        );
        key.0.insert("device_id".to_owned(), "FORGED".into());
        assert_eq!(key.verify(alice, "DEVICE", &public), Err(invalid));
    }

    #[test]
    fn viewers_see_the_owners_and_their_own_signatures() {
        let (alice, bob, carol) = (user_id!("@alice:x"), user_id!("@bob:x"), user_id!("@carol:y"));
        let mut key = PublishedKey::parse(r#"{"user_id":"@alice:x","signatures":7}"#).unwrap();
        for signer in [alice, bob, carol] {
            key.add_signature(&KeySignature {
                signer: signer.to_string(),
                key_id: "ed25519:K".to_owned(),
                signature: "s".to_owned(),
            });
        }
        for (viewer, expected) in [
            (Some(alice), vec![alice]),
            (Some(bob), vec![alice, bob]),
            (Some(carol), vec![alice, carol]),
            (None, vec![alice]),
        ] {
            let mut shown = key.clone();
            shown.keep_visible(alice, viewer);
            let seen: Vec<_> = [alice, bob, carol]
                .into_iter()
                .filter(|signer| shown.signatures_by(signer).next().is_some())
                .collect();
            assert_eq!(seen, expected, "{viewer:?}");
            assert!(shown.is_same_key(&key));
        }
    }

    #[test]
    fn names_stand_beside_the_key() {
        let key = PublishedKey::parse(r#"{"user_id":"@a:x","unsigned":{"device_display_name":"forged"}}"#).unwrap();
        assert_eq!(key.clone().shown(None).unwrap(), r#"{"user_id":"@a:x"}"#);
        assert_eq!(
            key.shown(Some("Phone".to_owned())).unwrap(),
            r#"{"unsigned":{"device_display_name":"Phone"},"user_id":"@a:x"}"#
        );
    }
}
