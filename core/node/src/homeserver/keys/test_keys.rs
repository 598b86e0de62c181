//! Keys that really sign, for tests.

use ruma::{
    CanonicalJsonObject,
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::testing::{Client, Node};

/// An Ed25519 key pair.
pub(crate) struct TestKey {
    document: Vec<u8>,
    /// The public half in unpadded base64.
    pub(crate) public: String,
}

impl TestKey {
    pub(crate) fn new() -> Self {
        let document = Ed25519KeyPair::generate().to_vec();
        let pair = Ed25519KeyPair::from_der(&document, "x".to_owned()).unwrap();
        let public = Base64::<Standard, _>::new(pair.public_key()).encode();
        Self { document, public }
    }

    /// Signs an object as `ed25519:<name>` of a user.
    pub(crate) fn sign(&self, object: Value, user: &str, name: &str) -> Value {
        let pair = Ed25519KeyPair::from_der(&self.document, name.to_owned()).unwrap();
        let mut object: CanonicalJsonObject = serde_json::from_value(object).unwrap();
        sign_json(user, &pair, &mut object).unwrap();
        serde_json::to_value(object).unwrap()
    }

    /// Signs an object under the key's own public half, as cross-signing keys do.
    pub(crate) fn cross_sign(&self, object: Value, user: &str) -> Value {
        self.sign(object, user, &self.public)
    }

    /// This key as a cross-signing key of a user.
    pub(crate) fn as_cross_signing(&self, user: &str, usage: &str) -> Value {
        json!({"user_id": user, "usage": [usage], "keys": {format!("ed25519:{}", self.public): self.public}})
    }

    /// This key as a client's device keys, signed by itself.
    pub(crate) fn as_device(&self, client: &Client) -> Value {
        let (user, device) = (&client.user_id, &client.device_id);
        let keys = json!({
            "user_id": user,
            "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {format!("curve25519:{device}"): "curve", format!("ed25519:{device}"): self.public},
        });
        self.sign(keys, user, device)
    }
}

/// A user's cross-signing keys.
pub(crate) struct TestIdentity {
    pub(crate) master: TestKey,
    pub(crate) self_signing: TestKey,
    pub(crate) user_signing: TestKey,
}

impl TestIdentity {
    pub(crate) fn new() -> Self {
        Self {
            master: TestKey::new(),
            self_signing: TestKey::new(),
            user_signing: TestKey::new(),
        }
    }

    /// The body of `/keys/device_signing/upload`.
    pub(crate) fn upload(&self, user: &str) -> Value {
        let signed = |key: &TestKey, usage| self.master.cross_sign(key.as_cross_signing(user, usage), user);
        json!({
            "master_key": self.master.as_cross_signing(user, "master"),
            "self_signing_key": signed(&self.self_signing, "self_signing"),
            "user_signing_key": signed(&self.user_signing, "user_signing"),
        })
    }
}

/// One-time keys with these names, as `/keys/upload` takes them.
pub(crate) fn one_time_keys(names: impl IntoIterator<Item = String>) -> Value {
    let keys = names.into_iter().map(|name| {
        let key = json!({"key": format!("public half of {name}"), "signatures": {}});
        (format!("signed_curve25519:{name}"), key)
    });
    Value::Object(keys.collect())
}

/// A client of a node that was started again.
pub(crate) fn again_at(node: &Node, client: &Client) -> Client {
    let mut again = node.client();
    again.token.clone_from(&client.token);
    again.user_id.clone_from(&client.user_id);
    again.device_id.clone_from(&client.device_id);
    again
}
