//! Dehydrated devices (MSC3814).

use axum::Router;
use kith_store::Seq;
use ruma::{
    api::client::dehydrated_device::{
        delete_dehydrated_device, get_dehydrated_device, get_events, put_dehydrated_device,
    },
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{Args, endpoint};
use crate::{
    Error, Homeserver,
    homeserver::keys::{KeyUpload, NewDehydratedDevice},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, put_dehydrated_device);
    let router = endpoint(router, get_dehydrated_device);
    let router = endpoint(router, delete_dehydrated_device);
    endpoint(router, get_events)
}

async fn put_dehydrated_device(
    hs: Homeserver,
    args: Args<put_dehydrated_device::unstable::Request>,
) -> Result<put_dehydrated_device::unstable::Response, Error> {
    let request = args.request;
    let device = NewDehydratedDevice {
        device_id: request.device_id.clone(),
        display_name: request.initial_device_display_name,
        data: request.device_data,
        keys: KeyUpload {
            device_keys: Some(request.device_keys),
            one_time_keys: request.one_time_keys,
            fallback_keys: request.fallback_keys,
        },
    };
    hs.keys.put_dehydrated_device(args.caller.user_id, device).await?;
    Ok(put_dehydrated_device::unstable::Response::new(request.device_id))
}

async fn get_dehydrated_device(
    hs: Homeserver,
    args: Args<get_dehydrated_device::unstable::Request>,
) -> Result<get_dehydrated_device::unstable::Response, Error> {
    let device = hs.keys.dehydrated_device(args.caller.user_id).await?;
    let data = RawValue::from_string(device.device_data)
        .map_err(|error| Error::Internal("a dehydrated device is no JSON", Some(Box::new(error))))?;
    let response = get_dehydrated_device::unstable::Response::new(device.device_id, Raw::from_json(data));
    Ok(response)
}

async fn delete_dehydrated_device(
    hs: Homeserver,
    args: Args<delete_dehydrated_device::unstable::Request>,
) -> Result<delete_dehydrated_device::unstable::Response, Error> {
    let device = hs.keys.delete_dehydrated_device(args.caller.user_id).await?;
    Ok(delete_dehydrated_device::unstable::Response::new(device))
}

async fn get_events(
    hs: Homeserver,
    args: Args<get_events::unstable::Request>,
) -> Result<get_events::unstable::Response, Error> {
    let request = args.request;
    let after = match request.next_batch {
        None => Seq::default(),
        Some(token) => {
            let place = token.strip_prefix('d').and_then(|place| place.parse().ok());
            Seq(place.ok_or_else(|| Error::invalid_param("unknown next_batch"))?)
        }
    };
    let (events, next) = hs
        .keys
        .dehydrated_messages(args.caller.user_id, request.device_id, after)
        .await?;
    let mut response = get_events::unstable::Response::new(events);
    response.next_batch = Some(format!("d{}", next.0));
    Ok(response)
}
