//! The addresses at which other servers may be found, as told by tickets, peers and the directory. In memory and
//! bounded; decides nothing about dialling.

use std::collections::HashMap;

use libp2p::{Multiaddr, PeerId};
use ruma::{OwnedServerName, ServerName};

use crate::{PeerAddresses, address::is_dialable};

/// Servers in the book; the one used longest ago makes room.
const MAX_SERVERS: usize = 4096;

/// PeerIds per server: its nodes, and those that they had before.
const MAX_PEERS: usize = 8;

/// Addresses per PeerId.
const MAX_ADDRESSES: usize = 16;

#[derive(Default)]
struct Entry {
    /// Newest first.
    peers: Vec<PeerAddresses>,
    used: u64,
}

/// Addresses by server.
#[derive(Default)]
pub(crate) struct AddressBook {
    servers: HashMap<OwnedServerName, Entry>,
    clock: u64,
}

impl AddressBook {
    /// Adds addresses; says whether any is new. They come before those that were known; what cannot be dialled is left out.
    pub(crate) fn add(&mut self, server: &ServerName, peer_id: PeerId, addresses: &[Multiaddr]) -> bool {
        let addresses: Vec<_> = addresses
            .iter()
            .filter(|address| is_dialable(address))
            .cloned()
            .collect();
        if addresses.is_empty() {
            return false;
        }
        let entry = self.entry(server);
        let known = entry.peers.iter().position(|known| known.peer_id == peer_id);
        let mut peer = match known {
            Some(index) => entry.peers.remove(index),
            None => PeerAddresses {
                peer_id,
                addresses: Vec::new(),
            },
        };
        let news = addresses.iter().any(|address| !peer.addresses.contains(address));
        peer.addresses.retain(|address| !addresses.contains(address));
        peer.addresses.splice(0..0, addresses);
        peer.addresses.truncate(MAX_ADDRESSES);
        entry.peers.insert(0, peer);
        entry.peers.truncate(MAX_PEERS);
        news
    }

    /// What is known about a server.
    pub(crate) fn lookup(&self, server: &ServerName) -> &[PeerAddresses] {
        self.servers.get(server).map_or(&[], |entry| &entry.peers)
    }

    fn entry(&mut self, server: &ServerName) -> &mut Entry {
        self.clock += 1;
        if !self.servers.contains_key(server) && self.servers.len() >= MAX_SERVERS {
            let oldest = self.servers.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.servers.remove(&oldest);
            }
        }
        let entry = self.servers.entry(server.to_owned()).or_default();
        entry.used = self.clock;
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: usize) -> OwnedServerName {
        ServerName::parse(format!("s{number}")).unwrap()
    }

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn newer_addresses_come_first_and_none_twice() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        book.add(&server(1), peer, &[address(1), address(2)]);
        book.add(&server(1), peer, &[address(3), address(1)]);
        book.add(&server(1), peer, &["/ip4/0.0.0.0/tcp/1".parse().unwrap()]);
        assert_eq!(
            book.lookup(&server(1))[0].addresses,
            [address(3), address(1), address(2)]
        );
        assert!(book.lookup(&server(2)).is_empty());
    }

    #[test]
    fn the_book_is_bounded_every_way() {
        let mut book = AddressBook::default();
        for number in 0..MAX_SERVERS + 10 {
            book.add(&server(number), PeerId::random(), &[address(1)]);
        }
        assert_eq!(book.servers.len(), MAX_SERVERS);
        assert!(
            book.lookup(&server(0)).is_empty(),
            "the one used longest ago makes room"
        );
        assert!(!book.lookup(&server(MAX_SERVERS + 9)).is_empty());

        let many: Vec<_> = (1..100).map(address).collect();
        for _ in 0..20 {
            book.add(&server(1), PeerId::random(), &many);
        }
        assert_eq!(book.lookup(&server(1)).len(), MAX_PEERS);
        assert!(
            book.lookup(&server(1))
                .iter()
                .all(|peer| peer.addresses.len() == MAX_ADDRESSES)
        );
    }
}
