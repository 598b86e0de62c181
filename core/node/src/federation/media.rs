//! Media that other servers fetch from here: what was uploaded to this server, as `multipart/mixed`, read as it is sent.
//!
//! Server-server API, "Content repository".

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, State},
    http::{HeaderValue, Response, header, request::Parts},
    response::IntoResponse,
    routing::get,
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _,
    federation::{
        authenticated_media::{get_content, get_content_thumbnail},
        authentication::ServerSignatures,
    },
};
use tokio_util::io::ReaderStream;

use crate::{
    Error, Homeserver,
    client_api::{Authenticate, serve_file, thumbnail_variant},
    homeserver::media::Found,
};

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    router
        .route("/_matrix/federation/v1/media/download/{media_id}", get(download))
        .route("/_matrix/federation/v1/media/thumbnail/{media_id}", get(thumbnail))
}

async fn download(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Result<Response<Body>, Error> {
    let asked: get_content::v1::Request = typed(&hs, &head, &path).await?;
    let found = find(&hs, &asked.media_id, asked.timeout_ms).await?;
    wrap(&hs, found).await
}

async fn thumbnail(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Result<Response<Body>, Error> {
    let asked: get_content_thumbnail::v1::Request = typed(&hs, &head, &path).await?;
    let variant = thumbnail_variant(asked.width, asked.height, asked.method, asked.animated)?;
    let found = find(&hs, &asked.media_id, asked.timeout_ms).await?;
    let thumbnail = hs.media.thumbnail(&found, variant).await?;
    wrap(&hs, serve_file::named_thumbnail(thumbnail)).await
}

async fn find(hs: &Homeserver, media_id: &str, wait: Duration) -> Result<Found, Error> {
    let server = hs.context.server_name.clone();
    hs.media.find(&server, media_id, wait, false).await
}

/// Proves the peer and parses the request.
async fn typed<R: IncomingRequest>(hs: &Homeserver, head: &Parts, path: &RawPathParams) -> Result<R, Error> {
    <ServerSignatures as Authenticate>::authenticate(hs, head).await?;
    let arguments: Vec<&str> = path.iter().map(|(_, value)| value).collect();
    let request = http::Request::from_parts(head.clone(), b"".as_slice());
    R::try_from_http_request(request, &arguments).map_err(|error| Error::invalid_param(error.to_string()))
}

/// Two parts: metadata, of which none is specified yet, and the file.
async fn wrap(hs: &Homeserver, found: Found) -> Result<Response<Body>, Error> {
    let file = serve_file::open(&found).await?;
    let boundary = hs.context.world.random_token();
    let (content_type, disposition) = serve_file::labels(&found);
    let before = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\nContent-Type: {content_type}\r\n\
         Content-Disposition: {disposition}\r\n\r\n"
    );
    let after = format!("\r\n--{boundary}--\r\n");
    let length = before.len() as u64 + found.file.size + after.len() as u64;
    let body = stream::iter([Ok(Bytes::from(before))])
        .chain(ReaderStream::with_capacity(file, CHUNK))
        .chain(stream::iter([Ok(Bytes::from(after))]));
    let mut response = Body::from_stream(body).into_response();
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}"))
        .map_err(|error| Error::Internal("a header value is malformed", Some(Box::new(error))))?;
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}
