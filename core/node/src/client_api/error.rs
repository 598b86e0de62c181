//! Renders refusals and failures as Matrix errors. Internal causes go to the log, never to a client.

use axum::{
    body::Body,
    http::{Response, StatusCode},
    response::IntoResponse,
};
use kith_store::StoreError;
use ruma::api::{
    OutgoingResponseExt,
    client::uiaa::{UiaaInfo, UiaaResponse},
    error::{ErrorBody, ErrorKind, IntoHttpError, StandardErrorBody},
};

use crate::{Error, network::NetworkError};

impl IntoResponse for Error {
    fn into_response(self) -> Response<Body> {
        render_error(&self)
    }
}

/// The Matrix error response for an error.
pub fn render_error(error: &Error) -> Response<Body> {
    let (status, kind, message) = match error {
        Error::AuthenticationNeeded(info) => return render_flows(info),
        Error::Refused { status, kind, message } => (*status, (**kind).clone(), message.clone()),
        Error::Network(NetworkError::TimedOut(_)) => {
            (StatusCode::GATEWAY_TIMEOUT, ErrorKind::Unknown, error.to_string())
        }
        Error::Network(_) => (StatusCode::BAD_GATEWAY, ErrorKind::Unknown, error.to_string()),
        Error::Store(StoreError::Full) => {
            // 503, so that clients keep the message and try again once there is room.
            (
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Unknown,
                "the disk of this node is full; try again later".to_owned(),
            )
        }
        Error::Store(_) | Error::Internal(..) => {
            tracing::error!(error = error as &dyn std::error::Error, "request failed");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                ErrorKind::Unknown,
                "internal error".to_owned(),
            )
        }
    };
    render(status, kind, message)
}

/// Answers an unknown route: 404 `M_UNRECOGNIZED`.
pub(crate) async fn unrecognized() -> Response<Body> {
    render(
        StatusCode::NOT_FOUND,
        ErrorKind::Unrecognized,
        "there is no such endpoint".to_owned(),
    )
}

/// Answers a known route that has no such method: 405 `M_UNRECOGNIZED`.
pub(crate) async fn wrong_method() -> Response<Body> {
    render(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::Unrecognized,
        "this endpoint has no such method".to_owned(),
    )
}

fn render_flows(info: &UiaaInfo) -> Response<Body> {
    finish(UiaaResponse::AuthResponse(info.clone()).try_into_http_response::<Vec<u8>>())
}

/// A Matrix error response.
pub(super) fn render(status: StatusCode, kind: ErrorKind, message: String) -> Response<Body> {
    let body = ErrorBody::Standard(StandardErrorBody::new(kind, message));
    finish(body.into_error(status).try_into_http_response::<Vec<u8>>())
}

fn finish(response: Result<Response<Vec<u8>>, IntoHttpError>) -> Response<Body> {
    match response {
        Ok(response) => response.map(Body::from),
        Err(error) => {
            tracing::error!(%error, "an error response did not serialise");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::Value;

    use crate::testing::Cluster;

    /// Client-server and server-server API, "Unsupported endpoints". What is left of the first version of the API is old
    /// enough to count as unknown.
    #[tokio::test]
    async fn unknown_routes_and_methods_are_unrecognized() {
        let cluster = Cluster::start(2).await;
        let client = cluster[0].client();
        let cases = [
            (Method::GET, "/_matrix/client/v3/nothing", 404),
            (Method::GET, "/_matrix/client/v3/events", 404),
            (Method::GET, "/_matrix/client/v3/events/$event", 404),
            (Method::GET, "/_matrix/client/v3/initialSync", 404),
            (Method::GET, "/_matrix/client/v3/rooms/!room/initialSync", 404),
            (Method::GET, "/_matrix/client/v3/login/sso/redirect", 404),
            (Method::GET, "/_matrix/client/v1/auth_metadata", 404),
            (Method::GET, "/.well-known/matrix/support", 404),
            (Method::PUT, "/_matrix/client/v3/login", 405),
            (Method::DELETE, "/_matrix/client/versions", 405),
        ];
        for (method, path, status) in cases {
            let answer = client.raw(method, path, Vec::new()).await;
            let body: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(
                (answer.status().as_u16(), &body["errcode"]),
                (status, &"M_UNRECOGNIZED".into()),
                "{path}"
            );
        }
        let cases = [
            ("/_matrix/federation/v1/nothing", 404),
            ("/_matrix/federation/v1/query/nothing", 404),
            ("/_matrix/federation/v1/send/1", 405),
        ];
        for (path, status) in cases {
            let (found, body) = cluster[0].ask(&cluster[1], Method::GET, path, Value::Null).await;
            assert_eq!(
                (found.as_u16(), &body["errcode"]),
                (status, &"M_UNRECOGNIZED".into()),
                "{path}"
            );
        }
    }
}
