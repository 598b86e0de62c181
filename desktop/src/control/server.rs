//! The node's side of the control protocol: parse, carry out one operation, answer.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kith_node::{Node, doctor::Finding, relays::Relay, status::StatusError};

use super::{AddPeer, AddUser, BASE, Backup, Failure, MAX_BODY, NamedRelay, Report};
use crate::{
    error::one_line,
    operations::{self, AddedPeer, AddedUser, Done, OperationError, TicketText},
};

/// A running node and how it is reached on this machine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Surface {
    pub(crate) node: Node,
    /// The URL for clients, once it is served.
    pub(crate) http: Arc<OnceLock<String>>,
    /// The socket for clients.
    pub(crate) socket: PathBuf,
}

impl Surface {
    /// The node's status as of now.
    pub(crate) async fn report(&self) -> Result<Report, StatusError> {
        Ok(Report {
            running: true,
            http: self.http.get().cloned(),
            socket: Some(self.socket.clone()),
            node: self.node.status().await?,
        })
    }
}

/// The routes, for a socket that only the owner can open.
pub(crate) fn routes(surface: Surface) -> Router {
    let at = |name: &str| format!("{BASE}/{name}");
    Router::new()
        .route(&at("status"), get(status))
        .route(&at("ticket"), get(ticket))
        .route(&at("users"), post(add_user))
        .route(&at("peers"), post(add_peer))
        .route(&at("doctor"), get(examine))
        .route(&at("relays"), get(relays).post(add_relay).delete(remove_relay))
        .route(&at("backup"), post(backup))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(surface)
}

/// An operation's failure as an answer.
struct Failed(OperationError);

impl<E: Into<OperationError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = match self.0.is_refusal() {
            true => StatusCode::BAD_REQUEST,
            false => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = one_line(&self.0);
        (status, Json(Failure { error })).into_response()
    }
}

async fn status(State(surface): State<Surface>) -> Result<Json<Report>, Failed> {
    Ok(Json(surface.report().await?))
}

async fn ticket(State(surface): State<Surface>) -> Result<Json<TicketText>, Failed> {
    Ok(Json(operations::ticket(&surface.node).await?))
}

async fn add_user(State(surface): State<Surface>, Json(user): Json<AddUser>) -> Result<Json<AddedUser>, Failed> {
    Ok(Json(
        operations::add_user(&surface.node, &user.name, &user.password).await?,
    ))
}

async fn add_peer(State(surface): State<Surface>, Json(peer): Json<AddPeer>) -> Result<Json<AddedPeer>, Failed> {
    let introduction = peer.ticket.parse().map_err(OperationError::Introduction)?;
    Ok(Json(operations::add_peer(&surface.node, &introduction).await?))
}

async fn backup(State(surface): State<Surface>, Json(backup): Json<Backup>) -> Result<Json<Done>, Failed> {
    Ok(Json(operations::backup(&surface.node, &backup.to).await?))
}

async fn examine(State(surface): State<Surface>) -> Result<Json<Vec<Finding>>, Failed> {
    Ok(Json(operations::examine(&surface.node).await?))
}

async fn relays(State(surface): State<Surface>) -> Result<Json<Vec<Relay>>, Failed> {
    Ok(Json(operations::relays(&surface.node).await?))
}

async fn add_relay(State(surface): State<Surface>, Json(named): Json<NamedRelay>) -> Result<Json<Done>, Failed> {
    Ok(Json(operations::add_relay(&surface.node, &named.relay).await?))
}

async fn remove_relay(State(surface): State<Surface>, Json(named): Json<NamedRelay>) -> Result<Json<Done>, Failed> {
    Ok(Json(operations::remove_relay(&surface.node, &named.relay).await?))
}
