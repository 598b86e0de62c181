//! Dehydrated devices (MSC3814): a device that sleeps on the server, encrypted, and gets keys sent while its user has no
//! client. The server cannot wake it; a client of the user can.

use kith_store::{DehydratedDevice, Seq, WriteTxn};
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, UserId, api::client::dehydrated_device::DehydratedDeviceData,
    api::error::ErrorKind, events::AnyToDeviceEvent, exports::http::StatusCode, serde::Raw,
};

use super::{KeyUpload, Keys, announce, upload::CheckedUpload};
use crate::{
    Error,
    homeserver::{Context, Session},
};

/// The largest sleeping device accepted, in bytes.
const MAX_DATA_BYTES: usize = 256 * 1024;

/// Messages handed out at once.
const MESSAGES: usize = 100;

/// A device to put to sleep.
pub struct NewDehydratedDevice {
    /// The device; not one that a client uses.
    pub device_id: OwnedDeviceId,
    /// What others see it called.
    pub display_name: Option<String>,
    /// What a client needs to wake it.
    pub data: Raw<DehydratedDeviceData>,
    /// The keys that it publishes.
    pub keys: KeyUpload,
}

impl Keys {
    /// Puts a device to sleep; an earlier one of the user is gone by that.
    ///
    /// Refuses with `M_INVALID_PARAM` a device that a client uses, and keys that are not the device's.
    pub async fn put_dehydrated_device(&self, user: OwnedUserId, device: NewDehydratedDevice) -> Result<(), Error> {
        let data = device.data.json().get().to_owned();
        if data.len() > MAX_DATA_BYTES {
            return Err(too_large());
        }
        device
            .data
            .deserialize()
            .map_err(|error| Error::bad_json(error.to_string()))?;
        let session = Session {
            user_id: user,
            device_id: device.device_id,
        };
        let keys = CheckedUpload::new(&session, device.keys)?;
        let (ctx, name) = (self.ctx.clone(), device.display_name);
        let servers = self
            .ctx
            .store
            .write(move |txn| {
                let (user, device) = (&session.user_id, &session.device_id);
                let mut servers = remove(txn, &ctx, user)?;
                if txn.device(user, device)?.is_some() {
                    return Err(Error::invalid_param("a client uses the device"));
                }
                txn.log_device_in(user, device, name.as_deref(), ctx.world.now())?;
                txn.set_dehydrated_device(user, device, &data)?;
                servers.extend(keys.save(txn, &ctx, &session)?);
                Ok(servers)
            })
            .await?;
        self.outbox.wake(servers);
        Ok(())
    }

    /// The user's sleeping device; `M_NOT_FOUND` without.
    pub async fn dehydrated_device(&self, user: OwnedUserId) -> Result<DehydratedDevice, Error> {
        let found = self.ctx.store.read(move |txn| txn.dehydrated_device(&user)).await?;
        found.ok_or_else(no_such_device)
    }

    /// Deletes the user's sleeping device with its keys and messages; `M_NOT_FOUND` without.
    pub async fn delete_dehydrated_device(&self, user: OwnedUserId) -> Result<OwnedDeviceId, Error> {
        let ctx = self.ctx.clone();
        let (device, servers) = self
            .ctx
            .store
            .write(move |txn| {
                let held = txn.dehydrated_device(&user)?.ok_or_else(no_such_device)?;
                let servers = remove(txn, &ctx, &user)?;
                Ok::<_, Error>((held.device_id, servers))
            })
            .await?;
        self.outbox.wake(servers);
        Ok(device)
    }

    /// The messages that the sleeping device got after a place, and the place after them. They stay until the device is
    /// deleted: a client that fails while it wakes the device begins again.
    pub async fn dehydrated_messages(
        &self,
        user: OwnedUserId,
        device: OwnedDeviceId,
        after: Seq,
    ) -> Result<(Vec<Raw<AnyToDeviceEvent>>, Seq), Error> {
        self.ctx
            .store
            .read(move |txn| {
                let held = txn.dehydrated_device(&user)?;
                if held.is_none_or(|held| held.device_id != device) {
                    return Err(no_such_device());
                }
                let messages = txn.to_device_messages(&user, &device, after, txn.last_seq()?, MESSAGES)?;
                let next = messages.last().map_or(after, |message| message.seq);
                Ok((messages.into_iter().map(|message| message.event).collect(), next))
            })
            .await
    }
}

/// Removes the user's sleeping device, if there is one.
fn remove(txn: &WriteTxn<'_>, ctx: &Context, user: &UserId) -> Result<Vec<OwnedServerName>, Error> {
    let Some(held) = txn.dehydrated_device(user)? else {
        return Ok(Vec::new());
    };
    let servers = match txn.delete_device_keys(user, &held.device_id)? {
        true => announce::device_changed(txn, ctx, user, &held.device_id)?,
        false => Vec::new(),
    };
    txn.delete_device(user, &held.device_id)?;
    Ok(servers)
}

fn no_such_device() -> Error {
    Error::not_found("there is no such dehydrated device")
}

fn too_large() -> Error {
    Error::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::TooLarge,
        format!("a dehydrated device has at most {MAX_DATA_BYTES} bytes"),
    )
}
