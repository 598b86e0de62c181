//! What would tie a user to email addresses, telephone numbers, other networks or a TURN server. A node has none of
//! these, and says so in the way that the specification gives for it.

use std::{collections::BTreeMap, time::Duration};

use axum::{Router, response::IntoResponse, routing::post};
use ruma::{
    api::{
        IncomingRequest,
        client::{
            account::{
                ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, delete_3pid, get_3pids,
                request_3pid_management_token_via_email, request_3pid_management_token_via_msisdn,
                request_password_change_token_via_email, request_password_change_token_via_msisdn,
                request_registration_token_via_email, request_registration_token_via_msisdn, unbind_3pid,
            },
            thirdparty::{
                get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
                get_user_for_protocol, get_user_for_user_id,
            },
            voip::get_turn_server_info,
        },
        error::ErrorKind,
    },
    exports::http::StatusCode,
};

use super::{Args, Authenticate, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_3pids);
    let router = endpoint(router, delete_3pid);
    let router = endpoint(router, unbind_3pid);
    let router = endpoint(router, denied::<add_3pid::v3::Request>);
    let router = endpoint(router, denied::<bind_3pid::v3::Request>);
    let router = endpoint(router, denied::<request_3pid_management_token_via_email::v3::Request>);
    let router = endpoint(router, denied::<request_3pid_management_token_via_msisdn::v3::Request>);
    let router = endpoint(router, denied::<request_registration_token_via_email::v3::Request>);
    let router = endpoint(router, denied::<request_registration_token_via_msisdn::v3::Request>);
    let router = endpoint(router, unbound::<request_password_change_token_via_email::v3::Request>);
    let router = endpoint(router, unbound::<request_password_change_token_via_msisdn::v3::Request>);
    let router = endpoint(router, get_protocols);
    let router = endpoint(router, no_such_protocol::<get_protocol::v3::Request>);
    let router = endpoint(router, no_such_protocol::<get_location_for_protocol::v3::Request>);
    let router = endpoint(router, no_such_protocol::<get_user_for_protocol::v3::Request>);
    let router = endpoint(router, no_such_protocol::<get_location_for_room_alias::v3::Request>);
    let router = endpoint(router, no_such_protocol::<get_user_for_user_id::v3::Request>);
    let router = endpoint(router, get_turn_server_info);
    // Replaced by `3pid/add` and `3pid/bind`, and not among ruma's types; old clients still call it.
    let old = || async { no_third_party_ids().into_response() };
    router
        .route("/_matrix/client/r0/account/3pid", post(old))
        .route("/_matrix/client/v3/account/3pid", post(old))
}

async fn get_3pids(_: Homeserver, _: Args<get_3pids::v3::Request>) -> Result<get_3pids::v3::Response, Error> {
    Ok(get_3pids::v3::Response::new(Vec::new()))
}

async fn delete_3pid(_: Homeserver, _: Args<delete_3pid::v3::Request>) -> Result<delete_3pid::v3::Response, Error> {
    Ok(delete_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

async fn unbind_3pid(_: Homeserver, _: Args<unbind_3pid::v3::Request>) -> Result<unbind_3pid::v3::Response, Error> {
    Ok(unbind_3pid::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

async fn denied<R>(_: Homeserver, _: Args<R>) -> Result<R::OutgoingResponse, Error>
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
{
    Err(no_third_party_ids())
}

fn no_third_party_ids() -> Error {
    Error::refused(
        StatusCode::FORBIDDEN,
        ErrorKind::ThreepidDenied,
        "this node knows no email addresses or telephone numbers",
    )
}

async fn unbound<R>(_: Homeserver, _: Args<R>) -> Result<R::OutgoingResponse, Error>
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
{
    Err(Error::refused(
        StatusCode::BAD_REQUEST,
        ErrorKind::ThreepidNotFound,
        "no account has that address or number",
    ))
}

async fn get_protocols(
    _: Homeserver,
    _: Args<get_protocols::v3::Request>,
) -> Result<get_protocols::v3::Response, Error> {
    Ok(get_protocols::v3::Response::new(BTreeMap::new()))
}

async fn no_such_protocol<R>(_: Homeserver, _: Args<R>) -> Result<R::OutgoingResponse, Error>
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
{
    Err(Error::not_found("no bridge to another network runs here"))
}

/// The specification has no error for "none": no URIs is how it is said.
async fn get_turn_server_info(
    _: Homeserver,
    _: Args<get_turn_server_info::v3::Request>,
) -> Result<get_turn_server_info::v3::Response, Error> {
    let hour = Duration::from_secs(3600);
    Ok(get_turn_server_info::v3::Response::new(
        String::new(),
        String::new(),
        Vec::new(),
        hour,
    ))
}
