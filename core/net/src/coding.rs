//! The zstd coding of JSON bodies (RFC 8878; `content-encoding` as RFC 9110, section 8.4). Knows no route, and spends no
//! memory on what it decodes beyond a window and a piece.
//!
//! Every node takes requests whose body is zstd; answers are coded when the request says `accept-encoding: zstd`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Frame;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::BoxError;

/// Bodies of more bytes are compressed.
const SMALL: usize = 1 << 10;

/// Bodies of more bytes are compressed off the async threads.
const LONG_WORK: usize = 256 << 10;

/// The fastest of zstd's ordinary levels. The higher ones gain little on events, which are full of signatures.
const LEVEL: i32 = 1;

/// Base-two logarithm of the bytes that a decoder looks back on at the most: 2 MiB, as zstd's default level needs. A
/// frame that asks for more is refused before memory is taken.
const MAX_WINDOW_LOG: u32 = 21;

/// Bytes that are decoded at once.
const PIECE: usize = 64 << 10;

const ZSTD: HeaderValue = HeaderValue::from_static("zstd");

/// Why a body cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodingError {
    /// Not zstd, damaged, or a window larger than allowed.
    #[error("the body is no valid zstd: {0}")]
    Invalid(#[source] io::Error),
    #[error("the body's zstd is cut short")]
    CutShort,
}

/// The coding of a body is one that no node uses.
#[derive(Debug, thiserror::Error)]
#[error("the body's content-encoding is not known")]
pub(crate) struct UnknownCoding;

/// Says that the answer may be compressed.
pub(crate) fn accept(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, ZSTD);
}

/// Whether the answer may be compressed.
pub(crate) fn accepts(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        value
            .split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("zstd"))
    };
    headers.get_all(ACCEPT_ENCODING).iter().any(named)
}

/// Whether a body of this length would be compressed: JSON that is not small. Media are compressed already.
pub(crate) fn is_worthwhile(headers: &HeaderMap, length: u64) -> bool {
    let json = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    json && length > SMALL as u64 && !headers.contains_key(CONTENT_ENCODING)
}

/// Compresses a body if that makes it smaller, and says so in the headers.
pub(crate) async fn encode(headers: &mut HeaderMap, body: Bytes) -> Bytes {
    if !is_worthwhile(headers, body.len() as u64) {
        return body;
    }
    let coded = if body.len() > LONG_WORK {
        let body = body.clone();
        tokio::task::spawn_blocking(move || compress(&body))
            .await
            .ok()
            .flatten()
    } else {
        compress(&body)
    };
    let Some(coded) = coded else { return body };
    headers.insert(CONTENT_ENCODING, ZSTD);
    headers.remove(CONTENT_LENGTH);
    coded
}

/// A body that does not become smaller stays as it is, and so does one for which there is no memory.
fn compress(body: &[u8]) -> Option<Bytes> {
    let coded = zstd::bulk::compress(body, LEVEL).ok()?;
    (coded.len() < body.len()).then(|| coded.into())
}

/// Whether the body is zstd; then the headers no longer say so, because what follows is decoded.
pub(crate) fn take_coding(headers: &mut HeaderMap) -> Result<bool, UnknownCoding> {
    let Some(coding) = headers.remove(CONTENT_ENCODING) else {
        return Ok(false);
    };
    if headers.contains_key(CONTENT_ENCODING) || !coding.as_bytes().eq_ignore_ascii_case(b"zstd") {
        return Err(UnknownCoding);
    }
    headers.remove(CONTENT_LENGTH);
    Ok(true)
}

/// A body as it was before [`encode`]. Decodes a piece when it is asked for one; how many there may be is for the reader
/// to bound.
pub(crate) struct Decoded<B> {
    body: B,
    coded: bool,
    /// Made when the first byte is here.
    decoder: Option<Decoder<'static>>,
    /// What came and is not decoded yet.
    input: Bytes,
    /// The last piece was full: the decoder may hold more.
    full: bool,
    /// The last frame is complete.
    complete: bool,
}

impl<B> Decoded<B> {
    pub(crate) fn new(body: B, coded: bool) -> Self {
        Self {
            body,
            coded,
            decoder: None,
            input: Bytes::new(),
            full: false,
            complete: false,
        }
    }

    /// Decodes the next piece, which may be empty.
    fn piece(&mut self) -> io::Result<Bytes> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            place => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
                place.insert(decoder)
            }
        };
        let mut piece = Vec::with_capacity(self.input.len().saturating_mul(8).clamp(SMALL, PIECE));
        let mut input = InBuffer::around(&self.input);
        let mut output = OutBuffer::around(&mut piece);
        let wanted = decoder.run(&mut input, &mut output)?;
        let (read, written) = (input.pos(), output.pos());
        self.complete = wanted == 0;
        self.full = !self.complete && written == output.capacity();
        self.input.advance(read);
        if read == 0 && written == 0 && !self.input.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(piece.into())
    }
}

impl<B> http_body::Body for Decoded<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.full || !self.input.is_empty() {
                let piece = self.piece().map_err(CodingError::Invalid)?;
                if !piece.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                continue;
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(frame) => frame.map_err(Into::into)?,
                None if self.coded && !self.complete => return Poll::Ready(Some(Err(CodingError::CutShort.into()))),
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(data) if self.coded => self.input = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.coded && self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if self.coded {
            return http_body::SizeHint::default();
        }
        self.body.size_hint()
    }
}
