//! A UDP wire between two nodes that counts what crosses it.

use std::{
    net::SocketAddr,
    ops::Sub,
    sync::{Arc, Mutex},
};

use tokio::net::UdpSocket;

/// IPv4 and UDP headers travel with each packet.
pub(crate) const IP_AND_UDP: u64 = 20 + 8;

/// What crossed a wire.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    /// Bytes both ways, with IP and UDP headers.
    pub(crate) bytes: u64,
    /// Of these, those from the client to the target.
    pub(crate) there: u64,
    /// Packets both ways.
    pub(crate) packets: u64,
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            there: self.there - before.there,
            packets: self.packets - before.packets,
        }
    }
}

/// A forwarder on a loopback port of its own, for one client behind it. Dropping it cuts the wire.
pub(crate) struct Wire {
    /// Where to send to, instead of the real address.
    pub(crate) address: SocketAddr,
    count: Arc<Mutex<Count>>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// A wire to `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let far = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = near.local_addr().expect("an address");
        let count = Arc::new(Mutex::new(Count::default()));
        let counting = count.clone();
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                let (length, there) = tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send_to(&up[..length], target).await;
                        (length, true)
                    }
                    Ok((length, _)) = far.recv_from(&mut down) => {
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..length], client).await;
                        }
                        (length, false)
                    }
                };
                let bytes = length as u64 + IP_AND_UDP;
                let mut count = counting.lock().expect("nobody panics while counting");
                count.bytes += bytes;
                count.there += if there { bytes } else { 0 };
                count.packets += 1;
            }
        });
        Self { address, count, task }
    }

    /// What crossed it so far.
    pub(crate) fn count(&self) -> Count {
        *self.count.lock().expect("nobody panics while counting")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
