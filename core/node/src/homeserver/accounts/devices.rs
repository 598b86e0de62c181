//! Devices of this node's users: list, rename, remove. What encryption makes of a change is told by a hook.

use std::sync::Arc;

use kith_store::{Device, WriteTxn};
use ruma::{DeviceId, OwnedDeviceId, OwnedServerName, UserId};

use super::{Accounts, Session};
use crate::Error;

/// The longest name a device may have, in bytes.
const LONGEST_NAME: usize = 1024;

/// What happened to a user's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChange<'a> {
    /// A device has a new display name.
    Renamed(&'a DeviceId),
    /// These devices are about to go, in the same write; what hangs on them must go too.
    Removed(&'a [OwnedDeviceId]),
}

/// Hears of changes to devices, in the same write. Encryption stands behind it: it removes keys and tells other servers.
pub trait DeviceChanges: Send + Sync {
    /// Runs inside the write that makes the change. Returns the servers that have something queued by it.
    fn devices_changed(
        &self,
        txn: &WriteTxn<'_>,
        user_id: &UserId,
        change: DeviceChange<'_>,
    ) -> Result<Vec<OwnedServerName>, Error>;

    /// Runs after the commit, with the servers that [`Self::devices_changed`] returned.
    fn wake(&self, servers: Vec<OwnedServerName>);
}

/// Removes devices and whatever the hook hangs on them.
pub(super) fn remove(
    txn: &WriteTxn<'_>,
    hook: Option<&dyn DeviceChanges>,
    user_id: &UserId,
    devices: &[OwnedDeviceId],
) -> Result<Vec<OwnedServerName>, Error> {
    let mut known = Vec::with_capacity(devices.len());
    for device_id in devices {
        if txn.device(user_id, device_id)?.is_some() {
            known.push(device_id.clone());
        }
    }
    let servers = match hook {
        Some(hook) if !known.is_empty() => hook.devices_changed(txn, user_id, DeviceChange::Removed(&known))?,
        _ => Vec::new(),
    };
    for device_id in &known {
        txn.delete_device(user_id, device_id)?;
    }
    Ok(servers)
}

impl Accounts {
    /// Connects who must hear of changes to devices. Only the first call counts.
    pub fn on_device_changes(&self, hook: Arc<dyn DeviceChanges>) {
        if self.inner.device_changes.set(hook).is_err() {
            tracing::error!("device changes already have a listener");
        }
    }

    /// All devices of a user, by id.
    pub async fn devices(&self, user_id: &UserId) -> Result<Vec<Device>, Error> {
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.devices(&user_id)?))
            .await
    }

    /// One device of a user; `M_NOT_FOUND` without.
    pub async fn device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Device, Error> {
        let (user, device) = (user_id.to_owned(), device_id.to_owned());
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.device(&user, &device)?))
            .await?
            .ok_or_else(no_such_device)
    }

    /// Sets a device's display name.
    pub async fn rename_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        name: Option<String>,
    ) -> Result<(), Error> {
        if name.as_ref().is_some_and(|name| name.len() > LONGEST_NAME) {
            return Err(Error::invalid_param(format!(
                "a device name has at most {LONGEST_NAME} bytes"
            )));
        }
        let (user, device, hook) = (user_id.to_owned(), device_id.to_owned(), self.device_changes());
        let servers = self
            .ctx
            .store
            .write(move |txn| {
                // The endpoint leaves a name that it is not given as it was.
                let found = match name {
                    Some(name) => txn.rename_device(&user, &device, Some(&name))?,
                    None => {
                        return txn
                            .device(&user, &device)?
                            .map(|_| Vec::new())
                            .ok_or_else(no_such_device);
                    }
                };
                match hook {
                    _ if !found => Err(no_such_device()),
                    Some(hook) => hook.devices_changed(txn, &user, DeviceChange::Renamed(&device)),
                    None => Ok(Vec::new()),
                }
            })
            .await?;
        self.wake(servers);
        Ok(())
    }

    /// Removes devices of a user, logging them out. Unknown ones are passed over.
    pub async fn delete_devices(&self, user_id: &UserId, devices: Vec<OwnedDeviceId>) -> Result<(), Error> {
        let (user, hook) = (user_id.to_owned(), self.device_changes());
        let servers = self
            .ctx
            .store
            .write(move |txn| remove(txn, hook.as_deref(), &user, &devices))
            .await?;
        self.inner.cache.forget_user(user_id);
        self.wake(servers);
        Ok(())
    }

    /// Ends one session: the device goes.
    pub async fn log_out(&self, session: &Session) -> Result<(), Error> {
        self.delete_devices(&session.user_id, vec![session.device_id.clone()])
            .await
    }

    /// Ends every session of a user.
    pub async fn log_out_all(&self, user_id: &UserId) -> Result<(), Error> {
        let (user, hook) = (user_id.to_owned(), self.device_changes());
        let servers = self
            .ctx
            .store
            .write(move |txn| {
                let all: Vec<_> = txn.devices(&user)?.into_iter().map(|device| device.device_id).collect();
                remove(txn, hook.as_deref(), &user, &all)
            })
            .await?;
        self.inner.cache.forget_user(user_id);
        self.wake(servers);
        Ok(())
    }
}

fn no_such_device() -> Error {
    Error::not_found("there is no such device")
}
