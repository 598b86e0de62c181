//! One adapter between axum and ruma for every endpoint: a handler gets a typed request and a proven caller, and returns
//! a typed response or an [`Error`].

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawPathParams, Request, State},
    http::{Method, Response, StatusCode, request::Parts},
    response::IntoResponse,
    routing::{MethodFilter, on},
};
use ruma::api::{
    IncomingRequest, IncomingRequestExt, Metadata, OutgoingResponseExt,
    error::{ErrorKind, FromHttpRequestError},
    path_builder::PathBuilder,
};

use crate::{Error, Homeserver};

/// Where a room's state is read and written when the empty state key is left out, with its slash or without. ruma parses
/// such requests, but lists only the path with a state key.
pub(super) const EMPTY_STATE_KEY_PATHS: [&str; 4] = [
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/",
    "/_matrix/client/r0/rooms/{room_id}/state/{event_type}",
    "/_matrix/client/r0/rooms/{room_id}/state/{event_type}/",
];

/// Bytes of a request body, where it is not clients that ask: stands in a request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit(pub(crate) usize);

/// What a handler gets.
pub struct Args<R: Metadata>
where
    R::Authentication: Authenticate,
{
    /// The parsed request.
    pub request: R,
    /// Who asks, in the shape that the endpoint's authentication scheme gives.
    pub caller: <R::Authentication as Authenticate>::Caller,
}

/// Proves who asks. Implemented for ruma's authentication schemes.
pub trait Authenticate {
    /// The proof's outcome.
    type Caller: Send;

    /// Looks at a request's head; refuses with the errcode that the specification names.
    fn authenticate(homeserver: &Homeserver, head: &Parts) -> impl Future<Output = Result<Self::Caller, Error>> + Send;
}

/// Adds one endpoint under all its paths. The handler is
/// `async fn(Homeserver, Args<Request>) -> Result<Response, Error>`.
pub fn endpoint<R, F, Fut>(mut router: Router<Homeserver>, handler: F) -> Router<Homeserver>
where
    R: IncomingRequest + Send + 'static,
    R::Authentication: Authenticate,
    R::OutgoingResponse: Send,
    F: Fn(Homeserver, Args<R>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<R::OutgoingResponse, Error>> + Send,
{
    for path in R::PATH_BUILDER.all_paths() {
        router = endpoint_at(router, path, handler.clone());
    }
    router
}

/// Adds one endpoint under a path that ruma does not list, as [`endpoint`] does.
pub fn endpoint_at<R, F, Fut>(router: Router<Homeserver>, path: &str, handler: F) -> Router<Homeserver>
where
    R: IncomingRequest + Send + 'static,
    R::Authentication: Authenticate,
    R::OutgoingResponse: Send,
    F: Fn(Homeserver, Args<R>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<R::OutgoingResponse, Error>> + Send,
{
    let Ok(filter) = MethodFilter::try_from(R::METHOD) else {
        tracing::error!(method = %R::METHOD, "endpoint with a method that cannot be routed");
        return router;
    };
    let serve = move |State(homeserver): State<Homeserver>, path: RawPathParams, request: Request| async move {
        match answer::<R, F, Fut>(homeserver, path, request, handler).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    };
    router.route(path, on(filter, serve))
}

async fn answer<R, F, Fut>(
    homeserver: Homeserver,
    path: RawPathParams,
    request: Request,
    handler: F,
) -> Result<Response<Body>, Error>
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
    F: Fn(Homeserver, Args<R>) -> Fut,
    Fut: Future<Output = Result<R::OutgoingResponse, Error>>,
{
    let args = read::<R>(&homeserver, &path, request).await?;
    render(handler(homeserver, args).await?)
}

/// Reads what a request asks: who asks first, and then all of it.
pub(crate) async fn read<R>(homeserver: &Homeserver, path: &RawPathParams, request: Request) -> Result<Args<R>, Error>
where
    R: IncomingRequest,
    R::Authentication: Authenticate,
{
    let (head, body) = request.into_parts();
    let caller = <R::Authentication as Authenticate>::authenticate(homeserver, &head).await?;
    let limit = head.extensions.get::<BodyLimit>().map(|limit| limit.0);
    let limit = limit.unwrap_or(homeserver.context.config.max_body_bytes);
    let body = read_body(limit, &head.method, body).await?;
    let arguments: Vec<&str> = path.iter().map(|(_, value)| value).collect();
    let request = parse::<R>(http::Request::from_parts(head, body.as_ref()), &arguments)?;
    Ok(Args { request, caller })
}

/// Turns a typed answer into one for HTTP.
pub(crate) fn render(response: impl OutgoingResponseExt) -> Result<Response<Body>, Error> {
    let response = response
        .try_into_http_response::<Vec<u8>>()
        .map_err(|error| Error::Internal("a response did not serialise", Some(Box::new(error))))?;
    Ok(response.map(Body::from))
}

/// Parses a request. Some of ruma's parsers panic on malformed JSON (login without `type`); that is bad JSON, no more.
pub(super) fn parse<R: IncomingRequest>(request: http::Request<&[u8]>, arguments: &[&str]) -> Result<R, Error> {
    catch_unwind(AssertUnwindSafe(|| R::try_from_http_request(request, arguments)))
        .map_err(|_| Error::bad_json("the body lacks a required field"))?
        .map_err(malformed)
}

/// Reads a JSON body up to a size. Clients may send no body at all where `{}` is meant.
async fn read_body(limit: usize, method: &Method, body: Body) -> Result<Bytes, Error> {
    let bytes = axum::body::to_bytes(body, limit)
        .await
        .map_err(|error| unreadable(limit, &error))?;
    if bytes.is_empty() && [Method::POST, Method::PUT, Method::DELETE].contains(method) {
        return Ok(Bytes::from_static(b"{}"));
    }
    Ok(bytes)
}

/// Tells a body that is too large from one that broke off or is compressed and damaged.
fn unreadable(limit: usize, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    if causes.any(|cause| cause.is::<http_body_util::LengthLimitError>()) {
        let text = format!("the body is over {limit} bytes");
        return Error::refused(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, text);
    }
    let text = format!("the body cannot be read: {error}");
    Error::refused(StatusCode::BAD_REQUEST, ErrorKind::NotJson, text)
}

/// Tells bytes that are no JSON (`M_NOT_JSON`) from JSON of the wrong shape (`M_BAD_JSON`).
fn malformed(error: FromHttpRequestError) -> Error {
    let text = error.to_string();
    let kind = match &error {
        FromHttpRequestError::Deserialization(ruma::api::error::DeserializationError::Json(json))
            if !json.is_data() =>
        {
            ErrorKind::NotJson
        }
        _ => ErrorKind::BadJson,
    };
    Error::refused(StatusCode::BAD_REQUEST, kind, text)
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, Limited};

    use super::*;

    #[tokio::test]
    async fn a_body_that_cannot_be_read_is_told_from_one_that_is_too_large() {
        let limited = |max| Body::new(Limited::new(Full::new(Bytes::from("12345")), max));
        let broken = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("damaged")) });
        for (body, expected) in [
            (limited(5), Ok(5)),
            (limited(4), Err((413, "M_TOO_LARGE"))),
            (Body::from("123456"), Err((413, "M_TOO_LARGE"))),
            (Body::from_stream(broken), Err((400, "M_NOT_JSON"))),
        ] {
            let read = read_body(5, &Method::PUT, body).await;
            let outcome = read.map(|bytes| bytes.len()).map_err(|error| match error {
                Error::Refused { status, kind, .. } => (status.as_u16(), kind.errcode().to_string()),
                error => panic!("{error}"),
            });
            assert_eq!(
                outcome,
                expected.map_err(|(status, errcode)| (status, errcode.to_owned()))
            );
        }
    }
}
