//! Device lists of users of other servers who share a room with a local one: kept as copies, moved on by EDUs, fetched
//! anew when an update was missed. A server is believed about its own users only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use kith_engine::encryption::{DeviceListStep, PublishedKey, device_list_step};
use kith_store::{CrossSigningRow, DeviceRow, RemoteDeviceList, WriteTxn};
use ruma::{
    DeviceId, OwnedUserId, ServerName, UInt, UserId,
    api::federation::{
        device::get_devices,
        transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    },
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage},
    serde::Raw,
};
use tokio::sync::{
    Semaphore,
    broadcast::{Receiver, error::RecvError},
};

use super::{Keys, show};
use crate::{
    Error,
    federation::client::request_within,
    network::{Limits, NetworkError, PeerEvent},
};

/// Devices of one remote user that are looked at.
pub(super) const MAX_DEVICES: usize = 500;

/// The longest device name kept, in characters.
const MAX_NAME: usize = 256;

/// Lists fetched in the background at the same time.
const FETCHES_AT_ONCE: usize = 16;

/// Incomplete lists taken up at once when a server comes back.
const MAX_STALE: usize = 1_000;

/// What is under way.
pub(super) struct Remote {
    /// One fetch of a list at a time.
    fetching: Mutex<HashMap<OwnedUserId, Weak<tokio::sync::Mutex<()>>>>,
    background: Semaphore,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            fetching: Mutex::default(),
            background: Semaphore::new(FETCHES_AT_ONCE),
        }
    }
}

/// What an EDU makes necessary.
enum Effect {
    Done,
    /// The list must be fetched.
    Fetch,
}

impl Keys {
    /// Takes up what an earlier run left incomplete, and listens for servers that come back.
    pub fn start(&self) {
        let events = self.ctx.network.events();
        let keys = self.for_task();
        self.tasks.spawn(async move {
            keys.fetch_stale(None).await;
            keys.watch_peers(events).await;
        });
    }

    /// Ends all tasks. What is incomplete is known to be so, and fetched later.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    /// `m.device_list_update`: applies it to the copy, or has the list fetched when it does not follow upon the copy.
    ///
    /// Server-server API, "Device Management".
    pub async fn handle_device_list_update(
        &self,
        peer: &ServerName,
        content: DeviceListUpdateContent,
    ) -> Result<(), Error> {
        if content.user_id.server_name() != peer {
            tracing::info!(%peer, user = %content.user_id, "a server spoke of another's user; ignored");
            return Ok(());
        }
        let user = content.user_id.clone();
        let effect = self.ctx.store.write(move |txn| apply_update(txn, &content)).await?;
        if let Effect::Fetch = effect {
            self.fetch_later(user);
        }
        Ok(())
    }

    /// `m.signing_key_update`: new cross-signing keys of a remote user.
    pub async fn handle_signing_key_update(
        &self,
        peer: &ServerName,
        content: SigningKeyUpdateContent,
    ) -> Result<(), Error> {
        if content.user_id.server_name() != peer {
            tracing::info!(%peer, user = %content.user_id, "a server spoke of another's user; ignored");
            return Ok(());
        }
        let user = content.user_id.clone();
        let effect = self
            .ctx
            .store
            .write(move |txn| apply_signing_keys(txn, &content))
            .await?;
        if let Effect::Fetch = effect {
            self.fetch_later(user);
        }
        Ok(())
    }

    /// A local user's devices, as other servers copy them; `M_NOT_FOUND` for others.
    pub async fn serve_devices(&self, user: OwnedUserId) -> Result<get_devices::v1::Response, Error> {
        self.ctx
            .store
            .read(move |txn| {
                if txn.user(&user)?.is_none() {
                    return Err(Error::not_found("there is no such user"));
                }
                let position = txn.device_list_position(&user)?.map_or(0, |last| last.stream_id);
                let stream_id = UInt::try_from(position).unwrap_or(UInt::MIN);
                let mut response = get_devices::v1::Response::new(user.clone(), stream_id);
                for row in txn.devices_with_keys(&user)? {
                    let key = PublishedKey::parse(&row.keys).map_err(show::corrupt)?;
                    let keys = show::device_keys(txn, &user, &row.device_id, key, None, None)?;
                    let mut device = get_devices::v1::UserDevice::new(row.device_id, keys);
                    device.device_display_name = row.display_name;
                    response.devices.push(device);
                }
                response.master_key = show::cross_signing_key(txn, &user, &KeyUsage::Master, None)?;
                response.self_signing_key = show::cross_signing_key(txn, &user, &KeyUsage::SelfSigning, None)?;
                Ok(response)
            })
            .await
    }

    /// Brings the copy of a remote user's list up to date, unless it is already. Only users who share a room are tracked;
    /// for others nothing is kept.
    pub(super) async fn refresh(&self, user: &UserId, limits: Limits) -> Result<(), Error> {
        let turn = self.remote.turn(user);
        let _turn = turn.lock().await;
        let name = user.to_owned();
        let gaps = self.ctx.store.write(move |txn| begin_fetch(txn, &name)).await?;
        let Some(gaps) = gaps else { return Ok(()) };
        let request = get_devices::v1::Request::new(user.to_owned());
        let response = request_within(&self.ctx, user.server_name(), request, limits).await?;
        if response.user_id != user || response.devices.len() > MAX_DEVICES {
            let reason = "the device list is not the one asked for, or too long".to_owned();
            let server = user.server_name().to_owned();
            return Err(NetworkError::Broken { server, reason }.into());
        }
        let user = user.to_owned();
        self.ctx
            .store
            .write(move |txn| keep_fetched(txn, &user, gaps, &response))
            .await
    }

    /// Fetches a list in the background. If that fails, the list stays known as incomplete: it is fetched when the server
    /// comes back or a client asks.
    fn fetch_later(&self, user: OwnedUserId) {
        let keys = self.for_task();
        self.tasks.spawn(async move {
            let Ok(_place) = keys.remote.background.acquire().await else {
                return;
            };
            if let Err(error) = keys.refresh(&user, Limits::default()).await {
                tracing::debug!(%user, %error, "a device list could not be fetched yet");
            }
        });
    }

    async fn fetch_stale(&self, of: Option<&ServerName>) {
        let stale = self.ctx.store.read(|txn| txn.stale_device_lists(MAX_STALE)).await;
        match stale {
            Ok(users) => users
                .into_iter()
                .filter(|user| of.is_none_or(|server| user.server_name() == server))
                .for_each(|user| self.fetch_later(user)),
            Err(error) => tracing::warn!(%error, "incomplete device lists could not be read"),
        }
    }

    async fn watch_peers(&self, mut events: Receiver<PeerEvent>) {
        loop {
            match events.recv().await {
                Ok(PeerEvent::Up(server)) => self.fetch_stale(Some(&server)).await,
                Ok(PeerEvent::LetGo(_) | PeerEvent::Down(_)) => {}
                Err(RecvError::Lagged(_)) => self.fetch_stale(None).await,
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn for_task(&self) -> Self {
        Self {
            tasks: self.tasks.for_task(),
            ..self.clone()
        }
    }
}

impl Remote {
    /// The lock of a user's fetches.
    fn turn(&self, user: &UserId) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = fetching.get(user).and_then(Weak::upgrade) {
            return turn;
        }
        fetching.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        fetching.insert(user.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// The key and name of a device as another server tells them, if it is one of this user.
pub(super) fn checked_device(
    user: &UserId,
    device: &DeviceId,
    keys: &Raw<DeviceKeys>,
) -> Option<(PublishedKey, Option<String>)> {
    let key = PublishedKey::parse(keys.json().get()).ok()?;
    key.check_device(user, device).ok()?;
    let name = keys.deserialize().ok()?.unsigned.device_display_name;
    Some((key, name.map(|name| short(&name))))
}

/// A cross-signing key as another server tells it, and its public key, if it is one of this user and usage.
pub(super) fn checked_cross_signing(
    user: &UserId,
    usage: &KeyUsage,
    key: &Raw<CrossSigningKey>,
) -> Option<(PublishedKey, String)> {
    let key = PublishedKey::parse(key.json().get()).ok()?;
    let public = key.check_cross_signing(user, usage).ok()?.to_owned();
    Some((key, public))
}

fn short(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

fn row(user: &UserId, device: &DeviceId, keys: &Raw<DeviceKeys>, name: Option<&str>) -> Option<DeviceRow> {
    let (key, own_name) = checked_device(user, device, keys)?;
    Some(DeviceRow {
        device_id: device.to_owned(),
        display_name: name.map(short).or(own_name),
        keys: key.to_json().ok()?,
    })
}

fn apply_update(txn: &WriteTxn<'_>, content: &DeviceListUpdateContent) -> Result<Effect, Error> {
    let user = &content.user_id;
    if !txn.shares_a_room_with_local(user)? {
        return Ok(Effect::Done);
    }
    let step = match txn.remote_device_list(user)? {
        Some(RemoteDeviceList {
            fresh: true, stream_id, ..
        }) => {
            let before = content.prev_id.iter().map(|id| i64::from(*id));
            device_list_step(stream_id, content.stream_id.into(), before)
        }
        _ => DeviceListStep::Gap,
    };
    match step {
        DeviceListStep::Known => return Ok(Effect::Done),
        DeviceListStep::Gap => {
            txn.note_device_list_gap(user)?;
            txn.note_device_list_change(user)?;
            return Ok(Effect::Fetch);
        }
        DeviceListStep::Next => {}
    }
    let name = content.device_display_name.as_deref();
    let keys = content.keys.as_ref().filter(|_| content.deleted != Some(true));
    match keys.and_then(|keys| row(user, &content.device_id, keys, name)) {
        Some(device) if txn.remote_devices(user)?.len() < MAX_DEVICES => txn.set_remote_device(user, &device)?,
        _ => txn.delete_remote_device(user, &content.device_id)?,
    }
    txn.advance_device_list(user, content.stream_id.into())?;
    txn.note_device_list_change(user)?;
    Ok(Effect::Done)
}

fn apply_signing_keys(txn: &WriteTxn<'_>, content: &SigningKeyUpdateContent) -> Result<Effect, Error> {
    let user = &content.user_id;
    if !txn.shares_a_room_with_local(user)? {
        return Ok(Effect::Done);
    }
    if !txn.remote_device_list(user)?.is_some_and(|list| list.fresh) {
        txn.note_device_list_gap(user)?;
        txn.note_device_list_change(user)?;
        return Ok(Effect::Fetch);
    }
    let keys = [
        (KeyUsage::Master, content.master_key.as_ref()),
        (KeyUsage::SelfSigning, content.self_signing_key.as_ref()),
    ];
    if set_cross_signing(txn, user, keys, false)? {
        txn.note_device_list_change(user)?;
    }
    Ok(Effect::Done)
}

/// Keeps the well-formed ones of a remote user's cross-signing keys; with `all`, those not told are gone. Returns whether
/// anything changed.
fn set_cross_signing(
    txn: &WriteTxn<'_>,
    user: &UserId,
    keys: [(KeyUsage, Option<&Raw<CrossSigningKey>>); 2],
    all: bool,
) -> Result<bool, Error> {
    let mut changed = false;
    for (usage, key) in keys {
        let held = txn.cross_signing_key(user, &usage)?;
        let checked = key.and_then(|key| checked_cross_signing(user, &usage, key));
        let told = checked.and_then(|(key, public)| {
            let key = key.to_json().ok()?;
            Some(CrossSigningRow { public, key })
        });
        match told {
            Some(told) if held.as_ref() != Some(&told) => {
                txn.set_cross_signing_key(user, &usage, &told)?;
                changed = true;
            }
            None if all && held.is_some() => {
                txn.delete_cross_signing_key(user, &usage)?;
                changed = true;
            }
            _ => {}
        }
    }
    Ok(changed)
}

/// The count of gaps that a fetch begun now will fill; none if there is nothing to fetch or to track.
fn begin_fetch(txn: &WriteTxn<'_>, user: &UserId) -> Result<Option<i64>, Error> {
    Ok(match txn.remote_device_list(user)? {
        Some(list) if list.fresh => None,
        Some(list) => Some(list.gaps),
        None if txn.shares_a_room_with_local(user)? => Some(txn.note_device_list_gap(user)?),
        None => None,
    })
}

fn keep_fetched(
    txn: &WriteTxn<'_>,
    user: &UserId,
    gaps: i64,
    response: &get_devices::v1::Response,
) -> Result<(), Error> {
    if txn.remote_device_list(user)?.is_none() {
        return Ok(());
    }
    let devices = response.devices.iter();
    let mut devices: Vec<DeviceRow> = devices
        .filter_map(|device| {
            row(
                user,
                &device.device_id,
                &device.keys,
                device.device_display_name.as_deref(),
            )
        })
        .collect();
    devices.sort_by(|one, other| one.device_id.cmp(&other.device_id));
    devices.dedup_by(|one, other| one.device_id == other.device_id);
    let mut changed = txn.remote_devices(user)? != devices;
    txn.fill_device_list(user, response.stream_id.into(), gaps, &devices)?;
    let keys = [
        (KeyUsage::Master, response.master_key.as_ref()),
        (KeyUsage::SelfSigning, response.self_signing_key.as_ref()),
    ];
    changed |= set_cross_signing(txn, user, keys, true)?;
    // Whoever asked before was answered from the older copy, or not at all.
    if changed {
        txn.note_device_list_change(user)?;
    }
    Ok(())
}
