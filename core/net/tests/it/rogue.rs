//! A peer that keeps to QUIC and multistream-select, and says above them whatever a test wants.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use kith_identity::{Hello, KeyDocument, cbor};
use kith_net::{Multiaddr, PeerId};
use libp2p::{
    Transport,
    core::{
        Endpoint,
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{DialOpts, PortUse},
    },
    identity::Keypair,
    quic,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, oneshot, watch};

use crate::node::{NOW, Node, soon, timestamp};

/// The hello's messages, as `hello.rs` has them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Hello(ByteBuf),
    Want,
    Document(ByteBuf),
    Accepted,
}

impl Message {
    pub(crate) fn frame(&self) -> Vec<u8> {
        frame(&cbor::to_vec(self).unwrap())
    }

    pub(crate) fn hello(hello: &Hello) -> Self {
        Self::Hello(ByteBuf::from(hello.encode().unwrap()))
    }

    pub(crate) fn document(document: &KeyDocument) -> Self {
        Self::Document(ByteBuf::from(document.to_json()))
    }
}

/// Two bytes of length, and the rest.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    [&length.to_be_bytes(), body].concat()
}

/// A connection to a victim.
pub(crate) struct Rogue {
    pub(crate) peer_id: PeerId,
    victim: PeerId,
    open: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    closed: watch::Receiver<bool>,
}

impl Rogue {
    pub(crate) async fn connect(victim: &Node) -> Self {
        Self::try_connect(victim).await.unwrap()
    }

    pub(crate) async fn try_connect(victim: &Node) -> io::Result<Self> {
        let keypair = Keypair::generate_ed25519();
        let peer_id = keypair.public().to_peer_id();
        let mut transport = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed();
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let address: Multiaddr = victim.net.listen_addrs().remove(0);
        let (_, muxer) = transport.dial(address, options).unwrap().await?;
        let (open, requests) = mpsc::channel(64);
        let (ended, closed) = watch::channel(false);
        tokio::spawn(async move {
            drive(muxer, requests).await;
            ended.send_replace(true);
            drop(transport);
        });
        Ok(Self {
            peer_id,
            victim: victim.net.local_peer_id(),
            open,
            closed,
        })
    }

    /// Opens a stream and agrees on a protocol.
    pub(crate) async fn stream(&self, protocol: &str) -> SubstreamBox {
        let (reply, stream) = oneshot::channel();
        self.open.send(reply).await.unwrap();
        let mut stream = stream.await.unwrap();
        for line in ["/multistream/1.0.0", protocol] {
            let line = format!("{line}\n");
            let message = [&[u8::try_from(line.len()).unwrap()], line.as_bytes()].concat();
            stream.write_all(&message).await.unwrap();
            stream.flush().await.unwrap();
            let mut echo = vec![0; message.len()];
            stream.read_exact(&mut echo).await.unwrap();
            assert_eq!(echo, message);
        }
        stream
    }

    /// An honest hello of `keys`' for this connection.
    pub(crate) fn hello(&self, keys: &crate::node::Keys) -> Hello {
        self.hello_with(&keys.document, keys)
    }

    pub(crate) fn hello_with(&self, document: &KeyDocument, keys: &crate::node::Keys) -> Hello {
        self.hello_at(document, keys, NOW)
    }

    pub(crate) fn hello_at(&self, document: &KeyDocument, keys: &crate::node::Keys, now: u64) -> Hello {
        let (from, to) = (self.peer_id.to_bytes(), self.victim.to_bytes());
        Hello::sign(document, &keys.node, &from, &to, timestamp(now)).unwrap()
    }

    /// Waits until the victim has closed the connection.
    pub(crate) async fn closed(&mut self) {
        soon(self.closed.wait_for(|closed| *closed)).await.unwrap();
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Says hello as it should be said; gives the victim's answers.
    pub(crate) async fn greet(&self, keys: &crate::node::Keys) -> Vec<Message> {
        let mut stream = self.stream("/kith/hello/1").await;
        stream
            .write_all(&Message::hello(&self.hello(keys)).frame())
            .await
            .unwrap();
        stream.write_all(&Message::Accepted.frame()).await.unwrap();
        stream.flush().await.unwrap();
        let mut heard = Vec::new();
        loop {
            let message = read(&mut stream).await;
            match &message {
                Message::Want => {
                    stream
                        .write_all(&Message::document(&keys.document).frame())
                        .await
                        .unwrap();
                    stream.flush().await.unwrap();
                }
                Message::Accepted => {
                    heard.push(message);
                    return heard;
                }
                _ => {}
            }
            heard.push(message);
        }
    }
}

pub(crate) async fn read(stream: &mut SubstreamBox) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut body).await.unwrap();
    cbor::from_slice(&body, 8192).unwrap()
}

/// Opens streams as asked, drops those that the victim opens, until the connection is closed.
async fn drive(mut muxer: StreamMuxerBox, mut requests: mpsc::Receiver<oneshot::Sender<SubstreamBox>>) {
    let mut waiting = None;
    poll_fn(|cx| poll_muxer(&mut muxer, &mut requests, &mut waiting, cx)).await;
}

fn poll_muxer(
    muxer: &mut StreamMuxerBox,
    requests: &mut mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    waiting: &mut Option<oneshot::Sender<SubstreamBox>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    loop {
        if waiting.is_none() {
            match requests.poll_recv(cx) {
                Poll::Ready(Some(request)) => *waiting = Some(request),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        if let Some(request) = waiting.take() {
            match muxer.poll_outbound_unpin(cx) {
                Poll::Ready(Ok(stream)) => {
                    let _ = request.send(stream);
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => *waiting = Some(request),
            }
        }
        match Pin::new(&mut *muxer).poll(cx) {
            Poll::Ready(Ok(_)) => continue,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => {}
        }
        match muxer.poll_inbound_unpin(cx) {
            Poll::Ready(Ok(_)) => continue,
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}
