//! Registration and the care of one's own account.

use axum::Router;
use ruma::{
    api::{
        client::account::{
            ThirdPartyIdRemovalStatus, change_password, check_registration_token_validity, deactivate,
            get_username_availability,
            register::{
                LoginType, RegistrationKind,
                v3::{self as register},
            },
            request_openid_token, whoami,
        },
        error::ErrorKind,
    },
    authentication::TokenType,
    exports::http::StatusCode,
};
use zeroize::Zeroizing;

use super::{Args, authentication::missing_token, endpoint, session::no_application_service};
use crate::{
    Error, Homeserver,
    homeserver::accounts::{NewDevice, Registration},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, register);
    let router = endpoint(router, get_username_availability);
    let router = endpoint(router, check_registration_token_validity);
    let router = endpoint(router, whoami);
    let router = endpoint(router, change_password);
    let router = endpoint(router, deactivate);
    endpoint(router, request_openid_token)
}

async fn register(hs: Homeserver, args: Args<register::Request>) -> Result<register::Response, Error> {
    let request = args.request;
    if request.kind == RegistrationKind::Guest {
        return Err(Error::refused(
            StatusCode::FORBIDDEN,
            ErrorKind::GuestAccessForbidden,
            "there are no guests on this node",
        ));
    }
    if request.login_type == Some(LoginType::ApplicationService) {
        return Err(no_application_service(args.caller.as_deref()));
    }
    let device = NewDevice {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refresh: request.refresh_token,
    };
    let registration = Registration {
        localpart: request.username,
        password: request.password.map(Zeroizing::new),
        device: (!request.inhibit_login).then_some(device),
        auth: request.auth,
    };
    let (user_id, issued) = hs.accounts.register(registration).await?;
    let mut response = register::Response::new(user_id);
    if let Some(issued) = issued {
        response.device_id = Some(issued.session.device_id);
        response.access_token = Some(issued.access_token);
        response.refresh_token = issued.refresh_token;
        response.expires_in = issued.expires_in;
    }
    Ok(response)
}

async fn get_username_availability(
    hs: Homeserver,
    args: Args<get_username_availability::v3::Request>,
) -> Result<get_username_availability::v3::Response, Error> {
    hs.accounts.check_available(&args.request.username).await?;
    Ok(get_username_availability::v3::Response::new(true))
}

async fn check_registration_token_validity(
    hs: Homeserver,
    args: Args<check_registration_token_validity::v1::Request>,
) -> Result<check_registration_token_validity::v1::Response, Error> {
    let valid = hs.accounts.registration_token_valid(&args.request.token).await?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}

async fn whoami(_: Homeserver, args: Args<whoami::v3::Request>) -> Result<whoami::v3::Response, Error> {
    let mut response = whoami::v3::Response::new(args.caller.user_id, false);
    response.device_id = Some(args.caller.device_id);
    Ok(response)
}

async fn change_password(
    hs: Homeserver,
    args: Args<change_password::v3::Request>,
) -> Result<change_password::v3::Response, Error> {
    let session = args.caller.ok_or_else(missing_token)?;
    let request = args.request;
    hs.accounts
        .confirm(&session, "change_password", request.auth.as_ref())
        .await?;
    let password = Zeroizing::new(request.new_password);
    hs.accounts
        .change_password(&session, password, request.logout_devices)
        .await?;
    Ok(change_password::v3::Response::new())
}

async fn deactivate(hs: Homeserver, args: Args<deactivate::v3::Request>) -> Result<deactivate::v3::Response, Error> {
    let session = args.caller.ok_or_else(missing_token)?;
    hs.accounts
        .confirm(&session, "deactivate", args.request.auth.as_ref())
        .await?;
    hs.accounts.deactivate(&session.user_id, args.request.erase).await?;
    hs.rooms.leave_all(&session.user_id).await?;
    // No identity server is ever spoken to, so nothing was bound that could fail to be unbound.
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success))
}

async fn request_openid_token(
    hs: Homeserver,
    args: Args<request_openid_token::v3::Request>,
) -> Result<request_openid_token::v3::Response, Error> {
    let (token, expires_in) = hs.accounts.create_openid_token(&args.caller, &args.request.user_id)?;
    Ok(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        hs.context.server_name.clone(),
        expires_in,
    ))
}
