//! A device publishes its keys. Uploading the same again changes nothing; a one-time key is never replaced.

use std::collections::BTreeMap;

use kith_engine::encryption::PublishedKey;
use kith_store::WriteTxn;
use ruma::{
    CanonicalJsonValue, OneTimeKeyAlgorithm, OwnedOneTimeKeyId, OwnedServerName, UInt,
    api::error::ErrorKind,
    encryption::{DeviceKeys, OneTimeKey},
    exports::http::StatusCode,
    serde::Raw,
};

use super::{Keys, announce, key_refused};
use crate::{
    Error,
    homeserver::{Context, Session},
};

/// The largest one-time or fallback key accepted, in bytes.
const MAX_ONE_TIME_KEY_BYTES: usize = 4 * 1024;

/// One-time keys that may wait for one device. Clients keep up to 100.
const MAX_ONE_TIME_KEYS: u64 = 1_000;

/// What a device publishes in one go.
#[derive(Default)]
pub struct KeyUpload {
    /// Its identity keys.
    pub device_keys: Option<Raw<DeviceKeys>>,
    /// Keys that are handed out once.
    pub one_time_keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>,
    /// Keys that are handed out when no one-time key is left, one of each algorithm.
    pub fallback_keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>,
}

/// An upload whose parts are well formed.
pub(super) struct CheckedUpload {
    device_keys: Option<PublishedKey>,
    one_time_keys: Vec<(OwnedOneTimeKeyId, String)>,
    fallback_keys: Vec<(OwnedOneTimeKeyId, String)>,
}

impl Keys {
    /// Publishes a device's keys and returns how many one-time keys it has left. All of them are kept, or none.
    ///
    /// Refuses with `M_INVALID_PARAM` keys of another device, and a one-time key under an id that has another key.
    pub async fn upload(
        &self,
        session: Session,
        upload: KeyUpload,
    ) -> Result<BTreeMap<OneTimeKeyAlgorithm, UInt>, Error> {
        let upload = CheckedUpload::new(&session, upload)?;
        let ctx = self.ctx.clone();
        let (counts, servers) = self
            .ctx
            .store
            .write(move |txn| {
                let servers = upload.save(txn, &ctx, &session)?;
                let counts = txn.one_time_key_counts(&session.user_id, &session.device_id)?;
                Ok::<_, Error>((counts, servers))
            })
            .await?;
        self.outbox.wake(servers);
        Ok(counts)
    }
}

impl CheckedUpload {
    pub(super) fn new(session: &Session, upload: KeyUpload) -> Result<Self, Error> {
        let device_keys = upload
            .device_keys
            .map(|raw| {
                let key = PublishedKey::parse(raw.json().get()).map_err(key_refused)?;
                key.check_device(&session.user_id, &session.device_id)
                    .map_err(key_refused)?;
                raw.deserialize().map_err(|error| Error::bad_json(error.to_string()))?;
                Ok::<_, Error>(key)
            })
            .transpose()?;
        Ok(Self {
            device_keys,
            one_time_keys: canonical(upload.one_time_keys)?,
            fallback_keys: canonical(upload.fallback_keys)?,
        })
    }

    /// Keeps the upload; returns the servers for which it queued something.
    pub(super) fn save(
        &self,
        txn: &WriteTxn<'_>,
        ctx: &Context,
        session: &Session,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let (user, device) = (&session.user_id, &session.device_id);
        if txn.device(user, device)?.is_none() {
            return Err(Error::forbidden("the device is logged out"));
        }
        let changed = match &self.device_keys {
            Some(key) => save_device_keys(txn, session, key)?,
            None => false,
        };
        self.save_one_time_keys(txn, session)?;
        for (id, key) in &self.fallback_keys {
            // The same key again does not become unused by that.
            if txn.fallback_key(user, device, &id.algorithm())? != Some((id.clone(), key.clone())) {
                txn.set_fallback_key(user, device, id, key)?;
            }
        }
        if changed {
            announce::device_changed(txn, ctx, user, device)
        } else {
            Ok(Vec::new())
        }
    }

    fn save_one_time_keys(&self, txn: &WriteTxn<'_>, session: &Session) -> Result<(), Error> {
        if self.one_time_keys.is_empty() {
            return Ok(());
        }
        let (user, device) = (&session.user_id, &session.device_id);
        for (id, key) in &self.one_time_keys {
            match txn.one_time_key(user, device, id)? {
                None => txn.add_one_time_key(user, device, id, key)?,
                // Uploaded before, perhaps even handed out since: the client has only missed the answer.
                Some(known) if known.key == *key => {}
                // The wording is what matrix-rust-sdk recognises.
                Some(_) => {
                    let message = format!("One time key {id} already exists with another value");
                    return Err(Error::invalid_param(message));
                }
            }
        }
        let total: u64 = txn
            .one_time_key_counts(user, device)?
            .values()
            .map(|count| u64::from(*count))
            .sum();
        if total > MAX_ONE_TIME_KEYS {
            let message = format!("a device has at most {MAX_ONE_TIME_KEYS} one-time keys");
            return Err(Error::invalid_param(message));
        }
        Ok(txn.forget_old_claims(user, device)?)
    }
}

/// Keeps a device's identity keys; returns whether that changed anything.
fn save_device_keys(txn: &WriteTxn<'_>, session: &Session, key: &PublishedKey) -> Result<bool, Error> {
    let (user, device) = (&session.user_id, &session.device_id);
    // Client-server API, "Cross-signing": device ids and cross-signing keys share a name space.
    if txn.is_cross_signing_key(user, device.as_str())? {
        return Err(Error::forbidden(
            "the device id is one of the user's cross-signing keys",
        ));
    }
    let json = key.to_json().map_err(key_refused)?;
    match txn.device_keys(user, device)? {
        Some(known) if known == json => return Ok(false),
        Some(known) => {
            let known = PublishedKey::parse(&known).map_err(super::show::corrupt)?;
            if !known.is_same_key(key) {
                // Whatever was signed by or for the old identity is worth nothing for the new one.
                txn.delete_signatures_on(user, device.as_str())?;
                txn.delete_one_time_keys(user, device)?;
            }
        }
        None => {}
    }
    txn.set_device_keys(user, device, &json)?;
    Ok(true)
}

/// One-time keys in canonical JSON, so that equal ones are equal texts. Each is an object, or text (unsigned algorithms).
fn canonical(keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>) -> Result<Vec<(OwnedOneTimeKeyId, String)>, Error> {
    let canonical = |key: Raw<OneTimeKey>| {
        let text = key.json().get();
        if text.len() > MAX_ONE_TIME_KEY_BYTES {
            return Err(too_large());
        }
        let malformed = |error: serde_json::Error| Error::bad_json(error.to_string());
        let value: CanonicalJsonValue = serde_json::from_str(text).map_err(malformed)?;
        if value.as_object().is_none() && value.as_str().is_none() {
            return Err(Error::bad_json("a one-time key is neither an object nor text"));
        }
        serde_json::to_string(&value).map_err(malformed)
    };
    keys.into_iter().map(|(id, key)| Ok((id, canonical(key)?))).collect()
}

fn too_large() -> Error {
    Error::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::TooLarge,
        format!("a one-time key has at most {MAX_ONE_TIME_KEY_BYTES} bytes"),
    )
}
