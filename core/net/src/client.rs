//! The asking half of a session: HTTP/2 requests over a long-lived stream, large ones over a stream of their own. Knows
//! no server names and dials nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{self, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::{
    RequestLimits,
    coding::{self, Coding, CodingError, Decoded, MAX_SHORT, Said},
    gathering::Gathering,
    server::Executor,
    session::{Farewell, Session, SessionFault},
    streams::Protocol,
};

/// A request body of more bytes takes a stream of its own.
const LARGE: usize = 256 << 10;

/// What may arrive unread, of one answer and of all together, on the long-lived stream.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// On a no-op: the connection is retired, and why ([`Farewell`]). Answered once whoever is told has no request on it any more.
pub(crate) const RETIRE: HeaderName = HeaderName::from_static("kith-retire");

/// Bytes of an answer's headers.
const MAX_HEADERS: u32 = 16 << 10;

type Sender = SendRequest<Unmeasured>;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// It is certain that the peer did not act on the request.
    #[error("the request was not sent")]
    NotSent,
    /// The peer may have acted on it.
    #[error("the connection ended before the answer")]
    Lost(#[source] hyper::Error),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer's coding cannot be read")]
    Coding,
    #[error("the request cannot be sent over HTTP/2")]
    Request,
}

/// The long-lived stream, once it is needed.
#[derive(Default)]
pub(crate) struct HttpClient {
    main: Mutex<Option<Main>>,
}

/// The long-lived stream's sender, and what was said on it.
#[derive(Clone)]
struct Main {
    sender: Sender,
    said: Arc<Said>,
}

/// A whole body that does not tell its length beforehand: HTTP/2 tells where it ends, and a `content-length` is one more header
/// that differs from request to request.
#[derive(Debug)]
struct Unmeasured(Full<Bytes>);

impl http_body::Body for Unmeasured {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Session {
    /// Sends a request and collects the answer. Dropping the future cancels the request.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<Bytes>,
        limits: &RequestLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let _asking = self.asking();
        self.exchange(request, limits).await
    }

    async fn exchange(
        self: &Arc<Self>,
        request: Request<Bytes>,
        limits: &RequestLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let bulk = limits.bulk || request.body().len() > LARGE;
        if bulk {
            let sender = self.open_http(true).await?;
            return Ok(self.ask(sender, request, None, limits).await?.0);
        }
        let Main { sender, said } = self.main_sender().await?;
        let body = request.body().clone();
        let (answer, number) = self.ask(sender.clone(), request.clone(), Some(&said), limits).await?;
        let Some(number) = number else { return Ok(answer) };
        if answer.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            // The peer did nothing, because it has forgotten what the body builds upon.
            said.forget();
            return Ok(self.ask(sender, request, None, limits).await?.0);
        }
        if answer.status().is_success() {
            said.keep(number, &body);
        }
        Ok(answer)
    }

    /// Sends a request, coded, and collects the answer; gives the number of a body that was coded after what was said before.
    async fn ask(
        self: &Arc<Self>,
        mut sender: Sender,
        request: Request<Bytes>,
        said: Option<&Said>,
        limits: &RequestLimits,
    ) -> Result<(Response<Bytes>, Option<u64>), ExchangeError> {
        let (mut head, body) = request.into_parts();
        let (body, number) = coding::encode_short(&mut head.headers, body, said);
        let request = Request::from_parts(head, Unmeasured(Full::new(body)));
        let answer = sender.try_send_request(request).await;
        let answer = answer.map_err(|error| failure(self, error))?;
        self.note_heard();
        let (mut head, body) = answer.into_parts();
        let coding = coding::take_coding(&mut head.headers).map_err(|_| ExchangeError::Coding)?;
        let body = self.collect(body, coding, limits.max_answer).await?;
        Ok((Response::from_parts(head, body), number))
    }

    async fn collect(&self, body: Incoming, coding: Coding, max: usize) -> Result<Bytes, ExchangeError> {
        // Nobody makes a short body longer by coding it.
        let coded_max = if coding == Coding::Short {
            max.min(MAX_SHORT)
        } else {
            max
        };
        let body = Decoded::new(Limited::new(body, coded_max), coding == Coding::Zstd);
        let body = match Limited::new(body, max).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(ExchangeError::TooLarge(max)),
            Err(error) if error.is::<CodingError>() => return Err(ExchangeError::Coding),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => return Err(ExchangeError::Lost(*error)),
                Err(_) => return Err(ExchangeError::NotSent),
            },
        };
        self.note_heard();
        match coding {
            Coding::Short => coding::decode_short(body, max).map_err(|_| ExchangeError::Coding),
            Coding::Plain | Coding::Zstd => Ok(body),
        }
    }

    /// Asks the peer for nothing but an answer, which comes once the peer knows us.
    pub(crate) async fn ping(self: &Arc<Self>) -> Result<(), ExchangeError> {
        self.no_op(HeaderMap::new()).await
    }

    /// Tells the peer that this connection is retired; returns once the peer has no request on it any more.
    pub(crate) async fn tell_retired(self: &Arc<Self>, farewell: Farewell) -> Result<(), ExchangeError> {
        let why = HeaderValue::from_static(farewell.as_str());
        self.no_op(HeaderMap::from_iter([(RETIRE, why)])).await
    }

    /// `OPTIONS *`: RFC 9110, section 9.3.7, "only useful as a 'ping' or 'no-op' type of method".
    async fn no_op(self: &Arc<Self>, headers: HeaderMap) -> Result<(), ExchangeError> {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::OPTIONS;
        *request.uri_mut() = Uri::from_static("*");
        *request.headers_mut() = headers;
        let limits = RequestLimits {
            max_answer: MAX_HEADERS as usize,
            ..RequestLimits::default()
        };
        self.exchange(request, &limits).await.map(drop)
    }

    /// The long-lived stream's sender; opened at the first request, and again when the peer ended it.
    async fn main_sender(self: &Arc<Self>) -> Result<Main, ExchangeError> {
        let mut main = self.client.main.lock().await;
        if let Some(main) = main.as_ref().filter(|main| !main.sender.is_closed()) {
            return Ok(main.clone());
        }
        let opened = Main {
            sender: self.open_http(false).await?,
            said: Arc::default(),
        };
        *main = Some(opened.clone());
        Ok(opened)
    }

    /// Opens a stream and starts HTTP/2 on it. A path that dies while an answer is awaited is noticed by pings.
    async fn open_http(self: &Arc<Self>, bulk: bool) -> Result<Sender, ExchangeError> {
        let stream = match self.opener.open(Protocol::Http).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(peer = %self.peer_id, %error, "no stream for requests");
                self.over(SessionFault::Dead).await;
                return Err(ExchangeError::NotSent);
            }
        };
        let timing = &self.shared.timing;
        let (sender, connection) = http2::Builder::new(Executor(self.shared.tasks.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(timing.active_ping)
            .keep_alive_timeout(timing.active_ping_timeout)
            .keep_alive_while_idle(false)
            .initial_stream_window_size(if bulk { CONNECTION_WINDOW } else { STREAM_WINDOW })
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(LARGE)
            .handshake(TokioIo::new(Gathering::new(stream.compat())))
            .await
            .map_err(|_| ExchangeError::NotSent)?;
        let session = self.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                ended = connection => session.http_ended(ended).await,
                () = session.closed.cancelled() => {}
            }
        });
        Ok(sender)
    }

    async fn http_ended(&self, ended: hyper::Result<()>) {
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer_id, %error, "requests broke off");
            self.over(SessionFault::Dead).await;
        }
    }
}

/// Tells what the peer certainly never acted on from the rest: HTTP/2 says so, RFC 9113, section 8.7.
fn failure(session: &Session, error: TrySendError<Request<Unmeasured>>) -> ExchangeError {
    let unsent = error.message().is_some();
    let error = error.into_error();
    let h2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    let refused = h2.is_some_and(|h2| {
        h2.reason() == Some(h2::Reason::REFUSED_STREAM)
            || h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR)
    });
    match error {
        _ if unsent || refused => ExchangeError::NotSent,
        // The end of a session drops hyper's task under its requests, which hyper takes for a mistake of ours.
        error if error.is_user() && !session.closed.is_cancelled() => ExchangeError::Request,
        error => ExchangeError::Lost(error),
    }
}
