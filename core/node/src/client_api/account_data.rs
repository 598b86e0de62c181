//! Account data, tags and filters.

use axum::Router;
use ruma::{
    api::client::{
        config::{get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data},
        filter::{create_filter, get_filter},
        tag::{create_tag, delete_tag, get_tags},
    },
    serde::Raw,
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_global_account_data);
    let router = endpoint(router, set_global_account_data);
    let router = endpoint(router, get_room_account_data);
    let router = endpoint(router, set_room_account_data);
    let router = endpoint(router, get_tags);
    let router = endpoint(router, create_tag);
    let router = endpoint(router, delete_tag);
    let router = endpoint(router, create_filter);
    endpoint(router, get_filter)
}

async fn get_global_account_data(
    hs: Homeserver,
    args: Args<get_global_account_data::v3::Request>,
) -> Result<get_global_account_data::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    let kind = request.event_type.to_string();
    let content = hs.account_data.entry(&caller, &request.user_id, None, kind).await?;
    Ok(get_global_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn set_global_account_data(
    hs: Homeserver,
    args: Args<set_global_account_data::v3::Request>,
) -> Result<set_global_account_data::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    let kind = request.event_type.to_string();
    hs.account_data
        .set_entry(&caller, &request.user_id, None, kind, request.data.json())
        .await?;
    Ok(set_global_account_data::v3::Response::new())
}

async fn get_room_account_data(
    hs: Homeserver,
    args: Args<get_room_account_data::v3::Request>,
) -> Result<get_room_account_data::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    let kind = request.event_type.to_string();
    let content = hs
        .account_data
        .entry(&caller, &request.user_id, Some(request.room_id), kind)
        .await?;
    Ok(get_room_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn set_room_account_data(
    hs: Homeserver,
    args: Args<set_room_account_data::v3::Request>,
) -> Result<set_room_account_data::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    let kind = request.event_type.to_string();
    hs.account_data
        .set_entry(
            &caller,
            &request.user_id,
            Some(request.room_id),
            kind,
            request.data.json(),
        )
        .await?;
    Ok(set_room_account_data::v3::Response::new())
}

async fn get_tags(hs: Homeserver, args: Args<get_tags::v3::Request>) -> Result<get_tags::v3::Response, Error> {
    let request = args.request;
    let tags = hs
        .account_data
        .tags(&args.caller, &request.user_id, request.room_id)
        .await?;
    Ok(get_tags::v3::Response::new(tags))
}

async fn create_tag(hs: Homeserver, args: Args<create_tag::v3::Request>) -> Result<create_tag::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    hs.account_data
        .set_tag(
            &caller,
            &request.user_id,
            request.room_id,
            request.tag,
            request.tag_info,
        )
        .await?;
    Ok(create_tag::v3::Response::new())
}

async fn delete_tag(hs: Homeserver, args: Args<delete_tag::v3::Request>) -> Result<delete_tag::v3::Response, Error> {
    let (caller, request) = (args.caller, args.request);
    hs.account_data
        .delete_tag(&caller, &request.user_id, request.room_id, request.tag)
        .await?;
    Ok(delete_tag::v3::Response::new())
}

async fn create_filter(
    hs: Homeserver,
    args: Args<create_filter::v3::Request>,
) -> Result<create_filter::v3::Response, Error> {
    let request = args.request;
    let id = hs
        .account_data
        .create_filter(&args.caller, &request.user_id, &request.filter)
        .await?;
    Ok(create_filter::v3::Response::new(id))
}

async fn get_filter(hs: Homeserver, args: Args<get_filter::v3::Request>) -> Result<get_filter::v3::Response, Error> {
    let request = args.request;
    let filter = hs
        .account_data
        .filter(&args.caller, &request.user_id, &request.filter_id)
        .await?;
    Ok(get_filter::v3::Response::new(filter))
}
