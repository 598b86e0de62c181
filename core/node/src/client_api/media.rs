//! Media: files go in and out as streams, so these handlers work on whole requests and responses.
//!
//! The unauthenticated paths under `/_matrix/media` are frozen, as the specification asks: without an access token they
//! answer 404. With one they answer still, because clients in use call them with it.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse,
    routing::{get, post, put},
};
use ruma::{
    ServerName, UInt,
    api::{
        IncomingRequest, OutgoingResponse, OutgoingResponseExt,
        auth_scheme::{AccessToken, AccessTokenOptional},
        client::{
            authenticated_media as authenticated,
            media::{self as open, create_content, create_content_async, create_mxc_uri},
        },
        error::ErrorKind,
    },
    media::Method,
};

use super::{Args, Authenticate, Session, endpoint, endpoint::parse, serve_file};
use crate::{
    Error, Homeserver,
    homeserver::media::{Fit, Found, Labels, Variant},
};

pub(super) fn routes(mut router: Router<Homeserver>) -> Router<Homeserver> {
    router = endpoint(router, create_mxc_uri);
    router = endpoint(router, get_media_config);
    router = endpoint(router, get_old_media_config);
    router = endpoint(router, get_media_preview);
    router = endpoint(router, get_old_media_preview);
    for version in ["r0", "v1", "v3"] {
        router = router.route(&format!("/_matrix/media/{version}/upload"), post(upload));
        let old = format!("/_matrix/media/{version}");
        router = download_routes(
            router,
            &old,
            get(old_download),
            get(old_download_as),
            get(old_thumbnail),
        );
    }
    for upload in ["v3", "unstable/fi.mau.msc2246"] {
        let path = format!("/_matrix/media/{upload}/upload/{{server_name}}/{{media_id}}");
        router = router.route(&path, put(upload_to));
    }
    for version in ["v1", "unstable/org.matrix.msc3916"] {
        let base = format!("/_matrix/client/{version}/media");
        router = download_routes(router, &base, get(download), get(download_as), get(thumbnail));
    }
    router
}

type Route = axum::routing::MethodRouter<Homeserver>;

fn download_routes(
    router: Router<Homeserver>,
    base: &str,
    download: Route,
    download_as: Route,
    thumbnail: Route,
) -> Router<Homeserver> {
    router
        .route(&format!("{base}/download/{{server_name}}/{{media_id}}"), download)
        .route(
            &format!("{base}/download/{{server_name}}/{{media_id}}/{{file_name}}"),
            download_as,
        )
        .route(&format!("{base}/thumbnail/{{server_name}}/{{media_id}}"), thumbnail)
}

async fn create_mxc_uri(
    hs: Homeserver,
    args: Args<create_mxc_uri::v1::Request>,
) -> Result<create_mxc_uri::v1::Response, Error> {
    let (uri, expires) = hs.media.create(&args.caller.user_id).await?;
    let mut response = create_mxc_uri::v1::Response::new(uri);
    response.unused_expires_at = Some(expires);
    Ok(response)
}

async fn get_media_config(
    hs: Homeserver,
    _: Args<authenticated::get_media_config::v1::Request>,
) -> Result<authenticated::get_media_config::v1::Response, Error> {
    let largest = UInt::new_saturating(hs.context.config.max_upload_bytes);
    Ok(authenticated::get_media_config::v1::Response::new(largest))
}

#[allow(deprecated)]
async fn get_old_media_config(
    hs: Homeserver,
    _: Args<open::get_media_config::v3::Request>,
) -> Result<open::get_media_config::v3::Response, Error> {
    let largest = UInt::new_saturating(hs.context.config.max_upload_bytes);
    Ok(open::get_media_config::v3::Response::new(largest))
}

/// Previews would make this node fetch what strangers name, and tell them that it is read.
async fn get_media_preview(
    _: Homeserver,
    _: Args<authenticated::get_media_preview::v1::Request>,
) -> Result<authenticated::get_media_preview::v1::Response, Error> {
    Err(no_previews())
}

#[allow(deprecated)]
async fn get_old_media_preview(
    _: Homeserver,
    _: Args<open::get_media_preview::v3::Request>,
) -> Result<open::get_media_preview::v3::Response, Error> {
    Err(no_previews())
}

fn no_previews() -> Error {
    Error::not_found("this node makes no previews of web pages")
}

type Answer = Result<Response<Body>, Error>;

async fn upload(State(hs): State<Homeserver>, path: RawPathParams, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let session = session(&hs, &head).await?;
    check_length(&hs, &head)?;
    let typed: create_content::v3::Request = typed(&head, &path)?;
    let labels = Labels {
        content_type: typed.content_type,
        filename: typed.filename,
    };
    let uri = hs
        .media
        .upload(&session.user_id, labels, body.into_data_stream())
        .await?;
    render(create_content::v3::Response::new(uri))
}

async fn upload_to(State(hs): State<Homeserver>, path: RawPathParams, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let session = session(&hs, &head).await?;
    check_length(&hs, &head)?;
    let typed: create_content_async::v3::Request = typed(&head, &path)?;
    let labels = Labels {
        content_type: typed.content_type,
        filename: typed.filename,
    };
    let body = body.into_data_stream();
    hs.media
        .upload_to(&session, &typed.server_name, &typed.media_id, labels, body)
        .await?;
    // ruma's response cannot be made outside of ruma; it is an empty object.
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], "{}").into_response())
}

async fn download(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    session(&hs, &head).await?;
    let asked: authenticated::get_content::v1::Request = typed(&head, &path)?;
    let wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.serve(&hs, &head.headers).await
}

async fn download_as(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    session(&hs, &head).await?;
    let asked: authenticated::get_content_as_filename::v1::Request = typed(&head, &path)?;
    let wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.named(asked.filename).serve(&hs, &head.headers).await
}

async fn thumbnail(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    session(&hs, &head).await?;
    let asked: authenticated::get_content_thumbnail::v1::Request = typed(&head, &path)?;
    let variant = variant(asked.width, asked.height, asked.method, asked.animated)?;
    let wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.serve_thumbnail(&hs, &head.headers, variant).await
}

#[allow(deprecated)]
async fn old_download(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    thawed(&hs, &head).await?;
    let asked: open::get_content::v3::Request = typed(&head, &path)?;
    let mut wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.fetch = asked.allow_remote;
    wanted.serve(&hs, &head.headers).await
}

#[allow(deprecated)]
async fn old_download_as(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    thawed(&hs, &head).await?;
    let asked: open::get_content_as_filename::v3::Request = typed(&head, &path)?;
    let mut wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.fetch = asked.allow_remote;
    wanted.named(asked.filename).serve(&hs, &head.headers).await
}

#[allow(deprecated)]
async fn old_thumbnail(State(hs): State<Homeserver>, path: RawPathParams, head: Parts) -> Answer {
    thawed(&hs, &head).await?;
    let asked: open::get_content_thumbnail::v3::Request = typed(&head, &path)?;
    let variant = variant(asked.width, asked.height, asked.method, asked.animated)?;
    let mut wanted = Wanted::new(&asked.server_name, &asked.media_id, asked.timeout_ms);
    wanted.fetch = asked.allow_remote;
    wanted.serve_thumbnail(&hs, &head.headers, variant).await
}

/// What a client wants to see.
struct Wanted<'a> {
    server: &'a ServerName,
    media_id: &'a str,
    wait: Duration,
    fetch: bool,
    filename: Option<String>,
}

impl<'a> Wanted<'a> {
    fn new(server: &'a ServerName, media_id: &'a str, wait: Duration) -> Self {
        Self {
            server,
            media_id,
            wait,
            fetch: true,
            filename: None,
        }
    }

    fn named(mut self, filename: String) -> Self {
        self.filename = Some(filename);
        self
    }

    async fn find(&self, hs: &Homeserver) -> Result<Found, Error> {
        hs.media.find(self.server, self.media_id, self.wait, self.fetch).await
    }

    async fn serve(self, hs: &Homeserver, headers: &HeaderMap) -> Answer {
        let mut found = self.find(hs).await?;
        if self.filename.is_some() {
            found.file.filename = self.filename;
        }
        serve_file::serve_file(found, headers).await
    }

    async fn serve_thumbnail(self, hs: &Homeserver, headers: &HeaderMap, variant: Variant) -> Answer {
        let found = self.find(hs).await?;
        let thumbnail = hs.media.thumbnail(&found, variant).await?;
        serve_file::serve_file(serve_file::named_thumbnail(thumbnail), headers).await
    }
}

/// Reads what a client asks of a thumbnail. The specification lets a server give a larger one than asked for.
pub(crate) fn variant(
    width: UInt,
    height: UInt,
    method: Option<Method>,
    animated: Option<bool>,
) -> Result<Variant, Error> {
    let side = |side: UInt| u32::try_from(side).unwrap_or(u32::MAX);
    let (width, height) = (side(width), side(height));
    if width == 0 || height == 0 {
        return Err(Error::invalid_param("a thumbnail has a width and a height"));
    }
    let fit = match method {
        Some(Method::Crop) => Fit::Crop,
        _ => Fit::Scale,
    };
    Ok(Variant::at_least(width, height, fit, animated.unwrap_or(false)))
}

async fn session(hs: &Homeserver, head: &Parts) -> Result<Session, Error> {
    <AccessToken as Authenticate>::authenticate(hs, head).await
}

/// Lets a request to a frozen path through if it carries a token.
async fn thawed(hs: &Homeserver, head: &Parts) -> Result<(), Error> {
    match <AccessTokenOptional as Authenticate>::authenticate(hs, head).await? {
        Some(_) => Ok(()),
        None => Err(Error::not_found(
            "media are no longer given out without an access token; use /_matrix/client/v1/media",
        )),
    }
}

/// Spares a client from sending what is refused in the end.
fn check_length(hs: &Homeserver, head: &Parts) -> Result<(), Error> {
    let length = head.headers.get(header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let limit = hs.context.config.max_upload_bytes;
    if length.is_some_and(|length| length > limit) {
        return Err(Error::refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooLarge,
            format!("the file is over {limit} bytes"),
        ));
    }
    Ok(())
}

/// Parses everything about a request but its body.
fn typed<R: IncomingRequest>(head: &Parts, path: &RawPathParams) -> Result<R, Error> {
    let arguments: Vec<&str> = path.iter().map(|(_, value)| value).collect();
    parse(http::Request::from_parts(head.clone(), b"".as_slice()), &arguments)
}

fn render<R: OutgoingResponse>(response: R) -> Answer {
    let response = response
        .try_into_http_response::<Vec<u8>>()
        .map_err(|error| Error::Internal("a response did not serialise", Some(Box::new(error))))?;
    Ok(response.map(Body::from).into_response())
}
