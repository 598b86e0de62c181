//! Turns a file into a response: headers, ranges, and a body that is read as it is sent. It decides nothing about who may
//! have it.

use std::io::SeekFrom;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use tokio_util::io::ReaderStream;

use crate::{Error, homeserver::media::Found};

/// Types that a browser may show in place. Client-server API, "Serving inline content".
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// Client-server API, "Security considerations" of the content repository.
const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                                       style-src 'unsafe-inline'; object-src 'self';";

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// What a `Range` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    /// Nothing that is there.
    Nothing,
}

/// Gives a thumbnail the name that the specification suggests.
pub(crate) fn named_thumbnail(mut thumbnail: Found) -> Found {
    let kind = thumbnail.file.content_type.as_deref().unwrap_or_default();
    let ending = kind.strip_prefix("image/").unwrap_or_default();
    thumbnail.file.filename = Some(format!("thumbnail.{ending}"));
    thumbnail
}

/// Type and disposition under which a file is handed out.
pub(crate) fn labels(found: &Found) -> (String, ContentDisposition) {
    let content_type = found.file.content_type.clone();
    let content_type = content_type.unwrap_or_else(|| mime::APPLICATION_OCTET_STREAM.to_string());
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let kind = match INLINE.iter().any(|inline| inline.eq_ignore_ascii_case(essence)) {
        true => ContentDispositionType::Inline,
        false => ContentDispositionType::Attachment,
    };
    let disposition = ContentDisposition::new(kind).with_filename(found.file.filename.clone());
    (content_type, disposition)
}

/// Answers with a file, or with the part of it that was asked for.
pub(super) async fn serve_file(found: Found, asked: &HeaderMap) -> Result<Response<Body>, Error> {
    let size = found.file.size;
    let mut response = Response::new(Body::empty());
    let etag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&found.file.hash));
    set_headers(response.headers_mut(), &found, &etag)?;
    if asked
        .get(header::IF_NONE_MATCH)
        .is_some_and(|tag| tag.as_bytes() == etag.as_bytes())
    {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A range of another version than the client has would be of no use to it.
    let ranges_hold = asked
        .get(header::IF_RANGE)
        .is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let range = asked.get(header::RANGE).filter(|_| ranges_hold);
    let (start, length) = match range.map_or(Asked::Whole, |range| parse_range(range, size)) {
        Asked::Whole => (0, size),
        Asked::Part(first, last) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(
                response.headers_mut(),
                header::CONTENT_RANGE,
                &format!("bytes {first}-{last}/{size}"),
            )?;
            (first, last - first + 1)
        }
        Asked::Nothing => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(
                response.headers_mut(),
                header::CONTENT_RANGE,
                &format!("bytes */{size}"),
            )?;
            return Ok(response);
        }
    };
    set(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string())?;
    let mut file = open(&found).await?;
    if start > 0 {
        file.seek(SeekFrom::Start(start)).await.map_err(unreadable)?;
    }
    *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK));
    Ok(response)
}

/// Opens a file that was found. It may have been forgotten since; then it is as if it had not been found.
pub(crate) async fn open(found: &Found) -> Result<File, Error> {
    File::open(&found.path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("the file is no longer here"),
        _ => unreadable(error),
    })
}

fn set_headers(headers: &mut HeaderMap, found: &Found, etag: &str) -> Result<(), Error> {
    let (content_type, disposition) = labels(found);
    // A type that cannot stand in a header is none.
    let content_type =
        HeaderValue::from_str(&content_type).unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, content_type);
    set(headers, header::CONTENT_DISPOSITION, &disposition.to_string())?;
    set(headers, header::ETAG, etag)?;
    for (name, value) in [
        (header::ACCEPT_RANGES, "bytes"),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Client-server API, "Security considerations": lets web clients of other origins show what they fetched by token.
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
    Ok(())
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) -> Result<(), Error> {
    let value = HeaderValue::from_str(value)
        .map_err(|error| Error::Internal("a header value is malformed", Some(Box::new(error))))?;
    headers.insert(name, value);
    Ok(())
}

/// Reads a range of bytes. RFC 9110, section 14: what is malformed, or asks for several ranges, is answered whole.
fn parse_range(range: &HeaderValue, size: u64) -> Asked {
    let parsed = range.to_str().ok().and_then(|range| {
        let (first, last) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| match text.trim() {
            "" => Some(None),
            digits => digits.parse::<u64>().ok().map(Some),
        };
        Some((number(first)?, number(last)?))
    });
    match parsed {
        Some((Some(first), _)) if first >= size => Asked::Nothing,
        Some((Some(first), Some(last))) if first <= last => Asked::Part(first, last.min(size - 1)),
        Some((Some(first), None)) => Asked::Part(first, size - 1),
        Some((None, Some(0))) => Asked::Nothing,
        Some((None, Some(_))) if size == 0 => Asked::Nothing,
        Some((None, Some(suffix))) => Asked::Part(size - suffix.min(size), size - 1),
        _ => Asked::Whole,
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::Internal("a media file could not be read", Some(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Asked::Part(0, 0)),
            ("bytes=2-5", 10, Asked::Part(2, 5)),
            ("bytes=2-", 10, Asked::Part(2, 9)),
            ("bytes=2-99", 10, Asked::Part(2, 9)),
            ("bytes=-3", 10, Asked::Part(7, 9)),
            ("bytes=-99", 10, Asked::Part(0, 9)),
            ("bytes=9-9", 10, Asked::Part(9, 9)),
            ("bytes=10-", 10, Asked::Nothing),
            ("bytes=-0", 10, Asked::Nothing),
            ("bytes=0-", 0, Asked::Nothing),
            ("bytes=-1", 0, Asked::Nothing),
            ("bytes=5-2", 10, Asked::Whole),
            ("bytes=0-1,3-4", 10, Asked::Whole),
            ("bytes=a-b", 10, Asked::Whole),
            ("bytes=-", 10, Asked::Whole),
            ("lines=1-2", 10, Asked::Whole),
            ("bytes=18446744073709551615-", 10, Asked::Nothing),
            ("bytes=0-18446744073709551616", 10, Asked::Whole),
        ] {
            assert_eq!(
                parse_range(&HeaderValue::from_static(header), size),
                expected,
                "{header} of {size}"
            );
        }
    }
}
