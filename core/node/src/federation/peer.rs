//! Proves which server asks: the connection's hello did, before the request came here. No header is believed.

use axum::http::request::Parts;
use ruma::{
    api::{error::ErrorKind, federation::authentication::ServerSignatures},
    exports::http::StatusCode,
};

use super::Peer;
use crate::{Error, Homeserver, client_api::Authenticate};

impl Authenticate for ServerSignatures {
    type Caller = Peer;

    async fn authenticate(_: &Homeserver, head: &Parts) -> Result<Peer, Error> {
        head.extensions.get::<Peer>().cloned().ok_or_else(|| {
            Error::refused(
                StatusCode::UNAUTHORIZED,
                ErrorKind::Unauthorized,
                "the connection has not said hello",
            )
        })
    }
}
