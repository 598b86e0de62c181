//! The asking half of a session: HTTP/2 requests over a long-lived stream, large ones over a stream of their own. Knows
//! no server names and dials nothing.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
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
    coding::{self, CodingError, Decoded},
    server::Executor,
    session::{Session, SessionFault},
    streams::Protocol,
};

/// A request body of more bytes takes a stream of its own.
const LARGE: usize = 256 << 10;

/// What may arrive unread, of one answer and of all together, on the long-lived stream.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// On a no-op: the connection is retired. Answered once whoever is told has no request on it any more.
pub(crate) const RETIRE: HeaderName = HeaderName::from_static("kith-retire");

/// Bytes of an answer's headers.
const MAX_HEADERS: u32 = 16 << 10;

type Sender = SendRequest<Full<Bytes>>;

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
    main: Mutex<Option<Sender>>,
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
        let mut sender = if bulk {
            self.open_http(true).await?
        } else {
            self.main_sender().await?
        };
        let answer = sender.try_send_request(request.map(Full::new)).await;
        let answer = answer.map_err(|error| failure(self, error))?;
        self.note_heard();
        let (mut head, body) = answer.into_parts();
        let coded = coding::take_coding(&mut head.headers).map_err(|_| ExchangeError::Coding)?;
        let body = self.collect(body, coded, limits.max_answer).await?;
        Ok(Response::from_parts(head, body))
    }

    async fn collect(&self, body: Incoming, coded: bool, max: usize) -> Result<Bytes, ExchangeError> {
        let body = Decoded::new(Limited::new(body, max), coded);
        match Limited::new(body, max).collect().await {
            Ok(body) => {
                self.note_heard();
                Ok(body.to_bytes())
            }
            Err(error) if error.is::<LengthLimitError>() => Err(ExchangeError::TooLarge(max)),
            Err(error) if error.is::<CodingError>() => Err(ExchangeError::Coding),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(ExchangeError::Lost(*error)),
                Err(_) => Err(ExchangeError::NotSent),
            },
        }
    }

    /// Asks the peer for nothing but an answer, which comes once the peer knows us.
    pub(crate) async fn ping(self: &Arc<Self>) -> Result<(), ExchangeError> {
        self.no_op(HeaderMap::new()).await
    }

    /// Tells the peer that this connection is retired; returns once the peer has no request on it any more.
    pub(crate) async fn tell_retired(self: &Arc<Self>) -> Result<(), ExchangeError> {
        self.no_op(HeaderMap::from_iter([(RETIRE, HeaderValue::from_static("1"))]))
            .await
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
    async fn main_sender(self: &Arc<Self>) -> Result<Sender, ExchangeError> {
        let mut main = self.client.main.lock().await;
        if let Some(sender) = main.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender = self.open_http(false).await?;
        *main = Some(sender.clone());
        Ok(sender)
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
            .handshake(TokioIo::new(stream.compat()))
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
fn failure(session: &Session, error: TrySendError<Request<Full<Bytes>>>) -> ExchangeError {
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
