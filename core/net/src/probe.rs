//! Tries whether a relay answers, and from where it sees this machine come: what a person needs to know whose node is not
//! reached. Uses a swarm of its own with a key of its own, and keeps no place anywhere.

use std::{collections::HashMap, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, identify,
    identity::Keypair,
    swarm::{
        ConnectionId, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::{Instant, timeout_at};

use crate::{
    StartError, Timing,
    address::{self, Path},
    swarm,
};

/// For relays to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of trying one address.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The relay's address, without its PeerId.
    pub address: Multiaddr,
    /// The relay's PeerId.
    pub relay: PeerId,
    /// Whether it is QUIC, over UDP; else TCP.
    pub quic: bool,
    /// How long the handshake took, and from where we seem to come; or why there was none.
    pub answer: Result<Answer, String>,
}

/// A relay's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Until the relay had identified itself.
    pub after: Duration,
    /// Our address as the relay sees it.
    pub seen_as: Multiaddr,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
}

/// Tries every way to these relays, whose addresses end in `/p2p/RELAY`, side by side, for five seconds at the most.
pub async fn probe(relays: &[Multiaddr]) -> Result<Vec<Probe>, StartError> {
    let keypair = Keypair::generate_ed25519();
    let timing = Timing::default();
    let behaviour = Behaviour {
        identify: swarm::identify_behaviour(&keypair),
    };
    let transport = swarm::direct_transport(&keypair, &timing)?;
    let mut swarm = swarm::swarm(transport, behaviour, keypair.public().to_peer_id(), &timing);
    let mut open = HashMap::new();
    let mut probes = Vec::new();
    let started = Instant::now();
    for (relay, known) in relays.iter().filter_map(address::relay_of) {
        for way in address::ways_to_relay(&[known]) {
            // The system chooses the port, and the same one for all UDP: where relays see different ones, the router does it.
            let options = DialOpts::peer_id(relay)
                .addresses(vec![way.clone()])
                .condition(PeerCondition::Always)
                .build();
            let probe = Probe {
                quic: Path::of(&way) == Path::Quic,
                address: way,
                relay,
                answer: Err("no answer".to_owned()),
            };
            open.insert(options.connection_id(), probes.len());
            probes.push(probe);
            if let Err(error) = swarm.dial(options) {
                tracing::debug!(%error, "not dialled");
            }
        }
    }
    let deadline = started + PATIENCE;
    while !open.is_empty() {
        let Ok(event) = timeout_at(deadline, swarm.select_next_some()).await else {
            break;
        };
        if let Some((id, answer)) = answer(event, started)
            && let Some(index) = open.remove(&id)
        {
            probes[index].answer = answer;
            swarm.close_connection(id);
        }
    }
    Ok(probes)
}

fn answer(event: SwarmEvent<BehaviourEvent>, started: Instant) -> Option<(ConnectionId, Result<Answer, String>)> {
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
            connection_id, info, ..
        })) => {
            let answer = Answer {
                after: started.elapsed(),
                seen_as: info.observed_addr,
            };
            Some((connection_id, Ok(answer)))
        }
        SwarmEvent::OutgoingConnectionError {
            connection_id, error, ..
        } => Some((connection_id, Err(error.to_string()))),
        _ => None,
    }
}
