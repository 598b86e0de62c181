//! Key documents (`protocol.md` section 1): which node keys may sign for a server. A [`KeyDocument`] in hand has been
//! verified; there is no unverified one.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId,
    SigningKeyAlgorithm, UInt,
    serde::Base64,
    signatures::{self, PublicKeySet},
};
use serde::{Deserialize, Serialize};

use crate::{IdentityKey, IdentityPublicKey, KeyError, NameError, NodePublicKey, PublicKey, key_id};

/// The key id under which the identity key signs key documents.
pub const ROOT_KEY_ID: &str = "ed25519:root";

/// Why bytes are not a key document, or a document cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document exceeds [`KeyDocument::MAX_BYTES`].
    #[error("a key document has at most {limit} bytes", limit = KeyDocument::MAX_BYTES)]
    TooLarge,
    /// It is not a JSON object of the right shape.
    #[error("malformed key document: {0}")]
    Malformed(String),
    /// Its server name is not one of ours.
    #[error("the key document's server name is unusable")]
    Name(#[from] NameError),
    /// The identity key's signature is missing or does not hold.
    #[error("the key document is not signed by its server's identity key")]
    Signature,
    /// A key in it is unusable.
    #[error("key {id} of the key document is unusable")]
    Key {
        /// The key id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// A key stands under an id that is not its own, twice, or without its other half.
    #[error("key {0} of the key document is listed wrongly")]
    Listing(String),
    /// The document is another identity's.
    #[error("the key document belongs to another identity")]
    OtherIdentity,
    /// The node to revoke is not listed as current.
    #[error("no current node has key {0}")]
    NoSuchNode(OwnedServerSigningKeyId),
    /// Another node's key has the same key id (8 characters of it agree).
    #[error("key id {0} is taken")]
    Taken(OwnedServerSigningKeyId),
}

/// A node that may sign now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its public keys.
    pub key: NodePublicKey,
    /// When it was added.
    pub added_ts: MilliSecondsSinceUnixEpoch,
}

/// A node key that was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldKey {
    /// The signing key.
    pub key: PublicKey,
    /// When it stopped to count.
    pub expired_ts: MilliSecondsSinceUnixEpoch,
}

/// How a document lists a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// It signs.
    Current(NodeEntry),
    /// It signed until it was revoked.
    Revoked(OldKey),
}

/// A verified key document. Cheap enough to clone; at most 3.5 KiB of JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDocument {
    identity: IdentityPublicKey,
    version: u64,
    valid_until: MilliSecondsSinceUnixEpoch,
    nodes: BTreeMap<OwnedServerSigningKeyId, NodeEntry>,
    old: BTreeMap<OwnedServerSigningKeyId, OldKey>,
    /// The whole signed object, with whatever a newer version of Kith may have added.
    object: CanonicalJsonObject,
}

/// The JSON, of which only the fields that are known here are read.
#[derive(Serialize, Deserialize)]
struct Wire {
    server_name: String,
    valid_until_ts: UInt,
    verify_keys: BTreeMap<OwnedServerSigningKeyId, WireKey>,
    #[serde(default)]
    old_verify_keys: BTreeMap<OwnedServerSigningKeyId, WireOldKey>,
    kith: WireKith,
}

#[derive(Serialize, Deserialize)]
struct WireKey {
    key: Base64,
}

#[derive(Serialize, Deserialize)]
struct WireOldKey {
    key: Base64,
    expired_ts: UInt,
}

#[derive(Serialize, Deserialize)]
struct WireKith {
    version: UInt,
    nodes: BTreeMap<OwnedServerSigningKeyId, WireNode>,
}

#[derive(Serialize, Deserialize)]
struct WireNode {
    seal: Base64,
    added_ts: UInt,
}

impl KeyDocument {
    /// Bytes of canonical JSON at the most: what fits a sealed DHT record. About 18 nodes, or 30 old keys.
    pub const MAX_BYTES: usize = 3584;

    /// The first document of an identity, with one node. Versions start at 1.
    pub fn new(
        identity: &IdentityKey,
        node: &NodePublicKey,
        now: MilliSecondsSinceUnixEpoch,
        valid_until: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, DocumentError> {
        let entry = NodeEntry {
            key: *node,
            added_ts: now,
        };
        let nodes = BTreeMap::from([(node.key_id(), entry)]);
        sign(identity, 1, valid_until, &nodes, &BTreeMap::new())
    }

    /// The document of an identity that was restored from its phrase, without the documents it had: its version is the
    /// time in seconds, which is above any that was counted up from 1, so that it wins over them.
    pub fn restored(
        identity: &IdentityKey,
        node: &NodePublicKey,
        now: MilliSecondsSinceUnixEpoch,
        valid_until: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, DocumentError> {
        let first = Self::new(identity, node, now, valid_until)?;
        sign(
            identity,
            u64::from(now.as_secs()),
            valid_until,
            &first.nodes,
            &first.old,
        )
    }

    /// Reads and verifies a document: size, shape, keys, key ids and the identity key's signature.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        if json.len() > Self::MAX_BYTES {
            return Err(DocumentError::TooLarge);
        }
        Self::from_object(serde_json::from_slice(json).map_err(malformed)?)
    }

    /// As [`KeyDocument::parse`], of JSON that is parsed already.
    pub fn from_object(object: CanonicalJsonObject) -> Result<Self, DocumentError> {
        let json = serde_json::to_string(&object).map_err(malformed)?;
        if json.len() > Self::MAX_BYTES {
            return Err(DocumentError::TooLarge);
        }
        let wire: Wire = serde_json::from_str(&json).map_err(malformed)?;
        let identity: IdentityPublicKey = wire.server_name.parse()?;
        verify_root_signature(&identity, &object)?;

        let (nodes, old) = read_keys(&wire)?;
        Ok(Self {
            identity,
            version: wire.kith.version.into(),
            valid_until: MilliSecondsSinceUnixEpoch(wire.valid_until_ts),
            nodes,
            old,
            object,
        })
    }

    /// Has an identity sign anything under its own name, as a stranger may, for a fuzzer.
    #[cfg(feature = "testing")]
    pub fn sign_anything(identity: &IdentityKey, mut object: CanonicalJsonObject) -> Result<Self, DocumentError> {
        object.insert("server_name".to_owned(), identity.public().to_string().into());
        sign_object(identity, object)
    }

    /// The next version, valid for longer.
    pub fn renew(
        &self,
        identity: &IdentityKey,
        valid_until: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, DocumentError> {
        self.check_identity(identity)?;
        sign(identity, self.version + 1, valid_until, &self.nodes, &self.old)
    }

    /// The next version, with one node more. A node that is listed already stays as it is.
    pub fn add_node(
        &self,
        identity: &IdentityKey,
        node: &NodePublicKey,
        now: MilliSecondsSinceUnixEpoch,
        valid_until: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, DocumentError> {
        self.check_identity(identity)?;
        let id = node.key_id();
        let mut nodes = self.nodes.clone();
        match (nodes.get(&id), self.old.get(&id)) {
            (None, None) => {
                let entry = NodeEntry {
                    key: *node,
                    added_ts: now,
                };
                nodes.insert(id, entry);
            }
            (Some(entry), _) if entry.key == *node => {}
            // A revoked key never comes back, and two keys never share an id.
            _ => return Err(DocumentError::Taken(id)),
        }
        sign(identity, self.version + 1, valid_until, &nodes, &self.old)
    }

    /// The next version, in which a node's key counts only for what was signed until `now`.
    pub fn revoke_node(
        &self,
        identity: &IdentityKey,
        id: &OwnedServerSigningKeyId,
        now: MilliSecondsSinceUnixEpoch,
        valid_until: MilliSecondsSinceUnixEpoch,
    ) -> Result<Self, DocumentError> {
        self.check_identity(identity)?;
        let (mut nodes, mut old) = (self.nodes.clone(), self.old.clone());
        let entry = nodes.remove(id).ok_or_else(|| DocumentError::NoSuchNode(id.clone()))?;
        let key = OldKey {
            key: entry.key.signing,
            expired_ts: now,
        };
        old.insert(id.clone(), key);
        sign(identity, self.version + 1, valid_until, &nodes, &old)
    }

    /// Whose document it is.
    pub fn identity(&self) -> IdentityPublicKey {
        self.identity
    }

    /// Whose document it is, as a server name.
    pub fn server_name(&self) -> OwnedServerName {
        self.identity.server_name()
    }

    /// The version; of two documents the higher one counts.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Until when its current keys verify events.
    pub fn valid_until(&self) -> MilliSecondsSinceUnixEpoch {
        self.valid_until
    }

    /// Whether to keep this document instead of `held`: it is the same server's, and its version is higher. Of two
    /// documents with the same version the one held stays.
    pub fn supersedes(&self, held: &Self) -> bool {
        self.identity == held.identity && self.version > held.version
    }

    /// The nodes that may sign now, by key id.
    pub fn nodes(&self) -> impl Iterator<Item = (&OwnedServerSigningKeyId, &NodeEntry)> {
        self.nodes.iter()
    }

    /// All key ids listed, current and revoked.
    pub fn key_ids(&self) -> impl Iterator<Item = &OwnedServerSigningKeyId> {
        self.nodes.keys().chain(self.old.keys())
    }

    /// How the document lists a key id, if at all.
    pub fn status(&self, id: &OwnedServerSigningKeyId) -> Option<KeyStatus> {
        let current = self.nodes.get(id).copied().map(KeyStatus::Current);
        current.or_else(|| self.old.get(id).copied().map(KeyStatus::Revoked))
    }

    /// The key that verifies something signed with `id` at `at`: a current key until the document ends, a revoked one
    /// until it expired (server-server API, "Validating hashes and signatures on received events").
    pub fn verifying_key(&self, id: &OwnedServerSigningKeyId, at: MilliSecondsSinceUnixEpoch) -> Option<PublicKey> {
        match self.status(id)? {
            KeyStatus::Current(node) if at <= self.valid_until => Some(node.key.signing),
            KeyStatus::Revoked(old) if at <= old.expired_ts => Some(old.key),
            _ => None,
        }
    }

    /// All keys that verify something signed at `at`, as ruma's verifying functions take them.
    pub fn public_key_set(&self, at: MilliSecondsSinceUnixEpoch) -> PublicKeySet {
        self.key_ids()
            .filter_map(|id| Some((id.to_string(), self.verifying_key(id, at)?.to_base64())))
            .collect()
    }

    /// The signed JSON object.
    pub fn object(&self) -> &CanonicalJsonObject {
        &self.object
    }

    /// The signed JSON object as canonical JSON.
    pub fn to_json(&self) -> String {
        CanonicalJsonValue::Object(self.object.clone()).to_string()
    }

    fn check_identity(&self, identity: &IdentityKey) -> Result<(), DocumentError> {
        if identity.public() == self.identity {
            Ok(())
        } else {
            Err(DocumentError::OtherIdentity)
        }
    }
}

fn malformed(error: serde_json::Error) -> DocumentError {
    DocumentError::Malformed(error.to_string())
}

type Keys = (
    BTreeMap<OwnedServerSigningKeyId, NodeEntry>,
    BTreeMap<OwnedServerSigningKeyId, OldKey>,
);

/// Builds the JSON, signs it, and reads it back through the checks that everyone else makes.
fn sign(
    identity: &IdentityKey,
    version: u64,
    valid_until: MilliSecondsSinceUnixEpoch,
    nodes: &BTreeMap<OwnedServerSigningKeyId, NodeEntry>,
    old: &BTreeMap<OwnedServerSigningKeyId, OldKey>,
) -> Result<KeyDocument, DocumentError> {
    let wire = Wire {
        server_name: identity.public().to_string(),
        valid_until_ts: valid_until.0,
        verify_keys: nodes.iter().map(|(id, node)| (id.clone(), wire_key(node))).collect(),
        old_verify_keys: old.iter().map(|(id, old)| (id.clone(), wire_old_key(old))).collect(),
        kith: WireKith {
            version: UInt::new_saturating(version),
            nodes: nodes.iter().map(|(id, node)| (id.clone(), wire_node(node))).collect(),
        },
    };
    let json = serde_json::to_string(&wire).map_err(malformed)?;
    sign_object(identity, serde_json::from_str(&json).map_err(malformed)?)
}

fn sign_object(identity: &IdentityKey, mut object: CanonicalJsonObject) -> Result<KeyDocument, DocumentError> {
    let text = signing_text(&object)?;
    let signature: Base64 = Base64::new(identity.sign(text.as_bytes()).to_vec());
    let by_key = CanonicalJsonObject::from([(ROOT_KEY_ID.to_owned(), signature.encode().into())]);
    let by_server = CanonicalJsonObject::from([(identity.public().to_string(), by_key.into())]);
    object.insert("signatures".to_owned(), by_server.into());
    KeyDocument::from_object(object)
}

fn wire_key(node: &NodeEntry) -> WireKey {
    WireKey {
        key: node.key.signing.to_base64(),
    }
}

fn wire_old_key(old: &OldKey) -> WireOldKey {
    WireOldKey {
        key: old.key.to_base64(),
        expired_ts: old.expired_ts.0,
    }
}

fn wire_node(node: &NodeEntry) -> WireNode {
    WireNode {
        seal: Base64::new(node.key.seal.to_vec()),
        added_ts: node.added_ts.0,
    }
}

fn signing_text(object: &CanonicalJsonObject) -> Result<String, DocumentError> {
    signatures::to_canonical_json_string_for_signing(object)
        .map_err(|error| DocumentError::Malformed(error.to_string()))
}

/// The signature by `ed25519:root`, whose key is the server name itself. Other signatures are allowed and mean nothing.
fn verify_root_signature(identity: &IdentityPublicKey, object: &CanonicalJsonObject) -> Result<(), DocumentError> {
    let signature = object
        .get("signatures")
        .and_then(|signatures| signatures.as_object()?.get(&identity.to_string()))
        .and_then(|by_key| by_key.as_object()?.get(ROOT_KEY_ID)?.as_str())
        .ok_or(DocumentError::Signature)?;
    let signature = Base64::<ruma::serde::base64::Standard>::parse(signature).map_err(|_| DocumentError::Signature)?;
    let signature = signature.as_bytes().try_into().map_err(|_| DocumentError::Signature)?;
    identity
        .public_key()
        .verify(signing_text(object)?.as_bytes(), signature)
        .map_err(|_| DocumentError::Signature)
}

/// Checks that every key stands under its own id, in exactly one list, and that each current key has its sealing half.
fn read_keys(wire: &Wire) -> Result<Keys, DocumentError> {
    let listing = |id: &OwnedServerSigningKeyId| DocumentError::Listing(id.to_string());
    let mut nodes = BTreeMap::new();
    for (id, WireKey { key }) in &wire.verify_keys {
        let signing = read_key(id, key)?;
        let node = wire.kith.nodes.get(id).ok_or_else(|| listing(id))?;
        let seal = node.seal.as_bytes().try_into().map_err(|_| listing(id))?;
        let entry = NodeEntry {
            key: NodePublicKey { signing, seal },
            added_ts: MilliSecondsSinceUnixEpoch(node.added_ts),
        };
        nodes.insert(id.clone(), entry);
    }
    if let Some(id) = wire.kith.nodes.keys().find(|id| !nodes.contains_key(*id)) {
        return Err(listing(id));
    }
    let mut old = BTreeMap::new();
    for (id, WireOldKey { key, expired_ts }) in &wire.old_verify_keys {
        if nodes.contains_key(id) {
            return Err(listing(id));
        }
        let entry = OldKey {
            key: read_key(id, key)?,
            expired_ts: MilliSecondsSinceUnixEpoch(*expired_ts),
        };
        old.insert(id.clone(), entry);
    }
    Ok((nodes, old))
}

fn read_key(id: &OwnedServerSigningKeyId, key: &Base64) -> Result<PublicKey, DocumentError> {
    let unusable = |source| DocumentError::Key {
        id: id.to_string(),
        source,
    };
    let key = PublicKey::from_base64(key).map_err(unusable)?;
    if id.algorithm() == SigningKeyAlgorithm::Ed25519 && *id == key_id(&key) {
        Ok(key)
    } else {
        Err(DocumentError::Listing(id.to_string()))
    }
}
