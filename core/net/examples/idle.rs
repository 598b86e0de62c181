//! Measures what two connected nodes cost while nothing happens: bytes on the wire both ways, and how often their threads
//! wake. Prints one line of JSON. Measures nothing else on this machine: the wire is a forwarder of its own.
//!
//! `cargo run --release -p kith-net --example idle -- [MINUTES] [KEEP_ALIVE_SECONDS] [quic|tcp]`

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use futures::FutureExt;
use http_body_util::{BodyExt, Empty};
use kith_identity::{IdentityKey, KeyDocument, NodeKey, TransportKey};
use kith_net::{ConnectionLimits, DhtConfig, Multiaddr, Net, NetConfig, PeerId, Timing, testing::MemoryDirectory};
use libp2p::multiaddr::Protocol;
use rand::rngs::OsRng;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What a measurement ends with.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

async fn start(listen: &str, keep_alive: Duration) -> Outcome<(Net, OwnedServerName)> {
    let now = MilliSecondsSinceUnixEpoch::now();
    let until = MilliSecondsSinceUnixEpoch(now.0 + UInt::from(1_000_000_000_u32));
    let node_key = Arc::new(NodeKey::generate(&mut OsRng));
    let document = KeyDocument::new(&IdentityKey::generate(&mut OsRng), &node_key.public(), now, until)?;
    let server_name = document.server_name();
    let net = Net::start(NetConfig {
        server_name: server_name.clone(),
        transport_key: TransportKey::generate(&mut OsRng),
        node_key,
        directory: MemoryDirectory::new(Some(document), Arc::new(MilliSecondsSinceUnixEpoch::now)),
        service: Arc::new(|_, _| {
            let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
            std::future::ready(http::Response::new(empty)).boxed()
        }),
        listen: vec![listen.parse()?],
        relays: Vec::new(),
        external: Vec::new(),
        mdns: false,
        dht: DhtConfig::default(),
        upnp: false,
        limits: ConnectionLimits::default(),
        timing: Timing {
            keep_alive,
            idle_timeout: keep_alive * 2 + Duration::from_secs(10),
            ..Timing::default()
        },
    })
    .await?;
    Ok((net, server_name))
}

/// A node on a thread of its own: gives its address, connects when told to whom, and says when it is connected.
struct NodeThread {
    task: PathBuf,
    found: (OwnedServerName, PeerId, Multiaddr),
    connect: tokio::sync::mpsc::Sender<(OwnedServerName, PeerId, Multiaddr)>,
    connected: mpsc::Receiver<()>,
}

fn node(listen: &'static str, keep_alive: Duration) -> Outcome<NodeThread> {
    let (connect, mut told) = tokio::sync::mpsc::channel::<(OwnedServerName, PeerId, Multiaddr)>(1);
    let (say_connected, connected) = mpsc::channel();
    let (say_found, found) = mpsc::channel();
    std::thread::spawn(move || -> Outcome<()> {
        let task = std::fs::canonicalize("/proc/thread-self")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (net, name) = start(listen, keep_alive).await?;
            let address = net.listen_addrs().remove(0);
            say_found.send((task, (name, net.local_peer_id(), address)))?;
            while let Some((server, peer_id, address)) = told.recv().await {
                net.add_addresses(&server, peer_id, &[address]).await;
                let request = http::Request::get("/").body(bytes::Bytes::new())?;
                net.request(&server, request, kith_net::RequestLimits::default())
                    .await?;
                say_connected.send(())?;
            }
            Ok(())
        })
    });
    let (task, found) = found.recv()?;
    Ok(NodeThread {
        task,
        found,
        connect,
        connected,
    })
}

/// How often a thread gave up the processor because it had nothing to do, and so was woken.
fn wake_ups(task: &Path) -> Outcome<u64> {
    let status = std::fs::read_to_string(task.join("status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.ok_or("no count")?.trim().parse()?)
}

/// Forwards to a UDP or TCP port and counts the bytes, without headers.
async fn wire(target: &Multiaddr, bytes: Arc<AtomicU64>) -> Outcome<Multiaddr> {
    let port = target.iter().nth(1).ok_or("no port")?;
    match port {
        Protocol::Udp(port) => {
            let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
            far.connect((Ipv4Addr::LOCALHOST, port)).await?;
            let here = near.local_addr()?.port();
            tokio::spawn(udp(near, far, bytes));
            Ok(format!("/ip4/127.0.0.1/udp/{here}/quic-v1").parse()?)
        }
        Protocol::Tcp(port) => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let here = listener.local_addr()?.port();
            tokio::spawn(tcp(listener, port, bytes));
            Ok(format!("/ip4/127.0.0.1/tcp/{here}").parse()?)
        }
        _ => Err("neither UDP nor TCP".into()),
    }
}

async fn udp(near: Arc<UdpSocket>, far: Arc<UdpSocket>, bytes: Arc<AtomicU64>) -> Outcome<()> {
    let mut client: Option<SocketAddr> = None;
    let (mut there, mut back) = ([0; 65536], [0; 65536]);
    loop {
        tokio::select! {
            received = near.recv_from(&mut there) => {
                let (length, from) = received?;
                client = Some(from);
                bytes.fetch_add(length as u64, Relaxed);
                far.send(&there[..length]).await?;
            }
            received = far.recv(&mut back) => {
                let length = received?;
                bytes.fetch_add(length as u64, Relaxed);
                if let Some(client) = client {
                    near.send_to(&back[..length], client).await?;
                }
            }
        }
    }
}

async fn tcp(listener: TcpListener, port: u16, bytes: Arc<AtomicU64>) -> Outcome<()> {
    let (mut near, _) = listener.accept().await?;
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut there, mut back) = ([0; 65536], [0; 65536]);
    loop {
        tokio::select! {
            read = near.read(&mut there) => {
                let length = read?;
                bytes.fetch_add(length as u64, Relaxed);
                far.write_all(&there[..length]).await?;
            }
            read = far.read(&mut back) => {
                let length = read?;
                bytes.fetch_add(length as u64, Relaxed);
                near.write_all(&back[..length]).await?;
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let minutes: u64 = arguments.next().as_deref().unwrap_or("3").parse()?;
    let keep_alive = Duration::from_secs(arguments.next().as_deref().unwrap_or("25").parse()?);
    let listen = match arguments.next().as_deref() {
        None | Some("quic") => "/ip4/127.0.0.1/udp/0/quic-v1",
        Some("tcp") => "/ip4/127.0.0.1/tcp/0",
        Some(other) => return Err(format!("{other} is neither quic nor tcp").into()),
    };
    let (alice, bob) = (node(listen, keep_alive)?, node(listen, keep_alive)?);
    let bytes = Arc::new(AtomicU64::new(0));
    let (name, peer_id, address) = bob.found.clone();
    let address = wire(&address, bytes.clone()).await?;
    alice.connect.send((name, peer_id, address)).await?;
    let connected = alice.connected;
    tokio::task::spawn_blocking(move || connected.recv()).await??;
    let to_connect = bytes.load(Relaxed);
    // Identify, path MTU discovery and acknowledgements settle first.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before = (bytes.load(Relaxed), wake_ups(&alice.task)?, wake_ups(&bob.task)?);
    tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
    let after = (bytes.load(Relaxed), wake_ups(&alice.task)?, wake_ups(&bob.task)?);
    let per_minute = |after: u64, before: u64| (after - before) as f64 / minutes as f64;
    println!(
        r#"{{"bytes_to_connect":{to_connect},"bytes_to_settle":{},"bytes_per_minute":{:.1},"wake_ups_per_minute":[{:.1},{:.1}]}}"#,
        before.0 - to_connect,
        per_minute(after.0, before.0),
        per_minute(after.1, before.1),
        per_minute(after.2, before.2),
    );
    Ok(())
}
