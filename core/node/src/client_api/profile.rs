//! Profiles.

use axum::Router;
use ruma::{
    UserId,
    api::client::profile::{delete_profile_field, get_profile, get_profile_field, set_profile_field},
    profile::ProfileFieldName,
};

use super::{Args, endpoint};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_profile);
    let router = endpoint(router, get_profile_field);
    let router = endpoint(router, set_profile_field);
    endpoint(router, delete_profile_field)
}

async fn get_profile(hs: Homeserver, args: Args<get_profile::v3::Request>) -> Result<get_profile::v3::Response, Error> {
    Ok(hs.profiles.profile(&args.request.user_id).await?.into())
}

async fn get_profile_field(
    hs: Homeserver,
    args: Args<get_profile_field::v3::Request>,
) -> Result<get_profile_field::v3::Response, Error> {
    let request = args.request;
    let value = hs.profiles.field(&request.user_id, &request.field).await?;
    // For the two oldest fields clients know `{}` as the answer for "not set"; for the others it is an error.
    let oldest = matches!(
        request.field,
        ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl
    );
    let mut response = get_profile_field::v3::Response::default();
    response.value = match value {
        None if !oldest => return Err(Error::not_found("the profile has no such field")),
        value => value,
    };
    Ok(response)
}

async fn set_profile_field(
    hs: Homeserver,
    args: Args<set_profile_field::v3::Request>,
) -> Result<set_profile_field::v3::Response, Error> {
    let request = args.request;
    let field = request.value.field_name();
    hs.profiles
        .set_field(&args.caller, &request.user_id, request.value)
        .await?;
    announce(&hs, &request.user_id, &field).await?;
    Ok(set_profile_field::v3::Response::new())
}

async fn delete_profile_field(
    hs: Homeserver,
    args: Args<delete_profile_field::v3::Request>,
) -> Result<delete_profile_field::v3::Response, Error> {
    let request = args.request;
    let field = request.field.clone();
    hs.profiles
        .delete_field(&args.caller, &request.user_id, request.field)
        .await?;
    announce(&hs, &request.user_id, &field).await?;
    Ok(delete_profile_field::v3::Response::new())
}

/// Rooms show the two oldest fields of their members.
async fn announce(hs: &Homeserver, user: &UserId, field: &ProfileFieldName) -> Result<(), Error> {
    match field {
        ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl => hs.rooms.announce_profile(user).await,
        _ => Ok(()),
    }
}
