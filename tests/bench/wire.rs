//! A UDP wire between two nodes that counts what crosses it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::UdpSocket;

/// A forwarder on a loopback port of its own, for one client behind it. Dropping it cuts the wire.
pub(crate) struct Wire {
    /// Where to send to, instead of the real address.
    pub(crate) address: SocketAddr,
    bytes: Arc<AtomicU64>,
    packets: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// A wire to `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let far = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = near.local_addr().expect("an address");
        let (bytes, packets) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count_bytes, count_packets) = (Arc::clone(&bytes), Arc::clone(&packets));
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                let length = tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send_to(&up[..length], target).await;
                        length
                    }
                    Ok((length, _)) = far.recv_from(&mut down) => {
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..length], client).await;
                        }
                        length
                    }
                };
                // IPv4 and UDP headers travel too.
                count_bytes.fetch_add(length as u64 + 28, Ordering::Relaxed);
                count_packets.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            address,
            bytes,
            packets,
            task,
        }
    }

    /// Bytes so far, both ways, with IP and UDP headers.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Packets so far, both ways.
    pub(crate) fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
