//! What an address says about the path behind it. Reads multiaddrs; resolves and dials none.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// The port that hardly any network blocks.
const HTTPS: u16 = 443;

/// How a connection gets to the peer, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// QUIC, straight: the transport itself notices a dead peer.
    Quic,
    /// TCP, straight.
    Tcp,
    /// Through a relay.
    Relayed,
}

impl Path {
    /// The path behind a connection's remote address.
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut path = Self::Tcp;
        for part in address {
            match part {
                Protocol::P2pCircuit => return Self::Relayed,
                Protocol::QuicV1 => path = Self::Quic,
                _ => {}
            }
        }
        path
    }
}

/// Takes the PeerId off the end of an address, if it has one there.
pub fn split_peer_id(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.pop() {
        Some(Protocol::P2p(peer)) => (address, Some(peer)),
        Some(other) => (address.with(other), None),
        None => (address, None),
    }
}

/// The address to listen on for a place at `relay`, whose own address ends in `/p2p/RELAY`, with or without `/p2p-circuit`
/// after that.
pub fn circuit_address(relay: &Multiaddr) -> Option<Multiaddr> {
    let parts: Vec<_> = relay.iter().collect();
    match parts[..] {
        [.., Protocol::P2p(_)] if !is_relayed(relay) => Some(relay.clone().with(Protocol::P2pCircuit)),
        [.., Protocol::P2p(_), Protocol::P2pCircuit] => Some(relay.clone()),
        _ => None,
    }
}

/// The relay that an address names, and where it is: of `…/p2p/RELAY`, and of `…/p2p/RELAY/p2p-circuit` with whatever
/// follows.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let mut at = Multiaddr::empty();
    let mut parts = address.iter();
    let relay = loop {
        match parts.next()? {
            Protocol::P2p(relay) => break relay,
            Protocol::P2pCircuit => return None,
            part => at.push(part),
        }
    };
    let whole = matches!(parts.next(), None | Some(Protocol::P2pCircuit));
    (whole && !at.is_empty()).then_some((relay, at))
}

/// The PeerId of the relay that an address names: `…/p2p/RELAY`, with or without `/p2p-circuit`.
pub fn relay_peer(address: &Multiaddr) -> Option<PeerId> {
    relay_of(address).map(|(relay, _)| relay)
}

/// Every address at which a relay may be found that is known by some: one that only QUIC was told of may serve TCP at the same
/// port, and at 443, which networks that block UDP let through.
pub(crate) fn ways_to_relay(known: &[Multiaddr]) -> Vec<Multiaddr> {
    let mut ways = known.to_vec();
    for address in known {
        let parts: Vec<_> = address.iter().collect();
        if let [host, Protocol::Udp(port), Protocol::QuicV1] = &parts[..] {
            let tcp = |port| Multiaddr::from(host.clone()).with(Protocol::Tcp(port));
            ways.extend([tcp(*port), tcp(HTTPS)]);
        }
    }
    let mut seen = std::collections::HashSet::new();
    ways.retain(|way| seen.insert(way.clone()));
    ways
}

/// Whether the address goes through a relay.
pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    Path::of(address) == Path::Relayed
}

/// The IP address at the front, if that is what stands there.
pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The UDP socket that a straight address stands for.
pub(crate) fn udp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    match address.iter().nth(1)? {
        Protocol::Udp(port) if !is_relayed(address) => Some((ip(address)?, port).into()),
        _ => None,
    }
}

/// Whether the address stays on this machine.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    ip(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether the address stays on the local network or this machine.
pub(crate) fn is_lan(address: &Multiaddr) -> bool {
    !is_relayed(address)
        && match ip(address) {
            Some(IpAddr::V4(ip)) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
            Some(IpAddr::V6(ip)) => is_lan_v6(ip),
            None => false,
        }
}

fn is_lan_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
}

/// Whether anyone could dial this: it names a host and a port.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    let host = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    host && address
        .iter()
        .nth(1)
        .is_some_and(|part| matches!(part, Protocol::Udp(1..) | Protocol::Tcp(1..)))
}

/// Sorts addresses as a ticket wants them: those that work from far away first, QUIC before TCP, this machine's own last
/// and only when there are no others.
pub(crate) fn sort_for_ticket(addresses: &mut Vec<Multiaddr>) {
    if addresses.iter().any(|address| !is_loopback(address)) {
        addresses.retain(|address| !is_loopback(address));
    }
    addresses.sort_by_cached_key(|address| {
        let link_local = matches!(ip(address), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local());
        (Path::of(address), link_local, is_lan(address), address.to_string())
    });
    addresses.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

    fn address(text: &str) -> Multiaddr {
        text.replace("PEER", PEER).parse().unwrap()
    }

    #[test]
    fn addresses_say_what_path_they_are() {
        use Path::{Quic, Relayed, Tcp};
        let cases = [
            ("/ip4/127.0.0.1/udp/1/quic-v1", Quic, true, true),
            ("/ip4/192.168.1.4/tcp/4001", Tcp, true, true),
            ("/ip4/8.8.8.8/udp/4001/quic-v1/p2p/PEER", Quic, false, true),
            ("/ip4/10.0.0.1/udp/1/quic-v1/p2p/PEER/p2p-circuit", Relayed, false, true),
            ("/ip6/fe80::1/tcp/1", Tcp, true, true),
            ("/ip6/fd00::1/tcp/1", Tcp, true, true),
            ("/ip6/2001:db8::1/tcp/1", Tcp, false, true),
            ("/dns4/example.com/tcp/443", Tcp, false, true),
            ("/ip4/0.0.0.0/tcp/1", Tcp, false, false),
            ("/ip4/8.8.8.8/tcp/0", Tcp, false, false),
            ("/ip4/224.0.0.1/udp/1/quic-v1", Quic, false, false),
            ("/p2p/PEER", Tcp, false, false),
            ("/memory/1", Tcp, false, false),
        ];
        for (text, path, lan, dialable) in cases {
            let address = address(text);
            assert_eq!(Path::of(&address), path, "{text}");
            assert_eq!(is_lan(&address), lan, "{text}");
            assert_eq!(is_dialable(&address), dialable, "{text}");
        }
    }

    #[test]
    fn a_peer_id_comes_off_the_end_only() {
        let peer: PeerId = PEER.parse().unwrap();
        let cases = [
            ("/ip4/1.2.3.4/tcp/1/p2p/PEER", "/ip4/1.2.3.4/tcp/1", Some(peer)),
            ("/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/1", None),
            (
                "/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit",
                "/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit",
                None,
            ),
        ];
        for (whole, rest, expected) in cases {
            assert_eq!(split_peer_id(address(whole)), (address(rest), expected), "{whole}");
        }
    }

    #[test]
    fn a_relay_is_known_by_its_peer_id() {
        let circuit = Some("/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit");
        let cases = [
            ("/ip4/1.2.3.4/tcp/1/p2p/PEER", circuit),
            ("/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit", circuit),
            ("/ip4/1.2.3.4/tcp/1/p2p-circuit", None),
            ("/ip4/1.2.3.4/tcp/1", None),
            ("/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit/p2p/PEER", None),
            ("/p2p-circuit", None),
        ];
        for (relay, expected) in cases {
            assert_eq!(circuit_address(&address(relay)), expected.map(address), "{relay}");
        }
    }

    #[test]
    fn an_address_names_its_relay() {
        let relay: PeerId = PEER.parse().unwrap();
        let cases = [
            (
                "/ip4/1.2.3.4/udp/1/quic-v1/p2p/PEER",
                Some("/ip4/1.2.3.4/udp/1/quic-v1"),
            ),
            ("/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit", Some("/ip4/1.2.3.4/tcp/1")),
            (
                "/ip4/1.2.3.4/tcp/1/p2p/PEER/p2p-circuit/p2p/PEER",
                Some("/ip4/1.2.3.4/tcp/1"),
            ),
            ("/p2p/PEER/p2p-circuit", None),
            ("/ip4/1.2.3.4/tcp/1/p2p-circuit/p2p/PEER", None),
            ("/ip4/1.2.3.4/tcp/1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(
                relay_of(&address(text)),
                expected.map(|at| (relay, address(at))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_relay_is_looked_for_on_tcp_too() {
        let cases: [(&[&str], &[&str]); 3] = [
            (
                &["/dns4/example.com/udp/4433/quic-v1"],
                &[
                    "/dns4/example.com/udp/4433/quic-v1",
                    "/dns4/example.com/tcp/4433",
                    "/dns4/example.com/tcp/443",
                ],
            ),
            (&["/ip4/1.2.3.4/tcp/4433"], &["/ip4/1.2.3.4/tcp/4433"]),
            (
                &["/ip4/1.2.3.4/udp/443/quic-v1", "/ip4/1.2.3.4/tcp/443"],
                &["/ip4/1.2.3.4/udp/443/quic-v1", "/ip4/1.2.3.4/tcp/443"],
            ),
        ];
        for (known, expected) in cases {
            let known: Vec<_> = known.iter().map(|text| address(text)).collect();
            let expected: Vec<_> = expected.iter().map(|text| address(text)).collect();
            assert_eq!(ways_to_relay(&known), expected);
        }
    }

    #[test]
    fn a_ticket_names_far_addresses_first_and_loopback_only_alone() {
        let mut some: Vec<_> = [
            "/ip4/127.0.0.1/udp/1/quic-v1",
            "/ip4/192.168.1.4/tcp/1",
            "/ip4/192.168.1.4/udp/1/quic-v1",
            "/ip4/8.8.8.8/udp/1/quic-v1",
        ]
        .map(address)
        .into();
        sort_for_ticket(&mut some);
        let expected = [
            "/ip4/8.8.8.8/udp/1/quic-v1",
            "/ip4/192.168.1.4/udp/1/quic-v1",
            "/ip4/192.168.1.4/tcp/1",
        ];
        assert_eq!(some, expected.map(address));

        let mut alone = vec![address("/ip4/127.0.0.1/udp/1/quic-v1")];
        sort_for_ticket(&mut alone);
        assert_eq!(alone.len(), 1);
    }
}
