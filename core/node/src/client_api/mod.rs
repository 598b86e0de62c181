//! The client-server API: parse a request, call one service method, render its answer. No decision is made here.

mod endpoint;
mod error;

pub use endpoint::{Args, Authenticate, Session, endpoint, endpoint_at};
pub use error::render_error;

use axum::Router;

use crate::Homeserver;

/// The routes that clients reach.
pub fn router(homeserver: Homeserver) -> Router {
    Router::new().fallback(error::unrecognized).with_state(homeserver)
}
