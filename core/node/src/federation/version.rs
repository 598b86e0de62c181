//! Which program answers.

use axum::Router;
use ruma::api::federation::discovery::get_server_version;

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    endpoint(router, get_server_version)
}

async fn get_server_version(
    _: Homeserver,
    _: Args<get_server_version::v1::Request>,
) -> Result<get_server_version::v1::Response, Error> {
    let mut server = get_server_version::v1::Server::new();
    server.name = Some("Kith".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::v1::Response::new();
    response.server = Some(server);
    Ok(response)
}
