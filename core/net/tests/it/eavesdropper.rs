//! A host that keeps to QUIC and multistream-select, knows no protocol of ours, and writes down all that it is sent.

use std::{future::poll_fn, pin::Pin};

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
use kith_net::{Multiaddr, PeerId, Timing};
use libp2p::{
    Transport,
    core::{
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{ListenerId, TransportEvent},
    },
    identity::Keypair,
    quic,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::node::{QUIC, Setup, quick, soon};

struct Eavesdropper {
    peer_id: PeerId,
    address: Multiaddr,
    heard: mpsc::Receiver<Vec<u8>>,
}

impl Eavesdropper {
    async fn start() -> Self {
        let keypair = Keypair::generate_ed25519();
        let mut transport = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed();
        transport.listen_on(ListenerId::next(), QUIC.parse().unwrap()).unwrap();
        let Some(TransportEvent::NewAddress { listen_addr, .. }) = transport.next().await else {
            panic!("no address");
        };
        let (write_down, heard) = mpsc::channel(1000);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(event) = transport.next().await {
                if let TransportEvent::Incoming { upgrade, .. } = event {
                    let write_down = write_down.clone();
                    connections.spawn(upgrade.then(async |connected| {
                        if let Ok((_, muxer)) = connected {
                            listen(muxer, write_down).await;
                        }
                    }));
                }
            }
        });
        Self {
            peer_id: keypair.public().to_peer_id(),
            address: listen_addr,
            heard,
        }
    }

    /// All that was sent, once a connection that had streams has ended.
    async fn notes(mut self) -> Vec<u8> {
        let mut notes = Vec::new();
        loop {
            let heard = soon(self.heard.recv()).await.unwrap();
            if heard.is_empty() && !notes.is_empty() {
                return notes;
            }
            notes.extend(heard);
        }
    }
}

async fn listen(mut muxer: StreamMuxerBox, write_down: mpsc::Sender<Vec<u8>>) {
    let mut streams = JoinSet::new();
    loop {
        let accepted = poll_fn(|cx| {
            while let std::task::Poll::Ready(event) = Pin::new(&mut muxer).poll(cx) {
                if event.is_err() {
                    return std::task::Poll::Ready(None);
                }
            }
            muxer.poll_inbound_unpin(cx).map(Result::ok)
        });
        let Some(stream) = accepted.await else { break };
        streams.spawn(take_down(stream, write_down.clone()));
    }
    streams.join_all().await;
    // The end of a connection.
    let _ = write_down.send(Vec::new()).await;
}

/// Agrees on multistream-select itself, refuses every protocol, and hears the other end out.
async fn take_down(mut stream: SubstreamBox, write_down: mpsc::Sender<Vec<u8>>) {
    let _ = stream.write_all(b"\x13/multistream/1.0.0\n\x03na\n").await;
    let _ = stream.flush().await;
    let mut notes = Vec::new();
    let _ = stream.read_to_end(&mut notes).await;
    let _ = write_down.send(notes).await;
}

/// What a dialler tells a host that is not who it looks for.
#[tokio::test]
async fn a_relay_and_a_wrong_host_never_hear_a_name() {
    for as_relay in [true, false] {
        let eavesdropper = Eavesdropper::start().await;
        let mut setup = Setup::new();
        setup.timing = Timing {
            unused: std::time::Duration::from_millis(100),
            ..quick()
        };
        if as_relay {
            let address = eavesdropper.address.clone().with_p2p(eavesdropper.peer_id).unwrap();
            setup.relays.push(address);
        }
        let alice = setup.start().await;
        let bob = crate::node::Keys::generate();
        if !as_relay {
            // Bob was at this address once.
            let (old, name) = (PeerId::random(), bob.server_name());
            let address = [eavesdropper.address.clone()];
            alice.net.add_addresses(&name, old, &address).await;
            let request = http::Request::get("/").body(bytes::Bytes::new()).unwrap();
            let asked = alice.net.request(&name, request, kith_net::RequestLimits::default());
            asked.await.unwrap_err();
        }
        // Alice leaves a connection that is of no use.
        let notes = eavesdropper.notes().await;
        assert!(contains(&notes, b"/multistream/1.0.0"), "something was heard");
        let document = &alice.setup.keys.document;
        assert!(!contains(&notes, document.identity().as_bytes()));
        assert!(!contains(&notes, alice.setup.keys.node.public().signing.as_bytes()));
        assert!(!contains(&notes, alice.name().as_bytes()));
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
