//! Machines joined by wires in memory, for tests that run many swarms in one process: libp2p as it is, over a transport of
//! the tests' own. Proves nobody's identity; what is tried over it is not cryptography.

use std::{
    collections::{HashMap, VecDeque},
    io, iter,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt,
    future::{BoxFuture, Ready, ready},
};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        UpgradeInfo,
        muxing::StreamMuxerBox,
        transport::{DialOpts, ListenerId, TransportError, TransportEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, Version},
    },
    identity::Keypair,
    multiaddr::Protocol,
    yamux,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep},
};

use crate::{peers::lock, swarm};

/// What arrives at one address.
type Arrivals = mpsc::Sender<(End, Ipv4Addr)>;

/// Whether libp2p goes by tokio's clock too, so that all of a world's time may be virtual: `tests/virtual/run.sh` says so.
pub(crate) fn time_is_virtual() -> bool {
    std::env::var_os("KITH_VIRTUAL_TIME").is_some()
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    /// Until a connection is up.
    pub(crate) handshake: Duration,
    /// Until a dial to a machine that is not there fails.
    pub(crate) dead: Duration,
    /// One way, once a connection is up.
    pub(crate) link: Duration,
}

/// Every machine that is up, by its address.
#[derive(Clone)]
pub(crate) struct Internet {
    machines: Arc<Mutex<HashMap<Ipv4Addr, Arrivals>>>,
    delays: Delays,
    traffic: Arc<Mutex<Traffic>>,
}

/// What was carried.
#[derive(Default)]
struct Traffic {
    bytes: usize,
    /// Something that can be told from everything else.
    watched: Vec<u8>,
    /// How often each machine sent it.
    copies: HashMap<Ipv4Addr, usize>,
    machines: HashMap<Ipv4Addr, Carried>,
}

/// What a machine cost itself so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    /// Connections that it made and that came up.
    pub(crate) connections: usize,
    /// Bytes that it sent and received, without what a transport adds.
    pub(crate) bytes: usize,
}

/// A machine's address on the wires.
pub(crate) fn address_of(machine: Ipv4Addr) -> Multiaddr {
    Multiaddr::from(machine)
        .with(Protocol::Udp(4433))
        .with(Protocol::QuicV1)
}

impl Internet {
    pub(crate) fn new(delays: Delays) -> Self {
        Self {
            machines: Arc::default(),
            delays,
            traffic: Arc::default(),
        }
    }

    /// A machine's way to the others.
    pub(crate) fn transport(&self, own: Ipv4Addr, keypair: &Keypair) -> swarm::BoxedTransport {
        let wire = Wire {
            internet: self.clone(),
            own,
            listening: None,
            announce: false,
        };
        wire.upgrade(Version::V1Lazy)
            .authenticate(Plain(keypair.public().to_peer_id()))
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed()
    }

    /// A machine is gone, without a word.
    pub(crate) fn remove(&self, machine: Ipv4Addr) {
        lock(&self.machines).remove(&machine);
    }

    /// From now on counts who sends these bytes.
    pub(crate) fn watch(&self, bytes: &[u8]) {
        let mut traffic = lock(&self.traffic);
        traffic.watched = bytes.to_vec();
        traffic.copies.clear();
    }

    /// How often each machine sent what is watched for.
    pub(crate) fn copies(&self) -> HashMap<Ipv4Addr, usize> {
        lock(&self.traffic).copies.clone()
    }

    /// Connections that came up so far.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.traffic)
            .machines
            .values()
            .map(|carried| carried.connections)
            .sum()
    }

    /// Bytes sent by all machines so far.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.traffic).bytes
    }

    /// What a machine made and carried so far.
    pub(crate) fn carried(&self, machine: Ipv4Addr) -> Carried {
        lock(&self.traffic).machines.get(&machine).copied().unwrap_or_default()
    }

    fn count(&self, from: Ipv4Addr, to: Ipv4Addr, bytes: &[u8]) {
        let mut traffic = lock(&self.traffic);
        traffic.bytes += bytes.len();
        for machine in [from, to] {
            traffic.machines.entry(machine).or_default().bytes += bytes.len();
        }
        let watched = &traffic.watched;
        if !watched.is_empty() && bytes.windows(watched.len()).any(|window| window == watched) {
            *traffic.copies.entry(from).or_default() += 1;
        }
    }

    /// The two ends of a wire; the first is `from`'s.
    fn wire(&self, from: Ipv4Addr, to: Ipv4Addr) -> (End, End) {
        let pipes = [(); 2].map(|()| Arc::<Mutex<Pipe>>::default());
        let end = |own, other, incoming: &Arc<Mutex<Pipe>>, outgoing: &Arc<Mutex<Pipe>>| End {
            own,
            other,
            internet: self.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            arriving: Box::pin(sleep(Duration::ZERO)),
        };
        (end(from, to, &pipes[0], &pipes[1]), end(to, from, &pipes[1], &pipes[0]))
    }
}

/// One machine's transport.
struct Wire {
    internet: Internet,
    own: Ipv4Addr,
    listening: Option<(ListenerId, mpsc::Receiver<(End, Ipv4Addr)>)>,
    announce: bool,
}

impl Transport for Wire {
    type Output = End;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(&mut self, id: ListenerId, _: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        let (arrivals, arriving) = mpsc::channel(256);
        lock(&self.internet.machines).insert(self.own, arrivals);
        self.listening = Some((id, arriving));
        self.announce = true;
        Ok(())
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        self.listening.take().is_some()
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some(Protocol::Ip4(machine)) = address.iter().next() else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let (internet, own) = (self.internet.clone(), self.own);
        Ok(async move {
            let delays = internet.delays;
            sleep(delays.handshake).await;
            let up = lock(&internet.machines).get(&machine).cloned();
            let (here, there) = internet.wire(own, machine);
            if let Some(arrivals) = up
                && arrivals.send((there, own)).await.is_ok()
            {
                lock(&internet.traffic).machines.entry(own).or_default().connections += 1;
                return Ok(here);
            }
            sleep(delays.dead.saturating_sub(delays.handshake)).await;
            Err(io::ErrorKind::TimedOut.into())
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let own = address_of(self.own);
        let announce = std::mem::take(&mut self.announce);
        let Some((listener_id, arriving)) = &mut self.listening else {
            return Poll::Pending;
        };
        let listener_id = *listener_id;
        if announce {
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id,
                listen_addr: own,
            });
        }
        arriving.poll_recv(cx).map(|arrived| match arrived {
            Some((stream, from)) => TransportEvent::Incoming {
                listener_id,
                upgrade: ready(Ok(stream)),
                local_addr: own,
                send_back_addr: address_of(from),
            },
            None => TransportEvent::ListenerClosed {
                listener_id,
                reason: Ok(()),
            },
        })
    }
}

/// What is under way in one direction. The multiplexer above bounds it.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    ended: bool,
    reader: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// One end of a wire.
struct End {
    own: Ipv4Addr,
    other: Ipv4Addr,
    internet: Internet,
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    arriving: Pin<Box<Sleep>>,
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let incoming = self.incoming.clone();
        let mut pipe = lock(&incoming);
        let Some((arrives, piece)) = pipe.pieces.front_mut() else {
            if pipe.ended {
                return Poll::Ready(Ok(0));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if *arrives > Instant::now() {
            if self.arriving.deadline() != *arrives {
                self.arriving.as_mut().reset(*arrives);
            }
            if self.arriving.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            pipe.pieces.pop_front();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.outgoing);
        if pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.internet.count(self.own, self.other, bytes);
        let arrives = Instant::now() + self.internet.delays.link;
        pipe.pieces.push_back((arrives, bytes.to_vec()));
        pipe.wake();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.outgoing);
        pipe.ended = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        for pipe in [&self.incoming, &self.outgoing] {
            let mut pipe = lock(pipe);
            pipe.ended = true;
            pipe.wake();
        }
    }
}

/// Each side says its PeerId, and is believed.
#[derive(Clone)]
struct Plain(PeerId);

impl UpgradeInfo for Plain {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/plain/1")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<S> for Plain {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_inbound(self, mut stream: S, _: Self::Info) -> Self::Future {
        async move {
            let own = self.0.to_bytes();
            stream.write_all(&own).await?;
            stream.flush().await?;
            let mut other = vec![0; own.len()];
            stream.read_exact(&mut other).await?;
            let other = PeerId::from_bytes(&other).map_err(io::Error::other)?;
            Ok((other, stream))
        }
        .boxed()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<S> for Plain {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Output>>;

    fn upgrade_outbound(self, stream: S, info: Self::Info) -> Self::Future {
        self.upgrade_inbound(stream, info)
    }
}
