//! A user publishes signatures: of their own devices and master key, and of other users' master keys. Only signatures
//! that verify are kept; each key that fails is told by itself.

use std::collections::BTreeMap;

use kith_engine::encryption::{KeyError, KeySignature, PublishedKey};
use kith_store::{ReadTxn, WriteTxn};
use ruma::{
    DeviceId, OwnedServerName, OwnedUserId, UserId,
    api::client::keys::upload_signatures::v3::{Failure, SignedKeys},
    encryption::{CrossSigningKey, KeyUsage},
    serde::Raw,
};
use serde_json::json;

use super::{Keys, announce, limits, show};
use crate::{Error, homeserver::Context};

/// Signed keys looked at in one request; verifying one costs a tenth of a millisecond.
const MAX_KEYS: usize = 500;

/// For each user, the keys whose signatures were not kept, and why.
pub(crate) type Failures = BTreeMap<OwnedUserId, BTreeMap<String, Failure>>;

/// What a signature is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    OwnDevice,
    OwnMaster,
    OtherMaster,
}

/// Signatures that verified, on a key as it was published then.
struct Verified {
    owner: OwnedUserId,
    name: String,
    target: Target,
    signatures: Vec<KeySignature>,
}

/// Why a key's signatures are not kept.
enum Refusal {
    /// No such key is published.
    Unknown,
    Invalid(KeyError),
    /// The signed object is not the published one.
    Differs,
}

impl Keys {
    /// Keeps the signatures that `user` made on these keys.
    ///
    /// Client-server API, `/keys/signatures/upload`.
    pub async fn upload_signatures(
        &self,
        user: OwnedUserId,
        signed: BTreeMap<OwnedUserId, SignedKeys>,
    ) -> Result<Failures, Error> {
        if signed.values().map(|keys| keys.iter().count()).sum::<usize>() > MAX_KEYS {
            return Err(Error::invalid_param(format!("at most {MAX_KEYS} signed keys at once")));
        }
        let masters = self.untracked_masters(&signed).await?;
        let signer = user.clone();
        // Verifying is work for the readers: the writer has better to do.
        let (verified, failures) = self
            .ctx
            .store
            .read(move |txn| verify_all(txn, &signer, &signed, &masters))
            .await?;
        if !verified.is_empty() {
            let ctx = self.ctx.clone();
            let servers = self
                .ctx
                .store
                .write(move |txn| save_all(txn, &ctx, &user, &verified))
                .await?;
            self.outbox.wake(servers);
        }
        Ok(failures)
    }

    /// The master keys of users who are not tracked, because no room is shared with them, asked of their servers.
    async fn untracked_masters(
        &self,
        signed: &BTreeMap<OwnedUserId, SignedKeys>,
    ) -> Result<BTreeMap<OwnedUserId, Raw<CrossSigningKey>>, Error> {
        let remote = signed.keys().filter(|user| !self.ctx.is_local(user));
        let remote: Vec<OwnedUserId> = remote.cloned().collect();
        if remote.is_empty() {
            return Ok(BTreeMap::new());
        }
        let unknown: Vec<OwnedUserId> = self
            .ctx
            .store
            .read(move |txn| {
                let mut unknown = Vec::new();
                for user in remote {
                    if txn.cross_signing_key(&user, &KeyUsage::Master)?.is_none() {
                        unknown.push(user);
                    }
                }
                Ok::<_, Error>(unknown)
            })
            .await?;
        let mut masters = BTreeMap::new();
        for user in unknown {
            let query = BTreeMap::from([(user.clone(), Vec::new())]);
            // Without an answer the key stays unknown, which is what the client is told.
            if let Ok(answer) = self.ask(user.server_name(), query, limits(None)).await {
                masters.extend(answer.master_keys);
            }
        }
        Ok(masters)
    }
}

fn verify_all(
    txn: &ReadTxn<'_>,
    signer: &UserId,
    signed: &BTreeMap<OwnedUserId, SignedKeys>,
    masters: &BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
) -> Result<(Vec<Verified>, Failures), Error> {
    let (mut verified, mut failures) = (Vec::new(), Failures::new());
    for (owner, keys) in signed {
        for (name, json) in keys {
            let outcome = match PublishedKey::parse(json.get()) {
                Ok(key) if owner == signer => verify_own(txn, signer, name, &key)?,
                Ok(key) => verify_other(txn, signer, owner, name, &key, masters.get(owner))?,
                Err(error) => Err(Refusal::Invalid(error)),
            };
            match outcome {
                Ok((target, signatures)) => verified.push(Verified {
                    owner: owner.clone(),
                    name: name.to_owned(),
                    target,
                    signatures,
                }),
                Err(refusal) => {
                    let of_user = failures.entry(owner.clone()).or_default();
                    of_user.insert(name.to_owned(), failure(&refusal)?);
                }
            }
        }
    }
    Ok((verified, failures))
}

type Outcome = Result<(Target, Vec<KeySignature>), Refusal>;

/// Own keys: a device, signed by the self-signing key; or the master key, signed by devices.
fn verify_own(txn: &ReadTxn<'_>, user: &UserId, name: &str, key: &PublishedKey) -> Result<Outcome, Error> {
    let master = txn.cross_signing_key(user, &KeyUsage::Master)?;
    if let Some(master) = master.filter(|master| master.public == name) {
        let published = PublishedKey::parse(&master.key).map_err(show::corrupt)?;
        if !published.is_same_key(key) {
            return Ok(Err(Refusal::Differs));
        }
        return verify_by_devices(txn, user, key);
    }
    let Some(published) = txn.device_keys(user, <&DeviceId>::from(name))? else {
        return Ok(Err(Refusal::Unknown));
    };
    let published = PublishedKey::parse(&published).map_err(show::corrupt)?;
    if !published.is_same_key(key) {
        return Ok(Err(Refusal::Differs));
    }
    let signing_key = txn.cross_signing_key(user, &KeyUsage::SelfSigning)?;
    let signature = verify_one(key, user, signing_key.map(|row| row.public));
    Ok(signature.map(|signature| (Target::OwnDevice, vec![signature])))
}

/// Another user's master key, signed by the user-signing key.
fn verify_other(
    txn: &ReadTxn<'_>,
    user: &UserId,
    owner: &UserId,
    name: &str,
    key: &PublishedKey,
    asked: Option<&Raw<CrossSigningKey>>,
) -> Result<Outcome, Error> {
    let held = txn.cross_signing_key(owner, &KeyUsage::Master)?;
    let published = match (&held, asked) {
        (Some(row), _) => Some(PublishedKey::parse(&row.key).map_err(show::corrupt)?),
        (None, Some(raw)) => PublishedKey::parse(raw.json().get()).ok(),
        (None, None) => None,
    };
    let published = published.filter(|published| published.ed25519(name).is_some());
    let Some(published) = published else {
        return Ok(Err(Refusal::Unknown));
    };
    if !published.is_same_key(key) {
        return Ok(Err(Refusal::Differs));
    }
    let signing_key = txn.cross_signing_key(user, &KeyUsage::UserSigning)?;
    let signature = verify_one(key, user, signing_key.map(|row| row.public));
    Ok(signature.map(|signature| (Target::OtherMaster, vec![signature])))
}

fn verify_one(key: &PublishedKey, signer: &UserId, signing_key: Option<String>) -> Result<KeySignature, Refusal> {
    let public = signing_key.ok_or(Refusal::Unknown)?;
    key.verify(signer, &public, &public).map_err(Refusal::Invalid)?;
    let key_id = format!("ed25519:{public}");
    let found = key.signatures_by(signer).find(|(id, _)| *id == key_id);
    let (_, signature) = found.ok_or_else(|| Refusal::Invalid(KeyError::MissingSignature(key_id.clone())))?;
    Ok(KeySignature {
        signer: signer.to_string(),
        signature: signature.to_owned(),
        key_id,
    })
}

/// The signatures that the user's devices made on the master key: at least one, and all of them valid. Those of keys that
/// are no device are passed over: they came with the master key and stay with it.
fn verify_by_devices(txn: &ReadTxn<'_>, user: &UserId, key: &PublishedKey) -> Result<Outcome, Error> {
    let mut signatures = Vec::new();
    for (key_id, signature) in key.signatures_by(user) {
        let Some(device) = key_id.strip_prefix("ed25519:") else {
            continue;
        };
        let Some(keys) = txn.device_keys(user, <&DeviceId>::from(device))? else {
            continue;
        };
        let keys = PublishedKey::parse(&keys).map_err(show::corrupt)?;
        let Some(public) = keys.ed25519(device) else { continue };
        if let Err(error) = key.verify(user, device, public) {
            return Ok(Err(Refusal::Invalid(error)));
        }
        signatures.push(KeySignature {
            signer: user.to_string(),
            key_id: key_id.to_owned(),
            signature: signature.to_owned(),
        });
    }
    if signatures.is_empty() {
        let missing = KeyError::MissingSignature("any of the user's devices".to_owned());
        return Ok(Err(Refusal::Invalid(missing)));
    }
    Ok(Ok((Target::OwnMaster, signatures)))
}

/// Keeps signatures and tells of them. A key that was replaced since they verified only makes them useless.
fn save_all(
    txn: &WriteTxn<'_>,
    ctx: &Context,
    user: &UserId,
    verified: &[Verified],
) -> Result<Vec<OwnedServerName>, Error> {
    let mut servers = Vec::new();
    for key in verified {
        let mut changed = false;
        for signature in &key.signatures {
            changed |= txn.add_key_signature(&key.owner, &key.name, signature)?;
        }
        if !changed {
            continue;
        }
        match key.target {
            Target::OwnDevice => {
                servers.extend(announce::device_changed(txn, ctx, user, <&DeviceId>::from(&*key.name))?);
            }
            Target::OwnMaster => servers.extend(announce::cross_signing_changed(txn, ctx, user)?),
            // Nobody else may see it.
            Target::OtherMaster => txn.note_device_list_change_for(user, &key.owner)?,
        }
    }
    servers.sort_unstable();
    servers.dedup();
    Ok(servers)
}

fn failure(refusal: &Refusal) -> Result<Failure, Error> {
    let (errcode, error) = match refusal {
        Refusal::Unknown => ("M_NOT_FOUND", "there is no such key".to_owned()),
        Refusal::Invalid(error) => ("M_INVALID_SIGNATURE", error.to_string()),
        Refusal::Differs => (
            "M_INVALID_SIGNATURE",
            "the signed key is not the published one".to_owned(),
        ),
    };
    serde_json::from_value(json!({"errcode": errcode, "error": error}))
        .map_err(|error| Error::Internal("a failure did not serialise", Some(Box::new(error))))
}
