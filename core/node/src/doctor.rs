//! Examines step by step whether others reach this node, and says in plain words what to do. Changes nothing.

use std::collections::BTreeSet;

use kith_net::{
    Multiaddr, StartError as NetError,
    probe::{Probe, probe},
    split_peer_id,
};
use serde::{Deserialize, Serialize};

use crate::{
    Node,
    network::PeerPath,
    status::{Status, StatusError},
};

/// One step of an examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `listening`, `relays`, `udp`, `tcp`, `router`, `places`, `outside` or `peers`.
    pub step: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, in a sentence.
    pub found: String,
    /// What to do about it, if anything.
    pub advice: Option<String>,
}

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, but less well than it could.
    Fair,
    /// Keeps others from reaching this node, or this node from reaching others.
    Bad,
}

/// Why there is no examination.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The node's own state cannot be read.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Nothing can be dialled.
    #[error(transparent)]
    Network(#[from] NetError),
}

impl Node {
    /// Examines whether others reach this node. Relays are asked for up to five seconds.
    pub async fn examine(&self) -> Result<Vec<Finding>, DoctorError> {
        let status = self.status().await?;
        let relays = self.all_relays().await.map_err(StatusError::from)?;
        let outside = self.inner.network.net().map(|net| net.external_addrs());
        Ok(findings(&status, &probe(&relays).await?, &outside.unwrap_or_default()))
    }
}

/// What follows from what was seen.
fn findings(status: &Status, probes: &[Probe], outside: &[Multiaddr]) -> Vec<Finding> {
    let mut findings = vec![listening(status)];
    if status.relays.is_empty() {
        findings.push(finding(
            "relays",
            Verdict::Bad,
            "No relay is known, so nobody outside your local network finds a way \
            through your router, and names are not found.",
            Some("Ask a volunteer for a relay's address, and run: kith relay add ADDRESS"),
        ));
    } else {
        if !probes.is_empty() && probes.iter().all(|probe| probe.answer.is_err()) {
            findings.push(silence());
        } else {
            findings.push(transport(probes, true));
            findings.push(transport(probes, false));
            findings.extend(router(probes));
        }
        findings.push(places(status));
    }
    findings.push(reachable(status, outside));
    findings.push(peers(status));
    findings
}

fn finding(step: &str, verdict: Verdict, found: impl Into<String>, advice: Option<&str>) -> Finding {
    Finding {
        step: step.to_owned(),
        verdict,
        found: found.into(),
        advice: advice.map(str::to_owned),
    }
}

fn listening(status: &Status) -> Finding {
    if !status.online {
        let advice = "Start it with: kith run";
        return finding("listening", Verdict::Bad, "The node is not running.", Some(advice));
    }
    let straight = status.listen.iter().filter(|address| !address.contains("/p2p-circuit"));
    let (local, far): (Vec<_>, Vec<_>) =
        straight.partition(|address| address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/"));
    if far.is_empty() && local.is_empty() {
        let advice = "Leave out --listen, or name an address of this machine.";
        finding(
            "listening",
            Verdict::Fair,
            "The node listens on no address of its own.",
            Some(advice),
        )
    } else if far.is_empty() {
        let advice = "Leave out --listen to listen on every interface; without a network, connect to one.";
        finding(
            "listening",
            Verdict::Bad,
            "The node listens on this machine only.",
            Some(advice),
        )
    } else {
        finding(
            "listening",
            Verdict::Good,
            format!("The node listens on {} addresses.", far.len()),
            None,
        )
    }
}

/// No relay answers in any way.
fn silence() -> Finding {
    let advice = "Check that this machine is on the internet, and the relays' addresses with: kith relay list";
    finding(
        "relays",
        Verdict::Bad,
        "No relay answers, over UDP or TCP.",
        Some(advice),
    )
}

/// How relays answer over one of the two transports, where some answer at all.
fn transport(probes: &[Probe], quic: bool) -> Finding {
    let (step, name) = if quic { ("udp", "UDP (QUIC)") } else { ("tcp", "TCP") };
    let answers: Vec<_> = probes.iter().filter(|probe| probe.quic == quic).collect();
    let fastest = answers
        .iter()
        .filter_map(|probe| probe.answer.as_ref().ok())
        .map(|answer| answer.after)
        .min();
    match fastest {
        Some(after) => {
            let found = format!("A relay answers over {name}, after {} ms.", after.as_millis());
            finding(step, Verdict::Good, found, None)
        }
        None if answers.is_empty() => finding(
            step,
            Verdict::Fair,
            format!("No relay's address for {name} is known."),
            None,
        ),
        None => {
            let advice = if quic {
                "This network seems to block UDP. Messages go over TCP, through relays; allow \
                outgoing UDP in the firewall for straight connections."
            } else {
                "Nothing needs to be done: UDP works. Relays with TCP on port 443 help where \
                UDP is blocked."
            };
            let found = format!("No relay answers over {name}.");
            finding(step, Verdict::Fair, found, Some(advice))
        }
    }
}

/// What the router does with ports, as far as two relays can tell.
fn router(probes: &[Probe]) -> Option<Finding> {
    let answered = probes.iter().filter(|probe| probe.quic);
    let seen: Vec<_> = answered
        .filter_map(|probe| {
            Some((
                probe.relay,
                split_peer_id(probe.answer.as_ref().ok()?.seen_as.clone()).0,
            ))
        })
        .collect();
    let relays: BTreeSet<_> = seen.iter().map(|(relay, _)| *relay).collect();
    if relays.len() < 2 {
        return None;
    }
    let places: BTreeSet<_> = seen.iter().map(|(_, place)| place.to_string()).collect();
    Some(match places.len() {
        1 => finding(
            "router",
            Verdict::Good,
            "Everyone sees this machine at the same address and port, so that straight \
            connections can be made.",
            None,
        ),
        _ => finding(
            "router",
            Verdict::Fair,
            "The router or carrier shows another port to everyone (symmetric NAT).",
            Some(
                "Straight connections work with open networks only; with others, messages go through relays. On a router of your \
            own, forward the node's port, and name it with --external.",
            ),
        ),
    })
}

fn places(status: &Status) -> Finding {
    let held = status.relays.iter().filter(|relay| relay.place).count();
    let found = format!("{held} of {} relays hold a place for this node.", status.relays.len());
    match held {
        0 => finding(
            "places",
            Verdict::Bad,
            found,
            Some(
                "While the node runs, a relay that answers gives it a place within \
            seconds. One that does not may be full: add another with: kith relay add ADDRESS",
            ),
        ),
        1 => finding(
            "places",
            Verdict::Fair,
            found,
            Some(
                "With a second relay, nothing is lost when the first one stops: kith \
            relay add ADDRESS",
            ),
        ),
        _ => finding("places", Verdict::Good, found, None),
    }
}

fn reachable(status: &Status, outside: &[Multiaddr]) -> Finding {
    let straight = outside.iter().map(ToString::to_string);
    let straight = straight.filter(|address| !address.contains("/p2p-circuit")).min();
    if let Some(address) = straight {
        let found = format!("Strangers reach this node straight, at {address}.");
        return finding("outside", Verdict::Good, found, None);
    }
    let held = status.relays.iter().any(|relay| relay.place);
    let found = if held {
        "Strangers do not reach this node straight, as is usual behind a router; they \
        come through relays, and go on straight where the routers permit."
    } else {
        "Nobody outside your local network reaches this node: not straight, as is usual behind a router, nor through a relay. \
        It reaches those whom others reach."
    };
    finding("outside", Verdict::Fair, found, None)
}

fn peers(status: &Status) -> Finding {
    if status.contacts.is_empty() && status.peers.is_empty() {
        let advice = "Ask somebody for a ticket (kith ticket), and run: kith peer add TICKET";
        return finding("peers", Verdict::Fair, "No other node is known yet.", Some(advice));
    }
    let by = |path| status.peers.iter().filter(|peer| peer.path == path).count();
    // Not everybody who is connected is a contact.
    let contacts = status
        .peers
        .iter()
        .filter(|peer| status.contacts.contains(&peer.server_name))
        .count();
    let found = format!(
        "{contacts} of {} contacts are connected. Connected nodes: {} on the local network, {} straight, {} through relays.",
        status.contacts.len(),
        by(PeerPath::Lan),
        by(PeerPath::Direct),
        by(PeerPath::Relayed)
    );
    finding("peers", Verdict::Good, found, None)
}

#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
