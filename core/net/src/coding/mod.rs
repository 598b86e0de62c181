//! The codings of JSON bodies (`content-encoding`, RFC 9110, section 8.4): zstd (RFC 8878) for long ones, decoded piece by
//! piece, and `kith-zstd` for short ones, which is in [`short`]. Knows no route, and spends no memory on what it decodes
//! beyond a window and a piece, or a short body.
//!
//! Every node takes requests in both codings; answers are coded as the request's `accept-encoding` says.

mod short;

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

pub(crate) use self::short::{MAX_SHORT, Said};
use crate::BoxError;

/// Bodies of more bytes are compressed for those who do not take the coding of short ones.
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
const SHORT: HeaderValue = HeaderValue::from_static("kith-zstd");
const BOTH: HeaderValue = HeaderValue::from_static("kith-zstd, zstd");

/// How a body is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Plain,
    Zstd,
    Short,
}

/// Which codings the asker takes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Accepted {
    zstd: bool,
    short: bool,
}

/// Why a body cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodingError {
    /// Not zstd, damaged, or a window larger than allowed.
    #[error("the body is no valid zstd: {0}")]
    Invalid(#[source] io::Error),
    #[error("the body's zstd is cut short")]
    CutShort,
    #[error("the body is no valid kith-zstd: {0}")]
    Short(#[from] short::ShortError),
}

/// The coding of a body is one that no node uses.
#[derive(Debug, thiserror::Error)]
#[error("the body's content-encoding is not known")]
pub(crate) struct UnknownCoding;

/// Says how the answer may be coded.
pub(crate) fn accept(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, BOTH);
}

/// How the answer may be coded.
pub(crate) fn accepted(headers: &HeaderMap) -> Accepted {
    let named = |coding: &HeaderValue| {
        let lists = headers.get_all(ACCEPT_ENCODING).iter();
        let names = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
        names
            .map(<[u8]>::trim_ascii)
            .any(|name| name.eq_ignore_ascii_case(coding.as_bytes()))
    };
    Accepted {
        zstd: named(&ZSTD),
        short: named(&SHORT),
    }
}

/// JSON that is not coded yet. Media are compressed already.
fn is_plain_json(headers: &HeaderMap) -> bool {
    let json = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    json && !headers.contains_key(CONTENT_ENCODING)
}

/// Whether an answer of this length would be coded for somebody who takes this.
pub(crate) fn is_worthwhile(headers: &HeaderMap, length: u64, accepted: Accepted) -> bool {
    let short = accepted.short && length <= MAX_SHORT as u64;
    let long = accepted.zstd && length > SMALL as u64;
    length > 0 && (short || long) && is_plain_json(headers)
}

/// Codes an answer if that makes it smaller, and says so in the headers.
pub(crate) async fn encode_answer(headers: &mut HeaderMap, body: Bytes, accepted: Accepted) -> Bytes {
    if accepted.short && body.len() <= MAX_SHORT {
        return match short::encode(&body) {
            Some(coded) => replace(headers, SHORT, coded),
            None => body,
        };
    }
    encode_long(headers, body).await
}

/// Compresses a request's body that is no short one, if that makes it smaller, and says so in the headers.
pub(crate) async fn encode_request(headers: &mut HeaderMap, body: Bytes) -> Bytes {
    if body.len() <= MAX_SHORT || !is_plain_json(headers) {
        return body;
    }
    encode_long(headers, body).await
}

async fn encode_long(headers: &mut HeaderMap, body: Bytes) -> Bytes {
    let coded = if body.len() > LONG_WORK {
        let body = body.clone();
        tokio::task::spawn_blocking(move || compress(&body))
            .await
            .ok()
            .flatten()
    } else {
        compress(&body)
    };
    match coded {
        Some(coded) => replace(headers, ZSTD, coded),
        None => body,
    }
}

/// Codes a request's short body, if that makes it smaller, and says so in the headers. On a stream that remembers it gives
/// the body's number.
pub(crate) fn encode_short(headers: &mut HeaderMap, body: Bytes, said: Option<&Said>) -> (Bytes, Option<u64>) {
    if body.is_empty() || body.len() > MAX_SHORT || !is_plain_json(headers) {
        return (body, None);
    }
    let coded = match said {
        Some(said) => said.encode(&body).map(|(coded, number)| (coded, Some(number))),
        None => short::encode(&body).map(|coded| (coded, None)),
    };
    match coded {
        Some((coded, number)) => (replace(headers, SHORT, coded), number),
        None => (body, None),
    }
}

/// Has the headers speak of the coded body.
fn replace(headers: &mut HeaderMap, coding: HeaderValue, coded: Bytes) -> Bytes {
    headers.insert(CONTENT_ENCODING, coding);
    headers.remove(CONTENT_LENGTH);
    coded
}

/// A body that does not become smaller stays as it is, and so does one for which there is no memory.
fn compress(body: &[u8]) -> Option<Bytes> {
    let coded = zstd::bulk::compress(body, LEVEL).ok()?;
    (coded.len() < body.len()).then(|| coded.into())
}

/// How the body is coded; the headers no longer say so, because what follows is decoded.
pub(crate) fn take_coding(headers: &mut HeaderMap) -> Result<Coding, UnknownCoding> {
    let Some(coding) = headers.remove(CONTENT_ENCODING) else {
        return Ok(Coding::Plain);
    };
    let known = [(ZSTD, Coding::Zstd), (SHORT, Coding::Short)]
        .into_iter()
        .find(|(name, _)| coding.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
    let (_, coding) = known
        .filter(|_| !headers.contains_key(CONTENT_ENCODING))
        .ok_or(UnknownCoding)?;
    headers.remove(CONTENT_LENGTH);
    Ok(coding)
}

/// Decodes an answer's short body, of at most `max` bytes.
pub(crate) fn decode_short(coded: Bytes, max: usize) -> Result<Bytes, CodingError> {
    Ok(short::decode(coded, max.min(MAX_SHORT))?)
}

/// Decodes a request's short body, with what was said before on its stream. None: the sender builds upon what is not known here.
pub(crate) fn decode_said(coded: Bytes, max: usize, said: &Said) -> Result<Option<Bytes>, CodingError> {
    match said.decode(coded, max.min(MAX_SHORT)) {
        Ok(body) => Ok(Some(body)),
        Err(short::ShortError::Forgotten) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A body as it was before [`encode_request`] or [`encode_answer`] compressed it. Decodes a piece when it is asked for one; how
/// many there may be is for the reader to bound.
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
