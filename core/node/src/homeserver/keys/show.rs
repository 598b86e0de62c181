//! Puts stored keys together with the signatures that a viewer may see. It changes nothing and asks nobody.

use std::collections::BTreeMap;

use kith_engine::encryption::{KeyError, PublishedKey};
use kith_store::{DeviceRow, ReadTxn, StoreError};
use ruma::{
    DeviceId, OwnedDeviceId, UserId,
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage},
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::Error;

/// The stored key of a device as a viewer sees it; none: another server.
pub(super) fn device_keys(
    txn: &ReadTxn<'_>,
    owner: &UserId,
    device: &DeviceId,
    key: PublishedKey,
    viewer: Option<&UserId>,
    display_name: Option<String>,
) -> Result<Raw<DeviceKeys>, Error> {
    Ok(Raw::from_json(shown(
        txn,
        owner,
        device.as_str(),
        key,
        viewer,
        display_name,
    )?))
}

/// Devices as a viewer sees them: all, or those asked for.
pub(super) fn devices(
    txn: &ReadTxn<'_>,
    owner: &UserId,
    rows: Vec<DeviceRow>,
    wanted: &[OwnedDeviceId],
    viewer: Option<&UserId>,
) -> Result<BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>, Error> {
    let mut devices = BTreeMap::new();
    for row in rows {
        if !wanted.is_empty() && !wanted.contains(&row.device_id) {
            continue;
        }
        let key = PublishedKey::parse(&row.keys).map_err(corrupt)?;
        let keys = device_keys(txn, owner, &row.device_id, key, viewer, row.display_name)?;
        devices.insert(row.device_id, keys);
    }
    Ok(devices)
}

/// A cross-signing key as a viewer sees it.
pub(super) fn cross_signing_key(
    txn: &ReadTxn<'_>,
    owner: &UserId,
    usage: &KeyUsage,
    viewer: Option<&UserId>,
) -> Result<Option<Raw<CrossSigningKey>>, Error> {
    let Some(row) = txn.cross_signing_key(owner, usage)? else {
        return Ok(None);
    };
    let key = PublishedKey::parse(&row.key).map_err(corrupt)?;
    let json = shown(txn, owner, &row.public, key, viewer, None)?;
    Ok(Some(Raw::from_json(json)))
}

fn shown(
    txn: &ReadTxn<'_>,
    owner: &UserId,
    name: &str,
    mut key: PublishedKey,
    viewer: Option<&UserId>,
    display_name: Option<String>,
) -> Result<Box<RawValue>, Error> {
    for signature in txn.key_signatures(owner, name)? {
        key.add_signature(&signature);
    }
    key.keep_visible(owner, viewer);
    let json = key.shown(display_name).map_err(corrupt)?;
    RawValue::from_string(json).map_err(|error| Error::Internal("a key did not serialise", Some(Box::new(error))))
}

/// What is stored was checked before; if it does not parse, the database is to blame.
pub(super) fn corrupt(error: KeyError) -> Error {
    StoreError::Corrupt {
        what: "published key",
        reason: error.to_string(),
    }
    .into()
}
