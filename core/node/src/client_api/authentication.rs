//! Proves who asks, for each of ruma's authentication schemes of the client-server API. Which tokens are good is for the
//! accounts service to say.

use std::net::SocketAddr;

use axum::{extract::ConnectInfo, http::request::Parts};
use ruma::{
    api::{
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceTokenOptional, NoAccessToken, NoAuthentication,
            extract_bearer_or_query_token,
        },
        error::ErrorKind,
    },
    exports::http::StatusCode,
};

use super::{Authenticate, Session};
use crate::{Error, Homeserver};

impl Authenticate for NoAuthentication {
    type Caller = ();

    async fn authenticate(_: &Homeserver, _: &Parts) -> Result<(), Error> {
        Ok(())
    }
}

impl Authenticate for NoAccessToken {
    type Caller = ();

    async fn authenticate(_: &Homeserver, _: &Parts) -> Result<(), Error> {
        Ok(())
    }
}

impl Authenticate for AccessToken {
    type Caller = Session;

    async fn authenticate(homeserver: &Homeserver, head: &Parts) -> Result<Session, Error> {
        session(homeserver, head).await?.ok_or_else(missing_token)
    }
}

impl Authenticate for AccessTokenOptional {
    /// None without a token; a token that is there must be good.
    type Caller = Option<Session>;

    async fn authenticate(homeserver: &Homeserver, head: &Parts) -> Result<Option<Session>, Error> {
        session(homeserver, head).await
    }
}

impl Authenticate for AppserviceTokenOptional {
    /// The token as it was sent. Whether it is an application service's is looked at where one is claimed.
    type Caller = Option<String>;

    async fn authenticate(_: &Homeserver, head: &Parts) -> Result<Option<String>, Error> {
        token(head)
    }
}

/// 401 `M_MISSING_TOKEN`.
pub(in crate::client_api) fn missing_token() -> Error {
    Error::refused(
        StatusCode::UNAUTHORIZED,
        ErrorKind::MissingToken,
        "an access token is needed",
    )
}

async fn session(homeserver: &Homeserver, head: &Parts) -> Result<Option<Session>, Error> {
    let Some(token) = token(head)? else {
        return Ok(None);
    };
    let from = head.extensions.get::<ConnectInfo<SocketAddr>>();
    let from = from.map(|ConnectInfo(address)| address.ip());
    homeserver.accounts.authenticate(&token, from).await.map(Some)
}

/// The bearer token of a request. Client-server API, "Using access tokens": the query string is deprecated, and some
/// clients still use it.
fn token(head: &Parts) -> Result<Option<String>, Error> {
    let mut request = http::Request::new(());
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    extract_bearer_or_query_token(&request)
        .map_err(|error| Error::refused(StatusCode::UNAUTHORIZED, ErrorKind::MissingToken, error.to_string()))
}
