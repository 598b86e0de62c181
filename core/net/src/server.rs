//! The answering half of a session: HTTP/2 requests from the peer, handed to the node's service under the peer's proven
//! name. Knows no route; what a stranger asks is refused here.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use libp2p::Stream;
use ruma::OwnedServerName;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::AbortHandle,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::{compat::FuturesAsyncReadCompatExt, task::TaskTracker};

use crate::{
    client::RETIRE,
    coding::{self, Accepted, Coding, Decoded, MAX_SHORT, Said},
    gathering::Gathering,
    session::{Farewell, Session, SessionFault},
};

/// What may arrive unread, of one request and of all together, on one stream.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes of an answer that wait for the peer to take them.
const SEND_BUFFER: usize = 64 << 10;

/// Bytes of an answer that HTTP/2 is given at once: it asks for more only when the peer has room, but takes any piece.
const PIECE: usize = 32 << 10;

/// Requests on one stream beyond those that a peer may have in flight.
const SPARE_STREAMS: usize = 8;

/// Bytes of a request's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that streams.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Answers the requests of verified peers. Gets the peer's server name and the request, whose URI holds path and query
/// only; the body ends with an error when it exceeds [`crate::ConnectionLimits::request_body`], compressed or not, when it
/// is compressed and damaged, or stalls. The answer's body may stream; an error in it cuts the answer off.
pub type InboundService =
    Arc<dyn Fn(OwnedServerName, Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// The peer sent no byte of a body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the peer stopped sending")]
struct Stalled;

/// Serves one stream that the peer opened, until the peer ends it.
pub(crate) async fn serve(session: Arc<Session>, stream: Stream) {
    let (answering, said) = (session.clone(), Arc::new(Said::default()));
    let service = service_fn(move |request| {
        let (session, said) = (answering.clone(), said.clone());
        async move { Ok::<_, Infallible>(session.answer(request, &said).await) }
    });
    // No-ops come beside a full set of requests.
    let streams = session.shared.limits.requests_per_peer + SPARE_STREAMS;
    let connection = http2::Builder::new(Executor(session.shared.tasks.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(u32::try_from(streams).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Gathering::new(stream.compat())), service);
    if let Err(error) = connection.await {
        tracing::debug!(peer = %session.peer_id, %error, "a stream of requests broke off");
    }
}

impl Session {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, said: &Said) -> Response<Body> {
        self.note_heard();
        match timeout(self.shared.timing.answer, self.clone().admit(request, said)).await {
            Ok(answer) => answer,
            Err(_) => refusal(StatusCode::GATEWAY_TIMEOUT, "M_UNKNOWN", "No answer was found in time."),
        }
    }

    /// Lets a request through to the service when the peer is known and has a place free. A stranger's waits until its
    /// hello is heard, a few at the most.
    async fn admit(self: Arc<Self>, request: Request<Incoming>, said: &Said) -> Response<Body> {
        let Ok(stranger) = self.stranger_turn() else {
            return refusal(
                StatusCode::UNAUTHORIZED,
                "M_UNAUTHORIZED",
                "A stranger has few requests: say hello first.",
            );
        };
        let patience = self.shared.timing.hello;
        let Ok(Some(peer)) = timeout(patience, self.known_peer()).await else {
            return refusal(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", "Say hello first.");
        };
        drop(stranger);
        if request.method() == Method::OPTIONS && request.uri().path() == "*" {
            if let Some(why) = request.headers().get(RETIRE) {
                self.handle_retired(Farewell::told(why.as_bytes()));
                self.all_answered().await;
            }
            return status(StatusCode::NO_CONTENT);
        }
        let Ok(turn) = peer.may_ask(self.shared.limits.requests_per_peer).await else {
            return refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "M_LIMIT_EXCEEDED",
                "Too many requests at once.",
            );
        };
        let server_name = peer.server_name.clone();
        drop(peer);
        let accepted = coding::accepted(request.headers());
        let request = match self.prepare(request, said).await {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
        let answer = (self.shared.service)(server_name, request).await;
        let mut answer = coded(answer, accepted).await;
        if http_body::Body::is_end_stream(answer.body()) {
            // HTTP/2 says it with the headers' last bit.
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
        let session = self.clone();
        answer.map(|body| AnswerBody::new(body, turn, session).boxed_unsync())
    }

    /// A stranger's place; none is needed once the peer is known.
    fn stranger_turn(&self) -> Result<Option<OwnedSemaphorePermit>, ()> {
        if self.verified().is_some() {
            return Ok(None);
        }
        self.stranger_turns.clone().try_acquire_owned().map(Some).map_err(drop)
    }

    /// The request as the service sees it: path and query only, with a body that is bounded in size and pauses, and not
    /// coded. Otherwise what is answered.
    async fn prepare(&self, request: Request<Incoming>, said: &Said) -> Result<Request<Body>, Response<Body>> {
        let (mut head, body) = request.into_parts();
        let coding = coding::take_coding(&mut head.headers).map_err(|_| unknown_coding())?;
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = head.uri.into_parts().path_and_query;
        head.uri = http::Uri::from_parts(uri).unwrap_or_default();
        // As it comes and as it is decoded: neither side of the decoder is given more than is allowed.
        let max = self.shared.limits.request_body;
        let limit = if coding == Coding::Short {
            max.min(MAX_SHORT)
        } else {
            max
        };
        let body = RequestBody {
            body: Box::pin(Limited::new(body, limit)),
            pause: Box::pin(sleep(self.shared.timing.stall)),
            patience: self.shared.timing.stall,
        };
        let body = match coding {
            Coding::Short => whole(decoded(body, max, said).await?),
            Coding::Plain | Coding::Zstd => {
                Limited::new(Decoded::new(body, coding == Coding::Zstd), max).boxed_unsync()
            }
        };
        Ok(Request::from_parts(head, body))
    }
}

/// A short body, whole and decoded.
async fn decoded(body: RequestBody, max: usize, said: &Said) -> Result<Bytes, Response<Body>> {
    let unreadable = |error: &dyn std::error::Error| {
        let what = format!("The body cannot be read: {error}.");
        refusal(StatusCode::BAD_REQUEST, "M_UNKNOWN", &what)
    };
    let coded = body.collect().await.map_err(|error| unreadable(&*error))?;
    match coding::decode_said(coded.to_bytes(), max, said) {
        Ok(Some(body)) => Ok(body),
        // The sender says it again, building upon nothing.
        Ok(None) => Err(unknown_coding()),
        Err(error) => Err(unreadable(&error)),
    }
}

/// A body that ends with an error when the peer pauses for too long.
struct RequestBody {
    body: Pin<Box<Limited<Incoming>>>,
    pause: Pin<Box<Sleep>>,
    patience: Duration,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.patience;
                self.pause.as_mut().reset(next);
                Poll::Ready(frame)
            }
            Poll::Pending => {
                ready!(self.pause.as_mut().poll(cx));
                Poll::Ready(Some(Err(Box::new(Stalled))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body: holds the peer's place until it is taken, and ends the connection when the peer takes nothing.
struct AnswerBody {
    body: Body,
    /// What of the last piece the peer has not taken yet.
    rest: Bytes,
    _turn: OwnedSemaphorePermit,
    session: Arc<Session>,
    watch: Option<AbortHandle>,
}

impl AnswerBody {
    fn new(body: Body, turn: OwnedSemaphorePermit, session: Arc<Session>) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            _turn: turn,
            session,
            watch: None,
        }
    }

    /// Starts the wait for the peer to take what it has been given. HTTP/2 asks for the next piece only then.
    fn watch(&mut self) {
        let session = self.session.clone();
        let watching = self.session.shared.tasks.spawn(async move {
            tokio::select! {
                () = sleep(session.shared.timing.stall) => session.over(SessionFault::Stalls).await,
                () = session.closed.cancelled() => {}
            }
        });
        self.watch = Some(watching.abort_handle());
    }

    fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.unwatch();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        if !self.is_end_stream() {
            self.watch();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.unwatch();
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

/// The answer, its body coded if it is JSON that becomes smaller by that, and is at hand whole.
async fn coded(answer: Response<Body>, accepted: Accepted) -> Response<Body> {
    let length = http_body::Body::size_hint(answer.body()).exact();
    if !length.is_some_and(|length| coding::is_worthwhile(answer.headers(), length, accepted)) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let body = match body.collect().await {
        Ok(body) => coding::encode_answer(&mut head.headers, body.to_bytes(), accepted).await,
        Err(error) => {
            tracing::warn!(%error, "an answer could not be read");
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "The answer was lost.");
        }
    };
    Response::from_parts(head, whole(body))
}

/// RFC 9110, section 15.5.16: 415 names the codings that are taken.
fn unknown_coding() -> Response<Body> {
    let mut answer = refusal(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "M_UNKNOWN",
        "The body's content-encoding is not known, or builds upon what is not.",
    );
    coding::accept(answer.headers_mut());
    answer
}

/// A refusal in Matrix' standard form (client-server API, "Standard error response").
fn refusal(code: StatusCode, errcode: &str, error: &str) -> Response<Body> {
    let json = format!(r#"{{"errcode":"{errcode}","error":"{error}"}}"#);
    let mut answer = status(code);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.map(|_| whole(json.into()))
}

fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// Runs hyper's tasks where the sessions' own are counted.
#[derive(Clone)]
pub(crate) struct Executor(pub(crate) TaskTracker);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
