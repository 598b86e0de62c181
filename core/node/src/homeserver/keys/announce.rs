//! Tells others, within the commit that made it, that a local user's keys changed: local clients through the device list
//! changes, other servers through EDUs. It sends nothing: the caller wakes the returned servers after the commit.

use kith_engine::encryption::PublishedKey;
use kith_store::{DeviceListPosition, WriteTxn};
use ruma::{
    DeviceId, OwnedServerName, UInt, UserId,
    api::federation::transactions::edu::{DeviceListUpdateContent, Edu, SigningKeyUpdateContent},
    encryption::KeyUsage,
};
use serde_json::value::{RawValue, to_raw_value};

use super::show;
use crate::{Error, homeserver::Context};

/// A device of a local user published, changed, renamed or lost its keys.
pub(crate) fn device_changed(
    txn: &WriteTxn<'_>,
    ctx: &Context,
    user: &UserId,
    device: &DeviceId,
) -> Result<Vec<OwnedServerName>, Error> {
    txn.note_device_list_change(user)?;
    let position = txn.advance_own_device_list(user, device)?;
    let servers = others_sharing(txn, ctx, user)?;
    enqueue_device(txn, user, &position, &servers)?;
    Ok(servers)
}

/// A local user's master or self-signing key changed, or a signature on it.
pub(crate) fn cross_signing_changed(
    txn: &WriteTxn<'_>,
    ctx: &Context,
    user: &UserId,
) -> Result<Vec<OwnedServerName>, Error> {
    txn.note_device_list_change(user)?;
    let servers = others_sharing(txn, ctx, user)?;
    let mut content = SigningKeyUpdateContent::new(user.to_owned());
    content.master_key = show::cross_signing_key(txn, user, &KeyUsage::Master, None)?;
    content.self_signing_key = show::cross_signing_key(txn, user, &KeyUsage::SelfSigning, None)?;
    let edu = to_json(&Edu::SigningKeyUpdate(content))?;
    for server in &servers {
        txn.enqueue_edu_in(server, &format!("m.signing_key_update {user}"), &edu)?;
    }
    Ok(servers)
}

/// Queues the lists that joins have made due: see [`WriteTxn::take_due_device_lists`]. The last update is sent again: a
/// server that holds the list up to it knows it or takes it on, any other sees a gap and fetches the whole.
pub(crate) fn due_lists(txn: &WriteTxn<'_>) -> Result<Vec<OwnedServerName>, Error> {
    let mut servers = Vec::new();
    for (user, server) in txn.take_due_device_lists()? {
        if let Some(position) = txn.device_list_position(&user)? {
            enqueue_device(txn, &user, &position, std::slice::from_ref(&server))?;
            servers.push(server);
        }
    }
    Ok(servers)
}

fn enqueue_device(
    txn: &WriteTxn<'_>,
    user: &UserId,
    position: &DeviceListPosition,
    servers: &[OwnedServerName],
) -> Result<(), Error> {
    let device = &position.device_id;
    let id = |number| UInt::try_from(number).unwrap_or(UInt::MIN);
    let mut content = DeviceListUpdateContent::new(user.to_owned(), device.clone(), id(position.stream_id));
    content.prev_id = position.prev_id.map(id).into_iter().collect();
    match txn
        .devices_with_keys(user)?
        .into_iter()
        .find(|row| row.device_id == *device)
    {
        Some(row) => {
            content.device_display_name = row.display_name.clone();
            let key = PublishedKey::parse(&row.keys).map_err(show::corrupt)?;
            content.keys = Some(show::device_keys(
                txn,
                user,
                &row.device_id,
                key,
                None,
                row.display_name,
            )?);
        }
        None => content.deleted = Some(true),
    }
    let edu = to_json(&Edu::DeviceListUpdate(content))?;
    // Of several waiting updates of one device only the newest is sent. The gap that this leaves has the receiver fetch
    // the list, which costs less than all updates that a server missed.
    let slot = format!("m.device_list_update {user} {device}");
    for server in servers {
        txn.enqueue_edu_in(server, &slot, &edu)?;
    }
    Ok(())
}

fn others_sharing(txn: &WriteTxn<'_>, ctx: &Context, user: &UserId) -> Result<Vec<OwnedServerName>, Error> {
    let mut servers = txn.servers_sharing_a_room(user)?;
    servers.retain(|server| !ctx.is_self(server));
    Ok(servers)
}

fn to_json(edu: &Edu) -> Result<Box<RawValue>, Error> {
    to_raw_value(edu).map_err(|error| Error::Internal("an EDU did not serialise", Some(Box::new(error))))
}
