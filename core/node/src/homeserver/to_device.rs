//! Messages from device to device: each is put into an inbox, or queued for another server, before its sender is
//! answered, and arrives once. It reads none of them.

use std::collections::BTreeMap;

use kith_store::{ReadTxn, WriteTxn};
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedTransactionId, ServerName, UserId,
    api::{
        client::to_device::send_event_to_device::v3::Messages,
        error::ErrorKind,
        federation::transactions::edu::{DirectDeviceContent, DirectDeviceMessages, Edu},
    },
    events::{AnyToDeviceEvent, AnyToDeviceEventContent, ToDeviceEventType},
    exports::http::StatusCode,
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{Context, Outbox, Session};
use crate::Error;

/// The largest content of a message, in bytes.
const MAX_CONTENT_BYTES: usize = 64 * 1024;

/// Messages are put together in one EDU until it holds this much content, in bytes.
const EDU_BYTES: usize = 64 * 1024;

/// The longest message id another server may give, in bytes. The specification allows 32 characters.
const MAX_MESSAGE_ID: usize = 255;

/// The service of messages between devices.
#[derive(Clone)]
pub struct ToDevice {
    ctx: Context,
    outbox: Outbox,
}

/// An event as its receiver's client gets it.
#[derive(Serialize)]
struct Message<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    kind: &'a ToDeviceEventType,
    content: &'a RawValue,
}

impl ToDevice {
    /// Makes the service.
    pub fn new(ctx: Context, outbox: Outbox) -> Self {
        Self { ctx, outbox }
    }

    /// Sends messages, one to a device. A repeated request does nothing again. Unknown local devices get nothing.
    ///
    /// Client-server API, `/sendToDevice`.
    pub async fn send(
        &self,
        session: Session,
        kind: ToDeviceEventType,
        txn_id: OwnedTransactionId,
        messages: Messages,
    ) -> Result<(), Error> {
        for content in messages.values().flat_map(BTreeMap::values) {
            check_content(content)?;
        }
        let ctx = self.ctx.clone();
        let servers = self
            .ctx
            .store
            .write(move |txn| send(txn, &ctx, &session, &kind, &txn_id, messages))
            .await?;
        self.outbox.wake(servers);
        Ok(())
    }

    /// `m.direct_to_device`: messages of another server's user to devices of local ones. One that arrived before is passed
    /// over.
    pub async fn handle_direct_to_device(&self, peer: &ServerName, content: DirectDeviceContent) -> Result<(), Error> {
        if content.sender.server_name() != peer || content.message_id.as_str().len() > MAX_MESSAGE_ID {
            tracing::info!(%peer, sender = %content.sender, "a forged or malformed message to devices; ignored");
            return Ok(());
        }
        let (ctx, peer) = (self.ctx.clone(), peer.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                if !txn.remember_to_device_received(&peer, content.message_id.as_str())? {
                    return Ok(());
                }
                for (user, messages) in &content.messages {
                    if ctx.is_local(user) {
                        let fitting = messages.iter().filter(|(_, content)| check_content(content).is_ok());
                        deliver(txn, &content.sender, &content.ev_type, user, fitting)?;
                    }
                }
                Ok::<_, Error>(())
            })
            .await
    }
}

fn check_content(content: &Raw<AnyToDeviceEventContent>) -> Result<(), Error> {
    let json = content.json().get();
    if !json.starts_with('{') {
        return Err(Error::bad_json("a message's content is not an object"));
    }
    if json.len() > MAX_CONTENT_BYTES {
        return Err(Error::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooLarge,
            format!("a message's content has at most {MAX_CONTENT_BYTES} bytes"),
        ));
    }
    Ok(())
}

/// Delivers or queues everything; returns the servers for which something was queued.
fn send(
    txn: &WriteTxn<'_>,
    ctx: &Context,
    session: &Session,
    kind: &ToDeviceEventType,
    txn_id: &OwnedTransactionId,
    messages: Messages,
) -> Result<Vec<OwnedServerName>, Error> {
    let sender = &session.user_id;
    // A transaction id means something together with the path before it.
    let scoped = OwnedTransactionId::from(format!("{kind}/{txn_id}"));
    if !txn.remember_to_device_sent(sender, &session.device_id, &scoped)? {
        return Ok(Vec::new());
    }
    let mut remote: BTreeMap<OwnedServerName, DirectDeviceMessages> = BTreeMap::new();
    for (user, messages) in messages {
        if ctx.is_local(&user) {
            deliver(txn, sender, kind, &user, &messages)?;
        } else {
            let of_server = remote.entry(user.server_name().to_owned()).or_default();
            of_server.insert(user, messages);
        }
    }
    let servers = remote.keys().cloned().collect();
    for (server, messages) in remote {
        for part in parts(messages) {
            let message_id = ctx.world.random_token().into();
            let mut content = DirectDeviceContent::new(sender.clone(), kind.clone(), message_id);
            content.messages = part;
            let edu = to_raw_value(&Edu::DirectToDevice(content)).map_err(unserialisable)?;
            txn.enqueue_edu(&server, &edu)?;
        }
    }
    Ok(servers)
}

/// Splits what one server gets, so that no EDU grows large.
fn parts(messages: DirectDeviceMessages) -> Vec<DirectDeviceMessages> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), DirectDeviceMessages::new(), 0);
    for (user, devices) in messages {
        for (device, content) in devices {
            let size = content.json().get().len();
            if bytes > 0 && bytes + size > EDU_BYTES {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
            bytes += size;
            part.entry(user.clone()).or_default().insert(device, content);
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// Puts messages into the inboxes of a local user's devices.
fn deliver<'a>(
    txn: &WriteTxn<'_>,
    sender: &UserId,
    kind: &ToDeviceEventType,
    user: &UserId,
    messages: impl IntoIterator<Item = (&'a DeviceIdOrAllDevices, &'a Raw<AnyToDeviceEventContent>)>,
) -> Result<(), Error> {
    for (device, content) in messages {
        let message = Message {
            sender,
            kind,
            content: content.json(),
        };
        let event = Raw::<AnyToDeviceEvent>::from_json(to_raw_value(&message).map_err(unserialisable)?);
        for device in receivers(txn, user, device)? {
            if !txn.add_to_device_message(user, &device, sender.server_name(), &event)? {
                tracing::warn!(%sender, %user, %device, "the device's inbox is full; a message to it was dropped");
            }
        }
    }
    Ok(())
}

fn receivers(txn: &ReadTxn<'_>, user: &UserId, device: &DeviceIdOrAllDevices) -> Result<Vec<OwnedDeviceId>, Error> {
    Ok(match device {
        DeviceIdOrAllDevices::DeviceId(device) => {
            let known = txn.device(user, device)?;
            known.into_iter().map(|known| known.device_id).collect()
        }
        DeviceIdOrAllDevices::AllDevices => {
            let all = txn.devices(user)?.into_iter();
            all.map(|known| known.device_id).collect()
        }
    })
}

fn unserialisable(error: serde_json::Error) -> Error {
    Error::Internal("a message to a device did not serialise", Some(Box::new(error)))
}
