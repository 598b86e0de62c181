//! Logging in and out, and refreshing tokens.

use axum::Router;
use ruma::{
    api::{
        client::{
            session::{
                get_login_token, get_login_types,
                login::v3::{self as login, LoginInfo},
                logout, logout_all, refresh_token,
            },
            uiaa::{MatrixUserIdentifier, UserIdentifier},
        },
        error::{ErrorKind, UnknownTokenErrorData},
    },
    exports::http::StatusCode,
};
use zeroize::Zeroizing;

use super::{Args, authentication::missing_token, endpoint};
use crate::{
    Error, Homeserver,
    homeserver::accounts::{Issued, NewDevice},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_login_types);
    let router = endpoint(router, log_in);
    let router = endpoint(router, get_login_token);
    let router = endpoint(router, refresh_token);
    let router = endpoint(router, log_out);
    endpoint(router, log_out_all)
}

async fn get_login_types(
    _: Homeserver,
    _: Args<get_login_types::v3::Request>,
) -> Result<get_login_types::v3::Response, Error> {
    use get_login_types::v3::{LoginType, PasswordLoginType, Response, TokenLoginType};

    let mut by_token = TokenLoginType::new();
    by_token.get_login_token = true;
    Ok(Response::new(vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(by_token),
    ]))
}

async fn log_in(hs: Homeserver, args: Args<login::Request>) -> Result<login::Response, Error> {
    let request = args.request;
    let device = NewDevice {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refresh: request.refresh_token,
    };
    let issued = match request.login_info {
        LoginInfo::Password(login) => {
            let identifier = password_identifier(&login)?;
            let password = Zeroizing::new(login.password);
            hs.accounts.log_in_by_password(&identifier, password, device).await?
        }
        LoginInfo::Token(login) => hs.accounts.log_in_by_token(&login.token, device).await?,
        LoginInfo::ApplicationService(_) => return Err(no_application_service(args.caller.as_deref())),
        _ => {
            return Err(Error::refused(
                StatusCode::BAD_REQUEST,
                ErrorKind::Unknown,
                "that way of logging in is not offered",
            ));
        }
    };
    let Issued { session, .. } = issued;
    let mut response = login::Response::new(session.user_id, issued.access_token, session.device_id);
    response.refresh_token = issued.refresh_token;
    response.expires_in = issued.expires_in;
    Ok(response)
}

/// Some clients still send `user` where `identifier` is meant.
#[allow(deprecated)]
fn password_identifier(login: &login::Password) -> Result<UserIdentifier, Error> {
    match (&login.identifier, &login.user) {
        (Some(identifier), _) => Ok(identifier.clone()),
        (None, Some(user)) => Ok(UserIdentifier::Matrix(MatrixUserIdentifier::new(user.clone()))),
        (None, None) => Err(Error::refused(
            StatusCode::BAD_REQUEST,
            ErrorKind::MissingParam,
            "an identifier is needed",
        )),
    }
}

/// No application service is registered with this node, so no token is one's.
pub(super) fn no_application_service(token: Option<&str>) -> Error {
    match token {
        None => missing_token(),
        Some(_) => Error::refused(
            StatusCode::UNAUTHORIZED,
            ErrorKind::UnknownToken(UnknownTokenErrorData::new()),
            "the token belongs to no application service",
        ),
    }
}

async fn get_login_token(
    hs: Homeserver,
    args: Args<get_login_token::v1::Request>,
) -> Result<get_login_token::v1::Response, Error> {
    let auth = args.request.auth.as_ref();
    hs.accounts.confirm(&args.caller, "get_login_token", auth).await?;
    let (token, expires_in) = hs.accounts.create_login_token(args.caller.user_id);
    Ok(get_login_token::v1::Response::new(expires_in, token))
}

async fn refresh_token(
    hs: Homeserver,
    args: Args<refresh_token::v3::Request>,
) -> Result<refresh_token::v3::Response, Error> {
    let issued = hs.accounts.refresh(&args.request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(issued.access_token);
    response.refresh_token = issued.refresh_token;
    response.expires_in_ms = issued.expires_in;
    Ok(response)
}

async fn log_out(hs: Homeserver, args: Args<logout::v3::Request>) -> Result<logout::v3::Response, Error> {
    hs.accounts.log_out(&args.caller).await?;
    Ok(logout::v3::Response::new())
}

async fn log_out_all(hs: Homeserver, args: Args<logout_all::v3::Request>) -> Result<logout_all::v3::Response, Error> {
    hs.accounts.log_out_all(&args.caller.user_id).await?;
    Ok(logout_all::v3::Response::new())
}
