//! One connection from its handshake to its end: the hello, then requests both ways. Never decides whether the
//! connection is wanted: it reports to the owner task, which does.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt, AsyncWriteExt, future::OptionFuture};
use libp2p::{Multiaddr, PeerId, Stream, core::connection::ConnectedPoint, swarm::ConnectionId};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ConnectionLimits, InboundService, Timing,
    address::{self, Path},
    client::HttpClient,
    hello::{HelloFault, OwnSide, Turn, Verified},
    peers::Peer,
    server,
    streams::{self, OpenError, Opener, Protocol},
};

/// HTTP streams that one connection serves at once: the long-lived one, and large bodies.
const MAX_SERVED_STREAMS: usize = 16;

/// Bytes of one of libp2p's pings.
const PING_BYTES: usize = 32;

/// Reports from all sessions that the owner has not read yet.
pub(crate) const REPORT_QUEUE: usize = 256;

/// What a session tells the owner task.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: ConnectionId,
    pub(crate) news: News,
}

#[derive(Debug)]
pub(crate) enum News {
    /// Both hellos are accepted.
    Known(Verified),
    /// The peer knows no hello: a relay, perhaps. It stays connected as long as something else needs it.
    Nameless,
    /// The connection is of no more use and should be closed.
    Over(SessionFault),
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionFault {
    #[error("the peer said nothing believable about who it is")]
    Hello(#[from] HelloFault),
    #[error("no hello in time")]
    NoHello,
    #[error("no stream for the hello")]
    HelloStream(#[source] OpenError),
    #[error("the peer no longer answers")]
    Dead,
    #[error("the peer does not take its answers")]
    Stalls,
    #[error("another connection to the peer is better, and this one is done")]
    Drained,
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) own: OwnSide,
    pub(crate) service: InboundService,
    pub(crate) limits: ConnectionLimits,
    pub(crate) timing: Timing,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Every task of every session.
    pub(crate) tasks: TaskTracker,
}

/// Why a connection is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// Another connection is better, or this node goes.
    Spare,
    /// Nothing was said for long enough: the server is let go, and is still there.
    Idle,
}

impl Farewell {
    /// As the other end is told it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Spare => "1",
            Self::Idle => "idle",
        }
    }

    /// As the other end tells it; what is not known counts as the first.
    pub(crate) fn told(value: &[u8]) -> Self {
        match value {
            b"idle" => Self::Idle,
            _ => Self::Spare,
        }
    }
}

/// Who says hello, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// We opened the connection, and open the hello's stream.
    Dialler(Turn),
    /// The peer opened both.
    Listener,
    /// Nobody: the connection is to a relay, which is to learn no name.
    None,
}

/// Who the other end is, as far as is known.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// Not yet said.
    Stranger,
    /// It speaks no hello: a relay, which is told no name.
    Nameless,
    /// The hello is accepted.
    Known(Weak<Peer>),
}

/// One connection.
pub(crate) struct Session {
    pub(crate) id: ConnectionId,
    pub(crate) peer_id: PeerId,
    pub(crate) address: Multiaddr,
    pub(crate) dialled: bool,
    greeting: Greeting,
    path: Path,
    /// Grows with every connection.
    number: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) opener: Opener,
    pub(crate) client: HttpClient,
    standing: watch::Sender<Standing>,
    verified: OnceLock<Verified>,
    pub(crate) stranger_turns: Arc<Semaphore>,
    /// Requests that await their answers.
    asking: watch::Sender<usize>,
    /// When the connection came up.
    began: Instant,
    /// When a byte of HTTP, or a sign of life that was asked for, last came from the peer.
    heard: watch::Sender<Instant>,
    /// One of the ends wants the connection no more: what is under way is finished, and nothing is started.
    retired: CancellationToken,
    /// Why, once it is retired.
    farewell: OnceLock<Farewell>,
    /// Nobody knows whether it still leads anywhere: the peer has come over another one, and has yet to answer here.
    doubted: AtomicBool,
    /// The connection is gone or going.
    pub(crate) closed: CancellationToken,
}

impl Session {
    /// Takes a connection that is up; [`Session::run`] does the rest.
    pub(crate) fn new(
        connection: &streams::Connection,
        greeting: Greeting,
        number: u64,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        let address = match &connection.endpoint {
            // A relay says who comes, not whence: the address is then the relay's.
            ConnectedPoint::Listener { local_addr, .. } if connection.endpoint.is_relayed() => local_addr.clone(),
            endpoint => endpoint.get_remote_address().clone(),
        };
        Arc::new(Self {
            id: connection.id,
            peer_id: connection.peer_id,
            path: Path::of(&address),
            address: address::split_peer_id(address).0,
            dialled: connection.endpoint.is_dialer(),
            greeting,
            number,
            opener: connection.opener.clone(),
            client: HttpClient::default(),
            standing: watch::Sender::new(Standing::Stranger),
            verified: OnceLock::new(),
            stranger_turns: Arc::new(Semaphore::new(shared.limits.requests_per_stranger)),
            asking: watch::Sender::new(0),
            began: Instant::now(),
            heard: watch::Sender::new(Instant::now()),
            retired: CancellationToken::new(),
            farewell: OnceLock::new(),
            doubted: AtomicBool::new(false),
            closed: CancellationToken::new(),
            shared,
        })
    }

    /// Whether requests may be sent on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.is_cancelled() && !self.closed.is_cancelled()
    }

    /// The lower, the better: straight rather than relayed, QUIC rather than TCP, newer rather than older (of two, the
    /// older may be what is left of a peer that has restarted since).
    pub(crate) fn merit(&self) -> (Path, std::cmp::Reverse<u64>) {
        (self.path, std::cmp::Reverse(self.number))
    }

    /// The lower, the sooner it is used: by merit, but what is doubted last. A peer that has moved to another network would
    /// otherwise be spoken to on the path that it has left.
    pub(crate) fn rank(&self) -> (bool, Path, std::cmp::Reverse<u64>) {
        let (path, age) = self.merit();
        (self.doubted.load(Ordering::Relaxed), path, age)
    }

    /// Uses other connections, if there are any, until this one has answered a probe.
    pub(crate) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Who the peer proved to be.
    pub(crate) fn verified(&self) -> Option<&Verified> {
        self.verified.get()
    }

    /// The owner has put the session into the table of peers.
    pub(crate) fn set_peer(&self, verified: Verified, peer: &Arc<Peer>) {
        let _ = self.verified.set(verified);
        self.standing.send_replace(Standing::Known(Arc::downgrade(peer)));
    }

    /// Waits until the peer is known. Never returns for a peer that does not say who it is; the connection ends first.
    pub(crate) async fn known_peer(&self) -> Option<Arc<Peer>> {
        let mut standing = self.standing.subscribe();
        let known = standing
            .wait_for(|standing| matches!(standing, Standing::Known(_)))
            .await;
        match known.as_deref() {
            Ok(Standing::Known(peer)) => peer.upgrade(),
            _ => None,
        }
    }

    /// When the connection came up.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// When HTTP last came from the peer.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.borrow()
    }

    /// Something came from the peer.
    pub(crate) fn note_heard(&self) {
        self.heard.send_replace(Instant::now());
    }

    /// Counts one request as awaiting its answer, until the guard is dropped.
    pub(crate) fn asking(self: &Arc<Self>) -> Asking {
        self.asking.send_modify(|asking| *asking += 1);
        Asking(self.clone())
    }

    /// Waits until no request awaits its answer.
    pub(crate) async fn all_answered(&self) {
        let mut asking = self.asking.subscribe();
        // The session holds the sender.
        let _ = asking.wait_for(|asking| *asking == 0).await;
    }

    /// Asks the owner to close the connection. No request is sent on it from here on.
    pub(crate) async fn over(&self, fault: SessionFault) {
        self.closed.cancel();
        self.report(News::Over(fault)).await;
    }

    async fn report(&self, news: News) {
        // Without an owner everything is over anyway.
        let _ = self.shared.reports.send(Report { id: self.id, news }).await;
    }

    /// Ends the connection without losing a request: starts none, tells the peer, which then starts none either and agrees
    /// once all of its own are answered, and asks for the connection to be closed once ours are too. Only then is nothing
    /// under way in either direction; closing a QUIC connection earlier would discard answers that are already written.
    pub(crate) fn retire(self: &Arc<Self>, farewell: Farewell) {
        if self.retired.is_cancelled() {
            return;
        }
        let _ = self.farewell.set(farewell);
        self.retired.cancel();
        let session = self.clone();
        self.shared.tasks.spawn(async move {
            let patience = session.shared.timing.answer;
            let agreed = async { tokio::join!(session.tell_retired(farewell), session.all_answered()) };
            tokio::select! {
                _ = timeout(patience, agreed) => session.over(SessionFault::Drained).await,
                () = session.closed.cancelled() => {}
            }
        });
    }

    /// Whether one of the ends let the other go because nothing was said.
    pub(crate) fn is_let_go(&self) -> bool {
        self.farewell.get() == Some(&Farewell::Idle)
    }

    /// The peer retires the connection, and will close it.
    pub(crate) fn handle_retired(self: &Arc<Self>, farewell: Farewell) {
        // Both may do so at once; then the first word counts, and either end has its own.
        let _ = self.farewell.set(farewell);
        self.retired.cancel();
        let session = self.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = sleep(session.shared.timing.answer) => session.over(SessionFault::Drained).await,
                () = session.closed.cancelled() => {}
            }
        });
    }

    /// Runs the session until the connection ends. Every task that it starts ends with it.
    pub(crate) async fn run(self: Arc<Self>, mut accepted: mpsc::Receiver<(Protocol, Stream)>) {
        let (hello_stream, hello_accepted) = oneshot::channel();
        let mut hello_stream = Some(hello_stream);
        let hello = self.clone().hello(hello_accepted);
        tokio::pin!(hello);
        let mut greeting = true;
        let mut served = JoinSet::new();
        let mut probing = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut hello, if greeting => greeting = false,
                stream = accepted.recv() => match stream {
                    None => break,
                    Some((Protocol::Hello, stream)) => match hello_stream.take() {
                        // The hello may have failed meanwhile; then the stream is dropped, which resets it.
                        Some(waiting) => drop(waiting.send(stream)),
                        None => tracing::debug!(peer = %self.peer_id, "a second hello was refused"),
                    },
                    Some((Protocol::Http, stream)) if served.len() < MAX_SERVED_STREAMS => {
                        served.spawn(server::serve(self.clone(), stream));
                    }
                    Some((Protocol::Ping, _)) => {}
                    Some((Protocol::Http, _)) => tracing::debug!(peer = %self.peer_id, "too many HTTP streams"),
                },
                Some(_) = served.join_next(), if !served.is_empty() => {}
                Some(_) = probing.join_next(), if !probing.is_empty() => {}
                Some(()) = OptionFuture::from(self.probe_due()), if probing.is_empty() => {
                    let session = self.clone();
                    probing.spawn(async move { session.probe().await });
                }
                () = self.closed.cancelled() => break,
            }
        }
        self.closed.cancel();
    }

    /// Presents and hears the hello, and reports what came of it.
    async fn hello(self: Arc<Self>, accepted: oneshot::Receiver<Stream>) {
        let exchange = async {
            let (stream, turn) = match self.greeting {
                Greeting::Dialler(turn) => (self.opener.open(Protocol::Hello).await, turn),
                Greeting::Listener => (accepted.await.map_err(|_| OpenError::Closed), Turn::First),
                Greeting::None => (Err(OpenError::Unsupported), Turn::Second),
            };
            let stream = stream.map_err(SessionFault::HelloStream)?;
            Ok(self.shared.own.exchange(stream, self.peer_id, turn).await?)
        };
        let outcome = match timeout(self.shared.timing.hello, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(SessionFault::NoHello),
        };
        match outcome {
            Ok(verified) => {
                self.opener.keep_alive(true).await;
                self.report(News::Known(verified)).await;
            }
            Err(fault) if self.dialled && speaks_other_protocols(&fault) => {
                self.standing.send_replace(Standing::Nameless);
                // libp2p looks whether a connection is idle only when its handler stirs, not when a stream is dropped.
                self.opener.keep_alive(false).await;
                self.report(News::Nameless).await;
            }
            Err(fault) => self.over(fault).await,
        }
    }

    /// When the next check of an idle connection is due. QUIC checks its own; a TCP connection to a machine that vanished, or that
    /// a router has forgotten, would stay up for ever, and so would a relayed one. The dialler asks first, and its asking is news
    /// to the other.
    fn probe_due(&self) -> Option<impl Future<Output = ()> + use<>> {
        if self.path == Path::Quic {
            return None;
        }
        let timing = &self.shared.timing;
        let patience = if self.dialled {
            timing.idle_timeout
        } else {
            timing.idle_timeout * 3 / 2
        };
        let (mut heard, mut standing) = (self.heard.subscribe(), self.standing.subscribe());
        Some(async move {
            // The session holds the senders, and this future does not outlive the session.
            let _ = standing
                .wait_for(|standing| !matches!(standing, Standing::Stranger))
                .await;
            loop {
                let due = *heard.borrow_and_update() + patience;
                tokio::select! {
                    () = sleep_until(due) => return,
                    _ = heard.changed() => {}
                }
            }
        })
    }

    /// Asks the peer for a sign of life, and gives up the connection without one.
    pub(crate) async fn probe(self: &Arc<Self>) {
        self.probe_within(self.shared.timing.active_ping_timeout).await;
    }

    /// [`Session::probe`], with other patience.
    pub(crate) async fn probe_within(self: &Arc<Self>, patience: Duration) {
        let alive = if self.verified().is_some() {
            matches!(timeout(patience, self.ping()).await, Ok(Ok(())))
        } else {
            timeout(patience, self.ping_relay()).await.unwrap_or(false)
        };
        if alive {
            self.note_heard();
            self.doubted.store(false, Ordering::Relaxed);
        } else {
            self.over(SessionFault::Dead).await;
        }
    }

    /// Whether a relay answers. One that does not speak libp2p's ping says so, which is an answer too.
    async fn ping_relay(&self) -> bool {
        let mut stream = match self.opener.open(Protocol::Ping).await {
            Ok(stream) => stream,
            Err(error) => return matches!(error, OpenError::Unsupported),
        };
        let mut echo = [0; PING_BYTES];
        if stream.write_all(&echo).await.is_ok() {
            // A refusal is an answer too.
            let _ = stream.read_exact(&mut echo).await;
        }
        !self.closed.is_cancelled()
    }
}

/// A peer that we dialled and that knows no hello is no node; a relay that we hold a place at stays connected for that.
fn speaks_other_protocols(fault: &SessionFault) -> bool {
    matches!(
        fault,
        SessionFault::HelloStream(OpenError::Unsupported) | SessionFault::Hello(HelloFault::Stream(_))
    )
}

/// See [`Session::asking`].
pub(crate) struct Asking(Arc<Session>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.send_modify(|asking| *asking -= 1);
    }
}
