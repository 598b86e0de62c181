//! A wire between two nodes that a test can cut, and mend: packets and bytes go in and never come out, and nobody is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kith_net::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Mutex, Notify, watch},
    task::JoinSet,
};

/// Forwards to a node's address from one of its own.
pub(crate) struct Wire {
    pub(crate) address: Multiaddr,
    cut: watch::Sender<bool>,
    carried: Arc<AtomicUsize>,
    lost: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(target: &Multiaddr) -> Self {
        let parts: Vec<_> = target.iter().collect();
        let Protocol::Ip4(ip) = parts[0] else {
            panic!("{target}")
        };
        let cut = watch::Sender::new(false);
        let carried = Arc::<AtomicUsize>::default();
        let lost = Arc::<Notify>::default();
        let mut tasks = JoinSet::new();
        let address = match parts[1] {
            Protocol::Udp(port) => {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                let here = socket.local_addr().unwrap().port();
                tasks.spawn(udp(
                    socket,
                    (ip, port).into(),
                    cut.subscribe(),
                    carried.clone(),
                    lost.clone(),
                ));
                format!("/ip4/127.0.0.1/udp/{here}/quic-v1")
            }
            Protocol::Tcp(port) => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let here = listener.local_addr().unwrap().port();
                tasks.spawn(tcp(listener, (ip, port).into(), cut.subscribe(), carried.clone()));
                format!("/ip4/127.0.0.1/tcp/{here}")
            }
            _ => panic!("{target}"),
        };
        Self {
            address: address.parse().unwrap(),
            cut,
            carried,
            lost,
            _tasks: tasks,
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// What was dialled or sent over TCP while the wire was cut stays lost.
    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }

    /// Returns once a packet has gone into the cut wire (UDP).
    pub(crate) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Bytes that went either way.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::SeqCst)
    }
}

async fn udp(
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    cut: watch::Receiver<bool>,
    carried: Arc<AtomicUsize>,
    lost: Arc<Notify>,
) {
    let mut flows: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut packet = [0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut packet).await.unwrap();
        if *cut.borrow() {
            lost.notify_one();
            continue;
        }
        let flow = match flows.get(&from) {
            Some(flow) => flow.clone(),
            None => {
                let flow = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                flow.connect(target).await.unwrap();
                tasks.spawn(udp_back(
                    flow.clone(),
                    socket.clone(),
                    from,
                    cut.clone(),
                    carried.clone(),
                ));
                flows.insert(from, flow.clone());
                flow
            }
        };
        carried.fetch_add(length, Ordering::SeqCst);
        // An error says that the target is gone, which is what a wire cannot know.
        let _ = flow.send(&packet[..length]).await;
    }
}

async fn udp_back(
    flow: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    cut: watch::Receiver<bool>,
    carried: Arc<AtomicUsize>,
) {
    let mut packet = [0; 65536];
    loop {
        if let Ok(length) = flow.recv(&mut packet).await
            && !*cut.borrow()
        {
            carried.fetch_add(length, Ordering::SeqCst);
            let _ = socket.send_to(&packet[..length], to).await;
        }
    }
}

async fn tcp(listener: TcpListener, target: SocketAddr, cut: watch::Receiver<bool>, carried: Arc<AtomicUsize>) {
    let mut tasks = JoinSet::new();
    // Sockets are held to the end: closing one would tell the other side.
    let held = Arc::new(Mutex::new(Vec::new()));
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(target).await.unwrap();
        let (near, far) = (near.into_split(), far.into_split());
        for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
            let (cut, held, carried) = (cut.clone(), held.clone(), carried.clone());
            tasks.spawn(async move {
                let mut bytes = [0; 65536];
                while let Ok(length @ 1..) = from.read(&mut bytes).await {
                    carried.fetch_add(length, Ordering::SeqCst);
                    if !*cut.borrow() && to.write_all(&bytes[..length]).await.is_err() {
                        break;
                    }
                }
                if *cut.borrow() {
                    held.lock().await.push((from, to));
                }
            });
        }
    }
}
