//! Typed requests to other nodes. No retry stands here: who asks knows whether asking again helps.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use ruma::{
    ServerName,
    api::{
        IncomingResponse, OutgoingBody, OutgoingRequest,
        error::{ErrorKind, IntoHttpError, StandardErrorBody},
        federation::transactions::send_transaction_message,
        path_builder::PathBuilder,
    },
};

use crate::{
    Error,
    homeserver::Context,
    network::{Limits, NetworkError},
};

/// RFC 7240: a transaction that is accepted as a whole is answered 204, without the list of its events, which would cost more
/// than everything else in the answer. MSC3618 does without that list for the same reason.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const MINIMAL: HeaderValue = HeaderValue::from_static("return=minimal");

/// Longest message of another node that is passed on, in characters.
const MAX_MESSAGE: usize = 300;

/// Sends one of ruma's federation requests and parses the answer. The connection proves who asks, so nothing is signed.
///
/// An error answer is [`NetworkError::Refused`]; an answer that does not parse is [`NetworkError::Broken`].
pub async fn request<R>(context: &Context, to: &ServerName, request: R) -> Result<R::IncomingResponse, Error>
where
    R: OutgoingRequest,
    R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
{
    request_within(context, to, request, Limits::default()).await
}

/// [`request`] with limits of its own.
pub async fn request_within<R>(
    context: &Context,
    to: &ServerName,
    request: R,
    limits: Limits,
) -> Result<R::IncomingResponse, Error>
where
    R: OutgoingRequest,
    R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
{
    let response = exchange(context, to, http_request(request)?, limits).await?;
    parse::<R>(to, response)
}

/// Sends a transaction. None: it is accepted as a whole, and nothing is answered but that.
pub async fn send_transaction(
    context: &Context,
    to: &ServerName,
    request: send_transaction_message::v1::Request,
) -> Result<Option<send_transaction_message::v1::Response>, Error> {
    let mut request = http_request(request)?;
    request.headers_mut().insert(PREFER, MINIMAL);
    let response = exchange(context, to, request, Limits::default()).await?;
    if response.status() == StatusCode::NO_CONTENT {
        return Ok(None);
    }
    parse::<send_transaction_message::v1::Request>(to, response).map(Some)
}

/// Gives only answers of success.
async fn exchange(
    context: &Context,
    to: &ServerName,
    request: Request<Bytes>,
    limits: Limits,
) -> Result<Response<Bytes>, Error> {
    let response = context.network.request(to, request, limits).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(to, &response).into())
}

fn parse<R>(server: &ServerName, response: Response<Bytes>) -> Result<R::IncomingResponse, Error>
where
    R: OutgoingRequest,
{
    let (head, body) = response.into_parts();
    let response = http::Response::from_parts(head, body.as_ref());
    // ruma's multipart parser panics on some malformed bodies; to us that is one more answer that does not parse.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        R::IncomingResponse::try_from_http_response_inner(response)
    }));
    let reason = match parsed {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the answer is malformed".to_owned(),
    };
    let server = server.to_owned();
    Err(NetworkError::Broken { server, reason }.into())
}

fn http_request<R>(request: R) -> Result<Request<Bytes>, Error>
where
    R: OutgoingRequest,
    R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
{
    let (mut head, body) = request
        .try_into_http_request_inner("", ())
        .map_err(unsendable)?
        .into_parts();
    if let Some(content_type) = body.content_type() {
        head.headers.entry(header::CONTENT_TYPE).or_insert(content_type);
    }
    let body: Vec<u8> = body.try_into_buf().map_err(|error| unsendable(error.into()))?;
    Ok(Request::from_parts(head, body.into()))
}

fn unsendable(error: IntoHttpError) -> Error {
    Error::Internal("a federation request did not serialise", Some(Box::new(error)))
}

/// What another node's error answer says.
fn refusal(server: &ServerName, response: &Response<Bytes>) -> NetworkError {
    let body: Option<StandardErrorBody> = serde_json::from_slice(response.body()).ok();
    let (kind, message) = match body {
        Some(body) => (body.kind, body.message),
        None => (ErrorKind::Unknown, "no Matrix error".to_owned()),
    };
    NetworkError::Refused {
        server: server.to_owned(),
        status: response.status().as_u16(),
        kind: Box::new(kind),
        message: message.chars().take(MAX_MESSAGE).collect(),
    }
}

#[cfg(test)]
mod tests {
    use ruma::api::federation::discovery::get_server_version;

    use super::*;
    use crate::testing::Cluster;

    #[tokio::test]
    async fn tells_an_error_answer_from_silence() {
        let cluster = Cluster::start(2).await;
        let ask = async || {
            request(
                &cluster[0].hs.context,
                &cluster[1].name,
                get_server_version::v1::Request::new(),
            )
            .await
        };
        cluster[1].go_down();
        assert!(matches!(ask().await, Err(Error::Network(NetworkError::Unreachable(name))) if name == cluster[1].name));
    }

    #[test]
    fn reads_error_answers() {
        let cases = [
            (r#"{"errcode":"M_FORBIDDEN","error":"no"}"#, ErrorKind::Forbidden, "no"),
            (r#"{"errcode":"M_FORBIDDEN"}"#, ErrorKind::Unknown, "no Matrix error"),
            ("<html>", ErrorKind::Unknown, "no Matrix error"),
            ("", ErrorKind::Unknown, "no Matrix error"),
        ];
        for (body, expected, text) in cases {
            let response = Response::builder().status(403).body(Bytes::from(body)).unwrap();
            let NetworkError::Refused {
                status: 403,
                kind,
                message,
                ..
            } = refusal(ruma::server_name!("a"), &response)
            else {
                panic!("{body}")
            };
            assert_eq!((kind.errcode(), message.as_str()), (expected.errcode(), text), "{body}");
        }
    }
}
